//! The session's root.
