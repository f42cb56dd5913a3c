//! What a machine of tests/kernels/run is like, and how that is held against reports and behaviour.

use crate::common::{self, By, Client, Daemon, Home, within};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

/// A namespace as a policy names it, and as the kernel does.
pub const NAMESPACES: [(&str, &str); 7] = [
    ("user", "user"),
    ("mount", "mnt"),
    ("pid", "pid"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
    ("net", "net"),
];
/// The Landlock ABI that has all of what policies ask by default.
pub const ALL_OF_LANDLOCK: i32 = 6;
/// The one that has TCP ports.
pub const PORTS_OF_LANDLOCK: i32 = 4;

/// What the machine's driver says of it.
pub fn truth(key: &str) -> String {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap();
    let key = format!("trl.{key}=");
    let found = line.split_whitespace().find_map(|word| word.strip_prefix(&key));
    found.unwrap_or_else(|| panic!("no {key} on the kernel's command line: run tests/kernels/run")).to_owned()
}

/// The Landlock ABI, or what it is at least.
pub fn landlock() -> i32 {
    truth("landlock").rsplit('-').next().unwrap().parse().unwrap()
}

pub fn has_views() -> bool {
    truth("views") == "1"
}

/// Whether sessions can have ids of their own: root's launcher has some to give, an ordinary user's has those that
/// newuidmap maps; before Linux 5.14 there would be no evidence of them.
fn has_ids(by: By) -> bool {
    truth("kernel") != "5.10" && (by == By::Root || truth("newuidmap") == "1")
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
        (
            "hard-ids".to_owned(),
            "soft",
            namespaces(&["user"], "required") + "[user]\ndemand = \"required\"\n",
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
pub fn daemon(by: By) -> Daemon {
    BINARIES.get_or_init(common::binaries);
    let home = Home::new(by);
    let directory = policies(&home, by);
    home.start(&["--policy-dir", directory.to_str().unwrap()])
}

pub fn created(client: &mut Client, policy: &str) -> Value {
    client.ok("session.create", json!({"policy": policy}))
}

pub fn destroy(client: &mut Client, made: &Value) {
    client.ok("session.destroy", json!({"session_id": made["session_id"], "force": true}));
}

/// Layer by layer, how far it is said to be enforced.
pub fn reported(made: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let layers = made["isolation"]["layers"].as_array().unwrap();
    layers.iter().map(|layer| (text(&layer["layer"]), text(&layer["enforced"]))).collect()
}

/// How far layers can be enforced here, with namespaces of kind `off` forbidden.
pub fn possible(off: Option<&str>, by: By) -> BTreeMap<&'static str, &'static str> {
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
        ("user", if !is_gone("user") && has_ids(by) { "full" } else { "partial" }),
        // Root's launcher gave up the bounding set; an ordinary user's cannot.
        ("capabilities", if is_gone("user") && by == By::Ordinary { "none" } else { "full" }),
        ("process_tree", if is_gone("pid") { "partial" } else { "full" }),
    ])
}

/// What a refusal must say about a layer that this machine lacks.
pub fn remedy(layer: &str) -> &'static str {
    match layer {
        "landlock" if truth("kernel") == "5.10" => "Landlock needs Linux 5.13, this is 5.10",
        "landlock" if landlock() == 0 => "add `landlock` to lsm=",
        "landlock" => "all of it needs Linux 6.12",
        "user" if truth("kernel") == "5.10" => "needs Linux 5.14 (/proc/PID/fdinfo), this is 5.10",
        "user" => "newuidmap and newgidmap are not there: install the package uidmap",
        "filesystem" if truth("kernel") == "5.10" => {
            "overlayfs in user namespaces needs Linux 5.11, this is 5.10"
        }
        _ => "load `overlay`",
    }
}

/// That a session is refused because of `layer`, with what can be done.
pub fn refused(client: &mut Client, policy: &str, layer: &str, remedy: &str) {
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

pub fn stdout(client: &mut Client, session: &Value, command: &str) -> String {
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
pub fn behaves(daemon: &Daemon, client: &mut Client, made: &Value, expected: &BTreeMap<&str, &str>) {
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
