//! Sessions under the policies beyond `l1`: what is denied, each with something like it that is allowed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Client, Home, ways};
use serde_json::json;

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
