//! Mounts by descriptors: the calls of Linux 5.2 (`fsopen`, `fsmount`, `open_tree`, `move_mount`) and
//! `mount_setattr` of 5.12, with the old remount in its place where a kernel or a filter does not have it.
//!
//! A mount is made detached, gets its flags, and is attached last, to a descriptor: no path is looked up twice.

use nix::mount::{MntFlags, MsFlags};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Flags of a mount; set, never cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(u64);

impl Flags {
    /// `ro`.
    pub const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    /// `nosuid`.
    pub const NO_SUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    /// `nodev`.
    pub const NO_DEVICES: Self = Self(libc::MOUNT_ATTR_NODEV);
    /// `noexec`.
    pub const NO_EXEC: Self = Self(libc::MOUNT_ATTR_NOEXEC);
    /// `nosuid,nodev`.
    pub const INERT: Self = Self(Self::NO_SUID.0 | Self::NO_DEVICES.0);
    /// `nosuid,nodev,noexec`.
    pub const DATA: Self = Self(Self::INERT.0 | Self::NO_EXEC.0);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// As `mount(2)` takes them.
    fn old(self) -> MsFlags {
        let pairs = [
            (Self::READ_ONLY, MsFlags::MS_RDONLY),
            (Self::NO_SUID, MsFlags::MS_NOSUID),
            (Self::NO_DEVICES, MsFlags::MS_NODEV),
            (Self::NO_EXEC, MsFlags::MS_NOEXEC),
        ];
        pairs
            .into_iter()
            .filter(|(flag, _)| self.0 & flag.0 != 0)
            .fold(MsFlags::empty(), |all, (_, old)| all | old)
    }
}

/// How much of a tree of mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// One mount.
    One,
    /// It and what is mounted below it.
    Tree,
}

impl Extent {
    fn flag(self) -> libc::c_uint {
        match self {
            Self::One => 0,
            Self::Tree => libc::AT_RECURSIVE as libc::c_uint,
        }
    }
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    // SAFETY: called with the result of a call that makes a descriptor, which then has no other owner.
    check(result).map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) })
}

/// A file system that is being set up: `fsopen(2)`, `fsconfig(2)`, `fsmount(2)`.
pub struct Setup(OwnedFd);

impl Setup {
    /// Begins with a file system's type.
    ///
    /// # Errors
    /// `ENODEV` where the kernel has none such.
    pub fn new(kind: &CStr) -> io::Result<Self> {
        // SAFETY: a NUL-terminated string that outlives the call, and a number.
        owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) }).map(Self)
    }

    fn config(
        &self,
        command: libc::c_uint,
        key: *const libc::c_char,
        value: *const libc::c_char,
    ) -> io::Result<()> {
        let descriptor = self.0.as_raw_fd();
        // SAFETY: a live descriptor; the callers' pointers are null or NUL-terminated strings that outlive the call.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, descriptor, command, key, value, 0) }).map(drop)
    }

    /// An option with a value.
    ///
    /// # Errors
    /// `EINVAL` where the type does not know it, or a NUL in the value.
    pub fn set(self, key: &CStr, value: &str) -> io::Result<Self> {
        let value = std::ffi::CString::new(value)?;
        self.config(libc::FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())?;
        Ok(self)
    }

    /// An option without a value.
    ///
    /// # Errors
    /// `EINVAL` where the type does not know it.
    pub fn flag(self, key: &CStr) -> io::Result<Self> {
        self.config(libc::FSCONFIG_SET_FLAG, key.as_ptr(), std::ptr::null())?;
        Ok(self)
    }

    /// A detached mount of it.
    ///
    /// # Errors
    /// The kernel's; `EPERM` for a procfs that would show more than the namespace's other ones.
    pub fn mount(self, flags: Flags) -> io::Result<OwnedFd> {
        self.config(libc::FSCONFIG_CMD_CREATE, std::ptr::null(), std::ptr::null())?;
        let descriptor = self.0.as_raw_fd();
        // SAFETY: a live descriptor and numbers.
        owned(unsafe { libc::syscall(libc::SYS_fsmount, descriptor, libc::FSMOUNT_CLOEXEC, flags.0) })
    }
}

fn clone_tree(source: BorrowedFd<'_>, extent: Extent) -> io::Result<OwnedFd> {
    let flags =
        libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as libc::c_uint | extent.flag();
    // SAFETY: a live descriptor, a NUL-terminated string, a number.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, source.as_raw_fd(), c"".as_ptr(), flags) })
}

/// Attaches a detached mount on top of what `target` refers to.
///
/// # Errors
/// The kernel's.
pub fn attach(tree: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let (tree, target) = (tree.as_fd().as_raw_fd(), target.as_fd().as_raw_fd());
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: live descriptors, NUL-terminated strings, a number.
    let done =
        unsafe { libc::syscall(libc::SYS_move_mount, tree, c"".as_ptr(), target, c"".as_ptr(), flags) };
    check(done).map(drop)
}

/// Attaches a detached mount on top of an entry of a directory, which is not followed if it is a link.
///
/// # Errors
/// `ENOENT` where there is no such entry; the kernel's.
pub fn attach_at(tree: impl AsFd, directory: impl AsFd, name: &CStr) -> io::Result<()> {
    let (tree, directory) = (tree.as_fd().as_raw_fd(), directory.as_fd().as_raw_fd());
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
    // SAFETY: live descriptors, NUL-terminated strings, a number.
    let done =
        unsafe { libc::syscall(libc::SYS_move_mount, tree, c"".as_ptr(), directory, name.as_ptr(), flags) };
    check(done).map(drop)
}

fn set_attributes(mount: BorrowedFd<'_>, flags: Flags, extent: Extent) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: flags.0, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let how = libc::AT_EMPTY_PATH as libc::c_uint | extent.flag();
    let size = size_of::<libc::mount_attr>();
    let descriptor = mount.as_raw_fd();
    // SAFETY: a live descriptor, a NUL-terminated string, an initialised struct of ours and its size.
    let done = unsafe {
        libc::syscall(libc::SYS_mount_setattr, descriptor, c"".as_ptr(), how, &raw const attributes, size)
    };
    check(done).map(drop)
}

/// The path by which calls without descriptors reach one.
#[must_use]
pub fn path_of(descriptor: impl AsFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd())
}

/// Adds flags to an attached mount by `mount(2)`, which sets the whole set: what is there already is kept, and must
/// be, where it is locked.
fn remount(mount: BorrowedFd<'_>, flags: Flags) -> io::Result<()> {
    use nix::sys::statvfs::FsFlags;
    let now = nix::sys::statvfs::fstatvfs(mount)?.flags();
    let kept = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let kept = kept.into_iter().filter(|(has, _)| now.contains(*has)).map(|(_, old)| old);
    let all = kept.fold(flags.old() | MsFlags::MS_REMOUNT | MsFlags::MS_BIND, |all, old| all | old);
    Ok(nix::mount::mount(None::<&str>, path_of(mount).as_str(), None::<&str>, all, None::<&str>)?)
}

/// Adds flags to an attached mount.
///
/// # Errors
/// `EBUSY` for `ro` where a file is open for writing.
pub fn restrict(mount: impl AsFd, flags: Flags) -> io::Result<()> {
    match set_attributes(mount.as_fd(), flags, Extent::One) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => remount(mount.as_fd(), flags),
        other => other,
    }
}

/// Mounts what `source` refers to on `target` too, with flags added, and yields that mount. Without
/// `mount_setattr(2)` a tree is not possible, and one with mounts below it that are locked is `EINVAL`.
///
/// # Errors
/// The kernel's.
pub fn bind(source: impl AsFd, target: impl AsFd, flags: Flags, extent: Extent) -> io::Result<OwnedFd> {
    let tree = clone_tree(source.as_fd(), extent)?;
    match set_attributes(tree.as_fd(), flags, extent) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            let one = clone_tree(source.as_fd(), Extent::One)?;
            attach(&one, target)?;
            remount(one.as_fd(), flags)?;
            Ok(one)
        }
        Err(error) => Err(error),
        Ok(()) => attach(&tree, target).map(|()| tree),
    }
}

/// A detached copy of what `source` refers to, with the flags that its mount has.
///
/// # Errors
/// The kernel's.
pub fn copy(source: impl AsFd) -> io::Result<OwnedFd> {
    clone_tree(source.as_fd(), Extent::One)
}

/// Nothing that is mounted here is seen elsewhere, nor the other way round.
///
/// # Errors
/// The kernel's.
pub fn make_private() -> io::Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    Ok(nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?)
}

/// Takes off the topmost mount of a path, and what is below it, when nobody uses it any more.
///
/// # Errors
/// The kernel's.
pub fn detach(path: &str) -> io::Result<()> {
    Ok(nix::mount::umount2(path, MntFlags::MNT_DETACH)?)
}
