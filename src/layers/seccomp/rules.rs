//! The rules on arguments. What they may look at are numbers only: memory can change behind a filter's back.

use crate::plan::Seccomp;
use std::collections::BTreeMap;

/// `argument & mask == value`. Most arguments are C `int`s, of which the kernel drops the upper half.
#[derive(Debug, Clone, Copy)]
pub(super) struct Test {
    pub(super) argument: u8,
    pub(super) mask: u32,
    pub(super) value: u32,
    /// Whether the upper half counts, as of addresses.
    pub(super) wide: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Refused unless one of the lists of tests holds.
    OnlyIf,
    /// Refused if one does.
    NeverIf,
}

/// One rule of one call.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) kind: Kind,
    /// Lists of tests; one holds if all its tests do.
    pub(super) any: Vec<Vec<Test>>,
    pub(super) errno: i32,
}

const CLONE_NEW: u32 = 0x7e02_0000;
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const FILE_TYPE: u32 = libc::S_IFMT;
/// Either of them makes `open(2)` look at its mode; the kernel's `__O_TMPFILE` is the half that is not `O_DIRECTORY`.
const O_CREAT_OR_TMPFILE: u32 = libc::O_CREAT as u32 | (libc::O_TMPFILE & !libc::O_DIRECTORY) as u32;
/// `SOCK_TYPE_MASK`.
const SOCKET_TYPE: u32 = 0xf;
const RWF_NOWAIT: u32 = 8;
const NEW_LISTENER: u32 = 8;
const ANY_PERSONALITY: u32 = 0xffff_ffff;

/// Terminal requests that put input into a terminal, or take the console or the line away from others.
const TERMINAL_REQUESTS: [u32; 4] = [0x5412, 0x541c, 0x5423, 0x541d];
/// `FS_IOC_SETFLAGS` (of both word sizes), `FS_IOC_FSSETXATTR`, `FIDEDUPERANGE`, `FS_IOC_ENABLE_VERITY`,
/// `FS_IOC_MEASURE_VERITY`: strict plans have no attributes, and do not ask what files have in common.
const FILE_REQUESTS: [u32; 6] =
    [0x4008_6602, 0x4004_6602, 0x401c_5820, 0xc018_9436, 0x4080_6685, 0xc004_6686];
/// Level and option: protocols stacked on TCP, and its repair; programs; IPsec policies; transmission times.
const SOCKET_OPTIONS: [(u32, u32); 10] = [
    (6, 31),  // TCP_ULP
    (6, 19),  // TCP_REPAIR
    (1, 50),  // SO_ATTACH_BPF
    (1, 51),  // SO_ATTACH_REUSEPORT_CBPF
    (1, 52),  // SO_ATTACH_REUSEPORT_EBPF
    (1, 61),  // SO_TXTIME
    (0, 16),  // IP_IPSEC_POLICY
    (0, 17),  // IP_XFRM_POLICY
    (41, 34), // IPV6_IPSEC_POLICY
    (41, 35), // IPV6_XFRM_POLICY
];

fn is(argument: u8, value: u32) -> Test {
    Test { argument, mask: u32::MAX, value, wide: false }
}

fn masked(argument: u8, mask: u32, value: u32) -> Test {
    Test { argument, mask, value, wide: false }
}

/// A null pointer.
fn nowhere(argument: u8) -> Test {
    Test { argument, mask: u32::MAX, value: 0, wide: true }
}

fn any_of(argument: u8, values: &[u32]) -> Vec<Vec<Test>> {
    values.iter().map(|value| vec![is(argument, *value)]).collect()
}

fn only_if(any: Vec<Vec<Test>>) -> Rule {
    Rule { kind: Kind::OnlyIf, any, errno: libc::EPERM }
}

fn never_if(any: Vec<Vec<Test>>) -> Rule {
    Rule { kind: Kind::NeverIf, any, errno: libc::EPERM }
}

/// Calls that take what they do from memory, so that they could do what the rules forbid.
pub(super) fn opaque(strict: bool) -> Vec<u32> {
    let mut calls = vec![
        libc::SYS_clone3,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
    ];
    if strict {
        calls.push(libc::SYS_openat2);
    }
    calls.into_iter().map(|call| call as u32).collect()
}

/// The rules of a plan by call.
pub(super) fn of(plan: &Seccomp) -> BTreeMap<u32, Vec<Rule>> {
    let mut rules: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    let mut add = |call: libc::c_long, rule: Rule| rules.entry(call as u32).or_default().push(rule);
    let unshare = libc::SYS_unshare as u32;
    if !plan.allow.contains(&unshare) || plan.refuse.contains(&unshare) {
        add(libc::SYS_clone, only_if(vec![vec![masked(0, CLONE_NEW, 0)]]));
    }
    // The limits of other processes are read only: a session's init has the same user as its commands.
    add(libc::SYS_prlimit64, only_if(vec![vec![is(0, 0)], vec![nowhere(2)]]));
    add(libc::SYS_personality, only_if(any_of(0, &[0, ANY_PERSONALITY])));
    add(libc::SYS_seccomp, never_if(vec![vec![masked(1, NEW_LISTENER, NEW_LISTENER)]]));
    add(libc::SYS_ioctl, never_if(any_of(1, &TERMINAL_REQUESTS)));
    add(libc::SYS_fcntl, never_if(any_of(1, &[libc::F_SETLEASE as u32, libc::F_NOTIFY as u32])));
    if plan.strict {
        add(libc::SYS_ioctl, never_if(any_of(1, &FILE_REQUESTS)));
        add(libc::SYS_prctl, never_if(any_of(0, &[libc::PR_SET_MM as u32])));
        let waits = only_if(vec![vec![masked(5, RWF_NOWAIT, 0)]]);
        add(libc::SYS_preadv2, Rule { errno: libc::EOPNOTSUPP, ..waits });
    }
    sockets(plan, &mut add);
    modes(if plan.strict { SET_UID | SET_GID } else { SET_UID }, &mut add);
    rules
}

fn sockets(plan: &Seccomp, add: &mut impl FnMut(libc::c_long, Rule)) {
    let families: Vec<u32> = plan.families.iter().map(|family| u32::from(*family)).collect();
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        // A rule without tests would be one that always holds; no call has the family 2^32 - 1.
        let known = if families.is_empty() { any_of(0, &[u32::MAX]) } else { any_of(0, &families) };
        add(call, Rule { errno: libc::EAFNOSUPPORT, ..only_if(known) });
    }
    add(libc::SYS_socket, Rule { errno: libc::EPROTONOSUPPORT, ..only_if(protocols(&families)) });
    let slowly = |argument| {
        let tests = vec![vec![masked(argument, libc::MSG_FASTOPEN as u32, 0)]];
        Rule { errno: libc::EOPNOTSUPP, ..only_if(tests) }
    };
    // A connection that is made in passing is one that Landlock does not see.
    add(libc::SYS_sendto, slowly(3));
    add(libc::SYS_sendmsg, slowly(2));
    add(libc::SYS_sendmmsg, slowly(3));
    let options = SOCKET_OPTIONS.iter().map(|(level, option)| vec![is(1, *level), is(2, *option)]);
    add(libc::SYS_setsockopt, never_if(options.collect()));
}

/// Plain TCP and UDP, for Landlock knows no other (MPTCP would get through), and of netlink the routing
/// tables. The internet's types are told too: `SOCK_PACKET` would turn such a socket into one of another family.
fn protocols(families: &[u32]) -> Vec<Vec<Test>> {
    let mut any = Vec::new();
    for family in families {
        let family_is = is(0, *family);
        match *family as i32 {
            libc::AF_INET | libc::AF_INET6 => {
                for (kind, own) in
                    [(libc::SOCK_STREAM, libc::IPPROTO_TCP), (libc::SOCK_DGRAM, libc::IPPROTO_UDP)]
                {
                    for protocol in [0, own as u32] {
                        any.push(vec![family_is, masked(1, SOCKET_TYPE, kind as u32), is(2, protocol)]);
                    }
                }
            }
            libc::AF_NETLINK => any.push(vec![family_is, is(2, libc::NETLINK_ROUTE as u32)]),
            _ => any.push(vec![family_is]),
        }
    }
    if any.is_empty() { any_of(0, &[u32::MAX]) } else { any }
}

/// No file gets the bits in `never`, by whichever call, and no node is a device.
fn modes(never: u32, add: &mut impl FnMut(libc::c_long, Rule)) {
    let without = |argument| only_if(vec![vec![masked(argument, never, 0)]]);
    add(libc::SYS_fchmod, without(1));
    add(libc::SYS_fchmodat, without(2));
    add(SYS_FCHMODAT2, without(2));
    add(libc::SYS_mkdirat, without(2));
    let open =
        |flags| only_if(vec![vec![masked(flags, O_CREAT_OR_TMPFILE, 0)], vec![masked(flags + 1, never, 0)]]);
    add(libc::SYS_openat, open(2));
    let node = |argument| {
        let kinds = [0, libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK];
        only_if(kinds.map(|kind| vec![masked(argument, FILE_TYPE | never, kind)]).to_vec())
    };
    add(libc::SYS_mknodat, node(2));
    #[cfg(target_arch = "x86_64")]
    {
        add(libc::SYS_chmod, without(1));
        add(libc::SYS_mkdir, without(1));
        add(libc::SYS_creat, without(1));
        add(libc::SYS_open, open(1));
        add(libc::SYS_mknod, node(1));
    }
}

/// The same everywhere, but not everywhere in `libc`.
const SYS_FCHMODAT2: libc::c_long = 452;
