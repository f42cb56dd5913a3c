//! Sessions under the policies beyond `l1`: what is denied, each with something like it that is allowed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Client, Home, marked, new_mark, ways, within};
use serde_json::{Value, json};
use std::time::Duration;

const POLICIES: [&str; 4] = ["default", "strict", "build", "ci"];

fn stdout(client: &mut Client, session: &str, command: &str) -> String {
    let outcome = client.run(session, command, json!({}));
    outcome["stdout"].as_str().unwrap().to_owned()
}

#[test]
fn every_policy_is_enforced_and_says_so() {
    for by in ways() {
        let daemon = Home::new(*by).start(&[]);
        let mut client = daemon.connect();
        for policy in POLICIES {
            let made = client.ok("session.create", json!({"policy": policy}));
            let layers = made["isolation"]["layers"].as_array().unwrap();
            for name in
                ["namespace.user", "namespace.pid", "filesystem", "landlock", "seccomp", "capabilities"]
            {
                let layer = layers.iter().find(|layer| layer["layer"] == name).unwrap();
                assert_eq!(
                    (&layer["requested"], &layer["enforced"]),
                    (&json!("required"), &json!("full")),
                    "{layer}"
                );
                assert!(layer["evidence"]["observed"].is_string(), "{layer}");
            }
            // What the report says and what a command sees are two things.
            let session = made["session_id"].as_str().unwrap().to_owned();
            let seen = stdout(
                &mut client,
                &session,
                "id -u; pwd; grep -E '^(NoNewPrivs|Seccomp|CapBnd|CapEff):' /proc/self/status | tr -d '\\t'",
            );
            let expected = "1000\n/workspace\nCapEff:0000000000000000\nCapBnd:0000000000000000\nNoNewPrivs:1\nSeccomp:2\n";
            assert_eq!(seen, expected, "{policy} {by:?}");
            client.ok("session.destroy", json!({"session_id": session, "force": true}));
        }
        assert!(daemon.inits().is_empty());
    }
}

#[test]
fn what_is_the_hosts_is_out_of_reach() {
    let denied = [
        "touch /usr/x",
        "touch /etc/x",
        "touch /x",
        "ls /home",
        "ls /root",
        "ls /sys",
        "cat /etc/shadow",
        "cat /proc/kallsyms | grep .",
        "cat /proc/1/environ",
        "cat /proc/1/root/etc/passwd",
        "ls /proc/1/fd",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo x > /proc/sysrq-trigger",
        "mknod /workspace/b b 8 0",
        "unshare -U true",
        "unshare -Ur true",
        "mount -t tmpfs x /tmp",
        "chroot / true",
        "chmod 4755 /workspace/own",
        "head -c1 /dev/mem",
        "ls /dev/kvm",
        "find / -type s 2>/dev/null | grep .",
        "nice -n -5 true 2>&1 | grep -v cannot",
    ];
    let allowed = [
        "touch /workspace/own /tmp/x /dev/shm/x",
        "ls / /usr /proc/self",
        "cat /etc/passwd",
        "cat /proc/self/environ",
        "ls /proc/self/fd",
        "echo x > /dev/null",
        "mkfifo /workspace/f",
        "chmod 0755 /workspace/own",
        "head -c1 /dev/urandom",
        "sleep 0.01 & kill -0 $!",
        // The first process of a PID namespace is not ended from within: what follows still runs.
        "kill -KILL 1; kill -STOP 1; kill -TERM 1; sleep 0.1",
    ];
    for by in ways() {
        let daemon = Home::new(*by).start(&[]);
        let mut client = daemon.connect();
        for policy in ["default", "strict"] {
            let session = client.session(json!({"policy": policy}));
            for command in allowed {
                let outcome = client.run(&session, command, json!({}));
                assert_eq!(outcome["exit_code"], 0, "{policy} {by:?}: {command}: {outcome}");
            }
            for command in denied {
                let outcome = client.run(&session, command, json!({}));
                assert_ne!(outcome["exit_code"], 0, "{policy} {by:?}: {command}: {outcome}");
            }
            client.ok("session.destroy", json!({"session_id": session, "force": true}));
        }
    }
}

#[test]
fn sessions_see_nothing_of_one_another() {
    let daemon = common::Daemon::ordinary();
    let mut client = daemon.connect();
    let (one, two) =
        (client.session(json!({"policy": "default"})), client.session(json!({"policy": "default"})));
    let mark = new_mark();
    let serve = format!(
        "echo {mark} > /tmp/file; echo {mark} > /workspace/file; echo {mark} > /dev/shm/file; \
         (python3 -m http.server 8765 --bind 127.0.0.1 --directory /workspace >/dev/null 2>&1 &) ; \
         for i in $(seq 100); do python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8765))' \
         2>/dev/null && break; sleep 0.05; done; echo up"
    );
    assert_eq!(stdout(&mut client, &one, &serve), "up\n");
    let look = "cat /tmp/file /workspace/file /dev/shm/file 2>/dev/null; \
                python3 -c 'import urllib.request; print(urllib.request.urlopen(\"http://127.0.0.1:8765/file\").read())' \
                2>/dev/null; ls /proc | grep -c '^[0-9]'";
    // The control: a later command of the same session finds all of it.
    let own = stdout(&mut client, &one, look);
    assert_eq!(own.matches(&mark).count(), 4, "{own}");
    let others = stdout(&mut client, &two, look);
    assert!(!others.contains(&mark), "{others}");
    for session in [one, two] {
        client.ok("session.destroy", json!({"session_id": session, "force": true}));
    }
    assert!(marked(&mark).is_empty());
}

#[test]
fn nothing_of_an_isolated_session_outlives_its_end() {
    for by in ways() {
        let daemon = Home::new(*by).start(&[]);
        let mut client = daemon.connect();
        let mark = new_mark();
        let session = client.session(json!({"policy": "default", "env": {"MARK": mark}}));
        let escape = "trap '' TERM; (setsid sh -c '(sleep 300 &) & sleep 300' &) ; kill -STOP $$";
        let exec = client.start(&session, escape, json!({"grace_s": 0.1}));
        // Only root sees the environment of what another user namespace holds.
        if common::is_root() {
            assert!(within(Duration::from_secs(5), || marked(&mark).len() >= 3), "{:?}", marked(&mark));
        }
        let outcome = client.ok("exec.cancel", json!({"exec_id": exec, "grace_s": 0.1}));
        assert_eq!(outcome["end"]["reason"], "canceled", "{outcome}");
        assert!(marked(&mark).is_empty(), "{by:?}: {:?}", marked(&mark));
        assert_eq!(stdout(&mut client, &session, "echo on"), "on\n");
        client.start(&session, escape, json!({}));
        let gone: Value = client.ok("session.destroy", json!({"session_id": session, "force": true}));
        assert_eq!(gone["state"], "terminated");
        assert!(marked(&mark).is_empty() && daemon.inits().is_empty(), "{by:?}");
    }
}
