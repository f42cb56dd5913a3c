//! Which directories of the host a session may work in: the operator's word, looked at when a session is made.
//!
//! A path is taken as it is spelled, with no link in it: the init opens it once, through no link either, so what is
//! beneath a root by its spelling is beneath it when it is mounted.

use super::Daemon;
use super::dispatch::invalid;
use super::wire::types::{WorkspaceParam, WorkspaceWord};
use super::wire::{Code, WireError};
use crate::plan::{Fill, Isolation, Workspace};
use crate::policy::{Policy, Request, WorkspaceChoice, WorkspaceMode, is_beneath, placeable};
use crate::report::Demand;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What is never in a session.
const OWN: &str = "files that the daemon reads or is (policies, variables, socket, programs)";

/// Where a host's directory may be given to a session, and where not.
#[derive(Debug, Default)]
pub struct Workspaces {
    /// Beneath these, or they themselves; without links.
    roots: Vec<String>,
    /// What the daemon reads or is; without links.
    own: Vec<String>,
}

impl Workspaces {
    /// Looks at the operator's roots. `own` are files and directories of the daemon's, without links.
    ///
    /// # Errors
    /// The first that cannot be one, and why.
    pub fn new(roots: &[PathBuf], own: &[PathBuf]) -> Result<Self, String> {
        let own: Vec<String> = own.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        let roots = roots.iter().map(|root| Self::root(root, &own)).collect::<Result<_, _>>()?;
        Ok(Self { roots, own })
    }

    fn root(given: &Path, own: &[String]) -> Result<String, String> {
        let shown = given.display();
        let fault = |why: &str| format!("workspace root {shown}: {why}");
        let path = std::fs::canonicalize(given).map_err(|error| fault(&error.to_string()))?;
        let path = path.to_str().ok_or_else(|| fault("is not UTF-8"))?;
        if !Path::new(path).is_dir() {
            return Err(fault("is no directory"));
        }
        if path == "/" {
            return Err(fault("the whole host is none"));
        }
        placeable(&format!("{path}/workspace")).map_err(|why| fault(&why))?;
        match own.iter().find(|own| is_beneath(path, own)) {
            Some(own) => Err(fault(&format!("lies in {own}, which the daemon reads"))),
            None => Ok(path.to_owned()),
        }
    }

    /// Where sessions may work.
    #[must_use]
    pub fn roots(&self) -> &[String] {
        &self.roots
    }

    /// Looks at paths that every session is to be shown.
    ///
    /// # Errors
    /// The first that has to do with what the daemon reads or is.
    pub fn check_shown(&self, paths: &[String]) -> Result<(), String> {
        match paths.iter().find(|path| self.holds_own(path)) {
            Some(path) => Err(format!("{path}: {OWN} lie there")),
            None => Ok(()),
        }
    }

    fn holds_own(&self, path: &str) -> bool {
        self.own.iter().any(|own| is_beneath(path, own) || is_beneath(own, path))
    }

    fn is_within(&self, path: &str) -> bool {
        self.roots.iter().any(|root| is_beneath(path, root))
    }

    /// Which entry a workspace above `path` would protect, where `path` is one or lies in one, or such an entry in it.
    fn lies_in_protected<'a>(&self, path: &str, protect: &'a [String]) -> Option<&'a str> {
        let above = path
            .match_indices('/')
            .map(|(at, _)| path.split_at(at))
            .filter(|(above, _)| self.is_within(above));
        let below: Vec<&str> = above.map(|(_, below)| below).collect();
        protect.iter().map(|entry| entry.trim_end_matches('/')).find(|entry| {
            let entry = format!("/{entry}");
            below.iter().any(|below| is_beneath(below, &entry) || is_beneath(&entry, below))
        })
    }

    /// Whether a session may work in that directory.
    ///
    /// # Errors
    /// `POLICY_DENIED`, or `INVALID_PARAMS` where there is no such directory.
    fn allow(&self, field: &str, path: &str) -> Result<(), WireError> {
        let denied = |why: &str| {
            Err(WireError::new(Code::PolicyDenied, format!("{field}: {why}")).with(json!({"field": field})))
        };
        if path.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) || !path.starts_with('/') {
            return Err(invalid(field, "expected an absolute path without '.', '..' and '//'"));
        }
        if !self.is_within(path) {
            return denied(
                "no directory that the operator allows sessions to work in; `trl serve --workspace-root DIR` \
                 allows DIR and what is beneath it",
            );
        }
        if self.holds_own(path) {
            return denied(&format!("{OWN} lie there"));
        }
        match opened(path) {
            Ok(()) => Ok(()),
            Err(Errno::ELOOP) => denied("the path has a symbolic link in it; name the directory itself"),
            Err(errno) => Err(invalid(field, "not a directory that the daemon's user can reach")
                .with(json!({"field": field, "errno": errno as i32}))),
        }
    }
}

/// Opens a directory through no link of any kind, and closes it.
fn opened(path: &str) -> nix::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open("/", flags, Mode::empty())?;
    let how = OpenHow::new()
        .flags(flags)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(&root, path, how) {
        // Missing or filtered. What is seen here is only what is said: the init looks for itself.
        Err(Errno::ENOSYS) => match std::fs::canonicalize(path) {
            Ok(found) if found == Path::new(path) => open(path, flags, Mode::empty()).map(drop),
            Ok(_) => Err(Errno::ELOOP),
            Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))),
        },
        other => other.map(drop),
    }
}

/// What a session asks of its policy: its workspace, and what the operator shows every session.
///
/// # Errors
/// `POLICY_DENIED`, `INVALID_PARAMS`.
pub fn request(
    daemon: &Daemon,
    policy: &Policy,
    asked: Option<WorkspaceParam>,
    working_dir: Option<&str>,
) -> Result<Request, WireError> {
    let config = &daemon.config;
    let mut request = Request {
        extra_read_only: config.extra_read_only.clone(),
        extra_writable: config.extra_writable.clone(),
        by_operator: true,
        ..Request::default()
    };
    let rooted = policy.filesystem.demand != Demand::Off;
    let (field, asked) = match (asked, working_dir) {
        (Some(asked), _) => ("workspace", asked),
        // Clients that know of no workspace name the directory that they work in.
        (None, Some(path)) if rooted && config.workspaces.is_within(path) => {
            ("working_dir", WorkspaceParam { mode: WorkspaceWord::Host, path: None, read_only: None })
        }
        (None, _) => return Ok(request),
    };
    let read_only = asked.read_only.unwrap_or(false);
    match asked.mode {
        WorkspaceWord::None | WorkspaceWord::Private => {
            if asked.path.is_some() || read_only {
                return Err(invalid(field, "path and read_only are for host and overlay"));
            }
            if asked.mode == WorkspaceWord::Private && policy.workspace.mode == WorkspaceMode::None {
                return Err(WireError::new(Code::PolicyDenied, "the policy does not allow a workspace"));
            }
            request.without_workspace = asked.mode == WorkspaceWord::None;
        }
        WorkspaceWord::Host | WorkspaceWord::Overlay => {
            let path = asked.path.as_deref().or(working_dir);
            let path = path.ok_or_else(|| invalid(field, "host and overlay need a path, or working_dir"))?;
            config.workspaces.allow(field, path)?;
            let is_kept = asked.mode == WorkspaceWord::Host && !read_only;
            let protect = if is_kept { policy.workspace.protect.as_slice() } else { &[] };
            if let Some(entry) = config.workspaces.lies_in_protected(path, protect) {
                let why = format!(
                    "{field}: it has to do with {entry}, which the policy protects in a workspace above it"
                );
                return Err(WireError::new(Code::PolicyDenied, why).with(json!({"field": field})));
            }
            request.workspace = Some(WorkspaceChoice {
                source: path.to_owned(),
                overlay: asked.mode == WorkspaceWord::Overlay,
                writable: !read_only,
            });
        }
    }
    Ok(request)
}

/// Where a session begins that does not say it: in its workspace.
#[must_use]
pub fn beginning(isolation: &Isolation) -> Option<String> {
    let workspace = isolation.root.as_ref()?.workspace.as_ref()?;
    Some(String::from_utf8_lossy(&workspace.target).into_owned())
}

/// Refuses a working directory of the host's that the session does not see. It does not tell whether it is there,
/// but for the directory right below `/` that it is in.
///
/// # Errors
/// `POLICY_DENIED`.
pub fn is_shown(isolation: &Isolation, working_dir: &str) -> Result<(), WireError> {
    let Some(root) = &isolation.root else { return Ok(()) };
    let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let mounts =
        root.mounts.iter().map(|mount| (text(&mount.target), !matches!(mount.fill, Fill::Tmpfs { .. })));
    let workspace = root.workspace.iter().map(|workspace| (text(&workspace.target), true));
    let is_shown = mounts.chain(workspace).any(|(target, has_more)| {
        is_beneath(&target, working_dir) || (has_more && is_beneath(working_dir, &target))
    });
    let top = working_dir.trim_start_matches('/').split('/').next().unwrap_or_default();
    if is_shown || std::fs::symlink_metadata(Path::new("/").join(top)).is_err() {
        return Ok(());
    }
    let why = "working_dir: a directory of the host that the session does not see; the operator allows one by `trl \
               serve --workspace-root`, or --ro and --rw of `trl run`";
    Err(WireError::new(Code::PolicyDenied, why).with(json!({"field": "working_dir"})))
}

/// A workspace as clients are told of it.
#[must_use]
pub fn shown(workspace: Option<&Workspace>) -> Value {
    let Some(workspace) = workspace else { return json!({"mode": "none"}) };
    let mode = match (workspace.source.is_empty(), workspace.overlay) {
        (true, _) => "private",
        (false, true) => "overlay",
        (false, false) => "host",
    };
    let path = String::from_utf8_lossy(&workspace.target);
    json!({"mode": mode, "path": path, "read_only": !workspace.writable})
}
