//! Outcomes, output and input: nothing is lost in silence, nothing waits for ever, nothing grows for ever.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use base64::Engine;
use common::{By, Daemon, Home, bytes_of, pause, sha256};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[test]
fn a_timeout_has_the_output_so_far() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({"timeout_s": 0.5, "grace_s": 0.2}));
    let begun = Instant::now();
    let outcome = client.run(&session, "echo partial; echo error >&2; sleep 300", json!({}));
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert_eq!(outcome["stdout"], "partial\n");
    assert_eq!(outcome["stderr"], "error\n");
    assert_eq!(outcome["timed_out"], true);
    assert_eq!(outcome["end"]["reason"], "timeout");
    assert_eq!(client.run(&session, "echo next", json!({}))["stdout"], "next\n");
    let idle = json!({"timeout_s": 30, "idle_timeout_s": 0.4});
    let outcome = client.run(&session, "echo a; sleep 0.2; echo b; sleep 300", idle);
    assert_eq!(outcome["end"]["reason"], "idle_timeout", "{outcome}");
    assert_eq!(outcome["stdout"], "a\nb\n");
}

#[test]
fn exit_codes_signals_and_failures_to_start_are_told_apart() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    for code in [0, 1, 42, 127, 137, 255] {
        let outcome = client.run(&session, &format!("exit {code}"), json!({}));
        assert_eq!(outcome["exit_code"], code);
        assert_eq!(outcome["end"]["reason"], "exited", "{outcome}");
    }
    for (name, number) in [("TERM", 15), ("KILL", 9), ("SEGV", 11), ("USR1", 10)] {
        let outcome = client.run(&session, &format!("kill -{name} $$"), json!({}));
        assert_eq!(outcome["exit_code"], 128 + number);
        assert_eq!(outcome["end"]["reason"], "signaled", "{outcome}");
        assert!(outcome["end"]["signal"].to_string().contains(name), "{outcome}");
        assert_eq!(outcome["timed_out"], false);
    }
    for (program, code) in [("/no/such/program", 127), ("/etc/passwd", 126), ("no-such-program", 127)] {
        let outcome = client.ok("exec.run", json!({"session_id": session, "argv": [program]}));
        assert_eq!(outcome["exit_code"], code, "{outcome}");
        assert_eq!(outcome["end"]["reason"], "spawn_failed", "{outcome}");
        assert_eq!(outcome["end"]["detail"]["stage"], "exec", "{outcome}");
        assert!(outcome["end"]["detail"]["errno"].is_i64(), "{outcome}");
    }
    let nowhere = json!({"session_id": session, "command": "true", "cwd": "/no/such/place"});
    let answer = client.call("exec.run", nowhere);
    if answer["ok"] == true {
        assert_eq!(answer["data"]["exit_code"], 125, "{answer}");
        assert_eq!(answer["data"]["end"]["reason"], "spawn_failed", "{answer}");
    } else {
        assert!(
            ["SPAWN_FAILED", "INVALID_PARAMS"].contains(&answer["error"]["code"].as_str().unwrap()),
            "{answer}"
        );
    }
    let found = client.ok("exec.run", json!({"session_id": session, "argv": ["echo", "by PATH"]}));
    assert_eq!(found["stdout"], "by PATH\n", "{found}");
}

#[test]
fn bytes_that_are_no_text_come_as_base64_and_text_is_never_cut() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let outcome = client.run(&session, "printf '\\377\\376ok'", json!({}));
    assert_eq!(outcome["output"]["stdout"]["encoding"], "base64");
    assert_eq!(outcome["stdout"], base64::engine::general_purpose::STANDARD.encode(b"\xff\xfeok"));
    let slow =
        "for i in 1 2 3 4 5; do printf '\\342'; sleep 0.02; printf '\\202'; sleep 0.02; printf '\\254'; done";
    let id = client.send("exec.stream", json!({"session_id": session, "command": slow}));
    let mut text = String::new();
    loop {
        let message = client.next_of(&id);
        match message["event"].as_str() {
            Some("output") => {
                assert_eq!(message["data"]["encoding"], "utf-8", "{message}");
                text += message["data"]["data"].as_str().unwrap();
            }
            Some("end") => break,
            _ => {}
        }
    }
    assert_eq!(text, "€€€€€");
    let more = json!({"max_output_bytes": 1000});
    let cut = client.run(&session, "i=0; while [ $i -lt 1000 ]; do printf '€'; i=$((i+1)); done", more);
    assert_eq!(cut["output"]["stdout"]["encoding"], "utf-8", "{}", cut["output"]);
    assert_eq!(cut["output"]["stdout"]["total_bytes"], 3000);
    assert!(cut["output"]["stdout"]["dropped_bytes"].as_u64().unwrap() >= 2000);
    assert!(cut["stdout"].as_str().unwrap().chars().filter(|c| *c == '€').count() >= 300);
}

/// Reads an attached exec to its end; yields what came and the end's data.
fn follow(client: &mut common::Client, params: Value) -> (Vec<u8>, Vec<Value>, Value) {
    let mut at = params["stdout_offset"].as_u64().unwrap_or(0);
    let id = client.send("exec.attach", params);
    let (mut bytes, mut gaps) = (Vec::new(), Vec::new());
    loop {
        let mut message = client.next_of(&id);
        let data = message["data"].take();
        match message["event"].as_str() {
            Some("output") if data["stream"] == "stdout" => {
                assert_eq!(data["offset"], at, "a seam");
                let piece = bytes_of(&data);
                at += piece.len() as u64;
                bytes.extend_from_slice(&piece);
            }
            Some("gap") => {
                assert_eq!(data["from"], at);
                at = data["to"].as_u64().unwrap();
                gaps.push(data);
            }
            Some("end") => return (bytes, gaps, data),
            _ => assert!(message["ok"] != false, "{message}"),
        }
    }
}

#[test]
fn what_goes_through_stdin_comes_back_the_same() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    // Bytes of every kind, never the same block twice.
    let mut state = 1u64;
    let data: Vec<u8> = (0..common::times(20, 100) * 1024 * 1024)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect();
    let more = json!({"stdin_mode": "pipe", "overflow": "block", "timeout_s": 120});
    let exec = client.start(&session, "cat", more);
    let reader = {
        let (mut client, exec) = (daemon.connect(), exec.clone());
        std::thread::spawn(move || follow(&mut client, json!({"exec_id": exec})))
    };
    let mut offset = 0usize;
    let mut full = 0u32;
    let deadline = Instant::now() + Duration::from_secs(90);
    while offset < data.len() {
        assert!(Instant::now() < deadline, "stuck at {offset}");
        let end = data.len().min(offset + 512 * 1024);
        let text = base64::engine::general_purpose::STANDARD.encode(&data[offset..end]);
        let params = json!({"exec_id": exec, "offset": offset, "data": text, "encoding": "base64", "eof": end == data.len()});
        let answer = client.call("exec.write", params);
        let accepted = if answer["ok"] == true {
            &answer["data"]["accepted_offset"]
        } else {
            assert_eq!(answer["error"]["code"], "STDIN_FULL", "{answer}");
            full += 1;
            pause(5);
            &answer["error"]["detail"]["accepted_offset"]
        };
        offset = usize::try_from(accepted.as_u64().unwrap()).unwrap();
    }
    let (bytes, gaps, end) = reader.join().unwrap();
    assert!(gaps.is_empty(), "{gaps:?}");
    assert_eq!(bytes.len(), data.len());
    assert_eq!(sha256(&bytes), sha256(&data), "after {full} times full");
    assert_eq!(end["exit_code"], 0);
    let late = json!({"exec_id": exec, "offset": data.len(), "data": "x"});
    assert_eq!(client.code("exec.write", late), "STDIN_CLOSED");
}

#[test]
fn the_same_write_twice_is_written_once() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let exec = client.start(&session, "cat", json!({"stdin_mode": "pipe"}));
    for (offset, text, accepted) in [(0, "abc", 3), (0, "abc", 3), (1, "bcde", 5), (5, "", 5)] {
        let params = json!({"exec_id": exec, "offset": offset, "data": text});
        assert_eq!(client.ok("exec.write", params)["accepted_offset"], accepted);
    }
    let hole = json!({"exec_id": exec, "offset": 9, "data": "z"});
    assert!(client.call("exec.write", hole)["ok"] == false);
    client.ok("exec.write", json!({"exec_id": exec, "offset": 5, "data": "f", "eof": true}));
    let outcome = client.ok("exec.wait", json!({"exec_id": exec, "timeout_s": 10}));
    assert_eq!(outcome["stdout"], "abcdef");
}

#[test]
fn another_client_goes_on_where_a_lost_one_stopped() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let command = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.003; done";
    let exec = client.start(&session, command, json!({}));
    let mut lost = daemon.connect();
    let id = lost.send("exec.attach", json!({"exec_id": exec}));
    let mut seen = Vec::new();
    while seen.len() < 600 {
        let message = lost.next_of(&id);
        if message["event"] == "output" {
            seen.extend_from_slice(&bytes_of(&message["data"]));
        }
    }
    drop(lost);
    pause(50);
    let mut next = daemon.connect();
    let (rest, gaps, end) = follow(&mut next, json!({"exec_id": exec, "stdout_offset": seen.len()}));
    seen.extend_from_slice(&rest);
    let expected: String = (0..300).map(|number| format!("line {number}\n")).collect();
    assert_eq!(String::from_utf8(seen).unwrap(), expected);
    assert!(gaps.is_empty());
    assert_eq!(end["exit_code"], 0);
    let read = json!({"exec_id": exec, "stream": "stdout", "offset": 5, "max_bytes": 4});
    let read = client.ok("exec.read", read);
    assert_eq!((&read["data"], &read["next_offset"]), (&json!("0\nli"), &json!(9)), "{read}");
}

fn rss(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Asks a daemon on and on while somebody's `yes` floods it: it answers, and does not grow.
fn assert_steady(daemon: &Daemon, client: &mut common::Client, before: u64) {
    let begun = Instant::now();
    let mut most = 0;
    while begun.elapsed() < Duration::from_secs(common::times(5, 30) as u64) {
        let asked = Instant::now();
        client.ok("system.ping", json!({}));
        assert!(asked.elapsed() < Duration::from_secs(1), "others wait");
        most = most.max(rss(daemon.pid()));
        pause(50);
    }
    let growth = most.saturating_sub(before);
    println!("resident: {before} bytes before, {growth} more at most");
    assert!(growth < 16 * 1024 * 1024, "grew by {growth} bytes");
}

#[test]
fn output_that_nobody_reads_costs_little() {
    for by in common::ways() {
        let daemon = Home::new(*by).start(&[]);
        let mut client = daemon.connect();
        let session = client.session(json!({}));
        client.run(&session, "true", json!({}));
        let before = rss(daemon.pid());
        let exec = client.start(&session, "yes", json!({"timeout_s": 60}));
        assert_steady(&daemon, &mut client, before);
        let outcome = client.ok("exec.cancel", json!({"exec_id": exec, "grace_s": 1}));
        let total = outcome["output"]["stdout"]["total_bytes"].as_u64().unwrap();
        let kept = outcome["stdout"].as_str().unwrap().len() as u64;
        assert!(total > 100 * 1024 * 1024, "the program was held up: {total} bytes");
        assert_eq!(outcome["output"]["stdout"]["dropped_bytes"].as_u64().unwrap() + kept, total);
        assert!(kept > 4_000_000 && kept <= 4 << 20, "{kept} kept");
    }
}

#[test]
fn a_reader_that_is_stuck_costs_little_and_is_cut_off() {
    for by in common::ways() {
        stuck_reader(*by);
    }
}

fn stuck_reader(by: By) {
    let daemon = Home::new(by).start(&[]);
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    client.run(&session, "true", json!({}));
    let before = rss(daemon.pid());
    let mut stuck = daemon.connect();
    let exec = client.start(&session, "yes", json!({"timeout_s": 60}));
    let id = stuck.send("exec.attach", json!({"exec_id": exec}));
    assert_steady(&daemon, &mut client, before);
    // What it finds when it reads at last: a cut with the offsets to go on from, or a gap that is told.
    let (mut told, mut at) = (false, 0);
    for _ in 0..100_000 {
        let Some(message) = stuck.next() else { break };
        if message["id"] != id.as_str() {
            continue;
        }
        if message["event"] == "gap" {
            assert_eq!(message["data"]["from"], at);
            told = true;
            break;
        }
        if message["event"] == "output" {
            assert_eq!(message["data"]["offset"], at, "a silent skip");
            at += bytes_of(&message["data"]).len() as u64;
        }
        if message["ok"] == false || message["error"].is_object() {
            assert_eq!(message["error"]["code"], "SLOW_CONSUMER", "{message}");
            assert!(message["error"]["detail"].to_string().contains("offset"), "{message}");
            told = true;
            break;
        }
    }
    assert!(told, "neither SLOW_CONSUMER nor a gap");
    drop(stuck);
    client.ok("session.destroy", json!({"session_id": session, "force": true}));
}

#[test]
fn what_was_dropped_is_told_as_a_gap() {
    let daemon = Home::new(By::Ordinary).start(&["--max-output-bytes", "65536"]);
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let exec = client.start(&session, "yes | head -c 1000000", json!({}));
    let outcome = client.ok("exec.wait", json!({"exec_id": exec, "timeout_s": 20}));
    assert_eq!(outcome["output"]["stdout"]["total_bytes"], 1_000_000, "{}", outcome["output"]);
    let (bytes, gaps, _) = follow(&mut client, json!({"exec_id": exec}));
    let lost: u64 = gaps.iter().map(|gap| gap["to"].as_u64().unwrap() - gap["from"].as_u64().unwrap()).sum();
    assert_eq!(lost + bytes.len() as u64, 1_000_000);
    assert!(lost > 0);
    let read = json!({"exec_id": exec, "stream": "stdout", "offset": 0, "max_bytes": 10});
    assert!(!client.ok("exec.read", read)["gap"].is_null());
}

#[test]
fn a_run_that_yields_is_still_running_and_can_be_waited_for() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let early = client.run(&session, "sleep 0.5; echo late", json!({"yield_ms": 50}));
    assert_eq!(early["state"], "running", "{early}");
    let late = client.ok("exec.wait", json!({"exec_id": early["exec_id"], "timeout_s": 10}));
    assert_eq!(late["stdout"], "late\n");
    let exec =
        client.start(&session, "trap 'echo got; exit 9' USR1; while :; do sleep 0.05; done", json!({}));
    pause(150);
    let sent = client.ok("exec.signal", json!({"exec_id": exec, "signal": "USR1", "target": "leader"}));
    assert!(!sent["delivered"].is_null(), "{sent}");
    let outcome = client.ok("exec.wait", json!({"exec_id": exec, "timeout_s": 10}));
    assert_eq!((&outcome["exit_code"], &outcome["stdout"]), (&json!(9), &json!("got\n")));
    let unknown = json!({"exec_id": "00000000-0000-4000-8000-000000000000"});
    assert_eq!(client.code("exec.wait", unknown), "EXEC_NOT_FOUND");
}

#[test]
fn a_character_longer_than_what_is_asked_for_comes_whole() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let exec = client.start(
        &session,
        "printf 'a\\342\\202\\254b\\303\\251'; sleep 0.5; printf '\\342\\202'",
        json!({}),
    );
    let read = |client: &mut common::Client, offset: u64| {
        let params =
            json!({"exec_id": exec, "stream": "stdout", "offset": offset, "max_bytes": 2, "wait_ms": 3000});
        client.ok("exec.read", params)
    };
    // Never more than was asked for but for a first character, and none in two.
    for (offset, text, next) in [(0, "a", 1), (1, "€", 4), (4, "b", 5), (5, "é", 7)] {
        let part = read(&mut client, offset);
        assert_eq!((&part["data"], &part["encoding"]), (&json!(text), &json!("utf-8")), "{part}");
        assert_eq!((&part["next_offset"], &part["ended"]), (&json!(next), &json!(false)), "{part}");
    }
    client.ok("exec.wait", json!({"exec_id": exec, "timeout_s": 10}));
    // What never became a character comes as bytes once nothing more can come.
    let rest = read(&mut client, 7);
    assert_eq!(bytes_of(&rest), b"\xe2\x82", "{rest}");
    assert_eq!(
        (&rest["encoding"], &rest["next_offset"], &rest["ended"]),
        (&json!("base64"), &json!(9), &json!(true))
    );
}
