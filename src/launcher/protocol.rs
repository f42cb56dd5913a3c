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

mod about;
mod bytes;
mod init;
mod launcher;
mod stage;

pub use about::About;
pub use bytes::Packet;
pub use init::{FromInit, SpawnError, SpawnHeader, Target, ToInit, spawn_packets};
pub use launcher::{FromLauncher, HostIds, ToLauncher};
pub use stage::Stage;

/// Version of these messages; launcher and daemon must agree, so a half-upgraded pair refuses to start.
pub const VERSION: u32 = 3;
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

#[cfg(test)]
mod tests;
