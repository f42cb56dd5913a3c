//! Keyrings: `keyctl(2)`.
