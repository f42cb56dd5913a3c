//! A session keyring of its own.
