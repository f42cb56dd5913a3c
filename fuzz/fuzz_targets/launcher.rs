//! What crosses the sockets of the launcher and of an init: hostile bytes are refused, and what is accepted is one
//! message and no other bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trl::launcher::protocol::{FromInit, FromLauncher, ToInit, ToLauncher};

fuzz_target!(|packet: &[u8]| {
    if let Ok(message) = ToLauncher::decode(packet) {
        assert_eq!(message.encode(), packet, "a second encoding of the same message");
    }
    if let Ok(message) = FromLauncher::decode(packet) {
        assert_eq!(message.encode(), packet);
    }
    if let Ok(message) = ToInit::decode(packet) {
        assert_eq!(message.encode(), packet);
    }
    if let Ok(message) = FromInit::decode(packet) {
        assert_eq!(message.encode().as_bytes(), packet);
    }
});
