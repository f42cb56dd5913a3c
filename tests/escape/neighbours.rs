//! Sessions against one another, and against a process of the host: what the one holds, the other does not reach.
//! A second command of the same session reaches it all, as far as the policy has such a thing.

use crate::common::{Client, ways};
use crate::suite::judge;
use crate::world::{Attempt, HOLDER, World, attack, calls};
use serde_json::{Value, json};
use std::sync::OnceLock;

const OTHERS: &str = include_str!("attacks/others.py");
/// `ci` has what the others leave out: tracing, by which is shown that it is the session that bounds it.
const POLICIES: [&str; 3] = ["default", "strict", "ci"];

static ATTEMPTS: OnceLock<Vec<Attempt>> = OnceLock::new();

macro_rules! tests {
    ($($name:ident)*) => {
        $(#[test] fn $name() { judge(ATTEMPTS.get_or_init(run), stringify!($name)); })*
    };
}

tests! {
    signals
    tracing
    process_list
    environments
    abstract_sockets
    sockets_in_files
    sysv_ipc
    posix_ipc
    keys
    loopback
    temporary_files
    locks
}

/// What a holder in a session holds.
fn hold(client: &mut Client, session: &str, name: &str) -> Value {
    let command = format!("exec python3 - {name} '{}'", calls());
    let env = json!({"HELD_SECRET": format!("secret-of-{name}")});
    client.start(session, &command, json!({"stdin": HOLDER, "env": env, "timeout_s": 200}));
    let look =
        format!("for i in $(seq 200); do cat /tmp/{name}.held 2>/dev/null && exit; sleep 0.05; done; exit 1");
    let told = client.run(session, &look, json!({}));
    assert_eq!(told["exit_code"], 0, "{told}");
    serde_json::from_str(told["stdout"].as_str().unwrap()).unwrap()
}

/// Its process id as the host has it.
fn outside(name: &str) -> i32 {
    let start = format!("python3\0-\0{name}\0");
    let is_it = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|bytes| bytes.starts_with(start.as_bytes()))
    };
    crate::common::processes().into_iter().find(is_it).unwrap()
}

fn run() -> Vec<Attempt> {
    let mut attempts = Vec::new();
    for by in ways() {
        let mut world = World::new(*by);
        let mut client = world.daemon.connect();
        for policy in POLICIES {
            let (one, two) = (world.session(&mut client, policy), world.session(&mut client, policy));
            let name = crate::common::new_mark();
            let held = hold(&mut client, &one, &name);
            let mut abroad = held.clone();
            // What its number is in its own session names others in another.
            abroad["pid"] = json!(outside(&name));
            abroad["group"] = abroad["pid"].clone();
            let mut run = |context: &str, session: &str, other: &Value, opens: &str| {
                let given = world.given(&format!("{context}:{policy}"), other, opens);
                let context = format!("{by:?}:{context}:{policy}");
                attempts.extend(attack(&mut client, session, OTHERS, &given, &context));
            };
            run("neighbour", &two, &abroad, "tac");
            run("host", &two, &world.holder.held, "tac");
            std::fs::read("/usr/bin/tail").unwrap();
            run("same", &one, &held, "id");
            // What each was told of: of its own session's doings, if the policy has that, and of no other's.
            let events = client.run(&one, &format!("cat /tmp/{name}.events"), json!({}));
            let events = events["stdout"].as_str().unwrap().to_owned();
            let told = |program: &str| events.lines().any(|line| line == program);
            assert!(
                !told("tac") && !told("tail") && told("id") == (policy != "strict"),
                "{policy} {by:?}: {events}"
            );
            for session in [one, two] {
                client.ok("session.destroy", json!({"session_id": session, "force": true}));
            }
        }
        // The control of the host's own holder.
        let session = world.session(&mut client, "l1");
        let given = world.given("host:l1", &world.holder.held, "id");
        attempts.extend(attack(&mut client, &session, OTHERS, &given, &format!("{by:?}:l1")));
        // The host is below its sessions, and is told of what they open. They are not told of what it opens.
        let events = world.holder.events();
        assert!(events.lines().any(|line| line == "id"), "{by:?}: {events}");
        client.ok("session.destroy", json!({"session_id": session, "force": true}));
        assert!(world.holder.is_alive());
    }
    attempts
}

#[test]
fn file_events() {
    // Looked at where they are gathered, above.
    let attempts = ATTEMPTS.get_or_init(run);
    let opened = attempts.iter().filter(|attempt| attempt.test == "file_events");
    assert!(opened.clone().count() >= 10 * ways().len());
    assert!(opened.clone().all(Attempt::is_held));
}
