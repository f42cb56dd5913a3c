//! `trl run` and `trl shell`: a session without a daemon, in the caller's directory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{By, FLAG_UID, Home, ORDINARY_UID, is_root, ways};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;

/// A directory to call from, and a place of its own for what `trl` makes for itself.
struct Ground {
    home: Arc<Home>,
    here: PathBuf,
    temporary: PathBuf,
    by: By,
}

impl Ground {
    /// Who calls owns the directory; where that is root, an ordinary user does.
    fn new(by: By) -> Self {
        let home = Home::new(by);
        let (here, temporary) = (home.path().join("here"), home.path().join("temporary"));
        for path in [&here, &temporary] {
            fs::create_dir(path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
            if is_root() {
                chown(path, Some(ORDINARY_UID), Some(ORDINARY_UID)).unwrap();
            }
        }
        fs::write(here.join("kept"), "kept\n").unwrap();
        fs::set_permissions(here.join("kept"), fs::Permissions::from_mode(0o644)).unwrap();
        Self { home, here, temporary, by }
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.home.trl(arguments);
        command.current_dir(&self.here).env("TMPDIR", &self.temporary);
        command
    }

    /// Runs `trl` from the directory; afterwards nothing of its own is left.
    fn trl(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output().unwrap();
        assert_eq!(fs::read_dir(&self.temporary).unwrap().count(), 0, "{arguments:?} left something");
        output
    }

    /// `trl run` of a shell's line, by root as the directory's owner.
    fn run(&self, options: &[&str], line: &str) -> Output {
        let owner = ORDINARY_UID.to_string();
        let is_named = options.contains(&"--user") || self.by != By::Root || !is_root();
        let user: &[&str] = if is_named { &[] } else { &["--user", &owner] };
        let options = [user, options].concat();
        self.trl(&[&["run"], options.as_slice(), &["--", "/bin/sh", "-c", line]].concat())
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.here).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn good(output: Output) -> Output {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    output
}

#[test]
fn the_callers_directory_is_the_workspace() {
    for by in ways() {
        let ground = Ground::new(*by);
        let line = "echo hello from $(id -u); pwd; cat kept; echo new > made; ls .. ";
        let output = good(ground.run(&[], line));
        let here = ground.here.to_str().unwrap();
        assert_eq!(out(&output), format!("hello from 1000\n{here}\nkept\nhere\n"));
        let owner = fs::metadata(ground.here.join("made")).unwrap().uid();
        assert_eq!(owner, fs::metadata(&ground.here).unwrap().uid(), "{by:?}");
        assert_eq!(err(&output), "", "{by:?}");
        if *by == By::Root && is_root() {
            // Root that names nobody becomes nobody's equal: what is not its user's is only read, and it is said.
            let output = good(ground.trl(&["run", "--", "/bin/sh", "-c", "cat kept; ! touch other"]));
            assert_eq!(out(&output), "kept\n");
            let told = err(&output);
            assert!(
                told.contains("is only read") && told.contains(&format!("--user {ORDINARY_UID}")),
                "{told}"
            );
            assert_eq!(ground.names(), ["kept", "made"]);
        }
        // The host's other files are not there, and there is no network.
        // Where it lies below /home itself, of that there is the way to it.
        let homes = if ground.here.starts_with("/home") { "/var/log" } else { "/home" };
        let line = format!("ls ../temporary {homes} /root; cat /proc/net/dev | grep -v lo: | tail -n +3");
        let output = ground.run(&[], &line);
        assert_eq!(out(&output), "");
    }
}

#[test]
fn what_becomes_of_the_directory_can_be_chosen() {
    for by in ways() {
        let ground = Ground::new(*by);
        let user: &[&str] = if *by == By::Root && is_root() { &["--user", "1900000501"] } else { &[] };
        let run = |how: &str, line: &str| ground.run(&[user, &["--workspace", how]].concat(), line);
        let output = good(run("ro", "cat kept; ! touch made"));
        assert!(out(&output) == "kept\n" && err(&output).contains("Read-only"), "{output:?}");
        let output = good(run("overlay", "cat kept; touch made; rm kept; ls"));
        assert_eq!(out(&output), "kept\nmade\n");
        let options = [user, &["--workspace", "overlay", "--ro", "kept"]].concat();
        let output = good(ground.run(&options, "touch made && ! rm kept && ! echo x > kept"));
        assert!(err(&output).contains("Read-only") || err(&output).contains("busy"), "{output:?}");
        let output = good(run("private", "pwd; ls -A; touch made; ls"));
        assert_eq!(out(&output), "/workspace\nmade\n");
        let output = good(run("none", "pwd; ! ls /workspace; touch /tmp/x"));
        assert_eq!(out(&output), "/\n");
        assert_eq!(ground.names(), ["kept"]);
        good(run("rw", "touch made"));
        assert_eq!(ground.names(), ["kept", "made"]);
        assert_eq!(run("elsewhere", "true").status.code(), Some(2));
    }
}

#[test]
fn more_paths_are_the_callers_word() {
    for by in ways() {
        let ground = Ground::new(*by);
        let path = |name: &str| ground.home.path().join(name).to_str().unwrap().to_owned();
        for name in ["read", "write", "other"] {
            fs::create_dir(path(name)).unwrap();
            fs::write(format!("{}/file", path(name)), name).unwrap();
            if is_root() {
                chown(path(name), Some(ORDINARY_UID), None).unwrap();
            }
        }
        std::os::unix::fs::symlink("../read", ground.here.join("link")).unwrap();
        fs::create_dir(ground.here.join("sub")).unwrap();
        if is_root() {
            chown(ground.here.join("sub"), Some(ORDINARY_UID), None).unwrap();
        }
        let (read, write, other) = (path("read"), path("write"), path("other"));
        let options = ["--ro", "link", "--rw", &write, "--ro", "sub"];
        let line = format!(
            "cat {read}/file {write}/file && touch {write}/made here && ! touch {read}/made && ! touch sub/made && \
             ! mv sub moved && ! ls {other}"
        );
        let output = good(ground.run(&options, &line));
        assert_eq!(out(&output), "readwrite");
        assert!(Path::new(&write).join("made").exists() && ground.here.join("here").exists());
        for (options, expected) in [
            (["--ro", "/no/such/path"], "No such file"),
            (["--rw", "/proc/sys"], "/proc is the session's own"),
            (["--ro", "/etc/shadow"], "never shown"),
            (["--ro", "."], "it lies in the workspace"),
        ] {
            let output = ground.run(&options, "true");
            assert_eq!(output.status.code(), Some(125), "{options:?}");
            assert!(err(&output).contains(expected), "{options:?}: {}", err(&output));
        }
        let output = ground.run(&["--policy", "l1", "--ro", &read], "true");
        assert!(output.status.code() == Some(125) && err(&output).contains("POLICY_DENIED"), "{output:?}");
    }
}

#[test]
fn policy_and_limits_are_the_callers_word() {
    for by in ways() {
        let ground = Ground::new(*by);
        let output =
            good(ground.run(&["--limit", "nofile=77", "--limit", "cpu_s=7200"], "ulimit -n; ulimit -t"));
        assert_eq!(out(&output), "77\n7200\n");
        // Strict keeps changes apart, and says so.
        let output = good(ground.run(&["--policy", "strict"], "cat kept; ulimit -t; touch made"));
        assert_eq!(out(&output), "kept\n60\n");
        assert!(err(&output).contains("changes are gone"), "{}", err(&output));
        let output = good(ground.run(&["--policy", "l1"], "ls -d /etc/shadow; id -u"));
        assert!(out(&output).starts_with("/etc/shadow\n") && !out(&output).contains("\n0\n"), "{output:?}");
        assert_eq!(ground.names(), ["kept"]);
        for (options, expected) in [
            (&["--policy", "none-such"][..], "there is no policy \"none-such\""),
            (&["--policy", "strict", "--workspace", "rw"], "POLICY_DENIED"),
            (&["--policy", "l1", "--workspace", "ro"], "gives no file system of its own"),
            (&["--limit", "nofile"], "expected K=V"),
            (&["--limit", "files=7"], "rlimits.nofile"),
            (&["--limit", "nofile=many"], "expected a whole number"),
        ] {
            let output = ground.run(options, "true");
            assert_eq!(output.status.code(), Some(125), "{options:?} {output:?}");
            assert!(err(&output).contains(expected), "{options:?}: {}", err(&output));
        }
        let policies = ground.home.path().join("policies");
        fs::create_dir(&policies).unwrap();
        let own = "name = \"own\"\ndescription = \"ours\"\nextends = \"default\"\n[rlimits]\nnofile = 99\n";
        fs::write(policies.join("own.toml"), own).unwrap();
        let operator =
            if *by == By::Ordinary && is_root() { ORDINARY_UID } else { nix::unistd::geteuid().as_raw() };
        for (path, mode) in [(policies.clone(), 0o755), (policies.join("own.toml"), 0o644)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            chown(&path, Some(operator), None).unwrap();
        }
        let options = ["--policy-dir", policies.to_str().unwrap(), "--policy", "own"];
        assert_eq!(out(&good(ground.run(&options, "ulimit -n"))), "99\n");
        for flag in ["--ro", "--rw"] {
            let home = ground.home.path().to_str().unwrap();
            let output = ground.run(&[&options[..], &[flag, home]].concat(), "true");
            assert!(output.status.code() == Some(125) && err(&output).contains("daemon reads"), "{output:?}");
        }
        // What a policy is read from is in no workspace: the command could change the next one's.
        fs::rename(&policies, ground.here.join("policies")).unwrap();
        let options = ["--policy-dir", "policies", "--policy", "own"];
        let output = ground.run(&options, "true");
        assert!(output.status.code() == Some(125) && err(&output).contains("daemon reads"), "{output:?}");
    }
}

#[test]
fn exit_codes_are_the_commands_or_say_whose_they_are() {
    for by in ways() {
        let ground = Ground::new(*by);
        fs::write(ground.here.join("no-program"), "x").unwrap();
        for (arguments, code) in [
            (&["/bin/sh", "-c", "exit 7"][..], 7),
            (&["/bin/sh", "-c", "kill -TERM $$"], 143),
            (&["no-such-program"], 127),
            (&["/no/such/program"], 127),
            (&["./no-program"], 126),
        ] {
            let output = ground.trl(&[&["run", "--"], arguments].concat());
            assert_eq!(output.status.code(), Some(code), "{arguments:?} {output:?}");
        }
        assert_eq!(ground.trl(&["run", "--cwd", "/no/such/place", "--", "true"]).status.code(), Some(125));
        assert_eq!(ground.trl(&["run", "--no-such-flag", "--", "true"]).status.code(), Some(2));
        assert_eq!(ground.trl(&["run"]).status.code(), Some(2));
        assert_eq!(ground.trl(&["run", "--timeout", "0.2", "--", "sleep", "30"]).status.code(), Some(143));
    }
}

#[test]
fn a_directory_that_is_no_workspace_is_said_to_be_none() {
    for by in ways() {
        let ground = Ground::new(*by);
        for place in ["/", "/usr/share", "/tmp", "/proc"] {
            let mut command = ground.command(&["run", "--", "/bin/sh", "-c", "pwd; touch made"]);
            let output = good(command.current_dir(place).output().unwrap());
            assert_eq!(out(&output), "/workspace\n", "{place}");
            assert!(err(&output).contains(&format!("{place} is no workspace")), "{}", err(&output));
            let mut command = ground.command(&["run", "--workspace", "rw", "--", "/bin/sh", "-c", "true"]);
            assert_eq!(command.current_dir(place).output().unwrap().status.code(), Some(125), "{place}");
        }
        let output = good(ground.trl(&["run", "--cwd", "/usr/bin", "--", "/bin/pwd"]));
        assert_eq!(out(&output), "/usr/bin\n");
    }
}

/// What root is to do where nobody but root may write, or read.
#[test]
fn roots_own_directory_is_read_or_not_seen_and_that_is_said() {
    if !is_root() {
        eprintln!("skipped: only root has root's directories; an ordinary user's are in the other tests");
        return;
    }
    let ground = Ground::new(By::Root);
    chown(&ground.here, Some(0), Some(0)).unwrap();
    let line = "echo hello from $(id -u); pwd; cat kept; touch made";
    let output = ground.run(&[], line);
    let here = ground.here.to_str().unwrap();
    assert_eq!(out(&output), format!("hello from 1000\n{here}\nkept\n"));
    assert!(
        err(&output).contains("no command runs as root") && err(&output).contains("Read-only"),
        "{output:?}"
    );
    let output = good(ground.run(&["--workspace", "overlay"], line));
    assert_eq!(out(&output), format!("hello from 1000\n{here}\nkept\n"));
    fs::set_permissions(&ground.here, fs::Permissions::from_mode(0o700)).unwrap();
    let output = ground.run(&[], "echo hello from $(id -u); pwd; ls -A");
    assert_eq!(out(&output), "hello from 1000\n/workspace\n");
    assert!(err(&output).contains("cannot read"), "{output:?}");
    assert_eq!(ground.names(), ["kept"]);
    // Somebody who was named can be given it.
    chown(&ground.here, Some(FLAG_UID), Some(FLAG_UID)).unwrap();
    let output = good(ground.run(&["--user", &FLAG_UID.to_string()], "touch made"));
    assert!(err(&output).is_empty(), "{output:?}");
    assert_eq!(fs::metadata(ground.here.join("made")).unwrap().uid(), FLAG_UID);
}

#[test]
fn an_entry_that_could_not_be_protected_is_named_when_the_command_made_it() {
    for by in ways() {
        let ground = Ground::new(*by);
        let output = good(ground.run(&[], "mkdir -p .git/hooks .git/refs"));
        assert!(err(&output).contains("here/.git/hooks was not there before"), "{}", err(&output));
        assert!(!err(&output).contains(".git/config"), "{}", err(&output));
        // Now it is there, and protected.
        let output = ground.run(&[], "touch .git/hooks/pre-commit");
        assert!(err(&output).contains("Read-only") && !err(&output).contains("before"), "{}", err(&output));
    }
}

#[test]
fn a_host_that_cannot_give_the_policy_gives_no_session() {
    let ground = Ground::new(By::Ordinary);
    let trl = ground.home.trl(&[]).get_program().to_owned();
    // In a user namespace in which only so many others may be made.
    let inside = "echo $1 > /proc/sys/user/max_user_namespaces && exec \"$0\" run --policy $2 -- id -u";
    let run = |most: &str, policy: &str| {
        let mut command =
            ground.home.shell("exec unshare -U --map-user=1000 --map-group=1000 --keep-caps sh -c \"$@\"");
        command.args(["-", inside]).arg(&trl).args([most, policy]).output().unwrap()
    };
    let output = run("0", "default");
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(125), ""), "{output:?}");
    let said = err(&output);
    assert!(said.contains("ISOLATION_UNAVAILABLE") && said.contains("user.max_user_namespaces"), "{said}");
    assert_eq!(out(&good(run("0", "l1"))), "1000\n");
    assert_eq!(out(&good(run("100", "default"))), "1000\n");
}

#[test]
fn a_shell_reads_its_lines_from_the_caller() {
    for by in ways() {
        let ground = Ground::new(*by);
        let mut command = ground.command(&["shell", "--env", "K=v"]);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        let lines = b"echo $K $((1 + 2))\ncd /tmp\npwd\ncat /etc/shadow\nexit 5\n";
        child.stdin.take().unwrap().write_all(lines).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(5), "{output:?}");
        assert_eq!(out(&output), "v 3\n/tmp\n");
        let output = ground.trl(&["shell", "--workspace", "private", "--shell", "/bin/no-such-shell"]);
        assert_eq!(output.status.code(), Some(127), "{output:?}");
    }
}
