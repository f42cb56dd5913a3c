//! Bad input of every kind is answered as the contract says, and the daemon serves on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Client, Daemon, is_root};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;

fn answer(client: &mut Client, line: &str) -> Value {
    client.line(line);
    client.next().expect("an answer")
}

fn assert_serves(client: &mut Client) {
    assert!(client.ok("system.ping", json!({}))["version"].is_string());
}

#[test]
fn malformed_requests_are_refused_and_the_connection_lives() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    for (line, id, code, names) in [
        ("{\"id\": \"a\", ", Value::Null, "INVALID_PARAMS", "line"),
        ("nonsense", Value::Null, "INVALID_PARAMS", "column"),
        ("\"text\"", Value::Null, "INVALID_PARAMS", ""),
        ("{\"id\":\"a\",\"method\":\"system.ping\"} x", Value::Null, "INVALID_PARAMS", "column"),
        ("{\"method\":\"system.ping\"}", Value::Null, "INVALID_PARAMS", "id"),
        ("{\"id\":\"a\",\"id\":\"b\",\"method\":\"system.ping\"}", Value::Null, "INVALID_PARAMS", "id"),
        ("{\"id\":1.5,\"method\":\"system.ping\"}", Value::Null, "INVALID_PARAMS", "id"),
        ("{\"id\":\"a\"}", json!("a"), "INVALID_PARAMS", "method"),
        ("{\"id\":\"a\",\"method\":\"system.ping\",\"params\":[]}", json!("a"), "INVALID_PARAMS", "params"),
        ("{\"id\":\"a\",\"method\":\"no.such\"}", json!("a"), "METHOD_NOT_FOUND", ""),
        (
            "{\"id\":\"a\",\"method\":\"session.create\",\"params\":{\"shel\":\"value-canary\"}}",
            json!("a"),
            "INVALID_PARAMS",
            "shel",
        ),
        (
            "{\"id\":\"a\",\"method\":\"session.create\",\"params\":{\"env\":{\"K\":\"value-canary\",\"K\":\"2\"}}}",
            json!("a"),
            "INVALID_PARAMS",
            "K",
        ),
        (
            "{\"id\":\"a\",\"method\":\"session.create\",\"params\":{\"env\":{\"K\":7}}}",
            json!("a"),
            "INVALID_PARAMS",
            "env",
        ),
        (
            "{\"id\":\"a\",\"method\":\"session.create\",\"params\":{\"env\":{\"A=B\":\"value-canary\"}}}",
            json!("a"),
            "INVALID_PARAMS",
            "env",
        ),
        (
            "{\"id\":\"a\",\"method\":\"session.create\",\"params\":{\"timeout_s\":\"value-canary\"}}",
            json!("a"),
            "INVALID_PARAMS",
            "timeout_s",
        ),
        (
            "{\"id\":\"a\",\"method\":\"exec.run\",\"params\":{\"command\":\"value-canary\"}}",
            json!("a"),
            "INVALID_PARAMS",
            "session_id",
        ),
    ] {
        let got = answer(&mut client, line);
        assert_eq!(got["ok"], false, "{line} -> {got}");
        assert_eq!(got["error"]["code"], code, "{line} -> {got}");
        // A duplicate key makes which id it is unsure: either reading is taken.
        if !line.contains("\"id\":\"b\"") && !line.contains("\"K\":\"2\"") {
            assert_eq!(got["id"], id, "{line} -> {got}");
        }
        assert!(got["error"].to_string().contains(names), "{line} -> {got}");
        assert!(!got.to_string().contains("value-canary"), "{line} -> {got}");
        assert_serves(&mut client);
    }
    client.raw(b"\xff\xfe{}\n");
    assert_eq!(client.next().unwrap()["error"]["code"], "INVALID_PARAMS");
    let deep = format!("{{\"id\":\"a\",\"method\":\"system.ping\",\"params\":{}", "[".repeat(200_000));
    assert_eq!(answer(&mut client, &deep)["ok"], false);
    assert_serves(&mut client);
    assert!(!daemon.log_text().contains("value-canary"));
}

#[test]
fn a_line_over_4_mib_is_refused_and_only_its_connection_closes() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let padding = "x".repeat(4 * 1024 * 1024);
    client
        .raw_lossy(format!("{{\"id\":\"a\",\"method\":\"system.ping\",\"pad\":\"{padding}\"}}\n").as_bytes());
    let got = client.next().expect("an answer");
    assert_eq!(got["error"]["code"], "REQUEST_TOO_LARGE", "{got}");
    assert!(client.next().is_none());
    let mut other = daemon.connect();
    assert_serves(&mut other);
    // Just below it is read as what it is.
    let line = format!(
        "{{\"id\":\"a\",\"method\":\"system.ping\",\"params\":{{\"pad\":\"{}\"}}}}",
        "x".repeat(4_100_000)
    );
    assert_eq!(answer(&mut other, &line)["error"]["code"], "INVALID_PARAMS");
    assert_serves(&mut other);
}

#[test]
fn an_id_in_flight_is_refused_and_integers_are_ids() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let run =
        json!({"id": 7, "method": "exec.run", "params": {"session_id": session, "command": "sleep 0.5"}});
    client.line(&run.to_string());
    client.line("{\"id\":7,\"method\":\"system.ping\"}");
    let refused = client.next().unwrap();
    assert_eq!(refused["id"], 7);
    assert_eq!(refused["error"]["code"], "INVALID_PARAMS", "{refused}");
    let done = client.next().unwrap();
    assert_eq!((&done["id"], &done["ok"]), (&json!(7), &json!(true)));
    client.line("{\"id\":7,\"method\":\"system.ping\"}");
    assert_eq!(client.next().unwrap()["ok"], true);
}

#[test]
fn requests_run_side_by_side_and_128_is_the_most() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let exec = client.start(&session, "sleep 30", json!({}));
    for _ in 0..128 {
        client.send("exec.wait", json!({"exec_id": exec, "timeout_s": 20}));
    }
    let refused = client.send("system.ping", json!({}));
    assert_eq!(client.next_of(&refused)["error"]["code"], "TOO_MANY_REQUESTS");
    let mut other = daemon.connect();
    other.ok("exec.cancel", json!({"exec_id": exec, "grace_s": 0.1}));
    for _ in 0..128 {
        assert_eq!(client.next().unwrap()["ok"], true);
    }
    assert_serves(&mut client);
}

#[test]
fn json_rpc_is_answered_as_json_rpc() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let got = answer(&mut client, r#"{"jsonrpc":"2.0","id":1,"method":"system.ping"}"#);
    assert_eq!((&got["jsonrpc"], &got["id"]), (&json!("2.0"), &json!(1)));
    assert!(got["result"]["version"].is_string() && got.get("ok").is_none(), "{got}");
    for (line, number, code) in [
        (r#"{"jsonrpc":"2.0","id":1,"method":"no.such"}"#, -32601, "METHOD_NOT_FOUND"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"session.create","params":{"x":1}}"#, -32602, "INVALID_PARAMS"),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"session.info","params":{"session_id":"00000000-0000-4000-8000-000000000000"}}"#,
            -32000,
            "SESSION_NOT_FOUND",
        ),
    ] {
        let got = answer(&mut client, line);
        assert_eq!(got["error"]["code"], number, "{got}");
        assert_eq!(got["error"]["data"]["code"], code, "{got}");
    }
    let batch = answer(&mut client, r#"[{"jsonrpc":"2.0","id":1,"method":"system.ping"}]"#);
    assert_eq!(batch["error"]["code"], -32600, "{batch}");

    // Notifications: carried out or refused without a session, and never answered with a result.
    client.line(r#"{"jsonrpc":"2.0","method":"system.ping"}"#);
    client.line(r#"{"jsonrpc":"2.0","method":"session.create","params":{"policy":"l1"}}"#);
    assert_eq!(daemon.connect().ok("session.list", json!({}))["sessions"], json!([]));

    let session = daemon.connect().session(json!({}));
    let run = json!({"jsonrpc": "2.0", "id": "s", "method": "exec.stream", "params": {"session_id": session, "command": "echo one"}});
    client.line(&run.to_string());
    let (mut output, mut ended, mut started) = (String::new(), false, false);
    while !ended {
        let message = client.next().unwrap();
        match message["method"].as_str() {
            Some("trl/output") => {
                assert_eq!(message["params"]["id"], "s", "{message}");
                assert!(message["params"]["exec_id"].is_string(), "{message}");
                output += message["params"]["data"].as_str().unwrap();
            }
            Some("trl/end") => ended = true,
            Some(_) => {}
            None => started |= message["id"] == "s" && message["result"]["exec_id"].is_string(),
        }
    }
    assert!(started);
    assert_eq!(output, "one\n");
}

#[test]
fn the_socket_is_its_users_alone() {
    for by in common::ways() {
        let daemon = common::Home::new(*by).start(&[]);
        let socket = std::fs::metadata(daemon.home.socket()).unwrap();
        let directory = std::fs::metadata(daemon.home.runtime()).unwrap();
        assert_eq!(socket.mode() & 0o7777, 0o600);
        assert_eq!(directory.mode() & 0o7777, 0o700);
        assert_eq!(socket.uid(), directory.uid());
        assert_ne!(socket.uid(), 0);
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        for line in status.lines().filter(|line| line.starts_with("Uid:") || line.starts_with("Gid:")) {
            assert!(line.split_ascii_whitespace().skip(1).all(|id| id != "0"), "{by:?} {line}");
        }
        if is_root() {
            for line in
                status.lines().filter(|line| line.starts_with("CapEff:") || line.starts_with("CapPrm:"))
            {
                assert!(line.ends_with("0000000000000000"), "{by:?} {line}");
            }
        }
    }
}

#[test]
fn an_answered_request_is_answered_again_and_not_run_twice() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let create = json!({"policy": "l1", "idempotency_key": "k"});
    let first = client.ok("session.create", create.clone());
    let second = client.ok("session.create", create);
    assert_eq!(first["session_id"], second["session_id"]);
    let other = json!({"policy": "l1", "name": "other", "idempotency_key": "k"});
    assert_eq!(client.code("session.create", other), "IDEMPOTENCY_CONFLICT");
    let session = first["session_id"].as_str().unwrap();
    let run = json!({"idempotency_key": "r"});
    let first = client.run(session, "echo $$", run.clone());
    let second = client.run(session, "echo $$", run);
    assert_eq!((&first["exec_id"], &first["stdout"]), (&second["exec_id"], &second["stdout"]));
    assert_eq!(client.ok("session.info", json!({"session_id": session}))["command_count"], 1);
}
