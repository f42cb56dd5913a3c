//! What this kernel has and lacks, against what reports say and sessions can do. These run in the virtual machines of
//! tests/kernels/run, as root, one at a time: they change sysctls. The kernel's command line says what is so on the
//! machine; that truth is what reports and behaviour are held against, each for itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{By, Client, Daemon, Home, marked, new_mark, processes, ways, within};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

const SHIPPED: [&str; 4] = ["default", "strict", "build", "ci"];
/// A namespace as a policy names it, and as the kernel does.
const NAMESPACES: [(&str, &str); 7] = [
    ("user", "user"),
    ("mount", "mnt"),
    ("pid", "pid"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
    ("net", "net"),
];
/// The Landlock ABI that has all of what policies ask by default.
const ALL_OF_LANDLOCK: i32 = 6;
/// The one that has TCP ports.
const PORTS_OF_LANDLOCK: i32 = 4;

/// What the machine's driver says of it.
fn truth(key: &str) -> String {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap();
    let key = format!("trl.{key}=");
    let found = line.split_whitespace().find_map(|word| word.strip_prefix(&key));
    found.unwrap_or_else(|| panic!("no {key} on the kernel's command line: run tests/kernels/run")).to_owned()
}

/// The Landlock ABI, or what it is at least.
fn landlock() -> i32 {
    truth("landlock").rsplit('-').next().unwrap().parse().unwrap()
}

fn has_views() -> bool {
    truth("views") == "1"
}

/// A policy directory: `soft`, where everything is a best effort, and for each layer one that requires it.
fn policies(home: &Home, by: By) -> PathBuf {
    let namespaces = |demands: &[&str], demand: &str| {
        demands.iter().fold("[namespaces]\n".to_owned(), |text, name| format!("{text}{name} = {demand:?}\n"))
    };
    let all = NAMESPACES.map(|(name, _)| name);
    let soft = namespaces(&all, "best_effort")
        + "[filesystem]\ndemand = \"best_effort\"\n[landlock]\ndemand = \"best_effort\"\n\
           [seccomp]\ndemand = \"best_effort\"\n";
    let mut files = vec![
        ("soft".to_owned(), "default", soft),
        ("ports".to_owned(), "soft", "[network]\nconnect_ports = [7001]\n".to_owned()),
        (
            "binds".to_owned(),
            "default",
            "[filesystem]\nview = \"bind\"\n[landlock]\ndemand = \"best_effort\"\n".into(),
        ),
        ("hard-landlock".to_owned(), "soft", "[landlock]\ndemand = \"required\"\n".to_owned()),
        ("hard-seccomp".to_owned(), "soft", "[seccomp]\ndemand = \"required\"\n".to_owned()),
        (
            "hard-filesystem".to_owned(),
            "soft",
            namespaces(&["user", "mount", "pid"], "required") + "[filesystem]\ndemand = \"required\"\n",
        ),
    ];
    for (name, _) in NAMESPACES {
        let both = if name == "user" { vec!["user"] } else { vec!["user", name] };
        files.push((format!("hard-{name}"), "soft", namespaces(&both, "required")));
    }
    let directory = home.path().join("policies");
    std::fs::create_dir(&directory).unwrap();
    for (name, extends, text) in files {
        let head = format!("name = {name:?}\ndescription = \"a test's\"\nextends = {extends:?}\n");
        std::fs::write(directory.join(format!("{name}.toml")), head + &text).unwrap();
    }
    let owner = (by == By::Ordinary).then_some(common::ORDINARY_UID);
    let own = |path: &Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(path, owner, owner).unwrap();
    };
    std::fs::read_dir(&directory).unwrap().for_each(|file| own(&file.unwrap().path(), 0o644));
    own(&directory, 0o755);
    directory
}

/// Copied once; they go with the machine.
static BINARIES: OnceLock<Arc<tempfile::TempDir>> = OnceLock::new();

/// A daemon that knows these policies.
fn daemon(by: By) -> Daemon {
    BINARIES.get_or_init(common::binaries);
    let home = Home::new(by);
    let directory = policies(&home, by);
    home.start(&["--policy-dir", directory.to_str().unwrap()])
}

fn created(client: &mut Client, policy: &str) -> Value {
    client.ok("session.create", json!({"policy": policy}))
}

fn destroy(client: &mut Client, made: &Value) {
    client.ok("session.destroy", json!({"session_id": made["session_id"], "force": true}));
}

/// Layer by layer, how far it is said to be enforced.
fn reported(made: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let layers = made["isolation"]["layers"].as_array().unwrap();
    layers.iter().map(|layer| (text(&layer["layer"]), text(&layer["enforced"]))).collect()
}

/// How far layers can be enforced here, with namespaces of kind `off` forbidden.
fn possible(off: Option<&str>, by: By) -> BTreeMap<&'static str, &'static str> {
    let gone: &[&str] = match off {
        None => &[],
        Some("user") => &["user", "mount", "pid", "ipc", "uts", "cgroup", "net", "filesystem"],
        Some("mnt") => &["mount", "pid", "filesystem"],
        Some("pid") => &["pid", "filesystem"],
        Some(kind) => &[kind],
    };
    let is_gone = |name: &str| gone.contains(&name);
    let whole = |name: &str| if is_gone(name) { "none" } else { "full" };
    BTreeMap::from([
        ("namespace.user", whole("user")),
        ("namespace.mount", whole("mount")),
        ("namespace.pid", whole("pid")),
        ("namespace.ipc", whole("ipc")),
        ("namespace.uts", whole("uts")),
        ("namespace.cgroup", whole("cgroup")),
        ("namespace.net", whole("net")),
        ("filesystem", if !is_gone("filesystem") && !has_views() { "partial" } else { whole("filesystem") }),
        (
            "landlock",
            match landlock() {
                0 => "none",
                ALL_OF_LANDLOCK.. => "full",
                _ => "partial",
            },
        ),
        ("seccomp", "full"),
        ("no_new_privs", "full"),
        // Root's launcher gave up the bounding set; an ordinary user's cannot.
        ("capabilities", if is_gone("user") && by == By::Ordinary { "none" } else { "full" }),
        ("process_tree", if is_gone("pid") { "partial" } else { "full" }),
    ])
}

/// What a refusal must say about a layer that this machine lacks.
fn remedy(layer: &str) -> &'static str {
    match layer {
        "landlock" if truth("kernel") == "5.10" => "Landlock needs Linux 5.13, this is 5.10",
        "landlock" if landlock() == 0 => "add `landlock` to lsm=",
        "landlock" => "all of it needs Linux 6.12",
        "filesystem" if truth("kernel") == "5.10" => {
            "overlayfs in user namespaces needs Linux 5.11, this is 5.10"
        }
        _ => "load `overlay`",
    }
}

/// That a session is refused because of `layer`, with what can be done.
fn refused(client: &mut Client, policy: &str, layer: &str, remedy: &str) {
    let error = client.error("session.create", json!({"policy": policy}));
    assert_eq!(error["code"], "ISOLATION_UNAVAILABLE", "{policy}: {error}");
    let layers = error["detail"]["layers"].as_array().unwrap();
    let found = layers.iter().find(|found| found["layer"] == layer);
    let found = found.unwrap_or_else(|| panic!("{policy}: {layer} is not named: {error}"));
    assert_eq!(found["requested"], "required", "{policy}: {error}");
    assert_ne!(found["enforced"], "full", "{policy}: {error}");
    assert!(found["reason"].as_str().unwrap().contains(remedy), "{policy}: {error}");
    assert!(error["message"].as_str().unwrap().contains(remedy), "{policy}: {error}");
}

fn stdout(client: &mut Client, session: &Value, command: &str) -> String {
    let outcome = client.run(session.as_str().unwrap(), command, json!({}));
    outcome["stdout"].as_str().unwrap().trim_end().to_owned()
}

/// What a command tells of itself, line by line: NAME VALUE. `$1` is a port of the host's loopback.
const LOOK: &str = r#"
for kind in user mnt pid ipc uts cgroup net; do echo "$kind $(readlink /proc/self/ns/$kind)"; done
echo "reached $(nc -w 2 127.0.0.1 PORT </dev/null 2>/dev/null && echo yes)"
echo "name $(hostname)"
echo "first $(test -n "$(cat /proc/1/comm 2>/dev/null)" && echo seen)"
echo "file $(test -e /srv/host-file && echo seen)"
echo "system $(test -e /usr/share/only-here && echo seen)"
# What nothing but Landlock forbids: the file is the command's own, on a writable procfs.
echo "comm $( (echo x > /proc/self/comm) 2>/dev/null && echo written)"
echo "filter $(awk '/^Seccomp:/ { print $2 }' /proc/self/status)"
echo "empty $(grep -c '^Cap.*0000000000000000$' /proc/self/status)"
echo "privileges $(awk '/^NoNewPrivs:/ { print $2 }' /proc/self/status)"
echo "views $(grep -c ' /usr .* - overlay ' /proc/self/mountinfo)"
"#;

/// What a command sees, against the same truth as the report.
fn behaves(daemon: &Daemon, client: &mut Client, made: &Value, expected: &BTreeMap<&str, &str>) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    port.set_nonblocking(true).unwrap();
    let look = LOOK.replace("PORT", &port.local_addr().unwrap().port().to_string());
    let over = AtomicBool::new(false);
    let (told, connected) = std::thread::scope(|scope| {
        // Closed at once, for which nc waits.
        let accepting = scope.spawn(|| {
            let mut accepted = false;
            within(common::PATIENCE, || {
                accepted = port.accept().is_ok();
                accepted || over.load(Relaxed)
            });
            accepted
        });
        let told = stdout(client, &made["session_id"], &look);
        over.store(true, Relaxed);
        (told, accepting.join().unwrap())
    });
    let lines = told.lines().map(|line| line.split_once(' ').unwrap_or_else(|| panic!("{told}")));
    let seen: BTreeMap<&str, &str> = lines.collect();
    let holds = |layer: &str| expected[layer] != "none";
    for (name, kind) in NAMESPACES {
        let daemons = std::fs::read_link(format!("/proc/{}/ns/{kind}", daemon.pid())).unwrap();
        assert!(seen[kind].starts_with(&format!("{kind}:[")), "{told}");
        let layer = format!("namespace.{name}");
        assert_eq!(Path::new(seen[kind]) != daemons, holds(&layer), "{layer}: {}: {told}", daemons.display());
    }
    assert_eq!(connected, !holds("namespace.net"), "{told}");
    for (what, layer, with, without) in [
        ("reached", "namespace.net", "", "yes"),
        ("name", "namespace.uts", "trl", "machine"),
        ("first", "namespace.pid", "", "seen"),
        ("file", "filesystem", "", "seen"),
        ("comm", "landlock", "", "written"),
        ("filter", "seccomp", "2", "0"),
        ("empty", "capabilities", "5", "4"),
        ("privileges", "no_new_privs", "1", "0"),
    ] {
        assert_eq!(seen[what], if holds(layer) { with } else { without }, "{layer}: {told}");
    }
    assert_eq!(seen["system"], "seen");
    assert_eq!(seen["views"] == "1", expected["filesystem"] == "full", "{told}");
}

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
            let name = layer.trim_start_matches("namespace.");
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
