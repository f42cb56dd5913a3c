//! A plan as a daemon that was taken over might send it: a true one of a shipped policy with bytes changed, cut and
//! lengthened. What is accepted is one message and no other bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;
use trl::launcher::protocol::ToLauncher;
use trl::plan::SessionPlan;
use trl::policy::{Found, HostView, Policy, Request};

/// An encoded `Create` of each shipped policy.
fn true_ones() -> &'static [Vec<u8>] {
    static ONES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    ONES.get_or_init(|| {
        let look = |_: &str| Found::Directory;
        let host = HostView { id_ranges: false, missing: &[], submounts: &[], look: &look, is_public: &|_| true };
        let packet = |name: &str| {
            let policy = Policy::load(name).expect("shipped");
            let plan = SessionPlan {
                uid: 1000,
                gid: 1000,
                mark: 0x5452_4c00_0000_0001,
                umask: policy.umask,
                nproc: policy.rlimits.nproc,
                no_new_privileges: true,
                working_dir: b"/workspace".to_vec(),
                shell: b"/bin/sh".to_vec(),
                rlimits: policy.rlimits(),
                isolation: policy.isolation(&Request::default(), &host).expect("resolves"),
            };
            ToLauncher::Create { session: 1, plan: Box::new(plan) }.encode()
        };
        Policy::names().into_iter().map(packet).collect()
    })
}

fuzz_target!(|edits: &[u8]| {
    let Some((choice, edits)) = edits.split_first() else { return };
    let ones = true_ones();
    let mut packet = ones[usize::from(*choice) % ones.len()].clone();
    assert!(ToLauncher::decode(&packet).is_ok());
    for edit in edits.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % (packet.len() + 1);
        match edit[2] % 4 {
            0 => packet.truncate(at),
            1 => packet.insert(at, edit[3]),
            _ => {
                if let Some(byte) = packet.get_mut(at) {
                    *byte = edit[3];
                }
            }
        }
    }
    if let Ok(message) = ToLauncher::decode(&packet) {
        assert_eq!(message.encode(), packet, "a second encoding of the same plan");
    }
});
