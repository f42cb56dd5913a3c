//! Bytes of programs as text of the wire.

use base64::Engine as _;
use std::borrow::Cow;

/// Bytes as a JSON string and the name of its encoding: as they are where they are UTF-8, else base64.
#[must_use]
pub fn encode_bytes(bytes: &[u8]) -> (Cow<'_, str>, &'static str) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Cow::Borrowed(text), "utf-8"),
        Err(_) => (Cow::Owned(base64::engine::general_purpose::STANDARD.encode(bytes)), "base64"),
    }
}

/// Length of `bytes` without a character that has only begun at its end. At most 3 bytes are held back, and
/// only where they are a valid beginning of a character.
#[must_use]
pub fn complete_prefix(bytes: &[u8]) -> usize {
    for held in 1..=bytes.len().min(3) {
        let (head, tail) = bytes.split_at(bytes.len() - held);
        if matches!(tail[0], 0x80..=0xbf) {
            continue;
        }
        return match std::str::from_utf8(tail) {
            Err(error) if error.valid_up_to() == 0 && error.error_len().is_none() => head.len(),
            _ => bytes.len(),
        };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_that_are_not_text_are_base64() {
        assert_eq!(encode_bytes("é".as_bytes()), (Cow::Borrowed("é"), "utf-8"));
        assert_eq!(encode_bytes(b"\xff"), (Cow::Borrowed("/w=="), "base64"));
    }

    #[test]
    fn what_cannot_become_a_character_is_not_held_back() {
        assert_eq!(complete_prefix(b"a\xe2\x82"), 1);
        assert_eq!(complete_prefix(b"a\xff"), 2);
        assert_eq!(complete_prefix(b"\xed\xa0"), 2);
        assert_eq!(complete_prefix(b"\x80\x80\x80"), 3);
        assert_eq!(complete_prefix(b""), 0);
    }

    proptest! {
        #[test]
        fn chunks_of_text_are_text_and_make_the_whole(text in ".{0,80}", sizes in prop::collection::vec(1usize..9, 1..80)) {
            let (mut held, mut whole, mut rest) = (Vec::new(), String::new(), text.as_bytes());
            for size in sizes.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, after) = rest.split_at((*size).min(rest.len()));
                rest = after;
                held.extend_from_slice(chunk);
                let complete = complete_prefix(&held);
                prop_assert!(held.len() - complete <= 3);
                let ready: Vec<u8> = held.drain(..complete).collect();
                whole.push_str(std::str::from_utf8(&ready).unwrap());
            }
            prop_assert!(held.is_empty());
            prop_assert_eq!(whole, text);
        }

        #[test]
        fn of_any_bytes_at_most_three_are_held_back(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let complete = complete_prefix(&bytes);
            prop_assert!(bytes.len() - complete <= 3);
        }
    }
}
