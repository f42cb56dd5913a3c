//! TRL's own suite of attacks: what a hostile command would try first, tried from within a session of a policy.
//!
//! The program runs as a command of the session does, tries each entry of [`ALL`] in a child of its own with a bound,
//! and says what came of it, a line each. Whoever asked judges by the same list ([`Entry::is_held`]): an attack that
//! was not answered has not been stopped. Attacks do no harm where they succeed: they open and do not write, they
//! name processes and do not end them.
//!
//! What an attack takes of the host (the supervisor's process, files, sockets) is laid out by `trl verify` beforehand
//! and comes as arguments.

mod files;
mod list;
mod others;

pub use list::ALL;
pub use others::started;

use crate::sys::attempt;
use std::io::{self, Write as _};
use std::path::PathBuf;

/// Seconds that one attack may take.
const BOUND: u32 = 5;

/// What is tried, and what must come of it.
pub struct Entry {
    /// What it is about.
    pub group: &'static str,
    /// What is tried.
    pub name: &'static str,
    /// Whether it must be stopped.
    pub kind: Kind,
    run: fn(&Bait) -> i32,
}

/// What must come of an entry.
pub enum Kind {
    /// One of these error numbers, or a signal (`attempt::SIGNAL` and its number).
    Attack(&'static [i32]),
    /// Success: where that is denied too, what was denied besides says nothing.
    Control,
    /// Success, where the policy has sockets of the internet.
    InternetControl,
}

impl Entry {
    /// Whether `answer` is what must have come: an error number, 0 for success.
    #[must_use]
    pub fn is_held(&self, answer: i32) -> bool {
        match self.kind {
            Kind::Attack(stopped) => stopped.contains(&answer),
            Kind::Control | Kind::InternetControl => answer == 0,
        }
    }
    /// Its name in an answer.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}: {}", self.group, self.name)
    }
}

/// What is laid out on the host for attacks to reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bait {
    /// The supervisor's process id, as the host has it.
    pub supervisor: i32,
    /// When it started, in clock ticks: what tells it from another process of the same number.
    pub started: u64,
    /// A file that its user alone can read.
    pub file: PathBuf,
    /// The same in the host's `/dev/shm`.
    pub shared: PathBuf,
    /// The supervisor's socket.
    pub socket: PathBuf,
    /// The name of an abstract socket.
    pub abstract_name: String,
    /// A port of the host's loopback.
    pub port: u16,
    /// The key of a segment of shared memory.
    pub key: i32,
}

impl Bait {
    /// As arguments of a command.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let path = |path: &PathBuf| path.display().to_string();
        vec![
            self.supervisor.to_string(),
            self.started.to_string(),
            path(&self.file),
            path(&self.shared),
            path(&self.socket),
            self.abstract_name.clone(),
            self.port.to_string(),
            self.key.to_string(),
        ]
    }

    /// From them.
    #[must_use]
    pub fn parse(arguments: &[String]) -> Option<Self> {
        let [supervisor, started, file, shared, socket, abstract_name, port, key] = arguments else {
            return None;
        };
        Some(Self {
            supervisor: supervisor.parse().ok()?,
            started: started.parse().ok()?,
            file: file.into(),
            shared: shared.into(),
            socket: socket.into(),
            abstract_name: abstract_name.clone(),
            port: port.parse().ok()?,
            key: key.parse().ok()?,
        })
    }
}

/// The program; yields its exit code.
#[must_use]
pub fn run() -> i32 {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(bait) = Bait::parse(&arguments) else { return 2 };
    let mut out = io::stdout();
    for entry in ALL {
        let answer = attempt::in_child_within(BOUND, || (entry.run)(&bait));
        if writeln!(out, "{}={answer}", entry.key()).and_then(|()| out.flush()).is_err() {
            return 1;
        }
    }
    0
}

/// The error number of a result, 0 for success.
fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_order() {
        let keys: std::collections::BTreeSet<String> = ALL.iter().map(Entry::key).collect();
        assert_eq!(keys.len(), ALL.len(), "a name stands twice");
        assert!(keys.iter().all(|key| !key.contains('=') && !key.contains('\n')));
        let attacks = |entry: &&Entry| matches!(entry.kind, Kind::Attack(_));
        assert!(ALL.iter().filter(attacks).count() >= 60);
        for group in ALL.iter().map(|entry| entry.group) {
            let of_group = || ALL.iter().filter(|entry| entry.group == group);
            assert!(of_group().any(|entry| matches!(entry.kind, Kind::Control)), "{group} has no control");
            assert!(of_group().filter(attacks).count() >= 4, "{group} has few attacks");
        }
    }

    #[test]
    fn an_attack_that_succeeds_is_not_held() {
        for entry in ALL {
            let is_attack = matches!(entry.kind, Kind::Attack(_));
            assert_eq!(entry.is_held(0), !is_attack, "{}", entry.key());
            assert!(!entry.is_held(libc::EFAULT) && !entry.is_held(attempt::SIGNAL + libc::SIGALRM));
        }
    }

    #[test]
    fn bait_survives_its_arguments() {
        let bait = Bait { supervisor: 7, started: 9, port: 80, file: "/a b".into(), ..Bait::default() };
        assert_eq!(Bait::parse(&bait.arguments()), Some(bait));
        assert_eq!(Bait::parse(&[]), None);
    }
}
