//! The small files of `/etc` that are made for each session: no name of the host's users, hosts or resolvers
//! gets in.

use super::Policy;

/// Places that every root has of its own making.
pub const MADE: [&str; 7] =
    ["/etc/passwd", "/etc/group", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/var/tmp", "/var/run"];
/// What the session's user is called.
const USER: &str = "agent";

/// `/etc/passwd`: root, the session's user and nobody.
pub fn passwd(policy: &Policy, home: &str) -> String {
    let (uid, gid) = (policy.user.uid, policy.user.gid);
    let nobody = "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
    if uid == 0 {
        return format!("root:x:0:{gid}:root:{home}:/bin/sh\n{nobody}");
    }
    format!(
        "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n{USER}:x:{uid}:{gid}:{USER}:{home}:/bin/sh\n{nobody}"
    )
}

/// `/etc/group`: the same, and the group of terminals.
pub fn group(policy: &Policy) -> String {
    let own = match policy.user.gid {
        0 | 5 => String::new(),
        gid => format!("{USER}:x:{gid}:\n"),
    };
    format!("root:x:0:\ntty:x:5:\n{own}nogroup:x:65534:\n")
}

/// `/etc/hosts`: this session and nothing else.
pub fn hosts(policy: &Policy) -> String {
    let name = &policy.namespaces.hostname;
    let own = if name.is_empty() { String::new() } else { format!("127.0.1.1 {name}\n") };
    format!("127.0.0.1 localhost\n{own}::1 localhost ip6-localhost ip6-loopback\n")
}
