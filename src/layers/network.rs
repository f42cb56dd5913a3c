//! The loopback interface of a session.
