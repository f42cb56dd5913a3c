//! What clients of the envelope rely on: names, types and meaning of every method that was there before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Client, Daemon, Home, sha256, ways};
use serde_json::{Value, json};

fn is_time(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    text.len() >= 20 && text.as_bytes()[10] == b'T' && (text.ends_with('Z') || text.contains('+'))
}

fn transcript(mut call: impl FnMut(&str, Value) -> Value) {
    let ping = call("system.ping", json!({}));
    assert!(ping["uptime_s"].is_number() && ping["version"].is_string(), "{ping}");
    let stats = call("system.stats", json!({}));
    for key in [
        "active_sessions",
        "total_commands_run",
        "memory_rss_bytes",
        "open_fds",
        "running_execs",
        "retained_output_bytes",
    ] {
        assert!(stats[key].is_u64(), "{key} in {stats}");
    }
    assert!(stats["uptime_s"].is_number(), "{stats}");

    let made = call(
        "session.create",
        json!({"shell": "/bin/sh", "env": {"GREETING": "hello"}, "working_dir": "/tmp", "name": "one", "timeout_s": 20, "policy": "l1"}),
    );
    let id = made["session_id"].as_str().unwrap().to_owned();
    assert_eq!((id.len(), id.as_bytes()[14]), (36, b'4'), "no UUID v4: {id}");
    assert_eq!(made["shell"], "/bin/sh");
    assert_eq!(made["working_dir"], "/tmp");
    assert_eq!(made["state"], "idle");
    assert!(is_time(&made["created_at"]), "{made}");
    assert!(made["isolation"]["verdict"].is_string(), "{made}");
    assert!(made["isolation"]["layers"].is_array(), "{made}");

    let list = call("session.list", json!({}));
    let listed = list["sessions"].as_array().unwrap();
    let entry = listed.iter().find(|entry| entry["session_id"] == id.as_str()).unwrap();
    assert!(entry.get("isolation").is_none());

    let run = call("exec.run", json!({"session_id": id, "command": "echo $GREETING; echo oops >&2; exit 3"}));
    assert_eq!(run["stdout"], "hello\n");
    assert_eq!(run["stderr"], "oops\n");
    assert_eq!(run["exit_code"], 3);
    assert_eq!(run["timed_out"], false);
    assert!(run["duration_ms"].is_u64(), "{run}");
    assert_eq!(run["end"]["reason"], "exited");
    assert_eq!(run["end"]["signal"], Value::Null);
    assert_eq!(run["state"], "ended");
    assert!(run["exec_id"].is_string());
    assert_eq!(run["output"]["stdout"]["total_bytes"], 6);
    assert_eq!(run["output"]["stdout"]["dropped_bytes"], 0);
    assert_eq!(run["output"]["stdout"]["encoding"], "utf-8");
    assert!(run["usage"]["max_rss_bytes"].is_u64(), "{run}");
    assert!(run["denials"].is_array());
    assert!(run["isolation"]["verdict"].is_string());

    let argv = call("exec.run", json!({"session_id": id, "argv": ["/bin/cat"], "stdin": "given"}));
    assert_eq!((&argv["stdout"], &argv["exit_code"]), (&json!("given"), &json!(0)));

    let info = call("session.info", json!({"session_id": id}));
    assert_eq!(info["session_id"], id.as_str());
    assert_eq!(info["name"], "one");
    assert_eq!(info["state"], "idle");
    assert_eq!(info["env_keys"], json!(["GREETING"]));
    assert_eq!(info["command_count"], 2);
    assert_eq!(info["timeout_s"].as_f64(), Some(20.0));
    assert!(is_time(&info["created_at"]) && is_time(&info["last_activity"]), "{info}");
    assert!(!info.to_string().contains("hello"));

    let gone = call("session.destroy", json!({"session_id": id, "force": true}));
    assert_eq!(gone["session_id"], id.as_str());
    assert_eq!(gone["state"], "terminated");
    assert!(gone["killed"].is_u64(), "{gone}");
}

#[test]
fn the_transcript_holds_on_many_connections() {
    for by in ways() {
        let daemon = Home::new(*by).start(&[]);
        transcript(|method, params| daemon.connect().ok(method, params));
    }
}

#[test]
fn the_transcript_holds_on_one_connection() {
    for by in ways() {
        let daemon = Home::new(*by).start(&[]);
        let mut client = daemon.connect();
        transcript(|method, params| client.ok(method, params));
        transcript(|method, params| client.ok(method, params));
    }
}

#[test]
fn a_session_that_is_gone_or_never_was_is_not_found() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let id = client.session(json!({}));
    client.ok("session.destroy", json!({"session_id": id, "force": true}));
    let never = "00000000-0000-4000-8000-000000000000";
    for id in [id.as_str(), never] {
        for method in ["session.info", "session.destroy"] {
            assert_eq!(client.code(method, json!({"session_id": id})), "SESSION_NOT_FOUND");
        }
        let run = json!({"session_id": id, "command": "true"});
        assert_eq!(client.code("exec.run", run), "SESSION_NOT_FOUND");
    }
}

#[test]
fn sessions_have_a_limit() {
    let daemon = Home::new(common::By::Ordinary).start(&["--max-sessions", "2"]);
    let mut client = daemon.connect();
    let first = client.session(json!({}));
    client.session(json!({}));
    let code = client.code("session.create", json!({"policy": "l1"}));
    assert!(["MAX_SESSIONS_REACHED", "SESSION_LIMIT_EXCEEDED"].contains(&code.as_str()), "{code}");
    client.ok("session.destroy", json!({"session_id": first, "force": true}));
    client.session(json!({}));
}

#[test]
fn a_session_without_its_directory_or_shell_is_not_made() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    for params in [
        json!({"policy": "l1", "working_dir": "/no/such/place"}),
        json!({"policy": "l1", "shell": "/no/such/shell"}),
        json!({"policy": "l1", "shell": "/etc/passwd"}),
    ] {
        assert_eq!(client.code("session.create", params), "INVALID_PARAMS");
    }
    assert_eq!(client.ok("session.list", json!({}))["sessions"], json!([]));
}

fn environment(client: &mut Client, params: Value) -> Vec<String> {
    let outcome = client.ok("exec.run", params);
    let mut lines: Vec<String> = outcome["stdout"].as_str().unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// What the runtime itself gives every command.
const BASE: &[&str] = &["PATH"];

#[test]
fn the_environment_is_what_three_scopes_say_and_nothing_else() {
    for by in ways() {
        let home = Home::new(*by);
        let file = home.private_file("env", "A=runtime\nB=runtime\nC=runtime\nQUOTED='two words'\n");
        let daemon = home.start(&["--env-file", file.to_str().unwrap()]);
        let mut client = daemon.connect();
        let id = client.session(json!({"env": {"B": "session", "C": "session", "EMPTY": ""}, "secrets": {"S": "session-secret", "T": "session-secret"}}));
        let lines = environment(
            &mut client,
            json!({"session_id": id, "argv": ["/usr/bin/env"], "env": {"C": "command", "T": "command"}, "secrets": {"U": "command-secret"}}),
        );
        let given: Vec<&str> = lines
            .iter()
            .map(String::as_str)
            .filter(|line| !BASE.contains(&line.split('=').next().unwrap()))
            .collect();
        assert_eq!(
            given,
            [
                "A=runtime",
                "B=session",
                "C=command",
                "EMPTY=",
                "QUOTED=two words",
                "S=session-secret",
                "T=command",
                "U=command-secret"
            ],
            "{by:?}"
        );
        let twice = json!({"session_id": id, "command": "true", "env": {"K": "1"}, "secrets": {"K": "2"}});
        assert_eq!(client.code("exec.run", twice), "INVALID_PARAMS");
        let info = client.ok("session.info", json!({"session_id": id}));
        assert_eq!(info["env_keys"], json!(["B", "C", "EMPTY"]));
        assert_eq!(info["secret_names"], json!(["S", "T"]));
    }
}

#[test]
fn an_environment_file_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new(common::By::Ordinary);
    let file = home.private_file("env", "A=canary-in-a-file\n");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = home.serve(&["--env-file", file.to_str().unwrap()]).output().unwrap();
    assert!(!output.status.success());
    assert!(!common::contains(&output.stderr, b"canary-in-a-file"));
}

#[test]
fn a_session_keeps_what_its_commands_leave() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let id = client.session(json!({"working_dir": "/tmp"}));
    let place = format!("/tmp/{}", common::new_mark());
    client.run(&id, &format!("mkdir {place} && echo kept > {place}/file"), json!({}));
    let second = client.run(&id, "cat file; pwd", json!({"cwd": place}));
    assert_eq!(second["stdout"], format!("kept\n{place}\n"));
    client.run(&id, &format!("rm -r {place}"), json!({}));
    let outcome = client.run(&id, "printf %s \"$X\" | sha256sum", json!({"env": {"X": "é✓"}}));
    assert_eq!(outcome["stdout"], format!("{}  -\n", sha256("é✓".as_bytes())));
}

#[test]
fn run_without_a_daemon_hands_on_output_and_exit_code() {
    for by in ways() {
        let home = Home::new(*by);
        let output = home
            .trl(&["run", "--env", "K=v", "--", "/bin/sh", "-c", "echo $K; echo e >&2; exit 7"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(7), "{by:?} {output:?}");
        assert_eq!(output.stdout, b"v\n");
        assert!(common::contains(&output.stderr, b"e\n"));
        let output = home.trl(&["run", "--", "/usr/bin/env"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains("TRL_") && !text.contains("canary"), "{text}");
    }
}
