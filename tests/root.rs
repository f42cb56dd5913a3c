//! The session's root on the real kernel: this program, started again in fresh namespaces by `unshare(1)`, builds a
//! root, gives its capabilities up and becomes a shell that looks around. As root and as an ordinary user.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unsafe_code)]

mod common;

use common::By;
use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use trl::layers::root::{Failure, Object, build, session_procfs, verify};
use trl::plan::{Fill, Mount, Root, Workspace};

const CASE: &str = "TEST_OF_TRL_CASE";
const PLACE: &str = "TEST_OF_TRL_PLACE";
const SCRIPT: &str = "TEST_OF_TRL_SCRIPT";
const OLD: &str = "TEST_OF_TRL_OLD_KERNEL";
const MIB: u64 = 1024 * 1024;

fn mount(target: &str, fill: Fill) -> Mount {
    Mount { target: target.into(), fill, optional: false }
}

/// What every root here has: the system, as this host has it laid out.
fn system() -> Vec<Mount> {
    let mut all = vec![mount("/usr", Fill::View("/usr".into()))];
    for name in ["/bin", "/sbin", "/lib", "/lib64"] {
        match std::fs::read_link(name) {
            Ok(to) => all.push(mount(name, Fill::Link(to.into_os_string().into_encoded_bytes()))),
            Err(_) => all.push(Mount { optional: true, ..mount(name, Fill::View(name.into())) }),
        }
    }
    all
}

fn workspace(source: &str, protect: &[&str]) -> Workspace {
    Workspace {
        target: b"/workspace".to_vec(),
        source: source.into(),
        overlay: false,
        writable: true,
        exec: true,
        size: MIB,
        inodes: 100,
        protect: protect.iter().map(|entry| (*entry).into()).collect(),
    }
}

/// The plan of a case; `place` is a directory of the test's own.
fn plan(case: &str, place: &str) -> Root {
    let at = |name: &str| format!("{place}/{name}");
    let mut mounts = system();
    let mut root = Root { mounts: Vec::new(), workspace: Some(workspace("", &[])), processes_only: false };
    let tmp = mount("/tmp", Fill::Tmpfs { size: MIB, inodes: 20, exec: false });
    mounts.extend([mount("/proc", Fill::Proc), mount("/dev", Fill::Dev { size: MIB }), tmp]);
    let host = || workspace(&at("work"), &[".git/hooks", ".git/config", "notes"]);
    match case {
        "full" => {
            mounts.extend([
                mount("/etc/copied", Fill::Copy(at("file").into())),
                mount("/etc/written", Fill::File(b"content".to_vec())),
                mount("/etc/linked", Fill::Link(b"written".to_vec())),
                mount("/opt/ro", Fill::ReadOnly(at("ro").into())),
                mount("/opt/file", Fill::ReadOnly(at("file").into())),
                mount("/opt/rw", Fill::ReadWrite(at("rw").into())),
                mount("/home/me", Fill::Tmpfs { size: MIB, inodes: 20, exec: true }),
                mount("/home/me/.config/tool", Fill::File(b"setting".to_vec())),
                Mount { optional: true, ..mount("/opt/none", Fill::ReadOnly(at("none").into())) },
                Mount { optional: true, ..mount("/etc/none", Fill::Copy(at("none").into())) },
            ]);
            for n in 0..10 {
                mounts.push(mount(&format!("/etc/more{n}"), Fill::Copy(at("file").into())));
            }
        }
        "processes" => root.processes_only = true,
        "host" => root.workspace = Some(host()),
        "read-only" => {
            root.workspace = Some(Workspace { writable: false, ..workspace(&at("work"), &["none/x"]) })
        }
        "own-protect" => {
            root.workspace =
                Some(workspace("", &[".git/hooks/", ".git/config", "notes", "a/b/c", "a/b", "a/b/d"]));
        }
        "overlay" => {
            let protect = [".git/hooks", "absent/", "notes", "absent/below"];
            root.workspace = Some(Workspace { overlay: true, ..workspace(&at("work"), &protect) });
        }
        "no-source" => mounts.push(mount("/opt/ro", Fill::ReadOnly(at("none").into()))),
        "fifo" => mounts.push(mount("/etc/fifo", Fill::Copy(at("fifo").into()))),
        "large" => mounts.push(mount("/etc/large", Fill::Copy(at("large").into()))),
        "everything" => mounts.push(mount("/host", Fill::ReadOnly(at("to-root").into()))),
        "litter" => mounts.extend([
            mount("/opt/rw", Fill::ReadWrite(at("rw").into())),
            mount("/opt/rw/new", Fill::File(b"x".to_vec())),
        ]),
        "through-link" => mounts.push(mount("/bin/x", Fill::File(b"x".to_vec()))),
        "linked-rw" => mounts.push(mount("/opt/rw", Fill::ReadWrite(at("link").into()))),
        "no-limit" => mounts.push(mount("/x", Fill::Tmpfs { size: 0, inodes: 1, exec: false })),
        "dots" => mounts.push(mount("/x/../y", Fill::File(Vec::new()))),
        "no-workspace" => root.workspace = Some(workspace(&at("none"), &[])),
        "linked-workspace" => root.workspace = Some(workspace(&at("link/work"), &[])),
        "absent" => root.workspace = Some(workspace(&at("work"), &["notes", ".envrc"])),
        "link-protect" => root.workspace = Some(workspace(&at("work"), &["link/x"])),
        "up-protect" => root.workspace = Some(workspace(&at("work"), &["../x"])),
        other => panic!("{other}"),
    }
    root.mounts = mounts;
    root
}

/// Answers `ENOSYS` to `openat2` and `mount_setattr`, as a kernel of 5.5 would.
fn pretend_to_be_old() {
    let statement = |code: u32, k: i64, jt, jf| libc::sock_filter { code: code as u16, jt, jf, k: k as u32 };
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let refused = i64::from(libc::SECCOMP_RET_ERRNO) | i64::from(libc::ENOSYS);
    let program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(equal, libc::SYS_openat2, 2, 0),
        statement(equal, libc::SYS_mount_setattr, 1, 0),
        statement(libc::BPF_RET | libc::BPF_K, i64::from(libc::SECCOMP_RET_ALLOW), 0, 0),
        statement(libc::BPF_RET | libc::BPF_K, refused, 0, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: a pointer to a program that outlives the call.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn mountinfo() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap()
}

fn mount_points(mountinfo: &str) -> Vec<String> {
    mountinfo.lines().map(|line| line.split(' ').nth(4).unwrap().to_owned()).collect()
}

/// The other end of `enter`; nothing without its variables.
#[test]
fn inside() {
    let Ok(case) = std::env::var(CASE) else { return };
    let root = plan(&case, &std::env::var(PLACE).unwrap());
    if std::env::var_os(OLD).is_some() {
        pretend_to_be_old();
    }
    println!();
    let before = mount_points(&mountinfo());
    let all = session_procfs().unwrap();
    let start = std::time::Instant::now();
    let built = build(&root, (1000, 1000));
    let took = start.elapsed();
    let fell_back = match built {
        Ok(fell_back) => fell_back,
        Err(Failure { object, operation, errno }) => {
            println!("failed={object:?} {operation} {errno}");
            println!("cwd={}", std::env::current_dir().unwrap().display());
            println!("left={}", mount_points(&mountinfo()).len() - before.len());
            std::process::exit(0);
        }
    };
    println!("micros={}\nfell_back={fell_back:?}", took.as_micros());
    let unmasked =
        nix::fcntl::openat(&all, "cmdline", nix::fcntl::OFlag::O_RDONLY, nix::sys::stat::Mode::empty());
    println!("unmasked={}", nix::unistd::read(unmasked.unwrap(), &mut [0; 8]).unwrap());
    caps::clear(None, caps::CapSet::Ambient).unwrap();
    let script = std::env::var(SCRIPT).unwrap();
    let failed =
        Command::new("/bin/sh").args(["-c", &script]).env_clear().env("PATH", "/usr/bin:/bin").exec();
    panic!("{failed}");
}

/// A directory with what the plans take, owned by who runs the case.
struct Place {
    directory: tempfile::TempDir,
    by: By,
}

impl Place {
    fn new(by: By) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        for name in ["ro", "rw", "work", "work/.git", "work/.git/hooks"] {
            std::fs::create_dir(path.join(name)).unwrap();
        }
        for name in ["file", "ro/file", "rw/file", "work/.git/config", "work/notes", "work/other"] {
            std::fs::write(path.join(name), "host\n").unwrap();
        }
        std::fs::write(path.join("large"), vec![b'x'; MIB as usize + 1]).unwrap();
        nix::unistd::mkfifo(&path.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
        for (name, to) in [("link", "."), ("to-root", "/"), ("work/link", ".git")] {
            std::os::unix::fs::symlink(to, path.join(name)).unwrap();
        }
        let place = Self { directory, by };
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        if by == By::Ordinary && common::is_root() {
            for name in ["", "ro", "rw", "work", "work/.git", "work/.git/hooks", "file", "ro/file", "rw/file"]
                .into_iter()
                .chain(["work/.git/config", "work/notes", "work/other", "large"])
            {
                chown(place.path().join(name), Some(common::ORDINARY_UID), Some(common::ORDINARY_UID))
                    .unwrap();
            }
        }
        place
    }
    fn path(&self) -> &Path {
        self.directory.path()
    }
    fn plan(&self, case: &str) -> Root {
        plan(case, self.path().to_str().unwrap())
    }
    /// Every entry of the workspace on the host.
    fn work(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut left = vec![self.path().join("work")];
        while let Some(directory) = left.pop() {
            for entry in std::fs::read_dir(directory).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    left.push(entry.path());
                }
                found.push(entry.path());
            }
        }
        found.sort();
        found
    }
    fn run(&self, case: &str, script: &str, old: bool) -> (BTreeMap<String, String>, String) {
        let binaries = common::binaries();
        let mut command = Command::new("unshare");
        command
            .args([
                "--user",
                "--map-user=1000",
                "--map-group=1000",
                "--keep-caps",
                "--mount",
                "--pid",
                "--fork",
            ])
            .args(["--ipc", "--net", "--kill-child", "--"])
            .arg(binaries.path().join("test"))
            .args(["--exact", "inside", "--nocapture", "--test-threads=1"])
            .env(CASE, case)
            .env(PLACE, self.path())
            .env(SCRIPT, format!("{script}\nprintf 'mounts=\\n'; cat /proc/self/mountinfo"))
            .current_dir("/")
            .stdin(Stdio::null());
        if old {
            command.env(OLD, "1");
        }
        if self.by == By::Ordinary && common::is_root() {
            command.uid(common::ORDINARY_UID).gid(common::ORDINARY_UID);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{case}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
        let (values, mounts) = text.split_once("mounts=\n").unwrap_or((&text, ""));
        let pairs = values.lines().filter_map(|line| line.split_once('='));
        (pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(), mounts.to_owned())
    }
    /// Builds a root, looks around in it, and holds its mounts against the plan.
    fn enter(&self, case: &str, script: &str) -> BTreeMap<String, String> {
        let (values, mounts) = self.run(case, script, false);
        let found = verify(&mounts, &self.plan(case));
        println!("{case} {:?}: {} us, {found:?}", self.by, values.get("micros").map_or("?", String::as_str));
        assert!(found.is_ok(), "{found:?}\n{values:?}\n{mounts}");
        assert_eq!(values["fell_back"], "[]");
        assert_ne!(values["unmasked"], "0");
        values
    }
    fn refused(&self, case: &str) -> String {
        let work = self.work();
        let (values, _) = self.run(case, "echo built=yes", false);
        assert_eq!(values.get("left").map(String::as_str), Some("0"), "{case}: {values:?}");
        assert_eq!(values["cwd"], "/");
        assert_eq!(self.work(), work, "{case} left something on the host");
        values["failed"].clone()
    }
}

/// A line `name=yes` or `name=no` a command.
fn tries(commands: &[(&str, &str)]) -> String {
    let one = |(name, command): &(&str, &str)| {
        format!("if ( {command} ) >/dev/null 2>&1; then echo {name}=yes; else echo {name}=no; fi")
    };
    commands.iter().map(one).collect::<Vec<_>>().join("\n")
}

fn expect(values: &BTreeMap<String, String>, wanted: &[(&str, &str)]) {
    for (name, value) in wanted {
        assert_eq!(values.get(*name).map(String::as_str), Some(*value), "{name} in {values:#?}");
    }
}

#[test]
fn a_full_root_has_what_is_planned_and_nothing_else() {
    for by in common::ways() {
        let place = Place::new(*by);
        let denied = [
            ("write-root", "echo x > /new"),
            ("write-usr", "echo x > /usr/new"),
            ("write-etc", "echo x > /etc/new"),
            ("write-copied", "echo x > /etc/copied"),
            ("remove-written", "rm -f /etc/written"),
            ("write-ro", "echo x > /opt/ro/file"),
            ("write-ro-file", "echo x > /opt/file"),
            ("write-dev", "echo x > /dev/new"),
            ("chmod-null", "chmod 600 /dev/null"),
            ("node", "mknod /workspace/n b 8 0"),
            ("host-run", "ls -d /run"),
            ("host-sys", "ls -d /sys"),
            ("host-root", "ls -d /root"),
            ("host-place", "ls -d \"$P\""),
            ("up", "ls -d /../../root"),
            ("none", "ls -d /opt/none || ls -d /etc/none"),
            ("exec-tmp", "cp /bin/true /tmp/t && /tmp/t"),
            ("knob", "echo x > /proc/sys/kernel/hostname"),
            ("sysrq", "echo h > /proc/sysrq-trigger"),
            ("umount", "umount /proc/sys || umount /proc/cmdline"),
            ("fill-tmp", "head -c 3000000 /dev/zero > /tmp/big"),
            ("fill-shm", "head -c 3000000 /dev/zero > /dev/shm/big"),
            ("fill-workspace", "head -c 3000000 /dev/zero > /workspace/big"),
            ("inodes", "for i in $(seq 200); do echo > /workspace/i$i || exit 1; done"),
        ];
        let allowed = [
            ("read-usr", "test -x /usr/bin/env"),
            ("write-null", "echo x > /dev/null"),
            ("read-zero", "test $(head -c 5 /dev/zero | wc -c) = 5"),
            ("read-random", "test $(head -c 5 /dev/urandom | wc -c) = 5"),
            ("full", "! echo x > /dev/full"),
            ("write-rw", "echo session > /opt/rw/made"),
            ("write-tmp", "echo x > /tmp/x"),
            ("write-shm", "echo x > /dev/shm/x"),
            ("write-home", "echo x > /home/me/x"),
            ("exec-home", "cp /bin/true /home/me/t && /home/me/t"),
            ("write-workspace", "echo x > /workspace/x"),
            ("exec-workspace", "cp /bin/true /workspace/t && /workspace/t"),
            ("copied", "test $(cat /etc/copied) = host"),
            ("linked", "test $(cat /etc/linked) = content"),
            ("setting", "test $(cat /home/me/.config/tool) = setting"),
            ("fd", "test -e /dev/fd/0 && test -e /dev/stdin"),
            ("ptmx", "test -c /dev/ptmx && test -r /dev/ptmx -a -w /dev/ptmx"),
            ("read-knob", "test -n \"$(cat /proc/sys/kernel/ostype)\""),
            ("read-meminfo", "grep -q MemTotal /proc/meminfo"),
            ("first", "test $(readlink /proc/self) = $$ || test -d /proc/self"),
        ];
        let look = "\necho dev=$(ls /dev | tr '\\n' ' ')\necho top=$(ls / | tr '\\n' ' ')
echo modes=$(stat -c %a:%u / /tmp /home/me /workspace /etc/written /dev/shm | tr '\\n' ' ')
echo pids=$(ls /proc | grep -c '^[0-9]')
for f in kallsyms keys kcore cmdline interrupts iomem modules timer_list; do cat /proc/$f 2>/dev/null; done | wc -c | sed 's/^/masked=/'
ls /proc/fs /proc/bus /proc/driver /proc/irq | grep -vc : | sed 's/^/entries=/'";
        let path = format!("P={}\n", place.path().display());
        let script = format!("{path}{}\n{}{look}", tries(&allowed), tries(&denied));
        let values = place.enter("full", &script);
        for (name, _) in denied {
            assert_eq!(values[name], "no", "{name}");
        }
        for (name, _) in allowed {
            assert_eq!(values[name], "yes", "{name}");
        }
        let dev = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
        expect(&values, &[("dev", dev), ("masked", "0")]);
        expect(&values, &[("modes", "755:1000 1777:1000 755:1000 755:1000 444:1000 1777:1000")]);
        for name in ["run", "sys", "root", "var", "mnt"] {
            assert!(!values["top"].split(' ').any(|top| top == name), "{}", values["top"]);
        }
        assert!(values["pids"].parse::<u32>().unwrap() < 8, "{}", values["pids"]);
        assert_eq!(std::fs::read_to_string(place.path().join("rw/made")).unwrap(), "session\n");
        assert_eq!(std::fs::read_to_string(place.path().join("ro/file")).unwrap(), "host\n");
    }
}

#[test]
fn a_procfs_of_processes_alone_has_nothing_of_the_kernel() {
    let place = Place::new(By::Ordinary);
    let script =
        tries(&[("sys", "ls -d /proc/sys"), ("mem", "cat /proc/meminfo"), ("self", "cat /proc/self/stat")]);
    expect(&place.enter("processes", &script), &[("sys", "no"), ("mem", "no"), ("self", "yes")]);
}

#[test]
fn protected_entries_of_the_hosts_workspace_stay() {
    for by in common::ways() {
        let place = Place::new(*by);
        let before = place.work();
        let script = tries(&[
            ("hook", "cd /workspace; echo x > .git/hooks/pre-commit"),
            ("config", "cd /workspace; echo x >> .git/config"),
            ("replace-config", "cd /workspace; echo x > .git/c && mv .git/c .git/config"),
            ("remove", "cd /workspace; rm -f notes"),
            ("rename", "cd /workspace; mv notes n2"),
            ("rename-hooks", "cd /workspace; mv .git/hooks .git/h2"),
            ("rename-parent", "cd /workspace; mv .git g2"),
            ("swap-parent", "cd /workspace; mkdir g3; mv --exchange .git g3"),
            (
                "rest",
                "cd /workspace; rm -f .git/c; rmdir g3; echo x > .git/index && rm .git/index && echo x >> other",
            ),
        ]);
        let values = place.enter("host", &script);
        for name in ["hook", "config", "replace-config", "remove", "rename", "rename-hooks", "rename-parent"]
        {
            expect(&values, &[(name, "no")]);
        }
        expect(&values, &[("swap-parent", "no"), ("rest", "yes")]);
        assert_eq!(place.work(), before);
        assert_eq!(std::fs::read_to_string(place.path().join("work/.git/config")).unwrap(), "host\n");
        assert_eq!(std::fs::read_to_string(place.path().join("work/other")).unwrap(), "host\nx\n");
    }
}

#[test]
fn absent_entries_of_an_own_workspace_cannot_be_made() {
    let place = Place::new(By::Ordinary);
    let script = tries(&[
        ("hook", "cd /workspace; mkdir -p .git/hooks; echo x > .git/hooks/pre-commit"),
        ("trick", "cd /workspace; mv .git g2; mkdir -p .git/hooks && echo x > .git/hooks/x"),
        ("config", "cd /workspace; echo x > .git/config"),
        ("notes", "cd /workspace; rm -rf notes; echo x > notes"),
        ("below", "cd /workspace; echo x > a/b/new || echo x > a/b/c || echo x > a/b/d"),
        ("above", "cd /workspace; rm -rf a && mkdir a"),
        ("beside", "cd /workspace; echo x > a/new && echo x > .git/index"),
        ("list", "test -d /workspace/.git/hooks && test -f /workspace/notes"),
    ]);
    let values = place.enter("own-protect", &script);
    for name in ["hook", "trick", "config", "notes", "below", "above"] {
        expect(&values, &[(name, "no")]);
    }
    expect(&values, &[("beside", "yes"), ("list", "yes")]);
}

#[test]
fn what_is_done_above_an_overlay_is_not_done_below_it() {
    for by in common::ways() {
        let place = Place::new(*by);
        let before = place.work();
        let script = tries(&[
            ("change", "cd /workspace; echo x >> other && rm -f .git/config && echo x > new"),
            ("protected", "cd /workspace; echo x >> notes || echo x > .git/hooks/x || echo x > absent/x"),
            ("trick", "cd /workspace; mv absent a2 || mv .git g2"),
            ("exec", "cp /bin/true /workspace/t && /workspace/t"),
            ("fill", "head -c 3000000 /dev/zero > /workspace/big"),
        ]);
        let values = place.enter("overlay", &script);
        expect(
            &values,
            &[("change", "yes"), ("protected", "no"), ("trick", "no"), ("exec", "yes"), ("fill", "no")],
        );
        assert_eq!(place.work(), before);
        assert_eq!(std::fs::read_to_string(place.path().join("work/other")).unwrap(), "host\n");
    }
}

#[test]
fn a_workspace_that_is_not_writable_is_read() {
    let place = Place::new(By::Ordinary);
    let script =
        tries(&[("read", "test $(cat /workspace/other) = host"), ("write", "echo x > /workspace/new")]);
    expect(&place.enter("read-only", &script), &[("read", "yes"), ("write", "no")]);
}

#[test]
fn a_root_that_cannot_be_built_leaves_nothing_behind() {
    let place = Place::new(By::Ordinary);
    let last = system().len() + 3;
    let mount = |n: usize| format!("{:?}", Object::Mount(n));
    let protect = |n: usize| format!("{:?}", Object::Protect(n));
    for (case, object, errno) in [
        ("no-source", mount(last), libc::ENOENT),
        ("fifo", mount(last), libc::EINVAL),
        ("large", mount(last), libc::EFBIG),
        ("everything", mount(last), libc::EINVAL),
        ("litter", mount(last + 1), libc::EROFS),
        ("through-link", mount(last), libc::ELOOP),
        ("linked-rw", mount(last), libc::ELOOP),
        ("no-limit", mount(last), libc::EINVAL),
        ("dots", mount(last), libc::EINVAL),
        ("no-workspace", "Workspace".to_owned(), libc::ENOENT),
        ("linked-workspace", "Workspace".to_owned(), libc::ELOOP),
        ("absent", protect(1), libc::ENOENT),
        ("link-protect", protect(0), libc::ELOOP),
        ("up-protect", protect(0), libc::EINVAL),
    ] {
        let failed = place.refused(case);
        println!("{case}: {failed}");
        assert!(failed.starts_with(&object) && failed.ends_with(&format!(" {errno}")), "{case}: {failed}");
    }
    assert!(!place.path().join("rw/new").exists());
}

#[test]
fn a_kernel_without_the_newest_calls_gives_the_same_root() {
    let place = Place::new(By::Ordinary);
    for case in ["full", "host", "own-protect"] {
        let (values, mounts) = place.run(case, "", true);
        let found = verify(&mounts, &place.plan(case));
        assert!(found.is_ok(), "{found:?}\n{values:?}\n{mounts}");
        assert_eq!(values["fell_back"], "[]");
    }
}
