//! What a launcher may do at most, whatever its daemon says: fixed by its arguments, which were given before the
//! daemon gave root up and before it read a client's first byte.

use crate::plan::SessionPlan;
use crate::sys::mark;

/// The bounds of one launcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceiling {
    uid: u32,
    gid: u32,
    mark: u64,
}

impl Ceiling {
    /// From the arguments `UID GID MARK`.
    #[must_use]
    pub fn parse(arguments: &[String]) -> Option<Self> {
        let [uid, gid, mark] = arguments else {
            return None;
        };
        let ceiling = Self { uid: uid.parse().ok()?, gid: gid.parse().ok()?, mark: mark.parse().ok()? };
        let no_one = |id: u32| id == 0 || id == u32::MAX;
        (!no_one(ceiling.uid) && !no_one(ceiling.gid) && mark::is_mark(ceiling.mark)).then_some(ceiling)
    }

    /// Whose processes a clean-up may end: those of this user.
    #[must_use]
    pub fn uid(self) -> u32 {
        self.uid
    }

    /// Whether this is the mark of its instance.
    #[must_use]
    pub fn is_mark(self, mark: u64) -> bool {
        mark == self.mark
    }

    /// Whether a session may be made: the one user and group, the one mark, and no privilege gained by `execve`.
    #[must_use]
    pub fn allows(self, plan: &SessionPlan) -> bool {
        (plan.uid, plan.gid, plan.mark) == (self.uid, self.gid, self.mark) && plan.no_new_privileges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_nobody_and_a_foreign_mark_are_no_ceiling() {
        let mark = 0x5452_4c00_0000_0001_u64.to_string();
        let parse =
            |words: &[&str]| Ceiling::parse(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(parse(&["1000", "1000", &mark]).is_some());
        for words in [
            &["0", "1000", &mark][..],
            &["1000", "0", &mark],
            &["4294967295", "1000", &mark],
            &["1000", "1000", "7"],
            &["1000", "1000"],
            &["-1", "1000", &mark],
            &[],
        ] {
            assert!(parse(words).is_none(), "{words:?}");
        }
    }
}
