//! Attacks from within a session, each with something like it that is allowed: under `default` and `strict`, by a
//! daemon that root started and by one that an ordinary user started. SECURITY.md says which layers stop which.
//!
//! What is tried is in `attacks/`, and runs as a command of a session. The same programs run under `l1`, where what
//! they reach for is in reach: an attack that could never succeed proves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod devices;
mod files;
mod kernel;
mod neighbours;
mod network;
mod processes;
mod suite;
mod supervisor;
mod threats;
mod world;
