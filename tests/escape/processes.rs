//! Processes: what they are given, whom they reach, and that they end.

use crate::common::{Home, is_root, marked, new_mark, ways, within};
use crate::suite::{POLICIES, Suite, tests};
use crate::world::World;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

static PROCESSES: Suite = Suite::new(include_str!("attacks/processes.py"));

tests! { PROCESSES:
    inherited_environment
    first_process
    suspended_filters
    joined_namespaces
    core_dumps
    priorities
}

#[test]
fn signals_to_everybody() {
    for by in ways() {
        let mut world = World::new(*by);
        let mut client = world.daemon.connect();
        for policy in POLICIES {
            let (one, two) = (world.session(&mut client, policy), world.session(&mut client, policy));
            let neighbour = client.start(&two, "sleep 60", json!({}));
            let own = client.start(&one, "sleep 60", json!({}));
            client.run(&one, "kill -KILL -1; kill -KILL 1; kill -KILL 0", json!({"timeout_s": 10}));
            // The control: it ended what is its own.
            let ended = client.ok("exec.wait", json!({"exec_id": own, "timeout_s": 10}));
            assert_eq!(ended["state"], "ended", "{policy} {by:?}: {ended}");
            let other = client.ok("exec.info", json!({"exec_id": neighbour}));
            assert_eq!(other["state"], "running", "{policy} {by:?}: {other}");
            assert!(world.holder.is_alive());
            assert_eq!(client.run(&two, "echo on", json!({}))["stdout"], "on\n");
            for session in [one, two] {
                client.ok("session.destroy", json!({"session_id": session, "force": true}));
            }
        }
        assert!(world.daemon.inits().is_empty());
    }
}

/// Processes of their own session, without a parent, deaf, stopped.
const ORPHANS: &str = "trap '' TERM HUP INT; (setsid sh -c '(sleep 300 &) & trap \"\" TERM; sleep 300' &) ; \
                       (nohup sh -c 'while :; do sleep 1; done' >/dev/null 2>&1 &) ; kill -STOP $$";

#[test]
fn orphans() {
    for by in ways() {
        let daemon = Home::new(*by).start(&[]);
        let mut client = daemon.connect();
        for policy in POLICIES {
            let mark = new_mark();
            let session = client.session(json!({"policy": policy, "env": {"MARK": mark}}));
            let exec = client.start(&session, ORPHANS, json!({"grace_s": 0.1}));
            // Only root sees the environment of what another user namespace holds.
            if is_root() {
                assert!(within(Duration::from_secs(5), || marked(&mark).len() >= 4), "{:?}", marked(&mark));
            }
            let outcome = client.ok("exec.cancel", json!({"exec_id": exec, "grace_s": 0.1}));
            assert_eq!(outcome["end"]["reason"], "canceled", "{outcome}");
            assert!(marked(&mark).is_empty(), "{policy} {by:?}: {:?}", marked(&mark));
            let outcome = client.run(&session, ORPHANS, json!({"timeout_s": 0.5, "grace_s": 0.1}));
            assert_eq!(outcome["timed_out"], true, "{outcome}");
            assert!(marked(&mark).is_empty(), "{policy} {by:?}: {:?}", marked(&mark));
            assert_eq!(client.run(&session, "echo on", json!({}))["stdout"], "on\n");
            client.start(&session, ORPHANS, json!({}));
            let gone: Value = client.ok("session.destroy", json!({"session_id": session, "force": true}));
            assert_eq!(gone["state"], "terminated");
            assert!(marked(&mark).is_empty() && daemon.inits().is_empty(), "{policy} {by:?}");
        }
    }
}

#[test]
fn held_output() {
    for by in ways() {
        let daemon = Home::new(*by).start(&[]);
        let mut client = daemon.connect();
        for policy in POLICIES {
            let session = client.session(json!({"policy": policy}));
            for holder in
                ["sleep 1000 & echo said", "setsid sleep 1000 & echo said", "(sleep 1000 3>&1 &) & echo said"]
            {
                let begun = Instant::now();
                let outcome = client.run(&session, holder, json!({}));
                assert_eq!((&outcome["stdout"], &outcome["exit_code"]), (&json!("said\n"), &json!(0)));
                let took = begun.elapsed();
                assert!(took < Duration::from_secs(8), "{policy} {by:?}: {holder}: {took:?}");
            }
            // The control: one that is waited for is waited for.
            let waited = client.run(&session, "(sleep 0.3; echo late) & wait", json!({}));
            assert_eq!(waited["stdout"], "late\n");
            client.ok("session.destroy", json!({"session_id": session, "force": true}));
        }
    }
}
