//! Landlock: what paths, ports and peers a session reaches. See landlock(7).
//!
//! Everything that the kernel *and* the crate know to handle is handled, and only what the plan names is allowed.
//! What the plan asks and this kernel cannot do is told in the [`Outcome`]; nothing of it is dropped in silence,
//! because each right is asked for as a hard requirement of an ABI that is known to be there.

use crate::error::SysError;
use crate::plan::{self, Access};
use crate::sys;
use ::landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope, make_bitflags,
};
use std::error::Error;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What the plan's [`Access::WRITE`] is. Devices are made by nobody.
const WRITE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    WriteFile | RemoveDir | RemoveFile | MakeDir | MakeReg | MakeSock | MakeFifo | MakeSym | Refer | Truncate
    | ResolveUnix
});
/// What a plan may ask, the ABI that brought it, and the kernel that brought that.
const FEATURES: [(&str, i32, &str); 6] = [
    ("files", 1, "5.13"),
    ("refer", 2, "5.19"),
    ("truncate", 3, "6.2"),
    ("tcp", 4, "6.7"),
    ("ioctl_dev", 5, "6.10"),
    ("scopes", 6, "6.12"),
];

/// What was enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The ABI that was used, 0 for none.
    pub abi: i32,
    /// Whether all that the plan asks is.
    pub full: bool,
    /// What is not: `files`, `refer`, `truncate`, `tcp`, `ioctl_dev`, `scopes`.
    pub missing: Vec<&'static str>,
}

/// The kernel's Landlock ABI, 0 for none.
#[must_use]
pub fn abi() -> i32 {
    sys::landlock::abi()
}

/// What `landlock` asks that ABI number `abi` cannot do.
#[must_use]
pub fn missing(landlock: &plan::Landlock, abi: i32) -> Vec<&'static str> {
    let asks = |feature: &str| match feature {
        "tcp" => landlock.bind_ports.is_some() || landlock.connect_ports.is_some(),
        "scopes" => landlock.scoped,
        _ => true,
    };
    FEATURES.iter().filter(|(name, since, _)| abi < *since && asks(name)).map(|(name, ..)| *name).collect()
}

/// The oldest kernel that has a feature of [`Outcome::missing`].
#[must_use]
pub fn since_kernel(feature: &str) -> &'static str {
    FEATURES.iter().find(|(name, ..)| *name == feature).map_or("a newer one", |(.., kernel)| kernel)
}

/// What `landlock` asks that this ABI cannot do, in words; see [`missing`].
#[must_use]
pub fn shortfall(landlock: &plan::Landlock, abi: i32) -> Option<String> {
    let missing = missing(landlock, abi);
    let kernel = since_kernel(missing.last()?);
    Some(format!("this kernel's Landlock has no {}; all of it needs Linux {kernel}", missing.join(", ")))
}

/// Confines the calling thread, and what it will start, to the plan and to what `also` allows beneath descriptors. Sets
/// `PR_SET_NO_NEW_PRIVS`. On a kernel without Landlock nothing is done, and the outcome says so.
///
/// From ABI 9 on, connecting to a socket of the file system needs [`Access::WRITE`] beneath it; before, Landlock
/// leaves that to the mounts.
///
/// # Errors
/// A path that is there but could not be opened; `ENOENT` where the plan has rules and none of their paths is
/// there; what the kernel refuses.
pub fn apply(landlock: &plan::Landlock, also: &[(BorrowedFd<'_>, Access)]) -> Result<Outcome, SysError> {
    let abi = ABI::from(self::abi());
    let missing = missing(landlock, abi as i32);
    let outcome = Outcome { abi: abi as i32, full: missing.is_empty(), missing };
    if abi == ABI::Unsupported {
        return Ok(outcome);
    }
    let mut ruleset = create(landlock, abi).map_err(|error| failed("landlock_create_ruleset", &error))?;
    let mut opened = 0usize;
    for rule in &landlock.rules {
        let path = Path::new(std::ffi::OsStr::from_bytes(&rule.path));
        let descriptor = match PathFd::new(path) {
            Ok(descriptor) => descriptor,
            Err(error) if errno(&error) == libc::ENOENT => continue,
            Err(error) => {
                return Err(SysError::from_errno("open", path.display().to_string(), errno(&error)));
            }
        };
        opened += 1;
        ruleset = allow(ruleset, &descriptor, rule.access, abi)
            .map_err(|errno| SysError::from_errno("landlock_add_rule", path.display().to_string(), errno))?;
    }
    if opened == 0 && !landlock.rules.is_empty() {
        return Err(SysError::from_errno("landlock_add_rule", "any path of the plan", libc::ENOENT));
    }
    for (descriptor, access) in also {
        ruleset = allow(ruleset, descriptor, *access, abi)
            .map_err(|errno| SysError::from_errno("landlock_add_rule", "a given descriptor", errno))?;
    }
    let ruleset = allow_ports(ruleset, landlock, abi).map_err(|error| failed("landlock_add_rule", &error))?;
    let status = ruleset.restrict_self().map_err(|error| failed("landlock_restrict_self", &error))?;
    if status.ruleset != RulesetStatus::FullyEnforced || !status.no_new_privs {
        return Err(SysError::from_errno("landlock_restrict_self", "the ruleset", libc::EOPNOTSUPP));
    }
    Ok(outcome)
}

fn create(landlock: &plan::Landlock, abi: ABI) -> Result<RulesetCreated, ::landlock::RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))?;
    let ports = handled_ports(landlock, abi);
    if !ports.is_empty() {
        ruleset = ruleset.handle_access(ports)?;
    }
    let scopes = Scope::from_all(abi);
    if landlock.scoped && !scopes.is_empty() {
        ruleset = ruleset.scope(scopes)?;
    }
    ruleset.create()
}

fn handled_ports(landlock: &plan::Landlock, abi: ABI) -> BitFlags<AccessNet> {
    let mut asked = BitFlags::EMPTY;
    if landlock.bind_ports.is_some() {
        asked |= AccessNet::BindTcp;
    }
    if landlock.connect_ports.is_some() {
        asked |= AccessNet::ConnectTcp;
    }
    asked & AccessNet::from_all(abi)
}

/// One rule, of the rights that the ABI has and that the kind of file may carry; none if that leaves none.
fn allow(ruleset: RulesetCreated, on: impl AsFd, access: Access, abi: ABI) -> Result<RulesetCreated, i32> {
    let stat = nix::sys::stat::fstat(on.as_fd()).map_err(|errno| errno as i32)?;
    let is_directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
    let allowed = rights(access, abi, is_directory);
    if allowed.is_empty() {
        return Ok(ruleset);
    }
    ruleset.add_rule(PathBeneath::new(on.as_fd(), allowed)).map_err(|error| errno(&error))
}

fn rights(access: Access, abi: ABI, is_directory: bool) -> BitFlags<AccessFs> {
    let mut rights = BitFlags::EMPTY;
    for (kind, its) in [
        (Access::READ, AccessFs::ReadFile | AccessFs::ReadDir),
        (Access::EXECUTE, AccessFs::Execute.into()),
        (Access::WRITE, WRITE),
        (Access::DEVICE, AccessFs::IoctlDev.into()),
    ] {
        if access.0 & kind != 0 {
            rights |= its;
        }
    }
    rights & if is_directory { AccessFs::from_all(abi) } else { AccessFs::from_file(abi) }
}

fn allow_ports(
    mut ruleset: RulesetCreated,
    landlock: &plan::Landlock,
    abi: ABI,
) -> Result<RulesetCreated, ::landlock::RulesetError> {
    let handled = handled_ports(landlock, abi);
    for (access, ports) in
        [(AccessNet::BindTcp, &landlock.bind_ports), (AccessNet::ConnectTcp, &landlock.connect_ports)]
    {
        for port in ports.iter().flatten().filter(|_| handled.contains(access)) {
            ruleset = ruleset.add_rule(NetPort::new(*port, access))?;
        }
    }
    Ok(ruleset)
}

fn failed(operation: &'static str, error: &(dyn Error + 'static)) -> SysError {
    SysError::from_errno(operation, "the ruleset", errno(error))
}

/// The number at the end of a chain of errors; `EINVAL` for the crate's own, which are about what was asked of it.
fn errno(error: &(dyn Error + 'static)) -> i32 {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(errno) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return errno;
        }
        next = error.source();
    }
    libc::EINVAL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_abi_lacks_what_came_later_and_was_asked() {
        let mut asked =
            plan::Landlock { scoped: true, bind_ports: Some(Vec::new()), ..plan::Landlock::default() };
        let all = ["files", "refer", "truncate", "tcp", "ioctl_dev", "scopes"];
        for (abi, missing) in (0..).zip((0..=6).map(|from| &all[from..])) {
            assert_eq!(self::missing(&asked, abi), missing, "ABI {abi}");
        }
        (asked.scoped, asked.bind_ports) = (false, None);
        assert_eq!(missing(&asked, 2), ["truncate", "ioctl_dev"]);
        assert!(missing(&asked, 5).is_empty());
        assert_eq!(since_kernel("scopes"), "6.12");
    }

    #[test]
    fn a_file_carries_no_right_of_a_directory() {
        let all = Access(Access::ALL);
        assert_eq!(
            rights(all, ABI::V7, false),
            make_bitflags!(AccessFs::{ReadFile | WriteFile | Execute | Truncate | IoctlDev})
        );
        assert!(rights(Access(Access::DEVICE), ABI::V4, true).is_empty());
        for abi in (1..=ABI::V10 as i32).map(ABI::from) {
            let denied = AccessFs::from_all(abi) & !rights(all, abi, true);
            assert_eq!(denied, AccessFs::MakeChar | AccessFs::MakeBlock, "{abi:?}");
        }
    }
}
