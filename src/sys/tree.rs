//! Process trees: who descends from whom, and how all of it is ended, whatever it does meanwhile.
//!
//! A walk reads `/proc/<pid>/task/<tid>/children`, which is exact only for what cannot change: so what is found
//! is stopped first, and the walk is repeated until it finds nothing new (a process with a pending signal makes
//! no child: `copy_process` restarts). Then all of it gets SIGKILL. Each signal goes through a pidfd whose
//! parent was checked after it was opened, so a number that was given to a stranger meanwhile is left alone.

use super::process;
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

/// State letter and parent of a process, from `/proc/<pid>/stat`.
fn state_and_parent(pid: i32) -> Option<(u8, i32)> {
    let stat = super::proc::read(&format!("{pid}/stat")).ok()?;
    let after = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(after + 2..)?).ok()?;
    let mut fields = rest.split(' ');
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.next()?.parse().ok()?))
}

/// The parent of a process that can be seen.
#[must_use]
pub fn parent_of(pid: i32) -> Option<i32> {
    state_and_parent(pid).map(|(_, parent)| parent)
}

/// Whether the process exists and is no zombie.
#[must_use]
pub fn is_alive(pid: i32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != b'Z' && state != b'X')
}

fn children(pid: i32, into: &mut Vec<i32>) {
    for task in super::proc::numbers(&format!("{pid}/task")).unwrap_or_default() {
        if let Ok(list) = super::proc::read(&format!("{pid}/task/{task}/children")) {
            let list = String::from_utf8_lossy(&list);
            into.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
    }
}

/// All descendants of `root` and whose child each was seen as, leaving out the trees for which `skip` says so.
pub fn descendants(root: i32, skip: &dyn Fn(i32) -> bool) -> BTreeMap<i32, i32> {
    let mut found = BTreeMap::new();
    let mut queue = vec![root];
    while let Some(parent) = queue.pop() {
        let mut next = Vec::new();
        children(parent, &mut next);
        for pid in next {
            if !skip(pid) && found.insert(pid, parent).is_none() {
                queue.push(pid);
            }
        }
    }
    found
}

/// Signals `pid` if it still is the child of one of `parents`.
fn signal_child(pid: i32, signal: i32, parents: &dyn Fn(i32) -> bool) -> bool {
    let Ok(handle) = process::pidfd_open(pid) else {
        return false;
    };
    match state_and_parent(pid) {
        Some((state, parent)) if state != b'Z' && state != b'X' && parents(parent) => {
            process::pidfd_signal(&handle, signal).is_ok()
        }
        _ => false,
    }
}

/// Sends `signal`, then SIGCONT, to all descendants of `root`; yields how many got it.
pub fn signal_descendants(root: i32, signal: i32) -> u32 {
    let found = descendants(root, &|_| false);
    let is_parent = |pid| pid == root || found.contains_key(&pid);
    let mut delivered = 0;
    for pid in found.keys() {
        if signal_child(*pid, signal, &is_parent) {
            delivered += 1;
            if signal != libc::SIGSTOP && signal != libc::SIGKILL {
                signal_child(*pid, libc::SIGCONT, &is_parent);
            }
        }
    }
    delivered
}

/// What a kill did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Killed {
    /// Distinct processes that were sent SIGKILL.
    pub killed: u32,
    /// Whether nothing was left within the bound.
    pub complete: bool,
}

/// Ends all descendants of `root` but those under `skip`; `reap` is called between looks, for zombies of the
/// caller's own. Gives up after `bound`.
pub fn kill_descendants(
    root: i32,
    bound: Duration,
    skip: &dyn Fn(i32) -> bool,
    reap: &mut dyn FnMut(),
) -> Killed {
    let deadline = Instant::now() + bound;
    let mut killed = HashSet::new();
    loop {
        let mut stopped: HashSet<i32> = HashSet::new();
        loop {
            let found = descendants(root, skip);
            let is_parent = |pid| pid == root || found.contains_key(&pid);
            let mut news = false;
            for pid in found.keys().filter(|pid| is_alive(**pid)) {
                if stopped.insert(*pid) {
                    news |= signal_child(*pid, libc::SIGSTOP, &is_parent);
                }
            }
            if !news || Instant::now() > deadline {
                break;
            }
        }
        let found = descendants(root, skip);
        let is_parent = |pid| pid == root || found.contains_key(&pid);
        let targets: Vec<i32> = found.keys().copied().collect();
        for pid in targets {
            // A child of a process that was just killed has the subreaper for a parent: `root`, or one below it.
            if signal_child(pid, libc::SIGKILL, &is_parent) {
                killed.insert(pid);
            }
        }
        let mut pause = Duration::from_micros(50);
        for _ in 0..4 {
            reap();
            if !descendants(root, skip).keys().any(|pid| is_alive(*pid)) {
                reap();
                return Killed { killed: u32::try_from(killed.len()).unwrap_or(u32::MAX), complete: true };
            }
            std::thread::sleep(pause);
            pause *= 4;
        }
        if Instant::now() > deadline {
            return Killed { killed: u32::try_from(killed.len()).unwrap_or(u32::MAX), complete: false };
        }
    }
}

/// The real user of a process.
#[must_use]
pub fn owner(pid: i32) -> Option<u32> {
    let status = super::proc::read(&format!("{pid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_ascii_whitespace().next()?.parse().ok()
}

/// Ends every process with `mark` whose user is `ours`; yields how many there were and how many are left after `bound`.
pub fn kill_marked(mark: u64, ours: &dyn Fn(u32) -> bool, bound: Duration) -> (u32, u32) {
    let deadline = Instant::now() + bound;
    let mut seen = HashSet::new();
    loop {
        let mut found = super::mark::all(mark);
        found.retain(|pid| owner(*pid).is_some_and(ours));
        for signal in [libc::SIGSTOP, libc::SIGKILL] {
            for pid in &found {
                if let Ok(handle) = process::pidfd_open(*pid)
                    && super::mark::of_process(*pid) == Some(mark)
                    && owner(*pid).is_some_and(ours)
                {
                    seen.insert(*pid);
                    // It may have ended in between, which is what is wanted.
                    process::pidfd_signal(&handle, signal).ok();
                }
            }
        }
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        if found.is_empty() || Instant::now() > deadline {
            return (count(seen.len()), count(found.len()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether `ancestor` is above `pid`.
#[must_use]
pub fn descends_from(mut pid: i32, ancestor: i32) -> bool {
    for _ in 0..4096 {
        match state_and_parent(pid) {
            Some((_, parent)) if parent == ancestor => return true,
            Some((_, parent)) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}
