//! The launcher: one thread that makes and ends sessions.

pub mod protocol;
