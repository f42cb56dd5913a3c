//! The layers of a session, each a plain function. The order *is* the security argument: see
//! [`confine_init`] for what is done once a session, and `sys::slot` for what is left for each command
//! (process group, descriptors, rlimits, working directory, environment).

pub mod capabilities;
pub mod keyring;
pub mod landlock;
pub mod nested;
pub mod network;
pub mod root;
pub mod seccomp;

use crate::launcher::protocol::Stage;
use crate::plan::{Access, Ids, Isolation, Namespaces, SessionPlan};
use crate::sys;
use nix::unistd::{Gid, Uid};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

/// A layer that could not be applied.
pub struct StepError {
    /// Which.
    pub stage: Stage,
    /// Why.
    pub errno: i32,
    /// What was tried on what, where the stage alone does not say it.
    pub about: String,
}

impl StepError {
    fn new(stage: Stage, errno: i32) -> Self {
        Self { stage, errno, about: String::new() }
    }
}

fn step<T>(stage: Stage, result: io::Result<T>) -> Result<T, StepError> {
    result.map_err(|error| StepError::new(stage, error.raw_os_error().unwrap_or(libc::EIO)))
}

/// What an init does to itself, once, before it reads its socket.
///
/// # Errors
/// The first layer that could not be applied; the session is then refused.
pub fn confine_init(plan: &SessionPlan, program: BorrowedFd<'_>) -> Result<(), StepError> {
    step(Stage::ProcessGroup, process_session())?;
    step(Stage::Rlimit, sys::mark::set_own(plan.mark))?;
    let isolation = &plan.isolation;
    let filters = compiled(isolation)?;
    if isolation.namespaces.has(Namespaces::USER) {
        step(Stage::User, mapped_user(plan))?;
        own_namespaces(isolation)?;
        step(Stage::Capabilities, capabilities::drop_all())?;
    } else {
        step(Stage::User, user(plan))?;
    }
    step(Stage::Init, sys::process::set_not_dumpable())?;
    if plan.no_new_privileges {
        step(Stage::NoNewPrivileges, sys::process::set_no_new_privileges())?;
    }
    step(Stage::WorkingDirectory, working_directory(plan))?;
    step(Stage::Shell, shell(plan))?;
    if let Some(rules) = &isolation.landlock {
        // The init goes on reading processes, and starts the probe, which lies beneath no path of the session.
        let own = sys::proc::root().map(|procfs| (procfs, Access(Access::READ)));
        let probe = (program, Access(Access::READ | Access::EXECUTE));
        let also: Vec<_> = own.into_iter().chain([probe]).collect();
        landlock::apply(rules, &also).map_err(|error| StepError {
            stage: Stage::Landlock,
            errno: error.errno,
            about: format!("{} {}", error.operation, error.object),
        })?;
    }
    match &filters {
        Some(filters) => step(Stage::Seccomp, seccomp::apply(filters)),
        None => Ok(()),
    }
}

/// Compiled before anything is confined, so that a fault of the plan changes nothing.
fn compiled(isolation: &Isolation) -> Result<Option<seccomp::Filters>, StepError> {
    let fault = |_| StepError::new(Stage::Seccomp, libc::EINVAL);
    isolation.seccomp.as_ref().map(|calls| seccomp::compile(calls).map_err(fault)).transpose()
}

/// What needs the capabilities that a new user namespace gives its first process. The order: a procfs for the
/// init alone before the session's own has masks; the root; then the limits on namespaces, since a mount that is
/// not attached yet counts as one.
fn own_namespaces(isolation: &Isolation) -> Result<(), StepError> {
    if isolation.namespaces.has(Namespaces::PID) {
        let procfs = step(Stage::Root, root::session_procfs())?;
        step(Stage::Root, sys::proc::set_root(procfs))?;
    }
    if isolation.namespaces.has(Namespaces::NET) {
        step(Stage::Network, network::loopback_up())?;
    }
    if isolation.namespaces.has(Namespaces::UTS) && !isolation.hostname.is_empty() {
        let name = std::ffi::OsStr::from_bytes(&isolation.hostname);
        step(Stage::Namespaces, nix::unistd::sethostname(name).map_err(io::Error::from))?;
    }
    step(Stage::Init, keyring::join_new())?;
    if let Some(planned) = &isolation.root {
        let ids = (isolation.inside_uid, isolation.inside_gid);
        let fell_back = root::build(planned, ids).map_err(|failure| StepError {
            stage: Stage::Root,
            errno: failure.errno,
            about: format!("{} {}", failure.operation, failure.object.name(planned)),
        })?;
        // A view that became a bind shares locks and file events with other sessions: not what was planned.
        if !fell_back.is_empty() {
            let about = "an overlay of the system's directories".to_owned();
            return Err(StepError { stage: Stage::Root, errno: libc::EOPNOTSUPP, about });
        }
    }
    match sys::proc::root() {
        _ if isolation.nested_namespaces => Ok(()),
        Some(procfs) => step(Stage::Namespaces, nested::limits_on_namespaces(procfs)),
        // Without a PID namespace there is no root either: the host's is as good, see there.
        None => step(Stage::Namespaces, nested::limits_by_the_hosts_procfs()),
    }
}

/// Takes the user and group that the session sees itself as. With ids of its own the process comes here as somebody
/// whom its maps do not have; capabilities last over the change, as neither of the two is root.
fn mapped_user(plan: &SessionPlan) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(plan.isolation.inside_uid), Gid::from_raw(plan.isolation.inside_gid));
    let ranged = plan.isolation.ids != Ids::Own;
    if ranged {
        nix::unistd::setgroups(&[])?;
    }
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    // A change of credentials may have made it what fs.suid_dumpable says.
    sys::process::set_not_dumpable()?;
    let (users, groups) = (nix::unistd::getresuid()?, nix::unistd::getresgid()?);
    let as_planned = [users.real, users.effective, users.saved] == [uid; 3]
        && [groups.real, groups.effective, groups.saved] == [gid; 3]
        && (!ranged || nix::unistd::getgroups()?.is_empty());
    if as_planned && !uid.is_root() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

fn process_session() -> io::Result<()> {
    nix::unistd::setsid()?;
    sys::process::become_subreaper()
}

/// Takes the session's user for good. A launcher without privilege can only be what it is already.
fn user(plan: &SessionPlan) -> io::Result<()> {
    if plan.uid == 0 || plan.gid == 0 {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid));
    if nix::unistd::geteuid().is_root() {
        nix::unistd::setgroups(&[])?;
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)?;
    } else {
        // Of a launcher with file capabilities.
        capabilities::drop_own()?;
    }
    let (users, groups) = (nix::unistd::getresuid()?, nix::unistd::getresgid()?);
    let as_planned = [users.real, users.effective, users.saved] == [uid; 3]
        && [groups.real, groups.effective, groups.saved] == [gid; 3];
    if !as_planned || nix::unistd::setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    Ok(())
}

fn working_directory(plan: &SessionPlan) -> io::Result<()> {
    let mask = nix::sys::stat::Mode::from_bits_truncate(plan.umask);
    nix::sys::stat::umask(mask);
    Ok(nix::unistd::chdir(plan.working_dir.as_slice())?)
}

fn shell(plan: &SessionPlan) -> io::Result<()> {
    let found = nix::sys::stat::stat(plan.shell.as_slice())?;
    if found.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(nix::unistd::access(plan.shell.as_slice(), nix::unistd::AccessFlags::X_OK)?)
}
