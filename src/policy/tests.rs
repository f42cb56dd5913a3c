use super::*;
use crate::plan::{Access, Fill, Ids, Isolation, Namespaces};
use serde_json::Value;

fn shipped() -> Policies {
    Policies::shipped().unwrap_or_else(|error| panic!("{error}"))
}

fn of(name: &str) -> Policy {
    shipped().get(name).unwrap().clone()
}

fn extending(lines: &str) -> String {
    format!("name = \"x\"\ndescription = \"x\"\nextends = \"default\"\n{lines}\n")
}

/// A host with merged directories, and nothing else that matters.
fn look(path: &str) -> Found {
    match path {
        "/bin" => Found::Link("usr/bin".into()),
        "/etc/localtime" => Found::Link("/usr/share/zoneinfo/UTC".into()),
        "/etc/resolv.conf" => Found::Link("../run/resolve/stub.conf".into()),
        "/run/resolve/stub.conf" | "/etc/hosts" | "/etc/services" => Found::File,
        "/usr" | "/opt" | "/usr/local" | "/home/a/w" | "/data" | "/data/in" => Found::Directory,
        "/home/a/w/.git" | "/home/a/w/.git/hooks" => Found::Directory,
        "/home/a/worktree/.git" => Found::File,
        "/home/a/linked/.git" => Found::Link("../w/.git".into()),
        _ => Found::Absent,
    }
}

fn host<'a>(submounts: &'a [String]) -> HostView<'a> {
    let is_public = &|path: &str| !path.starts_with("/home");
    HostView { id_ranges: true, missing: &[], submounts, look: &look, is_public }
}

fn fill<'a>(isolation: &'a Isolation, target: &str) -> Option<&'a Fill> {
    let mounts = &isolation.root.as_ref().unwrap().mounts;
    mounts.iter().find(|mount| mount.target == target.as_bytes()).map(|mount| &mount.fill)
}

#[test]
fn every_shipped_policy_is_complete_and_prints_as_itself() {
    let all = shipped();
    assert_eq!(all.iter().count(), Policy::names().len());
    for policy in all.iter() {
        let again = all.parse("again", &toml(policy)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(&again, policy);
        assert_eq!(again.digest(), policy.digest());
    }
}

#[test]
fn l1_is_what_the_protocol_says_and_nothing_beyond() {
    let policy = of("l1");
    assert_eq!((policy.rlimits.cpu_s, policy.rlimits.nofile, policy.rlimits.core), (300, 1024, 0));
    assert_eq!((policy.rlimits.nproc, policy.max_running_execs, policy.grace_s), (64, 16, 5));
    assert_eq!((policy.umask, policy.no_new_privileges), (0o077, Demand::Required));
    assert_eq!(policy.rlimits().len(), 3);
    assert_eq!(policy.isolation(&Request::default(), &host(&[])), Ok(Isolation::default()));
}

#[test]
fn each_fault_has_its_place() {
    for (lines, line, column, part) in [
        ("surprise = 1", 4, 1, "unknown key"),
        ("cpu_s = 1", 4, 1, "there is rlimits.cpu_s"),
        ("grace_s = 5\ngrace_s = 6", 5, 1, "duplicate"),
        ("grace_s = ", 4, 11, ""),
        ("grace_s = 100000", 4, 11, "from 0 to 3600"),
        ("umask = \"077\"", 4, 9, "0o077"),
        ("[rlimits]\ncore = \"1X\"", 5, 8, "256M"),
        ("[rlimits]\nsurprise = 1", 5, 1, "unknown key"),
        ("[surprise]\na = 1", 4, 2, "unknown key"),
        ("rlimits = 1", 4, 11, "expected a table"),
        ("[seccomp]\nallow = [\"read\", \"no_such_call\"]", 5, 18, "no system call"),
        ("[seccomp]\ngroups = [\"no_such\"]", 5, 11, "no group"),
        ("[seccomp]\nfamilies = [\"ax25\"]", 5, 13, "no socket family"),
        ("[seccomp]\nallow = [\"bpf\"]\nrefuse = [\"bpf\"]", 6, 11, "seccomp.allow"),
        ("[filesystem]\nread_only = [\"data\"]", 5, 14, "no absolute path"),
        ("[filesystem]\nread_only = [\"/a/../b\"]", 5, 14, "'..'"),
        ("[filesystem]\nread_only = [\"/a/./b\"]", 5, 14, "'.'"),
        ("[filesystem]\nread_only = [\"/a\", \"/a\"]", 5, 20, "twice"),
        ("[filesystem]\nread_only = [\"/a\"]\nwritable = [\"/a\"]", 6, 13, "filesystem.read_only"),
        ("[filesystem]\nread_only = [\"/run/docker.sock\"]", 5, 14, "session's own"),
        ("[filesystem]\nadd_copy = [\"/etc/shadow\"]", 5, 13, "never shown"),
        ("[filesystem]\nadd_system = [\"/etc\"]", 5, 15, "made for each session"),
        ("[filesystem]\nsystem = []\nadd_system = [\"/a\"]", 6, 1, "set and added to"),
        ("[filesystem]\nadd_tmp_size = 1", 5, 1, "unknown key"),
        ("[network]\nadd_bind_ports = [80]", 5, 1, "no inherited list"),
        ("[network]\nconnect_ports = [0]", 5, 18, "port"),
        ("[network]\nmode = \"host\"", 5, 1, "namespaces.net"),
        ("[namespaces]\nuser = \"off\"", 0, 0, "namespaces.user"),
        ("[landlock]\ndemand = \"off\"\nscoped = true", 6, 1, "landlock.demand"),
        ("[user]\nuid = 0", 5, 1, "allow_root_inside"),
        ("[workspace]\nprotect = [\"../x\"]", 5, 12, "'..'"),
        ("[workspace]\npath = \"/proc/w\"", 5, 1, "session's own"),
        ("# \u{e9}\u{e9}\n[workspace]\n\"m\u{e9}\" = 1", 6, 1, "unknown key"),
    ] {
        let error = shipped().parse("x.toml", &extending(lines)).expect_err(lines);
        let text = error.to_string();
        assert!(text.contains(part), "{lines}: {text}");
        if line > 0 {
            assert!(text.starts_with(&format!("x.toml:{line}:{column}: ")), "{lines}: {text}");
        }
    }
}

#[test]
fn a_policy_that_extends_nothing_sets_every_key() {
    let text = toml(&of("l1"));
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("grace_s")).collect();
    let error = Policy::parse(&without.join("\n")).unwrap_err();
    assert!(error.message.contains("grace_s is missing"), "{error}");
}

#[test]
fn extending_replaces_or_adds() {
    let policy = Policy::parse(&extending(
        "grace_s = 9\n[workspace]\nprotect = [\"a\"]\n[filesystem]\nadd_copy = [\"/etc/motd\"]",
    ))
    .unwrap();
    let base = of("default");
    assert_eq!((policy.grace_s, policy.workspace.protect), (9, vec!["a".to_owned()]));
    assert_eq!(policy.filesystem.copy.len(), base.filesystem.copy.len() + 1);
    assert_eq!(policy.rlimits, base.rlimits);
}

#[test]
fn a_circle_a_gap_a_tower_and_a_wrong_name_are_refused() {
    let own = |name: &str, base: &str| Text {
        name: name.into(),
        file: format!("{name}.toml"),
        text: format!("name = \"{name}\"\ndescription = \"\"\nextends = \"{base}\"\n"),
    };
    let error = |own: &[Text]| Policies::with(own).unwrap_err().to_string();
    assert!(error(&[own("a", "b"), own("b", "a")]).contains("extend itself"));
    assert!(error(&[own("a", "a")]).starts_with("a.toml:3:11: "));
    assert!(error(&[own("a", "nothing")]).contains("no policy"));
    assert!(error(&[own("default", "l1")]).contains("already"));
    let wrong = Text { name: "z".into(), ..own("a", "default") };
    assert!(error(&[wrong]).contains("a.toml:1:1: name must be"));
    let tower = [own("a", "default"), own("b", "a"), own("c", "b"), own("d", "c")];
    assert!(Policies::with(&tower).is_ok());
    assert!(error(&[&tower[..], &[own("e", "d")]].concat()).contains("on top of one another"));
}

#[test]
fn the_digest_is_of_what_is_decided() {
    let digest = |lines: &str| Policy::parse(&extending(lines)).unwrap().digest();
    let plain = digest("");
    assert!(plain.starts_with("sha256:") && plain.len() == 71);
    assert_eq!(digest("# comment\n[filesystem]\ntmp_size = 268435456"), plain);
    assert_eq!(digest("[seccomp]\nfamilies = [\"netlink\", \"inet6\", \"inet\", \"unix\"]"), plain);
    assert_ne!(digest("grace_s = 6"), plain);
    assert_ne!(digest("[workspace]\nwritable = false"), plain);
}

#[test]
fn an_override_has_bounds_and_another_digest() {
    let policy = of("l1");
    let with = Overrides { cpu_s: Some(7), as_bytes: Some(1 << 30), nproc: Some(9) };
    assert_eq!(policy.clone().with(with).unwrap().rlimits().len(), 4);
    assert_ne!(policy.clone().with(with).unwrap().digest(), policy.digest());
    assert_eq!(policy.clone().with(Overrides::default()).unwrap().digest(), policy.digest());
    assert!(policy.with(Overrides { cpu_s: Some(0), ..with }).is_err());
}

#[test]
fn the_schema_and_the_parser_know_the_same_keys() {
    let schema = schema::schema();
    let mut known = 0;
    let mut walk = |section: &str, properties: &Value| {
        for name in properties.as_object().unwrap().keys() {
            let list = name.strip_prefix(keys::ADD).unwrap_or(name);
            let is_section = properties[name]["type"] == "object";
            let key = keys::Key::find(section, list);
            assert!(is_section || name == keys::EXTENDS || key.is_some(), "{section}.{name}");
            assert!(name == list || key.unwrap().kind.is_list(), "{section}.{name}");
            known += usize::from(name == list && key.is_some());
        }
    };
    walk("", &schema["properties"]);
    for (section, table) in schema["properties"].as_object().unwrap() {
        if table["type"] == "object" {
            walk(section, &table["properties"]);
        }
    }
    assert_eq!(known, keys::KEYS.len());
    for (name, text) in set::SHIPPED {
        let parsed: ::toml::Table = ::toml::from_str(text).unwrap();
        for (key, value) in &parsed {
            let in_schema = &schema["properties"][key];
            assert!(in_schema.is_object(), "{name}: {key}");
            for inner in value.as_table().into_iter().flat_map(|table| table.keys()) {
                assert!(in_schema["properties"][inner].is_object(), "{name}: {key}.{inner}");
            }
        }
    }
}

#[test]
fn default_shows_the_system_and_nothing_of_the_caller() {
    let submounts = ["/usr/local".to_owned(), "/usrlocal".to_owned()];
    let isolation = of("default").isolation(&Request::default(), &host(&submounts)).unwrap();
    assert_eq!(isolation.namespaces, Namespaces(Namespaces::ALL));
    assert_eq!((isolation.ids, isolation.inside_uid), (Ids::Range(8), 1000));
    assert_eq!(fill(&isolation, "/usr"), Some(&Fill::View(b"/usr".to_vec())));
    assert_eq!(fill(&isolation, "/usr/local"), Some(&Fill::View(b"/usr/local".to_vec())));
    assert_eq!(fill(&isolation, "/bin"), Some(&Fill::Link(b"usr/bin".to_vec())));
    assert_eq!(fill(&isolation, "/etc/localtime"), Some(&Fill::Link(b"/usr/share/zoneinfo/UTC".to_vec())));
    assert_eq!(fill(&isolation, "/etc/services"), Some(&Fill::Copy(b"/etc/services".to_vec())));
    assert_eq!(fill(&isolation, "/etc/resolv.conf"), Some(&Fill::File(Vec::new())));
    for absent in ["/lib32", "/home", "/root", "/sys", "/etc/shadow", "/etc"] {
        assert_eq!(fill(&isolation, absent), None, "{absent}");
    }
    let root = isolation.root.as_ref().unwrap();
    let targets: Vec<_> = root.mounts.iter().map(|mount| mount.target.clone()).collect();
    for (at, target) in targets.iter().enumerate() {
        let parent_of = |other: &Vec<u8>| target.starts_with(other) && target.get(other.len()) == Some(&b'/');
        assert!(!targets[at..].iter().any(parent_of), "a parent after its child");
    }
    assert_eq!(root.workspace.as_ref().unwrap().target, b"/workspace");
    let landlock = isolation.landlock.as_ref().unwrap();
    let access =
        |path: &str| landlock.rules.iter().find(|rule| rule.path == path.as_bytes()).unwrap().access.0;
    assert_eq!(access("/usr"), Access::READ | Access::EXECUTE);
    assert_eq!(access("/workspace"), Access::READ | Access::WRITE | Access::EXECUTE);
    assert_eq!(access("/tmp") & Access::EXECUTE, 0);
    let mut plan = Vec::new();
    crate::plan::codec::encode(&session(isolation), &mut plan);
    assert!(plan.len() < 60_000 && crate::plan::codec::decode(&plan).is_some(), "{} bytes", plan.len());
}

fn session(isolation: Isolation) -> crate::plan::SessionPlan {
    crate::plan::SessionPlan {
        uid: 1000,
        gid: 1000,
        mark: 1,
        umask: 0o77,
        nproc: 1,
        no_new_privileges: true,
        working_dir: b"/workspace".to_vec(),
        shell: b"/bin/sh".to_vec(),
        rlimits: Vec::new(),
        isolation,
    }
}

#[test]
fn strict_executes_nothing_that_was_written() {
    let isolation = of("strict").isolation(&Request::default(), &host(&[])).unwrap();
    assert!(isolation.root.as_ref().unwrap().processes_only);
    for rule in isolation.landlock.unwrap().rules {
        assert!(rule.access.0 & (Access::WRITE | Access::EXECUTE) != Access::WRITE | Access::EXECUTE);
    }
}

#[test]
fn a_request_only_narrows() {
    let ask = |policy: &Policy, source: &str, overlay, writable| {
        let workspace = Some(WorkspaceChoice { source: source.into(), overlay, writable });
        policy.isolation(&Request { workspace, ..Request::default() }, &host(&[]))
    };
    let given = |policy: &Policy, overlay, writable| {
        ask(policy, "/home/a/w", overlay, writable).map(|isolation| {
            let workspace = isolation.root.unwrap().workspace.unwrap();
            (workspace.overlay, workspace.writable, isolation.ids)
        })
    };
    let default = of("default");
    assert_eq!(given(&default, false, true), Ok((false, true, Ids::Own)));
    assert_eq!(given(&default, false, false), Ok((false, false, Ids::Own)));
    let protected = |source: &str| {
        ask(&default, source, false, true).map(|isolation| isolation.root.unwrap().workspace.unwrap().protect)
    };
    assert_eq!(protected("/home/a/worktree"), Ok(vec![b".git".to_vec()]));
    assert_eq!(protected("/home/a/none"), Ok(vec![]));
    assert!(protected("/home/a/linked").is_err());
    let protect = |policy: &Policy| {
        let isolation = ask(policy, "/home/a/w", false, true).unwrap();
        isolation.root.unwrap().workspace.unwrap().protect
    };
    assert_eq!(protect(&default), [b".git/hooks".to_vec()]);
    let refusing = Policy::parse(&extending("[workspace]\nprotect_absent = \"refuse\"")).unwrap();
    assert!(matches!(ask(&refusing, "/home/a/w", false, true), Err(ResolveError::Denied { .. })));
    assert!(
        ask(&refusing, "/home/a/w", true, true).is_ok() && ask(&refusing, "/home/a/w", false, false).is_ok()
    );
    let strict = of("strict");
    assert_eq!(given(&strict, true, true), Ok((true, true, Ids::Own)));
    assert!(matches!(given(&strict, false, true), Err(ResolveError::Denied { .. })));
    for denied in ["/", "/usr", "/usr/local", "/etc", "/run/user/1", "/tmp", "relative", "/home/../etc"] {
        assert!(matches!(ask(&default, denied, false, false), Err(ResolveError::Denied { .. })), "{denied}");
    }
    let none = Policy::parse(&extending("[workspace]\nmode = \"private\"")).unwrap();
    assert!(matches!(given(&none, true, false), Err(ResolveError::Denied { .. })));
    let read_only = Policy::parse(&extending("[workspace]\nwritable = false")).unwrap();
    assert!(matches!(given(&read_only, false, true), Err(ResolveError::Denied { .. })));
}

#[test]
fn extra_paths_are_offered_or_the_operators() {
    let offering = Policy::parse(&extending("[filesystem]\noffer_read_only = [\"/data\"]")).unwrap();
    let ask = |policy: &Policy, read_only: &[&str], writable: &[&str], by_operator| {
        let list = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        let request = Request {
            workspace: None,
            without_workspace: false,
            extra_read_only: list(read_only),
            extra_writable: list(writable),
            by_operator,
        };
        policy.isolation(&request, &host(&[]))
    };
    let fine = ask(&offering, &["/data/in"], &[], false).unwrap();
    assert_eq!(fill(&fine, "/data/in"), Some(&Fill::ReadOnly(b"/data/in".to_vec())));
    assert!(ask(&offering, &[], &["/data/in"], false).is_err());
    assert!(ask(&offering, &["/database"], &[], false).is_err());
    assert!(ask(&of("default"), &["/data"], &[], false).is_err());
    assert!(ask(&of("default"), &[], &["/data"], true).is_ok());
    assert_eq!(
        ask(&of("default"), &["/gone"], &[], true),
        Err(ResolveError::Absent { path: "/gone".into() })
    );
    assert!(ask(&of("default"), &["/run/docker.sock"], &[], true).is_err());
    // Whose user it is follows from whose files are used.
    let ids =
        |read_only: &[&str], writable: &[&str]| ask(&of("default"), read_only, writable, true).unwrap().ids;
    assert_eq!(ids(&["/data"], &[]), Ids::Range(8));
    assert_eq!(ids(&["/home/a/w"], &[]), Ids::Own);
    assert_eq!(ids(&[], &["/data"]), Ids::Own);
}

#[test]
fn what_the_host_lacks_is_an_error_or_left_out() {
    let missing = [(layer::LANDLOCK, "no Landlock".to_owned())];
    let poor = HostView { missing: &missing, id_ranges: false, ..host(&[]) };
    assert_eq!(
        of("default").isolation(&Request::default(), &poor),
        Err(ResolveError::Unavailable(missing.to_vec()))
    );
    let lenient = Policy::parse(&extending("[landlock]\ndemand = \"best_effort\"")).unwrap();
    let isolation = lenient.isolation(&Request::default(), &poor).unwrap();
    assert_eq!((isolation.landlock, isolation.ids), (None, Ids::Own));
    let demanding = Policy::parse(&extending(
        "[user]\ndemand = \"required\"\n[landlock]\ndemand = \"off\"\nscoped = false",
    ))
    .unwrap();
    assert!(matches!(demanding.isolation(&Request::default(), &poor), Err(ResolveError::Unavailable(_))));
}

#[test]
fn no_pid_namespace_without_a_mount_namespace() {
    let missing = [(layer::MOUNT_NAMESPACE, "none".to_owned())];
    let poor = HostView { missing: &missing, ..host(&[]) };
    let soft = "[namespaces]\nmount = \"best_effort\"\npid = \"best_effort\"\n[filesystem]\ndemand = \"best_effort\"";
    let plan = Policy::parse(&extending(soft)).unwrap().isolation(&Request::default(), &poor).unwrap();
    assert_eq!(plan.namespaces.0, Namespaces::ALL & !Namespaces::MOUNT & !Namespaces::PID);
    assert!(plan.root.is_none());
    let hard = soft.replacen("pid = \"best_effort\"", "pid = \"required\"", 1);
    let refused = Policy::parse(&extending(&hard)).unwrap().isolation(&Request::default(), &poor);
    assert!(
        matches!(&refused, Err(ResolveError::Unavailable(layers)) if layers[0].0 == layer::PID_NAMESPACE),
        "{refused:?}"
    );
}
