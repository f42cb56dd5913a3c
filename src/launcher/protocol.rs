//! What the daemon, the launcher and the inits say to one another: fixed little-endian messages, one a
//! `SOCK_SEQPACKET` packet, bounded before they are decoded.
//!
//! ```text
//! daemon ⇄ launcher   ToLauncher / FromLauncher    plans and process ids; no value of an environment
//! daemon ⇄ init       ToInit / FromInit            argv and environment of execs, signals, ends
//! ```
//!
//! Nothing here touches the system. A packet that does not decode to the last byte is [`DecodeError`], and
//! whoever holds more privilege than its sender ends the conversation on it.

use crate::plan::{SessionPlan, codec};
use std::collections::BTreeMap;

/// Version of these messages; launcher and daemon must agree, so a half-upgraded pair refuses to start.
pub const VERSION: u32 = 2;
/// The variable that makes the launcher's program the process that evidence is read from.
pub const PROBE_KEY: &str = "TRL_PROBE";
/// Its value, and the name of a command, that make it the process that attacks; see `trl verify`.
pub const ATTACKS: &str = "trl-attacks";
/// Largest packet, bytes. Fits a default socket buffer of 208 KiB with room to spare.
pub const MAX_PACKET: usize = 64 * 1024;
/// Largest argv plus environment of one exec, bytes, ends included (`ARG_MAX` is 2 MiB at an 8 MiB stack).
pub const MAX_SPAWN_PAYLOAD: usize = 2 * 1024 * 1024 - 64 * 1024;
/// Most strings in argv and environment together.
pub const MAX_SPAWN_STRINGS: usize = 16 * 1024;
pub use crate::plan::codec::MAX_PATH;

/// A packet that is not of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("packet of unknown form")]
pub struct DecodeError;

/// Where making a session or starting an exec failed. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// The message itself, or a bound of the plan.
    Plan = 1,
    /// `fork` or `clone3`.
    Clone = 2,
    /// `setresuid`, `setresgid`, `setgroups`.
    User = 3,
    /// `setrlimit`.
    Rlimit = 4,
    /// `chdir` to the working directory.
    WorkingDirectory = 5,
    /// The session's shell is not there or not executable.
    Shell = 6,
    /// `PR_SET_NO_NEW_PRIVS`.
    NoNewPrivileges = 7,
    /// `dup2` and `close_range`.
    Descriptors = 8,
    /// `setsid`.
    ProcessGroup = 9,
    /// `execve`.
    Exec = 10,
    /// Any other part of an init's start.
    Init = 11,
    /// The session has as many process trees as it may.
    TooManyTrees = 12,
    /// `clone(2)` with namespaces, or the id maps of its user namespace.
    Namespaces = 13,
    /// The session's root: mounts, `pivot_root(2)`.
    Root = 14,
    /// The loopback device.
    Network = 15,
    /// Dropping capabilities.
    Capabilities = 16,
    /// The Landlock ruleset.
    Landlock = 17,
    /// The system call filters.
    Seccomp = 18,
    /// Host ids of the session's own; `EAGAIN` where none is left.
    HostIds = 19,
}

impl Stage {
    /// The name that clients see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Clone => "clone",
            Self::User => "user",
            Self::Rlimit => "rlimit",
            Self::WorkingDirectory => "working_dir",
            Self::Shell => "shell",
            Self::NoNewPrivileges => "no_new_privileges",
            Self::Descriptors => "descriptors",
            Self::ProcessGroup => "process_group",
            Self::Exec => "exec",
            Self::Init => "init",
            Self::TooManyTrees => "process_trees",
            Self::Namespaces => "namespaces",
            Self::Root => "root",
            Self::Network => "network",
            Self::Capabilities => "capabilities",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::HostIds => "host_ids",
        }
    }

    /// The stage with that number.
    ///
    /// # Errors
    /// [`DecodeError`] where there is none.
    pub fn from_number(number: u8) -> Result<Self, DecodeError> {
        Ok(match number {
            1 => Self::Plan,
            2 => Self::Clone,
            3 => Self::User,
            4 => Self::Rlimit,
            5 => Self::WorkingDirectory,
            6 => Self::Shell,
            7 => Self::NoNewPrivileges,
            8 => Self::Descriptors,
            9 => Self::ProcessGroup,
            10 => Self::Exec,
            11 => Self::Init,
            12 => Self::TooManyTrees,
            13 => Self::Namespaces,
            14 => Self::Root,
            15 => Self::Network,
            16 => Self::Capabilities,
            17 => Self::Landlock,
            18 => Self::Seccomp,
            19 => Self::HostIds,
            _ => return Err(DecodeError),
        })
    }
}

/// Whether sessions can have host ids of their own, and if not, why. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum HostIds {
    /// They can.
    Available = 1,
    /// The user has no range of ids.
    NoRange = 2,
    /// `newuidmap` or `newgidmap` is not there.
    NoProgram = 3,
    /// `newuidmap`, or the kernel, did not map it.
    Refused = 4,
    /// The launcher's own program, which evidence comes from, cannot be executed by others than its owner.
    Unreachable = 5,
    /// There is no place to write down which ids are given out.
    NoPlace = 6,
}

impl HostIds {
    fn from_number(number: u8) -> Result<Self, DecodeError> {
        Ok(match number {
            1 => Self::Available,
            2 => Self::NoRange,
            3 => Self::NoProgram,
            4 => Self::Refused,
            5 => Self::Unreachable,
            6 => Self::NoPlace,
            _ => return Err(DecodeError),
        })
    }
}

/// Daemon to launcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToLauncher {
    /// First and once: who the daemon is. The launcher cleans up after an earlier life, then says `Ready`.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// The mark that every process of this instance carries (see `sys::mark`).
        mark: u64,
    },
    /// Make a session. Carries one descriptor: the init's end of its socket.
    Create {
        /// The daemon's number for it, never used twice.
        session: u64,
        /// What it will be.
        plan: Box<SessionPlan>,
    },
    /// End a session at once without asking its init; `Ended` follows.
    Kill {
        /// The session.
        session: u64,
    },
    /// Look for what slipped through; `Swept` follows.
    Sweep,
    /// Try whether sessions can have host ids of their own; `Prepared` follows.
    Prepare,
}

/// Launcher to daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromLauncher {
    /// Answer to `Hello`.
    Ready {
        /// Processes of an earlier life that were found.
        orphans_found: u32,
        /// Of these, still there after the bound.
        orphans_left: u32,
    },
    /// The init was cloned; it says on its own socket whether it is ready.
    Created {
        /// The session.
        session: u64,
        /// Process id of its init.
        pid: i32,
    },
    /// No init was made.
    CreateFailed {
        /// The session.
        session: u64,
        /// Which step failed.
        stage: Stage,
        /// With what.
        errno: i32,
    },
    /// The init and all its descendants are gone and reaped.
    Ended {
        /// The session.
        session: u64,
        /// Wait status of the init.
        status: i32,
        /// How many processes the launcher itself had to kill.
        killed: u32,
    },
    /// Answer to `Sweep`.
    Swept {
        /// Zombies reaped.
        zombies: u32,
        /// Processes with this instance's mark that descended from no session, killed.
        strays: u32,
    },
    /// Answer to `Prepare`.
    Prepared {
        /// What came of it.
        ids: HostIds,
    },
}

/// What a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Target {
    /// The exec's first process.
    Leader = 1,
    /// Its process group.
    Group = 2,
    /// Everything that descends from it.
    Tree = 3,
}

/// Daemon to init. `Spawn` carries three descriptors, for 0, 1 and 2; no other message carries any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToInit<'a> {
    /// The first packet of an exec: its fixed part and the beginning of its payload.
    Spawn(SpawnHeader, &'a [u8]),
    /// More payload of the exec whose `Spawn` came last. Nothing comes in between.
    More(&'a [u8]),
    /// Signal an exec; `Signaled` follows.
    Signal {
        /// Echoed in the answer.
        request: u64,
        /// The exec.
        exec: u64,
        /// Signal number, 1 to 64.
        signal: i32,
        /// Which of its processes.
        target: Target,
    },
    /// End everything of an exec: stop, then SIGKILL. `TreeGone` follows.
    Kill {
        /// The exec.
        exec: u64,
    },
    /// SIGTERM to everything in the session.
    Terminate,
    /// End everything, say `Destroyed`, exit.
    Destroy,
}

/// The fixed part of an exec's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpawnHeader {
    /// The daemon's number for it, never used twice in a session.
    pub exec: u64,
    /// Length of the whole payload, bytes.
    pub payload_len: u32,
    /// Strings of argv, at least 1 unless `probe`.
    pub argc: u32,
    /// Strings `KEY=value`.
    pub envc: u32,
    /// Whether the payload begins with a working directory; else the session's.
    pub has_cwd: bool,
    /// Whether the daemon wants `Started`. A failure to start is said either way.
    pub want_started: bool,
    /// Run the launcher's own probe instead of argv (evidence; never a client's wish).
    pub probe: bool,
}

/// Init to daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromInit {
    /// The session is there.
    Ready {
        /// The init's process id as it sees itself.
        pid: i32,
    },
    /// It is not, and the init exits.
    Failed {
        /// Which step failed.
        stage: Stage,
        /// With what.
        errno: i32,
    },
    /// The command has been executed.
    Started {
        /// The exec.
        exec: u64,
        /// Process id of its leader.
        pid: i32,
    },
    /// The command could not be started; `TreeGone` follows.
    SpawnFailed {
        /// The exec.
        exec: u64,
        /// Which step failed.
        stage: Stage,
        /// With what.
        errno: i32,
    },
    /// The leader has ended and was reaped.
    LeaderExited {
        /// The exec.
        exec: u64,
        /// Its wait status.
        status: i32,
        /// User time of it and its reaped descendants, µs.
        user_us: u64,
        /// System time likewise, µs.
        system_us: u64,
        /// Peak resident set, KiB.
        max_rss_kib: u64,
        /// Blocks of 512 bytes read.
        blocks_in: u64,
        /// Blocks of 512 bytes written.
        blocks_out: u64,
        /// Whether nothing else that descends from the exec lives: no `TreeGone` need follow.
        last: bool,
    },
    /// Nothing that descends from the exec lives: its reaper has no child. The last of an exec whose end did not
    /// say so itself.
    TreeGone {
        /// The exec.
        exec: u64,
        /// How many processes were sent SIGKILL.
        killed: u32,
    },
    /// Answer to `Signal`.
    Signaled {
        /// The request.
        request: u64,
        /// How many processes it was delivered to.
        delivered: u32,
        /// 0, or why none: `ESRCH`, `EPERM`, …
        errno: i32,
    },
    /// The answer to `Destroy`: nothing of the session lives but the init, which exits.
    Destroyed {
        /// How many processes were sent SIGKILL.
        killed: u32,
    },
}

struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8) -> Self {
        Self(vec![kind])
    }
    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    fn i32(self, value: i32) -> Self {
        self.u32(value.cast_unsigned())
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(DecodeError)?;
        self.0 = tail;
        Ok(head)
    }
    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }
    fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError),
        }
    }
    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take(4)?.try_into().map(u32::from_le_bytes).map_err(|_| DecodeError)
    }
    fn i32(&mut self) -> Result<i32, DecodeError> {
        self.u32().map(u32::cast_signed)
    }
    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take(8)?.try_into().map(u64::from_le_bytes).map_err(|_| DecodeError)
    }
    fn end(self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError) }
    }
}

impl ToLauncher {
    /// The packet.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello { version, mark } => Writer::new(1).u32(*version).u64(*mark).0,
            Self::Create { session, plan } => {
                let mut packet = Writer::new(2).u64(*session).0;
                codec::encode(plan, &mut packet);
                packet
            }
            Self::Kill { session } => Writer::new(3).u64(*session).0,
            Self::Sweep => Writer::new(4).0,
            Self::Prepare => Writer::new(5).0,
        }
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// [`DecodeError`] for anything but exactly one message.
    pub fn decode(packet: &[u8]) -> Result<Self, DecodeError> {
        if packet.len() > MAX_PACKET {
            return Err(DecodeError);
        }
        let mut reader = Reader(packet);
        let message = match reader.u8()? {
            1 => Self::Hello { version: reader.u32()?, mark: reader.u64()? },
            2 => {
                let session = reader.u64()?;
                let plan = codec::decode(std::mem::take(&mut reader.0)).ok_or(DecodeError)?;
                Self::Create { session, plan: Box::new(plan) }
            }
            3 => Self::Kill { session: reader.u64()? },
            4 => Self::Sweep,
            5 => Self::Prepare,
            _ => return Err(DecodeError),
        };
        reader.end()?;
        Ok(message)
    }
}

impl FromLauncher {
    /// The packet.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Self::Ready { orphans_found, orphans_left } => {
                Writer::new(1).u32(orphans_found).u32(orphans_left).0
            }
            Self::Created { session, pid } => Writer::new(2).u64(session).i32(pid).0,
            Self::CreateFailed { session, stage, errno } => {
                Writer::new(3).u64(session).u8(stage as u8).i32(errno).0
            }
            Self::Ended { session, status, killed } => Writer::new(4).u64(session).i32(status).u32(killed).0,
            Self::Swept { zombies, strays } => Writer::new(5).u32(zombies).u32(strays).0,
            Self::Prepared { ids } => Writer::new(6).u8(ids as u8).0,
        }
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// [`DecodeError`] for anything but exactly one message.
    pub fn decode(packet: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader(packet);
        let message = match reader.u8()? {
            1 => Self::Ready { orphans_found: reader.u32()?, orphans_left: reader.u32()? },
            2 => Self::Created { session: reader.u64()?, pid: reader.i32()? },
            3 => Self::CreateFailed {
                session: reader.u64()?,
                stage: Stage::from_number(reader.u8()?)?,
                errno: reader.i32()?,
            },
            4 => Self::Ended { session: reader.u64()?, status: reader.i32()?, killed: reader.u32()? },
            5 => Self::Swept { zombies: reader.u32()?, strays: reader.u32()? },
            6 => Self::Prepared { ids: HostIds::from_number(reader.u8()?)? },
            _ => return Err(DecodeError),
        };
        reader.end()?;
        Ok(message)
    }
}

impl<'a> ToInit<'a> {
    /// Bytes before the payload in a `Spawn` packet.
    pub const SPAWN_OVERHEAD: usize = 24;
    /// Bytes before the payload in a `More` packet.
    pub const MORE_OVERHEAD: usize = 1;

    /// The packet of a message without payload. `Spawn` and `More` are made by [`spawn_packets`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Self::Spawn(header, payload) => {
                let mut bytes = Writer::new(1)
                    .u64(header.exec)
                    .u32(header.payload_len)
                    .u32(header.argc)
                    .u32(header.envc)
                    .u8(u8::from(header.has_cwd))
                    .u8(u8::from(header.want_started))
                    .u8(u8::from(header.probe))
                    .0;
                bytes.reserve_exact(payload.len());
                bytes.extend_from_slice(payload);
                bytes
            }
            Self::More(payload) => {
                let mut bytes = Vec::with_capacity(1 + payload.len());
                bytes.push(2);
                bytes.extend_from_slice(payload);
                bytes
            }
            Self::Signal { request, exec, signal, target } => {
                Writer::new(3).u64(request).u64(exec).i32(signal).u8(target as u8).0
            }
            Self::Kill { exec } => Writer::new(4).u64(exec).0,
            Self::Terminate => vec![5],
            Self::Destroy => vec![6],
        }
    }

    /// Reads a packet; payloads are borrowed, not copied.
    ///
    /// # Errors
    /// [`DecodeError`] for anything but exactly one message within the bounds.
    pub fn decode(packet: &'a [u8]) -> Result<Self, DecodeError> {
        if packet.len() > MAX_PACKET {
            return Err(DecodeError);
        }
        let mut reader = Reader(packet);
        let message = match reader.u8()? {
            1 => {
                let header = SpawnHeader {
                    exec: reader.u64()?,
                    payload_len: reader.u32()?,
                    argc: reader.u32()?,
                    envc: reader.u32()?,
                    has_cwd: reader.flag()?,
                    want_started: reader.flag()?,
                    probe: reader.flag()?,
                };
                let strings = u64::from(header.argc) + u64::from(header.envc);
                if header.payload_len as usize > MAX_SPAWN_PAYLOAD
                    || strings > MAX_SPAWN_STRINGS as u64
                    || reader.0.len() > header.payload_len as usize
                    || (header.argc == 0 && !header.probe)
                {
                    return Err(DecodeError);
                }
                return Ok(Self::Spawn(header, reader.0));
            }
            2 => return Ok(Self::More(reader.0)),
            3 => Self::Signal {
                request: reader.u64()?,
                exec: reader.u64()?,
                signal: match reader.i32()? {
                    signal @ 1..=64 => signal,
                    _ => return Err(DecodeError),
                },
                target: match reader.u8()? {
                    1 => Target::Leader,
                    2 => Target::Group,
                    3 => Target::Tree,
                    _ => return Err(DecodeError),
                },
            },
            4 => Self::Kill { exec: reader.u64()? },
            5 => Self::Terminate,
            6 => Self::Destroy,
            _ => return Err(DecodeError),
        };
        reader.end()?;
        Ok(message)
    }
}

impl FromInit {
    /// The packet, in a buffer on the stack: whoever sends it may not be able to allocate.
    #[must_use]
    pub fn encode(&self) -> Packet {
        let packet = Packet { bytes: [0; 56], length: 0 };
        match *self {
            Self::Ready { pid } => packet.u8(1).u32(pid.cast_unsigned()),
            Self::Failed { stage, errno } => packet.u8(2).u8(stage as u8).u32(errno.cast_unsigned()),
            Self::Started { exec, pid } => packet.u8(3).u64(exec).u32(pid.cast_unsigned()),
            Self::SpawnFailed { exec, stage, errno } => {
                packet.u8(4).u64(exec).u8(stage as u8).u32(errno.cast_unsigned())
            }
            Self::LeaderExited {
                exec,
                status,
                user_us,
                system_us,
                max_rss_kib,
                blocks_in,
                blocks_out,
                last,
            } => packet
                .u8(5)
                .u64(exec)
                .u32(status.cast_unsigned())
                .u64(user_us)
                .u64(system_us)
                .u64(max_rss_kib)
                .u64(blocks_in)
                .u64(blocks_out)
                .u8(u8::from(last)),
            Self::TreeGone { exec, killed } => packet.u8(6).u64(exec).u32(killed),
            Self::Signaled { request, delivered, errno } => {
                packet.u8(7).u64(request).u32(delivered).u32(errno.cast_unsigned())
            }
            Self::Destroyed { killed } => packet.u8(8).u32(killed),
        }
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// [`DecodeError`] for anything but exactly one message.
    pub fn decode(packet: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader(packet);
        let message = match reader.u8()? {
            1 => Self::Ready { pid: reader.i32()? },
            2 => Self::Failed { stage: Stage::from_number(reader.u8()?)?, errno: reader.i32()? },
            3 => Self::Started { exec: reader.u64()?, pid: reader.i32()? },
            4 => Self::SpawnFailed {
                exec: reader.u64()?,
                stage: Stage::from_number(reader.u8()?)?,
                errno: reader.i32()?,
            },
            5 => Self::LeaderExited {
                exec: reader.u64()?,
                status: reader.i32()?,
                user_us: reader.u64()?,
                system_us: reader.u64()?,
                max_rss_kib: reader.u64()?,
                blocks_in: reader.u64()?,
                blocks_out: reader.u64()?,
                last: match reader.u8()? {
                    0 => false,
                    1 => true,
                    _ => return Err(DecodeError),
                },
            },
            6 => Self::TreeGone { exec: reader.u64()?, killed: reader.u32()? },
            7 => Self::Signaled { request: reader.u64()?, delivered: reader.u32()?, errno: reader.i32()? },
            8 => Self::Destroyed { killed: reader.u32()? },
            _ => return Err(DecodeError),
        };
        reader.end()?;
        Ok(message)
    }
}

/// A small packet on the stack.
#[derive(Clone, Copy)]
pub struct Packet {
    bytes: [u8; 56],
    length: usize,
}

impl Packet {
    fn push(mut self, bytes: &[u8]) -> Self {
        if let Some(room) = self.bytes.get_mut(self.length..self.length + bytes.len()) {
            room.copy_from_slice(bytes);
            self.length += bytes.len();
        }
        self
    }
    fn u8(self, value: u8) -> Self {
        self.push(&[value])
    }
    fn u32(self, value: u32) -> Self {
        self.push(&value.to_le_bytes())
    }
    fn u64(self, value: u64) -> Self {
        self.push(&value.to_le_bytes())
    }
    /// The bytes to send.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// Why an exec's argv and environment do not make a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpawnError {
    /// A string has a NUL byte, which `execve` cannot carry.
    #[error("{0} holds a NUL byte")]
    Nul(&'static str),
    /// argv and environment are larger than the kernel takes.
    #[error("argv and environment are larger than {MAX_SPAWN_PAYLOAD} bytes or {MAX_SPAWN_STRINGS} strings")]
    TooLarge,
}

/// The packets of an exec, in order. The first goes with the three descriptors. Each is wiped when dropped.
///
/// Payload: the working directory if there is one, then argv, then `KEY=value`, each ended by a NUL.
///
/// # Errors
/// [`SpawnError`] for what no kernel would take.
pub fn spawn_packets(
    mut header: SpawnHeader,
    cwd: Option<&[u8]>,
    argv: &[&[u8]],
    environment: &BTreeMap<&str, &crate::secret::Secret>,
) -> Result<Vec<zeroize::Zeroizing<Vec<u8>>>, SpawnError> {
    let size = cwd.map_or(0, |path| path.len() + 1)
        + argv.iter().map(|text| text.len() + 1).sum::<usize>()
        + environment.iter().map(|(key, value)| key.len() + value.len() + 2).sum::<usize>();
    if size > MAX_SPAWN_PAYLOAD || argv.len() + environment.len() > MAX_SPAWN_STRINGS {
        return Err(SpawnError::TooLarge);
    }
    let mut payload = zeroize::Zeroizing::new(Vec::with_capacity(size));
    if let Some(path) = cwd {
        if path.contains(&0) {
            return Err(SpawnError::Nul("cwd"));
        }
        payload.extend_from_slice(path);
        payload.push(0);
    }
    for text in argv {
        if text.contains(&0) {
            return Err(SpawnError::Nul("argv"));
        }
        payload.extend_from_slice(text);
        payload.push(0);
    }
    for (key, value) in environment {
        if key.as_bytes().contains(&0) || value.expose().contains(&0) {
            return Err(SpawnError::Nul("environment"));
        }
        payload.extend_from_slice(key.as_bytes());
        payload.push(b'=');
        payload.extend_from_slice(value.expose());
        payload.push(0);
    }
    header.has_cwd = cwd.is_some();
    header.argc = u32::try_from(argv.len()).map_err(|_| SpawnError::TooLarge)?;
    header.envc = u32::try_from(environment.len()).map_err(|_| SpawnError::TooLarge)?;
    header.payload_len = u32::try_from(payload.len()).map_err(|_| SpawnError::TooLarge)?;
    let first = payload.len().min(MAX_PACKET - ToInit::SPAWN_OVERHEAD);
    let (head, rest) = payload.split_at(first);
    let mut packets = vec![zeroize::Zeroizing::new(ToInit::Spawn(header, head).encode())];
    for part in rest.chunks(MAX_PACKET - ToInit::MORE_OVERHEAD) {
        packets.push(zeroize::Zeroizing::new(ToInit::More(part).encode()));
    }
    Ok(packets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Isolation, Rlimit};

    #[test]
    fn every_message_survives_its_own_packet() {
        let plan = SessionPlan {
            uid: 1,
            gid: 2,
            mark: 3,
            umask: 0o77,
            nproc: 64,
            no_new_privileges: true,
            working_dir: b"/w".to_vec(),
            shell: b"/bin/sh".to_vec(),
            rlimits: vec![Rlimit { resource: 1, soft: 2, hard: 3 }],
            isolation: Isolation::default(),
        };
        for message in [
            ToLauncher::Hello { version: VERSION, mark: 9 },
            ToLauncher::Create { session: 7, plan: Box::new(plan) },
            ToLauncher::Kill { session: 1 },
            ToLauncher::Sweep,
            ToLauncher::Prepare,
        ] {
            let packet = message.encode();
            assert_eq!(ToLauncher::decode(&packet), Ok(message));
            assert_eq!(ToLauncher::decode(&packet[..packet.len() - 1]), Err(DecodeError));
            assert_eq!(ToLauncher::decode(&[packet.as_slice(), &[0]].concat()), Err(DecodeError));
        }
        for message in [
            FromInit::Ready { pid: 5 },
            FromInit::SpawnFailed { exec: 1, stage: Stage::Exec, errno: 2 },
            FromInit::LeaderExited {
                exec: 1,
                status: 256,
                user_us: 1,
                system_us: 2,
                max_rss_kib: 3,
                blocks_in: 4,
                blocks_out: u64::MAX,
                last: true,
            },
            FromInit::TreeGone { exec: 3, killed: 9 },
        ] {
            assert_eq!(FromInit::decode(message.encode().as_bytes()), Ok(message));
        }
    }

    #[test]
    fn a_large_payload_is_split_and_whole() {
        let secret = crate::secret::Secret::new(vec![b'v'; 150_000]);
        let environment = BTreeMap::from([("K", &secret)]);
        let packets = spawn_packets(
            SpawnHeader { exec: 1, ..Default::default() },
            None,
            &[b"a".as_slice()],
            &environment,
        )
        .unwrap_or_default();
        assert_eq!(packets.len(), 3);
        assert!(packets.iter().all(|packet| packet.len() <= MAX_PACKET));
        let Ok(ToInit::Spawn(header, head)) = ToInit::decode(&packets[0]) else { panic!("not a spawn") };
        let rest: usize = packets[1..].iter().map(|packet| packet.len() - 1).sum();
        assert_eq!(header.payload_len as usize, head.len() + rest);
    }

    #[test]
    fn a_nul_is_refused() {
        let refused = spawn_packets(SpawnHeader::default(), None, &[b"a\0b".as_slice()], &BTreeMap::new());
        assert_eq!(refused.err(), Some(SpawnError::Nul("argv")));
    }
}
