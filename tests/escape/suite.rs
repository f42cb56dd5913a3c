//! A program of attacks: run once in every way there is, asked for by each test.

use crate::common::ways;
use crate::world::{Attempt, World, attack};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// Policies that stop it all.
pub const POLICIES: [&str; 2] = ["default", "strict"];

pub struct Suite {
    script: &'static str,
    attempts: OnceLock<Vec<Attempt>>,
}

impl Suite {
    pub const fn new(script: &'static str) -> Self {
        Self { script, attempts: OnceLock::new() }
    }
    /// Whether everything of `test` came out as it must.
    pub fn holds(&self, test: &str) {
        judge(self.attempts.get_or_init(|| run(self.script)), test);
    }
}

/// All attempts of `test` came out as they must; there are attacks, and where there are some there are controls.
pub fn judge(attempts: &[Attempt], test: &str) {
    let of_test: Vec<&Attempt> = attempts.iter().filter(|attempt| attempt.test == test).collect();
    let failed: Vec<_> = of_test.iter().filter(|attempt| !attempt.is_held()).map(|it| it.told()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(of_test.iter().any(|attempt| !attempt.control), "{test} attacks nothing");
    let contexts: BTreeSet<&str> = of_test.iter().map(|attempt| attempt.context.as_str()).collect();
    let all: BTreeSet<&str> = attempts.iter().map(|attempt| attempt.context.as_str()).collect();
    for context in all {
        assert!(contexts.contains(context) || context.ends_with(":l1"), "{test} does not run in {context}");
    }
    for context in contexts {
        let has_control = of_test.iter().any(|attempt| attempt.context == context && attempt.control);
        assert!(has_control, "{test} allows nothing in {context}");
    }
}

fn run(script: &str) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    for by in ways() {
        let mut world = World::new(*by);
        let mut client = world.daemon.connect();
        for policy in POLICIES.iter().chain(&["l1"]) {
            let session = world.session(&mut client, policy);
            let given = world.given(&format!("host:{policy}"), &world.holder.held, "env");
            let context = format!("{by:?}:{policy}");
            attempts.extend(attack(&mut client, &session, script, &given, &context));
            // Whatever was tried, the session, its neighbours and the supervisor are still there.
            let after = client.run(&session, "echo on", serde_json::json!({}));
            assert_eq!(after["stdout"], "on\n", "{context}: {after}");
            assert!(world.holder.is_alive(), "{context}");
            client.ok("session.destroy", serde_json::json!({"session_id": session, "force": true}));
        }
        assert!(world.daemon.inits().is_empty());
    }
    attempts
}

/// A test for each name: that part of a program of attacks.
macro_rules! tests {
    ($suite:ident: $($(#[$attribute:meta])* $name:ident)*) => {
        $($(#[$attribute])* #[test] fn $name() { $suite.holds(stringify!($name)); })*
    };
}
pub(crate) use tests;
