//! What a hostile client, or a hostile workload with the daemon's own uid, does to the others: nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How soon a small request of somebody else is answered, whatever one client does.
const PROMPT: Duration = Duration::from_millis(500);

/// Sends `block` over and over on one connection, whose answers are read, until told to stop.
fn flood(daemon: &Daemon, block: Vec<u8>, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let mut socket = UnixStream::connect(daemon.home.socket()).unwrap();
    let mut answers = socket.try_clone().unwrap();
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let reader = std::thread::spawn(move || {
            let mut buffer = [0u8; 65536];
            while let Ok(1..) = answers.read(&mut buffer) {}
        });
        while !stop.load(Ordering::Relaxed) && socket.write_all(&block).is_ok() {}
        socket.shutdown(std::net::Shutdown::Both).ok();
        reader.join().unwrap();
    })
}

#[test]
fn a_flood_of_lines_does_not_hold_up_anybody_else() {
    let daemon = Daemon::ordinary();
    let notification = br#"{"jsonrpc":"2.0","method":"system.ping"}"#;
    let blocks = [
        b"\n".repeat(65536),
        [b"\n".repeat(500), notification.to_vec(), b"\n".to_vec()].concat().repeat(64),
        [&notification[..], b"\n"].concat().repeat(1500),
        b"junk\n".repeat(13000),
    ];
    for block in blocks {
        let what = String::from_utf8_lossy(&block[..block.len().min(40)]).into_owned();
        let stop = Arc::new(AtomicBool::new(false));
        let flooding = flood(&daemon, block, &stop);
        pause(200);
        let mut other = UnixStream::connect(daemon.home.socket()).unwrap();
        other.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut slowest = Duration::ZERO;
        let mut silent = false;
        for _ in 0..10 {
            let asked = Instant::now();
            other.write_all(b"{\"id\":\"p\",\"method\":\"system.ping\"}\n").unwrap();
            let mut answer = [0u8; 512];
            silent |= !other.read(&mut answer).is_ok_and(|length| length > 0);
            slowest = slowest.max(asked.elapsed());
            if silent {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        flooding.join().unwrap();
        assert!(!silent && slowest < PROMPT, "beside {what:?} a ping took {slowest:?}");
    }
}

#[test]
fn a_connection_that_sends_only_blank_lines_is_closed_and_a_few_do_no_harm() {
    let daemon = Daemon::ordinary();
    let mut patient = daemon.connect();
    patient.raw(&b"\r\n \n\n".repeat(100));
    patient.ok("system.ping", json!({}));
    let mut idle = daemon.connect();
    idle.raw_lossy(&b"\n".repeat(100_000));
    let refusal = idle.next().expect("no refusal");
    assert_eq!(refusal["error"]["code"], "INVALID_PARAMS", "{refusal}");
    assert!(idle.next().is_none());
}

#[test]
fn a_report_never_shows_the_working_directory_of_another_session() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let (mine, others) = (daemon.home.path().join("mine"), daemon.home.path().join("others"));
    for directory in [&mine, &others] {
        std::fs::create_dir(directory).unwrap();
        std::fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    for directory in [&others, &mine, &others] {
        let session = client.session(json!({"working_dir": directory}));
        let info = client.ok("session.info", json!({"session_id": session}));
        let layers = info["isolation"]["layers"].as_array().unwrap();
        let layer = layers.iter().find(|layer| layer["layer"] == "working_dir").unwrap();
        assert_eq!(layer["enforced"], "full", "{layer}");
        assert_eq!(layer["evidence"]["observed"], json!(directory), "{layer}");
    }
}
