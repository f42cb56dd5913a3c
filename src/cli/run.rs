//! `trl run` and `trl shell`: a daemon in a thread, a session, one command, and nothing left behind.

use super::args::{ExecOptions, OwnSession, RunArgs, ShellArgs};
use super::boot::{self, boot};
use super::client::{Client, ClientError};
use super::exec::{self, Start};
use super::place;
use super::serve::{host, own_files, start_log};
use super::show::{self, Failure};
use super::{args::BootArgs, policy, session};
use crate::daemon::config::Config;
use crate::daemon::workspace::Workspaces;
use crate::error::SysError;
use crate::sys::mark::PeerCheck;
use crate::sys::memory;
use nix::unistd::{AccessFlags, access};
use serde_json::{Map, Value, json};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// How long the daemon may take to listen, and to end what the command left.
const BOUND: Duration = Duration::from_secs(30);
/// How long anything may take at most: a week, as in the protocol.
const LONGEST_S: f64 = 604_800.0;

/// `trl run`.
///
/// # Errors
/// What TRL itself could not do.
pub fn run(args: &RunArgs, json: bool) -> Result<i32, Failure> {
    alone(&args.boot, &args.session, &args.exec, &args.argv, json)
}

/// `trl shell`: interactive if the caller is at a terminal. It has the caller's streams by pipes, no terminal.
///
/// # Errors
/// What TRL itself could not do.
pub fn shell(args: &ShellArgs, json: bool) -> Result<i32, Failure> {
    let interactive = std::io::stdin().is_terminal().then(|| "-i".to_owned());
    let argv: Vec<String> = std::iter::once(args.shell.clone()).chain(interactive).collect();
    let exec = ExecOptions { timeout: args.exec.timeout.or(Some(LONGEST_S)), ..args.exec.clone() };
    alone(&args.boot, &args.session, &exec, &argv, json)
}

fn alone(
    boot_args: &BootArgs,
    own: &OwnSession,
    exec: &ExecOptions,
    argv: &[String],
    json: bool,
) -> Result<i32, Failure> {
    start_log(boot_args, "warn")?;
    // What the caller's environment, directory and files have to say is read before root is given up and the
    // environment wiped.
    let env = memory::wiping(|| exec::environment(&exec.env))?;
    let directory = std::env::current_dir().ok();
    let policies = policy::load_with(own.policy_dir.as_deref(), &own.policy)?;
    let policy = policies.get(&own.policy).cloned().ok_or_else(|| Failure::text("the policy is gone"))?;
    let (extra_read_only, extra_writable) = (paths("--ro", &own.ro)?, paths("--rw", &own.rw)?);
    let limits = session::limits(&own.limits)?;
    let mut files = own_files(boot_args, own.policy_dir.as_deref());
    let (mut watched, asked_workspace) = (Vec::new(), std::cell::OnceCell::new());
    let settings = |config: &mut Config, place: &Place<'_>| {
        files.push(place.directory.to_path_buf());
        let user = (config.uid, config.gid).into();
        let chosen = place::choose(&policy, own.workspace, directory.as_deref(), user)?;
        if let Some(note) = &chosen.note {
            show::note(note);
        }
        watched = place::absent(&policy, &chosen);
        let workspaces = Workspaces::new(&chosen.roots, &files).map_err(Failure::text)?;
        workspaces.check_shown(&extra_read_only).map_err(Failure::text)?;
        workspaces.check_shown(&extra_writable).map_err(Failure::text)?;
        config.workspaces = workspaces;
        config.policies = policies;
        config.default_policy.clone_from(&own.policy);
        config.extra_read_only = extra_read_only;
        config.extra_writable = extra_writable;
        config.clients_operate = true;
        config.ttl = Duration::from_secs_f64(LONGEST_S);
        asked_workspace.set(chosen.workspace).ok();
        Ok(())
    };
    let code = with_daemon(boot_args, settings, |place| {
        let workspace = asked_workspace.get().cloned().unwrap_or_default();
        let asked = Asked { workspace, limits, directory: directory.clone(), cwd: exec.cwd.as_deref() };
        in_session(place.socket, &asked, (argv, env, exec.timeout), json)
    });
    for made in watched.iter().filter(|path| path.symlink_metadata().is_ok()) {
        show::note(&format!(
            "{} was not there before, and could not be protected: look before the host's tools use it",
            made.display()
        ));
    }
    code
}

/// Where a daemon in this process is.
pub struct Place<'a> {
    /// Its socket.
    pub socket: &'a Path,
    /// A directory of its own, gone when it is gone.
    pub directory: &'a Path,
}

/// Boots, has `settings` change the settings, and does `work` while a daemon runs in a thread. Nothing of it is left.
///
/// # Errors
/// There is no daemon, or those of `work`.
pub fn with_daemon<T>(
    args: &BootArgs,
    settings: impl FnOnce(&mut Config, &Place<'_>) -> Result<(), Failure>,
    work: impl FnOnce(&Place<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let booted = boot(args, boot::Place::Private)?;
    let socket = booted.socket.clone();
    let private = Removal(booted.private.clone());
    let directory = booted.private.clone().ok_or_else(|| Failure::text("no directory of TRL's own"))?;
    let place = Place { socket: &socket, directory: &directory };
    exec::block_signals()?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let mut config = Config {
        uid: booted.account.uid.as_raw(),
        gid: booted.account.gid.as_raw(),
        peer_check: Some(PeerCheck::new(booted.launcher_pid)),
        stop: Some(stopped),
        ..Config::default()
    };
    settings(&mut config, &place)?;
    let (say, heard) = mpsc::channel();
    let said = say.clone();
    let daemon = std::thread::Builder::new()
        .name("daemon".into())
        .spawn(move || {
            let served = host(booted, config, move || {
                said.send(Ok(())).ok();
            });
            say.send(served).ok();
        })
        .map_err(|error| Failure::text(format!("starting the daemon: {error}")))?;
    heard.recv_timeout(BOUND).map_err(|_| Failure::text("the daemon did not come up in time"))??;
    let done = work(&place);
    stop.send(()).ok();
    // Its end is bounded by the daemon; a wedged one must not hold the caller.
    if heard.recv_timeout(BOUND).is_ok() {
        daemon.join().ok();
    }
    drop(private);
    done
}

/// Paths without links, of which a session can be shown what is there.
fn paths(flag: &str, given: &[PathBuf]) -> Result<Vec<String>, Failure> {
    let path = |path: &PathBuf| {
        let shown = path.display().to_string();
        let found = std::fs::canonicalize(path).map_err(|error| SysError::new("realpath", &shown, &error))?;
        found.into_os_string().into_string().map_err(|_| Failure::text(format!("{flag} {shown}: not UTF-8")))
    };
    given.iter().map(path).collect()
}

struct Removal(Option<PathBuf>);

impl Drop for Removal {
    fn drop(&mut self) {
        if let Some(directory) = &self.0
            && let Err(error) = std::fs::remove_dir_all(directory)
        {
            show::note(&format!("removing {}: {error}", directory.display()));
        }
    }
}

struct Asked<'a> {
    workspace: Value,
    limits: Value,
    directory: Option<PathBuf>,
    cwd: Option<&'a str>,
}

fn in_session(
    socket: &Path,
    asked: &Asked<'_>,
    (argv, env, timeout): (&[String], Map<String, Value>, Option<f64>),
    json: bool,
) -> Result<i32, Failure> {
    let mut client = Client::connect(socket)?;
    let session = match asked.cwd {
        Some(cwd) => {
            // As the caller sees it, where that is something; else as the session does.
            let cwd = asked.directory.as_deref().unwrap_or_else(|| Path::new("/")).join(cwd);
            let cwd = std::fs::canonicalize(&cwd).unwrap_or(cwd);
            create(&mut client, asked, cwd.to_str())?
        }
        None if asked.workspace.is_null() => create_in_callers(&mut client, asked)?,
        None => create(&mut client, asked, None)?,
    };
    let start = Start { session: &session, argv, env, cwd: None, timeout };
    let code = exec::run(&mut client, start, json);
    let ended = json!({"session_id": session, "force": true});
    client.call("session.destroy", &ended)?;
    code
}

/// On the host's file system: a session where the caller is, or in `/` if its user cannot be there.
fn create_in_callers(client: &mut Client, asked: &Asked<'_>) -> Result<String, Failure> {
    let cwd = asked.directory.as_deref().filter(|cwd| access(*cwd, AccessFlags::X_OK).is_ok());
    if let Some(cwd) = cwd.and_then(Path::to_str) {
        match create(client, asked, Some(cwd)) {
            Err(ClientError::Refused { code, .. }) if code == "INVALID_PARAMS" => {}
            other => return Ok(other?),
        }
    }
    let session = create(client, asked, Some("/"))?;
    show::note("the session's user cannot reach the working directory; running in /");
    Ok(session)
}

fn create(client: &mut Client, asked: &Asked<'_>, working_dir: Option<&str>) -> Result<String, ClientError> {
    let mut params =
        json!({"workspace": asked.workspace, "limits": asked.limits, "working_dir": working_dir});
    if let Some(params) = params.as_object_mut() {
        params.retain(|_, value| !value.is_null());
    }
    let created = client.call("session.create", &params)?;
    created["session_id"].as_str().map(str::to_owned).ok_or(ClientError::Protocol)
}
