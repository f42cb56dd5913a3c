//! What attacks run in and reach for: a daemon, a process of the host that holds something of every kind, files.

use crate::common::{By, Client, Daemon, FLAG_UID, Home, ORDINARY_UID, is_root, new_mark, signal, within};
use serde_json::{Map, Value, json};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PRELUDE: &str = include_str!("attacks/prelude.py");
pub const HOLDER: &str = include_str!("attacks/holder.py");

/// The numbers of all calls, by name.
pub fn calls() -> Value {
    let known = (0..512).filter_map(|number| Some((trl::policy::syscalls::name(number)?.to_owned(), number)));
    Value::Object(known.map(|(name, number)| (name, json!(number))).collect::<Map<_, _>>())
}

/// A holder on the host, by the user that sessions have outside.
pub struct HostHolder {
    child: Child,
    pub held: Value,
    pub name: String,
}

impl HostHolder {
    fn new(by: By) -> Self {
        let name = new_mark();
        let mut command = Command::new("python3");
        command.args(["-c", HOLDER, &name, &calls().to_string()]).env_clear().current_dir("/");
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HELD_SECRET", format!("secret-of-{name}"));
        command.process_group(0);
        if is_root() {
            let id = if by == By::Root { FLAG_UID } else { ORDINARY_UID };
            command.uid(id).gid(id);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let path = PathBuf::from(format!("/tmp/{name}.held"));
        assert!(within(Duration::from_secs(20), || path.exists()), "the holder holds nothing");
        let held = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        Self { child, held, name }
    }
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
    /// What it was told of in `/usr/bin`.
    pub fn events(&self) -> String {
        std::fs::read_to_string(format!("/tmp/{}.events", self.name)).unwrap()
    }
}

impl Drop for HostHolder {
    fn drop(&mut self) {
        signal(i32::try_from(self.child.id()).unwrap(), nix::sys::signal::Signal::SIGTERM);
        if !within(Duration::from_secs(5), || self.child.try_wait().unwrap().is_some()) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

pub struct World {
    pub daemon: Daemon,
    pub holder: HostHolder,
    group_file: PathBuf,
}

impl World {
    pub fn new(by: By) -> Self {
        let holder = HostHolder::new(by);
        let home = Home::new(by);
        let group_file = home.path().join("of-a-group");
        std::fs::write(&group_file, "x").unwrap();
        std::fs::set_permissions(&group_file, std::fs::Permissions::from_mode(0o440)).unwrap();
        if is_root() {
            let group = if by == By::Root { FLAG_UID } else { ORDINARY_UID };
            chown(&group_file, Some(0), Some(group)).unwrap();
        }
        let serve = home.serve(&[]);
        // With a descriptor that it did not ask for, and variables that must go nowhere.
        let mut command = home.shell("exec 7<\"$0\"; exec \"$@\"");
        command.arg(home.path()).arg(serve.get_program()).args(serve.get_args());
        for name in ["SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "SOME_TOKEN", "API_KEY"] {
            command.env(name, "inherited-canary");
        }
        Self { daemon: home.start_command(command), holder, group_file }
    }
    pub fn session(&self, client: &mut Client, policy: &str) -> String {
        client.session(json!({"policy": policy, "env": {"GIVEN_BY_SESSION": "yes"}}))
    }
    /// What an attack program is told.
    pub fn given(&self, context: &str, other: &Value, opens: &str) -> Value {
        json!({
            "context": context, "other": other, "opens": opens, "calls": calls(),
            "home": self.daemon.home.path(), "runtime": self.daemon.home.runtime(), "group_file": self.group_file,
        })
    }
}

/// One attempt of an attack program.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Who started the daemon, the policy.
    pub context: String,
    pub test: String,
    pub tried: String,
    pub want: Vec<String>,
    pub got: String,
    /// Whether it had to succeed.
    pub control: bool,
}

impl Attempt {
    pub fn is_held(&self) -> bool {
        self.want.contains(&self.got)
    }
    /// For people.
    pub fn told(&self) -> String {
        format!(
            "{}: {}: {}: {}, not {}",
            self.context,
            self.test,
            self.tried,
            self.got,
            self.want.join(" or ")
        )
    }
}

/// Runs an attack program in a session, to its end.
pub fn attack(
    client: &mut Client,
    session: &str,
    script: &str,
    given: &Value,
    context: &str,
) -> Vec<Attempt> {
    let told = serde_json::to_string(&given.to_string()).unwrap();
    let input = format!("{PRELUDE}\n\n{script}\n\nmain({told})\n");
    let more = json!({"stdin": input, "timeout_s": 100});
    let outcome = client.run(session, "exec python3 -", more);
    assert_eq!(outcome["exit_code"], 0, "{context}: {outcome}");
    let lines: Vec<Value> =
        outcome["stdout"].as_str().unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (end, lines) = lines.split_last().unwrap();
    assert_eq!(end["end"], json!(lines.len()), "{context}: {end}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    lines
        .iter()
        .map(|line| Attempt {
            context: context.to_owned(),
            test: text(&line["test"]),
            tried: text(&line["tried"]),
            want: line["want"].as_array().unwrap().iter().map(text).collect(),
            got: text(&line["got"]),
            control: line["control"].as_bool().unwrap(),
        })
        .collect()
}
