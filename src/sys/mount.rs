//! Mounts by descriptors.
