//! How a failed system call is named: operation, object, errno.

use std::fmt;

/// A system call that failed: what was tried, on what, and the kernel's answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SysError {
    /// The system call or step, as in the manual: `open`, `setrlimit`.
    pub operation: &'static str,
    /// What it was applied to: a path, a limit's name. Never a value of an environment.
    pub object: String,
    /// The kernel's error number.
    pub errno: i32,
}

impl SysError {
    /// From a step and the errno of `error` (5, EIO, if it carries none).
    #[must_use]
    pub fn new(operation: &'static str, object: impl Into<String>, error: &std::io::Error) -> Self {
        Self { operation, object: object.into(), errno: error.raw_os_error().unwrap_or(5) }
    }

    /// From a step and an errno.
    #[must_use]
    pub fn from_errno(operation: &'static str, object: impl Into<String>, errno: i32) -> Self {
        Self { operation, object: object.into(), errno }
    }
}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = nix::errno::Errno::from_raw(self.errno);
        write!(f, "{} {}: {name:?} ({})", self.operation, self.object, name.desc())
    }
}
