//! From a [`Node`] to typed parameters, with errors that name a field's path and never a value.

use super::node::{Node, shown};
use super::{Code, WireError};
use serde::de::{
    self, DeserializeSeed, Deserializer, Expected, MapAccess, SeqAccess, Unexpected, Visitor,
    value::{StrDeserializer, StringDeserializer},
};
use serde::forward_to_deserialize_any;
use std::fmt;

/// What was wrong and where. What serde says about the value found is dropped.
#[derive(Debug)]
pub struct Error {
    /// Outermost last.
    path: Vec<String>,
    message: String,
}

impl Error {
    fn at(field: &str, message: impl Into<String>) -> Self {
        Self { path: vec![shown(field).to_owned()], message: message.into() }
    }

    fn under(mut self, segment: impl Into<String>) -> Self {
        self.path.push(segment.into());
        self
    }

    fn field(&self) -> String {
        self.path.iter().rev().map(String::as_str).collect::<Vec<_>>().join(".")
    }

    /// `INVALID_PARAMS` with the field in `detail`.
    pub(super) fn into_wire(self) -> WireError {
        WireError::new(Code::InvalidParams, self.to_string())
            .with(serde_json::json!({ "field": self.field() }))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.field();
        write!(f, "{}: {}", if field.is_empty() { "params" } else { &field }, self.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { path: Vec::new(), message: message.to_string() }
    }
    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("expected {expected}"))
    }
    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("expected {expected}"))
    }
    fn invalid_length(_: usize, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("expected {expected}"))
    }
    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format_args!("expected one of {}", expected.join(", ")))
    }
    fn unknown_field(field: &str, _: &'static [&'static str]) -> Self {
        Self::at(field, "unknown field")
    }
    fn missing_field(field: &'static str) -> Self {
        Self::at(field, "missing")
    }
    fn duplicate_field(field: &'static str) -> Self {
        Self::at(field, "key is given twice")
    }
}

impl<'de> Deserializer<'de> for Node {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Node::Null => visitor.visit_unit(),
            Node::Bool(value) => visitor.visit_bool(value),
            Node::Int(value) => visitor.visit_i64(value),
            Node::Float(value) => visitor.visit_f64(value),
            Node::Text(text) => visitor.visit_str(&text),
            Node::List(items) => visitor.visit_seq(Items { items: items.into_iter(), index: 0 }),
            Node::Map(entries) => visitor.visit_map(Entries { entries: entries.into_iter(), current: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Node::Null => visitor.visit_none(),
            some => visitor.visit_some(some),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    // A derived struct would take its fields from a list by position, too.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self {
            Node::Map(_) => self.deserialize_any(visitor),
            _ => Err(de::Error::custom("expected an object")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self {
            Node::Text(text) => visitor.visit_enum(StrDeserializer::new(&text)),
            _ => Err(de::Error::unknown_variant("", variants)),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map identifier ignored_any
    }
}

struct Items {
    items: std::vec::IntoIter<Node>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items {
    type Error = Error;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(item) = self.items.next() else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        seed.deserialize(item).map(Some).map_err(|error| error.under(index.to_string()))
    }
}

struct Entries {
    entries: std::vec::IntoIter<(String, Node)>,
    current: Option<(String, Node)>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = Error;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.current = Some((shown(&key).to_owned(), value));
        seed.deserialize(StringDeserializer::new(key)).map(Some)
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((key, value)) = self.current.take() else {
            return Err(de::Error::custom("value without a key"));
        };
        seed.deserialize(value).map_err(|error| error.under(key))
    }
}

#[cfg(test)]
mod tests {
    use crate::daemon::wire::{Code, Node, params, types::*};

    fn refused<T: serde::de::DeserializeOwned>(json: &str) -> String {
        let node: Node = serde_json::from_str(json).unwrap();
        let error = params::<T>(node).err().unwrap();
        assert_eq!(error.code, Code::InvalidParams);
        format!("{error:?}")
    }

    #[test]
    fn an_unknown_field_is_named() {
        assert!(
            refused::<SessionParams>(r#"{"session_id":"x","colour":1}"#).contains("colour: unknown field")
        );
        assert!(refused::<NoParams>(r#"{"x":1}"#).contains("x: unknown field"));
        assert!(refused::<SessionParams>("{}").contains("session_id: missing"));
    }

    #[test]
    fn no_error_holds_a_value() {
        for (json, path) in [
            (r#"{"session_id":"s","timeout_s":"hunter2"}"#, "timeout_s: expected"),
            (r#"{"session_id":"s","argv":["a",["hunter2"]]}"#, "argv.1: expected a string"),
            (r#"{"session_id":"s","env":{"K":["hunter2"]}}"#, "env.K: expected a string"),
            (r#"{"session_id":"s","env":{"K=hunter2":"v"}}"#, "env: a key must"),
            (r#"{"session_id":"s","env":{"K":"hunter2\u0000"}}"#, "env.K: expected a string without NUL"),
            (r#"{"session_id":"s","env":"hunter2"}"#, "env: expected an object"),
            (r#"{"session_id":"s","overflow":"hunter2"}"#, "overflow: expected one of drop, block, kill"),
            (r#"{"session_id":"s","on_disconnect":"hunter2"}"#, "on_disconnect: expected"),
            (
                r#"{"session_id":"s","on_disconnect":{"grace_s":"hunter2"}}"#,
                "on_disconnect.grace_s: expected",
            ),
            (r#"{"session_id":"s","tty":["hunter2"]}"#, "tty: expected an object"),
        ] {
            let error = refused::<ExecParams>(json);
            assert!(error.contains(path) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for seconds in ["0", "-1", "604801", "1e300"] {
            let error = refused::<ExecParams>(&format!(r#"{{"session_id":"s","timeout_s":{seconds}}}"#));
            assert!(error.contains("timeout_s: expected seconds"), "{error}");
        }
        for signal in ["0", "65", "\"NOPE\"", "1.5"] {
            assert!(
                refused::<SignalParams>(&format!(r#"{{"exec_id":"e","signal":{signal}}}"#))
                    .contains("signal: expected")
            );
        }
    }

    #[test]
    fn good_params_are_taken() {
        let json = r#"{"session_id":"s","command":"x","timeout_s":5,"env":{"A":"b"},"stdin_encoding":"base64",
            "on_disconnect":{"grace_s":0},"stdin_mode":"pipe","cwd":null,"labels":{"k":"v"}}"#;
        let exec: ExecParams = params(serde_json::from_str(json).unwrap()).unwrap();
        assert_eq!((exec.timeout_s, exec.cwd), (Some(5.0), None));
        assert_eq!(exec.on_disconnect, Some(OnDisconnect::Grace(0.0)));
        assert_eq!(exec.command.unwrap().0.0, b"x");
        assert_eq!(exec.env.unwrap().0.get("A").unwrap().expose(), b"b");
        for signal in ["15", "\"TERM\"", "\"SIGTERM\""] {
            let json = format!(r#"{{"exec_id":"e","signal":{signal}}}"#);
            let params: SignalParams = params(serde_json::from_str(&json).unwrap()).unwrap();
            assert_eq!(params.signal, Some(SignalName(15)));
        }
    }
}
