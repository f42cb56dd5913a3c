//! Which of the host's files a session is given by its request: the workspace, and paths besides.

use super::check::{is_beneath, placeable};
use super::resolve::{Found, HostView, Request, ResolveError};
use super::{Policy, ProtectAbsent, WorkspaceMode, value};
use crate::plan::Workspace;

impl Policy {
    pub(super) fn workspace(
        &self,
        request: &Request,
        host: &HostView<'_>,
    ) -> Result<Option<Workspace>, ResolveError> {
        let own = &self.workspace;
        let denied = |what: &str| Err(ResolveError::Denied { what: what.into() });
        let workspace = |target: &str, source: &str, overlay, writable, protect: &[String]| Workspace {
            target: target.into(),
            source: source.into(),
            overlay,
            writable,
            exec: own.exec,
            size: own.size,
            inodes: own.inodes,
            protect: protect.iter().map(|entry| entry.clone().into_bytes()).collect(),
        };
        let Some(choice) = &request.workspace else {
            let private = own.mode != WorkspaceMode::None && !request.without_workspace;
            return Ok(private.then(|| workspace(&own.path, "", false, own.writable, &[])));
        };
        if own.mode < WorkspaceMode::Overlay {
            return denied("a directory of the host as workspace");
        }
        if choice.writable && !own.writable {
            return denied("a writable workspace");
        }
        if choice.writable && !choice.overlay && own.mode < WorkspaceMode::Host {
            return denied("writing to a directory of the host");
        }
        let source = choice.source.as_str();
        if let Some(why) = self.unworkable(source) {
            return denied(&format!("{source:?} as workspace: {why}"));
        }
        // What outlives the session is protected.
        let is_kept = choice.writable && !choice.overlay;
        let mut protect = Vec::new();
        for entry in own.protect.iter().filter(|_| is_kept) {
            match guarded(source, entry, host) {
                Guarded::Entry(entry) => protect.push(entry),
                Guarded::Absent if own.protect_absent == ProtectAbsent::Leave => {}
                Guarded::Absent => {
                    return denied(&format!(
                        "a writable workspace without {entry}, which it protects: make it first, or use overlay"
                    ));
                }
                Guarded::Link(link) => {
                    return denied(&format!(
                        "a writable workspace in which {link} is a symbolic link: what it protects lies behind it"
                    ));
                }
            }
        }
        protect.dedup();
        Ok(Some(workspace(source, source, choice.overlay, choice.writable, &protect)))
    }

    /// Why a directory can be no workspace, if it cannot: it must be apart from what the session sees of the system.
    #[must_use]
    pub fn unworkable(&self, path: &str) -> Option<String> {
        if let Err(why) = value::path(path).and_then(placeable) {
            return Some(why);
        }
        let own = &self.filesystem;
        let mut shown = own.system.iter().chain(&own.copy).chain(&own.read_only);
        shown
            .find(|shown| is_beneath(path, shown) || is_beneath(shown, path))
            .map(|shown| format!("it lies in one another with {shown}, which the session sees"))
    }

    /// Extra paths and whether each is writable.
    pub(super) fn extra(&self, request: &Request) -> Result<Vec<(String, bool)>, ResolveError> {
        let own = &self.filesystem;
        let writable = request.extra_writable.iter().map(|path| (path, true));
        let mut all = Vec::new();
        for (path, writable) in request.extra_read_only.iter().map(|path| (path, false)).chain(writable) {
            let path = checked(path)?;
            let offers = own.offer_writable.iter().chain(own.offer_read_only.iter().filter(|_| !writable));
            let is_offered = offers.into_iter().any(|offer| is_beneath(path, offer));
            if !request.by_operator && !is_offered {
                return Err(ResolveError::Denied { what: format!("{path} of the host") });
            }
            // Named both ways, the narrower holds.
            if !all.iter().any(|(known, _)| known == path) {
                all.push((path.to_owned(), writable));
            }
        }
        Ok(all)
    }
}

/// What stands for an entry that is to be protected.
enum Guarded {
    /// Itself; or what is in the place of a directory above it, as the file `.git` of a worktree.
    Entry(String),
    /// Nothing.
    Absent,
    /// A link, which no mount can be put on.
    Link(String),
}

fn guarded(source: &str, entry: &str, host: &HostView<'_>) -> Guarded {
    let ends = entry.match_indices('/').map(|(at, _)| at).chain([entry.len()]);
    for part in ends.map(|end| &entry[..end]) {
        match (host.look)(&format!("{source}/{part}")) {
            Found::Directory => {}
            Found::File => return Guarded::Entry(part.into()),
            Found::Link(_) => return Guarded::Link(part.into()),
            Found::Absent => return Guarded::Absent,
        }
    }
    Guarded::Entry(entry.into())
}

/// Takes extra paths that lie in the workspace out: its mount would hide theirs. One that is to be read-only in a
/// directory of the host's is protected there instead.
pub(super) fn within(
    extra: Vec<(String, bool)>,
    workspace: Option<&mut Workspace>,
) -> Result<Vec<(String, bool)>, ResolveError> {
    let Some(workspace) = workspace else { return Ok(extra) };
    let target = String::from_utf8_lossy(&workspace.target).into_owned();
    let (inside, outside): (Vec<_>, Vec<_>) =
        extra.into_iter().partition(|(path, _)| is_beneath(path, &target));
    for (path, writable) in inside {
        let entry = path[target.len()..].trim_start_matches('/');
        match (workspace.source.is_empty(), writable) {
            (false, false) if !entry.is_empty() && workspace.writable => workspace.protect.push(entry.into()),
            (false, false) if !entry.is_empty() => {}
            (false, true) if workspace.writable && !workspace.overlay => {}
            _ => return Err(ResolveError::Denied { what: format!("{path}: it lies in the workspace") }),
        }
    }
    workspace.protect.sort();
    workspace.protect.dedup();
    Ok(outside)
}

fn checked(path: &str) -> Result<&str, ResolveError> {
    let denied = |why: String| ResolveError::Denied { what: format!("{path:?}: {why}") };
    let path = value::path(path).map_err(denied)?;
    placeable(path).map_err(denied)?;
    Ok(path)
}
