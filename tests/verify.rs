//! `trl verify`: the suite of attacks holds where a policy is a boundary, and says so where it is none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{By, FLAG_UID, Home, is_root, ways, within};
use serde_json::Value;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

fn verify(home: &Arc<Home>, by: By, arguments: &[&str]) -> Output {
    let mut command = home.trl(&["verify"]);
    if by == By::Root && is_root() {
        command.arg("--user").arg(FLAG_UID.to_string());
    }
    // What an operator sets for the daemon is none of the attacks' business.
    command.env("TRL_ENV_FILE", "/none/such").env("LC_ALL", "C").env("TERM", "dumb");
    command.args(arguments).output().unwrap()
}

fn results(output: &Output) -> (Value, Vec<Value>) {
    let shown: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let all = shown["results"].as_array().unwrap().clone();
    (shown, all)
}

/// Whether all bait goes that is there now: another run on this host may have some of its own, for a moment.
fn nothing_stays() -> bool {
    let bait = || -> Vec<_> {
        let entries = std::fs::read_dir("/dev/shm").unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("trl-verify-")).collect()
    };
    let now = bait();
    within(Duration::from_secs(20), || bait().iter().all(|name| !now.contains(name)))
}

#[test]
fn every_policy_beyond_l1_stops_all_of_it() {
    for by in ways() {
        let home = Home::new(*by);
        for policy in ["default", "strict", "build", "ci"] {
            let output = verify(&home, *by, &["--policy", policy, "--json"]);
            let (shown, all) = results(&output);
            let failed: Vec<_> = all.iter().filter(|result| result["passed"] != true).collect();
            assert!(failed.is_empty() && shown["failed"] == 0, "{policy} {by:?}: {failed:?}");
            assert_eq!(output.status.code(), Some(0), "{policy} {by:?}");
            assert_eq!(shown["policy"], policy);
            let of = |kind: &str, group: &str| {
                all.iter().filter(|result| result["kind"] == kind && result["group"] == group).count()
            };
            for group in [
                "files",
                "processes",
                "namespaces",
                "system calls",
                "network",
                "devices",
                "credentials",
                "procfs",
            ] {
                assert!(of("attack", group) >= 4 && of("control", group) >= 1, "{group}");
            }
        }
        assert!(nothing_stays());
    }
}

#[test]
fn l1_is_shown_for_what_it_is() {
    for by in ways() {
        let home = Home::new(*by);
        let output = verify(&home, *by, &["--policy", "l1", "--json"]);
        let (shown, all) = results(&output);
        assert_eq!(output.status.code(), Some(1), "{shown}");
        let passed = |name: &str| {
            let found = all.iter().find(|result| result["name"] == name);
            found.unwrap_or_else(|| panic!("{name}"))["passed"] == true
        };
        // What the host itself gives its users, l1 does not take away.
        for name in [
            "read a file that the daemon's user alone can read",
            "read the host's shared memory",
            "find the host's System V shared memory",
            "see the supervisor in /proc",
            "signal the supervisor",
            "connect to the host's loopback",
            "connect to an abstract socket of the host",
            "connect to the supervisor's socket",
            "make a set-user-id file",
            "reach clone3, whose flags no filter sees",
            "io_uring_setup, which gets round filters",
        ] {
            assert!(!passed(name), "{name} {by:?}");
        }
        // And what it promises it keeps.
        for name in [
            "become root",
            "gain by a set-user-id program",
            "allow core files again",
            "find a variable that nobody gave",
            "find a descriptor that nobody gave",
            "make a file in /usr",
        ] {
            assert!(passed(name), "{name} {by:?}");
        }
        assert!(all.iter().all(|result| result["kind"] == "attack" || result["passed"] == true), "{shown}");
        assert!(nothing_stays());

        let text = verify(&home, *by, &["--policy", "l1"]);
        let text = String::from_utf8(text.stdout).unwrap();
        let failed = all.iter().filter(|result| result["passed"] != true).count();
        assert_eq!(text.matches("  FAIL  ").count(), failed, "{text}");
        assert!(text.trim_end().ends_with(&format!(": {failed} failed")), "{text}");
    }
}

#[test]
fn a_session_that_cannot_be_made_is_no_pass() {
    let home = Home::new(By::Ordinary);
    let unknown = verify(&home, By::Ordinary, &["--policy", "none-such"]);
    assert_eq!(unknown.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no policy \"none-such\""));

    // In a user namespace in which nobody may make another one.
    let trl = home.trl(&[]).get_program().to_owned();
    let inside = "echo $1 > /proc/sys/user/max_user_namespaces && exec \"$0\" verify --policy default";
    let run = |most: &str| {
        let mut command =
            home.shell("exec unshare -U --map-user=1000 --map-group=1000 --keep-caps sh -c \"$@\"");
        command.args(["-", inside]).arg(&trl).arg(most).output().unwrap()
    };
    let refused = run("0");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(125), "{said}");
    assert!(said.contains("ISOLATION_UNAVAILABLE") && said.contains("user.max_user_namespaces"), "{said}");
    assert!(refused.stdout.is_empty());
    // The control: the same, where they may.
    let held = run("100");
    assert_eq!(held.status.code(), Some(0), "{}", String::from_utf8_lossy(&held.stderr));
}

/// Whoever takes a layer away sees by name what it had stopped; the rest is stopped still.
#[test]
fn what_a_policy_gives_away_is_seen() {
    // What the policy is beside `default`, and what then gets through, all of it.
    let cases: [(&str, &str, &[&str]); 7] = [
        (
            "homes",
            "[filesystem]\nadd_read_only = [\"/home\"]\n",
            &["list the host's homes", "find the host's mounts"],
        ),
        (
            "network",
            "[namespaces]\nnet = \"off\"\n[network]\nmode = \"host\"\n",
            &["connect to the host's loopback", "find an interface beside the loopback"],
        ),
        ("keys", "[seccomp]\nallow = [\"add_key\", \"vmsplice\"]\n", &["vmsplice", "add a key"]),
        // With ids of its own the segment would be closed to it, which is the daemon's user's.
        (
            "shared",
            "[namespaces]\nipc = \"off\"\n[user]\nids = 0\n",
            &["find the host's System V shared memory"],
        ),
        ("second", "[landlock]\ndemand = \"off\"\nscoped = false\nexecute = []\n", &[]),
        // Less than `default` is no more than it.
        ("nowhere", "[workspace]\nmode = \"none\"\nprotect = []\n", &[]),
        ("read-only", "[workspace]\nwritable = false\n", &[]),
    ];
    let home = Home::new(By::Ordinary);
    let script = "umask 022; mkdir -p \"$1\" && printf '%s' \"$3\" > \"$1/$2.toml\"";
    let directory = home.path().join("policies");
    for (name, more, _) in cases {
        let text = format!("name = \"{name}\"\ndescription = \"x\"\nextends = \"default\"\n{more}");
        let mut command = home.shell(script);
        assert!(command.arg("-").arg(&directory).args([name, &text]).status().unwrap().success());
    }
    for (name, _, expected) in cases {
        let flags = ["--policy", name, "--json", "--policy-dir", directory.to_str().unwrap()];
        let output = verify(&home, By::Ordinary, &flags);
        let (_, all) = results(&output);
        let failed: Vec<&str> = all
            .iter()
            .filter(|result| result["passed"] != true)
            .map(|result| result["name"].as_str().unwrap())
            .collect();
        // A route out is there where the host has one.
        let failed: Vec<&str> = failed.into_iter().filter(|name| *name != "find a route out").collect();
        assert_eq!(failed, expected, "{name}");
        assert_eq!(output.status.code(), Some(i32::from(!expected.is_empty())), "{name}");
    }
}
