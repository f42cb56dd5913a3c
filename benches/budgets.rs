//! The budgets, each as a ratio against a floor that is measured in the same run, in turn with it.
//!
//! `cargo bench --bench budgets` starts a daemon of its own and prints one table. Floors: a bare `posix_spawn`
//! and wait of the same program, and a minimal relay that frames the same bytes the same way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Client(BufReader<UnixStream>);

impl Client {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(BufReader::with_capacity(256 * 1024, stream))
    }

    fn call(&mut self, method: &str, params: &Value) -> Value {
        let line = format!("{}\n", json!({"id": "b", "method": method, "params": params}));
        self.0.get_mut().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["ok"], true, "{method}: {}", answer["error"]);
        answer["data"].clone()
    }

    fn session(&mut self) -> String {
        let data = self.call("session.create", &json!({"working_dir": "/"}));
        data["session_id"].as_str().unwrap().to_owned()
    }
}

struct Daemon {
    child: Child,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/trl.sock");
        // Others must pass through the directory: started as root, the daemon becomes somebody else.
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_trl"))
            .args(["serve", "--max-sessions", "4096", "--log-level", "error", "--socket"])
            .arg(&socket)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "the daemon does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, socket, _directory: directory }
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap()),
            nix::sys::signal::SIGTERM,
        )
        .ok();
        self.child.wait().ok();
    }
}

fn percentile(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e6
}

fn row(name: &str, ours: &mut [f64], floor: &mut [f64]) {
    ours.sort_by(f64::total_cmp);
    floor.sort_by(f64::total_cmp);
    let (o50, o99) = (percentile(ours, 0.5), percentile(ours, 0.99));
    let (f50, f99) = (percentile(floor, 0.5), percentile(floor, 0.99));
    println!(
        "{name:<34} p50 {o50:8.0} µs  p99 {o99:8.0} µs | floor p50 {f50:8.0} µs  p99 {f99:8.0} µs | \
         p50 {:5.2}x  p99 {:5.2}x",
        o50 / f50,
        o99 / f99
    );
}

fn spawn_and_wait(program: &str) {
    let status = Command::new(program).stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success());
}

fn execs(client: &mut Client, session: &str, program: &str, name: &str, rounds: usize) {
    let params = json!({"session_id": session, "argv": [program]});
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..rounds + 50 {
        let a = timed(|| {
            let outcome = client.call("exec.run", &params);
            assert_eq!(outcome["exit_code"], 0);
        });
        let b = timed(|| spawn_and_wait(program));
        if round >= 50 {
            ours.push(a);
            floor.push(b);
        }
    }
    row(name, &mut ours, &mut floor);
}

fn creates(client: &mut Client, rounds: usize) {
    let (mut create, mut destroy, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut session = String::new();
        create.push(timed(|| session = client.session()));
        destroy.push(timed(|| {
            client.call("session.destroy", &json!({"session_id": session, "force": true}));
        }));
        floor.push(timed(|| spawn_and_wait("/bin/true")));
    }
    row("session.create / true", &mut create, &mut floor.clone());
    row("session.destroy force / true", &mut destroy, &mut floor);
}

fn rate(threads: usize, seconds: f64, work: impl Fn(usize, Instant) -> u64 + Sync) -> f64 {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let work = &work;
    let total: u64 = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|index| scope.spawn(move || work(index, end))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    total as f64 / seconds
}

fn throughput(socket: &Path, program: &str) {
    let ours = rate(4, 3.0, |_, end| {
        let mut client = Client::connect(socket);
        let params = json!({"session_id": client.session(), "argv": [program]});
        let mut count = 0;
        while Instant::now() < end {
            client.call("exec.run", &params);
            count += 1;
        }
        count
    });
    let floor = rate(4, 3.0, |_, end| {
        let mut count = 0;
        while Instant::now() < end {
            spawn_and_wait(program);
            count += 1;
        }
        count
    });
    println!("{:<34} {ours:8.0} /s | floor {floor:8.0} /s | {:5.2}x", "execs, 4 clients", ours / floor);
}

const STREAM: &str = "yes 'a line of output, as programs write them, of eighty bytes with its end ......' \
                      | head -c 300000000";

fn stream(socket: &Path) -> f64 {
    let mut client = Client::connect(socket);
    let session = client.session();
    let params = json!({"session_id": session, "command": STREAM, "overflow": "block"});
    let line = format!("{}\n", json!({"id": "s", "method": "exec.stream", "params": params}));
    let start = Instant::now();
    client.0.get_mut().write_all(line.as_bytes()).unwrap();
    let (mut line, mut bytes) = (Vec::new(), 0u64);
    loop {
        line.clear();
        client.0.read_until(b'\n', &mut line).unwrap();
        bytes += line.len() as u64;
        let head = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
        if head.contains("\"end\"") {
            break;
        }
        assert!(!head.contains("\"ok\":false"), "{head}");
    }
    assert!(bytes > 300_000_000);
    bytes as f64 / start.elapsed().as_secs_f64() / 1e6
}

/// The floor of a stream: one thread reads the pipe, frames what it read as JSON, writes it to a socket.
fn relay() -> f64 {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let start = Instant::now();
    let relaying = std::thread::spawn(move || {
        let mut child = Command::new("/bin/sh").args(["-c", STREAM]).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = child.stdout.take().unwrap();
        let mut socket = theirs;
        let mut buffer = vec![0; 65536];
        let mut offset = 0;
        loop {
            let count = output.read(&mut buffer).unwrap();
            if count == 0 {
                break;
            }
            let text = std::str::from_utf8(&buffer[..count]).unwrap();
            let mut frame = serde_json::to_vec(&json!({"id": "s", "event": "output", "data": {
                "stream": "stdout", "offset": offset, "encoding": "utf-8", "data": text}}))
            .unwrap();
            frame.push(b'\n');
            offset += count;
            socket.write_all(&frame).unwrap();
        }
        child.wait().unwrap();
    });
    let (mut buffer, mut bytes) = (vec![0; 256 * 1024], 0u64);
    loop {
        let count = ours.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        bytes += count as u64;
    }
    relaying.join().unwrap();
    bytes as f64 / start.elapsed().as_secs_f64() / 1e6
}

fn idle_sessions(daemon: &Daemon, client: &mut Client, count: usize) {
    let before = daemon.resident_kib();
    let sessions: Vec<String> = (0..count).map(|_| client.session()).collect();
    let after = daemon.resident_kib();
    println!(
        "{:<34} {:8.1} KiB of the daemon each, {count} sessions",
        "idle session",
        (after - before) as f64 / count as f64
    );
    for session in sessions {
        client.call("session.destroy", &json!({"session_id": session, "force": true}));
    }
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick" || argument == "--test");
    let rounds = if quick { 100 } else { 3000 };
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let noop = directory.path().join("noop");
    let source = directory.path().join("noop.c");
    std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let built = Command::new("cc").args(["-O2", "-static", "-o"]).arg(&noop).arg(&source).status().unwrap();
    assert!(built.success(), "cc -static of the no-op failed");
    let noop = noop.to_str().unwrap();
    let daemon = Daemon::start();
    let mut client = Client::connect(&daemon.socket);
    let session = client.session();
    execs(&mut client, &session, noop, "exec.run, static no-op", rounds);
    execs(&mut client, &session, "/bin/true", "exec.run, /bin/true", rounds / 3);
    creates(&mut client, rounds / 3);
    if quick {
        return;
    }
    throughput(&daemon.socket, noop);
    for _ in 0..3 {
        let (ours, floor) = (stream(&daemon.socket), relay());
        println!("{:<34} {ours:8.0} MB/s | relay {floor:8.0} MB/s | {:5.2}x", "exec.stream", ours / floor);
    }
    idle_sessions(&daemon, &mut client, 2000);
}
