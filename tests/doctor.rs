//! `trl doctor`: what it finds on a host that is as it should be, and on one that is not; each fault beside the same
//! thing without it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{By, FLAG_UID, Home, ORDINARY_UID, is_root, ways};
use serde_json::Value;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

struct Report {
    code: i32,
    shown: Value,
}

impl Report {
    fn of(mut command: Command) -> Self {
        let output = command.arg("--json").output().unwrap();
        let shown = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        Self { code: output.status.code().unwrap(), shown }
    }
    fn lines(&self) -> &[Value] {
        self.shown["lines"].as_array().unwrap()
    }
    /// The worst line of that name.
    fn line(&self, name: &str) -> &Value {
        let rank = |line: &&Value| ["ok", "warn", "fail"].iter().position(|state| line["state"] == *state);
        let found = self.lines().iter().filter(|line| line["name"] == name).max_by_key(rank);
        found.unwrap_or_else(|| panic!("{name}: {}", self.shown))
    }
    fn assert(&self, name: &str, state: &str, says: &str) {
        let line = self.line(name);
        assert_eq!(line["state"], state, "{line}");
        assert!(line.to_string().contains(says), "{says:?} in {line}");
        let failed = self.lines().iter().any(|line| line["state"] == "fail");
        assert_eq!(self.code, i32::from(failed), "{}", self.shown);
    }
}

fn doctor(home: &Arc<Home>, by: By, arguments: &[&str]) -> Command {
    let mut command = home.trl(&["doctor", "--socket"]);
    command.arg(home.socket());
    if by == By::Root && is_root() {
        command.arg("--user").arg(FLAG_UID.to_string());
    }
    command.args(arguments);
    command
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_host_that_holds_the_default_policy_is_well() {
    for by in ways() {
        let home = Home::new(*by);
        let report = Report::of(doctor(&home, *by, &[]));
        assert_eq!((report.code, &report.shown["failed"]), (0, &Value::from(0)), "{}", report.shown);
        for name in [
            "namespace.user",
            "namespace.mount",
            "namespace.pid",
            "namespace.ipc",
            "namespace.uts",
            "namespace.cgroup",
            "namespace.net",
            "id_maps",
            "overlay",
            "procfs",
            "filesystem",
            "landlock",
            "seccomp",
        ] {
            report.assert(name, "ok", "tried");
        }
        report.assert("a session of the policy", "ok", "default was made");
        report.assert("daemon", "ok", "none at");
        report.assert("not root", "ok", "a daemon would have uid");
        for name in [
            "kernel",
            "socket",
            "env file",
            "http",
            "logs",
            "session cap",
            "default timeout",
            "programs",
            "policies",
        ] {
            report.assert(name, "ok", "");
        }
        for line in report.lines() {
            assert_eq!(line["state"] == "ok", line["remedy"].is_null(), "{line}");
        }
        // For people it says the same.
        let text = doctor(&home, *by, &[]).output().unwrap();
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(text.contains("\n  ok    namespace.user: tried, works\n"), "{text}");
        assert!(text.contains(": 0 failed, "), "{text}");
        let warned = report.lines().iter().filter(|line| line["state"] == "warn").count();
        assert_eq!(text.matches("        → ").count(), warned, "{text}");
    }
}

#[test]
fn what_the_kernel_does_not_give_fails_with_its_remedy() {
    let home = Home::new(By::Ordinary);
    let trl = home.trl(&[]).get_program().to_owned();
    let inside =
        "echo $1 > /proc/sys/user/max_user_namespaces && exec \"$0\" doctor --json --socket /none/s $2";
    let run = |most: &str, flags: &str| {
        let mut command =
            home.shell("exec unshare -U --map-user=1000 --map-group=1000 --keep-caps sh -c \"$@\"");
        let output = command.args(["-", inside]).arg(&trl).args([most, flags]).output().unwrap();
        let shown = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        Report { code: output.status.code().unwrap(), shown }
    };
    let without = run("0", "");
    without.assert("namespace.user", "fail", "user.max_user_namespaces above 0");
    without.assert("filesystem", "fail", "ENOSPC");
    without.assert("a session of the policy", "fail", "ISOLATION_UNAVAILABLE");
    without.assert("number of namespaces", "warn", "user.max_user_namespaces");
    without.assert("seccomp", "ok", "tried");
    // A policy that needs none of it is not kept by its absence.
    let l1 = run("0", "--policy=l1");
    l1.assert("namespace.user", "warn", "user.max_user_namespaces above 0");
    l1.assert("a session of the policy", "warn", "l1 was made");
    // The control: in the same place, with namespaces to be had. Its files have other owners: mapped, they are nobody's.
    let with = run("100", "");
    with.assert("namespace.user", "ok", "tried");
    with.assert("a session of the policy", "ok", "default was made");
}

#[test]
fn an_env_file_is_its_owners_alone() {
    for by in ways() {
        let home = Home::new(*by);
        let secret = "hunter2-and-more";
        let file = home.private_file("env", &format!("API_KEY={secret}\nSHORT=x\n"));
        let shown = file.to_str().unwrap();
        let look = |more: &[&str]| {
            let arguments: Vec<&str> = ["--env-file", shown].iter().chain(more).copied().collect();
            Report::of(doctor(&home, *by, &arguments))
        };
        look(&[]).assert("env file", "ok", "right owner and mode");
        mode(&file, 0o640);
        look(&[]).assert("env file", "fail", "0600");
        mode(&file, 0o600);
        // Whoever can write the directory can put another file there.
        mode(home.path(), 0o777);
        look(&[]).assert("env file", "fail", "others can write it");
        mode(home.path(), 0o755);

        let log = home.path().join("log");
        std::fs::write(&log, "a line, x, and nothing else\n").unwrap();
        mode(&log, 0o644);
        let log_flag = ["--log", log.to_str().unwrap()];
        look(&log_flag).assert("logs", "ok", "no value");
        std::fs::write(&log, format!("a line with {secret} in it\n")).unwrap();
        let found = look(&log_flag);
        found.assert("logs", "fail", "API_KEY");
        assert!(!found.shown.to_string().contains(secret));
        if is_root() {
            chown(&file, Some(12_345), None).unwrap();
            look(&[]).assert("env file", "fail", "");
        }
    }
}

#[test]
fn the_daemon_that_runs_is_what_is_looked_at() {
    for by in ways() {
        let home = Home::new(*by);
        let daemon = home.start(&["--max-sessions", "5000", "--default-timeout-s", "7200"]);
        let report = Report::of(doctor(&home, *by, &[]));
        report.assert("daemon", "ok", "answers");
        report.assert("socket", "ok", "0600");
        // Its flags, not this command's.
        report.assert("session cap", "warn", "5000");
        report.assert("default timeout", "warn", "7200");
        let uid = match by {
            By::Root => FLAG_UID,
            By::Ordinary if is_root() => ORDINARY_UID,
            By::Ordinary => nix::unistd::getuid().as_raw(),
        };
        report.assert("not root", "ok", &uid.to_string());
        mode(&home.socket(), 0o666);
        Report::of(doctor(&home, *by, &[])).assert("socket", "fail", "0666");
        mode(&home.socket(), 0o600);
        mode(&home.runtime(), 0o711);
        Report::of(doctor(&home, *by, &[])).assert("socket", "fail", "0711");
        mode(&home.runtime(), 0o700);
        drop(daemon);
        if *by == By::Root && is_root() {
            let home = Home::new(*by);
            let daemon = home.start(&["--allow-root"]);
            Report::of(doctor(&home, *by, &[])).assert("not root", "fail", "is root");
            drop(daemon);
            Report::of(doctor(&home, *by, &["--allow-root"])).assert("not root", "fail", "--allow-root");
        }
    }
}

#[test]
fn a_workspace_root_is_there_and_not_everybodys() {
    for by in ways() {
        let home = Home::new(*by);
        let root = home.path().join("root");
        let look = || Report::of(doctor(&home, *by, &["--workspace-root", root.to_str().unwrap()]));
        look().assert("workspace root", "fail", "No such file");
        std::fs::create_dir(&root).unwrap();
        mode(&root, 0o755);
        look().assert("workspace root", "ok", "is there");
        mode(&root, 0o757);
        look().assert("workspace root", "warn", "0757");
    }
}

#[test]
fn programs_and_policies_that_others_can_write_fail() {
    let home = Home::new(By::Ordinary);
    let programs = home.path().join("bin");
    let policies = home.path().join("policies");
    let by_owner = |script: &str| {
        let mut command = home.shell(script);
        let from = common::binaries();
        command.args(["-", from.path().to_str().unwrap(), home.path().to_str().unwrap()]);
        assert!(command.status().unwrap().success(), "{script}");
    };
    by_owner(
        "umask 022; mkdir \"$2/bin\" \"$2/policies\" && cp \"$1/trl\" \"$1/trl-launcher\" \"$2/bin\" && \
         printf 'name = \"own\"\\ndescription = \"x\"\\nextends = \"default\"\\ngrace_s = 1\\n' > \"$2/policies/own.toml\"",
    );
    let look = || {
        let mut command = home.shell("exec \"$@\"");
        command.arg("-").arg(programs.join("trl"));
        command.args(["doctor", "--policy", "own", "--socket", "/none/s", "--policy-dir"]).arg(&policies);
        Report::of(command)
    };
    let fine = look();
    fine.assert("programs", "ok", "only its owner");
    fine.assert("policies", "ok", "trusted");
    fine.assert("a session of the policy", "ok", "own was made");
    for (path, bad, good, name) in [
        (programs.join("trl"), 0o757, 0o755, "programs"),
        (programs.join("trl-launcher"), 0o775, 0o755, "programs"),
        (programs.clone(), 0o777, 0o755, "programs"),
        (home.path().to_path_buf(), 0o777, 0o755, "programs"),
        (home.path().to_path_buf(), 0o777, 0o755, "policies"),
        (policies.join("own.toml"), 0o646, 0o644, "policies"),
        (policies.clone(), 0o775, 0o755, "policies"),
    ] {
        mode(&path, bad);
        let report = look();
        mode(&path, good);
        report.assert(name, "fail", "others can write it");
        assert_eq!(report.code, 1);
    }
    look().assert("policies", "ok", "trusted");
}
