//! The command line as clap reads it. Variables named here are read once; their values are never shown.

mod own;

pub use own::{OwnSession, Place, RunArgs, ShellArgs};

use crate::daemon::config::DEFAULT_POLICY;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Terminal Runtime Layer: runs commands for many agents that do not trust one another.
#[derive(Parser)]
#[command(name = "trl", version, about, max_term_width = 100)]
pub struct Cli {
    /// Socket of the daemon [default: $XDG_RUNTIME_DIR/trl/trl.sock, else /run/trl/trl.sock].
    #[arg(long, global = true, env = "TRL_SOCKET_PATH", hide_env_values = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print JSON instead of text and tables.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground.
    Serve(ServeArgs),
    /// Run one command in a session of its own, without a daemon.
    Run(RunArgs),
    /// Look at this host and at how TRL is deployed on it; exit code 1 where something fails. Takes the flags of `serve`.
    Doctor(Box<DoctorArgs>),
    /// Attack from within a session of a policy, and say what was stopped; exit code 1 where something was not.
    Verify(VerifyArgs),
    /// A shell in a session of its own, without a daemon; it ends with the shell.
    Shell(ShellArgs),
    /// Make, list and end sessions.
    #[command(subcommand)]
    Session(SessionCommand),
    /// Run a command in a session; standard streams, signals and the exit code are passed through.
    Exec(ExecArgs),
    /// Follow the output of an exec, from its beginning.
    Attach(AttachArgs),
    /// List execs.
    Ps(PsArgs),
    /// Ask whether the daemon is there.
    Ping,
    /// Counters of the daemon.
    Stats,
    /// Version, limits and host facts of the daemon.
    Info,
    /// Look at policies, and check files of them.
    #[command(subcommand)]
    Policy(PolicyCommand),
}

/// How log lines are written.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What `serve` and `run` have in common.
#[derive(Args, Clone)]
pub struct BootArgs {
    /// Started as root: the user (name or uid) that the daemon and its sessions change to.
    #[arg(long, value_name = "NAME|UID")]
    pub user: Option<String>,
    /// Started as root: let the daemon keep root; sessions still change to another user.
    #[arg(long, env = "TRL_ALLOW_ROOT", hide_env_values = true, value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub allow_root: bool,
    /// File of variables that every session gets; a regular file of mode 0600 or 0400.
    #[arg(long, env = "TRL_ENV_FILE", hide_env_values = true, value_name = "PATH")]
    pub env_file: Option<PathBuf>,
    /// Own variables that every session gets; a trailing `*` matches a prefix; never TRL_*.
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_values_t = ["PATH", "LANG", "LC_*", "TERM", "TZ"].map(String::from))]
    pub pass_env: Vec<String>,
    /// Form of the log on standard error.
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Level or filter of the log, as in RUST_LOG.
    #[arg(long, value_name = "FILTER")]
    pub log_level: Option<String>,
}

/// `trl serve`.
#[derive(Args)]
pub struct ServeArgs {
    /// Shared with `run`.
    #[command(flatten)]
    pub boot: BootArgs,
    /// Sessions at once, in total and for one principal.
    #[arg(long, env = "TRL_MAX_SESSIONS", hide_env_values = true, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=16384))]
    pub max_sessions: u32,
    /// Requests a second of one principal.
    #[arg(long, env = "TRL_MAX_REQUESTS_PER_S", hide_env_values = true, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_requests_per_s: u32,
    /// Output kept in total and for one principal, bytes; for tests of what goes first.
    #[arg(long, hide = true, value_parser = clap::value_parser!(u64).range(4096..=(16 << 30)))]
    pub retained_output_bytes: Option<u64>,
    /// Seconds between two looks for what slipped through; for tests.
    #[arg(long, hide = true, default_value_t = 60.0, value_parser = seconds)]
    pub sweep_every_s: f64,
    /// Seconds that a command may take if nobody says otherwise.
    #[arg(long, env = "TRL_DEFAULT_TIMEOUT_S", hide_env_values = true, default_value_t = 60.0, value_parser = seconds)]
    pub default_timeout_s: f64,
    /// Bytes of output kept for each stream of an exec.
    #[arg(long, env = "TRL_MAX_OUTPUT_BYTES", hide_env_values = true, default_value_t = 4 << 20, value_parser = clap::value_parser!(u64).range(1024..=(256 << 20)))]
    pub max_output_bytes: u64,
    /// Policy of a session that names none.
    #[arg(long, visible_alias = "policy", env = "TRL_DEFAULT_POLICY", hide_env_values = true, default_value = DEFAULT_POLICY, value_name = "NAME")]
    pub default_policy: String,
    /// Directory of the operator's own policies, files NAME.toml; nobody else may be able to write it.
    #[arg(long, env = "TRL_POLICY_DIR", hide_env_values = true, value_name = "DIR")]
    pub policy_dir: Option<PathBuf>,
    /// A directory that sessions may work in, or in one beneath it; may be given several times [default: none].
    #[arg(long = "workspace-root", value_name = "DIR")]
    pub workspace_roots: Vec<PathBuf>,
    /// Seconds after which an idle session ends.
    #[arg(long, env = "TRL_MAX_IDLE_SEC", hide_env_values = true, default_value_t = 3600.0, value_parser = seconds)]
    pub max_idle_s: f64,
    /// Seconds after which any session ends.
    #[arg(long, env = "TRL_SESSION_TTL_SEC", hide_env_values = true, default_value_t = 86400.0, value_parser = seconds)]
    pub session_ttl_s: f64,
    /// Processor seconds of one process of a command [default: the policy's].
    #[arg(long, env = "TRL_CHILD_CPU_SEC", hide_env_values = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub child_cpu_s: Option<u64>,
    /// Address space of one process of a command, bytes [default: the policy's].
    #[arg(long, env = "TRL_CHILD_MEMORY_BYTES", hide_env_values = true)]
    pub child_memory_bytes: Option<u64>,
    /// Processes that a command may add [default: the policy's].
    #[arg(long, env = "TRL_CHILD_NPROC", hide_env_values = true, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub child_nproc: Option<u32>,
}

/// `trl doctor`.
#[derive(Args)]
pub struct DoctorArgs {
    /// Those of `serve`.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// Log file that is looked through for values of the env file.
    #[arg(long, value_name = "FILE")]
    pub log: Vec<PathBuf>,
}

/// `trl verify`.
#[derive(Args)]
pub struct VerifyArgs {
    /// Started as root: the user (name or uid) that the session has.
    #[arg(long, value_name = "NAME|UID")]
    pub user: Option<String>,
    /// Policy that is attacked.
    #[arg(
        long,
        env = "TRL_DEFAULT_POLICY",
        hide_env_values = true,
        default_value = DEFAULT_POLICY,
        value_name = "NAME"
    )]
    pub policy: String,
    /// Directory of the caller's own policies, files NAME.toml; nobody else may be able to write it.
    #[arg(long, env = "TRL_POLICY_DIR", hide_env_values = true, value_name = "DIR")]
    pub policy_dir: Option<PathBuf>,
}

/// Options of a command.
#[derive(Args, Clone)]
pub struct ExecOptions {
    /// A variable; without `=V` the caller's own value.
    #[arg(long = "env", short = 'e', value_name = "K[=V]")]
    pub env: Vec<String>,
    /// Working directory.
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Seconds that the command may take.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<f64>,
}

/// `trl exec`.
#[derive(Args)]
pub struct ExecArgs {
    /// The session.
    pub session: String,
    /// What the command is given.
    #[command(flatten)]
    pub options: ExecOptions,
    /// Print the exec's id and leave it running.
    #[arg(long, short = 'd')]
    pub detach: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true, num_args = 1.., value_name = "CMD")]
    pub argv: Vec<String>,
}

/// `trl attach`.
#[derive(Args)]
pub struct AttachArgs {
    /// The exec.
    pub exec: String,
    /// Only what is new.
    #[arg(long)]
    pub new: bool,
}

/// `trl ps`.
#[derive(Args)]
pub struct PsArgs {
    /// Only execs of this session.
    pub session: Option<String>,
}

/// `trl session …`.
#[derive(Subcommand)]
pub enum SessionCommand {
    /// Make a session and print its id.
    Create(CreateArgs),
    /// List the sessions of the caller.
    List,
    /// What is known of a session.
    Info {
        /// The session.
        session: String,
    },
    /// End a session and everything in it.
    Destroy {
        /// The session.
        session: String,
        /// At once, without SIGTERM and a grace.
        #[arg(long, short)]
        force: bool,
    },
    /// Count as activity.
    Touch {
        /// The session.
        session: String,
    },
}

/// `trl policy …`.
#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Check policy files; faults are printed as FILE:LINE:COLUMN: MESSAGE, and the exit code is 1.
    Check {
        /// The files.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Directory of policies that they may extend.
        #[arg(long, value_name = "DIR")]
        policy_dir: Option<PathBuf>,
    },
    /// Print a policy with nothing left open, as TOML.
    Show {
        /// A policy's name, or a file.
        #[arg(value_name = "NAME|FILE")]
        policy: String,
        /// Directory of the operator's own policies.
        #[arg(long, value_name = "DIR")]
        policy_dir: Option<PathBuf>,
    },
    /// List the policies that there are.
    List {
        /// Directory of the operator's own policies.
        #[arg(long, value_name = "DIR")]
        policy_dir: Option<PathBuf>,
    },
    /// Print the JSON Schema of policy files, for editors.
    Schema,
}

/// `trl session create`.
#[derive(Args)]
pub struct CreateArgs {
    /// A name for people.
    #[arg(long)]
    pub name: Option<String>,
    /// Shell of commands given as one text.
    #[arg(long)]
    pub shell: Option<String>,
    /// Policy of the session.
    #[arg(long)]
    pub policy: Option<String>,
    /// Where it works: none, private, or a directory that the operator allows.
    #[arg(long, value_name = "none|private|host:DIR|overlay:DIR")]
    pub workspace: Option<String>,
    /// That directory is only read.
    #[arg(long, requires = "workspace")]
    pub read_only: bool,
    /// A limit narrower than the policy's, as in `rlimits.cpu_s=60`; may be given several times.
    #[arg(long = "limit", value_name = "K=V")]
    pub limits: Vec<String>,
    /// What its commands are given.
    #[command(flatten)]
    pub options: ExecOptions,
}

/// A positive time of at most a week.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 604_800.0 => Ok(value),
        _ => Err("not a number of seconds above 0 and up to 604800".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_time_beyond_a_week_is_refused() {
        assert!(seconds("604801").is_err() && seconds("NaN").is_err() && seconds("0.5").is_ok());
    }
}
