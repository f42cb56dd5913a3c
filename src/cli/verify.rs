//! `trl verify`: a daemon in a thread, a session of the policy, and TRL's own attacks from within it. What they are
//! is in [`crate::launcher::attacks`]; here bait is laid out, and what came is judged.

use super::args::{BootArgs, LogFormat, VerifyArgs};
use super::client::{Client, ClientError};
use super::policy::load_with;
use super::run::{Place, with_daemon};
use super::serve::start_log;
use super::show::{self, Failure};
use crate::error::SysError;
use crate::ids::SessionId;
use crate::launcher::attacks::{self, Bait, Entry, Kind};
use crate::launcher::protocol::{ATTACKS, PROBE_KEY};
use crate::policy::{NetworkMode, Policy, WorkspaceMode};
use crate::report::Demand;
use crate::sys::attack::SharedMemory;
use crate::sys::attempt;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

/// Seconds that all attacks may take: each has a bound of its own.
const BOUND: u32 = 120;

/// `trl verify`; 1 where an attack was not stopped, or a control was denied.
///
/// # Errors
/// What kept the session from being made.
pub fn verify(args: &VerifyArgs, json: bool) -> Result<i32, Failure> {
    // No env file and no secret: what is found in the environment is then what came by accident.
    let boot = BootArgs {
        user: args.user.clone(),
        allow_root: false,
        env_file: None,
        pass_env: vec!["PATH".to_owned()],
        log_format: LogFormat::Text,
        log_level: None,
    };
    start_log(&boot, "error")?;
    let policies = load_with(args.policy_dir.as_deref(), &args.policy)?;
    let policy = policies.get(&args.policy).cloned();
    let policy = policy.ok_or_else(|| Failure::text(format!("there is no policy {:?}", args.policy)))?;
    let found = with_daemon(
        &boot,
        |config, place| {
            config.attacks = true;
            config.policies = policies;
            config.default_policy.clone_from(&policy.name);
            // Where the policy gives no workspace: a directory that the session's user can write.
            config.working_dir = place.directory.to_path_buf();
            Ok(())
        },
        |place| attack(place, &policy),
    )?;
    if json {
        show::json(&found.json())
    } else {
        found.print()
    }
    Ok(i32::from(found.failed() > 0))
}

/// One entry and its answer; none where it did not come.
struct Answer {
    entry: &'static Entry,
    answer: Option<i32>,
}

impl Answer {
    fn passed(&self) -> bool {
        self.answer.is_some_and(|answer| self.entry.is_held(answer))
    }
    fn text(&self) -> String {
        match self.answer {
            None => "no answer".into(),
            Some(0) => "done".into(),
            Some(answer) if answer > attempt::SIGNAL => {
                nix::sys::signal::Signal::try_from(answer - attempt::SIGNAL)
                    .map_or_else(|_| "killed".into(), |signal| signal.to_string())
            }
            Some(answer) => format!("{:?}", nix::errno::Errno::from_raw(answer)),
        }
    }
    fn kind(&self) -> &'static str {
        if matches!(self.entry.kind, Kind::Attack(_)) { "attack" } else { "control" }
    }
}

/// What came of all of it.
struct Found {
    policy: String,
    digest: String,
    verdict: String,
    answers: Vec<Answer>,
}

impl Found {
    fn failed(&self) -> usize {
        self.answers.iter().filter(|answer| !answer.passed()).count()
    }

    fn json(&self) -> Value {
        let results = self.answers.iter().map(|answer| {
            json!({"group": answer.entry.group, "name": answer.entry.name, "kind": answer.kind(),
                "passed": answer.passed(), "answer": answer.text()})
        });
        json!({"policy": self.policy, "policy_digest": self.digest, "verdict": self.verdict,
            "results": results.collect::<Vec<_>>(), "failed": self.failed()})
    }

    fn print(&self) {
        show::line(&format!("policy {} ({}): {}", self.policy, self.digest, self.verdict));
        let mut group = "";
        for answer in &self.answers {
            if answer.entry.group != group {
                group = answer.entry.group;
                show::line(group);
            }
            let verdict = if answer.passed() { "PASS" } else { "FAIL" };
            let told = if answer.kind() == "control" { "control: " } else { "" };
            show::line(&format!("  {verdict}  {told}{} ({})", answer.entry.name, answer.text()));
        }
        let controls = self.answers.iter().filter(|answer| answer.kind() == "control").count();
        let attacks = self.answers.len() - controls;
        show::line(&format!("{attacks} attacks, {controls} controls: {} failed", self.failed()));
    }
}

fn attack(place: &Place<'_>, policy: &Policy) -> Result<Found, Failure> {
    let laid = Laid::out(place)?;
    let mut client = Client::connect(place.socket)?;
    let mut wanted = json!({"policy": policy.name});
    let has_root = policy.filesystem.demand != Demand::Off;
    if has_root && (policy.workspace.mode == WorkspaceMode::None || !policy.workspace.writable) {
        // Attacks and controls need one place to write.
        wanted["working_dir"] = json!("/tmp");
    }
    let session = client.call("session.create", &wanted).map_err(refused)?;
    let id = session["session_id"].as_str().ok_or(ClientError::Protocol)?;
    let mut argv = vec![ATTACKS.to_owned()];
    argv.extend(laid.bait.arguments());
    let outcome = client.call(
        "exec.run",
        &json!({"session_id": id, "argv": argv, "env": {PROBE_KEY: ATTACKS}, "timeout_s": BOUND}),
    );
    client.call("session.destroy", &json!({"session_id": id, "force": true}))?;
    let outcome = outcome?;
    let said: BTreeMap<&str, i32> = outcome["stdout"]
        .as_str()
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.rsplit_once('='))
        .filter_map(|(key, answer)| Some((key, answer.parse().ok()?)))
        .collect();
    if said.is_empty() {
        return Err(Failure::text(format!("the attacks did not run: {}", outcome["end"])));
    }
    let answers = attacks::ALL
        .iter()
        .filter(|entry| !matches!(entry.kind, Kind::InternetControl) || has_internet(policy))
        .map(|entry| Answer { entry, answer: said.get(entry.key().as_str()).copied() })
        .collect();
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let (digest, verdict) = (text(&session["policy_digest"]), text(&session["isolation"]["verdict"]));
    Ok(Found { policy: policy.name.clone(), digest, verdict, answers })
}

/// Whether a session may have sockets of the internet, if only on a loopback.
fn has_internet(policy: &Policy) -> bool {
    let filtered = policy.seccomp.demand != Demand::Off;
    let is_group = |name: &str| policy.seccomp.groups.iter().any(|group| group == name);
    let by_filter =
        !filtered || (is_group("network") && policy.seccomp.families.iter().any(|family| family == "inet"));
    let by_ports =
        [&policy.network.bind_ports, &policy.network.connect_ports].iter().all(|ports| ports.is_none());
    by_filter && (by_ports || policy.network.mode == NetworkMode::Host && !filtered)
}

/// The refusal of a session, with the reason of each layer.
fn refused(error: ClientError) -> Failure {
    let mut text = error.to_string();
    if let ClientError::Refused { detail, .. } = &error {
        for layer in detail["layers"].as_array().into_iter().flatten() {
            if let (Some(name), Some(reason)) = (layer["layer"].as_str(), layer["reason"].as_str()) {
                text.push_str(&format!("\n  {name}: {reason}"));
            }
        }
    }
    Failure::text(text)
}

/// Bait, and what holds it; gone when dropped.
struct Laid {
    bait: Bait,
    _shared: Removal,
    _listeners: (TcpListener, UnixListener),
    _memory: SharedMemory,
}

struct Removal(PathBuf);

impl Drop for Removal {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            show::note(&format!("removing {}: {error}", self.0.display()));
        }
    }
}

impl Laid {
    /// As the user that the session has: so that nothing but its confinement keeps it from all this.
    fn out(place: &Place<'_>) -> Result<Self, Failure> {
        let name = format!("trl-verify-{}", SessionId::random());
        let file = place.directory.join("bait");
        write(&file)?;
        let shared = Path::new("/dev/shm").join(&name);
        write(&shared)?;
        let removal = Removal(shared.clone());
        let at = |object: &str, error| SysError::new("bind", object.to_owned(), &error);
        let tcp = TcpListener::bind("127.0.0.1:0").map_err(|error| at("127.0.0.1", error))?;
        let port = tcp.local_addr().map_err(|error| at("127.0.0.1", error))?.port();
        let unix = SocketAddr::from_abstract_name(&name)
            .and_then(|address| UnixListener::bind_addr(&address))
            .map_err(|error| at("abstract socket", error))?;
        let supervisor = nix::unistd::getpid().as_raw();
        let memory = SharedMemory::new(supervisor)
            .map_err(|error| SysError::new("shmget", "a segment of one page", &error))?;
        let key = memory.key();
        let started = attacks::started(supervisor)
            .ok_or_else(|| Failure::text("reading /proc/self/stat: not of its form; mount /proc"))?;
        let socket = place.socket.to_path_buf();
        Ok(Self {
            bait: Bait { supervisor, started, file, shared, socket, abstract_name: name, port, key },
            _shared: removal,
            _listeners: (tcp, unix),
            _memory: memory,
        })
    }
}

fn write(path: &Path) -> Result<(), SysError> {
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(b"bait"))
        .map_err(|error| SysError::new("write", path.display().to_string(), &error))
}
