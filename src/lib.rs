//! TRL, the Terminal Runtime Layer: a supervisor with which one host runs commands for many agents that do
//! not trust one another.
//!
//! # Theory of operation
//!
//! Three kinds of process, each trusted with less than the one above it:
//!
//! * **`trl serve`** ([`daemon`]) speaks to clients. It holds sessions, secrets and output, has many
//!   descriptors and a parser, and therefore has no privilege: it is never root and never forks.
//! * **`trl-launcher`** ([`launcher`]) is one thread that makes and ends sessions. It sees neither a
//!   client's bytes nor any value of an environment.
//! * one **init** a session ([`launcher::init`]), forked from the launcher and confined once. The daemon
//!   speaks to it directly; for each exec it starts one small *reaper* process, which starts the command and
//!   is the subreaper of all its descendants: when the reaper has no child left, the kernel has proven that
//!   nothing of the exec lives.
//!
//! Lifetimes hang together by sockets: whoever reads end-of-file from above kills all of its own.
//!
//! Arrows between modules go down only: `cli` → `daemon` → `launcher::protocol` → `plan` → `policy` →
//! the ground ([`ids`], [`units`], [`secret`], [`opaque`], [`error`]) and [`sys`], the only place with
//! `unsafe`.

pub mod cli;
pub mod daemon;
pub mod error;
pub mod evidence;
pub mod host;
pub mod ids;
pub mod launcher;
pub mod layers;
pub mod opaque;
pub mod plan;
pub mod policy;
pub mod report;
pub mod secret;
#[allow(unsafe_code)]
pub mod sys;
pub mod units;
