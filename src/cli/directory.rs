//! The socket's directory: 0700 and the daemon's own, or it is not used.

use super::show::Failure;
use super::user::{Account, is_of_range};
use crate::error::SysError;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A directory that was looked at through the descriptor that is held.
pub struct Directory {
    path: PathBuf,
    /// The socket's name in it.
    name: OsString,
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
        Ok(Self { handle: open_directory(&path)?, path, name: "trl.sock".into(), private: true })
    }

    /// Makes or verifies the directory of `socket`; `named` is whom the daemon will be, if that is known, unless
    /// it `keeps_root`: then it is root's.
    ///
    /// # Errors
    /// What is wrong with it and what to do.
    pub fn of_socket(socket: &Path, named: Option<Account>, keeps_root: bool) -> Result<Self, Failure> {
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
        let Some(name) = socket.file_name().map(OsString::from) else {
            return Err(Failure::text(format!("socket {}: it has no name", socket.display())));
        };
        let directory = Self { handle: open_directory(&path)?, path, name, private: false };
        let is_target = |uid| match named {
            _ if keeps_root => false,
            Some(account) => uid == account.uid.as_raw(),
            None => is_of_range(uid),
        };
        directory.verify(&is_target, is_new)?;
        Ok(directory)
    }

    fn verify(&self, is_target: &dyn Fn(u32) -> bool, is_new: bool) -> Result<(), Failure> {
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
        if is_target(found.uid()) {
            return Ok(());
        }
        if found.uid() != own {
            return Err(Failure::text(format!(
                "directory {shown} belongs to uid {}; remove it, or name another --socket",
                found.uid()
            )));
        }
        // Root's own, to be handed to another user: not where anything else of root's lies.
        if is_new || self.holds_only_own() {
            return Ok(());
        }
        Err(Failure::text(format!(
            "directory {shown} is root's and not for TRL alone; name a --socket in a directory of its own"
        )))
    }

    fn holds_only_own(&self) -> bool {
        let own =
            [self.name.clone(), self.lock_name(), "idempotency-keys".into(), "idempotency-keys.new".into()];
        std::fs::read_dir(&self.path).is_ok_and(|mut entries| {
            entries.all(|entry| entry.is_ok_and(|entry| own.contains(&entry.file_name())))
        })
    }

    fn lock_name(&self) -> OsString {
        let mut name = self.name.clone();
        name.push(".lock");
        name
    }

    fn shown(&self, name: &OsStr) -> String {
        self.path.join(name).display().to_string()
    }

    /// Takes the lock beside the socket, which one daemon holds for as long as it lives.
    ///
    /// # Errors
    /// There is a daemon already, or the file cannot be had.
    pub fn lock(&self) -> Result<File, Failure> {
        let name = self.lock_name();
        let shown = self.shown(&name);
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(&self.handle, name.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map(File::from)
            .map_err(|errno| SysError::from_errno("open", shown.clone(), errno as i32))?;
        if !file.metadata().is_ok_and(|found| found.is_file() && found.nlink() == 1) {
            return Err(Failure::text(format!("{shown} is no regular file of its own; remove it")));
        }
        file.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => Failure::text(format!(
                "a daemon serves {} already; stop it, or name another --socket",
                self.shown(&self.name)
            )),
            std::fs::TryLockError::Error(error) => SysError::new("flock", shown, &error).into(),
        })?;
        Ok(file)
    }

    /// Removes the socket of a daemon that is gone; to be called under the lock.
    ///
    /// # Errors
    /// What is there is no socket, or the kernel's.
    pub fn unlink_stale(&self) -> Result<(), Failure> {
        let name = self.name.as_os_str();
        match fstatat(&self.handle, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(SysError::from_errno("lstat", self.shown(name), errno as i32).into()),
            Ok(found)
                if SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFSOCK =>
            {
                self.unlink_socket().map_err(Failure::from)
            }
            Ok(_) => Err(Failure::text(format!(
                "{} is there and is no socket; move it away or name another --socket",
                self.shown(name)
            ))),
        }
    }

    /// Removes the socket.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unlink_socket(&self) -> Result<(), SysError> {
        let name = self.name.as_os_str();
        unlinkat(&self.handle, name, UnlinkatFlags::NoRemoveDir)
            .map_err(|errno| SysError::from_errno("unlink", self.shown(name), errno as i32))
    }

    /// Proves that the path still leads here, after a socket was bound by it: there is no `bind` by handle.
    ///
    /// # Errors
    /// It does not.
    pub fn verify_path(&self) -> Result<(), Failure> {
        let here = |found: std::fs::Metadata| (found.dev(), found.ino());
        let (held, named) = (self.handle.metadata(), std::fs::symlink_metadata(&self.path));
        if held.is_ok_and(|held| named.is_ok_and(|named| here(held) == here(named))) {
            return Ok(());
        }
        Err(Failure::text(format!("directory {} was replaced while it was used", self.path.display())))
    }

    /// A second handle.
    ///
    /// # Errors
    /// The kernel's.
    pub fn handle(&self) -> std::io::Result<File> {
        self.handle.try_clone()
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
