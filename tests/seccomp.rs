//! The filters on the real kernel: what is denied, with an allowed control beside it, and programs that go on working.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use trl::layers::seccomp::{apply, compile};
use trl::plan::Seccomp;
use trl::policy::syscalls::{self, number};

const EPERM: i32 = libc::EPERM;
const OPAQUE: i32 = libc::ENOSYS;

fn plan(groups: &[&str], strict: bool) -> Seccomp {
    let lists = syscalls::lists(groups, &[], &[], strict).unwrap();
    Seccomp { allow: lists.allow, refuse: lists.refuse, families: vec![1, 2, 10], strict }
}

fn ordinary() -> Seccomp {
    plan(&["base", "network"], false)
}

/// Runs `command` on a thread that has confined itself: what a thread starts inherits its filters.
fn under(plan: Option<&Seccomp>, mut command: Command, input: &str) -> Output {
    let filters = plan.map(|plan| compile(plan).unwrap());
    let input = input.to_owned();
    let confined = move || {
        if let Some(filters) = filters {
            apply(&filters).unwrap();
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A program that was killed does not read to the end.
        child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
        child.wait_with_output().unwrap()
    };
    std::thread::spawn(confined).join().unwrap()
}

fn shell(script: &str, directory: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-ec", script]).current_dir(directory).env("HOME", directory);
    command
}

struct Probe {
    directory: tempfile::TempDir,
}

impl Probe {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/probes/calls.c");
        let text = std::fs::read(source).unwrap();
        let copy = directory.path().join("calls.c");
        std::fs::write(copy, text).unwrap();
        let built = under(None, shell("cc -O1 -o calls calls.c", directory.path()), "");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Self { directory }
    }

    fn raw(&self, plan: Option<&Seccomp>, lines: &str) -> Output {
        let program: PathBuf = self.directory.path().join("calls");
        let mut command = Command::new(program);
        command.current_dir(self.directory.path());
        under(plan, command, lines)
    }

    /// The errno of each call, 0 where it worked.
    fn calls(&self, plan: Option<&Seccomp>, lines: &[String]) -> Vec<i32> {
        let output = self.raw(plan, &(lines.join("\n") + "\n"));
        assert!(output.status.success(), "{}", output.status);
        let found: Vec<i32> =
            String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(found.len(), lines.len());
        found
    }

    /// Each case: a denied call, its errno, and a call like it that is let through and works.
    fn holds(&self, plan: &Seccomp, cases: &[(&str, i32, &str)]) {
        let known: Vec<_> = cases
            .iter()
            .filter(|(denied, _, control)| line(denied).is_some() && line(control).is_some())
            .collect();
        assert!(known.len() * 2 > cases.len());
        let denied: Vec<String> = known.iter().filter_map(|(denied, ..)| line(denied)).collect();
        for (found, case) in self.calls(Some(plan), &denied).into_iter().zip(&known) {
            assert_eq!(found, case.1, "denied: {case:?}");
        }
        let controls: Vec<String> = known.iter().filter_map(|(.., control)| line(control)).collect();
        for (found, case) in self.calls(Some(plan), &controls).into_iter().zip(&known) {
            assert_eq!(found, 0, "control: {case:?}");
        }
    }
}

/// A case's text with the call's number for its name; `None` where this architecture does not have the call.
fn line(case: &str) -> Option<String> {
    let (name, rest) = case.split_once(' ').unwrap_or((case, ""));
    assert!(syscalls::exists(name), "{name}");
    number(name).map(|number| format!("{number} {rest}"))
}

/// Denied, errno, control.
const CASES: &[(&str, i32, &str)] = &[
    ("clone 0x10000011", EPERM, "getpid"),
    ("clone 0x00020011", EPERM, "getpid"),
    ("clone 0xf00000040000011", EPERM, "getpid"),
    ("clone3 & 88", OPAQUE, "getpid"),
    ("io_uring_setup 4 &", OPAQUE, "getpid"),
    ("unshare 0x10000000", EPERM, "getpid"),
    ("socket 38 5 0", libc::EAFNOSUPPORT, "socket 1 1 0"),
    ("socket 17 3 0", libc::EAFNOSUPPORT, "socket 2 1 0"),
    ("socket 16 3 0", libc::EAFNOSUPPORT, "socket 2 2 17"),
    ("socket 0x100000026 5 0", libc::EAFNOSUPPORT, "socket 2 0x80801 6"),
    ("socket 2 1 262", libc::EPROTONOSUPPORT, "socket 2 1 6"),
    ("socket 2 10 0x300", libc::EPROTONOSUPPORT, "socket 2 2 0"),
    ("socket 2 3 1", libc::EPROTONOSUPPORT, "socket 2 2 0"),
    ("socketpair 38 1 0 &", libc::EAFNOSUPPORT, "socketpair 1 1 0 &"),
    ("ioctl 0 0x5412 =x", EPERM, "ioctl 0 0x541b &"),
    ("ioctl 0 0x100005412 =x", EPERM, "ioctl 0 0x10000541b &"),
    ("ioctl 0 0x541c =x", EPERM, "ioctl 0 0x541b &"),
    ("ioctl 0 0x5423 &", EPERM, "ioctl 0 0x541b &"),
    ("ioctl 0 0x541d &", EPERM, "ioctl 0 0x541b &"),
    ("prlimit64 1 7 & 0", EPERM, "prlimit64 0 7 0 0"),
    ("prlimit64 1 7 0x100000000 0", EPERM, "prlimit64 0x100000000 7 0 0"),
    ("personality 0x0040000", EPERM, "personality 0xffffffff"),
    ("personality 0x0400000", EPERM, "personality 0"),
    ("fcntl 0 1024 0", EPERM, "fcntl 0 1"),
    ("fcntl 0 1026 1", EPERM, "fcntl 0 3"),
    ("seccomp 1 8 &", EPERM, "seccomp 2 0 &"),
    ("chmod =calls.c 04755", EPERM, "chmod =calls.c 02755"),
    ("fchmodat -100 =calls.c 04755", EPERM, "fchmodat -100 =calls.c 0755"),
    ("fchmodat2 -100 =calls.c 04755 0", EPERM, "getpid"),
    ("openat -100 =a 0x41 04755", EPERM, "openat -100 =a 0x41 0755"),
    ("openat -100 =. 0x410002 04755", EPERM, "openat -100 =. 0x410002 0755"),
    ("open =b 0x41 04755", EPERM, "open =calls.c 0 04755"),
    ("creat =c 04755", EPERM, "creat =c 0755"),
    ("mkdir =d 04755", EPERM, "mkdir =d 02755"),
    ("mkdirat -100 =e 04755", EPERM, "mkdirat -100 =e 0755"),
    ("mknod =f 020600 0x103", EPERM, "mknod =f 010600 0"),
    ("mknodat -100 =g 060600 0x103", EPERM, "mknodat -100 =g 0100600 0"),
    ("mknodat -100 =h 0104600 0", EPERM, "mknodat -100 =h 0140600 0"),
    ("sendto 0 & 1 0x20000000 & 16", libc::EOPNOTSUPP, "getpid"),
    ("sendmsg 0 & 0x20000000", libc::EOPNOTSUPP, "getpid"),
    ("sendmmsg 0 & 1 0x20000000", libc::EOPNOTSUPP, "getpid"),
    ("setsockopt 0 6 31 =tls 3", EPERM, "getpid"),
    ("setsockopt 0 1 50 & 4", EPERM, "getpid"),
    ("setsockopt 0 0 17 & 4", EPERM, "getpid"),
    ("setsockopt 0 41 35 & 4", EPERM, "getpid"),
    ("setsockopt 0 0x100000006 19 & 4", EPERM, "getpid"),
    ("setsockopt 0 1 61 & 8", EPERM, "getpid"),
    ("statmount & & 64 0", OPAQUE, "getpid"),
];

const STRICT_CASES: &[(&str, i32, &str)] = &[
    ("chmod =calls.c 02755", EPERM, "chmod =calls.c 01755"),
    ("fchmodat -100 =calls.c 02755", EPERM, "fchmodat -100 =calls.c 0755"),
    ("openat -100 =i 0x41 02755", EPERM, "openat -100 =i 0x41 0755"),
    ("mkdirat -100 =j 02755", EPERM, "mkdirat -100 =j 0755"),
    ("openat2 -100 =calls.c & 24", OPAQUE, "openat -100 =calls.c 0"),
    ("prctl 35 1 0 0 0", EPERM, "prctl 3"),
    ("ioctl 0 0x40086602 &", EPERM, "ioctl 0 0x541b &"),
    ("ioctl 0 0x5412 =x", EPERM, "ioctl 0 0x541b &"),
    ("preadv2 0 & 0 0 0 8", libc::EOPNOTSUPP, "getpid"),
    ("mincore & 4096 &", EPERM, "getpid"),
];

#[test]
fn arguments_decide() {
    Probe::new().holds(&ordinary(), CASES);
}

#[test]
fn strict_arguments_decide() {
    Probe::new().holds(&plan(&["base"], true), STRICT_CASES);
}

#[test]
fn calls_without_a_harmless_control_fail_otherwise_outside() {
    // Where only the errno tells that it was the filter: without one the same calls answer differently.
    let probe = Probe::new();
    for (case, errno) in [
        ("sendto 0 & 1 0x20000000 & 16", libc::EOPNOTSUPP),
        ("setsockopt 0 6 31 =tls 3", EPERM),
        ("clone3 & 0", OPAQUE),
        ("socket 16 3 0", libc::EAFNOSUPPORT),
        ("keyctl 7777", EPERM),
        ("kcmp -1 -1 0 0 0", EPERM),
        ("mincore & 4095 &", EPERM),
    ] {
        let lines = [line(case).unwrap()];
        let plan = Seccomp { families: vec![1], ..plan(&["base", "network"], true) };
        assert_eq!(probe.calls(Some(&plan), &lines), [errno], "{case}");
        assert_ne!(probe.calls(None, &lines), [errno], "{case}");
    }
}

#[test]
fn what_is_refused_and_what_is_unknown_is_told_apart() {
    let probe = Probe::new();
    for strict in [false, true] {
        let plan = plan(&["base", "network"], strict);
        let refused: Vec<String> = plan.refuse.iter().map(u32::to_string).collect();
        assert!(refused.len() > 50);
        assert!(probe.calls(Some(&plan), &refused).iter().all(|errno| *errno == EPERM));
        // 335 and 336 of x86-64 are the kernel's own trampolines (uprobes), which no filter is asked about.
        let known = |number: &u32| {
            plan.allow.contains(number) || plan.refuse.contains(number) || [335, 336].contains(number)
        };
        let unknown: Vec<String> =
            (0..700).filter(|number| !known(number)).map(|number| number.to_string()).collect();
        assert!(probe.calls(Some(&plan), &unknown).iter().all(|errno| *errno == libc::ENOSYS));
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn foreign_system_calls_end_the_process() {
    let probe = Probe::new();
    for foreign in
        ["i386".to_owned(), format!("{}", 0x4000_0000u32 | 39), format!("{}", 0x4000_0000u32 | 520)]
    {
        let ended = probe.raw(Some(&ordinary()), &format!("{foreign}\n"));
        assert_eq!(ended.status.signal(), Some(libc::SIGSYS), "{foreign}");
        assert!(probe.raw(None, &format!("{foreign}\n")).status.success(), "{foreign}");
    }
}

#[test]
fn nested_sandboxes_are_to_be_had_where_the_plan_says_so() {
    let probe = Probe::new();
    let calls = [line("unshare 0").unwrap(), line("chroot =/nowhere").unwrap()];
    assert_eq!(probe.calls(Some(&plan(&["base", "nested"], false)), &calls), [0, libc::ENOENT]);
    assert_eq!(probe.calls(Some(&ordinary()), &calls), [EPERM, EPERM]);
    // CLONE_NEWUSER with CLONE_FS is a contradiction to the kernel, so nothing is made.
    let both = [line("clone 0x10000211").unwrap()];
    assert_eq!(probe.calls(Some(&plan(&["base", "nested"], false)), &both), [libc::EINVAL]);
    assert_eq!(probe.calls(Some(&ordinary()), &both), [EPERM]);
}

/// What agents run, as far as every developer's machine has it.
const WORK: &str = "
git init -q repository; cd repository
git config user.email a@example.org; git config user.name A
printf 'int puts(const char *); int main(void) { puts(\"built\"); return 0; }' > main.c
git add main.c; git commit -qm first; git log --oneline | grep -q first
cc -O2 -pipe -o main main.c; ./main | grep -qx built
sort main.c | tr a-z A-Z | wc -c > count; cp -a main.c copy.c; mv copy.c moved.c; ls -l | grep -q moved
sleep 0.01 & wait; echo done";

/// Subprocesses, threads, pools and sockets.
const PYTHON: &str = "
import concurrent.futures, multiprocessing, os, socket, subprocess, tempfile, threading
if SOCKETS:
    server = socket.create_server(('127.0.0.1', 0))
    client = socket.create_connection(server.getsockname())
    peer, _ = server.accept(); client.sendall(b'x'); assert peer.recv(1) == b'x'
    with multiprocessing.get_context('fork').Pool(2) as pool: assert pool.map(abs, [-1, -2]) == [1, 2]
with concurrent.futures.ThreadPoolExecutor(4) as pool: assert sum(pool.map(len, ['a', 'bb'])) == 3
assert subprocess.run(['sh', '-c', 'exit 3']).returncode == 3
with tempfile.NamedTemporaryFile() as f: f.write(b'x'); f.flush(); assert os.stat(f.name).st_size == 1
print('done')";

#[test]
fn programs_go_on_working() {
    let directory = tempfile::tempdir().unwrap();
    let works = |plan: &Seccomp, command: Command| {
        let output = under(Some(plan), command, "");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && output.stdout.ends_with(b"done\n"), "{told}");
    };
    let python = |sockets: bool| {
        let flag = if sockets { "True" } else { "False" };
        let mut command = Command::new("python3");
        command.args(["-c", &format!("SOCKETS = {flag}\n{PYTHON}")]).current_dir(directory.path());
        command
    };
    works(&ordinary(), shell(WORK, directory.path()));
    works(&ordinary(), python(true));
    works(&plan(&["base", "network"], true), python(true));
    let bone = Seccomp { families: vec![], ..plan(&["strict-base"], true) };
    let little = "mkdir -p x/y; echo a | cat > x/y/z; cp -r x w; ls -lR w | grep -q z; rm -r x w; echo done";
    works(&bone, shell(little, directory.path()));
    works(&bone, python(false));
}

#[test]
fn filters_stay_small() {
    for (groups, strict) in
        [(&["base", "network"][..], false), (&["base", "network"], true), (&["strict-base"], true)]
    {
        let length = compile(&plan(groups, strict)).unwrap().instructions();
        assert!(length < 900, "{length} instructions of {groups:?}");
    }
}
