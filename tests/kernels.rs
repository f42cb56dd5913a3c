//! What this kernel has and lacks, against what reports say and sessions can do. These run in the virtual machines of
//! tests/kernels/run, as root, one at a time: they change sysctls. The kernel's command line says what is so on the
//! machine; that truth is what reports and behaviour are held against, each for itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "kernels/machine.rs"]
mod machine;

use common::{By, Daemon, marked, new_mark, processes, ways, within};
use machine::{
    ALL_OF_LANDLOCK, NAMESPACES, PORTS_OF_LANDLOCK, behaves, created, daemon, destroy, has_views, landlock,
    possible, refused, remedy, reported, stdout, truth,
};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

const SHIPPED: [&str; 4] = ["default", "strict", "build", "ci"];
/// A session of best effort, against what can be had.
fn best_effort(daemon: &Daemon, off: Option<&str>, by: By) {
    let mut client = daemon.connect();
    let made = created(&mut client, "soft");
    let (said, expected) = (reported(&made), possible(off, by));
    for (layer, enforced) in &expected {
        assert_eq!(said[*layer], *enforced, "{layer} without {off:?} by {by:?}: {made}");
    }
    for layer in made["isolation"]["layers"].as_array().unwrap() {
        assert_eq!(layer["enforced"] == "full", layer["reason"].is_null(), "{layer}");
    }
    behaves(daemon, &mut client, &made, &expected);
    destroy(&mut client, &made);
}

#[test]
#[ignore = "runs in a virtual machine: tests/kernels/run"]
fn the_machine_is_as_its_driver_says() {
    let host = daemon(By::Ordinary).connect().ok("system.info", json!({}))["host"].take();
    let kernel = truth("kernel");
    assert!(
        kernel == "newest" || host["kernel"].as_str().unwrap().starts_with(&format!("{kernel}.")),
        "{host}"
    );
    let abi = i32::try_from(host["landlock_abi"].as_i64().unwrap()).unwrap();
    let exact = truth("landlock").starts_with("is-");
    assert!(abi == landlock() || (!exact && abi > landlock()), "{host}");
    assert_eq!(host["cgroups"], truth("cgroups").as_str(), "{host}");
    assert_eq!(host["overlayfs"], truth("overlay") == "1", "{host}");
    assert_eq!(host["newuidmap"], if truth("newuidmap") == "1" { "setuid" } else { "none" }, "{host}");
}

#[test]
#[ignore = "runs in a virtual machine: tests/kernels/run"]
fn shipped_policies_are_whole_or_refused() {
    let lacking: Vec<&str> = [("landlock", landlock() < ALL_OF_LANDLOCK), ("filesystem", !has_views())]
        .into_iter()
        .filter_map(|(layer, lacks)| lacks.then_some(layer))
        .collect();
    for by in ways() {
        let daemon = daemon(*by);
        let mut client = daemon.connect();
        for policy in SHIPPED {
            if !lacking.is_empty() {
                lacking.iter().for_each(|layer| refused(&mut client, policy, layer, remedy(layer)));
                assert!(within(Duration::from_secs(5), || daemon.inits().is_empty()), "{policy}");
                continue;
            }
            let made = created(&mut client, policy);
            let short = reported(&made).into_iter().filter(|(_, enforced)| enforced != "full");
            let short: Vec<String> = short.map(|(layer, _)| layer).collect();
            assert!(short.iter().all(|layer| ["user", "rlimit.nproc"].contains(&layer.as_str())), "{made}");
            destroy(&mut client, &made);
        }
        // Root's way is another one only up to the daemon: the ordinary user's runs are of all policies.
        let runs = SHIPPED.into_iter().chain(["l1", "soft"]);
        for policy in runs.filter(|policy| *by == By::Ordinary || ["default", "soft"].contains(policy)) {
            let mut command = daemon.home.trl(&["run", "--policy", policy, "--policy-dir"]);
            command.arg(daemon.home.path().join("policies"));
            let output = command.args(["--", "sh", "-c", "echo ran as $(id -u); exit 7"]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            match lacking.first().filter(|_| SHIPPED.contains(&policy)) {
                Some(layer) => {
                    assert_eq!(output.status.code(), Some(125), "{policy}: {said}");
                    assert!(said.contains(remedy(layer)) && output.stdout.is_empty(), "{policy}: {said}");
                }
                None => {
                    assert_eq!(output.status.code(), Some(7), "{policy} by {by:?}: {said}");
                    let ran = String::from_utf8_lossy(&output.stdout).into_owned();
                    assert!(ran.starts_with("ran as ") && ran != "ran as 0\n", "{policy}: {ran}");
                }
            }
        }
    }
}

#[test]
#[ignore = "runs in a virtual machine: tests/kernels/run"]
fn each_layer_is_got_or_refused_or_said_to_lack() {
    for by in ways() {
        let daemon = daemon(*by);
        let mut client = daemon.connect();
        let can = possible(None, *by);
        for (layer, enforced) in &can {
            let name = if *layer == "user" { "ids" } else { layer.trim_start_matches("namespace.") };
            let policy = format!("hard-{name}");
            if !daemon.home.path().join(format!("policies/{policy}.toml")).exists() {
                continue;
            }
            if *enforced == "full" {
                let made = created(&mut client, &policy);
                assert_eq!(reported(&made)[*layer], "full", "{made}");
                destroy(&mut client, &made);
            } else {
                refused(&mut client, &policy, layer, remedy(layer));
            }
        }
        best_effort(&daemon, None, *by);
    }
}

/// A sysctl that is put back.
struct Sysctl(PathBuf, String);

impl Sysctl {
    fn set(path: &str, value: &str) -> Self {
        let before = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, value).unwrap();
        Self(path.into(), before)
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        std::fs::write(&self.0, &self.1).unwrap();
    }
}

#[test]
#[ignore = "runs in a virtual machine: tests/kernels/run"]
fn namespaces_that_a_sysctl_forbids_are_refused_or_said_to_lack() {
    for by in ways() {
        let daemon = daemon(*by);
        for (name, kind) in NAMESPACES {
            let forbidden = Sysctl::set(&format!("/proc/sys/user/max_{kind}_namespaces"), "0");
            let mut client = daemon.connect();
            let said = format!("set the sysctl user.max_{kind}_namespaces above 0");
            refused(&mut client, &format!("hard-{name}"), &format!("namespace.{name}"), &said);
            if name == "pid" {
                refused(&mut client, "hard-filesystem", "filesystem", &said);
            }
            best_effort(&daemon, Some(kind), *by);
            drop(forbidden);
            // The control, and that no report outlives what it was about.
            let made = created(&mut client, &format!("hard-{name}"));
            assert_eq!(reported(&made)[&format!("namespace.{name}")], "full", "{made}");
            destroy(&mut client, &made);
        }
        best_effort(&daemon, None, *by);
    }
}

#[test]
#[ignore = "runs in a virtual machine: tests/kernels/run"]
fn ports_are_landlocks_where_it_has_them() {
    let daemon = daemon(By::Ordinary);
    let mut client = daemon.connect();
    let made = created(&mut client, "ports");
    assert_eq!(reported(&made)["landlock"], possible(None, By::Ordinary)["landlock"], "{made}");
    let connect = |port: u16| {
        format!(
            "nc -l -p {port} </dev/null >/dev/null & for i in $(seq 50); do \
             nc -w 2 127.0.0.1 {port} </dev/null 2>/dev/null && echo reached && break; sleep 0.1; done; \
             kill $! 2>/dev/null"
        )
    };
    assert_eq!(stdout(&mut client, &made["session_id"], &connect(7001)), "reached");
    let reached = stdout(&mut client, &made["session_id"], &connect(7002)) == "reached";
    assert_eq!(reached, landlock() < PORTS_OF_LANDLOCK);
    if (1..PORTS_OF_LANDLOCK).contains(&landlock()) {
        let layers = made["isolation"]["layers"].as_array().unwrap();
        let reason = &layers.iter().find(|layer| layer["layer"] == "landlock").unwrap()["reason"];
        assert!(reason.as_str().unwrap().contains("tcp"), "{reason}");
    }
}

#[test]
#[ignore = "runs in a virtual machine: tests/kernels/run"]
fn binds_in_place_of_overlays_are_full_where_they_are_asked_for() {
    for by in ways() {
        let daemon = daemon(*by);
        let mut client = daemon.connect();
        let made = created(&mut client, "binds");
        assert_eq!(reported(&made)["filesystem"], "full", "{made}");
        let session = &made["session_id"];
        let seen = stdout(&mut client, session, "grep -c ' /usr .* - overlay ' /proc/self/mountinfo");
        assert_eq!(seen, "0");
        let seen = stdout(&mut client, session, "touch /usr/x 2>&1; ls /usr/share/only-here /srv 2>&1");
        assert!(seen.contains("Read-only file system") && seen.contains("/usr/share/only-here"), "{seen}");
        assert!(seen.contains("/srv: No such file"), "{seen}");
        destroy(&mut client, &made);
    }
}

#[test]
#[ignore = "runs in a virtual machine: tests/kernels/run"]
fn what_is_the_hosts_is_out_of_reach() {
    // Each with something like it that is allowed.
    let pairs = [
        ("touch /usr/x", "touch /workspace/x"),
        ("cat /etc/shadow", "cat /etc/passwd"),
        ("cat /srv/host-file", "cat /usr/share/only-here"),
        ("mount -t tmpfs x /tmp", "touch /tmp/x"),
        ("unshare -U true", "setsid true"),
        ("mknod /workspace/b b 8 0", "mkfifo /workspace/f"),
        ("echo x > /proc/sys/kernel/core_pattern", "echo x > /dev/null"),
        ("cat /proc/1/environ", "cat /proc/self/environ"),
        ("cat /proc/kallsyms | grep .", "cat /proc/meminfo | grep ."),
        ("head -c 1 /dev/mem", "head -c 1 /dev/zero"),
        ("chmod 4755 /workspace/x", "chmod 755 /workspace/x"),
    ];
    for by in ways() {
        let daemon = daemon(*by);
        let mut client = daemon.connect();
        let whole = landlock() >= ALL_OF_LANDLOCK && has_views();
        let made = created(&mut client, if whole { "default" } else { "soft" });
        let session = made["session_id"].as_str().unwrap();
        for (denied, allowed) in pairs {
            let outcome = client.run(session, allowed, json!({}));
            assert_eq!(outcome["exit_code"], 0, "{by:?}: {allowed}: {outcome}");
            let outcome = client.run(session, denied, json!({}));
            assert_ne!(outcome["exit_code"], 0, "{by:?}: {denied}: {outcome}");
        }
        destroy(&mut client, &made);
    }
}

/// Daemons, launchers, inits and what they started.
fn of_trl() -> Vec<String> {
    let name = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let all = processes().into_iter().map(name).filter(|name| name.starts_with("trl"));
    all.map(|name| name.trim_end().to_owned()).collect()
}

#[test]
#[ignore = "runs in a virtual machine: tests/kernels/run"]
fn nothing_outlives_a_session_or_a_daemon() {
    // Out of its process group and session, no child of its starter, deaf to SIGTERM; one of it is stopped.
    let escape = "trap '' TERM; (setsid sh -c '(sleep 300 &) & sleep 300' &) ; kill -STOP $$";
    for by in ways() {
        for policy in ["l1", "soft"] {
            let mut daemon = daemon(*by);
            let mut client = daemon.connect();
            let mark = new_mark();
            let live = || within(Duration::from_secs(20), || marked(&mark).len() >= 3);
            let params = json!({"policy": policy, "env": {"MARK": mark}});
            let made = client.ok("session.create", params.clone());
            client.start(made["session_id"].as_str().unwrap(), escape, json!({}));
            assert!(live(), "{policy} by {by:?}: {:?}", marked(&mark));
            let ended =
                client.ok("session.destroy", json!({"session_id": made["session_id"], "force": true}));
            assert_eq!(ended["state"], "terminated", "{ended}");
            assert!(marked(&mark).is_empty() && daemon.inits().is_empty(), "{policy} by {by:?}");
            // The same, and nobody is there to end it.
            let made = client.ok("session.create", params);
            client.start(made["session_id"].as_str().unwrap(), escape, json!({}));
            assert!(live(), "{policy} by {by:?}: {:?}", marked(&mark));
            common::signal(daemon.pid(), nix::sys::signal::Signal::SIGKILL);
            assert!(daemon.ended_within(Duration::from_secs(5)));
            let gone = within(Duration::from_secs(20), || marked(&mark).is_empty() && of_trl().is_empty());
            assert!(gone, "{policy} by {by:?}: {:?} {:?}", marked(&mark), of_trl());
        }
    }
}
