//! A policy, a request and what the host has → the L2 part of a plan. A request narrows what the policy allows
//! and never widens it; what the host lacks of a required layer is an error, of a best effort one left out.

use super::check::is_beneath;
use super::keys::FAMILIES;
use super::places::within;
use super::{NetworkMode, Policy, View, files, layer, syscalls};
use crate::plan::{
    Access, Fill, Ids, Isolation, Landlock, Mount, Namespaces, PathRule, Root, Seccomp, Workspace,
};
use crate::report::{Demand, layer as l1};
use std::collections::BTreeSet;

/// Groups of system calls that open what is refused otherwise; a call in another group stays refused.
const OPENING: [&str; 2] = ["debug", "nested"];

/// What a session asks for, within its policy. The default asks for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// A host's directory to work in, which the operator allows; bound at the same path.
    pub workspace: Option<WorkspaceChoice>,
    /// No workspace, not a private one either.
    pub without_workspace: bool,
    /// More paths of the host's, read-only.
    pub extra_read_only: Vec<String>,
    /// More paths of the host's, writable.
    pub extra_writable: Vec<String>,
    /// Whether the extra paths are the operator's own word, and need no `offer_…` of the policy.
    pub by_operator: bool,
}

/// A directory of the host's as workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspaceChoice {
    /// Where it is, with no symbolic link in it.
    pub source: String,
    /// Whether changes stay in a layer above it, gone with the session.
    pub overlay: bool,
    /// Whether the session may write.
    pub writable: bool,
}

/// What is at a path of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A directory.
    Directory,
    /// Anything else that is no link.
    File,
    /// A symbolic link and its target.
    Link(String),
    /// Nothing, or nothing that this user may see.
    Absent,
}

/// What a plan needs to know of the host.
pub struct HostView<'a> {
    /// Whether a session can have host ids of its own.
    pub id_ranges: bool,
    /// Layers (of [`Policy::demands`]) that this host cannot have, and why.
    pub missing: &'a [(&'static str, String)],
    /// Mount points of the host: an overlay does not follow them, each gets a view of its own.
    pub submounts: &'a [String],
    /// What is at a path.
    pub look: &'a dyn Fn(&str) -> Found,
    /// Whether everybody on the host may read what is at a path.
    pub is_public: &'a dyn Fn(&str) -> bool,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The policy does not allow what was asked.
    #[error("the policy does not allow {what}")]
    Denied {
        /// What was asked.
        what: String,
    },
    /// A path that must be there is not.
    #[error("{path} is not there")]
    Absent {
        /// The path.
        path: String,
    },
    /// Required layers that the host cannot have.
    #[error("the host cannot have required layers")]
    Unavailable(Vec<(&'static str, String)>),
}

impl Policy {
    /// The L2 part of a plan.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub fn isolation(&self, request: &Request, host: &HostView<'_>) -> Result<Isolation, ResolveError> {
        let short: Vec<_> = self
            .demands()
            .into_iter()
            .filter(|(_, demand)| *demand == Demand::Required)
            .filter_map(|(name, _)| host.missing.iter().find(|(missing, _)| *missing == name).cloned())
            .collect();
        if !short.is_empty() {
            return Err(ResolveError::Unavailable(short));
        }
        let has = |name: &str, demand: Demand| {
            demand != Demand::Off && !host.missing.iter().any(|(m, _)| *m == name)
        };
        let own = &self.namespaces;
        let user = has(layer::USER_NAMESPACE, own.user);
        let flags = [
            (layer::USER_NAMESPACE, own.user, Namespaces::USER),
            (layer::MOUNT_NAMESPACE, own.mount, Namespaces::MOUNT),
            (layer::PID_NAMESPACE, own.pid, Namespaces::PID),
            (layer::IPC_NAMESPACE, own.ipc, Namespaces::IPC),
            (layer::UTS_NAMESPACE, own.uts, Namespaces::UTS),
            (layer::CGROUP_NAMESPACE, own.cgroup, Namespaces::CGROUP),
            (layer::NET_NAMESPACE, own.net, Namespaces::NET),
        ];
        let made = flags.iter().filter(|(name, demand, _)| user && has(name, *demand));
        let mut namespaces = Namespaces(made.fold(0, |all, (_, _, flag)| all | flag));
        if namespaces.has(Namespaces::PID) && !namespaces.has(Namespaces::MOUNT) {
            // Its processes are seen, and ended, by a procfs of its own, which only a mount namespace can have.
            if own.pid == Demand::Required {
                let why = "it needs a procfs of its own, and that namespaces.mount";
                return Err(ResolveError::Unavailable(vec![(layer::PID_NAMESPACE, why.into())]));
            }
            namespaces.0 &= !Namespaces::PID;
        }
        let mut workspace = self.workspace(request, host)?;
        let extra = within(self.extra(request)?, workspace.as_mut())?;
        let rooted = has(layer::FILESYSTEM, self.filesystem.demand)
            && namespaces.has(Namespaces::MOUNT)
            && namespaces.has(Namespaces::PID);
        let restricts = has(layer::LANDLOCK, self.landlock.demand);
        if !rooted && (request.workspace.is_some() || (!restricts && !extra.is_empty())) {
            let what = "a directory of the host's, having no file system of the session's own".into();
            return Err(ResolveError::Denied { what });
        }
        let root = if rooted { Some(self.root(&workspace, &extra, host)?) } else { None };
        let landlock = restricts.then(|| self.landlock(root.as_ref(), workspace.as_ref(), &extra));
        let seccomp = has(layer::SECCOMP, self.seccomp.demand).then(|| self.seccomp());
        let (inside_uid, inside_gid) = if user { (self.user.uid, self.user.gid) } else { (0, 0) };
        Ok(Isolation {
            ids: if user { self.ids(workspace.as_ref(), &extra, host)? } else { Ids::Own },
            namespaces,
            inside_uid,
            inside_gid,
            nested_namespaces: user && own.nested,
            hostname: if namespaces.has(Namespaces::UTS) { own.hostname.clone().into() } else { Vec::new() },
            root,
            landlock,
            seccomp,
        })
    }

    /// A foreign id could not use a caller's own files: there the session's user is the caller.
    fn ids(
        &self,
        workspace: Option<&Workspace>,
        extra: &[(String, bool)],
        host: &HostView<'_>,
    ) -> Result<Ids, ResolveError> {
        if self.user.ids == 0 {
            return Ok(Ids::Own);
        }
        let own = &self.filesystem;
        let written =
            own.writable.iter().chain(extra.iter().filter(|(_, w)| *w).map(|(path, _)| path)).next();
        let mut read = own.rootfs.iter().chain(&own.read_only).chain(extra.iter().map(|(path, _)| path));
        let foreign = "a user of the session's own could not use";
        let why = if workspace.is_some_and(|workspace| !workspace.source.is_empty()) {
            format!("the workspace's files belong to the caller, {foreign} them")
        } else if let Some(path) = written.or_else(|| read.find(|path| !(host.is_public)(path))) {
            format!("{foreign} {path} of the host")
        } else if let Some((_, why)) = host.missing.iter().find(|(name, _)| *name == l1::USER) {
            why.clone()
        } else if !host.id_ranges {
            "this user has no range of ids (subuid(5), subgid(5), newuidmap)".into()
        } else {
            return Ok(Ids::Range(self.user.ids));
        };
        match self.user.demand {
            Demand::Required => Err(ResolveError::Unavailable(vec![(l1::USER, why)])),
            Demand::BestEffort | Demand::Off => Ok(Ids::Own),
        }
    }

    fn root(
        &self,
        workspace: &Option<Workspace>,
        extra: &[(String, bool)],
        host: &HostView<'_>,
    ) -> Result<Root, ResolveError> {
        let own = &self.filesystem;
        let home =
            workspace.as_ref().map_or("/tmp".into(), |w| String::from_utf8_lossy(&w.target).into_owned());
        let text = |text: String| Fill::File(text.into_bytes());
        let tmpfs = |size, exec| Fill::Tmpfs { size, inodes: own.inodes, exec };
        let mut mounts: Vec<(String, Fill, bool)> = vec![
            ("/tmp".into(), tmpfs(own.tmp_size, own.exec_tmp), false),
            ("/run".into(), tmpfs(own.run_size, false), false),
            ("/dev".into(), Fill::Dev { size: own.shm_size }, false),
            ("/proc".into(), Fill::Proc, false),
            ("/var/tmp".into(), Fill::Link(b"/tmp".to_vec()), false),
            ("/var/run".into(), Fill::Link(b"/run".to_vec()), false),
            ("/etc/passwd".into(), text(files::passwd(self, &home)), false),
            ("/etc/group".into(), text(files::group(self)), false),
            ("/etc/hostname".into(), text(format!("{}\n", self.namespaces.hostname)), false),
        ];
        // On the host's network its names are the session's.
        for (path, made) in [("/etc/hosts", files::hosts(self)), ("/etc/resolv.conf", String::new())] {
            let shared = (self.network.mode == NetworkMode::Host).then(|| follow(path, host)).flatten();
            mounts.push((
                path.into(),
                shared.map_or_else(|| text(made), |from| Fill::Copy(from.into())),
                false,
            ));
        }
        for path in &own.system {
            self.system(path, host, &mut mounts);
        }
        for path in &own.copy {
            if let Some(fill) = self.copy(path, host) {
                mounts.push((path.clone(), fill, true));
            }
        }
        let read_only = own.read_only.iter().map(|path| (path, false));
        let writable = own.writable.iter().map(|path| (path, true));
        for (path, writable) in read_only.chain(writable).chain(extra.iter().map(|(path, w)| (path, *w))) {
            if (host.look)(path) == Found::Absent {
                return Err(ResolveError::Absent { path: path.clone() });
            }
            let source = path.clone().into_bytes();
            let fill = if writable { Fill::ReadWrite(source) } else { Fill::ReadOnly(source) };
            mounts.retain(|(target, ..)| target != path);
            mounts.push((path.clone(), fill, false));
        }
        // A parent before what is in it.
        mounts.sort_by(|(a, ..), (b, ..)| a.split('/').cmp(b.split('/')));
        let mounts = mounts.into_iter().map(|(target, fill, optional)| Mount {
            target: target.into(),
            fill,
            optional,
        });
        Ok(Root {
            mounts: mounts.collect(),
            workspace: workspace.clone(),
            processes_only: own.processes_only,
        })
    }

    fn source(&self, path: &str) -> String {
        format!("{}{path}", self.filesystem.rootfs.as_deref().unwrap_or_default())
    }

    fn system(&self, path: &str, host: &HostView<'_>, into: &mut Vec<(String, Fill, bool)>) {
        let source = self.source(path);
        let view = |source: &str| match self.filesystem.view {
            View::Overlay => Fill::View(source.into()),
            View::Bind => Fill::ReadOnly(source.into()),
        };
        match (host.look)(&source) {
            Found::Absent => {}
            Found::Link(target) => into.push((path.into(), Fill::Link(target.into()), true)),
            Found::File => into.push((path.into(), Fill::ReadOnly(source.into()), true)),
            Found::Directory => {
                into.push((path.into(), view(&source), true));
                if self.filesystem.view == View::Bind {
                    return;
                }
                let below =
                    host.submounts.iter().filter(|mount| **mount != source && is_beneath(mount, &source));
                for mount in below.collect::<BTreeSet<_>>() {
                    let target = format!("{path}{}", &mount[source.len()..]);
                    let fill = match (host.look)(mount) {
                        Found::Directory => view(mount),
                        Found::File => Fill::ReadOnly(mount.clone().into()),
                        Found::Link(_) | Found::Absent => continue,
                    };
                    into.push((target, fill, true));
                }
            }
        }
    }

    fn copy(&self, path: &str, host: &HostView<'_>) -> Option<Fill> {
        let source = self.source(path);
        if let Found::Link(target) = (host.look)(&source) {
            let shown = join(path, &target);
            if self.filesystem.system.iter().any(|system| is_beneath(&shown, system)) {
                return Some(Fill::Link(target.into()));
            }
        }
        follow(&source, host).map(|source| Fill::Copy(source.into()))
    }

    fn landlock(
        &self,
        root: Option<&Root>,
        workspace: Option<&Workspace>,
        extra: &[(String, bool)],
    ) -> Landlock {
        const READ: u32 = Access::READ;
        const CHANGE: u32 = Access::READ | Access::WRITE;
        let own = &self.filesystem;
        let mut rules: Vec<(String, u32)> = Vec::new();
        let execute = |is: bool| if is { Access::EXECUTE } else { 0 };
        let proc_access = if self.namespaces.nested { CHANGE } else { READ };
        if root.is_some() {
            // The root holds what the session is shown and nothing else.
            rules.push(("/".into(), READ));
            rules.push(("/tmp".into(), CHANGE | execute(own.exec_tmp)));
            rules.push(("/run".into(), CHANGE));
        } else {
            rules.extend(own.system.iter().chain(&own.copy).map(|path| (path.clone(), READ)));
        }
        rules.push(("/proc".into(), proc_access));
        rules.push(("/dev".into(), CHANGE | Access::DEVICE));
        // The calls of message queues go by a mount of the kernel's own, which lies beneath no directory but this.
        rules.push(("/dev/mqueue".into(), CHANGE));
        rules.extend(self.landlock.execute.iter().map(|path| (path.clone(), READ | Access::EXECUTE)));
        rules.extend(own.read_only.iter().map(|path| (path.clone(), READ)));
        rules.extend(own.writable.iter().map(|path| (path.clone(), CHANGE)));
        rules.extend(
            extra.iter().map(|(path, writable)| (path.clone(), if *writable { CHANGE } else { READ })),
        );
        if let Some(workspace) = workspace {
            let access = if workspace.writable { CHANGE } else { READ } | execute(self.workspace.exec);
            rules.push((String::from_utf8_lossy(&workspace.target).into_owned(), access));
        }
        rules.sort();
        rules.dedup();
        Landlock {
            rules: rules
                .into_iter()
                .map(|(path, access)| PathRule { path: path.into(), access: Access(access) })
                .collect(),
            bind_ports: self.network.bind_ports.clone(),
            connect_ports: self.network.connect_ports.clone(),
            scoped: self.landlock.scoped,
        }
    }

    fn seccomp(&self) -> Seccomp {
        let own = &self.seccomp;
        let numbers = |names: &[String]| -> BTreeSet<u32> {
            names.iter().filter_map(|name| syscalls::number(name)).collect()
        };
        let (mut grouped, mut meant) = (BTreeSet::new(), numbers(&own.allow));
        for group in &own.groups {
            let members = syscalls::group(group).unwrap_or_default().iter();
            let into = if OPENING.contains(&group.as_str()) { &mut meant } else { &mut grouped };
            into.extend(members.filter_map(|name| syscalls::number(name)));
        }
        let mut refuse: BTreeSet<u32> =
            syscalls::refused(own.strict).into_iter().filter(|number| !meant.contains(number)).collect();
        refuse.extend(numbers(&own.refuse));
        grouped.extend(meant);
        let allow: BTreeSet<u32> = grouped.difference(&refuse).copied().collect();
        let family =
            |name: &String| FAMILIES.iter().find(|(known, _)| known == name).map(|(_, number)| *number);
        Seccomp {
            allow: allow.into_iter().collect(),
            refuse: refuse.into_iter().collect(),
            families: own.families.iter().filter_map(family).collect(),
            strict: own.strict,
        }
    }
}

/// The file that a path leads to, if there is one.
fn follow(path: &str, host: &HostView<'_>) -> Option<String> {
    const MOST_LINKS: usize = 8;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match (host.look)(&path) {
            Found::File => return Some(path),
            Found::Link(target) => path = join(&path, &target),
            Found::Directory | Found::Absent => return None,
        }
    }
    None
}

/// Where a link at `path` leads to, without `.` and `..`.
fn join(path: &str, target: &str) -> String {
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let start = if target.starts_with('/') { "" } else { parent };
    let mut parts: Vec<&str> = Vec::new();
    for part in start.split('/').chain(target.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}
