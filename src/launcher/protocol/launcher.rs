//! Between the daemon and the launcher.

use super::bytes::{Reader, Writer};
use super::{DecodeError, MAX_PACKET, Stage};
use crate::plan::{SessionPlan, codec};

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
