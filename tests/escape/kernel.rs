//! The kernel's calls.

use crate::suite::{Suite, tests};

static KERNEL: Suite = Suite::new(include_str!("attacks/kernel.py"));

tests! { KERNEL:
    mounts
    nested_user_namespaces
    file_handles
    #[cfg(target_arch = "x86_64")]
    foreign_architecture
    #[cfg(target_arch = "x86_64")]
    x32_calls
    io_uring
    hidden_flags_of_clone3
    kernel_features
    key_calls
    personalities
    #[cfg(target_arch = "x86_64")]
    descriptor_tables
    own_listener
    unknown_calls
    privileged_calls
    page_cache_writes
    state_of_a_command
}
