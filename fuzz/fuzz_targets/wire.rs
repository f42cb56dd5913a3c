//! A line of a client: answered, and where it is refused, the answer is one line of valid JSON. Parameters are read as
//! the method's, and as every other method's too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use trl::daemon::wire::types::*;
use trl::daemon::wire::{Request, decode, encode_error, encode_ok, params};

fn is_one_line(answer: &[u8]) {
    assert_eq!(answer.iter().position(|byte| *byte == b'\n'), Some(answer.len() - 1));
    assert!(serde_json::from_slice::<IgnoredAny>(answer).is_ok());
}

macro_rules! read_as {
    ($line:expr, $($kind:ty)*) => {$(
        if let Ok(Request { id: Some(id), rpc, params: node, .. }) = decode($line) {
            match params::<$kind>(node) {
                Ok(_) => is_one_line(&encode_ok(&id, rpc, &())),
                Err(error) => is_one_line(&encode_error(&id, rpc, &error)),
            }
        }
    )*};
}

fuzz_target!(|line: &[u8]| {
    if let Err(bad) = decode(line) {
        is_one_line(&encode_error(&bad.id, bad.rpc, &bad.error));
        return;
    }
    read_as!(line, NoParams CreateParams ListParams SessionParams DestroyParams ExecParams AttachParams ReadParams
        WaitParams WriteParams ResizeParams SignalParams CancelParams ExecListParams ExecInfoParams PolicyShowParams);
});
