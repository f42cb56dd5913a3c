//! The command line. `serve` and `run` boot a daemon ([`boot`], on one thread); everything else is a client of
//! one over its Unix socket.
//!
//! Exit codes: a command's own, 128+n where signal n ended it, 127 not found, 126 not executable, 125 where
//! TRL itself failed; a wrong command line is 2.

pub mod args;
pub mod boot;
pub mod client;
mod directory;
mod doctor;
pub mod exec;
mod place;
pub mod policy;
pub mod run;
mod runtime_env;
pub mod serve;
pub mod session;
pub mod show;
pub mod user;
pub mod verify;

use args::{Cli, Command};
use clap::Parser;
use client::Client;
use show::Failure;
use std::path::PathBuf;

/// The program.
#[must_use]
pub fn main() -> i32 {
    let cli = Cli::parse();
    dispatch(cli).unwrap_or_else(|failure| {
        show::note(&failure.to_string());
        failure.exit_code()
    })
}

fn dispatch(cli: Cli) -> Result<i32, Failure> {
    let json = cli.json;
    let socket = cli.socket.unwrap_or_else(default_socket);
    let connect = || Client::connect(&socket);
    match cli.command {
        Command::Serve(args) => serve::serve(&args, socket)?,
        Command::Run(args) => return run::run(&args, json),
        Command::Doctor(args) => return doctor::doctor(&args, socket, json),
        Command::Verify(args) => return verify::verify(&args, json),
        Command::Shell(args) => return run::shell(&args, json),
        Command::Session(command) => session::session(&mut connect()?, &command, json)?,
        Command::Exec(args) => return exec::exec(&mut connect()?, &args, json),
        Command::Attach(args) => return exec::attach(&mut connect()?, &args, json),
        Command::Ps(args) => session::ps(&mut connect()?, &args, json)?,
        Command::Ping => simple(&mut connect()?, "system.ping", json)?,
        Command::Stats => simple(&mut connect()?, "system.stats", json)?,
        Command::Policy(command) => return policy::policy(&command, json),
        Command::Info => simple(&mut connect()?, "system.info", json)?,
    }
    Ok(0)
}

fn simple(client: &mut Client, method: &str, json: bool) -> Result<(), Failure> {
    session::plain(client, method, &serde_json::json!({}), json)
}

fn default_socket() -> PathBuf {
    std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|directory| directory.is_absolute())
        .unwrap_or_else(|| PathBuf::from("/run"))
        .join("trl/trl.sock")
}
