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
