//! How a daemon comes up: with a socket from outside, with somebody to tell, with root kept.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{By, Client, Home, is_root, within};
use serde_json::json;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Command;
use std::time::Duration;

/// `trl serve` behind a shell that puts `socket` on descriptor 3 and says so in the way of systemd.
fn activated(home: &Home, listener: &UnixListener, count: u32, pid: &str) -> Command {
    let serve = home.serve(&[]);
    let mut command = home.shell(&format!(
        "exec 3<&0 </dev/null; export LISTEN_FDS={count} LISTEN_PID={pid}; exec \"$0\" \"$@\""
    ));
    command.arg(serve.get_program()).args(serve.get_args());
    command.stdin(std::os::fd::OwnedFd::from(listener.try_clone().unwrap()));
    command
}

#[test]
fn a_socket_that_was_handed_over_is_taken_as_it_is() {
    for by in common::ways() {
        let home = Home::new(*by);
        let place = home.path().join("handed-over.sock");
        let listener = UnixListener::bind(&place).unwrap();
        let daemon = home.start_command(activated(&home, &listener, 1, "$$"));
        drop(listener);
        let mut client = Client::connect(&place);
        let session = client.session(json!({}));
        // The socket goes no further: a command has 0 to 2 and what `ls` opens.
        let outcome = client.run(&session, "ls /proc/self/fd | wc -l; echo ${LISTEN_FDS-unset}", json!({}));
        assert_eq!(outcome["stdout"], "4\nunset\n", "{by:?}: {outcome}");
        assert!(!home.socket().exists(), "made one of its own too");
        drop((client, daemon));
        assert!(place.exists(), "removed what is not its own");
    }
}

#[test]
fn a_socket_that_was_meant_for_another_is_not_taken() {
    let home = Home::new(By::Ordinary);
    let listener = UnixListener::bind(home.path().join("other.sock")).unwrap();
    let daemon = home.start_command(activated(&home, &listener, 1, "1"));
    daemon.connect().ok("system.ping", json!({}));
    drop(daemon);
    let output = activated(&home, &listener, 2, "$$").output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("LISTEN_FDS"), "{output:?}");
}

#[test]
fn whoever_waits_is_told_when_clients_can_connect() {
    for by in common::ways() {
        let home = Home::new(*by);
        let place = home.path().join("notify.sock");
        let notify = UnixDatagram::bind(&place).unwrap();
        std::fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        notify.set_read_timeout(Some(common::PATIENCE)).unwrap();
        let mut command = home.serve(&[]);
        command.env("NOTIFY_SOCKET", &place);
        let daemon = home.start_command(command);
        let mut buffer = [0u8; 64];
        let length = notify.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1", "{by:?}");
        daemon.connect().ok("system.ping", json!({}));
    }
}

#[test]
fn root_is_kept_where_it_is_allowed_and_never_for_a_session() {
    if !is_root() {
        // There is no root to keep: the flag changes nothing.
        let daemon = Home::new(By::Ordinary).start(&["--allow-root"]);
        daemon.connect().ok("system.ping", json!({}));
        return;
    }
    let home = Home::new(By::Root);
    let daemon = home.start(&["--allow-root"]);
    let uids = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
        line.split_ascii_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(uids(daemon.pid()), ["0"; 4]);
    assert!(within(Duration::from_secs(2), || daemon.log_text().contains("keeps root")));
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let user = common::FLAG_UID.to_string();
    let outcome = client.run(
        &session,
        "id -u; id -g; id -G; grep Cap /proc/self/status | grep -vc '0000000000000000$'",
        json!({}),
    );
    let lines: Vec<&str> = outcome["stdout"].as_str().unwrap().lines().collect();
    assert_eq!(lines[..3], [user.as_str(); 3], "{outcome}");
    assert_eq!(uids(daemon.inits()[0]), vec![user; 4]);
    // The bounding set is the one that may have bits without any power.
    assert!(lines[3].parse::<u32>().unwrap() <= 1, "{outcome}");
    drop(daemon);
    // The control: without the flag it is given up.
    let daemon = Home::new(By::Root).start(&[]);
    assert!(uids(daemon.pid()).iter().all(|uid| *uid == common::FLAG_UID.to_string()));
}

/// A directory of one policy, of whoever starts `home`'s daemon.
fn policies(home: &Home, by: By, text: &str) -> std::path::PathBuf {
    let directory = home.path().join("policies");
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("own.toml");
    std::fs::write(&file, text).unwrap();
    for (path, mode) in [(&file, 0o644), (&directory, 0o755)] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        if by == By::Ordinary && is_root() {
            std::os::unix::fs::chown(path, Some(common::ORDINARY_UID), Some(common::ORDINARY_UID)).unwrap();
        }
    }
    directory
}

const OWN: &str = "name = \"own\"\ndescription = \"ours\"\nextends = \"strict\"\ngrace_s = 9\n";

#[test]
fn an_operators_policies_are_known_and_may_be_the_default() {
    for by in common::ways() {
        let home = Home::new(*by);
        let directory = policies(&home, *by, OWN);
        let directory = directory.to_str().unwrap();
        let daemon = home.start(&["--policy-dir", directory, "--policy", "own"]);
        let mut client = daemon.connect();
        let made = client.ok("session.create", json!({}));
        assert_eq!(made["policy"], "own", "{by:?}: {made}");
        let listed = client.ok("policy.list", json!({}));
        assert_eq!(listed["default"], "own");
        let own =
            listed["policies"].as_array().unwrap().iter().find(|policy| policy["name"] == "own").unwrap();
        assert_eq!(own["digest"], made["policy_digest"]);
        assert_eq!(client.ok("policy.show", json!({"name": "own"}))["policy"]["grace_s"], 9);
        assert_eq!(client.code("session.create", json!({"policy": "other"})), "POLICY_NOT_FOUND");
    }
}

#[test]
fn a_policy_that_others_could_have_written_or_that_is_none_starts_no_daemon() {
    for by in common::ways() {
        let home = Home::new(*by);
        let directory = policies(&home, *by, OWN);
        let file = directory.join("own.toml");
        let shown = directory.to_str().unwrap();
        let refused = |arguments: &[&str], expected: &str| {
            let output = home.serve(arguments).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && said.contains(expected), "{by:?} {arguments:?}: {said}");
            assert!(!home.runtime().exists(), "something was made before it was refused");
        };
        let mode = |path: &std::path::Path, mode| {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        };
        refused(&["--policy", "own"], "there is no policy \"own\"");
        refused(&["--policy-dir", shown, "--policy", "other"], "there is no policy \"other\"");
        mode(&directory, 0o775);
        refused(&["--policy-dir", shown], "mode 0775");
        mode(&directory, 0o755);
        mode(&file, 0o646);
        refused(&["--policy-dir", shown], "mode 0646");
        mode(&file, 0o644);
        std::fs::write(&file, format!("{OWN}[rlimits]\ncpus = 1\n")).unwrap();
        refused(&["--policy-dir", shown], &format!("{}:6:1: ", file.display()));
        std::fs::write(&file, OWN).unwrap();
        if is_root() {
            std::os::unix::fs::chown(&file, Some(common::FLAG_UID), None).unwrap();
            refused(&["--policy-dir", shown], &format!("belongs to uid {}", common::FLAG_UID));
            let owner = if *by == By::Ordinary { common::ORDINARY_UID } else { 0 };
            std::os::unix::fs::chown(&file, Some(owner), None).unwrap();
        }
        drop(home.start(&["--policy-dir", shown]));
    }
}

#[test]
fn a_policys_own_limits_hold_unless_the_operator_set_others() {
    let limits = |arguments: &[&str], policy: &str| {
        let daemon = Home::new(By::Ordinary).start(arguments);
        let mut client = daemon.connect();
        let session = client.session(json!({"policy": policy}));
        let outcome = client.run(&session, "ulimit -t; ulimit -n", json!({}));
        outcome["stdout"].as_str().unwrap().to_owned()
    };
    assert_eq!(limits(&[], "strict"), "60\n256\n");
    assert_eq!(limits(&[], "build"), "3600\n8192\n");
    assert_eq!(limits(&["--child-cpu-s", "7"], "build"), "7\n8192\n");
    let daemon = Home::new(By::Ordinary).start(&[]);
    assert_eq!(daemon.connect().ok("session.create", json!({}))["policy"], "default");
}
