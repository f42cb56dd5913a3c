//! Where a session without a daemon works: in the caller's directory, as far as the policy and the session's user
//! let it. What is less than that, and was not asked for, is said in a note.

use super::args::Place;
use super::show::Failure;
use super::user::Account;
use crate::policy::{Policy, WorkspaceMode};
use crate::report::Demand;
use nix::unistd::{AccessFlags, access};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What `session.create` is asked for.
#[derive(Debug, PartialEq)]
pub struct Chosen {
    /// `workspace`; null leaves it to the policy.
    pub workspace: Value,
    /// The directory of the host that it may be.
    pub roots: Vec<PathBuf>,
    /// What the caller should know.
    pub note: Option<String>,
}

/// Whether sessions of that policy have a file system of their own, and so a workspace.
#[must_use]
pub fn is_rooted(policy: &Policy) -> bool {
    policy.filesystem.demand != Demand::Off
}

fn is_workable(policy: &Policy, directory: &Path) -> Result<(), String> {
    let path = directory.to_str().ok_or("its path is not UTF-8")?;
    policy.unworkable(path).map_or(Ok(()), Err)
}

/// Chooses; the calling process is the session's user, or root that was told to stay.
///
/// # Errors
/// What was asked for cannot be.
pub fn choose(
    policy: &Policy,
    asked: Option<Place>,
    directory: Option<&Path>,
    account: Account,
) -> Result<Chosen, Failure> {
    let name = &policy.name;
    if !is_rooted(policy) {
        return match asked {
            None => Ok(Chosen { workspace: Value::Null, roots: Vec::new(), note: None }),
            Some(_) => Err(Failure::text(format!(
                "--workspace: the policy {name} gives no file system of its own, everything of the host's is seen"
            ))),
        };
    }
    let (place, note) = match asked {
        Some(place) => (place, None),
        None => best(policy, directory, account),
    };
    let mode = match place {
        Place::None => "none",
        Place::Private => "private",
        Place::Overlay => "overlay",
        Place::Rw | Place::Ro => "host",
    };
    if matches!(place, Place::None | Place::Private) {
        return Ok(Chosen { workspace: json!({"mode": mode}), roots: Vec::new(), note });
    }
    let directory = directory.ok_or_else(|| Failure::text("--workspace: the working directory is gone"))?;
    let refused =
        |why: String| Failure::text(format!("--workspace: {}: {why}; try private", directory.display()));
    is_workable(policy, directory).map_err(refused)?;
    let workspace = json!({"mode": mode, "path": directory.to_str(), "read_only": place == Place::Ro});
    Ok(Chosen { workspace, roots: vec![directory.to_path_buf()], note })
}

/// Entries that the policy would protect and that are not there: nothing can be put in their place that would not
/// stay behind, so the command can make them.
#[must_use]
pub fn absent(policy: &Policy, chosen: &Chosen) -> Vec<PathBuf> {
    let is_written = chosen.workspace["mode"] == "host" && chosen.workspace["read_only"] == false;
    let roots = chosen.roots.iter().filter(|_| is_written);
    roots
        .flat_map(|root| policy.workspace.protect.iter().map(|entry| root.join(entry)))
        .filter(|path| path.symlink_metadata().is_err())
        .collect()
}

/// The most that the directory can be, and a note where that is not writable.
fn best(policy: &Policy, directory: Option<&Path>, account: Account) -> (Place, Option<String>) {
    let (name, uid) = (&policy.name, account.uid);
    let private = |why: String| {
        let instead =
            format!("{why}: the command sees nothing of it and has {} instead", policy.workspace.path);
        (Place::Private, Some(instead))
    };
    let Some(directory) = directory else { return private("the working directory is gone".into()) };
    let shown = directory.display();
    match policy.workspace.mode {
        WorkspaceMode::None => return (Place::None, Some(format!("the policy {name} gives no workspace"))),
        WorkspaceMode::Private => return private(format!("the policy {name} does not show {shown}")),
        WorkspaceMode::Overlay | WorkspaceMode::Host => {}
    }
    if let Err(why) = is_workable(policy, directory) {
        return private(format!("{shown} is no workspace ({why})"));
    }
    if !may(directory, AccessFlags::R_OK | AccessFlags::X_OK, account) {
        return private(format!("uid {uid}, whom the session has, cannot read {shown}"));
    }
    if policy.workspace.mode == WorkspaceMode::Overlay {
        let note = format!(
            "{shown} is only read, as the policy {name} says: changes are gone when the command ends"
        );
        return (Place::Overlay, Some(note));
    }
    if !policy.workspace.writable {
        return (Place::Ro, Some(format!("{shown} is only read, as the policy {name} says")));
    }
    if !may(directory, AccessFlags::W_OK, account) {
        let who = std::fs::metadata(directory).map_or(0, |found| found.uid());
        let named = if who == 0 { "NAME".to_owned() } else { who.to_string() };
        let note = format!(
            "{shown} is only read: uid {uid}, whom the session has, cannot write there, and no command runs as \
             root; name a user who can (--user {named}), or use --workspace overlay"
        );
        return (Place::Ro, Some(note));
    }
    (Place::Rw, None)
}

/// Whether the session's user may do that. Root that was told to stay cannot ask for another: its directory's
/// owner may.
fn may(directory: &Path, how: AccessFlags, account: Account) -> bool {
    if nix::unistd::getuid() == account.uid {
        return access(directory, how).is_ok();
    }
    let owner = std::fs::metadata(directory).map(|found| found.uid());
    !how.contains(AccessFlags::W_OK) || owner.is_ok_and(|owner| owner == account.uid.as_raw())
}
