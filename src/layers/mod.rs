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
use crate::plan::SessionPlan;
use crate::sys;
use nix::unistd::{Gid, Uid};
use std::io;

/// A layer that could not be applied.
pub struct StepError {
    /// Which.
    pub stage: Stage,
    /// Why.
    pub errno: i32,
}

fn step<T>(stage: Stage, result: io::Result<T>) -> Result<T, StepError> {
    result.map_err(|error| StepError { stage, errno: error.raw_os_error().unwrap_or(libc::EIO) })
}

/// What an init does to itself, once, before it reads its socket.
///
/// # Errors
/// The first layer that could not be applied; the session is then refused.
pub fn confine_init(plan: &SessionPlan) -> Result<(), StepError> {
    step(Stage::ProcessGroup, process_session())?;
    step(Stage::Rlimit, sys::mark::set_own(plan.mark))?;
    step(Stage::User, user(plan))?;
    step(Stage::Init, sys::process::set_not_dumpable())?;
    if plan.no_new_privileges {
        step(Stage::NoNewPrivileges, sys::process::set_no_new_privileges())?;
    }
    step(Stage::WorkingDirectory, working_directory(plan))?;
    step(Stage::Shell, shell(plan))
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
