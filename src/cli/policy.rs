//! `trl policy`: looks at policies without a daemon, and reads an operator's directory of them.

use super::args::PolicyCommand;
use super::show::{self, Failure};
use crate::error::SysError;
use crate::policy::{MAX_TEXT, Policies, Policy, Text, schema, toml};
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Runs a subcommand; what `check` finds wrong is exit code 1.
///
/// # Errors
/// A directory or file that cannot be used.
pub fn policy(command: &PolicyCommand, json: bool) -> Result<i32, Failure> {
    match command {
        PolicyCommand::List { policy_dir } => list(&load(policy_dir.as_deref())?, json),
        PolicyCommand::Show { policy, policy_dir } => {
            let known = load(policy_dir.as_deref())?;
            print(&named(policy, &known)?, json);
        }
        PolicyCommand::Check { files, policy_dir } => return check(files, &load(policy_dir.as_deref())?),
        PolicyCommand::Schema => show::line(&format!("{:#}", schema::schema())),
    }
    Ok(0)
}

/// The shipped policies and those of the operator's directory: files NAME.toml; others are left alone.
///
/// # Errors
/// A directory or file that others could write, that is no regular file, or that does not parse.
pub fn load(directory: Option<&Path>) -> Result<Policies, Failure> {
    let own = directory.map(texts).transpose()?.unwrap_or_default();
    Policies::with(&own).map_err(|error| Failure::text(error.to_string()))
}

/// The same, and a name that must be among them.
///
/// # Errors
/// Likewise; and a name that is not there, with those that are.
pub fn load_with(directory: Option<&Path>, wanted: &str) -> Result<Policies, Failure> {
    let known = load(directory)?;
    if known.get(wanted).is_some() {
        return Ok(known);
    }
    let names: Vec<_> = known.names().collect();
    Err(Failure::text(format!("there is no policy {wanted:?}; there are {}", names.join(", "))))
}

fn texts(directory: &Path) -> Result<Vec<Text>, Failure> {
    let failed = |error| SysError::new("read directory", directory.display().to_string(), &error);
    let handle =
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(directory).map_err(failed)?;
    trusted(directory, &handle)?;
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            Ok(Text { name, file: path.display().to_string(), text: text(path, true)? })
        })
        .collect()
}

/// Whose word a policy is: root's or the caller's own, and nobody else's.
fn trusted(path: &Path, file: &File) -> Result<(), Failure> {
    let shown = path.display();
    let found = file.metadata().map_err(|error| SysError::new("fstat", shown.to_string(), &error))?;
    if found.mode() & 0o022 != 0 {
        let mode = found.mode() & 0o7777;
        return Err(Failure::text(format!("{shown} has mode {mode:04o}: others can write it; chmod go-w")));
    }
    let own = nix::unistd::geteuid().as_raw();
    if found.uid() != 0 && found.uid() != own {
        return Err(Failure::text(format!("{shown} belongs to uid {}, neither root nor {own}", found.uid())));
    }
    Ok(())
}

fn text(path: &Path, must_be_trusted: bool) -> Result<String, Failure> {
    let shown = path.display().to_string();
    // Neither a link nor a FIFO: not followed, not waited for.
    let flags = libc::O_NONBLOCK | if must_be_trusted { libc::O_NOFOLLOW } else { 0 };
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| SysError::new("open", &shown, &error))?;
    if must_be_trusted {
        trusted(path, &file)?;
    }
    if !file.metadata().map_err(|error| SysError::new("fstat", &shown, &error))?.is_file() {
        return Err(Failure::text(format!("{shown} is no regular file")));
    }
    let mut bytes = Vec::new();
    let read = file.take(MAX_TEXT as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| SysError::new("read", &shown, &error))?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        let last = valid.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        let column = String::from_utf8_lossy(last).chars().count() + 1;
        Failure::text(format!("{shown}:{line}:{column}: not UTF-8"))
    })
}

fn list(policies: &Policies, json: bool) {
    const SHORT: usize = "sha256:".len() + 12;
    let rows = policies.iter().map(|policy| {
        let digest = policy.digest();
        let digest = if json { digest.as_str() } else { &digest[..SHORT] };
        json!({"name": policy.name, "digest": digest, "description": policy.description})
    });
    let rows = json!(rows.collect::<Vec<_>>());
    if json {
        show::json(&json!({"policies": rows}))
    } else {
        show::list(&rows, &["name", "digest", "description"])
    }
}

/// A known policy's name, else a file.
fn named(policy: &str, known: &Policies) -> Result<Policy, Failure> {
    if let Some(found) = known.get(policy) {
        return Ok(found.clone());
    }
    if !policy.contains(['/', '.']) {
        return Err(Failure::text(format!("there is no policy {policy:?}")));
    }
    known.parse(policy, &text(Path::new(policy), false)?).map_err(|error| Failure::text(error.to_string()))
}

fn print(policy: &Policy, json: bool) {
    let digest = policy.digest();
    if json {
        show::json(&json!({"name": policy.name, "digest": digest, "policy": policy}));
    } else {
        show::line(&format!("# {digest}\n{}", toml(policy).trim_end()));
    }
}

fn check(files: &[std::path::PathBuf], known: &Policies) -> Result<i32, Failure> {
    let mut code = 0;
    for path in files {
        let fault = match text(path, false) {
            Err(failure) => Some(failure.to_string()),
            Ok(text) => known.parse(&path.display().to_string(), &text).err().map(|error| error.to_string()),
        };
        if let Some(fault) = fault {
            show::line(&fault);
            code = 1;
        }
    }
    Ok(code)
}
