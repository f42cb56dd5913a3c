//! The workspace, and the entries in it that the session cannot change.
//!
//! A protected entry is mounted on itself read-only. A mount point can be neither renamed nor removed, but a directory
//! above it can, and a new one made in its place; so each directory between the workspace and the entry is mounted
//! on itself too (writable). The price: a rename across its border is `EXDEV`, as between file systems.
//!
//! An entry that is absent is made and masked: as an empty read-only directory if it is given with a slash at its
//! end, else as an empty read-only file. That is done in a workspace of the session's own only, or above an overlay:
//! in a writable directory of the host the placeholder would stay behind when the session is gone (or when the
//! machine is), and no kind of mount works without one; such a session is refused. A read-only one needs nothing.

use super::place::{self, Kind, Links, Site};
use super::tmpfs::Tmpfs;
use super::{During, Failure, Fault, Object};
use crate::plan::Workspace;
use crate::sys::mount::{self, Extent, Flags, Setup};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};

/// The tmpfs that the changes of an overlay go to; nobody sees it, but it must be attached while that is made.
pub(super) fn changes(
    workspace: &Workspace,
    stack: &mut dyn FnMut(&OwnedFd) -> Result<(), Fault>,
) -> Result<OwnedFd, Fault> {
    let operation = "make the workspace's tmpfs";
    let tree = Tmpfs { size: workspace.size, inodes: workspace.inodes, mode: 0o700, owner: None }
        .mount(Flags::INERT)
        .during(operation)?;
    for name in ["upper", "work"] {
        mkdirat(&tree, name, Mode::from_bits_truncate(0o755)).during(operation)?;
    }
    stack(&tree)?;
    Ok(tree)
}

/// Attaches the workspace, then protects its entries.
pub(super) fn attach(site: &mut Site, workspace: &Workspace, ids: (u32, u32)) -> Result<(), Failure> {
    let tree = mount_it(site, workspace, ids).map_err(|fault| fault.about(Object::Workspace))?;
    let mut pinned = BTreeSet::new();
    for (index, entry) in workspace.protect.iter().enumerate() {
        protect(site, workspace, &tree, entry, &mut pinned)
            .map_err(|fault| fault.about(Object::Protect(index)))?;
    }
    if !workspace.writable && workspace.is_own() {
        let done = mount::restrict(&tree, Flags::READ_ONLY).during("make the workspace read-only");
        done.map_err(|fault| fault.about(Object::Workspace))?;
    }
    Ok(())
}

impl Workspace {
    /// Whether what is written to it is the session's own.
    fn is_own(&self) -> bool {
        self.source.is_empty() || self.overlay
    }
    /// Of its mount, but for whether it is read-only.
    fn flags(&self) -> Flags {
        if self.exec { Flags::INERT } else { Flags::DATA }
    }
}

fn mount_it(site: &mut Site, workspace: &Workspace, ids: (u32, u32)) -> Result<OwnedFd, Fault> {
    if workspace.source.is_empty() {
        let place = place::make(site, &workspace.target, Kind::Directory)?;
        let tree = Tmpfs { size: workspace.size, inodes: workspace.inodes, mode: 0o755, owner: Some(ids) }
            .mount(workspace.flags())
            .during("make the workspace's tmpfs")?;
        mount::attach(&tree, place).during("attach the workspace")?;
        site.add_own(&tree)?;
        return Ok(tree);
    }
    let source = place::source(site, &workspace.source, Links::Refused)?;
    if source.kind != Kind::Directory {
        return Err(Fault::new("open the source", libc::ENOTDIR));
    }
    let place = place::make(site, &workspace.target, Kind::Directory)?;
    if workspace.overlay {
        let changes = site.changes.as_ref().ok_or_else(|| Fault::new("make an overlay", libc::EINVAL))?;
        let above = mount::path_of(changes);
        let setup = || {
            Setup::new(c"overlay")?
                .set(c"lowerdir", &mount::path_of(&source.descriptor))?
                .set(c"upperdir", &format!("{above}/upper"))?
                .set(c"workdir", &format!("{above}/work"))?
                .flag(c"userxattr")?
                .mount(workspace.flags())
        };
        let tree = setup().during("make an overlay")?;
        mount::attach(&tree, place).during("attach the workspace")?;
        return Ok(tree);
    }
    let flags = if workspace.writable { workspace.flags() } else { workspace.flags().and(Flags::READ_ONLY) };
    mount::bind(&source.descriptor, place, flags, Extent::Tree).during("bind the workspace")
}

fn protect(
    site: &Site,
    workspace: &Workspace,
    tree: &OwnedFd,
    entry: &[u8],
    pinned: &mut BTreeSet<Vec<u8>>,
) -> Result<(), Fault> {
    let (entry, absent) = match entry.strip_suffix(b"/") {
        Some(entry) => (entry, Kind::Directory),
        None => (entry, Kind::File),
    };
    let mut above = place::parts(entry).ok_or_else(|| Fault::new("read the path", libc::EINVAL))?;
    let name = above.pop().unwrap_or_default();
    let mut at = place::again(tree).during("open the workspace")?;
    let mut path = Vec::new();
    for part in above {
        path.extend_from_slice(part.as_encoded_bytes());
        let Some(found) = open_or_make(workspace, &at, part, Kind::Directory)? else { return Ok(()) };
        if Kind::of(&place::status(&found)?) != Kind::Directory {
            return Err(Fault::new("protect an entry below a file", libc::ENOTDIR));
        }
        // A mount point is entered by its name: the descriptor that was opened before is below the new mount.
        if pinned.insert(path.clone()) {
            mount::bind(&found, &found, Flags::INERT, Extent::Tree).during("pin a directory")?;
            at = place::open_below(&at, part).during("open a directory")?;
        } else {
            at = found;
        }
        path.push(b'/');
    }
    path.extend_from_slice(name.as_encoded_bytes());
    let is_there = place::open_below(&at, name);
    if !pinned.insert(path) {
        // Above another entry, and so pinned writable: it becomes read-only, its mount is there.
        let found = is_there.during("open the entry")?;
        return mount::restrict(found, Flags::READ_ONLY).during("protect an entry");
    }
    let flags = Flags::INERT.and(Flags::READ_ONLY);
    match is_there {
        Err(Errno::ENOENT) => {
            if open_or_make(workspace, &at, name, absent)?.is_none() {
                return Ok(());
            }
            let found = place::open_below(&at, name).during("open the entry")?;
            let blank = if absent == Kind::Directory { &site.blank.directory } else { &site.blank.file };
            mount::copy(blank).and_then(|copy| mount::attach(copy, found)).during("mask an entry")
        }
        found => {
            let found = found.during("open the entry")?;
            mount::bind(&found, &found, flags, Extent::Tree).during("protect an entry").map(drop)
        }
    }
}

/// Whether a directory's mount is read-only, as below an entry that is protected already.
fn is_read_only(directory: &OwnedFd) -> Result<bool, Fault> {
    let found = nix::sys::statvfs::fstatvfs(directory).during("look at a directory")?;
    Ok(found.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
}

/// Opens an entry, makes it in a workspace of the session's own, or has `None` where nobody can.
fn open_or_make(
    workspace: &Workspace,
    directory: &OwnedFd,
    name: &OsStr,
    kind: Kind,
) -> Result<Option<OwnedFd>, Fault> {
    match place::open_below(directory.as_fd(), name) {
        Err(Errno::ENOENT) if !workspace.writable || is_read_only(directory)? => return Ok(None),
        Err(Errno::ENOENT) if workspace.is_own() => {}
        Err(Errno::ENOENT) => {
            return Err(Fault::new("protect an entry that the host's directory does not have", libc::ENOENT));
        }
        found => return found.during("open an entry").map(Some),
    }
    match kind {
        Kind::Directory => {
            mkdirat(directory, name, Mode::from_bits_truncate(0o755)).during("make an entry")?
        }
        Kind::File => {
            let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            drop(openat(directory, name, create, Mode::from_bits_truncate(0o444)).during("make an entry")?);
        }
    }
    place::open_below(directory.as_fd(), name).during("open an entry").map(Some)
}
