//! How TRL is deployed: the daemon that runs where that tells something, else the flags that it would be given.

use super::{Line, State};
use crate::cli::args::{DoctorArgs, ServeArgs};
use crate::cli::client::{Client, ClientError};
use crate::cli::runtime_env;
use crate::cli::user::{Account, is_root};
use crate::secret::Environment;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

const AREA: &str = "deployment";
/// A timeout beyond this is none that anybody meant.
const LONG_TIMEOUT_S: f64 = 3600.0;
/// More sessions than most hosts have memory for.
const MANY_SESSIONS: u64 = 4096;
/// A value that is shorter stands in any log by chance.
const SHORTEST_VALUE: usize = 6;
/// Of a log that is looked through, bytes.
const MAX_LOG: u64 = 256 << 20;

/// The check list.
pub(super) fn look(args: &DoctorArgs, account: Account, socket: &Path) -> Vec<Line> {
    let (daemon, mut lines) = Daemon::find(socket);
    lines.push(not_root(&args.serve, account, &daemon));
    let (line, values) = env_file(&args.serve, account);
    lines.push(line);
    lines.extend(at_socket(socket, account));
    lines.push(Line::ok(AREA, "http", "off: this version has none, so no token is needed"));
    lines.extend(logs(args, &values));
    lines.extend(limits(&args.serve, &daemon));
    lines.extend(binaries(&daemon));
    lines.extend(args.serve.workspace_roots.iter().map(|root| workspace_root(root)));
    lines
}

/// A directory that sessions may work in. What everybody can write there, everybody can have a session run.
fn workspace_root(root: &Path) -> Line {
    let (name, shown) = ("workspace root", root.display());
    match std::fs::metadata(root) {
        Ok(found) if !found.is_dir() => {
            Line::bad(AREA, name, State::Fail, format!("{shown} is no directory"), "name a directory")
        }
        Ok(found) if found.mode() & 0o002 != 0 => {
            let found = format!("{shown} has mode {:04o}: everybody can write it", found.mode() & 0o7777);
            Line::bad(AREA, name, State::Warn, found, "chmod o-w, and give it to the daemon's user")
        }
        Ok(_) => Line::ok(AREA, name, format!("{shown} is there, and not everybody can write it")),
        Err(error) => {
            Line::bad(AREA, name, State::Fail, format!("{shown}: {error}"), "make it, or leave it out")
        }
    }
}

/// What is known of the daemon at the socket.
#[derive(Default)]
struct Daemon {
    uid: Option<u32>,
    program: Option<PathBuf>,
    limits: Value,
}

impl Daemon {
    fn find(socket: &Path) -> (Self, Vec<Line>) {
        let name = "daemon";
        let shown = socket.display();
        let stream = match UnixStream::connect(socket) {
            Ok(stream) => stream,
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                let found = format!("{shown} is not the caller's to connect to");
                let remedy = "run trl doctor as root or as the daemon's user";
                return (Self::default(), vec![Line::bad(AREA, name, State::Warn, found, remedy)]);
            }
            Err(_) => {
                let found = format!("none at {shown}; the flags given here are looked at");
                return (Self::default(), vec![Line::ok(AREA, name, found)]);
            }
        };
        let peer = getsockopt(&stream, PeerCredentials).ok();
        let asked = Client::connect(socket).and_then(|mut client| client.call("system.info", &json!({})));
        let program = peer.and_then(|peer| std::fs::read_link(format!("/proc/{}/exe", peer.pid())).ok());
        let (limits, line) = match asked {
            Ok(mut info) => {
                let version = info["version"].as_str().unwrap_or("?").to_owned();
                let found = format!("version {version} answers at {shown}");
                let own = env!("CARGO_PKG_VERSION");
                let line = if version == own {
                    Line::ok(AREA, name, found)
                } else {
                    let remedy = format!("this program is {own}: restart the daemon after an update");
                    Line::bad(AREA, name, State::Warn, found, remedy)
                };
                (info["limits"].take(), line)
            }
            Err(ClientError::Connect { source, .. }) => {
                (Value::Null, Line::ok(AREA, name, format!("none at {shown} any more: {source}")))
            }
            Err(error) => {
                let remedy = "run trl doctor as root or as the daemon's user; else see the daemon's log";
                (Value::Null, Line::bad(AREA, name, State::Warn, error.to_string(), remedy))
            }
        };
        (Self { uid: peer.map(|peer| peer.uid()), program, limits }, vec![line])
    }
}

fn not_root(serve: &ServeArgs, account: Account, daemon: &Daemon) -> Line {
    let name = "not root";
    let remedy =
        "leave out --allow-root and TRL_ALLOW_ROOT; start it as an ordinary user, or as root with --user";
    match daemon.uid {
        Some(0) => Line::bad(AREA, name, State::Fail, "the daemon that runs is root", remedy),
        Some(uid) => Line::ok(AREA, name, format!("the daemon that runs has uid {uid}")),
        None if serve.boot.allow_root && is_root() => {
            Line::bad(AREA, name, State::Fail, "--allow-root lets the daemon keep root", remedy)
        }
        None => Line::ok(AREA, name, format!("a daemon would have uid {}", account.uid)),
    }
}

fn env_file(serve: &ServeArgs, account: Account) -> (Line, Environment) {
    let name = "env file";
    let Some(path) = &serve.boot.env_file else {
        return (Line::ok(AREA, name, "none given"), Environment::default());
    };
    let remedy = format!(
        "chown it to uid {} (or root), chmod 0600, and let nobody else write its directory",
        account.uid
    );
    match runtime_env::file(path, Some(account)) {
        Err(failure) => {
            (Line::bad(AREA, name, State::Fail, failure.to_string(), remedy), Environment::default())
        }
        Ok(values) => match untrusted_above(path, account.uid.as_raw()) {
            Some(found) => (Line::bad(AREA, name, State::Fail, found, remedy), values),
            None => (
                Line::ok(AREA, name, format!("{} is a file of the right owner and mode", path.display())),
                values,
            ),
        },
    }
}

fn at_socket(socket: &Path, account: Account) -> Vec<Line> {
    let name = "socket";
    let remedy =
        "stop the daemon, remove the socket's directory, and start it again: it makes both 0700 and 0600";
    let shown = socket.display();
    let bad = |found: String| Line::bad(AREA, name, State::Fail, found, remedy);
    let mode = |found: &Metadata| found.mode() & 0o7777;
    let Ok(found) = std::fs::symlink_metadata(socket) else {
        return vec![Line::ok(AREA, name, format!("{shown} is not there; it is made with mode 0600"))];
    };
    let is_trusted = |found: &Metadata| found.uid() == 0 || found.uid() == account.uid.as_raw() || !is_root();
    if !found.file_type().is_socket() {
        return vec![bad(format!("{shown} is no socket"))];
    }
    if mode(&found) & 0o177 != 0 || !is_trusted(&found) {
        return vec![bad(format!(
            "{shown} has mode {:04o} and belongs to uid {}",
            mode(&found),
            found.uid()
        ))];
    }
    let directory = socket.parent().and_then(|parent| std::fs::symlink_metadata(parent).ok());
    match directory {
        Some(found) if mode(&found) & 0o077 == 0 => {
            vec![Line::ok(AREA, name, format!("{shown} is 0600 in a directory of 0700"))]
        }
        Some(found) => vec![bad(format!("the directory of {shown} has mode {:04o}", mode(&found)))],
        None => vec![bad(format!("the directory of {shown} cannot be looked at"))],
    }
}

/// Whether logs hold a value of the env file. TRL writes none; who else writes there is not known.
fn logs(args: &DoctorArgs, values: &Environment) -> Vec<Line> {
    let name = "logs";
    if args.log.is_empty() {
        let found = "TRL writes no value, argv or output to its log; --log FILE looks through a file for the env file's";
        return vec![Line::ok(AREA, name, found)];
    }
    let of_file = |path: &PathBuf| {
        let shown = path.display();
        if values.is_empty() {
            let found = format!("{shown}: there is no value to look for");
            return Line::bad(AREA, name, State::Warn, found, "name the env file too: --env-file");
        }
        let mut bytes = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(MAX_LOG).read_to_end(&mut bytes));
        if let Err(error) = read {
            let remedy = "name a file that can be read";
            return Line::bad(AREA, name, State::Warn, format!("{shown}: {error}"), remedy);
        }
        let found: BTreeSet<&str> = values
            .keys()
            .filter(|key| values.get(key).is_some_and(|value| is_in(value.expose(), &bytes)))
            .collect();
        if found.is_empty() && bytes.len() as u64 == MAX_LOG {
            let found =
                format!("{shown}: no value in its first {} MiB; the rest was not looked at", MAX_LOG >> 20);
            return Line::bad(AREA, name, State::Warn, found, "split it, and name each part");
        }
        if found.is_empty() {
            return Line::ok(AREA, name, format!("{shown} holds no value of the env file"));
        }
        let keys = found.into_iter().collect::<Vec<_>>().join(", ");
        let remedy = "find what wrote it there, change the secret, and remove it from the log";
        Line::bad(AREA, name, State::Fail, format!("{shown} holds the value of {keys}"), remedy)
    };
    args.log.iter().map(of_file).collect()
}

fn is_in(value: &[u8], text: &[u8]) -> bool {
    value.len() >= SHORTEST_VALUE && text.windows(value.len()).any(|window| window == value)
}

fn limits(serve: &ServeArgs, daemon: &Daemon) -> [Line; 2] {
    let sessions = daemon.limits["max_sessions"].as_u64().unwrap_or(serve.max_sessions.into());
    let timeout = daemon.limits["default_timeout_s"].as_f64().unwrap_or(serve.default_timeout_s);
    let cap = if sessions <= MANY_SESSIONS {
        Line::ok(AREA, "session cap", format!("{sessions} sessions"))
    } else {
        let remedy = "set --max-sessions to what the host has memory for";
        Line::bad(AREA, "session cap", State::Warn, format!("{sessions} sessions"), remedy)
    };
    let bound = if timeout <= LONG_TIMEOUT_S {
        Line::ok(AREA, "default timeout", format!("{timeout} s"))
    } else {
        let remedy = "set --default-timeout-s; a command that needs more can ask for it";
        Line::bad(AREA, "default timeout", State::Warn, format!("{timeout} s"), remedy)
    };
    [cap, bound]
}

/// The programs, and all directories above them: whoever writes one of these is TRL.
fn binaries(daemon: &Daemon) -> Vec<Line> {
    let own = nix::unistd::geteuid().as_raw();
    let launcher = |program: &Path| program.with_file_name("trl-launcher");
    let mut programs: BTreeMap<PathBuf, u32> = BTreeMap::new();
    for (program, uid) in
        [(std::env::current_exe().ok(), own), (daemon.program.clone(), daemon.uid.unwrap_or(own))]
    {
        if let Some(program) = program {
            programs.entry(launcher(&program)).or_insert(uid);
            programs.entry(program).or_insert(uid);
        }
    }
    let remedy = "install the programs as root, mode 0755, in directories that root alone can write";
    let of_program = |(path, uid): (&PathBuf, &u32)| {
        let found = match std::fs::symlink_metadata(path) {
            Err(error) => Some(format!("{}: {error}", path.display())),
            Ok(found) => untrusted(path, &found, *uid, false).or_else(|| untrusted_above(path, *uid)),
        };
        match found {
            Some(found) => Line::bad(AREA, "programs", State::Fail, found, remedy),
            None => Line::ok(AREA, "programs", format!("{}: only its owner can write it", path.display())),
        }
    };
    programs.iter().map(of_program).collect()
}

/// Policy files that were loaded, hence trusted, and what is above them.
pub(super) fn policies(serve: &ServeArgs) -> Vec<Line> {
    let Some(directory) = &serve.policy_dir else {
        return vec![Line::ok(AREA, "policies", "those that TRL brings")];
    };
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.clone());
    let line = match untrusted_above(&absolute, nix::unistd::geteuid().as_raw()) {
        Some(found) => {
            let remedy =
                "keep policies in a directory below those that root or the daemon's user alone can write";
            Line::bad(AREA, "policies", State::Fail, found, remedy)
        }
        None => Line::ok(AREA, "policies", format!("{} and its files are trusted", directory.display())),
    };
    vec![line]
}

/// Why a file or directory is not in trusted hands. A directory like `/tmp`, in which everybody can make entries but
/// remove only their own, is trusted for what is in it already.
fn untrusted(path: &Path, found: &Metadata, uid: u32, sticky: bool) -> Option<String> {
    let shown = path.display();
    let mode = found.mode() & 0o7777;
    if mode & 0o022 != 0 && !(sticky && mode & 0o1000 != 0) {
        return Some(format!("{shown} has mode {mode:04o}: others can write it"));
    }
    (found.uid() != 0 && found.uid() != uid).then(|| format!("{shown} belongs to uid {}", found.uid()))
}

/// The same of every directory above `path`, links resolved.
fn untrusted_above(path: &Path, uid: u32) -> Option<String> {
    let parent = std::path::absolute(path).ok()?.parent()?.to_path_buf();
    let parent = match std::fs::canonicalize(&parent) {
        Ok(parent) => parent,
        Err(error) => return Some(format!("{}: {error}", parent.display())),
    };
    parent.ancestors().find_map(|directory| match std::fs::metadata(directory) {
        Ok(found) => untrusted(directory, &found, uid, true),
        Err(error) => Some(format!("{}: {error}", directory.display())),
    })
}
