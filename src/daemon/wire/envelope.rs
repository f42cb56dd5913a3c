//! One line is one message: requests are decoded, answers and events encoded, plainly or as JSON-RPC 2.0.

use super::error::{RPC_INVALID_REQUEST, RPC_PARSE_ERROR};
use super::node::{Findings, Node, Seed, shown};
use super::{Code, WireError};
use serde::{Serialize, Serializer, de::DeserializeSeed};
use serde_json::{Value, json};

/// What an answer is matched by; echoed as it came.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Id {
    /// Of an answer to a line whose id could not be read.
    Null,
    /// A string.
    Text(String),
    /// An integer.
    Number(i64),
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Id::Null => serializer.serialize_unit(),
            Id::Text(text) => serializer.serialize_str(text),
            Id::Number(number) => serializer.serialize_i64(*number),
        }
    }
}

/// A request whose envelope is in order.
#[derive(Debug)]
pub struct Request {
    /// `None` only for a JSON-RPC notification.
    pub id: Option<Id>,
    /// Whether it is answered as JSON-RPC 2.0.
    pub rpc: bool,
    /// The method's name, known or not.
    pub method: String,
    /// Always a map; an empty one where it was left out.
    pub params: Node,
}

/// A line that is not a request, and how to answer it.
#[derive(Debug)]
pub struct BadRequest {
    /// The id where one could be read.
    pub id: Id,
    /// Whether to answer as JSON-RPC 2.0.
    pub rpc: bool,
    /// What was wrong.
    pub error: WireError,
}

fn invalid(field: &str, message: &str) -> WireError {
    WireError::new(Code::InvalidParams, format!("{field}: {message}")).with(json!({ "field": field }))
}

/// Reads one line. The caller bounds its length.
pub fn decode(line: &[u8]) -> Result<Request, Box<BadRequest>> {
    let findings = Findings::default();
    let mut json = serde_json::Deserializer::from_slice(line);
    let parsed = Seed { findings: &findings, depth: 0 }.deserialize(&mut json);
    let root = match parsed.and_then(|node| json.end().map(|()| node)) {
        Ok(node) => node,
        Err(error) => return Err(Box::new(malformed(line, &error))),
    };
    match root {
        Node::Map(entries) => request(entries, findings.duplicate.into_inner()),
        Node::List(_) => Err(Box::new(BadRequest {
            id: Id::Null,
            rpc: true,
            error: WireError::new(Code::InvalidParams, "a batch is not served; send one request a line")
                .with_rpc_code(RPC_INVALID_REQUEST),
        })),
        _ => Err(Box::new(BadRequest {
            id: Id::Null,
            rpc: false,
            error: WireError::new(Code::InvalidParams, "a request must be a JSON object"),
        })),
    }
}

fn malformed(line: &[u8], error: &serde_json::Error) -> BadRequest {
    let (at, column) = (error.line(), error.column());
    let message = match error.classify() {
        // Only our own visitor makes these, and it names no value; serde_json appends line and column.
        serde_json::error::Category::Data => error.to_string(),
        _ => format!("malformed JSON at line {at} column {column}"),
    };
    BadRequest {
        id: Id::Null,
        // It could not be parsed, so whose dialect it is can only be guessed: inside a string the quotes are escaped.
        rpc: line.windows(9).any(|window| window == b"\"jsonrpc\""),
        error: WireError::new(Code::InvalidParams, message)
            .with(json!({ "line": at, "column": column }))
            .with_rpc_code(RPC_PARSE_ERROR),
    }
}

fn request(entries: Vec<(String, Node)>, duplicate: Option<String>) -> Result<Request, Box<BadRequest>> {
    let rpc = entries.iter().any(|(key, _)| key == "jsonrpc");
    let mut ids = entries.iter().filter(|(key, _)| key == "id").map(|(_, node)| node);
    let (first, second) = (ids.next(), ids.next());
    let id = match first {
        _ if second.is_some() => Some(Id::Null),
        None => None,
        Some(Node::Text(text)) => Some(Id::Text(text.to_string())),
        Some(Node::Int(number)) => Some(Id::Number(*number)),
        Some(_) => Some(Id::Null),
    };
    let answered = id.clone().unwrap_or(Id::Null);
    let refuse = |error| Err(Box::new(BadRequest { id: answered.clone(), rpc, error }));

    if let Some(path) = duplicate {
        return refuse(invalid(&path, "key is given twice"));
    }
    let (mut method, mut params) = (None, Node::Map(Vec::new()));
    for (key, node) in entries {
        match (key.as_str(), node) {
            ("id", _) => {}
            ("jsonrpc", Node::Text(version)) if version.as_str() == "2.0" => {}
            ("jsonrpc", _) => return refuse(invalid("jsonrpc", "expected \"2.0\"")),
            ("method", Node::Text(name)) => method = Some(name.to_string()),
            ("method", _) => return refuse(invalid("method", "expected a string")),
            ("params", map @ Node::Map(_)) => params = map,
            ("params", Node::Null) => {}
            ("params", _) => return refuse(invalid("params", "expected an object")),
            _ => return refuse(invalid(shown(&key), "unknown field")),
        }
    }
    match id {
        Some(Id::Null) => return refuse(invalid("id", "expected a string or an integer")),
        None if !rpc => return refuse(invalid("id", "missing")),
        _ => {}
    }
    match method {
        Some(method) => Ok(Request { id, rpc, method, params }),
        None => refuse(invalid("method", "missing")),
    }
}

/// The answer to a request that was carried out.
pub fn encode_ok(id: &Id, rpc: bool, data: &impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    struct Plain<'a, T> {
        id: &'a Id,
        ok: bool,
        data: &'a T,
    }
    #[derive(Serialize)]
    struct Rpc<'a, T> {
        jsonrpc: &'static str,
        id: &'a Id,
        result: &'a T,
    }
    let encoded = match rpc {
        false => line(&Plain { id, ok: true, data }),
        true => line(&Rpc { jsonrpc: "2.0", id, result: data }),
    };
    encoded.unwrap_or_else(|_| unencodable(id, rpc))
}

/// The answer to a request that was refused or failed.
pub fn encode_error(id: &Id, rpc: bool, error: &WireError) -> Vec<u8> {
    let WireError { code, message, detail, .. } = error;
    let value = match rpc {
        false => {
            json!({ "id": id, "ok": false, "error": { "code": code, "message": message, "detail": detail } })
        }
        true => json!({ "jsonrpc": "2.0", "id": id, "error": {
            "code": error.rpc_code(), "message": message, "data": { "code": code, "detail": detail } } }),
    };
    let mut bytes = value.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

/// One event of a request that streams. For JSON-RPC, `data` must be an object: the id is added to it.
pub fn encode_event(id: &Id, rpc: bool, name: &str, data: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    encode_event_into(&mut bytes, id, rpc, name, data);
    bytes
}

/// Likewise, at the end of `bytes`: for who sends many and keeps the allocation.
pub fn encode_event_into(bytes: &mut Vec<u8>, id: &Id, rpc: bool, name: &str, data: &impl Serialize) {
    #[derive(Serialize)]
    struct Plain<'a, T> {
        id: &'a Id,
        event: &'a str,
        data: &'a T,
    }
    let start = bytes.len();
    let encoded = match rpc {
        false => serde_json::to_writer(&mut *bytes, &Plain { id, event: name, data }),
        true => serde_json::to_value(data).and_then(|mut params| {
            if let Value::Object(map) = &mut params {
                map.insert("id".to_owned(), json!(id));
            }
            let method = format!("trl/{name}");
            serde_json::to_writer(
                &mut *bytes,
                &json!({ "jsonrpc": "2.0", "method": method, "params": params }),
            )
        }),
    };
    match encoded {
        Ok(()) => bytes.push(b'\n'),
        Err(_) => {
            bytes.truncate(start);
            bytes.extend_from_slice(&unencodable(id, rpc));
        }
    }
}

fn line(message: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = serde_json::to_vec(message)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn unencodable(id: &Id, rpc: bool) -> Vec<u8> {
    encode_error(id, rpc, &WireError::new(Code::InternalError, "failed to encode the answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(line: &str) -> (Id, bool, i32, String) {
        let bad = decode(line.as_bytes()).unwrap_err();
        assert_eq!(bad.error.code, Code::InvalidParams);
        (bad.id, bad.rpc, bad.error.rpc_code(), bad.error.message)
    }

    fn text(bytes: Vec<u8>) -> Value {
        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(bytes.last(), Some(&b'\n'));
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn requests_are_read() {
        let request = decode(br#"{"id":"a","method":"system.ping"}"#).unwrap();
        assert_eq!(
            (request.id, request.rpc, request.params),
            (Some(Id::Text("a".into())), false, Node::Map(vec![]))
        );
        let request = decode(br#"{"jsonrpc":"2.0","id":7,"method":"m","params":{"x":1}}"#).unwrap();
        assert_eq!((request.id, request.rpc), (Some(Id::Number(7)), true));
        assert_eq!(decode(br#"{"jsonrpc":"2.0","method":"m"}"#).unwrap().id, None);
    }

    #[test]
    fn a_duplicate_key_is_refused_by_its_path_and_with_the_id() {
        let (id, _, _, message) = bad(r#"{"id":"a","method":"m","params":{"env":{"K":"hunter2","K":"x"}}}"#);
        assert_eq!((id, message.as_str()), (Id::Text("a".into()), "params.env.K: key is given twice"));
        let (id, _, _, message) = bad(r#"{"id":"a","id":"b","method":"m"}"#);
        assert_eq!((id, message.as_str()), (Id::Null, "id: key is given twice"));
    }

    #[test]
    fn malformed_json_is_placed_and_not_repeated() {
        let (id, rpc, _, message) = bad("{\"id\":\"a\",hunter2}");
        assert_eq!((id, rpc, message.as_str()), (Id::Null, false, "malformed JSON at line 1 column 11"));
        assert_eq!(bad("{\"jsonrpc\":\"2.0\",").2, -32700);
        assert!(bad(r#"{"id":"a","method":"m"} x"#).3.starts_with("malformed JSON"));
        assert!(decode(b"{\"id\":\"\xff\"}").is_err());
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        assert!(bad(&deep).3.starts_with("JSON nested deeper than 64 levels"));
    }

    #[test]
    fn envelopes_out_of_order_are_refused() {
        assert_eq!(bad(r#"[{"jsonrpc":"2.0"}]"#).2, -32600);
        assert_eq!(bad(r#"{"method":"m"}"#).3, "id: missing");
        assert_eq!(bad(r#"{"id":1.5,"method":"m"}"#).3, "id: expected a string or an integer");
        assert_eq!(bad(r#"{"id":"a"}"#).3, "method: missing");
        assert_eq!(bad(r#"{"id":"a","method":"m","extra":1}"#).3, "extra: unknown field");
        assert_eq!(bad(r#"{"id":"a","method":"m","params":[1]}"#).3, "params: expected an object");
        assert_eq!(bad(r#"{"jsonrpc":"1.0","id":"a","method":"m"}"#).3, "jsonrpc: expected \"2.0\"");
    }

    #[test]
    fn answers_and_events_have_their_shape() {
        let (id, data) = (Id::Text("a".into()), json!({ "exec_id": "e" }));
        assert_eq!(text(encode_ok(&id, false, &data)), json!({ "id": "a", "ok": true, "data": data }));
        assert_eq!(text(encode_ok(&id, true, &data)), json!({ "jsonrpc": "2.0", "id": "a", "result": data }));
        let event = json!({ "id": "a", "event": "output", "data": data });
        assert_eq!(text(encode_event(&id, false, "output", &data)), event);
        let event =
            json!({ "jsonrpc": "2.0", "method": "trl/output", "params": { "id": "a", "exec_id": "e" } });
        assert_eq!(text(encode_event(&id, true, "output", &data)), event);
        let error = WireError::new(Code::MethodNotFound, "no such method");
        let plain = json!({ "code": "METHOD_NOT_FOUND", "message": "no such method", "detail": {} });
        assert_eq!(
            text(encode_error(&Id::Null, false, &error)),
            json!({ "id": null, "ok": false, "error": plain })
        );
        let rpc = json!({ "code": -32601, "message": "no such method",
            "data": { "code": "METHOD_NOT_FOUND", "detail": {} } });
        assert_eq!(
            text(encode_error(&Id::Number(3), true, &error)),
            json!({ "jsonrpc": "2.0", "id": 3, "error": rpc })
        );
    }
}
