//! Workspaces: what each kind gives and what it keeps, from outside and from within.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{By, Client, Daemon, FLAG_UID, Home, ORDINARY_UID, is_root, ways, within};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Whom sessions have outside.
fn user(by: By) -> u32 {
    match by {
        By::Ordinary if is_root() => ORDINARY_UID,
        By::Root if is_root() => FLAG_UID,
        _ => nix::unistd::geteuid().as_raw(),
    }
}

/// A home with a root, and in that a project with a repository.
struct Ground {
    home: Arc<Home>,
    root: PathBuf,
    project: PathBuf,
    by: By,
}

impl Ground {
    fn new(by: By) -> Self {
        let home = Home::new(by);
        let root = home.path().join("roots");
        let project = root.join("project");
        let ground = Self { home, project, root, by };
        ground.directory(&ground.root);
        ground.directory(&ground.project);
        ground.directory(&ground.project.join("sub"));
        ground.file(&ground.project.join("sub/kept"), "kept");
        ground.file(&ground.project.join("changed"), "before");
        ground.directory(&ground.root.join("bare"));
        ground.file(&ground.home.path().join("secret"), "outside-canary");
        for (to, name) in [("/etc", "etc"), ("../../secret", "secret"), ("..", "up"), ("sub", "own")] {
            symlink(to, ground.project.join(name)).unwrap();
        }
        symlink(&ground.project, ground.root.join("link")).unwrap();
        ground
    }

    /// As [`Self::new`], and the project is a repository.
    fn repository(by: By) -> Self {
        let ground = Self::new(by);
        let git = ground.project.join(".git");
        ground.directory(&git);
        ground.directory(&git.join("hooks"));
        ground.file(&git.join("hooks/pre-commit"), "the host's");
        ground.file(&git.join("config"), "[core]");
        ground
    }

    fn own(&self, path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        if is_root() {
            chown(path, Some(user(self.by)), Some(user(self.by))).unwrap();
        }
    }

    fn directory(&self, path: &Path) {
        fs::create_dir(path).unwrap();
        self.own(path, 0o755);
    }

    fn file(&self, path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        self.own(path, 0o644);
    }

    fn start(&self, more: &[&str]) -> Daemon {
        let root = self.root.to_str().unwrap();
        self.home.start(&[&["--workspace-root", root], more].concat())
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn asking(mode: &str, path: &Path) -> Value {
    json!({"policy": "default", "workspace": {"mode": mode, "path": text(path)}})
}

/// Runs a command line, which must exit so.
fn exits(client: &mut Client, session: &str, command: &str, code: i32) -> String {
    let outcome = client.run(session, command, json!({}));
    assert_eq!(outcome["exit_code"], code, "{command}: {outcome}");
    format!("{}{}", outcome["stdout"].as_str().unwrap(), outcome["stderr"].as_str().unwrap())
}

fn end(client: &mut Client, session: &str) {
    client.ok("session.destroy", json!({"session_id": session, "force": true}));
}

/// What is at a path: mode, owner, inode, times and content.
type Looks = (u32, u32, u64, i64, i64, Vec<u8>);

/// Everything beneath a directory.
fn picture(directory: &Path) -> BTreeMap<PathBuf, Looks> {
    let mut all = BTreeMap::new();
    let mut left = vec![directory.to_path_buf()];
    while let Some(path) = left.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let content = if found.is_file() {
            fs::read(&path).unwrap()
        } else if found.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else if !found.is_dir() {
            Vec::new()
        } else {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        };
        let looks = (found.mode(), found.uid(), found.ino(), found.mtime(), found.mtime_nsec(), content);
        all.insert(path, looks);
    }
    all
}

/// Mounts of these processes that have something to do with that directory.
fn mounts(directory: &Path, pids: &[i32]) -> Vec<String> {
    let of = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let all: String = pids.iter().map(of).collect();
    all.lines().filter(|line| line.contains(text(directory))).map(str::to_owned).collect()
}

#[test]
fn the_hosts_own_directory_is_worked_in_and_nothing_beside_it() {
    for by in ways() {
        let ground = Ground::new(*by);
        let daemon = ground.start(&[]);
        let mut client = daemon.connect();
        let made = client.ok("session.create", asking("host", &ground.project));
        let path = text(&ground.project);
        assert_eq!(made["working_dir"], path);
        assert_eq!(made["workspace"], json!({"mode": "host", "path": path, "read_only": false}));
        assert_eq!(
            made["isolation"]["layers"]
                .as_array()
                .unwrap()
                .iter()
                .find(|layer| layer["layer"] == "filesystem")
                .unwrap()["enforced"],
            "full"
        );
        let session = made["session_id"].as_str().unwrap().to_owned();
        let info = client.ok("session.info", json!({"session_id": session}));
        assert_eq!(info["workspace"], made["workspace"]);
        let root = text(&ground.root);
        assert_eq!(client.ok("system.info", json!({}))["workspace_roots"], json!([root]));
        let seen =
            exits(&mut client, &session, "pwd; cat sub/kept own/kept; echo new > made; ls -A .. ../..", 0);
        assert!(seen.starts_with(&format!("{path}\nkeptkept")), "{seen}");
        assert!(!seen.contains("bare") && !seen.contains("secret") && !seen.contains("run"), "{seen}");
        assert_eq!(fs::read_to_string(ground.project.join("made")).unwrap(), "new\n");
        assert_eq!(fs::metadata(ground.project.join("made")).unwrap().uid(), user(*by));
        // Links lead where the session's own root has something, and out of it nowhere.
        for command in
            ["cat secret", "cat up/../secret", "cat etc/shadow", "ls up/bare", "mount --bind / sub"]
        {
            let outcome = client.run(&session, command, json!({}));
            assert_ne!(outcome["exit_code"], 0, "{command}: {outcome}");
        }
        assert!(ground.project.join("secret").exists(), "the control is not there");
        end(&mut client, &session);
        assert_eq!(fs::read_to_string(ground.project.join("made")).unwrap(), "new\n");
    }
}

#[test]
fn what_a_workspace_protects_is_no_workspace_itself() {
    for by in ways() {
        let ground = Ground::repository(*by);
        let daemon = ground.start(&[]);
        let mut client = daemon.connect();
        let git = ground.project.join(".git");
        ground.directory(&git.join("hooks/more"));
        ground.directory(&git.join("objects"));
        for path in [git.clone(), git.join("hooks"), git.join("hooks/more")] {
            let error = client.error("session.create", asking("host", &path));
            assert_eq!(
                (error["code"].as_str(), error["detail"]["field"].as_str()),
                (Some("POLICY_DENIED"), Some("workspace")),
                "{error}"
            );
        }
        let mut read_only = asking("host", &git);
        read_only["workspace"]["read_only"] = json!(true);
        for allowed in [read_only, asking("overlay", &git), asking("host", &git.join("objects"))] {
            let made = client.ok("session.create", allowed);
            end(&mut client, made["session_id"].as_str().unwrap());
        }
    }
}

#[test]
fn the_command_line_asks_for_the_same() {
    for by in ways() {
        let ground = Ground::new(*by);
        let daemon = ground.start(&[]);
        let socket = ground.home.socket();
        let trl = |arguments: &[&str]| {
            let mut command = ground.home.trl(&["--socket", text(&socket)]);
            let output = command.args(arguments).output().unwrap();
            let both = [output.stdout, output.stderr].concat();
            (output.status.code().unwrap(), String::from_utf8(both).unwrap())
        };
        let host = format!("host:{}", text(&ground.project));
        let create = ["session", "create", "--workspace", &host];
        let (code, id) = trl(&[&create[..], &["--read-only", "--limit", "nofile=77"]].concat());
        assert_eq!(code, 0, "{id}");
        let said = trl(&["exec", id.trim(), "--", "sh", "-c", "pwd; ulimit -n; ! touch x"]).1;
        assert!(said.starts_with(&format!("{}\n77\n", text(&ground.project))), "{said}");
        assert!(said.contains("Read-only"), "{said}");
        assert_eq!(trl(&["session", "destroy", "--force", id.trim()]).0, 0);
        for (more, expected) in [
            (["--limit", "nofile=1025"], "POLICY_DENIED"),
            (["--limit", "nofile"], "expected K=V"),
            (["--policy", "strict"], "POLICY_DENIED"),
        ] {
            let (code, said) = trl(&[&create[..], &more].concat());
            assert!(code == 125 && said.contains(expected), "{code} {said}");
        }
        let (code, said) = trl(&["session", "create", "--workspace", "host:/etc"]);
        assert!(code == 125 && said.contains("--workspace-root"), "{code} {said}");
        drop(daemon);
    }
}

#[test]
fn read_only_is_only_read() {
    for by in ways() {
        let ground = Ground::new(*by);
        let daemon = ground.start(&[]);
        let mut client = daemon.connect();
        let before = picture(&ground.root);
        for mode in ["host", "overlay"] {
            let mut ask = asking(mode, &ground.project);
            ask["workspace"]["read_only"] = json!(true);
            let session = client.session(ask);
            assert_eq!(exits(&mut client, &session, "cat sub/kept; touch /tmp/elsewhere", 0), "kept");
            for command in ["touch made", "echo x > changed", "rm changed", "mkdir sub/d", "chmod 0 changed"]
            {
                let said = exits_not(&mut client, &session, command);
                assert!(said.contains("Read-only file system"), "{mode} {command}: {said}");
            }
            end(&mut client, &session);
        }
        assert_eq!(picture(&ground.root), before);
    }
}

fn exits_not(client: &mut Client, session: &str, command: &str) -> String {
    let outcome = client.run(session, command, json!({}));
    assert_ne!(outcome["exit_code"], 0, "{command}: {outcome}");
    outcome["stderr"].as_str().unwrap().to_owned()
}

#[test]
fn a_working_directory_within_a_root_is_bound_at_its_place() {
    for by in ways() {
        let ground = Ground::new(*by);
        let daemon = ground.start(&[]);
        let mut client = daemon.connect();
        let sub = ground.project.join("sub");
        let made = client.ok("session.create", json!({"working_dir": text(&sub)}));
        assert_eq!((&made["workspace"]["mode"], &made["working_dir"]), (&json!("host"), &json!(text(&sub))));
        let session = made["session_id"].as_str().unwrap().to_owned();
        exits(&mut client, &session, "cat kept && echo x > here && ! ls ../changed", 0);
        assert!(sub.join("here").exists());
        // Within the workspace it may begin further down.
        let mut ask = asking("host", &ground.project);
        ask["working_dir"] = json!(text(&sub));
        let session = client.session(ask);
        exits(&mut client, &session, "cat kept ../changed", 0);
        // Under a policy without a file system of its own it is the host's path, as ever.
        let session = client.session(json!({"policy": "l1", "working_dir": text(&sub)}));
        exits(&mut client, &session, "cat kept ../changed ../../../secret", 0);
    }
}

#[test]
fn a_private_workspace_is_the_sessions_own_and_none_is_none() {
    for by in ways() {
        let ground = Ground::new(*by);
        let daemon = ground.start(&[]);
        let mut client = daemon.connect();
        for ask in [json!({}), json!({"workspace": "private"}), json!({"workspace": {"mode": "private"}})] {
            let made = client.ok("session.create", ask);
            assert_eq!(
                made["workspace"],
                json!({"mode": "private", "path": "/workspace", "read_only": false})
            );
            let session = made["session_id"].as_str().unwrap().to_owned();
            let seen = exits(&mut client, &session, "pwd; ls -A; echo x > own", 0);
            assert_eq!(seen, "/workspace\n", "something of an earlier session's is there");
            end(&mut client, &session);
        }
        let made = client.ok("session.create", json!({"workspace": "none"}));
        assert_eq!((&made["workspace"], &made["working_dir"]), (&json!({"mode": "none"}), &json!("/")));
        let session = made["session_id"].as_str().unwrap().to_owned();
        exits(&mut client, &session, "! ls /workspace && ! touch /x && touch /tmp/x", 0);
    }
}

#[test]
fn what_is_not_allowed_is_refused_and_nothing_is_made() {
    for by in ways() {
        let ground = Ground::new(*by);
        let evil = ground.home.path().join("roots-evil");
        ground.directory(&evil);
        let daemon = ground.start(&[]);
        let mut client = daemon.connect();
        let project = text(&ground.project).to_owned();
        let denied = "POLICY_DENIED";
        let invalid = "INVALID_PARAMS";
        for mode in ["host", "overlay"] {
            for (path, code) in [
                ("/", invalid),
                ("/etc", denied),
                ("/home", denied),
                ("/proc/self/cwd", denied),
                (text(&evil), denied),
                (text(ground.home.path()), denied),
                (&format!("{project}/../../secret"), invalid),
                (&format!("{project}/.."), invalid),
                (&format!("{project}//sub"), invalid),
                (&format!("{project}/./sub"), invalid),
                (&format!("{project}/"), invalid),
                (text(&ground.root.join("link")), denied),
                (&format!("{}/link/sub", text(&ground.root)), denied),
                (&format!("{project}/etc"), denied),
                (&format!("{project}/up/bare"), denied),
                (&format!("{project}/changed"), invalid),
                (&format!("{project}/absent"), invalid),
                ("roots/project", invalid),
            ] {
                let ask = json!({"workspace": {"mode": mode, "path": path}});
                assert_eq!(client.code("session.create", ask), code, "{by:?} {mode} {path}");
            }
        }
        for ask in [
            json!({"workspace": "host"}),
            json!({"workspace": "elsewhere"}),
            json!({"workspace": {"path": project}}),
            json!({"workspace": {"mode": "host", "path": project, "writable": true}}),
            json!({"workspace": {"mode": "private", "path": project}}),
            json!({"workspace": 7}),
        ] {
            assert_eq!(client.code("session.create", ask.clone()), invalid, "{ask}");
        }
        // The policy's word holds besides the operator's.
        let mut ask = asking("host", &ground.project);
        for policy in ["strict", "l1"] {
            ask["policy"] = json!(policy);
            assert_eq!(client.code("session.create", ask.clone()), denied, "{policy}");
        }
        // A directory of the host that is not shown, be it there or not; and one that nobody has.
        for (path, code) in [
            (text(&evil), denied),
            ("/home/nobody-has-this", denied),
            ("/tmp/no-such-directory", denied),
            ("/no/such/directory", invalid),
            ("/usr/no-such-directory", invalid),
            ("relative", invalid),
        ] {
            let ask = json!({"policy": "default", "working_dir": path});
            assert_eq!(client.code("session.create", ask), code, "working_dir {path}");
        }
        for path in ["/", "/tmp", "/usr/bin", "/workspace", "/var", "/proc"] {
            let session = client.session(json!({"policy": "default", "working_dir": path}));
            end(&mut client, &session);
        }
        let listed = client.ok("session.list", json!({}));
        assert_eq!(listed["sessions"], json!([]));
        assert!(daemon.inits().is_empty());
        let control = client.session(asking("host", &ground.project));
        end(&mut client, &control);
    }
}

#[test]
fn without_a_root_no_directory_of_the_hosts_is_given() {
    for by in ways() {
        let ground = Ground::new(*by);
        let daemon = ground.home.start(&[]);
        let mut client = daemon.connect();
        for mode in ["host", "overlay"] {
            let error = client.error("session.create", asking(mode, &ground.project));
            assert_eq!(error["code"], "POLICY_DENIED");
            assert!(error["message"].as_str().unwrap().contains("--workspace-root"), "{error}");
        }
        let error = client.error("session.create", json!({"working_dir": text(&ground.project)}));
        assert_eq!(error["code"], "POLICY_DENIED");
        assert!(error["message"].as_str().unwrap().contains("--workspace-root"), "{error}");
    }
}

#[test]
fn what_the_daemon_reads_is_in_no_workspace() {
    for by in ways() {
        let ground = Ground::new(*by);
        let secrets = ground.root.join("secrets");
        ground.directory(&secrets);
        ground.directory(&secrets.join("beside"));
        let policies = ground.root.join("policies");
        ground.directory(&policies);
        let operator = if *by == By::Ordinary { user(*by) } else { nix::unistd::geteuid().as_raw() };
        let file = secrets.join("env");
        ground.file(&file, "TOKEN=canary\n");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        for path in [&policies, &file] {
            chown(path, Some(operator), None).unwrap();
        }
        let home = text(ground.home.path());
        let more = ["--workspace-root", home, "--env-file", text(&file), "--policy-dir", text(&policies)];
        let daemon = ground.start(&more);
        let mut client = daemon.connect();
        for path in [&policies, &secrets, &ground.root, &ground.home.runtime(), ground.home.path()] {
            for mode in ["host", "overlay"] {
                let error = client.error("session.create", asking(mode, path));
                assert_eq!(error["code"], "POLICY_DENIED", "{by:?} {path:?}");
                assert!(error["message"].as_str().unwrap().contains("daemon reads"), "{error}");
            }
        }
        for path in [&ground.project, &secrets.join("beside")] {
            let session = client.session(asking("host", path));
            end(&mut client, &session);
        }
    }
}

#[test]
fn a_root_that_cannot_be_one_starts_no_daemon() {
    let ground = Ground::new(By::Ordinary);
    let (project, sub) = (text(&ground.project), ground.project.join("sub"));
    let file = ground.project.join("changed");
    for (arguments, expected) in [
        (vec!["--workspace-root", "/"], "the whole host"),
        (vec!["--workspace-root", "/proc"], "/proc is the session's own"),
        (vec!["--workspace-root", "/run"], "/run is the session's own"),
        (vec!["--workspace-root", text(&file)], "no directory"),
        (vec!["--workspace-root", "/no/such/place"], "No such file"),
        (vec!["--policy-dir", project, "--workspace-root", text(&sub)], "which the daemon reads"),
    ] {
        let output = ground.home.serve(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(expected), "{arguments:?}: {said}");
        assert!(!ground.home.runtime().exists());
    }
    drop(ground.home.start(&["--workspace-root", text(&ground.root.join("link"))]));
}

#[test]
fn an_overlay_leaves_the_directory_as_it_is_and_each_session_its_own_changes() {
    for by in ways() {
        let ground = Ground::repository(*by);
        let daemon = ground.start(&[]);
        let mut client = daemon.connect();
        let before = picture(ground.root.as_path());
        let sessions: Vec<_> = (0..2).map(|_| client.session(asking("overlay", &ground.project))).collect();
        for (number, session) in sessions.iter().enumerate() {
            let change = format!(
                "echo {number} > made && echo {number} >> changed && rm sub/kept && mv sub gone && mkdir sub && \
                 chmod 0600 changed && ln -s x y && echo {number} > .git/hooks/pre-commit && rm etc"
            );
            exits(&mut client, session, &change, 0);
        }
        for (number, session) in sessions.iter().enumerate() {
            let seen = exits(&mut client, session, "cat made changed .git/hooks/pre-commit; ls sub gone", 0);
            assert_eq!(seen, format!("{number}\nbefore{number}\n{number}\ngone:\n\nsub:\n"));
        }
        let third = client.session(asking("overlay", &ground.project));
        let seen = exits(&mut client, &third, "cat changed sub/kept .git/hooks/pre-commit; ls -A", 0);
        assert!(seen.starts_with("beforekeptthe host's") && !seen.contains("made"), "{seen}");
        assert_eq!(picture(&ground.root), before, "while sessions live");
        for session in sessions.iter().chain([&third]) {
            end(&mut client, session);
        }
        assert_eq!(picture(&ground.root), before, "after them");
    }
}

#[test]
fn what_a_session_writes_is_bounded() {
    for by in ways() {
        let ground = Ground::new(*by);
        let daemon = ground.start(&[]);
        let mut client = daemon.connect();
        let limits = json!({"workspace.size": "1M", "workspace.inodes": 64, "filesystem.tmp_size": 1 << 20});
        for mode in ["private", "overlay"] {
            let mut ask = asking(mode, &ground.project);
            if mode == "private" {
                ask["workspace"] = json!("private");
            }
            ask["limits"] = limits.clone();
            let session = client.session(ask.clone());
            exits(&mut client, &session, "head -c 524288 /dev/zero > fits && rm fits", 0);
            for place in [".", "/tmp"] {
                let said =
                    exits_not(&mut client, &session, &format!("head -c 4194304 /dev/zero > {place}/full"));
                assert!(said.contains("No space left on device"), "{mode}: {said}");
                exits(&mut client, &session, &format!("rm {place}/full"), 0);
            }
            let said = exits_not(&mut client, &session, "for i in $(seq 99); do : > f$i || exit 1; done");
            assert!(said.contains("No space left") || said.contains("cannot create"), "{mode}: {said}");
            // What one session filled is another's not.
            let other = client.session(ask);
            exits(&mut client, &other, "head -c 524288 /dev/zero > fits", 0);
            end(&mut client, &session);
            end(&mut client, &other);
        }
        assert!(!ground.project.join("fits").exists());
    }
}

const GUARDED: &str = "name = \"guarded\"\ndescription = \"no gaps\"\nextends = \"default\"\n[workspace]\nprotect_absent = \"refuse\"\n";

#[test]
fn protected_entries_cannot_be_written_removed_or_replaced() {
    for by in ways() {
        let ground = Ground::repository(*by);
        let policies = ground.home.path().join("policies");
        ground.directory(&policies);
        ground.file(&policies.join("guarded.toml"), GUARDED);
        if *by == By::Root {
            for path in [&policies, &policies.join("guarded.toml")] {
                chown(path, Some(nix::unistd::geteuid().as_raw()), None).unwrap();
            }
        }
        let daemon = ground.start(&["--policy-dir", text(&policies)]);
        let mut client = daemon.connect();
        let before = picture(&ground.project.join(".git/hooks"));
        for policy in ["default", "guarded"] {
            let mut ask = asking("host", &ground.project);
            ask["policy"] = json!(policy);
            let session = client.session(ask);
            for command in [
                "echo x > .git/hooks/pre-commit",
                "echo x > .git/hooks/post-commit",
                "rm .git/hooks/pre-commit",
                "chmod 0777 .git/hooks/pre-commit",
                "echo x >> .git/config",
                "rm .git/config",
                "echo x > new && mv new .git/config",
                "ln -f changed .git/config",
                "rmdir .git/hooks",
                "mv .git/hooks .git/h",
                "mv .git .g",
                "rm -rf .git/hooks",
                "umount .git/hooks",
            ] {
                let outcome = client.run(&session, command, json!({}));
                assert_ne!(outcome["exit_code"], 0, "{policy} {by:?}: {command}: {outcome}");
            }
            exits(&mut client, &session, "cat .git/config .git/hooks/pre-commit && echo x > .git/index", 0);
            exits(&mut client, &session, "mkdir -p .git/refs && echo x > .git/refs/a && rm .git/index", 0);
            end(&mut client, &session);
        }
        assert_eq!(picture(&ground.project.join(".git/hooks")), before);
        assert_eq!(fs::read_to_string(ground.project.join(".git/config")).unwrap(), "[core]");
        // Of what is not there: no session, or only one whose changes do not outlive it, and nothing is left.
        let bare = ground.root.join("bare");
        let before = picture(&bare);
        let mut ask = asking("host", &bare);
        ask["policy"] = json!("guarded");
        let error = client.error("session.create", ask.clone());
        assert_eq!(error["code"], "POLICY_DENIED");
        assert!(error["message"].as_str().unwrap().contains(".git/config"), "{error}");
        for (mode, read_only) in [("overlay", false), ("host", true)] {
            ask["workspace"] = json!({"mode": mode, "path": text(&bare), "read_only": read_only});
            let session = client.session(ask.clone());
            client.run(&session, "mkdir -p .git/hooks && echo x > .git/hooks/pre-commit", json!({}));
            end(&mut client, &session);
        }
        assert_eq!(picture(&bare), before);
        // `leave` is the gap that the documentation names; no placeholder is put there.
        let session = client.session(asking("host", &bare));
        exits(&mut client, &session, "ls -A; mkdir -p .git/hooks", 0);
        end(&mut client, &session);
    }
}

#[test]
fn what_stands_in_the_place_of_a_protected_directory_is_protected_too() {
    for by in ways() {
        let ground = Ground::new(*by);
        let (worktree, linked) = (ground.root.join("worktree"), ground.root.join("linked"));
        ground.directory(&worktree);
        ground.file(&worktree.join(".git"), "gitdir: ../project/.git/worktrees/a");
        ground.directory(&linked);
        symlink("../project", linked.join(".git")).unwrap();
        let daemon = ground.start(&[]);
        let mut client = daemon.connect();
        let session = client.session(asking("host", &worktree));
        for command in ["echo x > .git", "rm .git", "mv .git g", "touch a && mv a .git", "ln -sf /tmp .git"] {
            let outcome = client.run(&session, command, json!({}));
            assert_ne!(outcome["exit_code"], 0, "{by:?}: {command}: {outcome}");
        }
        exits(&mut client, &session, "grep worktrees .git && touch b", 0);
        end(&mut client, &session);
        let error = client.error("session.create", asking("host", &linked));
        assert_eq!(error["code"], "POLICY_DENIED");
        assert!(error["message"].as_str().unwrap().contains(".git is a symbolic link"), "{error}");
        let session = client.session(asking("overlay", &linked));
        end(&mut client, &session);
    }
}

#[test]
fn a_directory_that_is_swapped_for_a_link_leads_nowhere() {
    for by in ways() {
        let ground = Ground::new(*by);
        let outside = ground.home.path().join("outside");
        ground.directory(&outside);
        ground.file(&outside.join("marker"), "outside-canary");
        let daemon = ground.start(&[]);
        let mut client = daemon.connect();
        let (place, real, link) =
            (ground.root.join("swapped"), ground.root.join("real"), ground.root.join("to-outside"));
        ground.directory(&real);
        ground.directory(&real.join("in"));
        symlink(&outside, &link).unwrap();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let swapper = {
            let (stop, place, real, link) = (Arc::clone(&stop), place.clone(), real.clone(), link.clone());
            std::thread::spawn(move || {
                let mut swaps = 0u32;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for from in [&real, &link] {
                        fs::rename(from, &place).unwrap();
                        std::thread::yield_now();
                        fs::rename(&place, from).unwrap();
                    }
                    swaps += 1;
                }
                swaps
            })
        };
        let (mut made, mut refused) = (0, 0);
        for round in 0..common::times(150, 3000) {
            let mode = ["host", "overlay"][round % 2];
            let mut answer = client.call("session.create", asking(mode, &place));
            if answer["ok"] == false {
                let code = answer["error"]["code"].as_str().unwrap().to_owned();
                // It was gone or a link at the one moment or the other: the init's own look says so by the root.
                assert!(
                    ["POLICY_DENIED", "INVALID_PARAMS", "ISOLATION_UNAVAILABLE", "INTERNAL_ERROR"]
                        .contains(&code.as_str()),
                    "{answer}"
                );
                refused += 1;
                continue;
            }
            made += 1;
            let session = answer["data"]["session_id"].take().as_str().unwrap().to_owned();
            let seen = client.run(&session, "ls; cat marker", json!({}));
            assert!(
                !seen.to_string().contains("marker\\n") && !seen.to_string().contains("canary"),
                "{by:?} {seen}"
            );
            end(&mut client, &session);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let swaps = swapper.join().unwrap();
        eprintln!("{by:?}: {made} made, {refused} refused, {swaps} swaps");
        assert!(
            refused > 0 && swaps > 100,
            "nothing was tried: {made} made, {refused} refused, {swaps} swaps"
        );
        // The last refusal's init goes after the answer.
        assert!(common::within(std::time::Duration::from_secs(5), || daemon.inits().is_empty()));
    }
}

#[test]
fn limits_are_narrowed_and_never_widened() {
    for by in ways() {
        let ground = Ground::new(*by);
        let daemon = ground.home.start(&[]);
        let mut client = daemon.connect();
        let digest = client.ok("policy.show", json!({"name": "default"}))["digest"].clone();
        let limits = json!({"rlimits.cpu_s": 9, "nofile": 77, "as_bytes": "4G", "fsize_bytes": "1M",
            "max_running_execs": 1, "filesystem.shm_size": "1M"});
        let made = client.ok("session.create", json!({"policy": "default", "limits": limits}));
        assert_eq!(made["policy_digest"], digest);
        let session = made["session_id"].as_str().unwrap().to_owned();
        let seen = exits(
            &mut client,
            &session,
            "ulimit -t; ulimit -n; ulimit -v; df -k --output=size /dev/shm | tail -1",
            0,
        );
        assert_eq!(seen.split_ascii_whitespace().collect::<Vec<_>>(), ["9", "77", "4194304", "1024"]);
        exits_not(&mut client, &session, "head -c 2097152 /dev/zero > big");
        client.start(&session, "sleep 30", json!({}));
        assert_eq!(
            client.code("exec.run", json!({"session_id": session, "command": "true"})),
            "SESSION_BUSY"
        );
        end(&mut client, &session);
        // The next session has the policy's own again.
        let session = client.session(json!({"policy": "default"}));
        assert_eq!(exits(&mut client, &session, "ulimit -t; ulimit -n", 0), "300\n1024\n");
        end(&mut client, &session);
        for (limits, name, maximum) in [
            (json!({"rlimits.cpu_s": 301}), "rlimits.cpu_s", 300u64),
            (json!({"workspace.size": "1T"}), "workspace.size", 512 << 20),
            (json!({"nproc": 100_000}), "rlimits.nproc", 512),
        ] {
            let error = client.error("session.create", json!({"policy": "default", "limits": limits}));
            assert_eq!(error["code"], "POLICY_DENIED", "{error}");
            assert_eq!(
                (&error["detail"]["limit"], &error["detail"]["maximum"]),
                (&json!(name), &json!(maximum))
            );
            assert!(error["message"].as_str().unwrap().contains(name));
        }
        for limits in [
            json!({"no_such_limit": 1}),
            json!({"rlimits.cpu_s": 0}),
            json!({"rlimits.cpu_s": -1}),
            json!({"rlimits.cpu_s": 1.5}),
            json!({"rlimits.cpu_s": null}),
            json!({"workspace.size": "value-canary"}),
            json!({"cpu_s": 1, "rlimits.cpu_s": 2}),
            json!([1]),
            json!("value-canary"),
        ] {
            let error = client.error("session.create", json!({"limits": limits}));
            assert_eq!(error["code"], "INVALID_PARAMS", "{limits} {error}");
            assert!(!error.to_string().contains("canary"), "{error}");
        }
    }
}

#[test]
fn nothing_is_left_mounted_or_on_disk() {
    for by in ways() {
        let ground = Ground::repository(*by);
        let mut daemon = ground.start(&[]);
        let mut client = daemon.connect();
        let before = picture(ground.home.path());
        for mode in ["host", "overlay"] {
            let session = client.session(asking(mode, &ground.project));
            exits(&mut client, &session, "cat changed", 0);
            assert!(!mounts(&ground.project, &daemon.inits()).is_empty(), "the control is not mounted");
            end(&mut client, &session);
        }
        let left = [daemon.pid(), daemon.launcher(), i32::try_from(std::process::id()).unwrap()];
        assert_eq!(mounts(ground.home.path(), &left), [""; 0]);
        assert!(daemon.inits().is_empty());
        assert_eq!(picture(ground.home.path()), before);
        // Also where the daemon goes without ending its sessions itself.
        let session = client.session(asking("overlay", &ground.project));
        exits(&mut client, &session, "echo x > made", 0);
        let inits = daemon.inits();
        common::signal(daemon.pid(), nix::sys::signal::Signal::SIGKILL);
        assert!(daemon.ended_within(Duration::from_secs(5)));
        let gone = || inits.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        assert!(within(Duration::from_secs(10), gone), "{inits:?}");
        assert_eq!(
            picture(&ground.root),
            before.into_iter().filter(|(path, _)| path.starts_with(&ground.root)).collect()
        );
    }
}
