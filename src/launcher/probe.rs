//! The process that evidence is read from.
