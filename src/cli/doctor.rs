//! `trl doctor`: whether this host can hold what a policy promises, found by trying it, and whether TRL is deployed as
//! it should be. Each line is `ok`, `warn` or `fail`, and says what to do.

mod deployment;
mod host;

use super::args::{DoctorArgs, ServeArgs};
use super::policy::load_with;
use super::show::{self, Failure};
use super::user;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    Warn,
    Fail,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug)]
struct Line {
    area: &'static str,
    name: String,
    state: State,
    found: String,
    remedy: Option<String>,
}

impl Line {
    fn ok(area: &'static str, name: &str, found: impl Into<String>) -> Self {
        Self { area, name: name.to_owned(), state: State::Ok, found: found.into(), remedy: None }
    }
    fn bad(
        area: &'static str,
        name: &str,
        state: State,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { area, name: name.to_owned(), state, found: found.into(), remedy: Some(remedy.into()) }
    }
    fn json(&self) -> Value {
        json!({"area": self.area, "name": self.name, "state": self.state.name(), "found": self.found,
            "remedy": self.remedy})
    }
}

/// `trl doctor`; 1 where something fails.
///
/// # Errors
/// A command line that `serve` would refuse too.
pub fn doctor(args: &DoctorArgs, socket: PathBuf, json: bool) -> Result<i32, Failure> {
    let serve = &args.serve;
    let as_root = user::is_root();
    let account = user::named(serve.boot.user.as_deref(), as_root)?;
    // Somebody must be tried as: whom the daemon would take where nobody is named.
    let (account, claim) = user::choose(account, as_root)?;
    let mut lines = Vec::new();
    let policies = match load_with(serve.policy_dir.as_deref(), &serve.default_policy) {
        Ok(policies) => {
            lines.extend(deployment::policies(serve));
            policies
        }
        Err(failure) => {
            let remedy = "make the directory and its files root's or the daemon's, writable by nobody else, and have \
                          `trl policy check` pass";
            lines.push(Line::bad("deployment", "policies", State::Fail, failure.to_string(), remedy));
            crate::policy::Policies::shipped().map_err(|error| Failure::text(error.to_string()))?
        }
    };
    let mut all =
        host::look(policies.get(&serve.default_policy), as_root.then_some(account), serve.max_sessions);
    if let Some(policy) = policies.get(&serve.default_policy) {
        all.push(session(serve, &policy.name));
    }
    all.extend(deployment::look(args, account, &socket));
    all.extend(lines);
    drop(claim);
    let worst = |state| all.iter().filter(|line| line.state == state).count();
    let (failed, warned) = (worst(State::Fail), worst(State::Warn));
    if json {
        let lines: Vec<Value> = all.iter().map(Line::json).collect();
        show::json(&json!({"lines": lines, "failed": failed, "warned": warned,
            "policy": serve.default_policy, "host": crate::host::facts()}));
    } else {
        print(&all);
        show::line(&format!("{} looked at: {failed} failed, {warned} warned", all.len()));
    }
    Ok(i32::from(failed > 0))
}

fn print(all: &[Line]) {
    let mut area = "";
    for line in all {
        if line.area != area {
            area = line.area;
            show::line(area);
        }
        show::line(&format!("  {:<4}  {}: {}", line.state.name(), line.name, line.found));
        if let Some(remedy) = &line.remedy {
            show::line(&format!("        → {remedy}"));
        }
    }
}

/// A session of the policy, really made and attacked, by this program once more: what the single trials add up to.
fn session(serve: &ServeArgs, policy: &str) -> Line {
    let name = "a session of the policy";
    let mut command = Command::new("/proc/self/exe");
    command.args(["verify", "--json", "--policy", policy]);
    if let Some(user) = &serve.boot.user {
        command.args(["--user", user]);
    }
    if let Some(directory) = &serve.policy_dir {
        command.arg("--policy-dir").arg(directory);
    }
    let output = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) => {
            return Line::bad("host", name, State::Fail, format!("starting trl: {error}"), "reinstall TRL");
        }
    };
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let results = found["results"].as_array().map_or(0, Vec::len);
    match (output.status.code(), found["failed"].as_u64()) {
        (Some(0), Some(0)) if results > 0 => Line::ok(
            "host",
            name,
            format!("{policy} was made; all of {results} attacks and controls came out right"),
        ),
        (Some(1), Some(failed)) => Line::bad(
            "host",
            name,
            State::Warn,
            format!("{policy} was made; {failed} of {results} attacks and controls came out wrong"),
            format!("see `trl verify --policy {policy}`; a policy like `default` stops all of them"),
        ),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().map(str::trim).collect::<Vec<_>>().join("; ");
            let remedy = "see what is missing above; policy l1 needs none of it, and is no boundary";
            Line::bad("host", name, State::Fail, said, remedy)
        }
    }
}
