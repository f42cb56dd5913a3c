//! The supervisor: what clients and workloads ask of it that it must not give.

use crate::common::{By, Client, Home, is_root, marked, new_mark, processes, signal, ways, within};
use crate::suite::POLICIES;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// What somebody might hope is a path, an option, or another's name.
const NAMES: [&str; 13] = [
    "../default",
    "default/../strict",
    "/etc/passwd",
    "-rf",
    "--help",
    "a/b",
    "..",
    "DEFAULT",
    "default ",
    "default\n",
    "default\0",
    "d\u{435}fault",
    "\u{202e}tluafed",
];

#[test]
fn names() {
    for by in ways() {
        let daemon = Home::new(*by).start(&[]);
        let mut client = daemon.connect();
        let session = client.session(json!({"policy": "default"}));
        let long = "x".repeat(300);
        for name in NAMES.iter().copied().chain([long.as_str(), ""]) {
            for (method, params) in [
                ("session.create", json!({"policy": name})),
                ("session.info", json!({"session_id": name})),
                ("session.destroy", json!({"session_id": name})),
                ("exec.run", json!({"session_id": name, "command": "true"})),
                ("exec.info", json!({"exec_id": name})),
                ("exec.signal", json!({"exec_id": name, "signal": "KILL"})),
                ("policy.show", json!({"name": name})),
            ] {
                let answer = client.call(method, params);
                let said = answer.to_string();
                assert_eq!(answer["ok"], false, "{method} {name:?}: {said}");
                let code = &answer["error"]["code"];
                assert!(code != "INTERNAL_ERROR" && said.len() < 2000, "{method} {name:?}: {said}");
                assert!(!said.contains('\u{202e}'), "{method}: {said}");
            }
        }
        // The control: the real ones.
        assert_eq!(client.ok("policy.show", json!({"name": "default"}))["name"], "default");
        assert_eq!(client.run(&session, "echo on", json!({}))["stdout"], "on\n");
        client.ok("session.destroy", json!({"session_id": session, "force": true}));
    }
}

#[test]
fn policy_in_the_workspace() {
    let write = "for f in trl.toml .trl.toml default.toml strict.toml; do \
                 printf 'name = \"default\"\\nextends = \"l1\"\\n[filesystem]\\nwritable = [\"/\"]\\n' > $f; done; \
                 mkdir -p .trl/policies .config/trl && cp *.toml .trl/policies && cp *.toml .config/trl && \
                 printf 'TRL_POLICY=l1\\n' > .env && ls -A | wc -l";
    for by in ways() {
        let daemon = Home::new(*by).start(&[]);
        let mut client = daemon.connect();
        for policy in POLICIES {
            let made = client.ok("session.create", json!({"policy": policy}));
            let session = made["session_id"].as_str().unwrap().to_owned();
            let written = client.run(&session, write, json!({"env": {"TRL_POLICY": "l1"}}));
            assert_eq!(written["stdout"].as_str().unwrap().trim(), "7", "{written}");
            let after = client.run(
                &session,
                "touch /usr/x 2>/dev/null || grep Seccomp: /proc/self/status",
                json!({"cwd": "/workspace", "env": {"TRL_POLICY": "l1", "TRL_POLICY_DIR": "/workspace"}}),
            );
            assert_eq!(after["stdout"], "Seccomp:\t2\n", "{after}");
            assert_eq!(after["isolation"]["policy_digest"], made["policy_digest"]);
            let next = client.ok("session.create", json!({"policy": policy}));
            assert_eq!(next["policy_digest"], made["policy_digest"]);
            for session in [made, next] {
                let id = &session["session_id"];
                client.ok("session.destroy", json!({"session_id": id, "force": true}));
            }
        }
    }
}

fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap()
}

#[test]
fn killed_daemon() {
    for by in ways() {
        let home = Home::new(*by);
        let before = mounts();
        let mark = new_mark();
        let mut daemon = home.start(&[]);
        let mut client = daemon.connect();
        for policy in POLICIES {
            let session = client.session(json!({"policy": policy, "env": {"MARK": mark}}));
            client.start(
                &session,
                "trap '' TERM HUP; (setsid sleep 300 &) ; sleep 300",
                json!({"on_disconnect": "keep"}),
            );
        }
        if is_root() {
            assert!(within(Duration::from_secs(5), || marked(&mark).len() >= 4));
        }
        let launcher = daemon.launcher();
        let inits = daemon.inits();
        assert_eq!(inits.len(), 2);
        signal(daemon.pid(), Signal::SIGKILL);
        assert!(daemon.ended_within(Duration::from_secs(5)));
        let gone = |pid: &i32| !processes().contains(pid);
        let all_gone =
            || marked(&mark).is_empty() && inits.iter().all(gone) && gone(&launcher) && mounts() == before;
        assert!(within(Duration::from_secs(10), all_gone), "{by:?}: {:?}", marked(&mark));
        // The control: the next one finds nothing in its way, and nothing to take over.
        let next = home.start(&[]);
        let mut client = next.connect();
        assert_eq!(client.ok("session.list", json!({}))["sessions"], json!([]));
        let session = client.session(json!({"policy": "default"}));
        assert_eq!(client.run(&session, "echo on", json!({}))["stdout"], "on\n");
    }
}

#[test]
fn missing_feature() {
    let start = |most: &str| {
        let home = Home::new(By::Ordinary);
        let serve = home.serve(&[]);
        let inside = "echo $0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
        let mut command =
            home.shell("exec unshare -U --map-user=1000 --map-group=1000 --keep-caps sh -c \"$0\" \"$@\"");
        command.arg(inside).arg(most).arg(serve.get_program()).args(serve.get_args());
        home.start_command(command)
    };
    let daemon = start("0");
    let mut client = daemon.connect();
    for policy in POLICIES {
        let error = client.error("session.create", json!({"policy": policy}));
        let said = error.to_string();
        assert!(
            error["code"] == "ISOLATION_UNAVAILABLE" && said.contains("max_user_namespaces"),
            "{policy}: {said}"
        );
    }
    assert_eq!(client.ok("session.list", json!({}))["sessions"], json!([]));
    assert!(daemon.inits().is_empty());
    // The controls: what needs nothing of it, and the same where it is there.
    client.session(json!({"policy": "l1"}));
    let able = start("100");
    let mut client = able.connect();
    for policy in POLICIES {
        client.session(json!({"policy": policy}));
    }
}

/// A process of the session with that mark in its arguments, not a shell's.
fn outside(mark: &str) -> i32 {
    let start = format!("sleep\x0060\0{mark}\0");
    let is_it = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|bytes| bytes.starts_with(start.as_bytes()))
    };
    let mut found = None;
    assert!(within(Duration::from_secs(5), || {
        found = processes().into_iter().find(is_it);
        found.is_some()
    }));
    found.unwrap()
}

fn layers(made: &Value) -> Vec<(String, bool, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = made["isolation"]["layers"].as_array().unwrap().iter();
    all.map(|layer| {
        let observed = text(&layer["evidence"]["observed"]);
        (text(&layer["layer"]), layer["enforced"] == "full", observed)
    })
    .collect()
}

#[test]
fn report_is_what_others_see() {
    for by in ways() {
        let daemon = Home::new(*by).start(&[]);
        let mut client = daemon.connect();
        for policy in ["default", "strict", "l1"] {
            let made = client.ok("session.create", json!({"policy": policy}));
            let session = made["session_id"].as_str().unwrap().to_owned();
            // Two numbers, so that the mark is among the arguments and the sleep is long all the same.
            let mark = format!("0.{}", std::process::id());
            client.start(&session, &format!("exec sleep 60 {mark}"), json!({}));
            let pid = outside(&mark);
            let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
            let status = read("status");
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
                line.split_once(':').unwrap().1.split_whitespace().collect::<Vec<_>>().join(" ")
            };
            let report = layers(&made);
            let said = |layer: &str| report.iter().find(|(name, ..)| name == layer).cloned();
            for (layer, file) in
                [("user", "user"), ("mount", "mnt"), ("pid", "pid"), ("net", "net"), ("ipc", "ipc")]
            {
                let own = std::fs::read_link(format!("/proc/self/ns/{file}")).unwrap();
                let theirs = std::fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap();
                let is_full = said(&format!("namespace.{layer}")).is_some_and(|(_, full, _)| full);
                assert_eq!(own != theirs, is_full, "{policy} {by:?} {layer}");
                assert_eq!(is_full, policy != "l1");
            }
            let is_filtered = said("seccomp").is_some_and(|(_, full, _)| full);
            assert_eq!(field("Seccomp") == "2", is_filtered, "{policy} {by:?}");
            assert_eq!(field("NoNewPrivs") == "1", said("no_new_privs").unwrap().1);
            if said("capabilities").is_some_and(|(_, full, _)| full) {
                for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                    assert_eq!(field(set), "0000000000000000", "{policy} {by:?} {set}");
                }
            }
            let limits: BTreeSet<String> = read("limits")
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect();
            for limit in said("rlimits").unwrap().2.split(", ") {
                assert!(limits.iter().any(|line| line.starts_with(limit)), "{limit}: {limits:?}");
            }
            // With ids of its own the one is closed to the daemon's user, the other is not.
            let held = std::fs::read_dir(format!("/proc/{pid}/fd"))
                .or_else(|_| std::fs::read_dir(format!("/proc/{pid}/fdinfo")));
            let held: Vec<_> = held.unwrap().collect();
            assert_eq!(
                (held.len(), said("descriptors").unwrap().2.as_str()),
                (3, "open descriptors {0, 1, 2}")
            );
            client.ok("session.destroy", json!({"session_id": session, "force": true}));
            assert!(!Path::new(&format!("/proc/{pid}")).exists());
        }
    }
}

#[test]
fn no_way_around() {
    let daemon = Home::new(By::Ordinary).start(&[]);
    let mut client = daemon.connect();
    let session = client.session(json!({"policy": "strict"}));
    for key in [
        "unsandboxed",
        "sandbox",
        "privileged",
        "dangerously_disable_sandbox",
        "isolation",
        "no_new_privileges",
        "seccomp",
        "landlock",
        "uid",
        "user",
        "network",
        "capabilities",
        "allow_root",
        "retry",
        "escalate",
    ] {
        for value in [json!(true), json!("off"), json!({"mode": "none"})] {
            let mut params = json!({"session_id": session, "command": "true"});
            params[key] = value.clone();
            assert_eq!(client.call("exec.run", params)["ok"], false, "exec.run {key}");
            let mut params = json!({"policy": "strict"});
            params[key] = value;
            assert_eq!(client.call("session.create", params)["ok"], false, "session.create {key}");
        }
    }
    let mut params = json!({"session_id": session, "command": "true"});
    params["policy"] = json!("l1");
    assert_eq!(client.call("exec.run", params)["ok"], false);
    // What fails is not tried again, let alone with less around it.
    let fails = "echo once >> /workspace/tries; unshare -U true || exit 77";
    assert_eq!(client.run(&session, fails, json!({}))["exit_code"], 77);
    let tries = client.run(&session, "cat /workspace/tries; grep Seccomp: /proc/self/status", json!({}));
    assert_eq!(tries["stdout"], "once\nSeccomp:\t2\n", "{tries}");
    let of =
        |client: &mut Client| client.ok("session.info", json!({"session_id": session}))["policy"].clone();
    assert_eq!(of(&mut client), "strict");
}
