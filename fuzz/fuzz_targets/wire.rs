//! Any line decodes or is refused, and whatever it asks for is typed or refused.
#![no_main]

use trl::daemon::wire::{self, types};

libfuzzer_sys::fuzz_target!(|line: &[u8]| {
    if let Ok(request) = wire::decode(line) {
        match request.method.as_str() {
            "session.create" => drop(wire::params::<types::CreateParams>(request.params)),
            "exec.write" => drop(wire::params::<types::WriteParams>(request.params)),
            "exec.signal" => drop(wire::params::<types::SignalParams>(request.params)),
            _ => drop(wire::params::<types::ExecParams>(request.params)),
        }
    }
});
