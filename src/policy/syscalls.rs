//! System calls by name, in groups that a policy is made of, and those that are refused aloud.
//!
//! Three answers there are: what a policy allows is let through (as far as the rules on arguments let it, see
//! the seccomp layer); what is refused is answered `EPERM`, for programs that ask know what to make of that; and
//! everything else `ENOSYS`, as an older kernel would, so that libraries fall back to what they did before.

mod groups;
mod table;

pub use groups::{group, groups, refused};
pub use table::{exists, name, number};

use std::collections::BTreeSet;

/// Groups that open what is refused otherwise.
const OPENING: [&str; 2] = ["debug", "nested"];

/// Numbers for a plan; none is in both.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lists {
    /// Let through, ascending.
    pub allow: Vec<u32>,
    /// Answered `EPERM`, ascending.
    pub refuse: Vec<u32>,
}

/// A name that neither a group nor a system call has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no group and no system call has the name {0:?}")]
pub struct Unknown(pub String);

/// What a policy's groups and calls come to.
///
/// A call that `allow` names, or a group that is there for it (`debug`, `nested`), is taken from the refused ones; one
/// that is merely part of another group stays refused. What `refuse` names is refused, whatever else says. Calls
/// of other architectures count for nothing.
///
/// # Errors
/// The first name that nothing is known of.
pub fn lists<S: AsRef<str>>(groups: &[S], allow: &[S], refuse: &[S], strict: bool) -> Result<Lists, Unknown> {
    let (mut part, mut meant, mut denied) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for called in groups.iter().map(AsRef::as_ref) {
        let members = group(called).ok_or_else(|| Unknown(called.to_owned()))?;
        let numbers = members.iter().filter_map(|member| number(member));
        if OPENING.contains(&called) { meant.extend(numbers) } else { part.extend(numbers) }
    }
    for (names, into) in [(allow, &mut meant), (refuse, &mut denied)] {
        for name in names.iter().map(AsRef::as_ref) {
            if !exists(name) {
                return Err(Unknown(name.to_owned()));
            }
            into.extend(number(name));
        }
    }
    denied.extend(refused(strict).into_iter().filter(|number| !meant.contains(number)));
    let allow = part.union(&meant).filter(|number| !denied.contains(number)).copied().collect();
    Ok(Lists { allow, refuse: denied.into_iter().collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str) -> u32 {
        number(name).unwrap()
    }

    #[test]
    fn every_member_of_a_group_is_a_system_call() {
        for called in groups() {
            let members = group(called).unwrap();
            assert!(!members.is_empty());
            for member in members {
                assert!(exists(member), "{member} of {called}");
            }
            let distinct: BTreeSet<_> = members.iter().collect();
            assert_eq!(distinct.len(), members.len(), "{called} names something twice");
        }
        assert_eq!(group("no-such-group"), None);
    }

    #[test]
    fn a_number_has_one_name() {
        for called in groups() {
            for member in group(called).unwrap() {
                if let Some(found) = number(member) {
                    assert_eq!(name(found), Some(*member));
                }
            }
        }
        assert_eq!((number("no_such_call"), exists("no_such_call"), name(9999)), (None, false, None));
    }

    #[test]
    fn strict_base_is_part_of_base() {
        let base: BTreeSet<_> = group("base").unwrap().iter().collect();
        let missing: Vec<_> =
            group("strict-base").unwrap().iter().filter(|member| !base.contains(member)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    fn of(groups: &[&str], allow: &[&str], refuse: &[&str], strict: bool) -> Lists {
        let composed = lists(groups, allow, refuse, strict).unwrap();
        assert!(composed.allow.iter().all(|number| !composed.refuse.contains(number)));
        assert!(composed.allow.is_sorted() && composed.refuse.is_sorted());
        composed
    }

    #[test]
    fn what_is_refused_stays_so_unless_it_is_meant() {
        let plain = of(&["base", "network"], &[], &[], false);
        assert!(plain.refuse.contains(&call("ptrace")) && !plain.allow.contains(&call("ptrace")));
        assert!(plain.allow.contains(&call("mincore")));
        let strict = of(&["base"], &[], &[], true);
        assert!(strict.refuse.contains(&call("mincore")) && !strict.allow.contains(&call("mincore")));
        let debug = of(&["base", "debug"], &[], &[], true);
        assert!(debug.allow.contains(&call("ptrace")) && !debug.refuse.contains(&call("ptrace")));
        let named = of(&["base"], &["keyctl"], &["read"], false);
        assert!(named.allow.contains(&call("keyctl")) && !named.refuse.contains(&call("keyctl")));
        assert!(named.refuse.contains(&call("read")));
    }

    #[test]
    fn an_unknown_name_is_refused_by_name() {
        assert_eq!(lists(&["bass"], &[], &[], false), Err(Unknown("bass".to_owned())));
        assert_eq!(lists(&[], &["ptraze"], &[], false), Err(Unknown("ptraze".to_owned())));
    }
}
