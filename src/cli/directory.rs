//! The socket's directory: 0700 and the daemon's own, or it is not used.

use super::show::Failure;
use super::user::{Account, is_of_range};
use crate::error::SysError;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A directory that was looked at through the descriptor that is held.
pub struct Directory {
    path: PathBuf,
    handle: File,
    private: bool,
}

impl Directory {
    /// Makes one that nobody else knows, for one run.
    ///
    /// # Errors
    /// The kernel's.
    pub fn private(as_root: bool) -> Result<Self, Failure> {
        // Root's TMPDIR may be closed to whom root becomes.
        let base = if as_root { PathBuf::from("/tmp") } else { std::env::temp_dir() };
        let path = base.join(format!("trl-{}", uuid::Uuid::new_v4().simple()));
        make(&path)?;
        Ok(Self { handle: open_directory(&path)?, path, private: true })
    }

    /// Makes or verifies the directory of `socket`; `named` is whom the daemon will be, if that is known.
    ///
    /// # Errors
    /// What is wrong with it and what to do.
    pub fn of_socket(socket: &Path, named: Option<Account>) -> Result<Self, Failure> {
        let path = match socket.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => {
                return Err(Failure::text(format!(
                    "socket {}: name it with its directory",
                    socket.display()
                )));
            }
        };
        let is_new = match make(&path) {
            Ok(()) => true,
            Err(error) if error.errno == nix::errno::Errno::EEXIST as i32 => false,
            Err(error) => {
                return Err(Failure::text(format!(
                    "{error}; make its parent directory, or name another --socket"
                )));
            }
        };
        let directory = Self { handle: open_directory(&path)?, path, private: false };
        directory.verify(socket, named, is_new)?;
        Ok(directory)
    }

    fn verify(&self, socket: &Path, named: Option<Account>, is_new: bool) -> Result<(), Failure> {
        let shown = self.path.display();
        let found =
            self.handle.metadata().map_err(|error| SysError::new("fstat", shown.to_string(), &error))?;
        if found.mode() & 0o077 != 0 {
            return Err(Failure::text(format!(
                "directory {shown} has mode {:04o}, open to others; name a --socket in a directory of its own, of mode 0700 or not there yet",
                found.mode() & 0o7777
            )));
        }
        let own = nix::unistd::geteuid().as_raw();
        let is_target = match named {
            Some(account) => found.uid() == account.uid.as_raw(),
            None => is_of_range(found.uid()),
        };
        if is_target {
            return Ok(());
        }
        if found.uid() != own {
            return Err(Failure::text(format!(
                "directory {shown} belongs to uid {}; remove it, or name another --socket",
                found.uid()
            )));
        }
        // Root's own, to be handed to another user: not where anything else of root's lies.
        if is_new || self.holds_only(socket) {
            return Ok(());
        }
        Err(Failure::text(format!(
            "directory {shown} is root's and not for TRL alone; name a --socket in a directory of its own"
        )))
    }

    fn holds_only(&self, socket: &Path) -> bool {
        let lock = lock_path(socket);
        std::fs::read_dir(&self.path).is_ok_and(|mut entries| {
            entries.all(|entry| entry.is_ok_and(|entry| entry.path() == socket || entry.path() == lock))
        })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it goes when the process goes.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.private
    }

    /// Makes it `account`'s.
    ///
    /// # Errors
    /// The kernel's.
    pub fn hand_to(&self, account: Account) -> Result<(), SysError> {
        nix::unistd::fchown(&self.handle, Some(account.uid), Some(account.gid))
            .map_err(|errno| SysError::from_errno("fchown", self.path.display().to_string(), errno as i32))
    }
}

fn make(path: &Path) -> Result<(), SysError> {
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|error| SysError::new("mkdir", path.display().to_string(), &error))
}

fn open_directory(path: &Path) -> Result<File, Failure> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).map(File::from).map_err(|errno| {
        Failure::text(format!(
            "{}; a directory of its own, not a link, is needed for the socket",
            SysError::from_errno("open", path.display().to_string(), errno as i32)
        ))
    })
}

fn lock_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}

/// Takes the lock beside the socket, which one daemon holds for as long as it lives.
///
/// # Errors
/// There is a daemon already, or the file cannot be had.
pub fn lock(socket: &Path) -> Result<File, Failure> {
    let path = lock_path(socket);
    let shown = path.display().to_string();
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(&path)
        .map_err(|error| SysError::new("open", shown.clone(), &error))?;
    let is_file = file.metadata().is_ok_and(|found| found.is_file());
    if !is_file {
        return Err(Failure::text(format!("{shown} is no regular file; remove it")));
    }
    file.try_lock().map_err(|error| match error {
        std::fs::TryLockError::WouldBlock => Failure::text(format!(
            "a daemon serves {} already; stop it, or name another --socket",
            socket.display()
        )),
        std::fs::TryLockError::Error(error) => SysError::new("flock", shown, &error).into(),
    })?;
    Ok(file)
}
