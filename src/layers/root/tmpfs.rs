//! File systems in memory: never without limits.

use super::{During, Fault};
use crate::sys::mount::{self, Flags, Setup};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use std::io;
use std::os::fd::OwnedFd;

/// A tmpfs to be made.
pub(super) struct Tmpfs {
    /// Bytes, not 0, which the kernel would take for no limit.
    pub size: u64,
    /// Likewise.
    pub inodes: u64,
    /// Of its root.
    pub mode: u32,
    /// Of its root; `None` is the calling process.
    pub owner: Option<(u32, u32)>,
}

impl Tmpfs {
    pub(super) fn mount(&self, flags: Flags) -> io::Result<OwnedFd> {
        if self.size == 0 || self.inodes == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut setup = Setup::new(c"tmpfs")?
            .set(c"size", &self.size.to_string())?
            .set(c"nr_inodes", &self.inodes.to_string())?
            .set(c"mode", &format!("{:o}", self.mode))?;
        if let Some((uid, gid)) = self.owner {
            setup = setup.set(c"uid", &uid.to_string())?.set(c"gid", &gid.to_string())?;
        }
        setup.mount(flags)
    }
}

/// An empty directory and an empty file on a tmpfs of their own, read-only: what masks are made of.
pub(super) struct Blank {
    pub directory: OwnedFd,
    pub file: OwnedFd,
}

impl Blank {
    /// Makes it and hands the mount to `stack`: only what is attached can be bound elsewhere.
    pub(super) fn new(stack: &mut dyn FnMut(&OwnedFd) -> Result<(), Fault>) -> Result<Self, Fault> {
        let operation = "make the masks";
        let tree =
            Tmpfs { size: 4096, inodes: 3, mode: 0o555, owner: None }.mount(Flags::DATA).during(operation)?;
        let read_only = Mode::from_bits_truncate(0o444);
        mkdirat(&tree, "directory", Mode::from_bits_truncate(0o555)).during(operation)?;
        let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        drop(openat(&tree, "file", create, read_only).during(operation)?);
        stack(&tree)?;
        mount::restrict(&tree, Flags::READ_ONLY).during(operation)?;
        let look = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(Self {
            directory: openat(&tree, "directory", look, Mode::empty()).during(operation)?,
            file: openat(&tree, "file", look, Mode::empty()).during(operation)?,
        })
    }
}
