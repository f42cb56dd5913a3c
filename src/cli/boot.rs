//! From a fresh process to one that may serve, on one thread: descriptors, environment, directory, lock,
//! launcher, user, socket, in this order. Nothing here may start a thread, and nothing that needs root may
//! come after [`become_user`].

use super::args::BootArgs;
use super::directory::Directory;
use super::runtime_env;
use super::show::Failure;
use super::user::{self, Account, Claim};
use crate::error::SysError;
use crate::secret::Environment;
use crate::sys;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Descriptor of the first socket that systemd hands over (`sd_listen_fds(3)`).
const LISTEN_FDS_START: i32 = 3;

/// Which socket to listen on.
pub enum Place {
    /// This path; a socket from systemd is taken in its stead.
    Path(PathBuf),
    /// One in a fresh directory of this process's own.
    Private,
}

/// A process that may serve.
pub struct Booted {
    /// Where clients come in.
    pub listener: UnixListener,
    /// Its path.
    pub socket: PathBuf,
    /// The launcher's socket.
    pub launcher: OwnedFd,
    /// What processes of this instance are known by.
    pub mark: u64,
    /// Variables of every session.
    pub runtime_env: Environment,
    /// User and group of sessions.
    pub account: Account,
    /// Whether this process is still root.
    pub is_root: bool,
    /// Where systemd waits for `READY=1`.
    pub notify: Option<OsString>,
    /// The process that makes sessions.
    pub launcher_pid: i32,
    /// The socket's directory, where the socket was made here, and is removed here.
    pub directory: Option<Directory>,
    /// The directory, if it is this process's own.
    pub private: Option<PathBuf>,
    /// Held for as long as the process lives.
    pub held: (Option<File>, Option<Claim>),
}

/// Boots.
///
/// # Errors
/// Which step failed, and where it helps what to do about it.
pub fn boot(args: &BootArgs, place: Place) -> Result<Booted, Failure> {
    umask(Mode::from_bits_truncate(0o077));
    let handed_over = descriptors()?;
    let notify = std::env::var_os("NOTIFY_SOCKET");
    let as_root = user::is_root();
    let named = user::named(args.user.as_deref(), as_root)?;
    // The file's owner may be root or whom the daemon will be; read while it can be.
    let runtime_env = sys::memory::wiping(|| runtime_env::read(args, named))?;
    sys::environ::wipe();

    let (socket, directory) = match place {
        Place::Private => {
            let directory = Directory::private(as_root)?;
            (directory.path().join("trl.sock"), Some(directory))
        }
        Place::Path(socket) if handed_over.is_some() => (socket, None),
        Place::Path(socket) => {
            let directory = Directory::of_socket(&socket, named, as_root && args.allow_root)?;
            (socket, Some(directory))
        }
    };
    let private = directory
        .as_ref()
        .filter(|directory| directory.is_private())
        .map(|directory| directory.path().to_path_buf());
    let file = directory.as_ref().map(Directory::lock).transpose()?;
    let (account, claim) = user::choose(named, as_root)?;
    if let Some(directory) = &directory {
        directory.unlink_stale()?;
        if as_root && !args.allow_root {
            directory.hand_to(account)?;
        }
    }
    let mark = match (&file, &handed_over) {
        (Some(lock), _) => sys::mark::of_instance(lock),
        (None, Some(listener)) => sys::mark::of_instance(listener),
        (None, None) => Err(std::io::Error::from(std::io::ErrorKind::NotFound)),
    }
    .map_err(|error| SysError::new("fstat", format!("lock or socket of {}", socket.display()), &error))?;
    // Said while this process is still whoever started it: the launcher holds the daemon to it ever after.
    let ids =
        [u64::from(account.uid.as_raw()), u64::from(account.gid.as_raw()), mark].map(|id| id.to_string());
    let ranges = user::id_ranges(account, as_root).into_iter().flatten();
    let bounds: Vec<String> =
        ids.into_iter().chain(ranges.map(|(first, count)| format!("{first}:{count}"))).collect();
    let (launcher, launcher_pid) = sys::spawn::launcher(&bounds)?;
    if as_root {
        if args.allow_root {
            tracing::warn!("the daemon keeps root, as --allow-root says; sessions do not");
        } else {
            become_user(account)?;
        }
    }
    harden()?;
    let listener = match handed_over {
        Some(descriptor) => UnixListener::from(descriptor),
        None => bind(&socket)?,
    };
    if let Some(directory) = &directory {
        directory.verify_path()?;
    }
    Ok(Booted {
        listener,
        mark,
        socket,
        launcher,
        runtime_env,
        account,
        is_root: as_root && args.allow_root,
        notify,
        launcher_pid,
        directory,
        private,
        held: (file, claim),
    })
}

/// Closes what the caller left open and takes over a socket that systemd meant for this process.
fn descriptors() -> Result<Option<OwnedFd>, Failure> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    let ours = number("LISTEN_PID") == Some(std::process::id());
    let count = number("LISTEN_FDS").filter(|_| ours).unwrap_or(0);
    let first = u32::from(count > 0);
    sys::process::close_from(LISTEN_FDS_START.unsigned_abs() + first)
        .map_err(|error| SysError::new("close_range", "descriptors from 3", &error))?;
    if count == 0 {
        return Ok(None);
    }
    if count > 1 {
        return Err(Failure::text(format!(
            "LISTEN_FDS is {count}: one socket is expected; leave one ListenStream= in the unit"
        )));
    }
    sys::process::inherited(LISTEN_FDS_START)
        .map(Some)
        .map_err(|error| SysError::new("fcntl", "descriptor 3 (LISTEN_FDS)", &error).into())
}

fn bind(socket: &Path) -> Result<UnixListener, Failure> {
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(socket);
    umask(before);
    bound.map_err(|error| SysError::new("bind", socket.display().to_string(), &error).into())
}

/// Gives root up for good, and proves it.
fn become_user(account: Account) -> Result<(), Failure> {
    let failed = |operation, errno: nix::errno::Errno| {
        SysError::from_errno(operation, account.uid.to_string(), errno as i32)
    };
    nix::unistd::setgroups(&[]).map_err(|errno| failed("setgroups", errno))?;
    nix::unistd::setresgid(account.gid, account.gid, account.gid)
        .map_err(|errno| failed("setresgid", errno))?;
    nix::unistd::setresuid(account.uid, account.uid, account.uid)
        .map_err(|errno| failed("setresuid", errno))?;
    let uids = nix::unistd::getresuid().map_err(|errno| failed("getresuid", errno))?;
    let gids = nix::unistd::getresgid().map_err(|errno| failed("getresgid", errno))?;
    let is_user = [uids.real, uids.effective, uids.saved].iter().all(|uid| *uid == account.uid);
    let is_group = [gids.real, gids.effective, gids.saved].iter().all(|gid| *gid == account.gid);
    let is_alone = nix::unistd::getgroups().is_ok_and(|groups| groups.is_empty());
    let cannot_return = nix::unistd::setuid(nix::unistd::Uid::from_raw(0)).is_err();
    if is_user && is_group && is_alone && cannot_return {
        Ok(())
    } else {
        Err(Failure::text(format!("root could not be given up for uid {}", account.uid)))
    }
}

fn harden() -> Result<(), Failure> {
    let failed =
        |step, object: &str, error: &std::io::Error| Failure::from(SysError::new(step, object, error));
    sys::process::set_not_dumpable()
        .map_err(|error| failed("prctl", "PR_SET_DUMPABLE and RLIMIT_CORE", &error))?;
    sys::process::set_no_new_privileges().map_err(|error| failed("prctl", "PR_SET_NO_NEW_PRIVS", &error))?;
    getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
        .map_err(|errno| SysError::from_errno("setrlimit", "RLIMIT_NOFILE", errno as i32).into())
}
