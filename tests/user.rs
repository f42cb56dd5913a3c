//! Host ids of a session's own: whom the kernel says that it is, whom it can reach, and how ids come back.
//!
//! As root, all of it is tried with a daemon that root starts and with one of an ordinary user, made here, who has a
//! range in subuid(5). As anybody else, with the user's own range.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{By, Client, Daemon, Home, is_root, marked, named, new_mark, signal, within};
use nix::sys::signal::Signal::{SIGKILL, SIGSTOP};
use nix::unistd::{User, geteuid};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// Two slots of it are all that a range of 65536 has.
const LARGE: &str =
    "name = \"large\"\ndescription = \"few slots\"\nextends = \"default\"\n[user]\nids = 32768\n";
const REQUIRED: &str = "name = \"required\"\ndescription = \"ids or nothing\"\nextends = \"default\"\n[user]\ndemand = \"required\"\n";

/// An ordinary user with a range of 65536 ids, gone when the last test is done with it.
struct Account {
    name: String,
    uid: u32,
    made: bool,
}

static ACCOUNT: Mutex<Weak<Account>> = Mutex::new(Weak::new());

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Whether there is a range for user `uid`, and something to map it with.
fn has_range(uid: u32) -> bool {
    trl::host::id_ranges(uid).is_some() && trl::host::id_mapper("newuidmap").is_some()
}

/// The user, or nobody where this machine cannot have one.
fn account() -> Option<Arc<Account>> {
    let mut shared = common::lock(&ACCOUNT);
    if let Some(account) = shared.upgrade() {
        return Some(account);
    }
    let without = |why: &str| {
        println!("skipped, in part or as a whole: {why}");
        None
    };
    if trl::host::id_mapper("newuidmap").is_none() {
        return without("newuidmap is not there (package uidmap)");
    }
    if is_root() && Command::new("useradd").arg("--help").output().is_err() {
        return without("useradd is not there (package passwd)");
    }
    if !is_root() && !has_range(geteuid().as_raw()) {
        return without("this user has no range of ids in /etc/subuid and /etc/subgid");
    }
    let account = if is_root() {
        let name = format!("trlids{}", std::process::id());
        succeeds(Command::new("useradd").args(["--no-create-home", "--home-dir", "/nonexistent", &name]));
        let uid = User::from_name(&name).unwrap().unwrap().uid.as_raw();
        Account { name, uid, made: true }
    } else {
        let own = User::from_uid(geteuid()).unwrap().expect("the user of the tests is not in passwd");
        Account { name: own.name, uid: own.uid.as_raw(), made: false }
    };
    assert!(
        has_range(account.uid),
        "useradd gave {} no range of ids: see SUB_UID_COUNT in login.defs(5)",
        account.name
    );
    let account = Arc::new(account);
    *shared = Arc::downgrade(&account);
    Some(account)
}

impl Drop for Account {
    fn drop(&mut self) {
        if self.made {
            // A crash leaves the file of slots to the next daemon of the user, and there will be none.
            std::fs::remove_file(format!("/tmp/trl-ids-{}", self.uid)).ok();
            let done = Command::new("userdel").arg(&self.name).output();
            assert!(done.is_ok_and(|done| done.status.success()) || std::thread::panicking(), "userdel");
        }
    }
}

/// One test at a time: they share one user's slots.
static TURN: Mutex<()> = Mutex::new(());

/// Who is the daemon's user, and who starts it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// An ordinary user with a range.
    Account,
    /// Root, for that user.
    RootForAccount,
    /// Root, for a uid that nobody has.
    RootForFree,
}

/// Where daemons live.
struct Place {
    home: Arc<Home>,
    account: Option<Arc<Account>>,
    kind: Kind,
}

impl Place {
    /// Every kind of daemon whose user has a range, as far as this run can have it.
    fn all() -> Vec<Self> {
        let mut all = Self::of_accounts();
        if is_root() {
            all.push(Self::new(Kind::RootForFree, None));
        }
        all
    }
    /// Those whose user is nobody else's.
    fn of_accounts() -> Vec<Self> {
        let Some(account) = account() else { return Vec::new() };
        let kinds = [Kind::Account, Kind::RootForAccount];
        let kinds = kinds.into_iter().filter(|kind| *kind == Kind::Account || is_root());
        kinds.map(|kind| Self::new(kind, Some(Arc::clone(&account)))).collect()
    }
    fn new(kind: Kind, account: Option<Arc<Account>>) -> Self {
        let by = if kind == Kind::Account { By::Ordinary } else { By::Root };
        let place = Self { home: Home::new(by), account, kind };
        if let (Kind::Account, Some(account), true) = (kind, &place.account, is_root()) {
            std::os::unix::fs::chown(place.home.path(), Some(account.uid), Some(account.uid)).unwrap();
        }
        place.write_policies();
        place
    }
    fn of_account() -> Option<Self> {
        account().map(|account| Self::new(Kind::Account, Some(account)))
    }
    fn write_policies(&self) {
        let directory = self.home.path().join("policies");
        let owner = match (self.kind, &self.account) {
            (Kind::Account, Some(account)) if is_root() => Some(account.uid),
            (Kind::Account, None) if is_root() => Some(common::ORDINARY_UID),
            _ => None,
        };
        let made = |path: &Path, mode| {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            std::os::unix::fs::chown(path, owner, owner).unwrap();
        };
        std::fs::create_dir(&directory).unwrap();
        for (name, text) in [("large", LARGE), ("required", REQUIRED)] {
            std::fs::write(directory.join(format!("{name}.toml")), text).unwrap();
            made(&directory.join(format!("{name}.toml")), 0o644);
        }
        made(&directory, 0o755);
    }
    fn start(&self) -> Daemon {
        self.start_with(&[])
    }
    fn start_with(&self, more: &[&str]) -> Daemon {
        self.home.start_command(self.command(more))
    }
    fn command(&self, more: &[&str]) -> Command {
        let directory = self.home.path().join("policies");
        let policies = [&["--policy-dir", directory.to_str().unwrap()], more].concat();
        match (self.kind, &self.account) {
            (Kind::Account, Some(account)) if is_root() => {
                let mut command = self.home.serve(&policies);
                command.uid(account.uid).gid(account.uid);
                command
            }
            (Kind::RootForAccount, Some(account)) => {
                let mut command = self.home.trl(&["serve", "--user", &account.name, "--socket"]);
                command.arg(self.home.socket()).args(policies);
                command
            }
            _ => self.home.serve(&policies),
        }
    }
}

fn user_layer(made: &Value) -> &Value {
    made["isolation"]["layers"].as_array().unwrap().iter().find(|layer| layer["layer"] == "user").unwrap()
}

fn create(client: &mut Client, policy: &str) -> (String, Value) {
    let made = client.ok("session.create", json!({"policy": policy}));
    (made["session_id"].as_str().unwrap().to_owned(), made)
}

fn end(client: &mut Client, session: &str) {
    client.ok("session.destroy", json!({"session_id": session, "force": true}));
}

/// A field of a process's status, as the host has it: all numbers.
fn status(pid: i32, field: &str) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:"))).unwrap();
    line.split_ascii_whitespace().map(|number| number.parse().unwrap()).collect()
}

/// The user of a process that may be gone.
fn owner(pid: i32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_ascii_whitespace().next()?.parse().ok()
}

/// A process of the session, found from outside, that goes on for a while.
fn sleeper(daemon: &Daemon, client: &mut Client, session: &str, seconds: u32) -> i32 {
    client.start(session, &format!("exec sleep {seconds}"), json!({"timeout_s": 100}));
    let text = format!("sleep\0{seconds}\0");
    let mut found = None;
    assert!(within(Duration::from_secs(5), || {
        found = named(daemon.pid(), "sleep").into_iter().find(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == text.as_bytes())
        });
        found.is_some()
    }));
    found.unwrap()
}

#[test]
fn two_sessions_are_two_users_outside_and_the_same_inside() {
    let _turn = common::lock(&TURN);
    for place in Place::all() {
        let daemon = place.start();
        let mut client = daemon.connect();
        let owner = status(daemon.pid(), "Uid")[0];
        let mut outside = Vec::new();
        for seconds in [1001, 1002] {
            let (session, made) = create(&mut client, "default");
            // What the kernel shows from outside.
            let pid = sleeper(&daemon, &mut client, &session, seconds);
            let (uids, gids) = (status(pid, "Uid"), status(pid, "Gid"));
            assert!(uids.iter().all(|uid| *uid == uids[0]) && gids.iter().all(|gid| *gid == gids[0]));
            assert!(![0, owner, 65534].contains(&uids[0]) && ![0, owner, 65534].contains(&gids[0]));
            assert!(status(pid, "Groups").is_empty());
            let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
            let map: Vec<u32> = map.split_ascii_whitespace().map(|number| number.parse().unwrap()).collect();
            assert_eq!(map, [1000, uids[0], 8]);
            // What the report says.
            let layer = user_layer(&made);
            assert_eq!(layer["enforced"], "full", "{layer}");
            let said = layer["evidence"]["observed"].as_str().unwrap();
            assert!(said.contains(&format!("{} and {} outside, of 8 ids", uids[0], gids[0])), "{said}");
            // What the session sees.
            let seen =
                client.run(&session, "id -u; id -g; id -G; touch own /tmp/own; stat -c %u:%g own", json!({}));
            assert_eq!(seen["stdout"], "1000\n1000\n1000\n1000:1000\n", "{seen}");
            outside.push((session, pid, uids[0]));
        }
        assert_ne!(outside[0].2, outside[1].2);
        // Init is that user too, and can be ended all the same: by the daemon, without an answer of its own.
        for init in daemon.inits() {
            assert!(outside.iter().any(|(.., uid)| *uid == status(init, "Uid")[0]));
            signal(init, SIGSTOP);
        }
        for (session, pid, _) in &outside {
            end(&mut client, session);
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "outlives its session");
        }
        assert!(daemon.inits().is_empty());
    }
}

#[test]
fn one_sessions_user_reaches_nothing_of_anothers() {
    let _turn = common::lock(&TURN);
    if !is_root() {
        println!("skipped: only root can become another session's user");
        return;
    }
    for place in Place::all() {
        let daemon = place.start();
        let mut client = daemon.connect();
        let (one, _) = create(&mut client, "default");
        let (two, _) = create(&mut client, "default");
        let (a, b) = (sleeper(&daemon, &mut client, &one, 1003), sleeper(&daemon, &mut client, &two, 1004));
        let (uid, gid) = (status(a, "Uid")[0], status(a, "Gid")[0]);
        // A process of the host with the one session's user.
        let mut host = Command::new("sleep").arg("1005").uid(uid).gid(gid).spawn().unwrap();
        let can = |script: String| {
            let mut command = Command::new("/bin/sh");
            let output = command.args(["-c", &script]).uid(uid).gid(gid).current_dir("/").output().unwrap();
            output.status.success()
        };
        assert!(
            can(format!("kill -0 {a}")) && can(format!("cat /proc/{}/environ", host.id())),
            "the control"
        );
        for init in daemon.inits().into_iter().chain([b, daemon.pid(), daemon.launcher()]) {
            if status(init, "Uid")[0] == uid {
                continue;
            }
            for attempt in [
                "kill -0 PID",
                "kill -STOP PID",
                "cat /proc/PID/environ",
                "cat /proc/PID/maps",
                "ls /proc/PID/fd",
            ] {
                assert!(!can(attempt.replace("PID", &init.to_string())), "{attempt} of {init}");
            }
        }
        host.kill().unwrap();
        host.wait().unwrap();
        end(&mut client, &one);
        end(&mut client, &two);
    }
}

#[test]
fn forty_sessions_at_once_are_forty_users() {
    let _turn = common::lock(&TURN);
    for place in Place::all() {
        let daemon = place.start();
        let sessions: Vec<String> = std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut client = daemon.connect();
                        (0..10).map(|_| create(&mut client, "default").0).collect::<Vec<_>>()
                    })
                })
                .collect();
            lanes.into_iter().flat_map(|lane| lane.join().unwrap()).collect()
        });
        let inits = daemon.inits();
        let uids: BTreeSet<u32> = inits.iter().map(|init| status(*init, "Uid")[0]).collect();
        let gids: BTreeSet<u32> = inits.iter().map(|init| status(*init, "Gid")[0]).collect();
        assert_eq!((inits.len(), uids.len(), gids.len()), (40, 40, 40), "{uids:?}");
        let mut client = daemon.connect();
        for session in sessions {
            end(&mut client, &session);
        }
    }
}

#[test]
fn ids_run_out_with_a_typed_error_and_come_back() {
    let _turn = common::lock(&TURN);
    for place in Place::of_accounts() {
        let daemon = place.start();
        let mut client = daemon.connect();
        let mut seen = BTreeSet::new();
        for round in 0..10 {
            let (one, made) = create(&mut client, "large");
            assert_eq!(user_layer(&made)["enforced"], "full");
            let (two, _) = create(&mut client, "large");
            seen.extend(daemon.inits().iter().map(|init| status(*init, "Uid")[0]));
            let refused = client.error("session.create", json!({"policy": "large"}));
            assert_eq!(refused["code"], "RESOURCE_PRESSURE", "{refused}");
            assert!(refused["message"].as_str().unwrap().contains("host ids"), "{refused}");
            // Whatever the size of a slot, its ids are nobody else's.
            assert_eq!(client.code("session.create", json!({"policy": "default"})), "RESOURCE_PRESSURE");
            assert_eq!(daemon.inits().len(), 2, "round {round}");
            for session in [one, two] {
                end(&mut client, &session);
            }
        }
        assert_eq!(seen.len(), 2, "{seen:?}");
        let (session, _) = create(&mut client, "default");
        end(&mut client, &session);
    }
}

#[test]
fn two_daemons_of_one_user_give_out_different_ids() {
    let _turn = common::lock(&TURN);
    let (Some(one), Some(two)) = (Place::of_account(), Place::of_account()) else { return };
    let (one, two) = (one.start(), two.start());
    let (mut first, mut second) = (one.connect(), two.connect());
    create(&mut first, "large");
    create(&mut second, "large");
    let uids: BTreeSet<u32> =
        [&one, &two].into_iter().flat_map(Daemon::inits).map(|init| status(init, "Uid")[0]).collect();
    assert_eq!(uids.len(), 2);
    for client in [&mut first, &mut second] {
        assert_eq!(client.code("session.create", json!({"policy": "large"})), "RESOURCE_PRESSURE");
    }
    drop(two);
    assert!(within(Duration::from_secs(5), || {
        first.call("session.create", json!({"policy": "large"}))["ok"] == true
    }));
}

#[test]
fn a_crash_gives_ids_back_when_nothing_has_them_any_more() {
    let _turn = common::lock(&TURN);
    for victim in ["daemon", "launcher", "zygote"] {
        for place in Place::of_accounts() {
            let mut daemon = place.start();
            let mut client = daemon.connect();
            let mark = new_mark();
            let mut sessions = Vec::new();
            for _ in 0..2 {
                let (session, _) = create(&mut client, "large");
                sessions.push(session.clone());
                let trick = "trap '' TERM; (setsid sleep 300 &); sleep 300";
                client.start(&session, trick, json!({"env": {"MARK": mark}}));
            }
            let inits = daemon.inits();
            let uids: BTreeSet<u32> = inits.iter().map(|init| status(*init, "Uid")[0]).collect();
            assert_eq!(uids.len(), 2);
            let old: Vec<i32> = common::processes()
                .into_iter()
                .filter(|pid| owner(*pid).is_some_and(|uid| uids.contains(&uid)))
                .collect();
            assert!(old.len() >= 6, "{old:?}");
            let pid = match victim {
                "daemon" => daemon.pid(),
                "launcher" => daemon.launcher(),
                _ => named(daemon.pid(), "trl-zygote")[0],
            };
            signal(pid, SIGKILL);
            if victim == "zygote" {
                // Sessions live on without it, and the next one has another.
                assert_eq!(daemon.inits(), inits);
                client.error("session.create", json!({"policy": "large"}));
                assert!(within(Duration::from_secs(5), || {
                    client.code("session.create", json!({"policy": "large"})) == "RESOURCE_PRESSURE"
                }));
                for session in sessions {
                    end(&mut client, &session);
                }
                continue;
            }
            // A daemon without a launcher may go on.
            signal(daemon.pid(), SIGKILL);
            assert!(daemon.ended_within(Duration::from_secs(5)));
            let next = place.start();
            let mut client = next.connect();
            let mut made = 0;
            assert!(within(Duration::from_secs(8), || {
                let answer = client.call("session.create", json!({"policy": "large"}));
                if answer["ok"] == true {
                    made += 1;
                    // Of the life before nobody has the ids of the sessions that there are now.
                    let now: BTreeSet<u32> = next.inits().iter().filter_map(|init| owner(*init)).collect();
                    let left = old.iter().find(|pid| owner(**pid).is_some_and(|uid| now.contains(&uid)));
                    assert_eq!(left, None, "{victim}: {now:?}");
                } else {
                    assert_eq!(answer["error"]["code"], "RESOURCE_PRESSURE", "{answer}");
                }
                made == 2
            }));
            assert!(marked(&mark).is_empty());
            assert!(inits.iter().all(|init| !Path::new(&format!("/proc/{init}")).exists()));
        }
    }
}

#[test]
fn without_a_range_it_is_partial_with_a_remedy_or_refused_where_it_is_required() {
    let _turn = common::lock(&TURN);
    if !is_root() && has_range(geteuid().as_raw()) {
        println!("skipped: this user has a range, and only root can start a daemon of one who has none");
        return;
    }
    let place = Place::new(Kind::Account, None);
    let daemon = place.start();
    let mut client = daemon.connect();
    let (session, made) = create(&mut client, "default");
    let layer = user_layer(&made);
    assert_eq!((&layer["requested"], &layer["enforced"]), (&json!("best_effort"), &json!("partial")));
    let reason = layer["reason"].as_str().unwrap();
    assert!(reason.contains("/etc/subuid") && reason.contains("/etc/subgid"), "{reason}");
    assert_eq!(made["isolation"]["verdict"], "degraded");
    let owner = status(daemon.pid(), "Uid")[0];
    assert_eq!(status(daemon.inits()[0], "Uid")[0], owner);
    assert_eq!(client.run(&session, "id -u", json!({}))["stdout"], "1000\n");
    end(&mut client, &session);
    let refused = client.error("session.create", json!({"policy": "default", "require": ["user"]}));
    assert_eq!(refused["code"], "ISOLATION_UNAVAILABLE", "{refused}");
    assert!(refused["detail"].to_string().contains("/etc/subuid"), "{refused}");
    let refused = client.error("session.create", json!({"policy": "required"}));
    assert_eq!(refused["code"], "ISOLATION_UNAVAILABLE", "{refused}");
    assert!(refused["detail"].to_string().contains("/etc/subuid"), "{refused}");
    assert!(within(Duration::from_secs(5), || daemon.inits().is_empty()));
    // The control: with a range, what is required is there.
    if let Some(place) = Place::of_account() {
        let daemon = place.start();
        let mut client = daemon.connect();
        let (_, made) = create(&mut client, "required");
        assert_eq!(user_layer(&made)["enforced"], "full");
        client.ok("session.create", json!({"policy": "default", "require": ["user"]}));
    }
}

#[test]
fn under_no_new_privs_newuidmap_gains_nothing_and_the_report_says_so() {
    let _turn = common::lock(&TURN);
    let Some(place) = Place::of_account() else { return };
    // Installed with privilege in one way or the other: it maps for who starts it freely, and for nobody else.
    let plain = place.command(&[]);
    let mut command = Command::new("setpriv");
    command.arg("--no-new-privs").arg(plain.get_program()).args(plain.get_args());
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").current_dir("/");
    if is_root() {
        let uid = place.account.as_ref().unwrap().uid;
        command.uid(uid).gid(uid);
    }
    let daemon = place.home.start_command(command);
    let mut client = daemon.connect();
    let (session, made) = create(&mut client, "default");
    let layer = user_layer(&made);
    assert_eq!(layer["enforced"], "partial", "{layer}");
    assert!(layer["reason"].as_str().unwrap().contains("no_new_privs"), "{layer}");
    assert_eq!(status(daemon.inits()[0], "Uid")[0], status(daemon.pid(), "Uid")[0]);
    end(&mut client, &session);
    assert_eq!(client.code("session.create", json!({"policy": "required"})), "ISOLATION_UNAVAILABLE");
}

#[test]
fn the_callers_own_files_are_used_as_the_caller() {
    let _turn = common::lock(&TURN);
    for place in Place::of_accounts() {
        let owner = place.account.as_ref().map(|account| account.uid).unwrap();
        let path = |name: &str| {
            let path = place.home.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("file"), name).unwrap();
            for path in [path.clone(), path.join("file")] {
                std::os::unix::fs::chown(path, Some(owner), Some(owner)).unwrap();
            }
            path.to_str().unwrap().to_owned()
        };
        let (private, public, work) = (path("private"), path("public"), path("work"));
        let mode = |path: &str, mode| {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        };
        mode(&private, 0o700);
        mode(&public, 0o755);
        mode(&work, 0o700);
        let extending = |name: &str, path: &str| {
            let text = format!(
                "name = \"{name}\"\ndescription = \"shows a path\"\nextends = \"default\"\n\
                 [filesystem]\nread_only = [\"{path}\"]\n"
            );
            let file = place.home.path().join(format!("policies/{name}.toml"));
            std::fs::write(&file, text).unwrap();
            mode(file.to_str().unwrap(), 0o644);
            let writer = (place.kind == Kind::Account && is_root()).then_some(owner);
            std::os::unix::fs::chown(&file, writer, writer).unwrap();
        };
        extending("secret", &private);
        extending("shown", &public);
        let daemon = place.start_with(&["--workspace-root", &work]);
        let mut client = daemon.connect();
        for (policy, path, enforced) in [("secret", &private, "partial"), ("shown", &public, "full")] {
            let (session, made) = create(&mut client, policy);
            assert_eq!(user_layer(&made)["enforced"], enforced, "{policy}: {made}");
            let seen = client.run(&session, &format!("cat {path}/file"), json!({}));
            assert_eq!(seen["exit_code"], 0, "{policy}: {seen}");
            end(&mut client, &session);
        }
        for (mode, kept) in [("host", true), ("overlay", false)] {
            let workspace = json!({"mode": mode, "path": work});
            let made = client.ok("session.create", json!({"policy": "default", "workspace": workspace}));
            let layer = user_layer(&made);
            assert_eq!(layer["enforced"], "partial", "{layer}");
            assert!(layer["reason"].as_str().unwrap().contains("workspace's files"), "{layer}");
            let session = made["session_id"].as_str().unwrap().to_owned();
            let seen =
                client.run(&session, &format!("echo x > {work}/new-{mode} && cat {work}/file"), json!({}));
            assert_eq!(seen["stdout"], "work", "{seen}");
            end(&mut client, &session);
            assert_eq!(Path::new(&format!("{work}/new-{mode}")).exists(), kept);
        }
    }
}
