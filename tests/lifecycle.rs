//! Lives and deaths: what is killed takes its own along, what is started anew finds a clean place.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{By, Client, Daemon, Home, marked, needs_root, new_mark, pause, signal, within};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP};
use serde_json::json;
use std::time::{Duration, Instant};

const TRICK: &str = "trap '' TERM HUP; (setsid sh -c 'sleep 300 & sleep 300' &); setsid sleep 300 & sh -c 'kill -STOP $$' & sleep 300";

/// Five sessions with a command each that does not want to go; their marks and ids.
fn five(client: &mut Client) -> Vec<(String, String)> {
    let sessions: Vec<(String, String)> = (0..common::times(5, 20))
        .map(|_| {
            let mark = new_mark();
            let session = client.session(json!({"env": {"MARK": mark}}));
            client.start(&session, TRICK, json!({"timeout_s": 250}));
            (mark, session)
        })
        .collect();
    for (mark, _) in &sessions {
        assert!(within(Duration::from_secs(5), || marked(mark).len() >= 5), "{:?}", marked(mark));
    }
    sessions
}

fn assert_gone(marks: &[(String, String)], what: &str) {
    let gone = within(Duration::from_secs(2), || marks.iter().all(|(mark, _)| marked(mark).is_empty()));
    let left: Vec<i32> = marks.iter().flat_map(|(mark, _)| marked(mark)).collect();
    assert!(gone, "{what}: {left:?} live on");
}

fn assert_works(daemon: &Daemon) {
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    assert_eq!(client.run(&session, "echo works", json!({}))["stdout"], "works\n");
    client.ok("session.destroy", json!({"session_id": session, "force": true}));
}

#[test]
fn a_killed_daemon_takes_everything_along() {
    for round in 0..common::times(3, 50) {
        let home = Home::new(common::ways()[round % common::ways().len()]);
        let mut daemon = home.start(&[]);
        let launcher = daemon.launcher();
        let marks = five(&mut daemon.connect());
        signal(daemon.pid(), SIGKILL);
        assert_gone(&marks, "daemon");
        assert!(daemon.ended_within(Duration::from_secs(2)));
        let gone = || !std::path::Path::new(&format!("/proc/{launcher}")).exists();
        assert!(within(Duration::from_secs(4), gone), "the launcher lives on");
        assert_works(&home.start(&[]));
    }
}

#[test]
fn a_killed_launcher_ends_every_session() {
    for round in 0..common::times(3, 50) {
        let home = Home::new(common::ways()[round % common::ways().len()]);
        let mut daemon = home.start(&[]);
        let marks = five(&mut daemon.connect());
        signal(daemon.launcher(), SIGKILL);
        assert_gone(&marks, "launcher");
        // Whether the daemon ends too or goes on without sessions: the next one works.
        if !daemon.ended_within(Duration::from_millis(500)) {
            let list = daemon.connect().ok("session.list", json!({}));
            for entry in list["sessions"].as_array().unwrap() {
                assert_eq!(entry["state"], "terminated", "{list}");
            }
        }
        drop(daemon);
        assert_works(&home.start(&[]));
    }
}

#[test]
fn a_killed_init_ends_its_session_alone() {
    for round in 0..common::times(3, 50) {
        let home = Home::new(common::ways()[round % common::ways().len()]);
        let daemon = home.start(&[]);
        let mut client = daemon.connect();
        let (mark, session) = (new_mark(), client.session(json!({})));
        let init = daemon.inits();
        assert_eq!(init.len(), 1);
        let exec = client.start(&session, TRICK, json!({"env": {"MARK": mark}}));
        assert!(within(Duration::from_secs(5), || marked(&mark).len() >= 5));
        let others = five(&mut client);
        let waiting = client.send("exec.wait", json!({"exec_id": exec, "timeout_s": 20}));
        signal(init[0], SIGKILL);
        assert_gone(&[(mark, session.clone())], "init");
        // Whoever waits is told, one way or the other.
        let told = client.next_of(&waiting);
        assert!(told["ok"] == false || told["data"]["state"] == "ended", "{told}");
        let run = json!({"session_id": session, "command": "true"});
        assert_eq!(client.call("exec.run", run)["ok"], false);
        for (mark, session) in &others {
            assert!(!marked(mark).is_empty(), "another session died");
            assert_eq!(client.run(session, "echo on", json!({}))["stdout"], "on\n");
        }
        drop(client);
        assert_works(&daemon);
        drop(daemon);
        assert_gone(&others, "a stop of the daemon");
        assert_works(&home.start(&[]));
    }
}

#[test]
fn a_second_daemon_on_the_same_socket_is_refused() {
    for by in common::ways() {
        let home = Home::new(*by);
        let daemon = home.start(&[]);
        let mut second = home
            .serve(&[])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let ended = within(Duration::from_secs(10), || second.try_wait().unwrap().is_some());
        if !ended {
            second.kill().unwrap();
        }
        let status = second.wait().unwrap();
        assert!(ended && !status.success(), "{by:?}: the second goes on");
        assert_works(&daemon);
    }
}

#[test]
fn a_stop_ends_everything_and_removes_the_socket() {
    let home = Home::new(By::Ordinary);
    let mut daemon = home.start(&[]);
    let marks = five(&mut daemon.connect());
    signal(daemon.pid(), nix::sys::signal::Signal::SIGTERM);
    assert!(daemon.ended_within(Duration::from_secs(8)));
    assert_gone(&marks, "stop");
    assert!(!home.socket().exists());
}

#[test]
fn five_hundred_sessions_live_at_once() {
    let daemon = Home::new(By::Ordinary).start(&["--max-sessions", "600"]);
    let begun = Instant::now();
    let sessions: Vec<String> = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = daemon.connect();
                    (0..125).map(|_| client.session(json!({}))).collect::<Vec<_>>()
                })
            })
            .collect();
        lanes.into_iter().flat_map(|lane| lane.join().unwrap()).collect()
    });
    assert_eq!(daemon.connect().ok("system.stats", json!({}))["active_sessions"], 500);
    assert_eq!(daemon.inits().len(), 500);
    std::thread::scope(|scope| {
        for part in sessions.chunks(125) {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut client = daemon.connect();
                for (number, session) in part.iter().enumerate() {
                    let outcome = client.run(session, &format!("echo {number}"), json!({}));
                    assert_eq!(outcome["stdout"], format!("{number}\n"));
                    client.ok("session.destroy", json!({"session_id": session, "force": true}));
                }
            });
        }
    });
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert!(daemon.inits().is_empty());
}

/// How many descriptors a process has; of one that is not dumpable only root sees them.
fn descriptors(pid: i32) -> Option<usize> {
    match std::fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(entries) => Some(entries.count()),
        // They are not dumpable: only root may look. The daemon's own count is compared either way.
        Err(error) => {
            assert!(!nix::unistd::geteuid().is_root(), "{error}");
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
            None
        }
    }
}

#[test]
fn two_thousand_commands_leave_no_descriptor_behind() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let params = json!({"session_id": session, "argv": ["/bin/true"]});
    let processes = [daemon.pid(), daemon.launcher(), daemon.inits()[0]];
    for _ in 0..50 {
        client.ok("exec.run", params.clone());
    }
    pause(400);
    let before = processes.map(descriptors);
    let stats = client.ok("system.stats", json!({}));
    for _ in 0..common::times(2_000, 20_000) {
        assert_eq!(client.ok("exec.run", params.clone())["exit_code"], 0);
    }
    pause(400);
    let after = processes.map(descriptors);
    for (before, after) in before.iter().zip(&after) {
        assert!(after.unwrap_or(0) <= before.unwrap_or(0) + 2, "{before:?} then {after:?}");
    }
    let now = client.ok("system.stats", json!({}));
    assert!(now["open_fds"].as_u64().unwrap() <= stats["open_fds"].as_u64().unwrap() + 2);
    assert_eq!(
        now["total_commands_run"].as_u64().unwrap(),
        stats["total_commands_run"].as_u64().unwrap() + common::times(2_000, 20_000) as u64
    );
    assert_eq!(now["running_execs"], 0);
}

#[test]
fn a_command_ignores_no_signal_that_its_daemon_was_started_to_ignore() {
    for by in common::ways() {
        let home = Home::new(*by);
        let serve = home.serve(&[]);
        let mut command = home.shell("trap '' HUP INT QUIT PIPE USR1 CHLD; exec \"$0\" \"$@\"");
        command.arg(serve.get_program()).args(serve.get_args());
        let daemon = home.start_command(command);
        let mut client = daemon.connect();
        for policy in ["l1", "default"] {
            let session = client.session(json!({"policy": policy}));
            let outcome =
                client.run(&session, "grep SigIgn: /proc/self/status; kill -QUIT $$; echo on", json!({}));
            assert_eq!(outcome["stdout"], "SigIgn:\t0000000000000000\n", "{policy} {by:?}: {outcome}");
            assert_eq!(outcome["end"]["signal"], "SIGQUIT", "{policy} {by:?}: {outcome}");
        }
    }
}

#[test]
fn an_idle_session_ends_and_a_busy_one_does_not() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let idle = client.session(json!({"idle_timeout_s": 1}));
    let busy = client.session(json!({"idle_timeout_s": 1}));
    let brief = client.session(json!({"ttl_s": 1}));
    let touched = client.session(json!({"idle_timeout_s": 1}));
    let exec = client.start(&busy, "sleep 2.5; echo done", json!({}));
    for _ in 0..4 {
        pause(500);
        client.ok("session.touch", json!({"session_id": touched}));
        client.ok("system.ping", json!({}));
    }
    let is_over = |client: &mut Client, session: &str| {
        let answer = client.call("session.info", json!({"session_id": session}));
        answer["error"]["code"] == "SESSION_NOT_FOUND" || answer["data"]["state"] == "terminated"
    };
    assert!(within(Duration::from_secs(2), || is_over(&mut client, &idle)));
    assert!(within(Duration::from_secs(2), || is_over(&mut client, &brief)));
    assert!(!is_over(&mut client, &busy));
    let outcome = client.ok("exec.wait", json!({"exec_id": exec, "timeout_s": 10}));
    assert_eq!(outcome["stdout"], "done\n");
    assert!(within(Duration::from_secs(5), || is_over(&mut client, &touched)));
    assert!(within(Duration::from_secs(5), || daemon.inits().is_empty()));
}

const REQUEST_TO: &str = "TEST_OF_TRL_SOCKET";

/// Not a test of its own: run as another uid by the test below, asks on its behalf.
#[test]
fn asks_as_another_user() {
    let (Ok(socket), Ok(session)) = (std::env::var(REQUEST_TO), std::env::var("TEST_OF_TRL_SESSION")) else {
        return;
    };
    let mut client = Client::connect(std::path::Path::new(&socket));
    for (method, params) in [
        ("session.info", json!({"session_id": session})),
        ("session.destroy", json!({"session_id": session, "force": true})),
        ("exec.run", json!({"session_id": session, "command": "true"})),
        ("session.list", json!({})),
    ] {
        println!("\nANSWER {}", client.call(method, params));
    }
}

#[test]
fn a_session_of_another_user_does_not_exist() {
    if !needs_root("two users are in it") {
        return;
    }
    use std::os::unix::process::CommandExt;
    let daemon = Daemon::ordinary();
    let mut root = daemon.connect();
    let session = root.session(json!({}));
    let ask = |session: &str| {
        let binaries = common::binaries();
        let output = std::process::Command::new(binaries.path().join("test"))
            .args(["--exact", "asks_as_another_user", "--nocapture"])
            .env(REQUEST_TO, daemon.home.socket())
            .env("TEST_OF_TRL_SESSION", session)
            .current_dir("/")
            .uid(common::ORDINARY_UID)
            .gid(common::ORDINARY_UID)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).replace(session, "ID");
        text.lines().filter(|line| line.starts_with("ANSWER")).map(str::to_owned).collect::<Vec<_>>()
    };
    let theirs = ask(&session);
    assert_eq!(theirs.len(), 4, "{theirs:?}");
    assert!(theirs[..3].iter().all(|line| line.contains("SESSION_NOT_FOUND")), "{theirs:?}");
    assert!(theirs[3].contains("\"sessions\":[]"), "{theirs:?}");
    assert_eq!(theirs, ask("00000000-0000-4000-8000-000000000000"));
    assert_eq!(root.run(&session, "echo mine", json!({}))["stdout"], "mine\n");
}

/// Goes on with a stopped process when dropped, so that a failed test leaves none behind.
struct Stopped(i32);

impl Stopped {
    fn new(pid: i32) -> Self {
        signal(pid, SIGSTOP);
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, SIGCONT);
    }
}

#[test]
fn an_end_that_the_launcher_does_not_confirm_is_an_error_and_can_be_asked_for_again() {
    for by in common::ways() {
        let daemon = Home::new(*by).start(&["--max-sessions", "2"]);
        let mut client = daemon.connect();
        let mark = new_mark();
        let (session, control) = (client.session(json!({"env": {"MARK": mark}})), client.session(json!({})));
        client.start(&session, TRICK, json!({}));
        assert!(within(Duration::from_secs(5), || marked(&mark).len() >= 5));
        let destroy = json!({"session_id": session, "force": true});

        let launcher = Stopped::new(daemon.launcher());
        let begun = Instant::now();
        let error = client.error("session.destroy", destroy.clone());
        assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
        assert_eq!(error["code"], "INTERNAL_ERROR", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("not confirmed") && message.contains("again"), "{error}");
        // It has its name and its place, and takes nothing but another attempt.
        let info = client.ok("session.info", json!({"session_id": session}));
        assert_eq!((&info["session_id"], &info["state"]), (&json!(session), &json!("running")));
        let run = json!({"session_id": session, "command": "true"});
        assert_eq!(client.call("exec.run", run)["ok"], false);
        assert_eq!(client.code("session.create", json!({"policy": "l1"})), "MAX_SESSIONS_REACHED");
        assert_eq!(client.run(&control, "echo on", json!({}))["stdout"], "on\n");
        assert_eq!(client.code("session.destroy", destroy.clone()), "INTERNAL_ERROR");

        drop(launcher);
        let gone = client.ok("session.destroy", destroy.clone());
        assert_eq!(gone["state"], "terminated", "{gone}");
        assert_eq!((&gone["session_id"], &gone["escalated"]), (&json!(session), &json!(true)));
        assert!(marked(&mark).is_empty());
        assert_eq!(client.code("session.destroy", destroy), "SESSION_NOT_FOUND");
        client.session(json!({}));
    }
}

#[test]
fn a_late_end_is_tried_again_without_being_asked_and_its_client_is_told() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let asked = client.session(json!({}));
    let idle = client.session(json!({"idle_timeout_s": 1}));
    let launcher = Stopped::new(daemon.launcher());
    assert_eq!(client.code("session.destroy", json!({"session_id": asked, "force": true})), "INTERNAL_ERROR");
    // The idle one is past its end by now; nobody asked for it, and it is not told to be over.
    let info = client.ok("session.info", json!({"session_id": idle}));
    assert_eq!(info["state"], "running", "{info}");
    drop(launcher);
    let none = || daemon.connect().ok("session.list", json!({}))["sessions"] == json!([]);
    assert!(within(Duration::from_secs(8), none), "not tried again");
    assert!(daemon.inits().is_empty());
    // Who was told that the end is not proven is told, once, that it is.
    let gone = client.ok("session.destroy", json!({"session_id": asked, "force": true}));
    assert_eq!(gone["state"], "terminated");
    assert_eq!(client.code("session.destroy", json!({"session_id": asked})), "SESSION_NOT_FOUND");
}
