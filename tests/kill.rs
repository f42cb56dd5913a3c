//! Commands that try to outlive their end: none does, whichever way it is ended.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{By, Client, Home, marked, new_mark, pause, within};
use serde_json::json;
use std::time::{Duration, Instant};

/// Each stays alive by itself, its leader too; with the least number of processes that it comes to.
const ARTISTS: &[(usize, &str)] = &[
    // A session of its own.
    (4, "setsid sleep 300 & setsid setsid sleep 300 & sleep 300"),
    // Fork twice, lose every parent.
    (4, "(setsid sh -c '(sleep 300 &) & (setsid sleep 300 &)' &) ; sleep 300"),
    // Deaf to what can be ignored.
    (
        3,
        "trap '' TERM INT HUP QUIT; setsid sh -c \"trap '' TERM; while :; do sleep 1; done\" & while :; do sleep 1; done",
    ),
    // Stopped, where a signal waits until it goes on.
    (3, "sh -c 'kill -STOP $$; sleep 300' & setsid sh -c 'kill -STOP $$' & kill -STOP $$; sleep 300"),
    // A bomb of bounded size.
    (20, "f() { if [ $1 -gt 0 ]; then f $(($1-1)) & f $(($1-1)) & fi; exec sleep 300; }; f 4"),
    // One that goes on forking while it is hunted.
    (
        3,
        "g() { while :; do (setsid sh -c 'sleep 0.02 & sleep 0.01' &); sleep 0.005; done; }; trap '' TERM; g & sleep 300",
    ),
    // Known by its arguments alone.
    (4, "(env -i setsid sh -c \"sleep 300; : $MARK\" &) ; env -i sh -c \"sleep 300; : $MARK\" & sleep 300"),
    // Holders of the output.
    (3, "exec 3>&1 4>&2; setsid sleep 300 & (trap '' TERM; sleep 300) & wait"),
];

#[derive(Clone, Copy, Debug)]
enum End {
    Cancel,
    Timeout,
    Destroy,
}

fn assert_there(mark: &str, least: usize, artist: &str) {
    let there = within(Duration::from_secs(5), || marked(mark).len() >= least);
    assert!(there, "{artist}: only {:?} came", marked(mark));
}

fn round(client: &mut Client, (least, artist): (usize, &str), end: End, force: bool) {
    let mark = new_mark();
    let session = client.session(json!({"grace_s": 0.1, "env": {"MARK": mark}}));
    let begun = Instant::now();
    match end {
        End::Timeout => {
            let more = json!({"timeout_s": 0.3, "grace_s": 0.1});
            let outcome = client.run(&session, artist, more);
            assert_eq!(outcome["end"]["reason"], "timeout", "{artist}: {outcome}");
            assert_eq!(outcome["timed_out"], true);
        }
        End::Cancel => {
            let exec = client.start(&session, artist, json!({}));
            assert_there(&mark, least, artist);
            let outcome = client.ok("exec.cancel", json!({"exec_id": exec, "grace_s": 0.1}));
            assert_eq!(outcome["end"]["reason"], "canceled", "{artist}: {outcome}");
        }
        End::Destroy => {
            client.start(&session, artist, json!({}));
            assert_there(&mark, least, artist);
        }
    }
    if matches!(end, End::Destroy) {
        let gone = client.ok("session.destroy", json!({"session_id": session, "force": force}));
        assert_eq!(gone["state"], "terminated");
        assert!(gone["killed"].as_u64().unwrap() >= 1 || !force, "{artist}: {gone}");
    }
    let left = marked(&mark);
    assert!(left.is_empty(), "{artist} {end:?}: {left:?} live on");
    if !matches!(end, End::Destroy) {
        let after = client.run(&session, "echo alive", json!({}));
        assert_eq!(after["stdout"], "alive\n", "{artist} {end:?}: {after}");
        client.ok("session.destroy", json!({"session_id": session, "force": true}));
    }
    let bound = if force { 6 } else { 12 };
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(bound), "{artist} {end:?}: took {took:?}");
}

fn rounds(by: By, count: usize) {
    let daemon = Home::new(by).start(&[]);
    std::thread::scope(|scope| {
        for lane in 0..3 {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut client = daemon.connect();
                for number in (lane..count).step_by(3) {
                    let end =
                        [End::Cancel, End::Timeout, End::Destroy][(number / ARTISTS.len() + number) % 3];
                    round(&mut client, ARTISTS[number % ARTISTS.len()], end, number % 11 != 0);
                }
            });
        }
    });
    let stats = daemon.connect().ok("system.stats", json!({}));
    assert_eq!((&stats["active_sessions"], &stats["running_execs"]), (&json!(0), &json!(0)));
    assert!(daemon.inits().is_empty());
}

#[test]
fn nothing_escapes_an_ordinary_users_daemon() {
    rounds(By::Ordinary, common::times(48, 200));
}

#[test]
fn nothing_escapes_a_daemon_that_root_started() {
    if common::needs_root("a daemon of root's is in it") {
        rounds(By::Root, common::times(24, 200));
    }
}

#[test]
fn descendants_of_an_ended_leader_go_as_they_were_told() {
    let daemon = common::Daemon::ordinary();
    let mut client = daemon.connect();
    let leave = "(setsid sleep 300 >/dev/null 2>&1 &) ; echo left";

    let mark = new_mark();
    let session = client.session(json!({"env": {"MARK": mark}}));
    let kept = client.run(&session, leave, json!({}));
    assert_eq!((&kept["stdout"], &kept["exit_code"]), (&json!("left\n"), &json!(0)));
    pause(100);
    assert_eq!(marked(&mark).len(), 1, "kept by default");
    client.ok("session.destroy", json!({"session_id": session, "force": true}));
    assert!(marked(&mark).is_empty(), "outlived its session");

    let mark = new_mark();
    let session = client.session(json!({"env": {"MARK": mark}}));
    let outcome = client.run(&session, leave, json!({"on_exit_descendants": "kill"}));
    assert_eq!(outcome["end"]["reason"], "exited");
    assert!(marked(&mark).is_empty());

    let wait = json!({"on_exit_descendants": "wait"});
    let begun = Instant::now();
    client.run(&session, "(setsid sleep 0.7 &) ; true", wait);
    assert!(begun.elapsed() >= Duration::from_millis(650));
    let wait = json!({"on_exit_descendants": "wait", "timeout_s": 0.5, "grace_s": 0.1});
    let outcome = client.run(&session, leave, wait);
    assert_eq!(outcome["end"]["reason"], "timeout", "{outcome}");
    assert!(marked(&mark).is_empty());
}

#[test]
fn a_holder_of_stdout_does_not_delay_the_answer() {
    let daemon = common::Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    for command in [
        "(setsid sleep 300 &) ; echo done",
        "sleep 300 & echo done",
        "(while :; do echo done; sleep 0.01; done) & echo done",
    ] {
        let begun = Instant::now();
        let outcome = client.run(&session, command, json!({}));
        assert!(begun.elapsed() < Duration::from_secs(2), "{command}");
        assert!(outcome["stdout"].as_str().unwrap().starts_with("done\n"));
        assert_eq!(outcome["exit_code"], 0);
    }
    client.ok("session.destroy", json!({"session_id": session, "force": true}));
}

#[test]
fn a_client_that_goes_takes_its_run_along_and_leaves_its_start() {
    let daemon = common::Daemon::ordinary();
    let mut client = daemon.connect();
    let (run, start) = (new_mark(), new_mark());
    let session = client.session(json!({"grace_s": 0.1}));
    let mut other = daemon.connect();
    other.send(
        "exec.run",
        json!({"session_id": session, "command": "sleep 300", "env": {"MARK": run}, "grace_s": 0.1}),
    );
    other.start(&session, "sleep 300", json!({"env": {"MARK": start}}));
    assert!(within(Duration::from_secs(5), || !marked(&run).is_empty()));
    drop(other);
    assert!(within(Duration::from_secs(5), || marked(&run).is_empty()));
    assert!(!marked(&start).is_empty());
    client.ok("session.destroy", json!({"session_id": session, "force": true}));
    assert!(marked(&start).is_empty());
}

#[test]
fn who_kills_or_stops_what_watches_it_ends_all_the_same() {
    let daemon = common::Daemon::ordinary();
    for attack in [
        "kill -KILL $PPID; (setsid sleep 300 &); sleep 300",
        "kill -STOP $PPID; (setsid sleep 300 &); sleep 300",
        "(setsid sleep 300 &); kill -STOP $PPID; exit 0",
        "(setsid sleep 300 &); kill -KILL $PPID; exit 0",
        "i=$(cut -d' ' -f4 /proc/$PPID/stat); kill -STOP $i; (setsid sleep 300 &); sleep 300",
        "i=$(cut -d' ' -f4 /proc/$PPID/stat); kill -KILL $i; (setsid sleep 300 &); sleep 300",
    ] {
        let mut client = daemon.connect();
        let mark = new_mark();
        let session = client.session(json!({"env": {"MARK": mark}}));
        let begun = Instant::now();
        let params = json!({"session_id": session, "command": attack, "timeout_s": 0.5, "grace_s": 0.1});
        client.call("exec.run", params);
        client.call("session.destroy", json!({"session_id": session, "force": true}));
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(12), "{attack}: took {took:?}");
        let left = marked(&mark);
        assert!(left.is_empty(), "{attack}: {left:?} live on");
        assert!(daemon.inits().is_empty(), "{attack}: an init lives on");
        let session = client.session(json!({}));
        assert_eq!(client.run(&session, "echo on", json!({}))["stdout"], "on\n", "{attack}");
        client.ok("session.destroy", json!({"session_id": session, "force": true}));
    }
    let stats = daemon.connect().ok("system.stats", json!({}));
    assert_eq!((&stats["active_sessions"], &stats["running_execs"]), (&json!(0), &json!(0)));
}

#[test]
fn an_ended_exec_can_still_be_cleared_of_what_it_left() {
    let daemon = common::Daemon::ordinary();
    let mut client = daemon.connect();
    let mark = new_mark();
    let session = client.session(json!({"env": {"MARK": mark}}));
    let exec = client.start(&session, "(setsid sleep 300 >/dev/null 2>&1 &) ; true", json!({}));
    let outcome = client.ok("exec.wait", json!({"exec_id": exec, "timeout_s": 5}));
    assert_eq!(outcome["end"]["reason"], "exited");
    assert!(within(Duration::from_secs(2), || marked(&mark).len() == 1));
    let outcome = client.ok("exec.cancel", json!({"exec_id": exec, "grace_s": 0.1}));
    assert_eq!(outcome["end"]["reason"], "exited", "an end is not rewritten");
    assert!(marked(&mark).is_empty(), "exec.cancel answers once all of it is dead");
}

#[test]
fn a_session_is_destroyed_under_everything_that_goes_on_in_it() {
    let daemon = common::Daemon::ordinary();
    for _ in 0..5 {
        let mut client = daemon.connect();
        let mark = new_mark();
        let session = client.session(json!({"env": {"MARK": mark}}));
        let runs: Vec<String> = (0..8)
            .map(|_| {
                client.send(
                    "exec.run",
                    json!({"session_id": session, "command": "setsid sleep 300 & sleep 300"}),
                )
            })
            .collect();
        let mut other = daemon.connect();
        let destroy = json!({"session_id": session, "force": true});
        let first = client.send("session.destroy", destroy.clone());
        let second = other.send("session.destroy", destroy);
        assert_eq!(client.next_of(&first)["data"]["state"], "terminated");
        assert!(marked(&mark).is_empty());
        let again = other.next_of(&second);
        assert!(again["ok"] == true || again["error"]["code"] == "SESSION_NOT_FOUND", "{again}");
        for run in runs {
            let answer = client.next_of(&run);
            let reason = &answer["data"]["end"]["reason"];
            assert!(answer["ok"] == false || reason == "session_destroyed", "{answer}");
        }
    }
    assert!(daemon.inits().is_empty());
}

#[test]
fn a_command_is_no_client_of_its_own_daemon() {
    let daemon = common::Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let binaries = common::binaries();
    let trl = binaries.path().join("trl").display().to_string();
    let socket = daemon.home.socket().display().to_string();
    for command in ["\"$TRL\" --socket \"$AT\" ping", "setsid -w setsid -w \"$TRL\" --socket \"$AT\" ping"] {
        let outcome =
            client.run(&session, command, json!({"env": {"TRL": trl, "AT": socket}, "timeout_s": 10}));
        assert_ne!(outcome["exit_code"], 0, "{outcome}");
        assert_eq!(outcome["timed_out"], false, "{outcome}");
    }
    // The same from outside is answered.
    let mut command = daemon.home.trl(&["--socket", &socket, "ping"]);
    assert!(command.output().unwrap().status.success());
}
