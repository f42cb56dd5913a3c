use super::*;
use crate::plan::{Isolation, Mount, Root, Workspace};

const MARK: u64 = 0x5452_4c00_0000_0001;

fn parse(words: &[&str]) -> Option<Ceiling> {
    Ceiling::parse(&words.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn of_1000() -> Ceiling {
    parse(&["1000", "1000", &MARK.to_string(), "100000:65536", "200000:65536"]).unwrap()
}

fn plan() -> SessionPlan {
    SessionPlan {
        uid: 1000,
        gid: 1000,
        mark: MARK,
        umask: 0o077,
        nproc: 1,
        no_new_privileges: true,
        working_dir: b"/".to_vec(),
        shell: b"/bin/sh".to_vec(),
        rlimits: Vec::new(),
        isolation: Isolation {
            namespaces: Namespaces(Namespaces::ALL),
            inside_uid: 1000,
            inside_gid: 1000,
            ids: Ids::Range(8),
            ..Isolation::default()
        },
    }
}

#[test]
fn root_nobody_and_a_foreign_mark_are_no_ceiling() {
    let mark = MARK.to_string();
    assert!(parse(&["1000", "1000", &mark]).is_some());
    for words in [
        &["0", "1000", &mark][..],
        &["1000", "0", &mark],
        &["4294967295", "1000", &mark],
        &["1000", "1000", "7"],
        &["1000", "1000"],
        &["-1", "1000", &mark],
        &[],
        &["1000", "1000", &mark, "100000:65536"],
        &["1000", "1000", &mark, "0:65536", "100000:65536"],
        &["1000", "1000", &mark, "100000:0", "100000:65536"],
        &["1000", "1000", &mark, "4294967290:6", "100000:65536"],
        &["1000", "1000", &mark, "999:2", "100000:65536"],
        &["1000", "1000", &mark, "100000:65536", "1000:1"],
    ] {
        assert!(parse(words).is_none(), "{words:?}");
    }
}

#[test]
fn a_plan_is_held_to_the_user_and_its_ranges() {
    let ceiling = of_1000();
    assert!(ceiling.allows(&plan()));
    assert!(ceiling.owns(1000) && ceiling.owns(100_000) && ceiling.owns(165_535));
    assert!(!ceiling.owns(0) && !ceiling.owns(99_999) && !ceiling.owns(165_536));
    let changes: [fn(&mut SessionPlan); 6] = [
        |plan| plan.uid = 100_000,
        |plan| plan.isolation.ids = Ids::Range(0),
        |plan| plan.isolation.inside_uid = 0,
        |plan| plan.isolation.inside_gid = 0,
        |plan| plan.isolation.inside_uid = u32::MAX - 3,
        |plan| plan.isolation.namespaces = Namespaces(Namespaces::MOUNT),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let mut changed = plan();
        change(&mut changed);
        assert!(!ceiling.allows(&changed), "change {at}");
    }
}

#[test]
fn the_operators_file_decides_alone_and_only_for_those_it_names() {
    let text = "# who\nuser 1000\nuids 300000 16\ngids 400000 16 # few\npath /srv/work/\nuser 1001\n";
    let lowered = of_1000().under(text).unwrap();
    let few = |first| Range { first, count: 16 };
    assert_eq!(lowered.ranges(), Some(Ranges { uids: few(300_000), gids: few(400_000) }));
    let with = |source: &str, fill: Option<&str>| {
        let mut plan = plan();
        let mounts = fill.map(|path| Mount {
            target: b"/x".to_vec(),
            fill: Fill::ReadWrite(path.into()),
            optional: false,
        });
        plan.isolation.root = Some(Root {
            mounts: mounts.into_iter().collect(),
            workspace: Some(Workspace {
                target: b"/w".to_vec(),
                source: source.into(),
                overlay: false,
                writable: true,
                exec: true,
                size: 1,
                inodes: 1,
                protect: Vec::new(),
            }),
            processes_only: false,
        });
        plan
    };
    for (source, fill, allowed) in [
        ("", None, true),
        ("/srv/work", None, true),
        ("/srv/work/a", Some("/srv/work/b"), true),
        ("/srv/workers", None, false),
        ("/srv/work/../../etc", None, false),
        ("/srv", None, false),
        ("", Some("/etc"), false),
    ] {
        assert_eq!(lowered.allows(&with(source, fill)), allowed, "{source} {fill:?}");
    }
    assert!(of_1000().allows(&with("/anywhere", None)), "without a file the user's rights decide");
    for refused in [
        "",
        "user 1001",
        "uids 1 2",
        "user 1000\nuids 1 2",
        "user 1000\nuids 1\ngids 1 2",
        "user 1000\nuids 900 200\ngids 1 2",
        "user 1000\nuser 1000",
        "user 1000\nsudo yes",
        "user 1000\npath srv",
        "user 1000\npath /srv/../etc",
        "user 1001\nuids 5000 10\ngids 5000 10\nuser 1000\nuids 5009 10\ngids 6000 10",
    ] {
        assert!(of_1000().under(refused).is_err(), "{refused}");
    }
}

#[test]
fn a_file_that_others_can_write_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let owner = nix::unistd::geteuid().as_raw();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ceiling");
    assert!(read_at(&path, owner).unwrap().is_none());
    std::fs::write(&path, "user 1000\n").unwrap();
    let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    mode(&path, 0o644);
    assert_eq!(read_at(&path, owner).unwrap().as_deref(), Some("user 1000\n"));
    assert!(read_at(&path, owner ^ 1).is_err(), "another's");
    mode(&path, 0o664);
    assert!(read_at(&path, owner).is_err(), "writable by its group");
    mode(&path, 0o644);
    mode(directory.path(), 0o777);
    assert!(read_at(&path, owner).is_err(), "in a directory that all may write");
    mode(directory.path(), 0o755);
    std::os::unix::fs::symlink(&path, directory.path().join("link")).unwrap();
    assert!(read_at(&directory.path().join("link"), owner).is_err(), "by a link");
}
