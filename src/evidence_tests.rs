use super::judge::limit_name;
use super::*;
use crate::plan::{Rlimit, SessionPlan};
use crate::report::{Enforcement, Verdict, fold, layer};
use std::process::{Command, Stdio};

type Change = fn(&mut Observed);

const MARK: u64 = 0x5452_4c00_0000_0007;

fn plan() -> SessionPlan {
    SessionPlan {
        uid: 1000,
        gid: 1000,
        mark: MARK,
        umask: 0o077,
        nproc: 64,
        no_new_privileges: true,
        working_dir: b"/".to_vec(),
        shell: b"/bin/sh".to_vec(),
        rlimits: vec![Rlimit { resource: libc::RLIMIT_CORE, soft: 0, hard: 0 }],
        isolation: Default::default(),
    }
}

fn as_planned() -> Observed {
    let limits = [("Max core file size", 0), ("Max processes", 100), ("Max realtime timeout", MARK)];
    Observed {
        pid: 10,
        parent: 9,
        pgid: 10,
        sid: 10,
        no_new_privs: true,
        uids: vec![1000; 4],
        gids: vec![1000; 4],
        groups: Vec::new(),
        capabilities: Sets::default(),
        seccomp_mode: 0,
        seccomp_filters: 0,
        cwd: "/".into(),
        root: "/".into(),
        namespaces: KINDS.iter().map(|kind| ((*kind).to_owned(), (1, 1))).collect(),
        uid_map: vec![[0, 0, u32::MAX]],
        gid_map: vec![[0, 0, u32::MAX]],
        mountinfo: String::new(),
        limits: limits.into_iter().map(|(name, value)| (name.to_owned(), (value, value))).collect(),
        fds: [0, 1, 2].into(),
        environ_keys: ["A".to_owned(), "B".to_owned()].into(),
    }
}

fn none(observed: &Observed) -> Vec<&'static str> {
    let layers = judge(observed, &Witnessed::default(), &plan(), &["A", "B"], &[]);
    assert!(layers.iter().all(|layer| (layer.enforced == Enforcement::Full) == layer.reason.is_none()));
    layers.iter().filter(|layer| layer.enforced == Enforcement::None).map(|layer| layer.layer).collect()
}

#[test]
fn what_is_as_planned_is_degraded_by_the_two_partial_layers_only() {
    let layers = judge(&as_planned(), &Witnessed::default(), &plan(), &["B", "A"], &[]);
    assert_eq!(fold(&layers), Verdict::Degraded);
    let partial: Vec<_> = layers
        .iter()
        .filter(|layer| layer.enforced == Enforcement::Partial)
        .map(|layer| layer.layer)
        .collect();
    assert_eq!(partial, [layer::RLIMIT_NPROC, layer::PROCESS_TREE]);
    assert!(none(&as_planned()).is_empty());
}

#[test]
fn each_difference_takes_its_layer_away() {
    let differences: [(&str, Change); 15] = [
        (layer::ENVIRONMENT, |seen| {
            seen.environ_keys.insert("C".into());
        }),
        (layer::ENVIRONMENT, |seen| {
            seen.environ_keys.remove("A");
        }),
        (layer::WORKING_DIR, |seen| seen.cwd = "/proc".into()),
        (layer::USER, |seen| seen.uids[2] = 0),
        (layer::USER, |seen| seen.gids.clear()),
        (layer::USER, |seen| seen.capabilities.permitted = 1),
        (layer::PROCESS_GROUP, |seen| seen.pgid = 9),
        (layer::PROCESS_GROUP, |seen| seen.sid = 9),
        (layer::RLIMITS, |seen| seen.limits.clear()),
        (layer::RLIMITS, |seen| {
            seen.limits.insert("Max core file size".into(), (0, 1));
        }),
        (layer::RLIMIT_NPROC, |seen| {
            seen.limits.insert("Max processes".into(), (1, u64::MAX));
        }),
        (layer::DESCRIPTORS, |seen| {
            seen.fds.insert(3);
        }),
        (layer::DESCRIPTORS, |seen| {
            seen.fds.remove(&0);
        }),
        (layer::NO_NEW_PRIVS, |seen| seen.no_new_privs = false),
        (layer::PROCESS_TREE, |seen| seen.parent = 1),
    ];
    for (name, change) in differences {
        let mut seen = as_planned();
        change(&mut seen);
        assert!(none(&seen).contains(&name), "{name}");
    }
}

#[test]
fn a_plan_for_root_is_never_enforced() {
    let (mut seen, mut root) = (as_planned(), plan());
    (seen.uids, root.uid) = (vec![0; 4], 0);
    let layers = judge(&seen, &Witnessed::default(), &root, &["A", "B"], &[]);
    assert!(layers.iter().any(|layer| layer.layer == layer::USER && layer.falls_short()));
}

#[test]
fn a_live_process_is_read_back() {
    let mut child = Command::new("cat")
        .env_clear()
        .envs([("ONE", "hunter2=x"), ("TWO", "")])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id() as i32;
    // `spawn` is back once execve has succeeded.
    let seen = observe(pid).unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!((seen.pid, seen.parent), (pid, std::process::id() as i32));
    assert_eq!(seen.cwd, PathBuf::from("/"));
    assert_eq!(seen.environ_keys, ["ONE".to_owned(), "TWO".to_owned()].into());
    assert_eq!((seen.uids.len(), seen.gids.len()), (4, 4));
    assert!([0, 1, 2].iter().all(|fd| seen.fds.contains(fd)));
    for resource in [libc::RLIMIT_CPU, libc::RLIMIT_NOFILE, libc::RLIMIT_NPROC, libc::RLIMIT_RTTIME] {
        assert!(seen.limits.contains_key(limit_name(resource).unwrap()));
    }
    assert!(!format!("{seen:?}").contains("hunter2"));
}

#[test]
fn a_process_that_is_gone_is_an_error() {
    assert!(observe(i32::MAX).is_err());
}

#[test]
fn keys_are_found_across_reads() {
    struct OneByOne<'a>(&'a [u8]);
    impl Read for OneByOne<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(1);
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }
    let found = keys(OneByOne(b"A=1\0B=x=y\0junk\0C=\0")).unwrap();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["A", "B", "C"]);
}

/// A plan of the whole of L2 and a process that shows it.
fn isolated() -> (SessionPlan, Observed, Witnessed) {
    use crate::plan::{Access, Ids, Isolation, Landlock, Namespaces, PathRule, Seccomp};
    let rule = |path: &str, access| PathRule { path: path.into(), access: Access(access) };
    let plan = SessionPlan {
        isolation: Isolation {
            namespaces: Namespaces(Namespaces::ALL),
            ids: Ids::Range(8),
            inside_uid: 1000,
            inside_gid: 1000,
            landlock: Some(Landlock { rules: vec![rule("/", Access::READ)], ..Landlock::default() }),
            seccomp: Some(Seccomp { refuse: vec![libc::SYS_keyctl as u32], ..Seccomp::default() }),
            ..Isolation::default()
        },
        ..plan()
    };
    let seen = Observed {
        uids: vec![100_000; 4],
        gids: vec![100_000; 4],
        uid_map: vec![[1000, 100_000, 8]],
        gid_map: vec![[1000, 100_000, 8]],
        seccomp_mode: 2,
        seccomp_filters: 3,
        namespaces: KINDS.iter().map(|kind| ((*kind).to_owned(), (2, 1))).collect(),
        ..as_planned()
    };
    let witnessed = Witnessed::parse(
        "landlock_abi=7\nlandlock_room=15\nread_root=0\nread_proc=0\nwrite_comm=13\nwrite_null=13\nclone3=38\n\
         io_uring=38\nkeyctl=1\nunshare=1\nmount=38\naf_alg=97\nroute=101\nup=lo\n.\n",
    );
    (plan, seen, witnessed)
}

#[test]
fn all_of_l2_is_full_where_it_is_as_planned() {
    let (plan, seen, witnessed) = isolated();
    let layers = judge(&seen, &witnessed, &plan, &["A", "B"], &[]);
    let short: Vec<_> = layers.iter().filter(|layer| layer.reason.is_some()).collect();
    assert!(short.iter().all(|short| short.layer == layer::RLIMIT_NPROC), "{short:#?}");
    for name in [layer::LANDLOCK, layer::SECCOMP, layer::NAMESPACE_NET, layer::CAPABILITIES] {
        assert!(layers.iter().any(|layer| layer.layer == name), "{name}");
    }
}

#[test]
fn each_difference_takes_its_layer_of_l2_away() {
    type Change = fn(&mut Observed, &mut String);
    let changes: [(&str, Change); 16] = [
        (layer::NAMESPACE_USER, |seen, _| {
            seen.namespaces.insert("user".into(), (1, 1));
        }),
        (layer::NAMESPACE_MOUNT, |seen, _| {
            seen.namespaces.insert("mnt".into(), (1, 1));
        }),
        (layer::NAMESPACE_PID, |seen, _| {
            seen.namespaces.remove("pid");
        }),
        (layer::NAMESPACE_NET, |seen, _| {
            seen.namespaces.insert("net".into(), (1, 1));
        }),
        (layer::NAMESPACE_NET, |_, said| *said = said.replace("up=lo", "up=lo,eth0")),
        (layer::NAMESPACE_NET, |_, said| *said = said.replace("route=101", "route=0")),
        (layer::CAPABILITIES, |seen, _| seen.capabilities.bounding = 1),
        (layer::USER, |seen, _| seen.uids[1] = 5),
        (layer::USER, |seen, _| seen.groups = vec![4]),
        (layer::LANDLOCK, |_, said| *said = said.replace("landlock_room=15", "landlock_room=16")),
        (layer::LANDLOCK, |_, said| *said = said.replace("write_comm=13", "write_comm=0")),
        (layer::LANDLOCK, |_, said| said.clear()),
        (layer::SECCOMP, |seen, _| seen.seccomp_filters = 0),
        (layer::SECCOMP, |seen, _| seen.seccomp_mode = 0),
        (layer::SECCOMP, |_, said| *said = said.replace("clone3=38", "clone3=22")),
        (layer::SECCOMP, |_, said| said.clear()),
    ];
    for (at, (name, change)) in changes.into_iter().enumerate() {
        let (plan, mut seen, witnessed) = isolated();
        let mut said: String = witnessed.0.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        change(&mut seen, &mut said);
        let layers = judge(&seen, &Witnessed::parse(&said), &plan, &["A", "B"], &[]);
        let found = layers.iter().find(|layer| layer.layer == name).unwrap();
        assert_ne!(found.enforced, Enforcement::Full, "change {at}, {name}: {found:?}");
    }
}

#[test]
fn an_own_id_is_partial_and_says_why() {
    let (mut plan, mut seen, witnessed) = isolated();
    plan.isolation.ids = crate::plan::Ids::Own;
    (seen.uids, seen.gids) = (vec![1000; 4], vec![1000; 4]);
    (seen.uid_map, seen.gid_map) = (vec![[1000, 1000, 1]], vec![[1000, 1000, 1]]);
    let layers = judge(&seen, &witnessed, &plan, &["A", "B"], &[]);
    let user = layers.iter().find(|layer| layer.layer == layer::USER).unwrap();
    assert_eq!(user.enforced, Enforcement::Partial);
    assert!(user.reason.as_ref().unwrap().contains("host ids"), "{user:?}");
}
