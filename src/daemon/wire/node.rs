//! A parsed JSON value that remembers nothing it need not: texts are wiped, duplicates are refused.

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::fmt;
use zeroize::Zeroizing;

/// How deep values may be nested.
pub const MAX_DEPTH: usize = 64;

/// A JSON value. Its `Debug` is its kind.
#[derive(Clone, PartialEq)]
pub enum Node {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// A number without fraction or exponent.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A string; wiped when dropped.
    Text(Zeroizing<String>),
    /// An array.
    List(Vec<Node>),
    /// An object in the order of the request.
    Map(Vec<(String, Node)>),
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Node::Null => "<null>",
            Node::Bool(_) => "<boolean>",
            Node::Int(_) | Node::Float(_) => "<number>",
            Node::Text(_) => "<string>",
            Node::List(_) => "<list>",
            Node::Map(_) => "<object>",
        })
    }
}

impl Node {
    /// SHA-256 over a salt and the canonical form: tagged, with lengths, keys in order; `5` and `5.0` are one.
    #[must_use]
    pub fn digest(&self, salt: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        put(&mut hash, b'#', salt);
        self.feed(&mut hash);
        hash.finalize().into()
    }

    fn feed(&self, hash: &mut Sha256) {
        match self {
            Node::Null => hash.update(b"n"),
            Node::Bool(value) => hash.update([b'b', u8::from(*value)]),
            Node::Int(value) => put(hash, b'i', &value.to_le_bytes()),
            // Every whole number below 2^53 is the same number as an integer.
            Node::Float(value) if value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0 => {
                put(hash, b'i', &(*value as i64).to_le_bytes());
            }
            Node::Float(value) => put(hash, b'f', &value.to_bits().to_le_bytes()),
            Node::Text(text) => put(hash, b't', text.as_bytes()),
            Node::List(items) => {
                put(hash, b'l', &(items.len() as u64).to_le_bytes());
                items.iter().for_each(|item| item.feed(hash));
            }
            Node::Map(entries) => {
                put(hash, b'm', &(entries.len() as u64).to_le_bytes());
                let mut sorted: Vec<_> = entries.iter().collect();
                sorted.sort_by(|a, b| a.0.cmp(&b.0));
                for (key, value) in sorted {
                    put(hash, b'k', key.as_bytes());
                    value.feed(hash);
                }
            }
        }
    }
}

fn put(hash: &mut Sha256, tag: u8, bytes: &[u8]) {
    hash.update([tag]);
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// A key as an error shows it: only if it looks like a name, for a value may have been put there by mistake.
pub(super) fn shown(key: &str) -> &str {
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    if !key.is_empty() && key.len() <= 64 && key.chars().all(name) { key } else { "(unprintable key)" }
}

/// What parsing one line found besides the value.
#[derive(Default)]
pub(super) struct Findings {
    path: RefCell<Vec<String>>,
    /// Path of the first key that an object has twice.
    pub(super) duplicate: RefCell<Option<String>>,
}

/// Reads one value; a duplicate key is noted rather than failed on, so that the answer can carry the id.
#[derive(Clone, Copy)]
pub(super) struct Seed<'a> {
    pub(super) findings: &'a Findings,
    pub(super) depth: usize,
}

impl<'a> Seed<'a> {
    fn deeper<E: serde::de::Error>(self) -> Result<Seed<'a>, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format_args!("JSON nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(Seed { depth: self.depth + 1, ..self })
    }

    fn note_duplicate(self, entries: &[(String, Node)]) {
        let mut keys: Vec<&str> = entries.iter().map(|(key, _)| key.as_str()).collect();
        keys.sort_unstable();
        let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) else { return };
        let mut path = self.findings.path.borrow().iter().map(|key| format!("{key}.")).collect::<String>();
        path.push_str(shown(pair[0]));
        self.findings.duplicate.borrow_mut().get_or_insert(path);
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Node, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Int(value))
    }
    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Node, E> {
        i64::try_from(value).map(Node::Int).map_err(|_| E::custom("number out of range"))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Float(value))
    }
    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(Zeroizing::new(text.to_owned())))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Node::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let inner = self.deeper()?;
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            self.findings.path.borrow_mut().push(shown(&key).to_owned());
            let value = map.next_value_seed(inner)?;
            self.findings.path.borrow_mut().pop();
            entries.push((key, value));
        }
        self.note_duplicate(&entries);
        Ok(Node::Map(entries))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let findings = Findings::default();
        let node = Seed { findings: &findings, depth: 0 }.deserialize(from)?;
        match findings.duplicate.into_inner() {
            None => Ok(node),
            Some(path) => Err(D::Error::custom(format_args!("{path}: key is given twice"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Node {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_order_of_keys_does_not_change_a_digest_and_anything_else_does() {
        let one = parse(r#"{"a":5,"b":["x"]}"#);
        assert_eq!(one.digest(b"s"), parse(r#"{"b":["x"],"a":5.0}"#).digest(b"s"));
        assert_ne!(one.digest(b"s"), one.digest(b"t"));
        for other in [r#"{"a":5,"b":"x"}"#, r#"{"a":6,"b":["x"]}"#, r#"{"a":5,"b":["x"],"c":null}"#] {
            assert_ne!(one.digest(b"s"), parse(other).digest(b"s"));
        }
    }
}
