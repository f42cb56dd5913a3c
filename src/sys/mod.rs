//! The kernel's interface: the only place with `unsafe`. Knows nothing of sessions or policies.

pub mod attack;
pub mod attempt;
pub mod clone;
pub mod environ;
pub mod keyring;
pub mod landlock;
pub mod lock;
pub mod mark;
pub mod memory;
pub mod mount;
pub mod net;
pub mod privilege;
pub mod proc;
pub mod process;
pub mod raw;
pub mod slot;
pub mod socket;
pub mod spawn;
pub mod tree;
