//! A policy file: refused with a place in it, or parsed, and then to the same digest each time.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;
use trl::policy::Policies;

fuzz_target!(|text: &str| {
    static SHIPPED: OnceLock<Policies> = OnceLock::new();
    let shipped = SHIPPED.get_or_init(|| Policies::shipped().expect("shipped policies parse"));
    match shipped.parse("fuzz.toml", text) {
        Ok(policy) => {
            assert_eq!(shipped.parse("fuzz.toml", text).ok().map(|again| again.digest()), Some(policy.digest()));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
