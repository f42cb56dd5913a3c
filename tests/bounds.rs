//! Bounds that are reached: each is told by its name, and what is within it goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Client, Daemon, Home, marked, new_mark, pause, within};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[test]
fn a_command_that_burns_its_processor_time_ends_for_it() {
    for by in common::ways() {
        let home = Home::new(*by);
        let mut command = home.serve(&[]);
        command.env("TRL_CHILD_CPU_SEC", "1");
        let daemon = home.start_command(command);
        let mut client = daemon.connect();
        let session = client.session(json!({}));
        let outcome = client.run(&session, "echo burning; while :; do :; done", json!({"timeout_s": 30}));
        assert_eq!(outcome["end"]["reason"], "cpu_limit", "{outcome}");
        assert_eq!((&outcome["stdout"], &outcome["timed_out"]), (&json!("burning\n"), &json!(false)));
        assert!(outcome["exit_code"].as_i64().unwrap() > 128, "{outcome}");
        // Time that passes is no time that is used; a kill of another kind is told apart.
        assert_eq!(client.run(&session, "sleep 1.5; echo idle", json!({}))["stdout"], "idle\n");
        let killed = client.run(&session, "kill -XCPU $$", json!({}));
        assert_eq!(killed["end"]["reason"], "signaled", "{killed}");
    }
}

#[test]
fn a_session_near_its_end_says_so_to_who_is_attached() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({"ttl_s": 12, "grace_s": 0.1}));
    let exec = client.start(&session, "sleep 60", json!({}));
    let lasting = client.session(json!({}));
    let other = client.start(&lasting, "sleep 15", json!({}));
    let mut attached = daemon.connect();
    let (of, of_other) = (
        attached.send("exec.attach", json!({"exec_id": exec})),
        attached.send("exec.attach", json!({"exec_id": other})),
    );
    let events = |client: &mut Client, id: &str| {
        let mut seen: Vec<Value> = Vec::new();
        while seen.last().is_none_or(|message| message["event"] != "end") {
            let message = client.next_of(id);
            assert_ne!(message["ok"], false, "{message}");
            seen.extend(message.get("event").is_some().then_some(message));
        }
        seen
    };
    let seen = events(&mut attached, &of);
    let names: Vec<&str> = seen.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["expiring", "end"]);
    assert_eq!(
        (&seen[0]["data"]["session_id"], &seen[0]["data"]["exec_id"]),
        (&json!(session), &json!(exec))
    );
    assert!(seen[0]["data"]["at"].as_str().unwrap().ends_with('Z'), "{}", seen[0]);
    assert_eq!(seen[1]["data"]["end"]["reason"], "session_destroyed", "{}", seen[1]);
    let names: Vec<Value> =
        events(&mut attached, &of_other).iter().map(|event| event["event"].clone()).collect();
    assert_eq!(names, ["end"], "a session that lasts was said to expire");
}

#[test]
fn a_lost_client_has_its_grace_and_another_can_take_over() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let (lost, taken) = (new_mark(), new_mark());
    let mut leaving = daemon.connect();
    let more = |mark: &str| json!({"env": {"MARK": mark}, "on_disconnect": {"grace_s": 1.5}, "grace_s": 0.1});
    let gone = leaving.start(&session, "sleep 300", more(&lost));
    let kept = leaving.start(&session, "sleep 300", more(&taken));
    assert!(within(Duration::from_secs(5), || !marked(&lost).is_empty() && !marked(&taken).is_empty()));
    let left = Instant::now();
    drop(leaving);
    client.send("exec.attach", json!({"exec_id": kept}));
    pause(700);
    assert!(!marked(&lost).is_empty(), "ended before its grace");
    let outcome = daemon.connect().ok("exec.wait", json!({"exec_id": gone, "timeout_s": 10}));
    assert_eq!(outcome["end"]["reason"], "client_gone", "{outcome}");
    let took = left.elapsed();
    assert!(took > Duration::from_millis(1400) && took < Duration::from_secs(5), "{took:?}");
    assert!(marked(&lost).is_empty());
    pause(300);
    assert!(!marked(&taken).is_empty(), "ended though another had attached");
}

#[test]
fn the_oldest_ended_output_goes_first_and_says_that_it_is_gone() {
    let daemon = Home::new(common::By::Ordinary).start(&["--retained-output-bytes", "1048576"]);
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let limits = client.ok("system.info", json!({}))["limits"].take();
    assert_eq!(limits["retained_output_bytes"], 1_048_576, "{limits}");
    // Many that keep little must not shield the bound from one that keeps much.
    let small: Vec<String> = (0..20).map(|_| client.start(&session, "echo small", json!({}))).collect();
    for exec in &small {
        client.ok("exec.wait", json!({"exec_id": exec, "timeout_s": 10}));
    }
    let large: Vec<String> = (0..6)
        .map(|_| {
            let exec = client.start(&session, "yes | head -c 300000", json!({}));
            let outcome = client.ok("exec.wait", json!({"exec_id": exec, "timeout_s": 10}));
            assert_eq!(outcome["output"]["stdout"]["dropped_bytes"], 0, "the newest lost its own");
            exec
        })
        .collect();
    let read =
        |client: &mut Client, exec: &str| client.call("exec.read", json!({"exec_id": exec, "offset": 0}));
    for exec in small.iter().chain(&large[..3]) {
        assert_eq!(read(&mut client, exec)["error"]["code"], "EXEC_EXPIRED", "{exec}");
    }
    for exec in &large[3..] {
        let answer = read(&mut client, exec);
        assert_eq!((&answer["ok"], &answer["data"]["gap"]), (&json!(true), &Value::Null));
    }
    let stats = client.ok("system.stats", json!({}));
    assert!(stats["retained_output_bytes"].as_u64().unwrap() <= 1_048_576, "{stats}");
    // One that is alone too large loses its own past, and says so.
    let exec = client.start(&session, "yes | head -c 3000000", json!({}));
    let outcome = client.ok("exec.wait", json!({"exec_id": exec, "timeout_s": 10}));
    assert!(outcome["output"]["stdout"]["dropped_bytes"].as_u64().unwrap() > 1_900_000);
    assert_eq!(read(&mut client, &exec)["data"]["gap"]["from"], 0);
    let never = json!({"exec_id": "00000000-0000-4000-8000-000000000000"});
    assert_eq!(client.code("exec.read", never), "EXEC_NOT_FOUND");
}

#[test]
fn more_requests_a_second_than_may_be_are_refused() {
    let daemon = Home::new(common::By::Ordinary).start(&["--max-requests-per-s", "50"]);
    let mut client = daemon.connect();
    let limits = client.ok("system.info", json!({}))["limits"].take();
    assert_eq!(limits["max_requests_per_s"], 50, "{limits}");
    pause(1100);
    let mut refused = 0;
    let mut other = daemon.connect();
    let begun = Instant::now();
    for number in 0..200 {
        // A second connection of the same user is no way around it.
        let answer = if number % 2 == 0 { &mut client } else { &mut other }.call("system.ping", json!({}));
        if answer["ok"] == false {
            assert_eq!(answer["error"]["code"], "TOO_MANY_REQUESTS", "{answer}");
            assert!(answer["error"]["detail"]["retry_after_ms"].as_u64().unwrap() <= 20, "{answer}");
            refused += 1;
        }
    }
    let allowed = 50 + (begun.elapsed().as_secs_f64() * 50.0) as usize + 1;
    assert!(refused > 0 && 200 - refused <= allowed, "{refused} refused, {allowed} may pass");
    pause(300);
    client.ok("system.ping", json!({}));
    // By default nobody meets the bound who waits for answers.
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    for _ in 0..2000 {
        client.ok("system.ping", json!({}));
    }
}

#[test]
fn the_sweep_ends_what_belongs_to_no_session() {
    use std::os::unix::process::CommandExt;
    let home = Home::new(common::By::Ordinary);
    let daemon = home.start(&["--sweep-every-s", "0.5"]);
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let exec = client.start(&session, "sleep 300", json!({}));
    let (stray, control) = (new_mark(), new_mark());
    let sleeper = |mark: &str, limit: Option<u64>| {
        let mut command = std::process::Command::new("/bin/sh");
        let limit =
            limit.map_or(String::new(), |limit| format!("prlimit --rttime={limit}:{limit} --pid $$; "));
        command.args(["-c", &format!("{limit}exec sleep 300")]).env("MARK", mark);
        if common::is_root() {
            command.uid(common::ORDINARY_UID).gid(common::ORDINARY_UID);
        }
        command.spawn().unwrap()
    };
    // What a session's processes are known by, put on a process that never was in one.
    let instance =
        trl::sys::mark::of_instance(std::fs::File::open(home.runtime().join("trl.sock.lock")).unwrap())
            .unwrap();
    let (mut stray_child, mut control_child) = (sleeper(&stray, Some(instance)), sleeper(&control, None));
    let ended = within(Duration::from_secs(10), || stray_child.try_wait().unwrap().is_some());
    let lives = control_child.try_wait().unwrap().is_none();
    for child in [&mut stray_child, &mut control_child] {
        // One that has ended has nothing to kill.
        child.kill().ok();
        child.wait().unwrap();
    }
    assert!(ended, "not swept");
    assert!(lives, "a stranger was swept");
    assert!(
        within(Duration::from_secs(2), || daemon.log_text().contains("the sweep found")),
        "{}",
        daemon.log_text()
    );
    assert_eq!(client.ok("exec.info", json!({"exec_id": exec}))["state"], "running", "a session was swept");
}
