//! Limits that a request may narrow, by the names that they have in a policy file.

use super::Policy;
use super::keys::{Key, Kind};
use super::value;

/// Which, as section and name.
const NARROWED: [(&str, &str); 13] = [
    ("", "max_running_execs"),
    ("rlimits", "cpu_s"),
    ("rlimits", "nofile"),
    ("rlimits", "core"),
    ("rlimits", "as_bytes"),
    ("rlimits", "fsize_bytes"),
    ("rlimits", "nproc"),
    ("filesystem", "tmp_size"),
    ("filesystem", "run_size"),
    ("filesystem", "shm_size"),
    ("filesystem", "inodes"),
    ("workspace", "size"),
    ("workspace", "inodes"),
];

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Amount {
    /// A whole number.
    Number(u64),
    /// Text like `"256M"`, or `"unlimited"`.
    Text(String),
}

/// Why a limit is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// No limit has that name.
    #[error("has a name that is no limit; there are {}", names().join(", "))]
    Unknown,
    /// It is named twice, be it by its short name.
    #[error("{0} is there twice")]
    Twice(String),
    /// It is none of its kind.
    #[error("{name}: {expected}")]
    Invalid {
        /// The limit.
        name: String,
        /// What it may be.
        expected: String,
    },
    /// The policy allows less.
    #[error("limit {name} beyond {maximum}")]
    Beyond {
        /// The limit.
        name: String,
        /// The policy's.
        maximum: u64,
    },
}

/// Where a limit stands in a policy; `None` is no limit.
enum Place<'a> {
    Count(&'a mut u32),
    Number(&'a mut u64),
    Optional(&'a mut Option<u64>),
}

impl Place<'_> {
    fn get(&self) -> Option<u64> {
        match self {
            Self::Count(value) => Some(u64::from(**value)),
            Self::Number(value) => Some(**value),
            Self::Optional(value) => **value,
        }
    }

    fn set(self, wanted: Option<u64>) {
        match (self, wanted) {
            // Its key's bounds are within.
            (Self::Count(value), Some(wanted)) => *value = u32::try_from(wanted).unwrap_or(u32::MAX),
            (Self::Number(value), Some(wanted)) => *value = wanted,
            (Self::Optional(value), wanted) => *value = wanted,
            (Self::Count(_) | Self::Number(_), None) => {}
        }
    }
}

fn place<'a>(policy: &'a mut Policy, key: &Key) -> Option<Place<'a>> {
    Some(match (key.section, key.name) {
        ("", "max_running_execs") => Place::Count(&mut policy.max_running_execs),
        ("rlimits", "cpu_s") => Place::Number(&mut policy.rlimits.cpu_s),
        ("rlimits", "nofile") => Place::Number(&mut policy.rlimits.nofile),
        ("rlimits", "core") => Place::Number(&mut policy.rlimits.core),
        ("rlimits", "as_bytes") => Place::Optional(&mut policy.rlimits.as_bytes),
        ("rlimits", "fsize_bytes") => Place::Optional(&mut policy.rlimits.fsize_bytes),
        ("rlimits", "nproc") => Place::Count(&mut policy.rlimits.nproc),
        ("filesystem", "tmp_size") => Place::Number(&mut policy.filesystem.tmp_size),
        ("filesystem", "run_size") => Place::Number(&mut policy.filesystem.run_size),
        ("filesystem", "shm_size") => Place::Number(&mut policy.filesystem.shm_size),
        ("filesystem", "inodes") => Place::Number(&mut policy.filesystem.inodes),
        ("workspace", "size") => Place::Number(&mut policy.workspace.size),
        ("workspace", "inodes") => Place::Number(&mut policy.workspace.inodes),
        _ => return None,
    })
}

fn keys() -> impl Iterator<Item = &'static Key> {
    NARROWED.iter().filter_map(|(section, name)| Key::find(section, name))
}

/// The names of all limits.
#[must_use]
pub fn names() -> Vec<String> {
    keys().map(Key::path).collect()
}

/// The limit of that name: `section.name`, or the name alone where no other section has it.
fn named(name: &str) -> Option<&'static Key> {
    let mut short = keys().filter(|key| key.name == name);
    let alone = short.next().filter(|_| short.next().is_none());
    keys().find(|key| key.path() == name).or(alone)
}

/// The amount, or `None` for one that the key cannot have.
fn read(kind: Kind, amount: &Amount) -> Option<Option<u64>> {
    let (least, most) = match kind {
        Kind::Integer(least, most) | Kind::Size(least, most) | Kind::Limit(least, most) => (least, most),
        _ => return None,
    };
    let number = match amount {
        Amount::Text(text) if kind.nothing() == Some(text) => return Some(None),
        Amount::Number(number) => *number,
        Amount::Text(text) if matches!(kind, Kind::Integer(..)) => text.parse().ok()?,
        Amount::Text(text) => value::bytes(text)?,
    };
    (least..=most).contains(&number).then_some(Some(number))
}

impl Policy {
    /// With these limits in place of its own. They may be wider only where they are the operator's own word.
    ///
    /// # Errors
    /// The first that cannot be taken.
    pub fn limited(mut self, wanted: &[(String, Amount)], by_operator: bool) -> Result<Self, LimitError> {
        let mut seen = Vec::new();
        for (name, amount) in wanted {
            let key = named(name).ok_or(LimitError::Unknown)?;
            let name = key.path();
            if seen.contains(&name) {
                return Err(LimitError::Twice(name));
            }
            let Some(amount) = read(key.kind, amount) else {
                return Err(LimitError::Invalid { name, expected: value::expected(key.kind) });
            };
            let place = place(&mut self, key).ok_or(LimitError::Unknown)?;
            match place.get() {
                Some(maximum) if !by_operator && amount.is_none_or(|amount| amount > maximum) => {
                    return Err(LimitError::Beyond { name, maximum });
                }
                _ => place.set(amount),
            }
            seen.push(name);
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(name: &str, amount: &str, by_operator: bool) -> Result<Policy, LimitError> {
        Policy::load("default").unwrap().limited(&[(name.into(), Amount::Text(amount.into()))], by_operator)
    }

    #[test]
    fn every_limit_has_a_key_and_a_place() {
        let mut policy = Policy::load("default").unwrap();
        assert_eq!(keys().count(), NARROWED.len());
        for key in keys() {
            assert!(place(&mut policy, key).is_some(), "{}", key.path());
            assert!(matches!(key.kind, Kind::Integer(..) | Kind::Size(..) | Kind::Limit(..)));
        }
    }

    #[test]
    fn a_limit_is_narrowed_and_widened_by_the_operator_only() {
        assert_eq!(limited("rlimits.nproc", "7", false).unwrap().rlimits.nproc, 7);
        assert_eq!(limited("nproc", "7", false).unwrap().rlimits.nproc, 7);
        assert_eq!(limited("workspace.size", "1M", false).unwrap().workspace.size, 1 << 20);
        assert_eq!(limited("as_bytes", "1G", false).unwrap().rlimits.as_bytes, Some(1 << 30));
        assert!(limited("as_bytes", "unlimited", false).is_ok());
        let beyond = LimitError::Beyond { name: "rlimits.nproc".into(), maximum: 512 };
        assert_eq!(limited("nproc", "513", false), Err(beyond));
        assert_eq!(limited("nproc", "513", true).unwrap().rlimits.nproc, 513);
        for (name, amount) in
            [("nproc", "0"), ("nproc", "1M"), ("nofile", "unlimited"), ("tmp_size", "1"), ("cpu_s", "-1")]
        {
            assert!(
                matches!(limited(name, amount, true), Err(LimitError::Invalid { .. })),
                "{name} {amount}"
            );
        }
        for name in ["inodes", "grace_s", "umask", "rlimits", ""] {
            assert_eq!(limited(name, "1", true), Err(LimitError::Unknown), "{name}");
        }
        let twice =
            [("nproc", 1), ("rlimits.nproc", 2)].map(|(name, n)| (name.to_owned(), Amount::Number(n)));
        assert!(matches!(Policy::load("l1").unwrap().limited(&twice, false), Err(LimitError::Twice(_))));
    }
}
