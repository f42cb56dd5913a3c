//! The budgets, each as a ratio against a floor that is measured in the same run, in turn with it.
//!
//! `cargo bench --bench budgets -- [--quick] [--policy NAME] [--only PART]` starts a daemon of its own and
//! prints one table. `--quick` is for CI: few rounds, no throughput; `--only` names the parts to run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod harness;
mod stream;

use harness::{Client, Daemon, field, median, row, spawn_and_wait, timed, wait_for};
use serde_json::json;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

fn execs(client: &mut Client, session: &str, program: &str, placed: &str, name: &str, rounds: usize) {
    let params = json!({"session_id": session, "argv": [placed]});
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
    row(name, &ours, "spawn", &floor);
}

fn creates(client: &mut Client, name: &str, idle: Duration, rounds: usize) {
    let (mut create, mut destroy, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        std::thread::sleep(idle);
        let mut session = String::new();
        create.push(timed(|| session = client.session()));
        destroy.push(timed(|| client.destroy(&session)));
        floor.push(timed(|| spawn_and_wait("/bin/true")));
    }
    row(&format!("session.create, {name}"), &create, "true", &floor);
    row(&format!("session.destroy force, {name}"), &destroy, "true", &floor);
}

fn rate(threads: usize, seconds: f64, work: impl Fn(usize) + Sync) -> f64 {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let work = &work;
    let count = |index| {
        let mut count = 0u64;
        while Instant::now() < end {
            work(index);
            count += 1;
        }
        count
    };
    let total: u64 = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|index| scope.spawn(move || count(index))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    total as f64 / seconds
}

fn throughput(daemon: &Daemon, program: &str, rounds: usize) {
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let mut client = daemon.connect();
            let session = client.session();
            let params = json!({"session_id": session, "argv": [client.place(&session, program)]});
            std::sync::Mutex::new((client, params))
        })
        .collect();
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(rate(4, 1.5, |index| {
            let (client, params) = &mut *clients[index].lock().unwrap();
            client.call("exec.run", params);
        }));
        floor.push(rate(4, 1.5, |_| spawn_and_wait(program)));
    }
    let (o, f) = (median(&ours), median(&floor));
    println!("{:<36} median {o:6.0} /s | spawn {f:6.0} /s | {:5.2}x", "execs, 4 clients", o / f);
    println!("{:<36} {ours:.0?} against {floor:.0?}", "  rounds, /s");
}

/// Sessions that do nothing: what they hold of the daemon, of their inits and of the kernel.
fn idle_sessions(daemon: &Daemon, client: &mut Client, count: usize) {
    let kernel = || -> u64 {
        ["Slab:", "KernelStack:", "PageTables:"]
            .iter()
            .map(|name| field(Path::new("/proc/meminfo"), name))
            .sum()
    };
    // What the first ones make for all is not counted.
    let first: Vec<String> = (0..20).map(|_| client.session()).collect();
    let (daemon_before, kernel_before) = (daemon.resident_kib(), kernel());
    let sessions: Vec<String> = (0..count).map(|_| client.session()).collect();
    std::thread::sleep(Duration::from_secs(1));
    let each = |kib: u64| kib as f64 / count as f64;
    let shares: Vec<f64> = daemon
        .inits()
        .iter()
        .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok())
        .filter_map(|text| {
            text.lines().find(|line| line.starts_with("Pss:"))?.split_whitespace().nth(1)?.parse().ok()
        })
        .collect();
    let init =
        if shares.is_empty() { "not readable".to_owned() } else { format!("{:.1} KiB PSS", median(&shares)) };
    println!(
        "{:<36} daemon {:.1} KiB, kernel {:.1} KiB, init {init}; {count} sessions",
        "idle session, each",
        each(daemon.resident_kib().saturating_sub(daemon_before)),
        each(kernel().saturating_sub(kernel_before)),
    );
    for session in first.iter().chain(&sessions) {
        client.destroy(session);
    }
}

/// The same exec while the daemon is small and while unfinished requests of others fill it.
fn by_size(daemon: &Daemon, client: &mut Client, session: &str, program: &str, rounds: usize) {
    let params = json!({"session_id": session, "argv": [program]});
    let mut run = |rounds: usize| -> (Vec<f64>, Vec<f64>) {
        (0..rounds)
            .map(|_| (timed(|| drop(client.call("exec.run", &params))), timed(|| spawn_and_wait(program))))
            .unzip()
    };
    let part = "x".repeat(4 * 1024 * 1024 - 1024);
    let (mut small, mut large, mut sizes) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()), (0, 0));
    for _ in 0..3 {
        sizes.0 = daemon.resident_kib() / 1024;
        run(20);
        let (a, b) = run(rounds / 3);
        small.0.extend(a);
        small.1.extend(b);
        let unfinished: Vec<Client> = (0..120)
            .map(|_| {
                let mut client = daemon.connect();
                client.stream.get_mut().write_all(part.as_bytes()).unwrap();
                client
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        sizes.1 = daemon.resident_kib() / 1024;
        run(20);
        let (a, b) = run(rounds / 3);
        large.0.extend(a);
        large.1.extend(b);
        drop(unfinished);
        std::thread::sleep(Duration::from_millis(500));
    }
    row(&format!("exec.run, daemon of {} MiB", sizes.0), &small.0, "spawn", &small.1);
    row(&format!("exec.run, daemon of {} MiB", sizes.1), &large.0, "spawn", &large.1);
    let change = median(&large.0) / median(&small.0);
    println!("{:<36} p50 {change:5.2}x", "  large against small");
}

const BWRAP: [&str; 16] = [
    "--unshare-all",
    "--ro-bind",
    "/usr",
    "/usr",
    "--symlink",
    "usr/lib",
    "/lib",
    "--symlink",
    "usr/lib64",
    "/lib64",
    "--symlink",
    "usr/bin",
    "/bin",
    "--proc",
    "/proc",
    "/bin/true",
];

fn peers(client: &mut Client, session: &str, rounds: usize) {
    if Command::new("bwrap").arg("--version").output().is_err() {
        println!("bwrap: not installed, its rows are skipped");
        return;
    }
    let params = json!({"session_id": session, "argv": ["/bin/true"]});
    let (mut exec, mut run, mut bwrap, mut floor) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        exec.push(timed(|| drop(client.call("exec.run", &params))));
        let mut trl = Command::new(env!("CARGO_BIN_EXE_trl"));
        run.push(timed(|| wait_for(trl.args(["run", "--workspace", "none", "--", "/bin/true"]))));
        bwrap.push(timed(|| wait_for(Command::new("bwrap").args(BWRAP))));
        floor.push(timed(|| spawn_and_wait("/bin/true")));
    }
    row("bwrap, /bin/true", &bwrap, "spawn", &floor);
    row("exec.run, /bin/true", &exec, "bwrap", &bwrap);
    // `run` takes the policy `default`, not this run's.
    row("trl run --workspace none, /bin/true", &run, "bwrap", &bwrap);
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let index = arguments.iter().position(|argument| argument == name)?;
        arguments.get(index + 1).cloned()
    };
    let quick = arguments.iter().any(|argument| argument == "--quick" || argument == "--test");
    let policy = value("--policy").unwrap_or_else(|| "l1".to_owned());
    let only = value("--only");
    let wanted = |part: &str| only.as_ref().is_none_or(|only| only.split(',').any(|name| name == part));
    let rounds = if quick { 100 } else { 3000 };

    let directory = harness::open_directory();
    let (noop, source) = (directory.path().join("noop"), directory.path().join("noop.c"));
    std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let built = Command::new("cc").args(["-O2", "-static", "-o"]).arg(&noop).arg(&source).status().unwrap();
    assert!(built.success(), "cc -static of the no-op failed");
    let noop = noop.to_str().unwrap();
    let daemon = Daemon::start(&policy);
    let mut client = daemon.connect();
    let session = client.session();
    println!("policy {policy}");
    if wanted("exec") {
        let placed = client.place(&session, noop);
        execs(&mut client, &session, noop, &placed, "exec.run, static no-op", rounds);
        execs(&mut client, &session, "/bin/true", "/bin/true", "exec.run, /bin/true", rounds / 3);
    }
    if wanted("create") {
        creates(&mut client, "at once", Duration::ZERO, rounds / 3);
        creates(&mut client, "after 50 ms idle", Duration::from_millis(50), rounds.min(1000) / 10);
    }
    if wanted("peers") {
        peers(&mut client, &session, rounds.min(1000) / 5);
    }
    if quick {
        return;
    }
    if wanted("rate") {
        throughput(&daemon, noop, 7);
    }
    if wanted("stream") {
        stream::measure(&daemon, 7);
    }
    if wanted("size") {
        by_size(&daemon, &mut client, &session, "/bin/true", 900);
    }
    if wanted("idle") {
        idle_sessions(&daemon, &mut client, 1000);
    }
}
