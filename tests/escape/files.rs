//! Files, and what programs are run from them.

use crate::common::{Home, ways};
use crate::suite::{POLICIES, Suite, tests};
use serde_json::json;
use std::time::{Duration, Instant};

static FILES: Suite = Suite::new(include_str!("attacks/files.py"));

tests! { FILES:
    leaked_descriptors
    working_directory_outside
    magic_links
    set_user_id_files
    set_user_id_programs
    overwritten_launcher
    fileless_execution
    changes_beyond_the_root
    group_readable_files
    page_cache
}

/// Deeper than a path is long, without permissions, with names that are options, lines or no text.
const UNDELETABLE: &str = "
import os
os.chdir('/workspace')
for name in [b'-rf', b'a\\nb', b'\\xff\\xfe', b'\\x1b[2J', b'.' * 3]:
    os.mkdir(name)
    open(name + b'/file', 'w').close()
os.chmod(b'-rf/file', 0)
os.chmod(b'-rf', 0)
os.mkfifo('pipe')
os.symlink('/', 'link')
os.symlink('loop', 'loop')
for _ in range(60):
    os.mkdir('d' * 200)
    os.chdir('d' * 200)
held = open('held', 'w')
os.unlink('held')
print('made')
";

fn entries(home: &Home) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> =
        std::fs::read_dir(home.runtime()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

fn mounts() -> usize {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count()
}

#[test]
fn undeletable_workspace() {
    for by in ways() {
        let daemon = Home::new(*by).start(&[]);
        let mut client = daemon.connect();
        for policy in POLICIES {
            let before = (entries(&daemon.home), mounts());
            let session = client.session(json!({"policy": policy}));
            let made = client.run(&session, "exec python3 -", json!({"stdin": UNDELETABLE}));
            assert_eq!(made["stdout"], "made\n", "{made}");
            // The control: it is there, and stays there until the session ends.
            let there = client.run(&session, "ls /workspace | wc -l", json!({}));
            assert_eq!(there["stdout"].as_str().unwrap().trim(), "9", "{there}");
            let begun = Instant::now();
            client.ok("session.destroy", json!({"session_id": session, "force": true}));
            assert!(begun.elapsed() < Duration::from_secs(5));
            assert_eq!((entries(&daemon.home), mounts()), before, "{policy} {by:?}");
            assert!(daemon.inits().is_empty());
        }
    }
}
