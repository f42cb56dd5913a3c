//! How much each layer of a session is wanted under a policy.

use super::Policy;
use crate::report::{Demand, layer as l1};

/// Names of the layers beyond L1.
pub mod layer {
    /// A user namespace.
    pub const USER_NAMESPACE: &str = "namespace.user";
    /// A mount namespace.
    pub const MOUNT_NAMESPACE: &str = "namespace.mount";
    /// A PID namespace.
    pub const PID_NAMESPACE: &str = "namespace.pid";
    /// An IPC namespace.
    pub const IPC_NAMESPACE: &str = "namespace.ipc";
    /// A UTS namespace.
    pub const UTS_NAMESPACE: &str = "namespace.uts";
    /// A cgroup namespace.
    pub const CGROUP_NAMESPACE: &str = "namespace.cgroup";
    /// A network namespace.
    pub const NET_NAMESPACE: &str = "namespace.net";
    /// A root of the session's own.
    pub const FILESYSTEM: &str = "filesystem";
    /// Landlock.
    pub const LANDLOCK: &str = "landlock";
    /// A system call filter.
    pub const SECCOMP: &str = "seccomp";
    /// No capability in any set.
    pub const CAPABILITIES: &str = "capabilities";
}

impl Policy {
    /// Every layer, first those of L1, and how much it is wanted; what is `off` too.
    #[must_use]
    pub fn demands(&self) -> Vec<(&'static str, Demand)> {
        let own = &self.namespaces;
        // Every set can be emptied only in a user namespace of the session's own; without one the launcher has given
        // its capabilities up with its user, and what is left is a bounding set that no_new_privileges makes idle.
        let capabilities = own.user;
        vec![
            (l1::ENVIRONMENT, Demand::Required),
            (l1::WORKING_DIR, Demand::Required),
            (l1::USER, self.user.demand),
            (l1::PROCESS_GROUP, Demand::Required),
            (l1::RLIMITS, Demand::Required),
            (l1::RLIMIT_NPROC, Demand::BestEffort),
            (l1::DESCRIPTORS, Demand::Required),
            (l1::NO_NEW_PRIVS, self.no_new_privileges),
            (l1::PROCESS_TREE, Demand::BestEffort),
            (layer::USER_NAMESPACE, own.user),
            (layer::MOUNT_NAMESPACE, own.mount),
            (layer::PID_NAMESPACE, own.pid),
            (layer::IPC_NAMESPACE, own.ipc),
            (layer::UTS_NAMESPACE, own.uts),
            (layer::CGROUP_NAMESPACE, own.cgroup),
            (layer::NET_NAMESPACE, own.net),
            (layer::FILESYSTEM, self.filesystem.demand),
            (layer::CAPABILITIES, capabilities),
            (layer::LANDLOCK, self.landlock.demand),
            (layer::SECCOMP, self.seccomp.demand),
        ]
    }
}
