//! What was asked of each layer, what the kernel enforces, and the one verdict that follows.

use serde::{Deserialize, Serialize};

/// How much a layer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Demand {
    /// No session without it.
    Required,
    /// As far as the host can; the report says how far.
    BestEffort,
    /// Not wanted.
    Off,
}

impl Demand {
    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::BestEffort => "best_effort",
            Self::Off => "off",
        }
    }
}

/// How far a layer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Enforcement {
    /// As asked.
    Full,
    /// With a gap that the reason names.
    Partial,
    /// Not at all.
    None,
}

/// Where a finding comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Read back from the kernel by a process other than the one that applied the layer.
    Kernel,
    /// Tried from within, by a process under the session's confinement.
    Witness,
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// Where.
    pub source: Source,
    /// What; never a value of an environment.
    pub observed: String,
}

/// One layer of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerReport {
    /// Its name, of [`layer`].
    pub layer: &'static str,
    /// What was asked.
    pub requested: Demand,
    /// What holds.
    pub enforced: Enforcement,
    /// What that is known from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
    /// Why it is not full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl LayerReport {
    /// Whether the session must not be made because of this layer.
    #[must_use]
    pub fn falls_short(&self) -> bool {
        fold(std::slice::from_ref(self)) == Verdict::Refused
    }
}

/// All layers in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All that was asked holds in full.
    Enforced,
    /// All that is required holds in full; something of best effort does not.
    Degraded,
    /// Something required does not hold in full: no session.
    Refused,
}

/// A session's isolation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What follows from the layers.
    pub verdict: Verdict,
    /// Every layer that was asked for.
    pub layers: Vec<LayerReport>,
}

impl Report {
    /// The report over these layers.
    #[must_use]
    pub fn of(layers: Vec<LayerReport>) -> Self {
        Self { verdict: fold(&layers), layers }
    }

    /// Makes a layer that holds in full `partial`, as what was planned is less than what was asked.
    pub fn fall_short(&mut self, name: &str, reason: &str) {
        for layer in &mut self.layers {
            if layer.layer == name && layer.enforced == Enforcement::Full {
                layer.enforced = Enforcement::Partial;
                layer.reason = Some(reason.to_owned());
            }
        }
        self.verdict = fold(&self.layers);
    }

    /// The layers because of which the session must not be made.
    pub fn short(&self) -> impl Iterator<Item = &LayerReport> {
        self.layers.iter().filter(|layer| layer.falls_short())
    }
}

/// The verdict over `layers`: the worst of what each alone gives.
#[must_use]
pub fn fold(layers: &[LayerReport]) -> Verdict {
    layers.iter().fold(Verdict::Enforced, |so_far, layer| match (so_far, layer.requested, layer.enforced) {
        (Verdict::Refused, _, _) | (_, Demand::Required, Enforcement::Partial | Enforcement::None) => {
            Verdict::Refused
        }
        (_, Demand::BestEffort, Enforcement::Partial | Enforcement::None) => Verdict::Degraded,
        (so_far, Demand::Off, _) | (so_far, _, Enforcement::Full) => so_far,
    })
}

/// Names of layers.
pub mod layer {
    /// The variables of the session's scopes and no other.
    pub const ENVIRONMENT: &str = "environment";
    /// The directory that was asked for.
    pub const WORKING_DIR: &str = "working_dir";
    /// The session's user, not root, without capabilities.
    pub const USER: &str = "user";
    /// A kernel session and process group of each exec's own.
    pub const PROCESS_GROUP: &str = "process_group";
    /// Limits of a process.
    pub const RLIMITS: &str = "rlimits";
    /// The limit that counts a user's processes.
    pub const RLIMIT_NPROC: &str = "rlimit.nproc";
    /// Descriptors 0, 1 and 2 and no other.
    pub const DESCRIPTORS: &str = "descriptors";
    /// `PR_SET_NO_NEW_PRIVS`.
    pub const NO_NEW_PRIVS: &str = "no_new_privs";
    /// All descendants of an exec, and their end.
    pub const PROCESS_TREE: &str = "process_tree";
    /// A user namespace of the session's own.
    pub const NAMESPACE_USER: &str = "namespace.user";
    /// A mount namespace.
    pub const NAMESPACE_MOUNT: &str = "namespace.mount";
    /// A PID namespace.
    pub const NAMESPACE_PID: &str = "namespace.pid";
    /// A System V and POSIX IPC namespace.
    pub const NAMESPACE_IPC: &str = "namespace.ipc";
    /// A host name.
    pub const NAMESPACE_UTS: &str = "namespace.uts";
    /// A cgroup namespace.
    pub const NAMESPACE_CGROUP: &str = "namespace.cgroup";
    /// A network namespace, with loopback alone.
    pub const NAMESPACE_NET: &str = "namespace.net";
    /// The session's root, mount by mount.
    pub const FILESYSTEM: &str = "filesystem";
    /// No capability in any of the five sets.
    pub const CAPABILITIES: &str = "capabilities";
    /// Paths, ports and peers.
    pub const LANDLOCK: &str = "landlock";
    /// System calls.
    pub const SECCOMP: &str = "seccomp";
}

/// The layers of an L1 session and how much each is wanted.
pub const L1: [(&str, Demand); 9] = [
    (layer::ENVIRONMENT, Demand::Required),
    (layer::WORKING_DIR, Demand::Required),
    (layer::USER, Demand::Required),
    (layer::PROCESS_GROUP, Demand::Required),
    (layer::RLIMITS, Demand::Required),
    (layer::RLIMIT_NPROC, Demand::BestEffort),
    (layer::DESCRIPTORS, Demand::Required),
    (layer::NO_NEW_PRIVS, Demand::Required),
    (layer::PROCESS_TREE, Demand::BestEffort),
];

/// The layers that a plan may add.
pub const L2: [&str; 11] = [
    layer::NAMESPACE_USER,
    layer::NAMESPACE_MOUNT,
    layer::NAMESPACE_PID,
    layer::NAMESPACE_IPC,
    layer::NAMESPACE_UTS,
    layer::NAMESPACE_CGROUP,
    layer::NAMESPACE_NET,
    layer::FILESYSTEM,
    layer::CAPABILITIES,
    layer::LANDLOCK,
    layer::SECCOMP,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(requested: Demand, enforced: Enforcement) -> LayerReport {
        LayerReport { layer: layer::USER, requested, enforced, evidence: None, reason: None }
    }

    #[test]
    fn the_verdict_is_the_worst_of_its_layers_in_any_order() {
        use Demand::{BestEffort, Off, Required};
        use Enforcement::{Full, None, Partial};
        let cases = [
            (Required, Full, Verdict::Enforced),
            (Required, Partial, Verdict::Refused),
            (Required, None, Verdict::Refused),
            (BestEffort, Full, Verdict::Enforced),
            (BestEffort, Partial, Verdict::Degraded),
            (BestEffort, None, Verdict::Degraded),
            (Off, Full, Verdict::Enforced),
            (Off, Partial, Verdict::Enforced),
            (Off, None, Verdict::Enforced),
        ];
        let rank = |verdict: Verdict| verdict as u8;
        for (a, b, one) in cases {
            assert_eq!(fold(&[layer(a, b)]), one);
            for (c, d, two) in cases {
                assert_eq!(rank(fold(&[layer(a, b), layer(c, d)])), rank(one).max(rank(two)));
            }
        }
        assert_eq!(fold(&[]), Verdict::Enforced);
    }

    #[test]
    fn it_is_written_as_the_protocol_says() {
        let mut short = layer(Demand::BestEffort, Enforcement::None);
        short.reason = Some("why".into());
        short.evidence = Some(Evidence { source: Source::Kernel, observed: "seen".into() });
        assert_eq!(
            serde_json::to_string(&Report::of(vec![short])).unwrap(),
            "{\"verdict\":\"degraded\",\"layers\":[{\"layer\":\"user\",\"requested\":\"best_effort\",\
             \"enforced\":\"none\",\"evidence\":{\"source\":\"kernel\",\"observed\":\"seen\"},\"reason\":\"why\"}]}"
        );
    }
}
