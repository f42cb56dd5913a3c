//! Reads a process of a session back from `/proc` and compares it with the plan.
//!
//! The daemon does this to a probe process, started as every command of the session is: who looks is not who
//! applied. Of the environment only the keys leave this file.

mod isolation;
mod judge;
mod witness;

pub use judge::{judge, judge_user};
pub use witness::Witnessed;

use crate::sys::privilege::Sets;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Longest part of a `/proc` text that is read, bytes.
const MAX_TEXT: u64 = 64 * 1024;
/// Most environment bytes that are read; the kernel allows a process less with an 8 MiB stack.
const MAX_ENVIRON: u64 = 8 * 1024 * 1024;
/// Width of the name column of `/proc/<pid>/limits`.
const LIMIT_NAME: usize = 25;
/// Kinds of namespaces, as in `/proc/<pid>/ns`.
const KINDS: [&str; 7] = ["user", "mnt", "pid", "ipc", "uts", "cgroup", "net"];

/// A process as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Its process id.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// Its process group.
    pub pgid: i32,
    /// Its kernel session.
    pub sid: i32,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// Real, effective, saved and file system user.
    pub uids: Vec<u32>,
    /// Group likewise.
    pub gids: Vec<u32>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capabilities.
    pub capabilities: Sets,
    /// 0 without seccomp, 1 strict, 2 by filters.
    pub seccomp_mode: u32,
    /// How many filters.
    pub seccomp_filters: u32,
    /// Working directory, below its root.
    pub cwd: PathBuf,
    /// Root directory.
    pub root: PathBuf,
    /// By kind: the inodes of its namespace and of the observer's.
    pub namespaces: BTreeMap<String, (u64, u64)>,
    /// First id inside, first id outside as the observer sees it, how many.
    pub uid_map: Vec<[u32; 3]>,
    /// Likewise of groups.
    pub gid_map: Vec<[u32; 3]>,
    /// `/proc/<pid>/mountinfo`.
    pub mountinfo: String,
    /// Soft and hard limits by the kernel's names; `u64::MAX` is no limit.
    pub limits: BTreeMap<String, (u64, u64)>,
    /// Open descriptors.
    pub fds: BTreeSet<i32>,
    /// Keys of its environment.
    pub environ_keys: BTreeSet<String>,
}

/// Reads process `pid` back. The caller must be allowed to ptrace it.
///
/// # Errors
/// The kernel's; `InvalidData` where a text of `/proc` has not the form of proc(5).
pub fn observe(pid: i32) -> io::Result<Observed> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let text = |name: &str| -> io::Result<String> {
        let mut text = String::new();
        std::fs::File::open(directory.join(name))?.take(MAX_TEXT).read_to_string(&mut text)?;
        Ok(text)
    };
    let (status, stat) = (text("status")?, text("stat")?);
    // The name in parentheses may hold anything, so count from its end: state, parent, group, session.
    let after_name = stat.rsplit_once(')').ok_or_else(malformed)?.1;
    let mut ids =
        after_name.split_ascii_whitespace().skip(1).map(|field| field.parse().map_err(|_| malformed()));
    let mut id = || ids.next().ok_or_else(malformed)?;
    let (parent, pgid, sid) = (id()?, id()?, id()?);
    let number = |name: &str| match field(&status, name) {
        Ok(value) => value.trim().parse().map_err(|_| malformed()),
        // `Seccomp_filters` came with 5.9; a kernel without seccomp has neither.
        Err(_) => Ok(0),
    };
    Ok(Observed {
        pid,
        parent,
        pgid,
        sid,
        no_new_privs: field(&status, "NoNewPrivs")?.trim() == "1",
        uids: numbers(field(&status, "Uid")?)?,
        gids: numbers(field(&status, "Gid")?)?,
        groups: numbers(field(&status, "Groups")?)?,
        capabilities: sets(&status)?,
        seccomp_mode: number("Seccomp")?,
        seccomp_filters: number("Seccomp_filters")?,
        cwd: std::fs::read_link(directory.join("cwd"))?,
        root: std::fs::read_link(directory.join("root"))?,
        namespaces: namespaces(&directory)?,
        uid_map: id_map(&text("uid_map")?)?,
        gid_map: id_map(&text("gid_map")?)?,
        mountinfo: text("mountinfo")?,
        limits: parse_limits(&text("limits")?)?,
        fds: descriptors(&directory)?,
        environ_keys: environment(&directory, pid, after_name)?,
    })
}

impl Observed {
    /// The same, with user, groups, capabilities and id maps of process `pid`: of a session whose other evidence is
    /// known already, its init's. These are to be seen of a process that nobody may ptrace.
    ///
    /// # Errors
    /// As [`observe`].
    pub fn with_ids_of(&self, pid: i32) -> io::Result<Self> {
        let text = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
        let status = text("status")?;
        Ok(Self {
            uids: numbers(field(&status, "Uid")?)?,
            gids: numbers(field(&status, "Gid")?)?,
            groups: numbers(field(&status, "Groups")?)?,
            capabilities: sets(&status)?,
            uid_map: id_map(&text("uid_map")?)?,
            gid_map: id_map(&text("gid_map")?)?,
            ..self.clone()
        })
    }
}

fn sets(status: &str) -> io::Result<Sets> {
    let set = |name: &str| u64::from_str_radix(field(status, name)?.trim(), 16).map_err(|_| malformed());
    Ok(Sets {
        inheritable: set("CapInh")?,
        permitted: set("CapPrm")?,
        effective: set("CapEff")?,
        bounding: set("CapBnd")?,
        ambient: set("CapAmb")?,
    })
}

/// `fd` is open to the process's own user alone; `fdinfo` (Linux 5.14) to all who may ptrace it.
fn descriptors(directory: &Path) -> io::Result<BTreeSet<i32>> {
    let entries = match std::fs::read_dir(directory.join("fd")) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            std::fs::read_dir(directory.join("fdinfo"))
        }
        other => other,
    };
    let number = |entry: io::Result<std::fs::DirEntry>| {
        entry?.file_name().to_str().and_then(|name| name.parse().ok()).ok_or_else(malformed)
    };
    entries?.map(number).collect()
}

/// `environ` likewise: to others the process's memory says what the kernel put there. `stat` is what follows the name.
fn environment(directory: &Path, pid: i32, stat: &str) -> io::Result<BTreeSet<String>> {
    match std::fs::File::open(directory.join("environ")) {
        Ok(file) => keys(file.take(MAX_ENVIRON)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // Fields 50 and 51 of proc_pid_stat(5); the first here is the third.
            let mut bounds = stat.split_ascii_whitespace().skip(47).map(str::parse);
            let (Some(Ok(start)), Some(Ok(end))) = (bounds.next(), bounds.next()) else {
                return Err(malformed());
            };
            if start == 0 || start > end {
                return Err(error);
            }
            keys(crate::sys::memory::OfProcess::new(pid, start, end).take(MAX_ENVIRON))
        }
        Err(error) => Err(error),
    }
}

fn malformed() -> io::Error {
    io::Error::from(io::ErrorKind::InvalidData)
}

fn field<'a>(status: &'a str, name: &str) -> io::Result<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    status.lines().find_map(value).ok_or_else(malformed)
}

fn numbers(text: &str) -> io::Result<Vec<u32>> {
    text.split_ascii_whitespace().map(|number| number.parse().map_err(|_| malformed())).collect()
}

fn namespaces(directory: &Path) -> io::Result<BTreeMap<String, (u64, u64)>> {
    let inode = |path: PathBuf| match std::fs::metadata(path) {
        Ok(found) => Ok(Some(found.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let mut found = BTreeMap::new();
    for kind in KINDS {
        let own = inode(directory.join("ns").join(kind))?;
        let observers = inode(Path::new("/proc/self/ns").join(kind))?;
        if let (Some(own), Some(observers)) = (own, observers) {
            found.insert(kind.to_owned(), (own, observers));
        }
    }
    Ok(found)
}

fn id_map(text: &str) -> io::Result<Vec<[u32; 3]>> {
    text.lines().map(|line| numbers(line)?.try_into().map_err(|_| malformed())).collect()
}

fn parse_limits(text: &str) -> io::Result<BTreeMap<String, (u64, u64)>> {
    let value = |text: Option<&str>| match text {
        Some("unlimited") => Ok(u64::MAX),
        Some(text) => text.parse().map_err(|_| malformed()),
        None => Err(malformed()),
    };
    text.lines()
        .skip(1)
        .map(|line| {
            let (name, values) = line.split_at_checked(LIMIT_NAME).ok_or_else(malformed)?;
            let mut values = values.split_ascii_whitespace();
            Ok((name.trim().to_owned(), (value(values.next())?, value(values.next())?)))
        })
        .collect()
}

/// The keys of an environment; its values pass through one wiped buffer and are not gathered.
fn keys(mut environ: impl Read) -> io::Result<BTreeSet<String>> {
    let mut buffer = Zeroizing::new(vec![0u8; 4096]);
    let (mut keys, mut key, mut in_key) = (BTreeSet::new(), Vec::new(), true);
    loop {
        let count = environ.read(&mut buffer)?;
        if count == 0 {
            return Ok(keys);
        }
        for byte in &buffer[..count] {
            match byte {
                b'=' if in_key => {
                    keys.insert(String::from_utf8_lossy(&key).into_owned());
                    in_key = false;
                }
                0 => {
                    key.clear();
                    in_key = true;
                }
                byte if in_key => key.push(*byte),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "evidence_tests.rs"]
mod tests;
