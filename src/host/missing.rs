//! Layers that this kernel, as it is set up now, gives nobody, and what an operator can do about each.
//!
//! Only what is so for every session is asked for here: a plan leaves these layers out where they are a best effort,
//! and there is none where they are required. What fails only when it is tried (a limit that is reached, a security
//! module's rule) refuses the session: nobody can have a best effort made less by exhausting something.

use super::{kernel_before, release};
use crate::report::layer;
use std::fs;
use std::path::Path;

/// A namespace's layer, its kind in `/proc/self/ns`, and in `user.max_KIND_namespaces`.
const NAMESPACES: [(&str, &str); 7] = [
    (layer::NAMESPACE_USER, "user"),
    (layer::NAMESPACE_MOUNT, "mnt"),
    (layer::NAMESPACE_PID, "pid"),
    (layer::NAMESPACE_IPC, "ipc"),
    (layer::NAMESPACE_UTS, "uts"),
    (layer::NAMESPACE_CGROUP, "cgroup"),
    (layer::NAMESPACE_NET, "net"),
];

/// The layers, and why.
#[must_use]
pub fn layers() -> Vec<(&'static str, String)> {
    let mut missing: Vec<(&'static str, String)> =
        NAMESPACES.iter().filter_map(|(layer, kind)| Some((*layer, namespace(kind)?))).collect();
    let reason = |missing: &[(&str, String)], name: &str| {
        missing.iter().find(|(layer, _)| *layer == name).map(|(_, why)| why.clone())
    };
    if let Some(why) = reason(&missing, layer::NAMESPACE_USER) {
        let stands_on_it = NAMESPACES.iter().map(|(layer, _)| *layer).chain([layer::FILESYSTEM]);
        missing = stands_on_it.map(|layer| (layer, why.clone())).collect();
    } else {
        // A PID namespace needs a procfs of its own, and that a mount namespace.
        if let Some(why) = reason(&missing, layer::NAMESPACE_MOUNT) {
            missing.retain(|(layer, _)| *layer != layer::NAMESPACE_PID);
            missing.push((layer::NAMESPACE_PID, why));
        }
        if let Some(why) = reason(&missing, layer::NAMESPACE_PID) {
            missing.push((layer::FILESYSTEM, why));
        }
    }
    missing.extend(landlock().map(|why| (layer::LANDLOCK, why)));
    if !Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        missing.push((layer::SECCOMP, "the kernel needs CONFIG_SECCOMP_FILTER".to_owned()));
    }
    missing
}

/// Why there is no namespace of that kind.
fn namespace(kind: &str) -> Option<String> {
    if !Path::new("/proc/self/ns").join(kind).exists() {
        return Some(format!("this kernel was built without {kind} namespaces"));
    }
    let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    if is(&format!("/proc/sys/user/max_{kind}_namespaces"), "0") {
        return Some(format!("set the sysctl user.max_{kind}_namespaces above 0"));
    }
    let clone = "/proc/sys/kernel/unprivileged_userns_clone";
    (kind == "user" && is(clone, "0"))
        .then(|| "set the sysctl kernel.unprivileged_userns_clone to 1".to_owned())
}

/// Why there is no Landlock.
#[must_use]
pub fn landlock() -> Option<String> {
    if crate::sys::landlock::abi() > 0 {
        return None;
    }
    Some(if kernel_before(5, 13) {
        format!("Landlock needs Linux 5.13, this is {}", release())
    } else {
        "Landlock is not active: add `landlock` to lsm= on the kernel's command line (CONFIG_SECURITY_LANDLOCK)"
            .to_owned()
    })
}

/// Why an ordinary user's session can have no overlay.
#[must_use]
pub fn overlay() -> Option<String> {
    // Distributions made it a parameter of the module before the kernel allowed it.
    let permitted = fs::read_to_string("/sys/module/overlay/parameters/permit_mounts_in_userns");
    if kernel_before(5, 11) && !permitted.is_ok_and(|text| text.trim() == "Y") {
        return Some(format!("overlayfs in user namespaces needs Linux 5.11, this is {}", release()));
    }
    let has = |path: &str, end: &str| {
        fs::read_to_string(path).is_ok_and(|text| {
            text.lines().any(|line| line.split(':').next().is_some_and(|first| first.ends_with(end)))
        })
    };
    let modules = format!("/lib/modules/{}", release());
    let comes = ["", ".xz", ".zst", ".gz"]
        .iter()
        .any(|packed| has(&format!("{modules}/modules.dep"), &format!("/overlay.ko{packed}")));
    let is_there = has("/proc/filesystems", "\toverlay") || comes;
    (!is_there).then(|| "overlayfs is neither in the kernel nor among its modules: load `overlay`".to_owned())
}
