//! `trl serve`: boot, then be the daemon.

use super::args::{BootArgs, LogFormat, ServeArgs};
use super::boot::{Booted, Place, boot};
use super::policy;
use super::show::Failure;
use crate::daemon::config::{ChildLimits, Config};
use crate::daemon::workspace::Workspaces;
use crate::policy::Policies;
use crate::sys::mark::PeerCheck;
use std::ffi::{OsStr, OsString};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// `trl serve`.
///
/// # Errors
/// Why there is no daemon.
pub fn serve(args: &ServeArgs, socket: PathBuf) -> Result<(), Failure> {
    start_log(&args.boot, "info")?;
    // Read while whoever started this can still read them, and before there is anything to undo.
    let policies = policy::load_with(args.policy_dir.as_deref(), &args.default_policy)?;
    let mut own = own_files(&args.boot, args.policy_dir.as_deref());
    own.extend(socket.parent().map(settled));
    // Who can write the programs is the next daemon.
    own.extend(
        std::env::current_exe()
            .iter()
            .flat_map(|program| [settled(program), settled(&program.with_file_name("trl-launcher"))]),
    );
    let workspaces = Workspaces::new(&args.workspace_roots, &own).map_err(Failure::text)?;
    let mut booted = boot(&args.boot, Place::Path(socket))?;
    let config = Config { workspaces, ..config(args, policies, &booted) };
    let (path, notify) = (booted.socket.clone(), booted.notify.take());
    let ready = move || {
        tracing::info!("listening on {}", path.display());
        if let Some(address) = notify {
            notify_ready(&address);
        }
    };
    host(booted, config, ready)
}

/// What a daemon reads: no session works where it lies.
#[must_use]
pub fn own_files(args: &BootArgs, policy_dir: Option<&Path>) -> Vec<PathBuf> {
    args.env_file.as_deref().into_iter().chain(policy_dir).map(settled).collect()
}

/// A path without links, as far as it is there.
fn settled(path: &Path) -> PathBuf {
    let beside = || Some(std::fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?));
    std::fs::canonicalize(path)
        .ok()
        .or_else(beside)
        .unwrap_or_else(|| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()))
}

/// Serves until told to stop, then removes the socket's own traces.
///
/// # Errors
/// The daemon's.
pub fn host(booted: Booted, config: Config, ready: impl FnOnce() + 'static) -> Result<(), Failure> {
    let Booted { listener, launcher, mark, runtime_env, held, directory, .. } = booted;
    let served = crate::daemon::serve(config, listener, launcher, mark, runtime_env, ready);
    // Under the lock still. With `--allow-root` or without, the directory is the daemon's own.
    if let Some(Err(error)) = directory.map(|directory| directory.unlink_socket()) {
        tracing::warn!("{error}");
    }
    drop(held);
    served.map_err(|error| Failure::text(error.to_string()))
}

fn config(args: &ServeArgs, policies: Policies, booted: &Booted) -> Config {
    let max_sessions = args.max_sessions as usize;
    let retained = args.retained_output_bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let defaults = Config::default();
    Config {
        max_requests_per_s: args.max_requests_per_s,
        retained_per_principal: retained.unwrap_or(defaults.retained_per_principal),
        retained_total: retained.unwrap_or(defaults.retained_total),
        sweep_every: Duration::from_secs_f64(args.sweep_every_s),
        max_sessions,
        max_sessions_per_principal: max_sessions,
        default_timeout: Duration::from_secs_f64(args.default_timeout_s),
        max_output_bytes: usize::try_from(args.max_output_bytes).unwrap_or(usize::MAX),
        policies,
        default_policy: args.default_policy.clone(),
        idle_timeout: Duration::from_secs_f64(args.max_idle_s),
        ttl: Duration::from_secs_f64(args.session_ttl_s),
        child: ChildLimits {
            cpu_seconds: args.child_cpu_s,
            memory_bytes: args.child_memory_bytes,
            nproc: args.child_nproc,
        },
        uid: booted.account.uid.as_raw(),
        gid: booted.account.gid.as_raw(),
        peer_check: Some(PeerCheck::new(booted.launcher_pid)),
        // Beside the socket: hashes of idempotency keys, so that one from before a restart is known for one.
        state_dir: booted.directory.as_ref().and_then(|directory| directory.handle().ok()),
        ..defaults
    }
}

/// Starts the log on standard error: `--log-level`, else `RUST_LOG`, else `default`.
///
/// # Errors
/// A filter that is none.
pub fn start_log(args: &BootArgs, default: &str) -> Result<(), Failure> {
    let text = args
        .log_level
        .clone()
        .or_else(|| std::env::var("RUST_LOG").ok())
        .unwrap_or_else(|| default.to_owned());
    let filter = EnvFilter::try_new(text)
        .map_err(|_| Failure::text("--log-level or RUST_LOG is no filter; try `info`"))?;
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi);
    match args.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
    .map_err(|_| Failure::text("the log was started twice"))
}

/// `READY=1`, as `sd_notify(3)` says it.
fn notify_ready(address: &OsStr) {
    let sent = match address.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(OsString::from(address)),
    }
    .and_then(|to| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &to));
    if let Err(error) = sent {
        tracing::warn!("telling systemd that the daemon is ready: {error}");
    }
}
