//! The envelope and the methods' parameters: bytes of a line in, typed requests out, and answers back to lines.
//!
//! A line becomes a [`Node`] (duplicate keys, depth and numbers out of range refused), the node a [`Request`],
//! and the request's params one of [`types`]. No error on that way holds a value that a client sent: only the
//! path of the field and what was expected there.

mod de;
mod envelope;
mod error;
mod node;
pub mod text;
pub mod types;

pub use envelope::{
    BadRequest, Id, Request, decode, encode_error, encode_event, encode_event_into, encode_ok,
};
pub use error::{Code, WireError};
pub use node::{MAX_DEPTH, Node};

/// Reads a method's parameters; `INVALID_PARAMS` names the field, never its value.
pub fn params<T: serde::de::DeserializeOwned>(node: Node) -> Result<T, WireError> {
    T::deserialize(node).map_err(|error: de::Error| error.into_wire())
}
