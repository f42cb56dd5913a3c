//! What the host gives, found by trying it: each trial is the real thing, in a child that ends at once and as the user
//! that sessions have. A setting that is read says what somebody meant; only a trial says what the kernel does.

use crate::layers::{network, root, seccomp};
use crate::plan;
use crate::report::layer;
use crate::sys::mount::{Flags, Setup};
use crate::sys::{attempt, clone, process, raw};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};
use std::io;
use std::path::{Path, PathBuf};

/// Seconds that one trial may take.
const BOUND: u32 = 10;
/// Whom a trial's user is in its namespace, as sessions have it.
const INSIDE: u32 = 1000;

/// Writing the id maps of a user namespace, one id each.
pub const ID_MAPS: &str = "id_maps";
/// An overlay that a user namespace owns.
pub const OVERLAY: &str = "overlay";
/// A fresh procfs in a PID namespace.
pub const PROCFS: &str = "procfs";
/// Ranges of ids by `newuidmap`.
pub const ID_RANGES: &str = "id_ranges";
/// A cgroup below the daemon's own.
pub const CGROUP_DELEGATION: &str = "cgroup_delegation";

/// What came of one trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// A layer's name, or one of this module's.
    pub name: &'static str,
    /// Error number, 0 where it works; `attempt::SIGNAL` and more where the child was ended by a signal.
    pub errno: i32,
}

/// Yields an error number, 0 where it works.
type Attempt = fn() -> i32;

const ALL: [(&str, Attempt); 16] = [
    (layer::NAMESPACE_USER, || of_nix(unshare(CloneFlags::CLONE_NEWUSER))),
    (ID_MAPS, || of(enter(CloneFlags::empty()))),
    (layer::NAMESPACE_MOUNT, || of(enter(CloneFlags::CLONE_NEWNS))),
    (layer::NAMESPACE_PID, || of(enter(CloneFlags::CLONE_NEWPID))),
    (layer::NAMESPACE_IPC, || of(enter(CloneFlags::CLONE_NEWIPC))),
    (layer::NAMESPACE_UTS, || of(enter(CloneFlags::CLONE_NEWUTS))),
    (layer::NAMESPACE_CGROUP, || of(enter(CloneFlags::CLONE_NEWCGROUP))),
    (layer::NAMESPACE_NET, || of(enter(CloneFlags::CLONE_NEWNET).and_then(|()| network::loopback_up()))),
    (OVERLAY, overlay),
    (PROCFS, || below(|| of(root::session_procfs()))),
    (layer::FILESYSTEM, || below(whole_root)),
    (layer::LANDLOCK, landlock),
    (layer::SECCOMP, filter),
    ("keyring", || of(crate::layers::keyring::join_new())),
    (ID_RANGES, id_ranges),
    (CGROUP_DELEGATION, cgroup),
];

/// Tries everything, as `account` where that is given: then the caller must be root.
///
/// The caller must have one thread.
#[must_use]
pub fn all(account: Option<(Uid, Gid)>) -> Vec<Trial> {
    let tried = |work: Attempt| {
        attempt::in_child_within(BOUND, || match account.map_or(Ok(()), become_account) {
            Ok(()) => work(),
            Err(errno) => errno as i32,
        })
    };
    ALL.iter().map(|(name, work)| Trial { name, errno: tried(*work).abs() }).collect()
}

fn become_account((uid, gid): (Uid, Gid)) -> nix::Result<()> {
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)
}

fn of<T>(result: io::Result<T>) -> i32 {
    result.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO))
}

fn of_nix<T>(result: nix::Result<T>) -> i32 {
    result.err().map_or(0, |errno| errno as i32)
}

/// A user namespace with one id mapped, as the zygote makes it, and others that it owns.
fn enter(flags: CloneFlags) -> io::Result<()> {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    unshare(CloneFlags::CLONE_NEWUSER | flags)?;
    // Whoever has changed its user is not dumpable, and the files of such a process are root's.
    process::set_dumpable(true)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{INSIDE} {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{INSIDE} {gid} 1"))
}

/// Does `work` as the first process of fresh namespaces.
fn below(work: Attempt) -> i32 {
    match enter(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC) {
        Ok(()) => attempt::in_child(work),
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    }
}

fn overlay() -> i32 {
    let flags = Flags::INERT.and(Flags::READ_ONLY);
    of(enter(CloneFlags::CLONE_NEWNS).and_then(|()| {
        Setup::new(c"overlay")?.set(c"lowerdir", "/usr:/etc")?.flag(c"userxattr")?.mount(flags)
    }))
}

/// A root as a session's, in small.
fn whole_root() -> i32 {
    use plan::{Fill, Mount};
    let mount = |target: &str, fill| Mount { target: target.into(), fill, optional: false };
    let size = 1 << 20;
    let planned = plan::Root {
        mounts: vec![
            mount("/usr", Fill::View(b"/usr".to_vec())),
            mount("/proc", Fill::Proc),
            mount("/dev", Fill::Dev { size }),
            mount("/tmp", Fill::Tmpfs { size, inodes: 16, exec: false }),
        ],
        workspace: None,
        processes_only: false,
    };
    match root::build(&planned, (INSIDE, INSIDE)) {
        Ok(bound) if bound.is_empty() => 0,
        Ok(_) => libc::EOPNOTSUPP,
        Err(failure) => failure.errno,
    }
}

fn landlock() -> i32 {
    match attempt::landlock_room() {
        room @ 1..=64 => i32::from(room > 16) * libc::ENOSYS,
        other => (other - 100).max(libc::EPERM),
    }
}

/// A filter under which this child can still end.
fn filter() -> i32 {
    let allow = [libc::SYS_exit_group, libc::SYS_exit, libc::SYS_munmap, libc::SYS_brk];
    let allow = allow.into_iter().filter_map(|number| u32::try_from(number).ok()).collect();
    match seccomp::compile(&plan::Seccomp { allow, ..plan::Seccomp::default() }) {
        Ok(filters) => of(seccomp::apply(&filters)),
        Err(_) => libc::EINVAL,
    }
}

/// Has `newuidmap` map the first id of the user's first range: `ENOENT` without the program, `ENODATA` without a range.
fn id_ranges() -> i32 {
    let facts = super::facts();
    if facts.newuidmap == "none" {
        return libc::ENOENT;
    }
    let (Some((uid, _)), Some(_)) = (facts.subuid.first(), facts.subgid.first()) else {
        return libc::ENODATA;
    };
    let Ok((read, write)) = nix::unistd::pipe() else { return libc::EMFILE };
    if process::set_dumpable(true).is_err() {
        return libc::EPERM;
    }
    match clone::fork_into(plan::Namespaces::USER) {
        Ok(0) => {
            drop(write);
            // Until the other end is closed.
            nix::unistd::read(&read, &mut [0u8; 1]).ok();
            raw::exit(0)
        }
        Ok(pid) => {
            drop(read);
            let mapped = std::process::Command::new("newuidmap")
                .args([pid.to_string(), "0".into(), uid.to_string(), "1".into()])
                .stderr(std::process::Stdio::null())
                .status();
            drop(write);
            nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).ok();
            match mapped {
                Ok(status) if status.success() => 0,
                Ok(_) => libc::EPERM,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            }
        }
        Err(errno) => errno,
    }
}

/// Makes a cgroup below one's own, in each hierarchy that limits something, and removes it.
fn cgroup() -> i32 {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let directories = cgroup_directories(&own, &mounts);
    if directories.is_empty() {
        return libc::ENOENT;
    }
    let name = format!("trl-doctor-{}", std::process::id());
    for directory in directories {
        let made = directory.join(&name);
        let failed = of(std::fs::create_dir(&made).and_then(|()| std::fs::remove_dir(&made)));
        if failed != 0 {
            return failed;
        }
    }
    0
}

/// Where the cgroups of a process are that limit memory and the number of processes.
fn cgroup_directories(own: &str, mountinfo: &str) -> Vec<PathBuf> {
    let mounted = |kind: &str, controller: &str| {
        mountinfo.lines().find_map(|line| {
            let (place, rest) = line.split_once(" - ")?;
            let mut rest = rest.split(' ');
            let (found, options) = (rest.next()?, rest.nth(1)?);
            let fits = controller.is_empty() || options.split(',').any(|option| option == controller);
            (found == kind && fits).then(|| place.split(' ').nth(4).map(PathBuf::from)).flatten()
        })
    };
    let lines = own.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let below = |mount: PathBuf, path: &str| mount.join(Path::new(path.trim_start_matches('/')));
    let v1: Vec<PathBuf> = lines
        .clone()
        .filter_map(|(controllers, path)| {
            let named = controllers.split(',').find(|name| matches!(*name, "memory" | "pids"))?;
            Some(below(mounted("cgroup", named)?, path))
        })
        .collect();
    if !v1.is_empty() {
        return v1;
    }
    let v2 = lines.filter(|(controllers, _)| controllers.is_empty());
    v2.filter_map(|(_, path)| Some(below(mounted("cgroup2", "")?, path))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroups_that_limit_are_found() {
        let v1 = "36 31 0:33 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids";
        let v2 = "31 29 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(cgroup_directories("8:pids:/a\n0::/b\n", v1), [Path::new("/sys/fs/cgroup/pids/a")]);
        assert_eq!(cgroup_directories("0::/b/c\n", v2), [Path::new("/sys/fs/cgroup/b/c")]);
        assert!(cgroup_directories("0::/b\n", v1).is_empty());
    }
}
