//! The runtime scope: variables of every session, from the `.env` file and, by name, from the daemon's own
//! environment. No value is ever in an error.

use super::args::BootArgs;
use super::show::Failure;
use super::user::Account;
use crate::error::SysError;
use crate::secret::{Environment, Secret};
use nix::fcntl::OFlag;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Largest `.env`, bytes: it must fit beside an exec's own environment.
const MAX_FILE: u64 = 1024 * 1024;

/// Reads the scope; the file's variables win over inherited ones.
///
/// # Errors
/// What is wrong with the file, never what is in it.
pub fn read(args: &BootArgs, daemon: Option<Account>) -> Result<Environment, Failure> {
    let mut scope = Environment::default();
    for (key, value) in std::env::vars_os() {
        let Some(key) = key.to_str() else { continue };
        if is_passed(key, &args.pass_env) {
            scope.insert(key.to_owned(), Secret::new(value.into_vec()));
        }
    }
    if let Some(path) = &args.env_file {
        parse(path, open(path, daemon)?, &mut scope)?;
    }
    Ok(scope)
}

/// The variables of an env file, which is looked at as when a daemon starts.
///
/// # Errors
/// As in [`read`].
pub fn file(path: &Path, daemon: Option<Account>) -> Result<Environment, Failure> {
    let mut scope = Environment::default();
    parse(path, open(path, daemon)?, &mut scope)?;
    Ok(scope)
}

fn is_passed(key: &str, names: &[String]) -> bool {
    !key.starts_with("TRL_")
        && names.iter().any(|name| match name.strip_suffix('*') {
            Some(prefix) => !prefix.is_empty() && key.starts_with(prefix),
            None => key == name,
        })
}

fn open(path: &Path, daemon: Option<Account>) -> Result<File, Failure> {
    let shown = path.display();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path)
        .map_err(|error| SysError::new("open", shown.to_string(), &error))?;
    let found = file.metadata().map_err(|error| SysError::new("fstat", shown.to_string(), &error))?;
    let is_owned = found.uid() == 0 || daemon.is_some_and(|account| found.uid() == account.uid.as_raw());
    let refusal = if !found.is_file() {
        "is no regular file"
    } else if !is_owned {
        "belongs to neither root nor the daemon's user"
    } else if !matches!(found.mode() & 0o7777, 0o600 | 0o400) {
        "must have mode 0600 or 0400"
    } else if found.len() > MAX_FILE {
        "is larger than 1 MiB"
    } else {
        return Ok(file);
    };
    Err(Failure::text(format!("env file {shown} {refusal}")))
}

fn parse(path: &Path, file: File, scope: &mut Environment) -> Result<(), Failure> {
    let reader = BufReader::new(file.take(MAX_FILE));
    for (index, entry) in dotenvy::from_read_iter(reader).enumerate() {
        // dotenvy's errors hold the line itself: only where it was may be said.
        let Ok((key, value)) = entry else {
            return Err(Failure::text(format!(
                "env file {}: entry {} is not of the form KEY=value",
                path.display(),
                index + 1
            )));
        };
        if value.contains('\0') || key.is_empty() {
            return Err(Failure::text(format!(
                "env file {}: entry {} holds a NUL or has no key",
                path.display(),
                index + 1
            )));
        }
        if key.starts_with("TRL_") {
            continue;
        }
        scope.insert(key, Secret::new(value.into_bytes()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn own_settings_are_never_passed() {
        let names = ["TRL_AUTH_TOKEN", "T*", "LC_*"].map(String::from);
        assert!(!is_passed("TRL_AUTH_TOKEN", &names));
        assert!(is_passed("TZ", &names) && is_passed("LC_ALL", &names) && !is_passed("LD", &names));
    }

    #[test]
    fn a_bad_entry_is_refused_without_its_text() -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new()?;
        writeln!(file, "A=1\nhunter2 hunter2")?;
        let daemon = Account { uid: nix::unistd::geteuid(), gid: nix::unistd::getegid() };
        let opened = open(file.path(), Some(daemon)).map_err(|e| std::io::Error::other(e.to_string()))?;
        let refused = parse(file.path(), opened, &mut Environment::default());
        assert!(refused.is_err_and(|error| !error.to_string().contains("hunter2")));
        Ok(())
    }

    #[test]
    fn a_file_open_to_others_is_refused() -> std::io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new()?;
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o640))?;
        assert!(open(file.path(), None).is_err());
        Ok(())
    }
}
