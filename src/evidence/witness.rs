//! What a process under a session's confinement said of its own attempts.

use std::collections::BTreeMap;

/// Answers by the name of what was tried (see `launcher::probe`): an error number, 0 for success, or a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Witnessed(pub BTreeMap<String, String>);

impl Witnessed {
    /// Most that a probe says, bytes: what a pipe takes in one piece.
    pub const MAX_BYTES: usize = 4096;

    /// From lines of `key=value`. Lines of another form, as the last one, `.`, are not looked at: what was not said
    /// is missed when it is judged.
    #[must_use]
    pub fn parse(lines: &str) -> Self {
        let pair = |line: &str| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        Self(lines.lines().filter_map(pair).collect())
    }

    /// An answer that is a number.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<i32> {
        self.0.get(key)?.parse().ok()
    }
}
