//! Any packet decodes or is refused by launcher and init; what decodes is encoded to the same packet again.
#![no_main]

use trl::launcher::protocol::{ToInit, ToLauncher};

libfuzzer_sys::fuzz_target!(|packet: &[u8]| {
    if let Ok(message) = ToLauncher::decode(packet) {
        assert_eq!(message.encode(), packet);
    }
    if let Ok(message) = ToInit::decode(packet) {
        assert_eq!(message.encode(), packet);
    }
});
