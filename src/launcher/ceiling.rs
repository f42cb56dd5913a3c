//! What a launcher may do at most, whatever its daemon says: fixed before the daemon gave root up and before it read
//! a client's first byte.
//!
//! It comes from two places. The arguments `UID GID MARK [UIDS GIDS]` are the word of whoever starts the daemon; the
//! ranges, `FIRST:COUNT`, are host ids for sessions. A launcher with privilege (root's, or one with file capabilities)
//! reads [`FILE`] besides: the operator's word, which only root can write, and which then decides alone. Its lines are
//! `key value`, `#` begins a comment, and what is not known is refused:
//!
//! ```text
//! user 1000                  # a user that sessions may be made for; the lines that follow are this user's
//! uids 1901000000 65536      # host ids of the user's sessions: first and how many
//! gids 1901000000 65536
//! path /srv/work             # directories of the host below which sessions may write; any number of these lines
//! ```
//!
//! A range belongs to one user alone, as in subuid(5): whoever is that user can take every id of it.

use crate::plan::{Fill, Ids, Namespaces, SessionPlan};
use crate::sys::mark;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The operator's word.
pub const FILE: &str = "/etc/trl/ceiling";
/// Longest file that is read, bytes.
const MAX_FILE: u64 = 64 * 1024;

/// Host ids: first and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub first: u32,
    /// How many, at least 1.
    pub count: u32,
}

impl Range {
    /// A range without 0 and the kernel's "nobody" (-1).
    #[must_use]
    pub fn new(first: u32, count: u32) -> Option<Self> {
        let end = first.checked_add(count)?;
        (first > 0 && count > 0 && end < u32::MAX).then_some(Self { first, count })
    }

    /// Whether it has that id.
    #[must_use]
    pub fn has(self, id: u32) -> bool {
        id.checked_sub(self.first).is_some_and(|at| at < self.count)
    }

    fn meets(self, other: Self) -> bool {
        self.has(other.first) || other.has(self.first)
    }

    fn parse(text: &str, between: char) -> Option<Self> {
        let (first, count) = text.split_once(between)?;
        Self::new(first.parse().ok()?, count.trim().parse().ok()?)
    }
}

/// Host ids of sessions. The session with the nth of the one has the nth of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranges {
    /// Users.
    pub uids: Range,
    /// Groups.
    pub gids: Range,
}

/// The bounds of one launcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ceiling {
    uid: u32,
    gid: u32,
    mark: u64,
    ranges: Option<Ranges>,
    /// Where sessions may write to the host; `None` leaves it to the rights of the user.
    paths: Option<Vec<Vec<u8>>>,
}

impl Ceiling {
    /// From the arguments `UID GID MARK [UIDS GIDS]`.
    #[must_use]
    pub fn parse(arguments: &[String]) -> Option<Self> {
        let (uid, gid, mark, ranges) = match arguments {
            [uid, gid, mark] => (uid, gid, mark, None),
            [uid, gid, mark, uids, gids] => {
                let (uids, gids) = (Range::parse(uids, ':')?, Range::parse(gids, ':')?);
                (uid, gid, mark, Some(Ranges { uids, gids }))
            }
            _ => return None,
        };
        let (uid, gid, mark) = (uid.parse().ok()?, gid.parse().ok()?, mark.parse().ok()?);
        let no_one = |id: u32| id == 0 || id == u32::MAX;
        let ceiling = Self { uid, gid, mark, ranges, paths: None };
        (!no_one(uid) && !no_one(gid) && mark::is_mark(mark) && ceiling.is_apart()).then_some(ceiling)
    }

    /// No session has the user's own ids among its own.
    fn is_apart(&self) -> bool {
        self.ranges.is_none_or(|ranges| !ranges.uids.has(self.uid) && !ranges.gids.has(self.gid))
    }

    /// Lowers it to what `text`, of the operator's file, says of its user.
    ///
    /// # Errors
    /// Which line is wrong, or that the user is not named.
    pub fn under(self, text: &str) -> Result<Self, String> {
        let stanzas = stanzas(text)?;
        let own = stanzas.into_iter().find(|stanza| stanza.user == self.uid);
        let own = own.ok_or_else(|| format!("user {} is not named", self.uid))?;
        let ranges = own.uids.zip(own.gids).map(|(uids, gids)| Ranges { uids, gids });
        let lowered = Self { ranges, paths: Some(own.paths), ..self };
        if lowered.is_apart() { Ok(lowered) } else { Err("a range has the user's own ids".into()) }
    }

    /// Whose processes a clean-up may end: the user's, and those of its sessions.
    #[must_use]
    pub fn owns(&self, uid: u32) -> bool {
        uid == self.uid || self.ranges.is_some_and(|ranges| ranges.uids.has(uid))
    }

    /// The user.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its group.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Host ids for sessions, if there are any.
    #[must_use]
    pub fn ranges(&self) -> Option<Ranges> {
        self.ranges
    }

    /// Whether this is the mark of its instance.
    #[must_use]
    pub fn is_mark(&self, mark: u64) -> bool {
        mark == self.mark
    }

    /// Whether a session may be made: the one user and group, the one mark, no privilege gained by `execve`, ids of its
    /// own only with a user namespace and never root's inside, and nothing of the host's to write to elsewhere.
    #[must_use]
    pub fn allows(&self, plan: &SessionPlan) -> bool {
        let isolation = &plan.isolation;
        let mapped = isolation.namespaces.has(Namespaces::USER);
        let ids = match isolation.ids {
            Ids::Own => true,
            Ids::Range(count) => mapped && count > 0 && isolation.inside_uid.checked_add(count).is_some(),
        };
        (plan.uid, plan.gid, plan.mark) == (self.uid, self.gid, self.mark)
            && plan.no_new_privileges
            && ids
            && (!mapped || (isolation.inside_uid != 0 && isolation.inside_gid != 0))
            && self.allows_paths(plan)
    }

    fn allows_paths(&self, plan: &SessionPlan) -> bool {
        let Some(allowed) = &self.paths else { return true };
        let Some(root) = &plan.isolation.root else { return true };
        let bound = root.mounts.iter().filter_map(|mount| match &mount.fill {
            Fill::ReadWrite(path) => Some(path),
            _ => None,
        });
        let workspace = root.workspace.iter().map(|workspace| &workspace.source);
        bound.chain(workspace.filter(|source| !source.is_empty())).all(|path| is_below_one(path, allowed))
    }
}

/// Whether `path`, as it is written, is one of `roots` or lies below one. It is opened without following links.
fn is_below_one(path: &[u8], roots: &[Vec<u8>]) -> bool {
    let is_plain = path.starts_with(b"/")
        && path[1..].split(|byte| *byte == b'/').all(|part| part != b"." && part != b"..");
    let is_below = |root: &Vec<u8>| {
        root == b"/"
            || path.strip_prefix(root.as_slice()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    };
    is_plain && roots.iter().any(is_below)
}

struct Stanza {
    user: u32,
    uids: Option<Range>,
    gids: Option<Range>,
    paths: Vec<Vec<u8>>,
}

fn stanzas(text: &str) -> Result<Vec<Stanza>, String> {
    let mut all: Vec<Stanza> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let wrong = |what: &str| format!("line {}: {what}", at + 1);
        let (key, value) = line.split_once(char::is_whitespace).ok_or_else(|| wrong("no value"))?;
        let value = value.trim();
        let range = || Range::parse(value, ' ').ok_or_else(|| wrong("not FIRST COUNT"));
        if key == "user" {
            let user =
                value.parse().ok().filter(|user| *user != 0).ok_or_else(|| wrong("not a user's number"))?;
            if all.iter().any(|other| other.user == user) {
                return Err(wrong("the user is named twice"));
            }
            all.push(Stanza { user, uids: None, gids: None, paths: Vec::new() });
            continue;
        }
        let (of, others) = all.split_last_mut().ok_or_else(|| wrong("before the first `user`"))?;
        let taken = |range: Range, own: fn(&Stanza) -> Option<Range>| {
            others.iter().filter_map(own).any(|other| other.meets(range))
        };
        match key {
            "uids" if of.uids.is_none() && !taken(range()?, |other| other.uids) => of.uids = Some(range()?),
            "gids" if of.gids.is_none() && !taken(range()?, |other| other.gids) => of.gids = Some(range()?),
            "uids" | "gids" => return Err(wrong("given twice, or meets another user's")),
            "path" if is_below_one(value.as_bytes(), &[b"/".to_vec()]) => {
                let path = value.trim_end_matches('/');
                of.paths.push(if path.is_empty() { b"/".to_vec() } else { path.into() });
            }
            "path" => return Err(wrong("not an absolute path without . and ..")),
            _ => return Err(wrong("no such key")),
        }
    }
    if all.iter().any(|stanza| stanza.uids.is_some() != stanza.gids.is_some()) {
        return Err("uids and gids come together".into());
    }
    Ok(all)
}

/// The operator's file, if there is one.
///
/// # Errors
/// It cannot be read, or others than root can write it or put another in its place.
pub fn read() -> io::Result<Option<String>> {
    read_at(Path::new(FILE), 0)
}

fn read_at(path: &Path, owner: u32) -> io::Result<Option<String>> {
    let open =
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match open {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let found = file.metadata()?;
    let refused = |what: &str| {
        Err(io::Error::other(format!("{}: {what}; only root may be able to write it", path.display())))
    };
    if !found.is_file() || found.uid() != owner || found.mode() & 0o022 != 0 {
        return refused("not a regular file of root's with mode 0644 or less");
    }
    for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().as_bytes().is_empty()) {
        let found = std::fs::symlink_metadata(above)?;
        let sticky = found.mode() & 0o1000 != 0;
        if !found.is_dir() || ![0, owner].contains(&found.uid()) || (found.mode() & 0o022 != 0 && !sticky) {
            return refused("others can put another in its place");
        }
    }
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE { refused("too long") } else { Ok(Some(text)) }
}

#[cfg(test)]
#[path = "ceiling_tests.rs"]
mod tests;
