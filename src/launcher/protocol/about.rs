//! What a failure is about, in a message of bounded size.

use super::DecodeError;
use std::fmt;

/// Most bytes of it.
const MAX: usize = 160;

/// A system call and its object: a path of the plan, never a value of an environment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct About {
    bytes: [u8; MAX],
    length: usize,
}

impl About {
    /// As much of `text` as fits; what is no printable character becomes a question mark.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut about = Self { bytes: [0; MAX], length: 0 };
        for character in text.chars().map(|character| if character.is_control() { '?' } else { character }) {
            let end = about.length + character.len_utf8();
            match about.bytes.get_mut(about.length..end) {
                Some(room) => character.encode_utf8(room),
                None => break,
            };
            about.length = end;
        }
        about
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.length).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    /// From bytes.
    ///
    /// # Errors
    /// Too many, or not what [`About::new`] makes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let text = std::str::from_utf8(bytes).map_err(|_| DecodeError)?;
        let about = Self::new(text);
        if about.as_str() == text { Ok(about) } else { Err(DecodeError) }
    }
}

impl fmt::Debug for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_holds_whole_printable_characters() {
        assert_eq!(About::new("open /a\nb").as_str(), "open /a?b");
        let long = About::new(&"ä".repeat(200));
        assert_eq!(long.as_str(), "ä".repeat(MAX / 2));
        assert_eq!(About::decode(long.as_str().as_bytes()), Ok(long));
        assert!(About::decode(b"a\0").is_err() && About::decode(&[0xff]).is_err());
        assert!(About::decode(&[b'a'; MAX + 1]).is_err());
    }
}
