//! A plan as bytes: little-endian, every list and text behind its length, every bound checked before anything is
//! kept. Whoever decodes holds more privilege than whoever encoded.

use super::{
    Access, Fill, Ids, Isolation, Landlock, Mount, Namespaces, PathRule, Rlimit, Root, Seccomp, SessionPlan,
    Workspace,
};

/// Longest path, bytes, without its NUL (`PATH_MAX` is 4096 with it).
pub const MAX_PATH: usize = 4095;
/// Longest content of a made file, bytes.
const MAX_CONTENT: usize = 16 * 1024;
/// Most entries of any list of a plan.
const MAX_ENTRIES: usize = 1024;

/// Appends the plan.
pub fn encode(plan: &SessionPlan, into: &mut Vec<u8>) {
    let out = &mut Writer(into);
    out.u32(plan.uid).u32(plan.gid).u64(plan.mark).u32(plan.umask).u32(plan.nproc);
    out.flag(plan.no_new_privileges).text(&plan.working_dir).text(&plan.shell);
    out.list(&plan.rlimits, |out, limit| {
        out.u32(limit.resource).u64(limit.soft).u64(limit.hard);
    });
    let isolation = &plan.isolation;
    out.u32(isolation.namespaces.0).u32(match isolation.ids {
        Ids::Own => 0,
        Ids::Range(count) => count,
    });
    out.u32(isolation.inside_uid).u32(isolation.inside_gid).flag(isolation.nested_namespaces);
    out.text(&isolation.hostname);
    out.option(isolation.root.as_ref(), root);
    out.option(isolation.landlock.as_ref(), landlock);
    out.option(isolation.seccomp.as_ref(), |out, seccomp| {
        out.list(&seccomp.allow, |out, number| {
            out.u32(*number);
        });
        out.list(&seccomp.refuse, |out, number| {
            out.u32(*number);
        });
        out.list(&seccomp.families, |out, family| {
            out.u32(u32::from(*family));
        });
        out.flag(seccomp.strict);
    });
}

fn root(out: &mut Writer<'_>, root: &Root) {
    out.list(&root.mounts, |out, mount| {
        out.text(&mount.target).flag(mount.optional);
        match &mount.fill {
            Fill::ReadOnly(source) => out.u8(1).text(source),
            Fill::View(source) => out.u8(2).text(source),
            Fill::ReadWrite(source) => out.u8(3).text(source),
            Fill::Copy(source) => out.u8(4).text(source),
            Fill::File(content) => out.u8(5).text(content),
            Fill::Link(to) => out.u8(6).text(to),
            Fill::Tmpfs { size, inodes, exec } => out.u8(7).u64(*size).u64(*inodes).flag(*exec),
            Fill::Proc => out.u8(8),
            Fill::Dev { size } => out.u8(9).u64(*size),
        };
    });
    out.option(root.workspace.as_ref(), |out, space| {
        out.text(&space.target).text(&space.source).flag(space.overlay).flag(space.writable).flag(space.exec);
        out.u64(space.size).u64(space.inodes);
        out.list(&space.protect, |out, entry| {
            out.text(entry);
        });
    });
    out.flag(root.processes_only);
}

fn landlock(out: &mut Writer<'_>, landlock: &Landlock) {
    out.list(&landlock.rules, |out, rule| {
        out.text(&rule.path).u32(rule.access.0);
    });
    for ports in [&landlock.bind_ports, &landlock.connect_ports] {
        out.option(ports.as_ref(), |out, ports| {
            out.list(ports, |out, port| {
                out.u32(u32::from(*port));
            });
        });
    }
    out.flag(landlock.scoped);
}

/// Reads a plan that fills `bytes` to its last byte.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<SessionPlan> {
    let read = &mut Reader(bytes);
    let mut plan = SessionPlan {
        uid: read.u32()?,
        gid: read.u32()?,
        mark: read.u64()?,
        umask: read.u32()?,
        nproc: read.u32()?,
        no_new_privileges: read.flag()?,
        working_dir: read.path()?,
        shell: read.path()?,
        rlimits: read
            .list(|read| Some(Rlimit { resource: read.u32()?, soft: read.u64()?, hard: read.u64()? }))?,
        isolation: Isolation::default(),
    };
    let isolation = &mut plan.isolation;
    isolation.namespaces = Namespaces(read.u32().filter(|flags| flags & !Namespaces::ALL == 0)?);
    isolation.ids = match read.u32()? {
        0 => Ids::Own,
        count => Ids::Range(count),
    };
    isolation.inside_uid = read.u32()?;
    isolation.inside_gid = read.u32()?;
    isolation.nested_namespaces = read.flag()?;
    isolation.hostname = read.text(64)?;
    isolation.root = read.option(|read| {
        Some(Root {
            mounts: read.list(mount)?,
            workspace: read.option(workspace)?,
            processes_only: read.flag()?,
        })
    })?;
    isolation.landlock = read.option(|read| {
        Some(Landlock {
            rules: read.list(|read| {
                let path = read.path()?;
                Some(PathRule { path, access: Access(read.u32().filter(|bits| bits & !Access::ALL == 0)?) })
            })?,
            bind_ports: read.option(|read| read.list(Reader::u16))?,
            connect_ports: read.option(|read| read.list(Reader::u16))?,
            scoped: read.flag()?,
        })
    })?;
    isolation.seccomp = read.option(|read| {
        Some(Seccomp {
            allow: read.list(Reader::u32)?,
            refuse: read.list(Reader::u32)?,
            families: read.list(Reader::u16)?,
            strict: read.flag()?,
        })
    })?;
    read.0.is_empty().then_some(plan)
}

fn mount(read: &mut Reader<'_>) -> Option<Mount> {
    let (target, optional) = (read.path()?, read.flag()?);
    let fill = match read.u8()? {
        1 => Fill::ReadOnly(read.path()?),
        2 => Fill::View(read.path()?),
        3 => Fill::ReadWrite(read.path()?),
        4 => Fill::Copy(read.path()?),
        5 => Fill::File(read.text(MAX_CONTENT)?),
        6 => Fill::Link(read.path()?),
        7 => Fill::Tmpfs { size: read.u64()?, inodes: read.u64()?, exec: read.flag()? },
        8 => Fill::Proc,
        9 => Fill::Dev { size: read.u64()? },
        _ => return None,
    };
    Some(Mount { target, fill, optional })
}

fn workspace(read: &mut Reader<'_>) -> Option<Workspace> {
    Some(Workspace {
        target: read.path()?,
        source: read.path()?,
        overlay: read.flag()?,
        writable: read.flag()?,
        exec: read.flag()?,
        size: read.u64()?,
        inodes: read.u64()?,
        protect: read.list(Reader::path)?,
    })
}

struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }
    fn flag(&mut self, value: bool) -> &mut Self {
        self.u8(u8::from(value))
    }
    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    fn length(&mut self, length: usize) -> &mut Self {
        self.u32(u32::try_from(length).unwrap_or(u32::MAX))
    }
    fn text(&mut self, bytes: &[u8]) -> &mut Self {
        self.length(bytes.len()).0.extend_from_slice(bytes);
        self
    }
    fn list<T>(&mut self, entries: &[T], each: impl Fn(&mut Self, &T)) {
        self.length(entries.len());
        for entry in entries {
            each(self, entry);
        }
    }
    fn option<T>(&mut self, value: Option<&T>, write: impl Fn(&mut Self, &T)) {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }
    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }
    fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().map(u32::from_le_bytes).ok()
    }
    fn u16(&mut self) -> Option<u16> {
        self.u32()?.try_into().ok()
    }
    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().map(u64::from_le_bytes).ok()
    }
    fn text(&mut self, most: usize) -> Option<Vec<u8>> {
        let length = self.u32()? as usize;
        if length > most { None } else { Some(self.take(length)?.to_vec()) }
    }
    fn path(&mut self) -> Option<Vec<u8>> {
        self.text(MAX_PATH).filter(|path| !path.contains(&0))
    }
    fn list<T>(&mut self, each: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.u32()? as usize;
        if count > MAX_ENTRIES {
            return None;
        }
        (0..count).map(|_| each(self)).collect()
    }
    fn option<T>(&mut self, read: impl Fn(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.flag()? { Some(Some(read(self)?)) } else { Some(None) }
    }
}
