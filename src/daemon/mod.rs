//! (to be written)
pub mod wire;
pub mod output;
