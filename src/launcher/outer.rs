//! The one user namespace that a zygote lives in, from which each session's own is made.
//!
//! ```text
//! the host's ──► outer: the user, and the user's range of ids, each at its own number ──► one a session
//! ```
//!
//! The zygote makes it as the session's user, so that it belongs to that user, whether root started the launcher or
//! not; from then on both cases are one. It maps no id to another: in it the zygote has `CAP_SETUID` and `CAP_SETGID`
//! over ids that are the user's anyway, and writes the maps of sessions without asking anybody.
//!
//! Only its maps take a privilege that the user has not. A launcher with `CAP_SETUID` and `CAP_SETGID` writes them
//! itself, in a child that takes the user's effective id for it (the namespace is then its own, and the file of maps
//! too). Any other has `newuidmap` and `newgidmap` do it, which look into subuid(5) and subgid(5). They gain nothing
//! under `no_new_privs`, and a zygote may have to be made anew: so a launcher without privilege, which has nothing
//! else to gain, goes without, and its zygote sets it.

use super::ceiling::{Ceiling, Range};
use super::protocol::HostIds;
use crate::host::{self, ID_MAPPERS};
use crate::layers::capabilities;
use crate::sys::{clone, process, raw};
use nix::unistd::Uid;
use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long the maps may take: `newuidmap` may ask a directory service who the user is.
pub const MAP_BOUND: Duration = Duration::from_secs(4);

/// Has the maps of process `pid`'s user namespace written, and looks whether they are there.
///
/// # Errors
/// Why sessions have no ids of their own.
pub fn map(pid: i32, ceiling: &Ceiling) -> Result<(), HostIds> {
    let ranges = ceiling.ranges().ok_or(HostIds::NoRange)?;
    let users = [(ceiling.uid(), 1), (ranges.uids.first, ranges.uids.count)];
    let groups = [(ceiling.gid(), 1), (ranges.gids.first, ranges.gids.count)];
    if capabilities::can_map_ids() {
        write_in_child(pid, ceiling.uid(), &[("uid_map", users), ("gid_map", groups)])
            .map_err(|_| HostIds::Refused)?;
    } else {
        let [Some(of_users), Some(of_groups)] = ID_MAPPERS.map(host::id_mapper) else {
            return Err(HostIds::NoProgram);
        };
        // Side by side: each takes some milliseconds.
        let both = [start(of_users, pid, users), start(of_groups, pid, groups)];
        let ended = both.map(|child| child.and_then(end));
        ended.into_iter().collect::<io::Result<()>>().map_err(|_| HostIds::Refused)?;
    }
    let is_so = |name: &str, own: u32, range: Range| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let mut numbers: Vec<Vec<u32>> = text
            .lines()
            .map(|line| line.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect())
            .collect();
        let mut wanted = vec![vec![own, own, 1], vec![range.first, range.first, range.count]];
        numbers.sort();
        wanted.sort();
        numbers == wanted
    };
    let written =
        is_so("uid_map", ceiling.uid(), ranges.uids) && is_so("gid_map", ceiling.gid(), ranges.gids);
    if written { Ok(()) } else { Err(HostIds::Refused) }
}

fn start(program: &str, pid: i32, extents: [(u32, u32); 2]) -> io::Result<i32> {
    let numbers = extents.into_iter().flat_map(|(first, count)| [first, first, count]);
    let child = Command::new(program)
        .arg(pid.to_string())
        .args(numbers.map(|number| number.to_string()))
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(child.id().cast_signed())
}

/// The end of a child, which must be a good one.
fn end(pid: i32) -> io::Result<()> {
    match process::ended_within(pid, MAP_BOUND) {
        Some(0) => Ok(()),
        Some(_) => Err(io::Error::from_raw_os_error(libc::EPERM)),
        None => {
            // Its real user is the launcher's. Reaped where the launcher waits for whatever ends.
            process::kill(pid, libc::SIGKILL).ok();
            Err(io::Error::from_raw_os_error(libc::ETIMEDOUT))
        }
    }
}

fn write_in_child(pid: i32, user: u32, maps: &[(&str, [(u32, u32); 2])]) -> io::Result<()> {
    match clone::fork_single_threaded() {
        Ok(0) => raw::exit(i32::from(write(pid, user, maps).is_err())),
        Ok(child) => end(child),
        Err(errno) => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// In the child. With root's real id kept, what may be effective stays permitted.
fn write(pid: i32, user: u32, maps: &[(&str, [(u32, u32); 2])]) -> io::Result<()> {
    nix::unistd::seteuid(Uid::from_raw(user))?;
    capabilities::raise_mappers()?;
    for (name, extents) in maps {
        let text: String =
            extents.iter().map(|(first, count)| format!("{first} {first} {count}\n")).collect();
        std::fs::write(format!("/proc/{pid}/{name}"), text)?;
    }
    Ok(())
}
