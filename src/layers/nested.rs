//! How many namespaces a session can make within its own.
