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
/// What tells a daemon that is held up (ten seconds and more) from a machine that is busy; no measure of speed.
const PROMPT: Duration = Duration::from_secs(5);

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

/// Where the helper finds its socket and what it is to do.
const SOCKET: &str = "TEST_OF_TRL_HOSTILE_SOCKET";
const ACT: &str = "TEST_OF_TRL_HOSTILE_ACT";

/// Not a test of its own: what [`as_ordinary`] runs as another user.
#[test]
fn acts_as_another_user() {
    let (Ok(socket), Ok(act)) = (std::env::var(SOCKET), std::env::var(ACT)) else { return };
    let mut client = Client::connect(std::path::Path::new(&socket));
    if act == "keys" {
        let session = client.session(json!({}));
        for round in 0..200 {
            let ids: Vec<_> = (0..100)
                .map(|number| {
                    let key = format!("foreign-{round}-{number}");
                    let params = json!({"session_id": session, "argv": ["x"], "idempotency_key": key, "tty": {"rows": 1, "cols": 1}});
                    client.send("exec.start", params)
                })
                .collect();
            for id in ids {
                assert_eq!(client.next_of(&id)["error"]["code"], "INVALID_PARAMS");
            }
        }
        println!("ANSWER done");
    } else {
        let (method, id) = act.split_once(' ').unwrap();
        println!("ANSWER {}", client.call(method, json!({"exec_id": id})));
    }
}

/// Does `act` as the user that the daemon runs as; only where the test is root, and thereby somebody else.
fn as_ordinary(daemon: &Daemon, act: &str) -> String {
    use std::os::unix::process::CommandExt;
    let binaries = binaries();
    let output = std::process::Command::new(binaries.path().join("test"))
        .args(["--exact", "acts_as_another_user", "--nocapture"])
        .env(SOCKET, daemon.home.socket())
        .env(ACT, act)
        .current_dir("/")
        .uid(ORDINARY_UID)
        .gid(ORDINARY_UID)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer = text.lines().find_map(|line| line.strip_prefix("ANSWER "));
    answer.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr))).to_owned()
}

fn rss_mib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[test]
fn answers_that_nobody_reads_do_not_fill_the_memory() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let command = "head -c 4194304 /dev/zero | tr '\\0' '\\1' | tee /dev/stderr";
    let exec = client.start(&session, command, json!({}));
    let whole = client.ok("exec.wait", json!({"exec_id": exec}));
    assert_eq!(whole["stdout"].as_str().unwrap().len(), 4 << 20);
    let mut silent: Vec<_> = (0..10).map(|_| daemon.connect()).collect();
    for client in &mut silent {
        client.send("exec.wait", json!({"exec_id": exec}));
    }
    let mut peak = 0;
    for _ in 0..60 {
        peak = peak.max(rss_mib(daemon.pid()));
        pause(100);
    }
    assert!(peak < 350, "{peak} MiB");
    // Who asks for little is answered at once, who asks for much when the silent ones are cut off.
    let asked = Instant::now();
    client.ok("system.ping", json!({}));
    assert!(asked.elapsed() < PROMPT, "{:?}", asked.elapsed());
    let again = client.ok("exec.wait", json!({"exec_id": exec}));
    assert_eq!(again["stdout"].as_str().unwrap().len(), 4 << 20);
}

#[test]
fn one_principal_cannot_take_every_connection() {
    let daemon = Daemon::ordinary();
    let mut first = daemon.connect();
    let limit =
        first.ok("system.info", json!({}))["limits"]["max_connections_per_principal"].as_u64().unwrap();
    let mut taken: Vec<_> = (1..limit).map(|_| daemon.connect()).collect();
    taken.last_mut().unwrap().ok("system.ping", json!({}));
    let refusal = daemon.connect().next().expect("one more than the limit was taken");
    assert_eq!(refusal["error"]["code"], "TOO_MANY_REQUESTS", "{refusal}");
    if is_root() {
        let output =
            daemon.home.trl(&["ping"]).env("TRL_SOCKET_PATH", daemon.home.socket()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    taken.clear();
    assert!(within(Duration::from_secs(10), || daemon.connect().next_is_pong()));
}

trait Pong {
    fn next_is_pong(&mut self) -> bool;
}

impl Pong for Client {
    fn next_is_pong(&mut self) -> bool {
        self.raw_lossy(b"{\"id\":\"p\",\"method\":\"system.ping\"}\n");
        self.next().is_some_and(|answer| answer["ok"] == true)
    }
}

#[test]
fn keys_of_one_principal_do_not_push_out_anothers() {
    if !needs_root("two users are in it") {
        return;
    }
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let params = json!({"session_id": session, "command": "echo ran", "idempotency_key": "mine"});
    let first = client.ok("exec.run", params.clone());
    assert_eq!(as_ordinary(&daemon, "keys"), "done");
    let again = client.ok("exec.run", params);
    assert_eq!(first["exec_id"], again["exec_id"]);
    let file = std::fs::metadata(daemon.home.runtime().join("idempotency-keys")).unwrap();
    assert!(file.len() < 6 << 20, "{}", file.len());
}

#[test]
fn an_expired_exec_is_unknown_to_another_principal() {
    if !needs_root("two users are in it") {
        return;
    }
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    let session = client.session(json!({}));
    let exec = client.start(&session, "true", json!({}));
    client.ok("exec.wait", json!({"exec_id": exec}));
    for _ in 0..256 {
        client.run(&session, "true", json!({}));
    }
    assert_eq!(client.code("exec.info", json!({"exec_id": exec})), "EXEC_EXPIRED");
    let answer = as_ordinary(&daemon, &format!("exec.info {exec}"));
    assert!(answer.contains("EXEC_NOT_FOUND"), "{answer}");
}

#[test]
fn an_unknown_field_is_named_only_if_it_is_a_name() {
    let daemon = Daemon::ordinary();
    let mut client = daemon.connect();
    assert!(
        client.error("system.ping", json!({"colour": 1}))["message"].as_str().unwrap().contains("colour")
    );
    for key in ["x".repeat(100_000), "a\u{1b}[31m\nb".to_owned(), "\u{202e}x".to_owned()] {
        let mut params = serde_json::Map::new();
        params.insert(key.clone(), json!(1));
        let error = client.error("system.ping", params.into()).to_string();
        assert!(error.contains("(unprintable key)") && error.len() < 300, "{error}");
    }
}

/// A daemon on a path that is relative to its home.
fn on_relative_path(home: &Home) -> std::process::Child {
    let child = home
        .trl(&["serve", "--socket", "run/trl.sock"])
        .current_dir(home.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    assert!(within(PATIENCE, || UnixStream::connect(home.socket()).is_ok()));
    child
}

#[test]
fn two_instances_on_the_same_relative_path_do_not_end_each_other() {
    let homes = [Home::new(By::Ordinary), Home::new(By::Ordinary)];
    let mut first = on_relative_path(&homes[0]);
    let mut client = Client::connect(&homes[0].socket());
    let session = client.session(json!({}));
    let exec = client.start(&session, "sleep 60", json!({"on_disconnect": "keep"}));
    let mut second = on_relative_path(&homes[1]);
    pause(500);
    let state = client.ok("exec.info", json!({"exec_id": exec}))["state"].clone();
    for child in [&mut first, &mut second] {
        signal(i32::try_from(child.id()).unwrap(), nix::sys::signal::Signal::SIGTERM);
        child.wait().unwrap();
    }
    assert_eq!(state, "running");
}

#[test]
fn what_a_workload_plants_in_place_of_the_keys_is_replaced() {
    let home = Home::new(By::Ordinary);
    let precious = home.private_file("precious", "precious\n");
    let keys = home.runtime().join("idempotency-keys");
    for plant in ["mkfifo KEYS", "ln -s PRECIOUS KEYS", "ln PRECIOUS KEYS", "head -c 64M /dev/zero > KEYS"] {
        {
            let daemon = home.start(&[]);
            let mut client = daemon.connect();
            let session = client.session(json!({}));
            let command = format!("rm -f KEYS && {plant}")
                .replace("KEYS", keys.to_str().unwrap())
                .replace("PRECIOUS", precious.to_str().unwrap());
            let outcome = client.run(&session, &command, json!({}));
            assert_eq!(outcome["exit_code"], 0, "{outcome}");
        }
        let mut child = home.serve(&[]).stderr(std::process::Stdio::null()).spawn().unwrap();
        let is_up = within(Duration::from_secs(10), || UnixStream::connect(home.socket()).is_ok());
        let answers = is_up && Client::connect(&home.socket()).next_is_pong();
        if !answers {
            child.kill().unwrap();
        }
        signal(i32::try_from(child.id()).unwrap(), nix::sys::signal::Signal::SIGTERM);
        child.wait().unwrap();
        assert!(answers, "{plant}: the daemon does not answer");
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious\n", "{plant}");
        let found = std::fs::symlink_metadata(&keys).unwrap();
        assert!(found.is_file() && found.len() < 1 << 20, "{plant}: {found:?}");
    }
    // What was not tampered with outlives a restart.
    for (life, expected) in [(0, None), (1, Some("OUTCOME_UNKNOWN"))] {
        let daemon = home.start(&[]);
        let mut client = daemon.connect();
        let session = client.session(json!({}));
        let params = json!({"session_id": session, "command": "true", "idempotency_key": "kept"});
        let answer = client.call("exec.run", params);
        assert_eq!(answer["error"]["code"].as_str(), expected, "life {life}: {answer}");
    }
}

#[test]
fn a_root_daemon_does_not_use_a_directory_of_an_earlier_uid() {
    if !needs_root("a daemon of root's is in it") {
        return;
    }
    let home = Home::new(By::Root);
    std::fs::create_dir(home.runtime()).unwrap();
    std::fs::set_permissions(home.runtime(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(home.runtime(), Some(1_900_000_003), Some(1_900_000_003)).unwrap();
    let socket = home.socket();
    let start = || {
        let mut child = home
            .trl(&["serve", "--allow-root", "--socket", socket.to_str().unwrap()])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let is_up = within(Duration::from_secs(5), || {
            UnixStream::connect(&socket).is_ok() || child.try_wait().unwrap().is_some()
        });
        let ended = child.try_wait().unwrap();
        signal(i32::try_from(child.id()).unwrap(), nix::sys::signal::Signal::SIGTERM);
        child.wait().unwrap();
        assert!(is_up);
        ended
    };
    assert!(start().is_some_and(|status| !status.success()), "it serves in a foreign directory");
    std::os::unix::fs::chown(home.runtime(), Some(0), Some(0)).unwrap();
    // Also a second time, with what the first left.
    assert!(start().is_none() && start().is_none(), "it does not serve in root's own");
}

#[test]
fn a_process_of_a_session_that_drops_its_mark_is_no_client() {
    for by in ways() {
        let daemon = Home::new(*by).start(&[]);
        let mut client = daemon.connect();
        let session = client.session(json!({}));
        let ping = format!("{}/trl ping --json 2>&1", binaries().path().display());
        let env = json!({"env": {"TRL_SOCKET_PATH": daemon.home.socket()}});
        for prefix in [
            "",
            "prlimit --rttime=1000000000:1000000000 ",
            "setsid -f prlimit --rttime=1000000000:1000000000 ",
        ] {
            let outcome = client.run(&session, &format!("{prefix}{ping}; sleep 0.3"), env.clone());
            let said = outcome["stdout"].as_str().unwrap();
            // Turned away, whether before or after it had asked.
            let refused = said.contains("descends from a session") || said.contains("Broken pipe");
            assert!(refused && !said.contains("version"), "{by:?} {prefix}: {outcome}");
        }
        let outside =
            daemon.home.trl(&["ping"]).env("TRL_SOCKET_PATH", daemon.home.socket()).output().unwrap();
        assert!(outside.status.success());
    }
}

/// How often `needle` is in the writable memory of a process.
fn copies_in_memory(pid: i32, needle: &[u8]) -> usize {
    use std::os::unix::fs::FileExt;
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw") && !line.contains("[v")) {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let [from, to] = [from, to].map(|number| u64::from_str_radix(number, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            found += bytes.windows(needle.len()).filter(|window| *window == needle).count();
        }
    }
    found
}

#[test]
fn the_runtime_scope_is_in_the_daemons_memory_once() {
    if !needs_root("nobody else may read a daemon's memory") {
        return;
    }
    let home = Home::new(By::Ordinary);
    // Long, of parts that are recognised each: what is left of a buffer may be written over in part.
    let part = new_mark();
    let secret = part.repeat(200);
    let other = format!("other-{}", new_mark());
    let file = home.private_file("env", &format!("A=1\nB='{secret}'\nTRL_X={other}\nC=\"x{secret}\"\n"));
    let mut command = home.serve(&["--env-file", file.to_str().unwrap(), "--pass-env", "KEPT"]);
    let kept = format!("kept-{}", new_mark());
    command.env("KEPT", &kept).env("NOT_KEPT", &other).stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    assert!(within(PATIENCE, || UnixStream::connect(home.socket()).is_ok()));
    let counts = [&part, &other, &kept].map(|text| copies_in_memory(pid, text.as_bytes()));
    signal(pid, nix::sys::signal::Signal::SIGTERM);
    child.wait().unwrap();
    assert_eq!(counts, [400, 0, 1], "of the file's, of what is dropped, of what is passed");
}
