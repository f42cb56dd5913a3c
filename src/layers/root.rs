//! The session's root: a tmpfs that is filled by a plan, made read-only and entered by `pivot_root(2)`.
//!
//! Runs in a process that is alone in fresh user and mount namespaces, with full capabilities there, as the
//! workload's user (never uid 0, which need not even be mapped). Nothing is looked up by a path that the session
//! could have changed: targets are opened below the new root without following a link, sources are opened once,
//! and mounts go from descriptor to descriptor. What is mounted is looked at again where a swap was once an attack
//! (CVE-2025-31133, CVE-2025-52881: masks of `/proc`; CVE-2025-52565: devices).
//!
//! The new root is stacked on `/` itself, the one directory that is everywhere: a lookup of `/` starts below, so the
//! host's files stay reachable until the pivot. What it is made with is attached to [`WORKBENCH`], so that it goes
//! with the old root: each unmounting waits for the kernel's readers, which is most of a root's time on a busy host.
//!
//! What this is not: a read-only bind keeps nobody from connecting to a socket below it, and leaves locks and file
//! events shared with the host; [`Fill::View`] keeps those apart.

mod dev;
mod place;
mod proc;
mod tmpfs;
mod verify;
mod workspace;

pub use verify::verify;

use crate::plan::{Fill, Mount, Root};
use crate::sys::mount::{self, Extent, Flags, Setup};
use nix::sys::stat::Mode;
use place::{Kind, Site, Source};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use tmpfs::Tmpfs;

/// Of the root's tmpfs, bytes: only what a plan copies is in it, and the session cannot write it.
const ROOT_SIZE: u64 = 16 * 1024 * 1024;
/// Of the root's tmpfs.
const ROOT_INODES: u64 = 4096;
/// A directory that every host has and nobody gives to a session; where one has it not, `/` does.
const WORKBENCH: &str = "/dev/pts";
/// Largest file that is copied, bytes.
const MAX_COPY: u64 = 1024 * 1024;

/// What a failure is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// The root as a whole.
    Root,
    /// `mounts[n]`.
    Mount(usize),
    /// The workspace.
    Workspace,
    /// `workspace.protect[n]`.
    Protect(usize),
}

impl Object {
    /// As the session would see it.
    #[must_use]
    pub fn name(self, root: &Root) -> String {
        let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let workspace = root.workspace.as_ref();
        match self {
            Self::Root => "/".to_owned(),
            Self::Mount(index) => root.mounts.get(index).map(|mount| text(&mount.target)).unwrap_or_default(),
            Self::Workspace => workspace.map(|workspace| text(&workspace.target)).unwrap_or_default(),
            Self::Protect(index) => workspace
                .and_then(|workspace| {
                    Some(text(&workspace.target) + "/" + &text(workspace.protect.get(index)?))
                })
                .unwrap_or_default(),
        }
    }
}

/// A root that could not be built; nothing of it is left mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// Of what.
    pub object: Object,
    /// What was tried.
    pub operation: &'static str,
    /// Why.
    pub errno: i32,
}

/// A failure before it is known what it is about.
#[derive(Debug)]
struct Fault {
    operation: &'static str,
    errno: i32,
}

impl Fault {
    fn new(operation: &'static str, errno: i32) -> Self {
        Self { operation, errno }
    }
    fn about(self, object: Object) -> Failure {
        Failure { object, operation: self.operation, errno: self.errno }
    }
    /// Whether it says that there is no such file.
    fn is_absence(&self) -> bool {
        matches!(self.errno, libc::ENOENT | libc::ENOTDIR)
    }
}

/// Names what was tried.
trait During<T> {
    fn during(self, operation: &'static str) -> Result<T, Fault>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, operation: &'static str) -> Result<T, Fault> {
        self.map_err(|error| Fault::new(operation, error.raw_os_error().unwrap_or(libc::EIO)))
    }
}

impl<T> During<T> for nix::Result<T> {
    fn during(self, operation: &'static str) -> Result<T, Fault> {
        self.map_err(|errno| Fault::new(operation, errno as i32))
    }
}

/// A detached procfs of the calling process's PID namespace that shows everything. To be taken before the root is
/// entered, whose own procfs has masks: the kernel makes no unmasked one where only a masked one is seen.
///
/// There is no way round `fsopen(2)` here: it is of Linux 5.2, and `close_range(2)`, without which no command
/// starts, of 5.9.
///
/// # Errors
/// `EPERM` where the host's own procfs is masked.
pub fn session_procfs() -> io::Result<OwnedFd> {
    Setup::new(c"proc")?.mount(Flags::DATA)
}

/// Builds the root and enters it. `ids` are the workload's user and group as seen inside.
///
/// Yields the indices of the views that the kernel made no overlay of, so that they are read-only binds.
///
/// # Errors
/// The first thing that could not be done. The process is where it was and nothing is left mounted, though its
/// namespace's mounts are private from then on.
pub fn build(root: &Root, ids: (u32, u32)) -> Result<Vec<usize>, Failure> {
    let old_mask = nix::sys::stat::umask(Mode::empty());
    let mut stacked = Vec::new();
    let result = assemble(root, ids, &mut stacked);
    nix::sys::stat::umask(old_mask);
    if result.is_err() {
        for place in stacked.iter().rev() {
            // The failure is what the caller hears of; this one would only hide it.
            let _undone = mount::detach(place);
        }
    }
    result
}

fn assemble(root: &Root, ids: (u32, u32), stacked: &mut Vec<&'static str>) -> Result<Vec<usize>, Failure> {
    let in_root = |fault: Fault| fault.about(Object::Root);
    let mut site = lay_out(root, stacked).map_err(in_root)?;
    let mut fell_back = Vec::new();
    for (index, mount) in root.mounts.iter().enumerate() {
        let outcome = fill(&mut site, mount, root, ids).map_err(|fault| fault.about(Object::Mount(index)))?;
        if outcome == Outcome::Bound {
            fell_back.push(index);
        }
    }
    if let Some(workspace) = &root.workspace {
        workspace::attach(&mut site, workspace, ids)?;
    }
    // From here on a failure leaves the new root as the process's own, or the old one below it: no way back. The
    // counter says so.
    enter(&site, stacked).map_err(in_root)?;
    Ok(fell_back)
}

/// Attaches what the root is made with, then the root.
fn lay_out(root: &Root, stacked: &mut Vec<&'static str>) -> Result<Site, Fault> {
    mount::make_private().during("make the mounts private")?;
    let host = place::host_root()?;
    let bench = place::open_below(&host, std::ffi::OsStr::new(&WORKBENCH[1..]));
    let mut stack = |tree: &OwnedFd| -> Result<(), Fault> {
        let (on, name) = bench.as_ref().map_or((&host, "/"), |bench| (bench, WORKBENCH));
        mount::attach(tree, on).during("attach what the root is made with")?;
        stacked.push(name);
        Ok(())
    };
    let blank = tmpfs::Blank::new(&mut stack)?;
    let changes = match &root.workspace {
        Some(workspace) if workspace.overlay => Some(workspace::changes(workspace, &mut stack)?),
        _ => None,
    };
    let tree = Tmpfs { size: ROOT_SIZE, inodes: ROOT_INODES, mode: 0o755, owner: None }
        .mount(Flags::DATA)
        .during("make the root's tmpfs")?;
    mount::attach(&tree, &host).during("attach the root")?;
    stacked.push("/");
    Site::new(host, tree, blank, changes)
}

/// Whether a place is as planned.
#[derive(PartialEq, Eq)]
enum Outcome {
    Full,
    /// A view that is a bind.
    Bound,
}

fn fill(site: &mut Site, mount: &Mount, root: &Root, ids: (u32, u32)) -> Result<Outcome, Fault> {
    let source = |path: &[u8], links| match place::source(site, path, links) {
        Err(fault) if mount.optional && fault.is_absence() => Ok(None),
        other => other.map(Some),
    };
    let read_only = Flags::INERT.and(Flags::READ_ONLY);
    match &mount.fill {
        Fill::ReadOnly(path) => {
            if let Some(from) = source(path, place::Links::Followed)? {
                bind(site, &mount.target, &from, read_only)?;
            }
        }
        Fill::View(path) => {
            if let Some(from) = source(path, place::Links::Followed)? {
                return view(site, &mount.target, &from);
            }
        }
        Fill::ReadWrite(path) => {
            if let Some(from) = source(path, place::Links::Refused)? {
                bind(site, &mount.target, &from, Flags::INERT)?;
            }
        }
        Fill::Copy(path) => match place::read(path, MAX_COPY) {
            Err(fault) if mount.optional && fault.is_absence() => {}
            content => place::write(site, &mount.target, &content?)?,
        },
        Fill::File(content) => place::write(site, &mount.target, content)?,
        Fill::Link(to) => place::link(site, &mount.target, to)?,
        Fill::Tmpfs { size, inodes, exec } => {
            let shared = is_shared(&mount.target);
            let (mode, owner) = if shared { (0o1777, None) } else { (0o755, Some(ids)) };
            let flags = if *exec { Flags::INERT } else { Flags::DATA };
            let target = place::make(site, &mount.target, Kind::Directory)?;
            let tree =
                Tmpfs { size: *size, inodes: *inodes, mode, owner }.mount(flags).during("make a tmpfs")?;
            mount::attach(&tree, target).during("attach a tmpfs")?;
            site.add_own(&tree)?;
        }
        Fill::Proc => proc::mount(site, &mount.target, root.processes_only)?,
        Fill::Dev { size } => dev::mount(site, &mount.target, *size)?,
    }
    Ok(Outcome::Full)
}

/// Whether everybody may write there, as in `/tmp`.
fn is_shared(target: &[u8]) -> bool {
    target.rsplit(|byte| *byte == b'/').next() == Some(b"tmp")
}

fn bind(site: &Site, target: &[u8], from: &Source, flags: Flags) -> Result<(), Fault> {
    let target = place::make(site, target, from.kind)?;
    mount::bind(&from.descriptor, target, flags, Extent::Tree).during("bind").map(drop)
}

/// A read-only overlay of the source and an empty directory (an overlay that is only read has two layers at least).
/// A source with other mounts below it makes none: it would hide them.
fn view(site: &Site, target: &[u8], from: &Source) -> Result<Outcome, Fault> {
    let flags = Flags::INERT.and(Flags::READ_ONLY);
    if from.kind == Kind::Directory {
        let layers =
            format!("{}:{}", mount::path_of(&from.descriptor), mount::path_of(&site.blank.directory));
        let made = Setup::new(c"overlay")
            .and_then(|setup| setup.set(c"lowerdir", &layers)?.flag(c"userxattr")?.mount(flags));
        if let Ok(tree) = made {
            let place = place::make(site, target, Kind::Directory)?;
            mount::attach(tree, place).during("attach a view")?;
            return Ok(Outcome::Full);
        }
    }
    bind(site, target, from, flags)?;
    Ok(Outcome::Bound)
}

/// Makes the root read-only, enters it, lets go of the old one, and looks where the process is.
fn enter(site: &Site, stacked: &mut Vec<&'static str>) -> Result<(), Fault> {
    mount::restrict(&site.root, Flags::READ_ONLY).during("make the root read-only")?;
    nix::unistd::fchdir(site.root.as_fd()).during("enter the root")?;
    nix::unistd::pivot_root(".", ".").during("pivot_root")?;
    // On the new root lies the old one, and on that what was stacked on `/`, but for the new root itself, its last.
    for _ in std::mem::take(stacked).into_iter().filter(|place| *place == "/") {
        mount::detach(".").during("detach the old root")?;
    }
    nix::unistd::chdir("/").during("chdir to /")?;
    let here = nix::sys::stat::stat("/").during("stat /")?;
    let planned = nix::sys::stat::fstat(site.root.as_fd()).during("stat the root")?;
    let place = nix::unistd::getcwd().during("getcwd")?;
    if (here.st_dev, here.st_ino) != (planned.st_dev, planned.st_ino) || place != std::path::Path::new("/") {
        return Err(Fault::new("find oneself in the root", libc::EXDEV));
    }
    Ok(())
}
