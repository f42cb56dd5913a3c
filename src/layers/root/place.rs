//! Where things come from and where they go to: descriptors, each opened once.

use super::tmpfs::Blank;
use super::{During, Fault};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, mkdirat};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Longest content that is read or written in one go is bounded by the caller; a path by `PATH_MAX`.
const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// The new root while it is made.
pub(super) struct Site {
    /// The host's `/`.
    pub host: OwnedFd,
    /// The new root.
    pub root: OwnedFd,
    /// What masks are made of.
    pub blank: Blank,
    /// Where the changes of the workspace's overlay go.
    pub changes: Option<OwnedFd>,
    /// Device numbers of the file systems that are the session's own and may get new entries.
    own: Vec<u64>,
}

impl Site {
    pub(super) fn new(
        host: OwnedFd,
        root: OwnedFd,
        blank: Blank,
        changes: Option<OwnedFd>,
    ) -> Result<Self, Fault> {
        let mut site = Self { host, root, blank, changes, own: Vec::new() };
        site.own.push(status(&site.root)?.st_dev);
        Ok(site)
    }
    /// Allows new entries on a mount's file system.
    pub(super) fn add_own(&mut self, mount: impl AsFd) -> Result<(), Fault> {
        self.own.push(status(mount)?.st_dev);
        Ok(())
    }
}

/// What a directory entry is, as far as mounts care: each goes on its like only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    /// Anything else.
    File,
}

impl Kind {
    pub(super) fn of(status: &FileStat) -> Self {
        if status.st_mode & libc::S_IFMT == libc::S_IFDIR { Self::Directory } else { Self::File }
    }
}

/// What becomes of symbolic links in a source's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    /// They are the host's own.
    Followed,
    /// Somebody else may have made them.
    Refused,
}

/// Something of the host's.
pub(super) struct Source {
    pub descriptor: OwnedFd,
    pub kind: Kind,
}

pub(super) fn status(descriptor: impl AsFd) -> Result<FileStat, Fault> {
    fstat(descriptor).during("stat")
}

pub(super) fn host_root() -> Result<OwnedFd, Fault> {
    nix::fcntl::open("/", LOOK | OFlag::O_DIRECTORY, Mode::empty()).during("open /")
}

/// The components of an absolute path that has no other form.
fn components(path: &[u8]) -> Result<Vec<&OsStr>, Fault> {
    let wrong = || Fault::new("read the path", libc::EINVAL);
    let rest = path.strip_prefix(b"/").ok_or_else(wrong)?;
    parts(rest).ok_or_else(wrong)
}

/// The components of a relative path without empty ones, `.` and `..`.
pub(super) fn parts(path: &[u8]) -> Option<Vec<&OsStr>> {
    let all: Vec<&OsStr> = path.split(|byte| *byte == b'/').map(OsStr::from_bytes).collect();
    let is_plain = |part: &&OsStr| !matches!(part.as_bytes(), b"" | b"." | b"..");
    all.iter().all(is_plain).then_some(all)
}

/// One more descriptor of a directory, below what is mounted on it.
pub(super) fn again(directory: impl AsFd) -> nix::Result<OwnedFd> {
    openat(directory, ".", LOOK | OFlag::O_DIRECTORY, Mode::empty())
}

/// Whether an entry, not followed if it is a link, is what that status is of.
pub(super) fn is_same(directory: impl AsFd, name: &str, wanted: &FileStat) -> Result<bool, Fault> {
    let found = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).during("look at an entry")?;
    Ok((found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino))
}

/// Opens below a directory, through no link of any kind.
pub(super) fn open_below(directory: impl AsFd, path: &OsStr) -> nix::Result<OwnedFd> {
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    match openat2(&directory, path, OpenHow::new().flags(LOOK).resolve(resolve)) {
        Err(Errno::ENOSYS) => walk_below(directory, path),
        other => other,
    }
}

/// The same, step by step, where `openat2(2)` is missing or filtered.
fn walk_below(directory: impl AsFd, path: &OsStr) -> nix::Result<OwnedFd> {
    let all = parts(path.as_bytes()).ok_or(Errno::EXDEV)?;
    let mut at = again(directory)?;
    for part in all {
        at = openat(&at, part, LOOK | OFlag::O_NOFOLLOW, Mode::empty())?;
        if fstat(&at)?.st_mode & libc::S_IFMT == libc::S_IFLNK {
            return Err(Errno::ELOOP);
        }
    }
    Ok(at)
}

/// Opens what a plan takes from the host. `/` itself is nothing that a session may be given.
pub(super) fn source(site: &Site, path: &[u8], links: Links) -> Result<Source, Fault> {
    let operation = "open the source";
    let all = components(path)?;
    let descriptor = match links {
        Links::Refused => open_below(&site.host, OsStr::from_bytes(&path[1..])),
        Links::Followed => {
            let how = OpenHow::new().flags(LOOK).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
            match openat2(&site.host, OsStr::from_bytes(path), how) {
                Err(Errno::ENOSYS) => nix::fcntl::open(OsStr::from_bytes(path), LOOK, Mode::empty()),
                other => other,
            }
        }
    }
    .during(operation)?;
    debug_assert!(!all.is_empty());
    let found = status(&descriptor)?;
    let root = status(&site.host)?;
    if (found.st_dev, found.st_ino) == (root.st_dev, root.st_ino) {
        return Err(Fault::new(operation, libc::EINVAL));
    }
    Ok(Source { descriptor, kind: Kind::of(&found) })
}

/// Reads a regular file of at most `most` bytes.
pub(super) fn read(path: &[u8], most: u64) -> Result<Vec<u8>, Fault> {
    let operation = "read the source";
    components(path)?;
    // Without O_NONBLOCK a FIFO in the file's place would hold the session up for ever.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = nix::fcntl::open(OsStr::from_bytes(path), flags, Mode::empty()).during(operation)?;
    let found = status(&file)?;
    if found.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(Fault::new(operation, libc::EINVAL));
    }
    let mut content = Vec::with_capacity(u64::try_from(found.st_size).unwrap_or(0).min(most) as usize + 1);
    File::from(file).take(most + 1).read_to_end(&mut content).during(operation)?;
    if content.len() as u64 > most {
        return Err(Fault::new(operation, libc::EFBIG));
    }
    Ok(content)
}

/// The directory of a target, made where it is not there, and the target's name in it.
fn parent<'a>(site: &Site, target: &'a [u8]) -> Result<(OwnedFd, &'a OsStr), Fault> {
    let operation = "open the target's directory";
    let mut all = components(target)?;
    let name = all.pop().ok_or_else(|| Fault::new(operation, libc::EINVAL))?;
    // What is there already is one call away.
    let above = target.len() - name.len() - 1;
    if above > 1 {
        match open_below(&site.root, OsStr::from_bytes(&target[1..above])) {
            Err(Errno::ENOENT) => {}
            found => return found.during(operation).map(|found| (found, name)),
        }
    }
    let mut at = again(&site.root).during(operation)?;
    for part in all {
        at = match open_below(&at, part) {
            Err(Errno::ENOENT) => {
                make_directory(site, &at, part)?;
                open_below(&at, part)
            }
            other => other,
        }
        .during(operation)?;
    }
    Ok((at, name))
}

/// Refuses to make an entry on a file system that is not the session's own.
fn may_make(site: &Site, directory: &OwnedFd) -> Result<(), Fault> {
    if site.own.contains(&status(directory)?.st_dev) {
        Ok(())
    } else {
        Err(Fault::new("make the target on a file system of the host", libc::EROFS))
    }
}

fn make_directory(site: &Site, parent: &OwnedFd, name: &OsStr) -> Result<(), Fault> {
    may_make(site, parent)?;
    mkdirat(parent, name, Mode::from_bits_truncate(0o755)).during("make a directory")
}

fn make_file(site: &Site, parent: &OwnedFd, name: &OsStr) -> Result<File, Fault> {
    may_make(site, parent)?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::from_bits_truncate(0o444)).during("make a file").map(File::from)
}

/// A place to mount on, made where it is not there.
pub(super) fn make(site: &Site, target: &[u8], kind: Kind) -> Result<OwnedFd, Fault> {
    let (directory, name) = parent(site, target)?;
    let found = match open_below(&directory, name) {
        Err(Errno::ENOENT) => {
            match kind {
                Kind::Directory => make_directory(site, &directory, name)?,
                Kind::File => drop(make_file(site, &directory, name)?),
            }
            open_below(&directory, name)
        }
        other => other,
    }
    .during("open the target")?;
    if Kind::of(&status(&found)?) != kind {
        let errno = if kind == Kind::Directory { libc::ENOTDIR } else { libc::EISDIR };
        return Err(Fault::new("mount on the target", errno));
    }
    Ok(found)
}

/// A file with that content, mode 0444.
pub(super) fn write(site: &Site, target: &[u8], content: &[u8]) -> Result<(), Fault> {
    let (directory, name) = parent(site, target)?;
    make_file(site, &directory, name)?.write_all(content).during("write a file")
}

/// A symbolic link.
pub(super) fn link(site: &Site, target: &[u8], to: &[u8]) -> Result<(), Fault> {
    let (directory, name) = parent(site, target)?;
    may_make(site, &directory)?;
    nix::unistd::symlinkat(OsStr::from_bytes(to), &directory, name).during("make a link")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_opening_pass_no_link() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(home.path().join("a/b")).unwrap();
        std::fs::write(home.path().join("a/b/c"), "x").unwrap();
        for (name, to) in [("a/up", ".."), ("a/self", "b"), ("a/abs", "/etc")] {
            std::os::unix::fs::symlink(to, home.path().join(name)).unwrap();
        }
        let at = nix::fcntl::open(home.path(), LOOK | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        for path in ["a", "a/b", "a/b/c"] {
            let found = [open_below(&at, OsStr::new(path)), walk_below(&at, OsStr::new(path))];
            let found = found.map(|descriptor| fstat(descriptor.unwrap()).unwrap().st_ino);
            assert_eq!(found[0], found[1], "{path}");
        }
        for (path, errno) in [
            ("a/up", Errno::ELOOP),
            ("a/self/c", Errno::ELOOP),
            ("a/abs/passwd", Errno::ELOOP),
            ("..", Errno::EXDEV),
            ("a/../..", Errno::EXDEV),
            ("a/none", Errno::ENOENT),
            ("a/b/c/d", Errno::ENOTDIR),
        ] {
            assert_eq!(open_below(&at, OsStr::new(path)).err(), Some(errno), "{path}");
            let walked = walk_below(&at, OsStr::new(path)).err();
            // The walk stands on the link before it looks at it.
            let same = walked == Some(errno) || (errno == Errno::ELOOP && walked == Some(Errno::ENOTDIR));
            assert!(same, "{path}: {walked:?}");
        }
    }

    #[test]
    fn only_one_form_of_a_path_is_taken() {
        for path in ["", "a", "/", "//a", "/a/", "/a//b", "/a/./b", "/a/..", "/.."] {
            assert!(components(path.as_bytes()).is_err(), "{path}");
        }
        assert_eq!(components(b"/a/b c").unwrap(), ["a", "b c"]);
    }
}
