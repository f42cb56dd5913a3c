//! Landlock and the loss of all capabilities on the real kernel. Each case confines a process of its own (this
//! program again, with the case's name) and for what is denied tries something of the same kind that is allowed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use trl::evidence::{self, Witnessed};
use trl::layers::{capabilities, keyring, landlock, nested, network};
use trl::plan::{Access, Landlock, PathRule, SessionPlan};
use trl::report::Enforcement;
use trl::sys::{attempt, privilege};

/// Names the case and its directory in the process that is confined.
const CASE: &str = "TRL_TEST_LANDLOCK_CASE";

/// Runs this test again in a child as the confined process. True in the child.
fn is_confined(test: &str, prefix: &[&str]) -> Option<PathBuf> {
    if let Some(directory) = std::env::var_os(CASE) {
        return Some(directory.into());
    }
    let directory = tempfile::tempdir().unwrap();
    for name in ["in", "out"] {
        std::fs::create_dir(directory.path().join(name)).unwrap();
        std::fs::write(directory.path().join(name).join("file"), "text").unwrap();
    }
    let own = std::env::current_exe().unwrap();
    let mut words: Vec<&std::ffi::OsStr> = prefix.iter().map(std::ffi::OsStr::new).collect();
    words.extend([own.as_os_str(), "--exact".as_ref(), test.as_ref(), "--nocapture".as_ref()]);
    words.push("--test-threads=1".as_ref());
    let status = Command::new(words[0]).args(&words[1..]).env(CASE, directory.path()).status().unwrap();
    assert!(status.success(), "{test}: {status}");
    None
}

fn rule(path: &Path, access: u32) -> PathRule {
    PathRule { path: path.as_os_str().as_encoded_bytes().to_vec(), access: Access(access) }
}

fn denied<T>(result: io::Result<T>) {
    let errno = result.err().and_then(|error| error.raw_os_error());
    assert!(matches!(errno, Some(libc::EACCES | libc::EPERM)), "{errno:?}");
}

/// Whether this kernel is too old for something of Landlock's, and says so; one that is not must have it.
fn lacks(abi: i32, since: (u32, u32), what: &str) -> bool {
    if landlock::abi() >= abi {
        return false;
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-', '+']).map(|part| part.trim().parse::<u32>().unwrap_or(0));
    let kernel = (numbers.next().unwrap(), numbers.next().unwrap());
    assert!(kernel < since, "{release}: Landlock has {what} since {since:?}, but not here");
    // In a child that keeps nothing from whoever runs the tests.
    eprintln!("NOT TESTED: Landlock of {} has no {what}", release.trim());
    true
}

fn apply(landlock: &Landlock) {
    let outcome = landlock::apply(landlock, &[]).unwrap();
    assert_eq!(outcome.abi, landlock::abi().min(10));
    assert_eq!(outcome.full, outcome.missing.is_empty());
    assert!(outcome.abi > 0, "this kernel has no Landlock: these tests need 5.13");
}

#[test]
fn paths_are_denied_by_kind_of_access() {
    let Some(directory) = is_confined("paths_are_denied_by_kind_of_access", &[]) else { return };
    let (inside, outside) = (directory.join("in"), directory.join("out"));
    apply(&Landlock {
        rules: vec![
            rule(&inside, Access::READ | Access::WRITE),
            rule(&outside, Access::READ),
            rule(Path::new("/dev/null"), Access::ALL),
            rule(Path::new("/dev/zero"), Access::READ),
            rule(Path::new("/none/such"), Access::ALL),
        ],
        ..Landlock::default()
    });
    assert_eq!(std::fs::read_to_string(outside.join("file")).unwrap(), "text");
    denied(std::fs::write(outside.join("file"), "x"));
    denied(std::fs::write(outside.join("new"), "x"));
    denied(std::fs::remove_file(outside.join("file")));
    denied(std::fs::create_dir(outside.join("new")));
    denied(std::fs::rename(outside.join("file"), inside.join("moved")));
    std::fs::write(inside.join("new"), "x").unwrap();
    std::fs::create_dir(inside.join("below")).unwrap();
    std::fs::rename(inside.join("new"), inside.join("below/moved")).unwrap();
    nix::unistd::mkfifo(&inside.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(std::fs::metadata(inside.join("fifo")).unwrap().file_type().is_fifo());
    std::fs::remove_file(inside.join("fifo")).unwrap();
    denied(std::fs::read_dir("/"));
    denied(std::fs::read("/etc/passwd"));
    denied(Command::new("/bin/true").status());
    // A file's rule carries no right of a directory, and its own.
    std::fs::OpenOptions::new().write(true).custom_flags(libc::O_CLOEXEC).open("/dev/null").unwrap();
    denied(std::fs::OpenOptions::new().write(true).open("/dev/zero"));
    if landlock::abi() >= 5 {
        assert_eq!(attempt::device_ioctl(c"/dev/null"), libc::ENOTTY);
        assert_eq!(attempt::device_ioctl(c"/dev/zero"), libc::EACCES);
    }
    // One domain of sixteen is taken.
    assert_eq!(attempt::landlock_room(), 15);
}

#[test]
fn truncation_is_denied_and_execution_allowed_where_the_plan_says() {
    let test = "truncation_is_denied_and_execution_allowed_where_the_plan_says";
    let Some(directory) = is_confined(test, &[]) else { return };
    let held = std::fs::OpenOptions::new().read(true).open(directory.join("in/file")).unwrap();
    apply(&Landlock {
        rules: vec![
            rule(Path::new("/"), Access::READ | Access::EXECUTE),
            rule(&directory.join("in"), Access::WRITE),
            rule(Path::new("/dev/null"), Access::WRITE),
        ],
        ..Landlock::default()
    });
    assert!(Command::new("/bin/true").stdin(Stdio::null()).status().unwrap().success());
    let truncate = |name: &str| nix::unistd::truncate(&directory.join(name), 1).map_err(io::Error::from);
    if landlock::abi() >= 3 {
        denied(truncate("out/file"));
    }
    truncate("in/file").unwrap();
    assert_eq!(io::read_to_string(held).unwrap(), "t");
}

#[test]
fn ports_are_denied_but_those_of_the_plan() {
    let Some(_) = is_confined("ports_are_denied_but_those_of_the_plan", &[]) else { return };
    let (allowed, other) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    apply(&Landlock {
        rules: vec![rule(Path::new("/"), Access::ALL)],
        bind_ports: Some(vec![0]),
        connect_ports: Some(vec![port(&allowed)]),
        scoped: false,
    });
    if lacks(4, (6, 7), "ports") {
        return;
    }
    TcpStream::connect(("127.0.0.1", port(&allowed))).unwrap();
    denied(TcpStream::connect(("127.0.0.1", port(&other))));
    TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = port(&other);
    drop(other);
    denied(TcpListener::bind(("127.0.0.1", taken)));
}

#[test]
fn peers_outside_are_out_of_reach_where_it_is_scoped() {
    let Some(_) = is_confined("peers_outside_are_out_of_reach_where_it_is_scoped", &[]) else { return };
    if lacks(6, (6, 12), "scopes") {
        return;
    }
    let name = |suffix: &str| SocketAddr::from_abstract_name(format!("trl-{}-{suffix}", std::process::id()));
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let outside = UnixDatagram::bind_addr(&name("out").unwrap()).unwrap();
    apply(&Landlock { rules: vec![rule(Path::new("/"), Access::ALL)], scoped: true, ..Landlock::default() });
    let inside = UnixDatagram::bind_addr(&name("in").unwrap()).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    sender.connect_addr(&inside.local_addr().unwrap()).unwrap();
    denied(sender.connect_addr(&outside.local_addr().unwrap()));
    let signal = |pid: u32| trl::sys::process::kill(pid as i32, 0);
    denied(signal(child.id()));
    signal(std::process::id()).unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn a_descriptor_that_is_given_is_readable_and_no_more() {
    let Some(directory) = is_confined("a_descriptor_that_is_given_is_readable_and_no_more", &[]) else {
        return;
    };
    let given = std::fs::File::open("/proc").unwrap();
    let landlock = Landlock { rules: vec![rule(&directory.join("in"), Access::READ)], ..Landlock::default() };
    landlock::apply(&landlock, &[(given.as_fd(), Access(Access::READ))]).unwrap();
    let open = |flags| {
        let (flags, mode) = (flags | nix::fcntl::OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty());
        nix::fcntl::openat(&given, "self/comm", flags, mode).map_err(io::Error::from)
    };
    let mut comm = String::new();
    std::fs::File::from(open(nix::fcntl::OFlag::O_RDONLY).unwrap()).read_to_string(&mut comm).unwrap();
    assert!(!comm.is_empty());
    denied(open(nix::fcntl::OFlag::O_WRONLY));
    denied(std::fs::read_dir(directory.join("out")));
}

#[test]
fn a_plan_without_any_path_that_is_there_is_refused() {
    let Some(directory) = is_confined("a_plan_without_any_path_that_is_there_is_refused", &[]) else {
        return;
    };
    let none = Landlock { rules: vec![rule(Path::new("/none/such"), Access::ALL)], ..Landlock::default() };
    assert_eq!(landlock::apply(&none, &[]).unwrap_err().errno, libc::ENOENT);
    let through_a_file = directory.join("in/file/x");
    let broken = Landlock { rules: vec![rule(&through_a_file, Access::ALL)], ..Landlock::default() };
    let error = landlock::apply(&broken, &[]).unwrap_err();
    assert_eq!((error.operation, error.errno), ("open", libc::ENOTDIR));
    // Neither left anything behind.
    assert!(std::fs::read_dir("/").is_ok());
}

/// What the probe says and the daemon makes of it, against the truth.
#[test]
fn the_report_says_landlock_where_it_is_and_none_where_it_is_not() {
    let Some(_) = is_confined("the_report_says_landlock_where_it_is_and_none_where_it_is_not", &[]) else {
        return;
    };
    let mut planned = session_plan();
    let rules = vec![rule(Path::new("/"), Access::READ), rule(Path::new("/dev/null"), Access::WRITE)];
    planned.isolation.landlock = Some(Landlock { rules, ..Landlock::default() });
    let landlock_report = || {
        let said = trl::launcher::probe::say();
        assert!(said.len() < Witnessed::MAX_BYTES && said.ends_with("\n.\n"));
        let observed = evidence::observe(std::process::id() as i32).unwrap();
        let layers = evidence::judge(&observed, &Witnessed::parse(&said), &planned, &[], &[]);
        layers.into_iter().find(|layer| layer.layer == "landlock").unwrap()
    };
    let before = landlock_report();
    assert_eq!(before.enforced, Enforcement::None, "{before:?}");
    assert!(before.reason.unwrap().contains("write_comm /proc/self/comm"));
    apply(planned.isolation.landlock.as_ref().unwrap());
    let after = landlock_report();
    let full = landlock::missing(planned.isolation.landlock.as_ref().unwrap(), landlock::abi()).is_empty();
    let expected = if full { Enforcement::Full } else { Enforcement::Partial };
    assert_eq!(after.enforced, expected, "{after:?}");
    assert!(after.evidence.unwrap().observed.contains("domains 1, of what was tried denied"));
}

fn session_plan() -> SessionPlan {
    SessionPlan {
        uid: 1000,
        gid: 1000,
        mark: 1,
        umask: 0o077,
        nproc: 64,
        no_new_privileges: true,
        working_dir: b"/".to_vec(),
        shell: b"/bin/sh".to_vec(),
        rlimits: Vec::new(),
        isolation: trl::plan::Isolation::default(),
    }
}

/// In a user namespace of its own, as an init is.
#[test]
fn an_init_gives_up_all_capabilities_for_good() {
    let unshare = ["unshare", "--user", "--map-root-user", "--net", "--ipc"];
    let Some(_) = is_confined("an_init_gives_up_all_capabilities_for_good", &unshare) else { return };
    let socket = UnixDatagram::unbound().unwrap();
    let is_up =
        || trl::sys::net::flags(&socket.as_fd().try_clone_to_owned().unwrap(), "lo").unwrap() & 1 != 0;
    assert!(!is_up());
    network::loopback_up().unwrap();
    assert!(is_up());
    keyring::join_new().unwrap();
    assert_eq!(attempt::user_namespace(), 0);
    nested::limits_on_namespaces(std::fs::File::open("/proc").unwrap().as_fd()).unwrap();
    assert_eq!(attempt::user_namespace(), libc::ENOSPC);
    assert_ne!(privilege::own_sets().unwrap().bounding, 0);
    // Of this thread, as of an init, which has one.
    capabilities::drop_all().unwrap();
    assert_eq!(privilege::own_sets().unwrap(), privilege::Sets::default());
    assert_eq!(privilege::securebits().unwrap(), privilege::LOCKED_SECUREBITS);
    assert_eq!(privilege::set_securebits(0).unwrap_err().raw_os_error(), Some(libc::EPERM));
    assert_eq!(network::loopback_up().unwrap_err().raw_os_error(), Some(libc::EPERM));
    // Uid 0 of the user namespace executes a program and gains nothing.
    let status = Command::new("cat").arg("/proc/self/status").output().unwrap().stdout;
    let status = String::from_utf8(status).unwrap();
    let sets: Vec<_> = status.lines().filter(|line| line.starts_with("Cap")).collect();
    assert!(sets.len() == 5 && sets.iter().all(|set| set.ends_with("\t0000000000000000")), "{sets:?}");
    capabilities::drop_all().unwrap();
    io::stdout().flush().unwrap();
}

/// Without `CAP_SETPCAP` the bounding set cannot be emptied, and that is an error.
#[test]
fn a_bounding_set_that_stays_is_an_error() {
    let work = || {
        if nix::unistd::geteuid().is_root() {
            let setpcap = caps::Capability::CAP_SETPCAP;
            caps::drop(None, caps::CapSet::Effective, setpcap).unwrap();
            caps::drop(None, caps::CapSet::Permitted, setpcap).unwrap();
        }
        assert_eq!(capabilities::drop_all().unwrap_err().raw_os_error(), Some(libc::EPERM));
    };
    // Capabilities are a thread's.
    std::thread::spawn(work).join().unwrap();
}
