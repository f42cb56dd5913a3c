use super::*;
use crate::plan::SessionPlan;
use crate::plan::{Isolation, Rlimit};
use std::collections::BTreeMap;

#[test]
fn every_message_survives_its_own_packet() {
    let plan = SessionPlan {
        uid: 1,
        gid: 2,
        mark: 3,
        umask: 0o77,
        nproc: 64,
        no_new_privileges: true,
        working_dir: b"/w".to_vec(),
        shell: b"/bin/sh".to_vec(),
        rlimits: vec![Rlimit { resource: 1, soft: 2, hard: 3 }],
        isolation: Isolation::default(),
    };
    for message in [
        ToLauncher::Hello { version: VERSION, mark: 9 },
        ToLauncher::Create { session: 7, plan: Box::new(plan) },
        ToLauncher::Kill { session: 1 },
        ToLauncher::Sweep,
        ToLauncher::Prepare,
    ] {
        let packet = message.encode();
        assert_eq!(ToLauncher::decode(&packet), Ok(message));
        assert_eq!(ToLauncher::decode(&packet[..packet.len() - 1]), Err(DecodeError));
        assert_eq!(ToLauncher::decode(&[packet.as_slice(), &[0]].concat()), Err(DecodeError));
    }
    for message in [
        FromInit::Ready { pid: 5 },
        FromInit::SpawnFailed { exec: 1, stage: Stage::Exec, errno: 2 },
        FromInit::LeaderExited {
            exec: 1,
            status: 256,
            user_us: 1,
            system_us: 2,
            max_rss_kib: 3,
            blocks_in: 4,
            blocks_out: u64::MAX,
            last: true,
        },
        FromInit::TreeGone { exec: 3, killed: 9 },
    ] {
        assert_eq!(FromInit::decode(message.encode().as_bytes()), Ok(message));
    }
}

#[test]
fn a_large_payload_is_split_and_whole() {
    let secret = crate::secret::Secret::new(vec![b'v'; 150_000]);
    let environment = BTreeMap::from([("K", &secret)]);
    let packets =
        spawn_packets(SpawnHeader { exec: 1, ..Default::default() }, None, &[b"a".as_slice()], &environment)
            .unwrap_or_default();
    assert_eq!(packets.len(), 3);
    assert!(packets.iter().all(|packet| packet.len() <= MAX_PACKET));
    let Ok(ToInit::Spawn(header, head)) = ToInit::decode(&packets[0]) else { panic!("not a spawn") };
    let rest: usize = packets[1..].iter().map(|packet| packet.len() - 1).sum();
    assert_eq!(header.payload_len as usize, head.len() + rest);
}

#[test]
fn a_nul_is_refused() {
    let refused = spawn_packets(SpawnHeader::default(), None, &[b"a\0b".as_slice()], &BTreeMap::new());
    assert_eq!(refused.err(), Some(SpawnError::Nul("argv")));
}
