//! The harness: real binaries, a real daemon in a directory of its own, a raw Unix socket.
//!
//! Nothing of the library is used here, so that what a client sees is what is tested. Run as root, a daemon is
//! started both as root and as an ordinary user; run by anybody else, as that user.
#![allow(dead_code)]

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

/// What `--user` is given.
pub const FLAG_UID: u32 = 1_900_000_500;
/// Who starts a daemon as an ordinary user.
pub const ORDINARY_UID: u32 = 1_900_000_501;
/// How long a daemon may take to be ready, and any answer to come.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Whether the test itself is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// What only root can try: false for anybody else, who is told so. CI runs every test as root as well.
pub fn needs_root(why: &str) -> bool {
    if !is_root() {
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        // Not by a macro, whose output is kept from whoever runs the tests.
        let line = format!("NOT TESTED: {test}: needs root: {why}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    is_root()
}

/// Who starts the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// Root, with `--user`; whoever runs the test if that is not root.
    Root,
    /// An ordinary user.
    Ordinary,
}

/// Every way to start a daemon that this run can have.
pub fn ways() -> &'static [By] {
    if is_root() { &[By::Ordinary, By::Root] } else { &[By::Ordinary] }
}

static BINARIES: Mutex<Weak<tempfile::TempDir>> = Mutex::new(Weak::new());

/// Copies of the binaries where every uid can read them.
pub fn binaries() -> Arc<tempfile::TempDir> {
    let mut shared = lock(&BINARIES);
    if let Some(directory) = shared.upgrade() {
        return directory;
    }
    let directory = tempfile::tempdir().unwrap();
    open_to_all(directory.path());
    let own = std::env::current_exe().unwrap();
    for (from, name) in [
        (Path::new(env!("CARGO_BIN_EXE_trl")), "trl"),
        (Path::new(env!("CARGO_BIN_EXE_trl-launcher")), "trl-launcher"),
        (own.as_path(), "test"),
    ] {
        let to = directory.path().join(name);
        // Written by a child: a descriptor that is open for writing here while another test forks makes the
        // copy's execution fail with ETXTBSY.
        assert!(Command::new("cp").arg(from).arg(&to).status().unwrap().success());
        open_to_all(&to);
    }
    let directory = Arc::new(directory);
    *shared = Arc::downgrade(&directory);
    directory
}

fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A lock that a failed test does not spoil for the others.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A directory for one daemon's life or several.
pub struct Home {
    directory: tempfile::TempDir,
    binaries: Arc<tempfile::TempDir>,
    by: By,
}

impl Home {
    pub fn new(by: By) -> Arc<Self> {
        let directory = tempfile::tempdir().unwrap();
        open_to_all(directory.path());
        if by == By::Ordinary && is_root() {
            chown(directory.path(), Some(ORDINARY_UID), Some(ORDINARY_UID)).unwrap();
        }
        Arc::new(Self { directory, binaries: binaries(), by })
    }
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
    /// Where the daemon puts what it makes.
    pub fn runtime(&self) -> PathBuf {
        self.path().join("run")
    }
    pub fn socket(&self) -> PathBuf {
        self.runtime().join("trl.sock")
    }
    /// A file that only its owner reads, owned by who starts the daemon.
    pub fn private_file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        if self.by == By::Ordinary && is_root() {
            chown(&path, Some(ORDINARY_UID), Some(ORDINARY_UID)).unwrap();
        }
        path
    }
    /// `trl` with `arguments`, by whom this home belongs to, with a few variables that must go nowhere.
    pub fn trl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.binaries.path().join("trl"));
        command
            .args(arguments)
            .current_dir("/")
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("INHERITED_BY_ACCIDENT", "inherited-canary")
            .env("TRL_UNKNOWN_VARIABLE", "inherited-canary")
            .stdin(Stdio::null());
        if self.by == By::Ordinary && is_root() {
            command.uid(ORDINARY_UID).gid(ORDINARY_UID);
        }
        command
    }
    /// A shell in the place of `trl`, which gets the next argument as `$0`.
    pub fn shell(&self, script: &str) -> Command {
        let like = self.trl(&[]);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).current_dir("/").env_clear();
        for (name, value) in like.get_envs() {
            command.env(name, value.unwrap());
        }
        if self.by == By::Ordinary && is_root() {
            command.uid(ORDINARY_UID).gid(ORDINARY_UID);
        }
        command
    }
    /// `trl serve` on this home's socket.
    pub fn serve(&self, arguments: &[&str]) -> Command {
        let mut command = self.trl(&["serve", "--socket"]);
        command.arg(self.socket());
        if self.by == By::Root && is_root() {
            command.arg("--user").arg(FLAG_UID.to_string());
        }
        command.args(arguments);
        command
    }
    /// Starts the daemon and waits until it is ready.
    pub fn start(self: &Arc<Self>, arguments: &[&str]) -> Daemon {
        self.start_command(self.serve(arguments))
    }
    /// Starts a command of [`Self::serve`] that was changed, and waits until it is ready.
    pub fn start_command(self: &Arc<Self>, mut command: Command) -> Daemon {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut buffer = [0u8; 65536];
            while let Ok(count @ 1..) = stderr.read(&mut buffer) {
                lock(&into).extend_from_slice(&buffer[..count]);
            }
        });
        let mut daemon = Daemon { home: Arc::clone(self), child, log };
        let deadline = Instant::now() + PATIENCE;
        while !contains(&lock(&daemon.log), b"listening on") {
            let ended = daemon.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "daemon not ready ({ended:?}): {}",
                daemon.log_text()
            );
            pause(5);
        }
        daemon
    }
}

/// A running daemon; ended when dropped.
pub struct Daemon {
    pub home: Arc<Home>,
    child: Child,
    log: Arc<Mutex<Vec<u8>>>,
}

impl Daemon {
    /// A daemon by an ordinary user, with what most tests want.
    pub fn ordinary() -> Self {
        Home::new(By::Ordinary).start(&[])
    }
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }
    pub fn connect(&self) -> Client {
        Client::connect(&self.home.socket())
    }
    pub fn log_bytes(&self) -> Vec<u8> {
        lock(&self.log).clone()
    }
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.log)).into_owned()
    }
    /// Whether it ended within `bound`.
    pub fn ended_within(&mut self, bound: Duration) -> bool {
        within(bound, || self.child.try_wait().unwrap().is_some())
    }
    /// Its launcher.
    pub fn launcher(&self) -> i32 {
        let found = named(self.pid(), "trl-launcher");
        assert_eq!(found.len(), 1, "launchers: {found:?}");
        found[0]
    }
    /// The inits of its sessions.
    pub fn inits(&self) -> Vec<i32> {
        named(self.pid(), "trl-init")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            signal(self.pid(), nix::sys::signal::Signal::SIGTERM);
            if !self.ended_within(Duration::from_secs(8)) {
                self.child.kill().ok();
                self.child.wait().ok();
                assert!(std::thread::panicking(), "daemon did not end on SIGTERM");
            }
        }
        if std::thread::panicking() {
            let text = self.log_text();
            let tail = text.len().saturating_sub(3000);
            eprintln!("log: {}", text.get(tail..).unwrap_or(&text));
        }
    }
}

pub fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).ok();
}

/// Waits until `done`, for `bound` at most; yields whether it was.
pub fn within(bound: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + bound;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        pause(10);
    }
}

pub fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// A connection.
pub struct Client {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    next: u64,
    /// Every byte that came.
    pub transcript: Vec<u8>,
    /// Answers and events that came while another was waited for.
    waiting: Vec<Value>,
}

impl Client {
    pub fn connect(socket: &Path) -> Self {
        let writer = UnixStream::connect(socket).unwrap();
        writer.set_read_timeout(Some(PATIENCE)).unwrap();
        writer.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            reader: BufReader::new(writer.try_clone().unwrap()),
            writer,
            next: 0,
            transcript: Vec::new(),
            waiting: Vec::new(),
        }
    }
    pub fn raw(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).unwrap();
    }
    /// Writes without caring whether the other end still reads.
    pub fn raw_lossy(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).ok();
    }
    pub fn line(&mut self, text: &str) {
        self.raw(format!("{text}\n").as_bytes());
    }
    /// The next message; none at the end of the connection.
    pub fn next(&mut self) -> Option<Value> {
        let mut line = Vec::new();
        match self.reader.read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => {
                self.transcript.extend_from_slice(&line);
                Some(serde_json::from_slice(&line).unwrap())
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no answer: {error}"),
        }
    }
    /// Sends a request and yields its id.
    pub fn send(&mut self, method: &str, params: Value) -> String {
        self.next += 1;
        let id = format!("req-{}", self.next);
        let request = json!({"id": id, "method": method, "params": params});
        self.line(&request.to_string());
        id
    }
    /// The next message of that request.
    pub fn next_of(&mut self, id: &str) -> Value {
        if let Some(at) = self.waiting.iter().position(|message| message["id"] == id) {
            return self.waiting.remove(at);
        }
        loop {
            let message = self.next().expect("connection ended");
            if message["id"] == id {
                return message;
            }
            self.waiting.push(message);
        }
    }
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        let id = self.send(method, params);
        self.next_of(&id)
    }
    /// The data of an answer that must be good.
    pub fn ok(&mut self, method: &str, params: Value) -> Value {
        let mut answer = self.call(method, params);
        assert_eq!(answer["ok"], true, "{method}: {answer}");
        answer["data"].take()
    }
    /// The error of an answer that must be none.
    pub fn error(&mut self, method: &str, params: Value) -> Value {
        let mut answer = self.call(method, params);
        assert_eq!(answer["ok"], false, "{method}: {answer}");
        answer["error"].take()
    }
    pub fn code(&mut self, method: &str, params: Value) -> String {
        self.error(method, params)["code"].as_str().unwrap().to_owned()
    }
    /// A new session.
    pub fn session(&mut self, mut params: Value) -> String {
        if params.get("policy").is_none() {
            params["policy"] = json!("l1");
        }
        let data = self.ok("session.create", params);
        data["session_id"].as_str().unwrap().to_owned()
    }
    /// Runs a command line and yields its outcome.
    pub fn run(&mut self, session: &str, command: &str, mut more: Value) -> Value {
        more["session_id"] = json!(session);
        more["command"] = json!(command);
        self.ok("exec.run", more)
    }
    /// Starts a command line and yields its exec.
    pub fn start(&mut self, session: &str, command: &str, mut more: Value) -> String {
        more["session_id"] = json!(session);
        more["command"] = json!(command);
        let data = self.ok("exec.start", more);
        data["exec_id"].as_str().unwrap().to_owned()
    }
}

static MARKS: AtomicU64 = AtomicU64::new(0);

/// A value that no other process on this host has in its environment.
pub fn new_mark() -> String {
    let number = MARKS.fetch_add(1, Ordering::Relaxed);
    format!("mark-{}-{number}-end", std::process::id())
}

/// All numeric entries of /proc.
pub fn processes() -> Vec<i32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Live processes with `mark` in their environment or arguments.
pub fn marked(mark: &str) -> Vec<i32> {
    processes()
        .into_iter()
        .filter(|pid| {
            ["environ", "cmdline"].iter().any(|name| {
                std::fs::read(format!("/proc/{pid}/{name}"))
                    .is_ok_and(|bytes| contains(&bytes, mark.as_bytes()))
            })
        })
        .collect()
}

/// Live descendants of `root` of that name.
pub fn named(root: i32, name: &str) -> Vec<i32> {
    let mut parents = std::collections::HashMap::new();
    let mut found = Vec::new();
    for pid in processes() {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else {
            continue;
        };
        let mut fields = stat[close + 2..].split(' ');
        let state = fields.next().unwrap();
        let parent: i32 = fields.next().unwrap().parse().unwrap();
        parents.insert(pid, parent);
        if &stat[open + 1..close] == name && state != "Z" {
            found.push(pid);
        }
    }
    found.retain(|pid| {
        let mut pid = *pid;
        while let Some(parent) = parents.get(&pid) {
            if *parent == root {
                return true;
            }
            pid = *parent;
        }
        false
    });
    found
}

/// SHA-256, hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// The bytes of an `output` event or an `exec.read`.
pub fn bytes_of(data: &Value) -> Vec<u8> {
    use base64::Engine;
    let text = data["data"].as_str().unwrap();
    match data["encoding"].as_str().unwrap() {
        "utf-8" => text.as_bytes().to_vec(),
        "base64" => base64::engine::general_purpose::STANDARD.decode(text).unwrap(),
        other => panic!("encoding {other}"),
    }
}

/// How often something is tried: `few` times, or `full` where `TRL_TEST_FULL` is set (minutes, not seconds).
pub fn times(few: usize, full: usize) -> usize {
    if std::env::var_os("TRL_TEST_FULL").is_some() { full } else { few }
}
