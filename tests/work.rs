//! Real work in isolated sessions, through the real daemon: version control, compilers, package managers, scripts and
//! servers, as agents use them. Inputs come by standard input, as a tar; nothing of the network is needed.
//!
//! What a machine lacks is said by name. That is a failure in CI, which installs all of it, and a note elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use base64::{Engine, engine::general_purpose::STANDARD};
use common::{By, Client, Daemon, Home, ORDINARY_UID, is_root, ways};
use serde_json::{Value, json};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long one step of the work may take on a busy machine.
const BOUND: Duration = Duration::from_secs(240);
/// Where sessions look for programs; nothing of a home.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Whether the machine has these programs where a session sees them; with the packages that bring them.
fn has(programs: &[(&str, &str)]) -> bool {
    let is_there = |name: &str| PATH.split(':').any(|directory| Path::new(directory).join(name).exists());
    let missing: Vec<_> = programs.iter().filter(|(name, _)| !is_there(name)).collect();
    let Some(first) = missing.first() else { return true };
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    missed(&format!("{} is not in {PATH}; apt-get install {}", first.0, packages.join(" ")))
}

/// A test that cannot be made here: false, unless this is CI.
fn missed(why: &str) -> bool {
    let is_ci = ["CI", "TRL_CI"].iter().any(|name| std::env::var_os(name).is_some());
    assert!(!is_ci, "{why}");
    eprintln!("NOT TESTED: {why}");
    false
}

/// A session at work.
struct Work<'a> {
    client: &'a mut Client,
    session: String,
    called: String,
}

impl Work<'_> {
    fn start(&mut self, script: &str, mut more: Value) -> String {
        more["session_id"] = json!(self.session);
        more["command"] = json!(format!("set -e; {script}"));
        more["timeout_s"] = json!(BOUND.as_secs());
        let started = self.client.ok("exec.start", more);
        started["exec_id"].as_str().unwrap().to_owned()
    }

    /// Runs a script, which must succeed; what it wrote to its standard output.
    fn run(&mut self, script: &str) -> String {
        self.run_with(script, json!({}))
    }

    fn run_with(&mut self, script: &str, more: Value) -> String {
        let exec = self.start(script, more);
        let deadline = Instant::now() + BOUND;
        loop {
            let outcome = self.client.ok("exec.wait", json!({"exec_id": exec, "timeout_s": 20}));
            if outcome["state"] == "ended" {
                assert_eq!(outcome["exit_code"], 0, "{}: {script}: {outcome:#}", self.called);
                assert_eq!(outcome["isolation"]["policy"], self.called.split(' ').next().unwrap());
                return outcome["stdout"].as_str().unwrap().to_owned();
            }
            assert!(Instant::now() < deadline, "{}: {script} takes too long", self.called);
        }
    }

    /// Unpacks a directory of this machine in the workspace.
    fn deliver(&mut self, directory: &Path) {
        let packed = Command::new("tar").args(["-cf", "-", "-C"]).arg(directory).arg(".").output().unwrap();
        assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
        let input = json!({"stdin": STANDARD.encode(&packed.stdout), "stdin_encoding": "base64"});
        self.run_with("tar --no-same-owner -xf - && echo came", input);
    }
}

/// Does `work` in a session of each policy, by each way to start a daemon.
fn in_sessions(flags: &[&str], policies: &[&str], work: &dyn Fn(&mut Work<'_>)) {
    for by in ways() {
        let home = Home::new(*by);
        in_daemon(&home.start(flags), *by, policies, work);
    }
}

fn in_daemon(daemon: &Daemon, by: By, policies: &[&str], work: &dyn Fn(&mut Work<'_>)) {
    let mut client = daemon.connect();
    for policy in policies {
        let env = json!({"PATH": PATH, "HOME": "/workspace", "LC_ALL": "C.UTF-8"});
        let session = client.session(json!({"policy": policy, "env": env}));
        let called = format!("{policy} {by:?}");
        let mut at_work = Work { client: &mut client, session: session.clone(), called };
        work(&mut at_work);
        client.ok("session.destroy", json!({"session_id": session, "force": true}));
    }
    assert!(daemon.inits().is_empty());
}

const SHIPPED: [&str; 2] = ["default", "build"];

#[test]
fn git_clones_commits_and_pushes() {
    if !has(&[("git", "git")]) {
        return;
    }
    let input = tempfile::tempdir().unwrap();
    let made = Command::new("sh")
        .args([
            "-ec",
            "git init -q origin; cd origin; echo one > file; git add file; git -c $1 -c $2 commit -qm first",
        ])
        .args(["-", "user.name=a", "user.email=a@b"])
        .current_dir(&input)
        .env("HOME", input.path())
        .status();
    assert!(made.unwrap().success());
    in_sessions(&[], &SHIPPED, &|work| {
        work.deliver(input.path());
        let log = work.run(
            "git config --global user.name a; git config --global user.email a@b; git clone -q --bare origin bare; \
             git clone -q bare copy; cd copy; git checkout -q -b topic; echo two >> file; mkdir d; echo x > d/new; \
             git add -A; git commit -qm second; git push -q origin topic; cd ..; git clone -q -b topic bare again; \
             cd again; git fsck --strict; git gc -q; git diff --stat HEAD~1; git log --format=%s; cat file",
        );
        assert!(log.ends_with("second\nfirst\none\ntwo\n"), "{log}");
        assert!(log.contains("2 files changed"), "{log}");
        // The workspace itself is one too.
        let log = work.run("git init -q .; echo '*' > .gitignore; git add -f .gitignore; git commit -qm own; git log --format=%s");
        assert_eq!(log, "own\n");
    });
}

#[test]
fn a_c_program_is_made_and_run() {
    if !has(&[("gcc", "gcc"), ("make", "make")]) {
        return;
    }
    let input = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(input.path().join(name), text).unwrap();
    write(
        "main.c",
        "#include <stdio.h>\n#include <pthread.h>\nextern int twice(int);\nstatic void *f(void *p) { *(int *)p = twice(21); return 0; }\nint main(void) { pthread_t t; int n = 0; pthread_create(&t, 0, f, &n); pthread_join(t, 0); printf(\"%d\\n\", n); return 0; }\n",
    );
    write("twice.c", "int twice(int n) { return 2 * n; }\n");
    write(
        "Makefile",
        "main: main.o libtwice.a\n\tgcc -o $@ main.o -L. -ltwice -pthread\nlibtwice.a: twice.o\n\tar rcs $@ $^\n%.o: %.c\n\tgcc -O2 -Wall -Werror -c -o $@ $<\n",
    );
    in_sessions(&[], &SHIPPED, &|work| {
        work.deliver(input.path());
        assert_eq!(work.run("make -s -j4 && ./main"), "42\n");
        // With its temporary files and its result in /tmp: the one runs from there, the other does not.
        let run = "gcc -pipe -o /tmp/main main.c twice.c -pthread; /tmp/main 2>/dev/null || echo denied";
        let expected = if work.called.starts_with("build") { "42\n" } else { "denied\n" };
        assert_eq!(work.run(run), expected);
    });
}

#[test]
fn a_leak_checker_traces_in_ci_and_nowhere_else() {
    if !has(&[("gcc", "gcc")]) {
        return;
    }
    let input = tempfile::tempdir().unwrap();
    let leak =
        "#include <stdlib.h>\nint main(void) { volatile char *lost = malloc(77); lost = 0; return 0; }\n";
    std::fs::write(input.path().join("leak.c"), leak).unwrap();
    in_sessions(&[], &["ci", "build"], &|work| {
        work.deliver(input.path());
        // It stops its own threads by ptrace before it looks.
        let said = work.run("gcc -g -fsanitize=address -o leak leak.c; ./leak 2>&1 | grep -oE '77 byte|fatal error' | sort -u");
        let expected = if work.called.starts_with("ci") { "77 byte\n" } else { "fatal error\n" };
        assert_eq!(said, expected);
    });
}

#[test]
fn pipelines_and_scripts_run() {
    if !has(&[("perl", "perl"), ("busybox", "busybox-static"), ("python3", "python3"), ("xz", "xz-utils")]) {
        return;
    }
    in_sessions(&[], &SHIPPED, &|work| {
        let sum = work.run("seq 1 10000 | sort -rn --parallel=2 | awk '{ s += $1 } END { print s }' | tee sum | tr -d '\\n'; test -s sum");
        assert_eq!(sum, "50005000");
        let text = work.run("mkdir -p a/b; for i in 1 2 3; do echo line $i > a/b/f$i; done; find a -name 'f*' -print0 | xargs -0 -P3 -n1 grep -h line | sort; tar -cJf a.tar.xz a; tar -tJf a.tar.xz | wc -l; (exit 3) || echo $?; cat <<E\n$(echo here)\nE");
        assert_eq!(text, "line 1\nline 2\nline 3\n5\n3\nhere\n");
        let perl = work.run("perl -MFile::Temp=tempfile -MPOSIX -e 'my ($h, $n) = tempfile(); print $h \"x\" x 10; close $h; print -s $n, \"\\n\"; my $p = fork(); if (!$p) { POSIX::_exit(7) } waitpid($p, 0); print $? >> 8, \"\\n\"; print scalar(grep { /x/ } `printf \"x\\ny\\n\"`), \"\\n\"'");
        assert_eq!(perl, "10\n7\n1\n");
        let busybox = work.run("busybox sh -c 'busybox seq 3 | busybox sort -r | busybox head -n1; busybox mktemp -d >/dev/null; busybox timeout 5 busybox true; echo $((6 * 7)); busybox sha256sum /dev/null | busybox cut -c1-8'");
        assert_eq!(busybox, "3\n42\ne3b0c442\n");
        let python = work.run("/usr/bin/python3 -c 'import multiprocessing as m, threading, subprocess, asyncio, tempfile, sqlite3\np = m.Pool(2); print(sum(p.map(abs, range(-3, 1)))); p.terminate()\nprint(subprocess.run([\"echo\", \"sub\"], capture_output=True, text=True).stdout.strip())\nasync def f():\n    p = await asyncio.create_subprocess_exec(\"true\"); return await p.wait()\nprint(asyncio.run(f()))\nd = sqlite3.connect(tempfile.mkdtemp() + \"/db\"); d.execute(\"create table t(x)\"); d.execute(\"insert into t values (5)\"); d.commit(); print(d.execute(\"select x from t\").fetchone()[0])'");
        assert_eq!(python, "6\nsub\n0\n5\n");
    });
}

#[test]
fn a_virtual_environment_takes_a_wheel() {
    if !has(&[("python3", "python3-venv")]) {
        return;
    }
    // In the system's own Python: others have no ensurepip to share.
    let ready = Command::new("/usr/bin/python3").args(["-c", "import ensurepip, venv"]).output();
    if !ready.is_ok_and(|output| output.status.success()) {
        missed("/usr/bin/python3 has no ensurepip; apt-get install python3-venv");
        return;
    }
    let wheel = "import zipfile, hashlib, base64\n\
        files = {'greet.py': 'def greet(): return \"hello from a wheel\"\\ndef main(): print(greet())\\n',\n\
        'greet-1.0.dist-info/METADATA': 'Metadata-Version: 2.1\\nName: greet\\nVersion: 1.0\\n',\n\
        'greet-1.0.dist-info/WHEEL': 'Wheel-Version: 1.0\\nGenerator: hand\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n',\n\
        'greet-1.0.dist-info/entry_points.txt': '[console_scripts]\\ngreet = greet:main\\n'}\n\
        record = ''.join('%s,sha256=%s,%d\\n' % (n, base64.urlsafe_b64encode(hashlib.sha256(t.encode()).digest()).rstrip(b'=').decode(), len(t)) for n, t in files.items())\n\
        files['greet-1.0.dist-info/RECORD'] = record + 'greet-1.0.dist-info/RECORD,,\\n'\n\
        z = zipfile.ZipFile('wheels/greet-1.0-py3-none-any.whl', 'w')\n\
        [z.writestr(n, t) for n, t in files.items()]; z.close()\n";
    let input = tempfile::tempdir().unwrap();
    std::fs::write(input.path().join("wheel.py"), wheel).unwrap();
    in_sessions(&[], &SHIPPED, &|work| {
        work.deliver(input.path());
        let said = work.run(
            "mkdir wheels; /usr/bin/python3 wheel.py; /usr/bin/python3 -m venv own; \
             own/bin/pip install -q --no-index --find-links wheels --disable-pip-version-check greet >&2; \
             own/bin/python -c 'import greet, sys; print(greet.greet()); print(sys.prefix)'; own/bin/pip list 2>/dev/null \
             | grep -c greet; own/bin/greet 2>&1",
        );
        assert_eq!(said, "hello from a wheel\n/workspace/own\n1\nhello from a wheel\n");
    });
}

#[test]
fn npm_installs_a_local_tarball() {
    if !has(&[("node", "nodejs"), ("npm", "npm")]) {
        return;
    }
    let input = tempfile::tempdir().unwrap();
    let package = input.path().join("package");
    std::fs::create_dir(&package).unwrap();
    let manifest = r#"{"name": "greet", "version": "1.0.0", "main": "index.js", "bin": {"greet": "cli.js"},
        "scripts": {"postinstall": "node -e \"require('fs').writeFileSync('ran', 'yes')\""}}"#;
    std::fs::write(package.join("package.json"), manifest).unwrap();
    std::fs::write(package.join("index.js"), "module.exports = () => 'hello from a tarball';\n").unwrap();
    let program = "#!/usr/bin/env node\nconsole.log(require('greet')());\n";
    std::fs::write(package.join("cli.js"), program).unwrap();
    in_sessions(&[], &SHIPPED, &|work| {
        work.deliver(input.path());
        let said = work.run(
            "tar -czf greet-1.0.0.tgz package; mkdir app; cd app; echo '{\"name\": \"app\", \"version\": \"1.0.0\"}' > package.json; \
             npm install --offline --no-audit --no-fund --foreground-scripts ../greet-1.0.0.tgz >&2; \
             node -e \"console.log(require('greet')()); new (require('worker_threads').Worker)('console.log(2)', {eval: true})\"; \
             cat node_modules/greet/ran",
        );
        assert_eq!(said, "hello from a tarball\n2\nyes");
    });
}

#[test]
fn a_server_is_reached_by_a_later_command() {
    if !has(&[("python3", "python3"), ("perl", "perl")]) {
        return;
    }
    in_sessions(&[], &SHIPPED, &|work| {
        work.run("mkdir www; echo served > www/file");
        let serve = "exec /usr/bin/python3 -m http.server 8765 --bind 127.0.0.1 --directory www";
        let server = work.start(serve, json!({}));
        let fetch = "/usr/bin/python3 -c 'import urllib.request, time\nfor i in range(200):\n    try:\n        \
            print(urllib.request.urlopen(\"http://127.0.0.1:8765/file\").read().decode(), end=\"\"); break\n    \
            except OSError: time.sleep(0.05)'";
        assert_eq!(work.run(fetch), "served\n");
        // By another language, and by name.
        let by_name = "perl -MIO::Socket::INET -e 'my $s = IO::Socket::INET->new(\"localhost:8765\") or die \"$@\"; \
            print $s \"GET /file HTTP/1.0\\r\\n\\r\\n\"; my @l = <$s>; print $l[-1]'";
        assert_eq!(work.run(by_name), "served\n");
        let ended = work.client.ok("exec.cancel", json!({"exec_id": server}));
        assert_eq!(ended["end"]["reason"], "canceled", "{ended}");
        work.run("! perl -MIO::Socket::INET -e 'exit(!IO::Socket::INET->new(\"127.0.0.1:8765\"))'");
    });
}

/// A toolchain that the users of sessions can read: the one in use, or, where that is in root's home, links to it, which
/// go with the second value.
fn toolchain() -> Option<(PathBuf, Option<tempfile::TempDir>)> {
    let named = std::env::var_os("TRL_TEST_TOOLCHAIN").map(PathBuf::from);
    let asked = || {
        let output = Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| PathBuf::from(text.trim()))
    };
    let root = std::fs::canonicalize(named.or_else(asked)?).ok()?;
    let is_open = |path: &Path| {
        path.ancestors().all(|directory| {
            std::fs::metadata(directory).is_ok_and(|found| found.permissions().mode() & 0o005 == 0o005)
        })
    };
    if !is_root() || is_open(&root) {
        return root.join("bin/cargo").exists().then_some((root, None));
    }
    let copy = tempfile::tempdir().unwrap();
    std::fs::set_permissions(copy.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = "umask 022; mkdir bin; cp -al \"$1/bin/cargo\" \"$1/bin/rustc\" bin/ && cp -al \"$1/lib\" . \
        || { rm -rf bin lib; mkdir bin; cp -a \"$1/bin/cargo\" \"$1/bin/rustc\" bin/ && cp -a \"$1/lib\" .; }";
    let copied = Command::new("sh").args(["-c", script, "-"]).arg(&root).current_dir(&copy).status();
    copied.is_ok_and(|status| status.success()).then(|| (copy.path().to_path_buf(), Some(copy)))
}

/// A directory of policies as an operator writes them: `NAME` for each base, with a toolchain beside the system.
fn policies(home: &Home, by: By, root: &Path) -> PathBuf {
    let directory = home.path().join("policies");
    std::fs::create_dir(&directory).unwrap();
    let shown = root.display();
    // What is below /usr is there already.
    let more = if root.starts_with("/usr") || root.starts_with("/opt") {
        String::new()
    } else {
        format!("[filesystem]\nadd_read_only = [\"{shown}\"]\n[landlock]\nadd_execute = [\"{shown}\"]\n")
    };
    for base in SHIPPED {
        let name = format!("rust-{base}");
        let text = format!(
            "name = \"{name}\"\ndescription = \"{base} with a toolchain\"\nextends = \"{base}\"\n{more}"
        );
        let file = directory.join(format!("{name}.toml"));
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    if by == By::Ordinary && is_root() {
        for entry in std::fs::read_dir(&directory).unwrap().flatten() {
            chown(entry.path(), Some(ORDINARY_UID), Some(ORDINARY_UID)).unwrap();
        }
        chown(&directory, Some(ORDINARY_UID), Some(ORDINARY_UID)).unwrap();
    }
    directory
}

#[test]
fn cargo_builds_a_crate_with_a_vendored_dependency() {
    if !has(&[("cc", "gcc")]) {
        return;
    }
    let Some((root, _links)) = toolchain() else {
        missed(
            "no Rust toolchain that this user can read; name one by TRL_TEST_TOOLCHAIN (its `rustc --print sysroot`)",
        );
        return;
    };
    let input = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = input.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "app/Cargo.toml",
        "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[dependencies]\ntwice = \"1\"\n",
    );
    write(
        "app/src/main.rs",
        "fn main() { println!(\"{}\", twice::twice(env!(\"ANSWER\").parse::<u32>().unwrap())); }\n#[test]\nfn it_holds() { assert_eq!(twice::twice(1), 2); }\n",
    );
    // A build script is a program that is built, and run at once.
    write("app/build.rs", "fn main() { println!(\"cargo:rustc-env=ANSWER={}\", 3 * 7); }\n");
    write(
        "app/.cargo/config.toml",
        "[source.crates-io]\nreplace-with = \"vendored\"\n[source.vendored]\ndirectory = \"vendor\"\n",
    );
    let manifest = "[package]\nname = \"twice\"\nversion = \"1.0.0\"\nedition = \"2021\"\n";
    let library = "pub fn twice(n: u32) -> u32 { 2 * n }\n";
    write("app/vendor/twice/Cargo.toml", manifest);
    write("app/vendor/twice/src/lib.rs", library);
    let (manifest, library) = (common::sha256(manifest.as_bytes()), common::sha256(library.as_bytes()));
    let sums = json!({"files": {"Cargo.toml": manifest, "src/lib.rs": library}, "package": "0".repeat(64)});
    write("app/vendor/twice/.cargo-checksum.json", &sums.to_string());
    for by in ways() {
        let home = Home::new(*by);
        let directory = policies(&home, *by, &root);
        let daemon = home.start(&["--policy-dir", directory.to_str().unwrap()]);
        in_daemon(&daemon, *by, &["rust-default", "rust-build"], &|work| {
            work.deliver(input.path());
            let bin = root.join("bin").display().to_string();
            let env = json!({"PATH": format!("{bin}:{PATH}"), "CARGO_HOME": "/workspace/.cargo-home"});
            let said = work.run_with(
                "cd app; cargo build --offline -j2 >&2; ./target/debug/app; cargo test --offline -q -j2 2>&1 | grep -c '1 passed'",
                json!({"env": env}),
            );
            assert_eq!(said, "42\n1\n");
        });
    }
}
