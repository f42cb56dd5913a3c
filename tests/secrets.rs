//! A value that is given to commands is held, and found nowhere else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Home, contains, new_mark, processes, sha256, ways};
use serde_json::json;
use std::path::Path;

fn files(directory: &Path, into: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&entry.path(), into);
        } else if kind.is_file() {
            into.push(entry.path());
        }
    }
}

#[test]
fn canaries_of_every_scope_reach_the_command_and_nothing_else() {
    for by in ways() {
        let home = Home::new(*by);
        let canary = |name: &str| format!("canary-{name}-{}", new_mark());
        let scopes: Vec<(&str, String)> =
            ["RUNTIME", "SESSION_ENV", "SESSION_SECRET", "EXEC_ENV", "EXEC_SECRET"]
                .iter()
                .map(|name| (*name, canary(name)))
                .collect();
        let value = |name: &str| scopes.iter().find(|(key, _)| *key == name).unwrap().1.clone();
        let (argument, input, printed) = (canary("argv"), canary("stdin"), canary("output"));
        let file = home.private_file("env", &format!("RUNTIME={}\n", value("RUNTIME")));
        let daemon = home.start(&[
            "--env-file",
            file.to_str().unwrap(),
            "--log-level",
            "trace",
            "--log-format",
            "json",
        ]);
        let mut client = daemon.connect();
        let session = client.session(json!({"env": {"SESSION_ENV": value("SESSION_ENV")}, "secrets": {"SESSION_SECRET": value("SESSION_SECRET")}}));
        let more =
            json!({"env": {"EXEC_ENV": value("EXEC_ENV")}, "secrets": {"EXEC_SECRET": value("EXEC_SECRET")}});
        let hashes: String =
            scopes.iter().map(|(name, _)| format!("printf %s \"${name}\" | sha256sum; ")).collect();
        let outcome = client.run(&session, &hashes, more.clone());
        let expected: String =
            scopes.iter().map(|(_, value)| format!("{}  -\n", sha256(value.as_bytes()))).collect();
        assert_eq!(outcome["stdout"], expected, "{by:?}: {outcome}");

        // A command that lives on while everything is looked at, one that fails, and requests that are refused.
        let exec = client.start(&session, "exec sleep 60", more.clone());
        client.run(&session, &format!("true {argument}; cat >/dev/null"), json!({"stdin": input}));
        let secret = value("EXEC_SECRET");
        let missing = json!({"session_id": session, "argv": ["/no/such", argument], "env": {"EXEC_ENV": value("EXEC_ENV")}});
        client.call("exec.run", missing);
        for bad in [
            json!({"session_id": session, "command": 7, "secrets": {"EXEC_SECRET": secret}}),
            json!({"session_id": session, "command": "true", "secrets": {"EXEC_SECRET": secret}, "env": {"EXEC_SECRET": secret}}),
            json!({"session_id": session, "command": "true", "secrets": {"EXEC_SECRET": [secret]}}),
            json!({"session_id": session, "command": "true", "secrets": {"EXEC_SECRET": format!("{secret}\0")}}),
            json!({"session_id": secret, "command": "true"}),
            json!({"session_id": session, "command": "true", "secrets": {"EXEC_SECRET": secret}, "unknown": secret}),
        ] {
            client.error("exec.run", bad);
        }
        client.line(&format!("{{\"id\":\"broken\",\"params\":{{\"env\":{{\"K\":\"{secret}\" oops"));
        client.next();
        client.ok("session.info", json!({"session_id": session}));
        client.ok("exec.info", json!({"exec_id": exec}));
        client.ok("exec.list", json!({"session_id": session}));
        client.ok("session.list", json!({}));
        client.ok("system.info", json!({}));

        let mut places: Vec<(String, Vec<u8>)> = vec![("answers".into(), client.transcript.clone())];
        let mut written = Vec::new();
        files(&daemon.home.runtime(), &mut written);
        for path in written {
            places.push((path.display().to_string(), std::fs::read(&path).unwrap_or_default()));
        }
        let mut own = vec![daemon.pid(), daemon.launcher()];
        own.extend(daemon.inits());
        assert_eq!(own.len(), 3);
        for pid in own {
            for name in ["environ", "cmdline"] {
                let path = format!("/proc/{pid}/{name}");
                // A process that is not dumpable shows its environment to root alone.
                places.push((path.clone(), std::fs::read(&path).unwrap_or_default()));
            }
        }
        let printing = client.run(&session, &format!("echo {printed}; echo {printed} >&2"), json!({}));
        assert!(printing["stdout"].as_str().unwrap().contains(&printed));
        client.ok("session.destroy", json!({"session_id": session, "force": true}));
        drop(client);
        common::pause(100);
        let log = daemon.log_bytes();
        assert!(log.len() > 200, "no log at trace");
        places.push(("log".into(), log.clone()));
        for (place, bytes) in &places {
            for (name, value) in &scopes {
                assert!(!contains(bytes, value.as_bytes()), "{by:?}: {name} in {place}");
            }
            assert!(!contains(bytes, b"inherited-canary") || place.ends_with("environ"), "{place}");
        }
        for text in [&argument, &input, &printed] {
            assert!(!contains(&log, text.as_bytes()), "{by:?}: {text} in the log");
        }
        // Nor anywhere in the command lines and environments of this host, now that nothing runs.
        for pid in processes() {
            for name in ["environ", "cmdline"] {
                let bytes = std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
                for (_, value) in &scopes {
                    assert!(!contains(&bytes, value.as_bytes()), "{name} of {pid}");
                }
            }
        }
    }
}
