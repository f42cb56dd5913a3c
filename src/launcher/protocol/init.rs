//! Between the daemon and a session's init.

use super::about::About;
use super::bytes::{Packet, Reader, Writer};
use super::{DecodeError, MAX_PACKET, MAX_SPAWN_PAYLOAD, MAX_SPAWN_STRINGS, Stage};
use std::collections::BTreeMap;

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
        /// What was tried on what.
        about: About,
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
        let packet = Packet::new();
        match *self {
            Self::Ready { pid } => packet.u8(1).u32(pid.cast_unsigned()),
            Self::Failed { stage, errno, about } => {
                packet.u8(2).u8(stage as u8).u32(errno.cast_unsigned()).push(about.as_str().as_bytes())
            }
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
            2 => Self::Failed {
                stage: Stage::from_number(reader.u8()?)?,
                errno: reader.i32()?,
                about: About::decode(std::mem::take(&mut reader.0))?,
            },
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
