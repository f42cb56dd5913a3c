//! `trl run` and `trl shell`: a session without a daemon.

use super::{BootArgs, ExecOptions};
use crate::daemon::config::DEFAULT_POLICY;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// `trl run`.
#[derive(Args)]
pub struct RunArgs {
    /// Shared with `serve`.
    #[command(flatten)]
    pub boot: BootArgs,
    /// Its session.
    #[command(flatten)]
    pub session: OwnSession,
    /// What the command is given.
    #[command(flatten)]
    pub exec: ExecOptions,
    /// The command and its arguments.
    #[arg(
        last = true,
        required = true,
        num_args = 1..,
        value_name = "CMD"
    )]
    pub argv: Vec<String>,
}

/// `trl shell`.
#[derive(Args)]
pub struct ShellArgs {
    /// Shared with `serve`.
    #[command(flatten)]
    pub boot: BootArgs,
    /// Its session.
    #[command(flatten)]
    pub session: OwnSession,
    /// What the shell is given; it may take as long as it likes unless told otherwise.
    #[command(flatten)]
    pub exec: ExecOptions,
    /// The shell.
    #[arg(long, default_value = "/bin/sh", value_name = "PATH")]
    pub shell: String,
}

/// A session without a daemon: whoever starts it is its operator.
#[derive(Args)]
pub struct OwnSession {
    /// Policy of the session.
    #[arg(long, env = "TRL_DEFAULT_POLICY", hide_env_values = true, default_value = DEFAULT_POLICY, value_name = "NAME")]
    pub policy: String,
    /// Directory of the caller's own policies, files NAME.toml; nobody else may be able to write it.
    #[arg(long, env = "TRL_POLICY_DIR", hide_env_values = true, value_name = "DIR")]
    pub policy_dir: Option<PathBuf>,
    /// What becomes of the caller's directory [default: rw, as far as policy and permissions allow; a note says so].
    #[arg(long, value_enum, value_name = "HOW")]
    pub workspace: Option<Place>,
    /// Another path of the host's, read-only; may be given several times.
    #[arg(long, value_name = "PATH")]
    pub ro: Vec<PathBuf>,
    /// Another path of the host's, writable; may be given several times.
    #[arg(long, value_name = "PATH")]
    pub rw: Vec<PathBuf>,
    /// A limit in place of the policy's, as in `rlimits.cpu_s=60`; may be given several times.
    #[arg(long = "limit", value_name = "K=V")]
    pub limits: Vec<String>,
}

/// What becomes of the caller's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Place {
    /// It is the workspace, and is written.
    Rw,
    /// It is the workspace, and is only read.
    Ro,
    /// It is the workspace; changes go to a layer above it and are gone with the session.
    Overlay,
    /// Nothing is seen of it; the workspace is a fresh directory, gone with the session.
    Private,
    /// Nothing is seen of it, and there is no workspace.
    None,
}
