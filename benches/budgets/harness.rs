//! A daemon of the benchmark's own, a client, and the arithmetic of rows.

use base64::Engine;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// One connection and the policy that its sessions ask for.
pub struct Client {
    pub stream: BufReader<UnixStream>,
    policy: String,
}

impl Client {
    pub fn call(&mut self, method: &str, params: &Value) -> Value {
        let line = format!("{}\n", json!({"id": "b", "method": method, "params": params}));
        self.stream.get_mut().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        self.stream.read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["ok"], true, "{method}: {}", answer["error"]);
        answer["data"].clone()
    }

    pub fn session(&mut self) -> String {
        let data = self.call("session.create", &json!({"policy": self.policy}));
        data["session_id"].as_str().unwrap().to_owned()
    }

    /// Brings a program to where the session sees it; its path there. Under `l1` that is where it lies.
    pub fn place(&mut self, session: &str, program: &str) -> String {
        if self.policy == "l1" {
            return program.to_owned();
        }
        let content = base64::engine::general_purpose::STANDARD.encode(std::fs::read(program).unwrap());
        let params = json!({"session_id": session, "command": "cat > program && chmod 755 program && pwd",
            "stdin": content, "stdin_encoding": "base64"});
        let outcome = self.call("exec.run", &params);
        assert_eq!(outcome["exit_code"], 0, "{outcome}");
        format!("{}/program", outcome["stdout"].as_str().unwrap().trim_end())
    }

    pub fn destroy(&mut self, session: &str) {
        self.call("session.destroy", &json!({"session_id": session, "force": true}));
    }
}

pub struct Daemon {
    child: Child,
    socket: PathBuf,
    policy: String,
    _directory: tempfile::TempDir,
}

impl Daemon {
    pub fn start(policy: &str) -> Self {
        let directory = open_directory();
        let socket = directory.path().join("run/trl.sock");
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
        Self { child, socket, policy: policy.to_owned(), _directory: directory }
    }

    pub fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Client { stream: BufReader::with_capacity(256 * 1024, stream), policy: self.policy.clone() }
    }

    pub fn resident_kib(&self) -> u64 {
        field(Path::new(&format!("/proc/{}/status", self.child.id())), "VmRSS:")
    }

    /// User and system time so far, seconds.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let after = stat.rsplit_once(") ").unwrap().1;
        let ticks: f64 = after.split(' ').skip(11).take(2).map(|n| n.parse::<f64>().unwrap()).sum();
        let second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap();
        ticks / second as f64
    }

    /// The launcher's children: one init a session.
    pub fn inits(&self) -> Vec<u32> {
        children(self.child.id()).into_iter().flat_map(children).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).ok();
        self.child.wait().ok();
    }
}

/// A directory that others may pass through: started as root, the daemon becomes somebody else.
pub fn open_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    directory
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

/// A `Name:   123 kB` line of a file of `/proc`.
pub fn field(path: &Path, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

pub fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

pub fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// Microseconds.
pub fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e6
}

pub fn row(name: &str, ours: &[f64], floor_name: &str, floor: &[f64]) {
    let [o50, o99, f50, f99] = [(ours, 0.5), (ours, 0.99), (floor, 0.5), (floor, 0.99)]
        .map(|(values, part)| percentile(values, part));
    println!(
        "{name:<36} p50 {o50:7.0} µs  p99 {o99:7.0} µs | {floor_name:<12} p50 {f50:7.0} µs  p99 {f99:7.0} µs | \
         p50 {:5.2}x  p99 {:5.2}x",
        o50 / f50,
        o99 / f99
    );
}

/// Runs a command to its end, nothing of it captured.
pub fn wait_for(command: &mut Command) {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success());
}

pub fn spawn_and_wait(program: &str) {
    wait_for(&mut Command::new(program));
}
