//! Whom a daemon that is started as root becomes: never a user that others use.

use super::show::Failure;
use crate::launcher::ceiling::Range;
use nix::unistd::{Gid, Uid, User, getegid, geteuid, getuid};
use std::collections::BTreeSet;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Uids that no distribution hands out: of these one is taken where there is no user `trl`.
const FREE_UIDS: std::ops::Range<u32> = 1_900_000_000..1_900_001_000;

/// The first of the ids that sessions of these have, for each so many; up to 1966535999.
const FREE_IDS: u32 = 1_901_000_000;
const IDS_OF_EACH: u32 = 65_536;

/// A user and its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// The user.
    pub uid: Uid,
    /// Its group.
    pub gid: Gid,
}

impl From<(u32, u32)> for Account {
    fn from((uid, gid): (u32, u32)) -> Self {
        Self { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) }
    }
}

/// Keeps two starts at the same moment from taking one uid: an abstract socket, which the kernel gives to one
/// process and takes back when it ends.
pub struct Claim(#[expect(dead_code, reason = "held, never used")] UnixListener);

/// Whether this process is root.
#[must_use]
pub fn is_root() -> bool {
    geteuid().is_root() || getuid().is_root()
}

/// Who is named: by `--user`, by passwd (`trl`), or by being the caller; nobody if root must look for a free
/// uid.
///
/// # Errors
/// A user that there is not, root itself, or `--user` given by somebody else than root.
pub fn named(user: Option<&str>, as_root: bool) -> Result<Option<Account>, Failure> {
    let own = Account { uid: geteuid(), gid: getegid() };
    let Some(user) = user else {
        return Ok(if as_root { known("trl")? } else { Some(own) });
    };
    let account = match user.parse::<u32>() {
        Ok(number) => {
            let uid = Uid::from_raw(number);
            let found = User::from_uid(uid)
                .map_err(|errno| Failure::text(format!("looking user {user} up: {errno}")))?;
            Account { uid, gid: found.map_or(Gid::from_raw(number), |found| found.gid) }
        }
        Err(_) => {
            known(user)?.ok_or_else(|| Failure::text(format!("--user {user}: there is no such user")))?
        }
    };
    if account.uid.is_root() || account.gid.as_raw() == 0 {
        return Err(Failure::text("--user: root and group 0 are not taken; name an ordinary user"));
    }
    if !as_root && account.uid != own.uid {
        return Err(Failure::text("--user: only root can change to another user"));
    }
    Ok(Some(account))
}

fn known(name: &str) -> Result<Option<Account>, Failure> {
    let found =
        User::from_name(name).map_err(|errno| Failure::text(format!("looking user {name} up: {errno}")))?;
    Ok(found
        .filter(|user| !user.uid.is_root() && user.gid.as_raw() != 0)
        .map(|user| Account { uid: user.uid, gid: user.gid }))
}

/// The account that is named, else the first free uid of [`FREE_UIDS`]: unknown to passwd, with no process.
///
/// # Errors
/// None is free.
pub fn choose(named: Option<Account>, as_root: bool) -> Result<(Account, Option<Claim>), Failure> {
    if let Some(account) = named {
        return Ok((account, None));
    }
    debug_assert!(as_root);
    let busy = busy_uids();
    for number in FREE_UIDS.filter(|number| !busy.contains(number)) {
        let uid = Uid::from_raw(number);
        if !matches!(User::from_uid(uid), Ok(None)) {
            continue;
        }
        let name = format!("trl-uid-{number}");
        let claimed = SocketAddr::from_abstract_name(name).and_then(|at| UnixListener::bind_addr(&at));
        // A name that is taken is a start at the same moment, or somebody's mischief: the next one then.
        if let Ok(listener) = claimed {
            let gid = Gid::from_raw(number);
            return Ok((Account { uid, gid }, Some(Claim(listener))));
        }
    }
    Err(Failure::text("no uid of 1900000000 to 1900000999 is free; name a user by --user"))
}

/// Whether `uid` is one that [`choose`] may have taken in an earlier life.
#[must_use]
pub fn is_of_range(uid: u32) -> bool {
    FREE_UIDS.contains(&uid)
}

fn busy_uids() -> BTreeSet<u32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()))
        .flat_map(|entry| real_and_effective(&entry.path()))
        .collect()
}

/// Every uid in a process's status; a process that is not dumpable has a directory that root owns.
fn real_and_effective(process: &std::path::Path) -> Vec<u32> {
    let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
    let mut uids: Vec<u32> = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .into_iter()
        .flat_map(str::split_ascii_whitespace)
        .filter_map(|uid| uid.parse().ok())
        .collect();
    uids.extend(std::fs::metadata(process).map(|found| found.uid()));
    uids
}

/// Host ids for sessions of `account`, first and how many: those of subuid(5) and subgid(5); else, where root chose
/// a uid that nobody has, as many ids that nobody has.
#[must_use]
pub fn id_ranges(account: Account, as_root: bool) -> Option<[(u32, u32); 2]> {
    let (uid, gid) = (account.uid.as_raw(), account.gid.as_raw());
    let is_range = |[(users, many_users), (groups, many_groups)]: &[(u32, u32); 2]| {
        let apart = |first, count, own| Range::new(first, count).is_some_and(|range| !range.has(own));
        apart(*users, *many_users, uid) && apart(*groups, *many_groups, gid)
    };
    crate::host::id_ranges(uid).filter(is_range).or_else(|| {
        let own = as_root && is_of_range(uid);
        own.then(|| [(FREE_IDS + (uid - FREE_UIDS.start) * IDS_OF_EACH, IDS_OF_EACH); 2])
    })
}
