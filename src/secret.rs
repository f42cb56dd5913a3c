//! Values that must not be seen: environment values and tokens.
//!
//! A [`Secret`] has no `Debug`, `Display`, `Clone`, `PartialEq`, `Deref` or `Serialize`. One way in, from a
//! buffer that it takes over; one way out, [`Secret::expose`], which only the code that hands a value to a
//! session's init calls. It is overwritten when dropped.
//!
//! ```compile_fail
//! fn shows<T: std::fmt::Debug>(_: &T) {}
//! shows(&trl::secret::Secret::new(Vec::new()));
//! ```
//! ```compile_fail
//! fn prints<T: std::fmt::Display>(_: &T) {}
//! prints(&trl::secret::Secret::new(Vec::new()));
//! ```
//! ```compile_fail
//! fn copies<T: Clone>(_: &T) {}
//! copies(&trl::secret::Secret::new(Vec::new()));
//! ```
//! ```compile_fail
//! fn compares<T: PartialEq>(_: &T) {}
//! compares(&trl::secret::Secret::new(Vec::new()));
//! ```
//! ```compile_fail
//! fn derefs<T: std::ops::Deref>(_: &T) {}
//! derefs(&trl::secret::Secret::new(Vec::new()));
//! ```
//! ```compile_fail
//! fn serializes<T: serde::Serialize>(_: &T) {}
//! serializes(&trl::secret::Secret::new(Vec::new()));
//! ```

use std::collections::BTreeMap;
use zeroize::Zeroize;

/// A value that is wiped when dropped and cannot be printed, compared, copied or serialized.
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Takes a buffer over. A buffer with spare capacity is copied to one of the right size and wiped.
    #[must_use]
    pub fn new(mut bytes: Vec<u8>) -> Self {
        if bytes.len() == bytes.capacity() {
            return Self(bytes.into_boxed_slice());
        }
        let exact: Box<[u8]> = bytes.as_slice().into();
        bytes.zeroize();
        Self(exact)
    }

    /// Copies a borrowed value; the caller answers for the original.
    #[must_use]
    pub fn copy_from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The value itself. For the encoder of an exec's environment and for the digest of a request, no other.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the value is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Environment variables of one scope, by key.
#[derive(Default)]
pub struct Environment(BTreeMap<String, Secret>);

impl Environment {
    /// Adds or replaces a variable; the former value is wiped.
    pub fn insert(&mut self, key: String, value: Secret) {
        self.0.insert(key, value);
    }

    /// The value under a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Secret> {
        self.0.get(key)
    }

    /// The keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Keys and values in order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// How many variables there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lays `scopes` over one another, later over earlier, and yields what an exec gets.
    pub fn layered<'a>(scopes: &[&'a Environment]) -> BTreeMap<&'a str, &'a Secret> {
        scopes.iter().flat_map(|scope| scope.iter()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_scope_wins() {
        let (mut a, mut b) = (Environment::default(), Environment::default());
        a.insert("K".into(), Secret::copy_from(b"runtime"));
        a.insert("ONLY".into(), Secret::copy_from(b"x"));
        b.insert("K".into(), Secret::copy_from(b"command"));
        let merged = Environment::layered(&[&a, &b]);
        assert_eq!(merged["K"].expose(), b"command");
        assert_eq!(merged.len(), 2);
    }
}
