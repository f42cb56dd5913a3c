//! `trl run`: a daemon in a thread, a session, one command, and nothing left behind.

use super::args::{BootArgs, RunArgs};
use super::boot::{self, boot};
use super::client::{Client, ClientError};
use super::exec::{self, Start};
use super::policy;
use super::serve::{host, start_log};
use super::show::{self, Failure};
use crate::daemon::config::Config;
use crate::sys::mark::PeerCheck;
use crate::sys::memory;
use nix::unistd::{AccessFlags, access};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// How long the daemon may take to listen, and to end what the command left.
const BOUND: Duration = Duration::from_secs(30);

/// `trl run`.
///
/// # Errors
/// What TRL itself could not do.
pub fn run(args: &RunArgs, json: bool) -> Result<i32, Failure> {
    start_log(&args.boot, "warn")?;
    // What the caller's environment has to say is read before it is wiped.
    let env = memory::wiping(|| exec::environment(&args.exec.env))?;
    let caller_cwd = std::env::current_dir().ok();
    let policies = policy::load_with(args.policy_dir.as_deref(), &args.policy)?;
    let settings = |config: &mut Config, _: &Place<'_>| {
        config.policies = policies;
        config.default_policy.clone_from(&args.policy);
    };
    with_daemon(&args.boot, settings, |place| {
        in_session(place.socket, args, env, caller_cwd.as_deref(), json)
    })
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
    settings: impl FnOnce(&mut Config, &Place<'_>),
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
    settings(&mut config, &place);
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

fn in_session(
    socket: &Path,
    args: &RunArgs,
    env: Map<String, Value>,
    caller_cwd: Option<&Path>,
    json: bool,
) -> Result<i32, Failure> {
    let mut client = Client::connect(socket)?;
    let session = match &args.exec.cwd {
        Some(cwd) => create(&mut client, cwd)?,
        None => create_in_callers(&mut client, caller_cwd)?,
    };
    let start = Start { session: &session, argv: &args.argv, env, cwd: None, timeout: args.exec.timeout };
    let code = exec::run(&mut client, start, json);
    let ended = json!({"session_id": session, "force": true});
    client.call("session.destroy", &ended)?;
    code
}

/// A session where the caller is, or in `/` if its user cannot be there.
fn create_in_callers(client: &mut Client, cwd: Option<&Path>) -> Result<String, Failure> {
    let reachable = cwd.filter(|cwd| access(*cwd, AccessFlags::X_OK).is_ok()).and_then(Path::to_str);
    if let Some(cwd) = reachable {
        match create(client, cwd) {
            Err(ClientError::Refused { .. }) => {}
            other => return Ok(other?),
        }
    }
    let session = create(client, "/")?;
    show::note("the session's user cannot reach the working directory; running in /");
    Ok(session)
}

fn create(client: &mut Client, working_dir: &str) -> Result<String, ClientError> {
    let created = client.call("session.create", &json!({"working_dir": working_dir}))?;
    created["session_id"].as_str().map(str::to_owned).ok_or(ClientError::Protocol)
}
