//! Parameters of every method. Unknown fields are refused; `null` is the same as left out.

use super::Node;
use crate::opaque::Opaque;
use crate::secret::{Environment, Secret};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// The longest time in seconds that a client can ask for: a week.
pub const MAX_SECONDS: f64 = 604_800.0;

macro_rules! params {
    ($($(#[doc = $doc:literal])* $name:ident { $($(#[$attr:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[doc = $doc])*
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(missing_docs)] // The fields are those of the wire, documented with the protocol.
        pub struct $name { $($(#[$attr])* pub $field: $type,)* }
    )*};
}

params! {
    /// A method without parameters.
    NoParams {}
    /// `session.create`.
    CreateParams {
        shell: Option<String>,
        env: Option<SecretMap>,
        working_dir: Option<String>,
        name: Option<String>,
        #[serde(default, deserialize_with = "timeout")] timeout_s: Option<f64>,
        secrets: Option<SecretMap>,
        policy: Option<String>,
        #[serde(default, deserialize_with = "grace")] grace_s: Option<f64>,
        require: Option<Vec<String>>,
        workspace: Option<WorkspaceParam>,
        limits: Option<Node>,
        labels: Option<BTreeMap<String, String>>,
        #[serde(default, deserialize_with = "timeout")] ttl_s: Option<f64>,
        #[serde(default, deserialize_with = "timeout")] idle_timeout_s: Option<f64>,
        idempotency_key: Option<String>,
    }
    /// `workspace` of `session.create` in full.
    WorkspaceFields { mode: WorkspaceWord, path: Option<String>, read_only: Option<bool>, }
    /// `session.list`.
    ListParams {
        label: Option<String>,
        state: Option<String>,
        limit: Option<u64>,
        cursor: Option<String>,
    }
    /// `session.info`, `session.touch`.
    SessionParams { session_id: String, }
    /// `session.destroy`.
    DestroyParams { session_id: String, force: Option<bool>, }
    /// `exec.run`, `exec.start`, `exec.stream`.
    ExecParams {
        session_id: String,
        command: Option<OpaqueText>,
        argv: Option<Vec<OpaqueText>>,
        #[serde(default, deserialize_with = "timeout")] timeout_s: Option<f64>,
        stdin: Option<OpaqueText>,
        env: Option<SecretMap>,
        secrets: Option<SecretMap>,
        cwd: Option<String>,
        stdin_encoding: Option<Encoding>,
        #[serde(default, deserialize_with = "timeout")] idle_timeout_s: Option<f64>,
        #[serde(default, deserialize_with = "grace")] grace_s: Option<f64>,
        yield_ms: Option<u64>,
        max_output_bytes: Option<u64>,
        overflow: Option<Overflow>,
        on_disconnect: Option<OnDisconnect>,
        on_exit_descendants: Option<OnExit>,
        labels: Option<BTreeMap<String, String>>,
        idempotency_key: Option<String>,
        expect_policy_digest: Option<String>,
        tty: Option<TtyParams>,
        stdin_mode: Option<StdinMode>,
    }
    /// `tty` of `exec.start`.
    TtyParams { rows: Option<u16>, cols: Option<u16>, term: Option<String>, }
    /// `exec.attach`; an offset of -1 means only what is new.
    AttachParams {
        exec_id: String,
        stdout_offset: Option<i64>,
        stderr_offset: Option<i64>,
        role: Option<Role>,
    }
    /// `exec.read`.
    ReadParams {
        exec_id: String,
        stream: Option<StreamName>,
        offset: Option<u64>,
        max_bytes: Option<u64>,
        wait_ms: Option<u64>,
    }
    /// `exec.wait`; a timeout of 0 asks without waiting.
    WaitParams {
        exec_id: String,
        #[serde(default, deserialize_with = "grace")] timeout_s: Option<f64>,
    }
    /// `exec.write`.
    WriteParams {
        exec_id: String,
        offset: Option<u64>,
        data: Option<OpaqueText>,
        encoding: Option<Encoding>,
        eof: Option<bool>,
    }
    /// `exec.resize`.
    ResizeParams { exec_id: String, rows: u16, cols: u16, }
    /// `exec.signal`.
    SignalParams { exec_id: String, signal: Option<SignalName>, target: Option<TargetName>, }
    /// `exec.cancel`.
    CancelParams {
        exec_id: String,
        signal: Option<SignalName>,
        #[serde(default, deserialize_with = "grace")] grace_s: Option<f64>,
    }
    /// `exec.list`.
    ExecListParams { session_id: Option<String>, state: Option<String>, label: Option<String>, }
    /// `exec.info`.
    ExecInfoParams { exec_id: String, }
    /// `policy.show`.
    PolicyShowParams { name: String, }
}

macro_rules! words {
    ($($(#[doc = $doc:literal])* $name:ident { $($variant:ident = $word:literal,)* })*) => {$(
        $(#[doc = $doc])*
        #[derive(serde::Deserialize, serde::Serialize, Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $(#[doc = concat!("`", $word, "`")] #[serde(rename = $word)] $variant,)* }
    )*};
}

words! {
    /// How bytes stand in a JSON string.
    Encoding { Utf8 = "utf-8", Base64 = "base64", }
    /// What happens when the retained output is full.
    Overflow { Drop = "drop", Block = "block", Kill = "kill", }
    /// What happens to descendants that outlive the leader.
    OnExit { Keep = "keep", Kill = "kill", Wait = "wait", }
    /// Where an exec's stdin comes from.
    StdinMode { Null = "null", Content = "content", Pipe = "pipe", }
    /// Whom a signal goes to.
    TargetName { Leader = "leader", Group = "group", Tree = "tree", }
    /// What an attached client may do.
    Role { Writer = "writer", Viewer = "viewer", }
    /// What a workspace is: see `workspace` of `session.create`.
    WorkspaceWord { None = "none", Private = "private", Overlay = "overlay", Host = "host", }
    /// One of the two output streams.
    StreamName { Stdout = "stdout", Stderr = "stderr", }
}

/// `workspace` of `session.create`: a word, or an object of [`WorkspaceFields`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceParam {
    /// What it is.
    pub mode: WorkspaceWord,
    /// The host's directory; else the working directory.
    pub path: Option<String>,
    /// Whether the session cannot write there.
    pub read_only: Option<bool>,
}

impl<'de> Deserialize<'de> for WorkspaceParam {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = WorkspaceParam;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("none, private, overlay, host, or an object with mode, path and read_only")
            }
            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<WorkspaceParam, E> {
                let mode = WorkspaceWord::deserialize(serde::de::value::StrDeserializer::new(word))?;
                Ok(WorkspaceParam { mode, path: None, read_only: None })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WorkspaceParam, A::Error> {
                let from = serde::de::value::MapAccessDeserializer::new(map);
                let WorkspaceFields { mode, path, read_only } = WorkspaceFields::deserialize(from)?;
                Ok(WorkspaceParam { mode, path, read_only })
            }
        }
        from.deserialize_any(V)
    }
}

/// What happens to an exec when the connection that started it is gone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OnDisconnect {
    /// `keep`
    Keep,
    /// `kill`
    Kill,
    /// `{"grace_s": N}`: killed after that many seconds unless somebody attaches.
    Grace(f64),
}

/// Text of a client that is carried and never printed: a command, an argument, stdin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpaqueText(pub Opaque);

/// `env` or `secrets`: keys to values that never come back.
pub struct SecretMap(pub Environment);

/// A signal by name (`TERM`, `SIGTERM`) or number (1 to 64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalName(pub i32);

fn seconds<'de, D: Deserializer<'de>>(from: D, zero: bool) -> Result<Option<f64>, D::Error> {
    let Some(value) = Option::<f64>::deserialize(from)? else { return Ok(None) };
    if value.is_finite() && value <= MAX_SECONDS && (value > 0.0 || (zero && value == 0.0)) {
        return Ok(Some(value));
    }
    let bound = if zero { "at least 0" } else { "more than 0" };
    Err(D::Error::custom(format_args!("expected seconds, {bound} and at most {MAX_SECONDS}")))
}

fn timeout<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    seconds(from, false)
}

fn grace<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    seconds(from, true)
}

impl<'de> Deserialize<'de> for OpaqueText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = OpaqueText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<OpaqueText, E> {
                Ok(OpaqueText(Opaque(text.as_bytes().to_vec())))
            }
        }
        from.deserialize_str(Text)
    }
}

struct SecretValue(Secret);

impl<'de> Deserialize<'de> for SecretValue {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Value;
        impl Visitor<'_> for Value {
            type Value = SecretValue;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string without NUL")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SecretValue, E> {
                if text.contains('\0') {
                    return Err(E::custom("expected a string without NUL"));
                }
                Ok(SecretValue(Secret::copy_from(text.as_bytes())))
            }
        }
        from.deserialize_str(Value)
    }
}

impl<'de> Deserialize<'de> for SecretMap {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Variables;
        impl<'de> Visitor<'de> for Variables {
            type Value = SecretMap;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SecretMap, A::Error> {
                let mut variables = Environment::default();
                while let Some(key) = map.next_key::<String>()? {
                    if key.is_empty() || key.contains(['=', '\0']) {
                        return Err(A::Error::custom("a key must be non-empty and without '=' or NUL"));
                    }
                    if variables.get(&key).is_some() {
                        return Err(A::Error::custom("a key is given twice"));
                    }
                    let SecretValue(value) = map.next_value()?;
                    variables.insert(key, value);
                }
                Ok(SecretMap(variables))
            }
        }
        from.deserialize_map(Variables)
    }
}

impl<'de> Deserialize<'de> for OnDisconnect {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct After {
            #[serde(default, deserialize_with = "grace")]
            grace_s: Option<f64>,
        }
        struct Choice;
        impl<'de> Visitor<'de> for Choice {
            type Value = OnDisconnect;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("keep, kill or {\"grace_s\": seconds}")
            }
            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<OnDisconnect, E> {
                match word {
                    "keep" => Ok(OnDisconnect::Keep),
                    "kill" => Ok(OnDisconnect::Kill),
                    _ => Err(E::custom("expected keep, kill or {\"grace_s\": seconds}")),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<OnDisconnect, A::Error> {
                let after = After::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                after.grace_s.map(OnDisconnect::Grace).ok_or_else(|| A::Error::missing_field("grace_s"))
            }
        }
        from.deserialize_any(Choice)
    }
}

const EXPECTED_SIGNAL: &str = "a signal's name or a number from 1 to 64";

impl<'de> Deserialize<'de> for SignalName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Signal;
        impl Visitor<'_> for Signal {
            type Value = SignalName;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED_SIGNAL)
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<SignalName, E> {
                i32::try_from(number)
                    .ok()
                    .filter(|number| (1..=64).contains(number))
                    .map(SignalName)
                    .ok_or_else(|| E::custom(format_args!("expected {EXPECTED_SIGNAL}")))
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<SignalName, E> {
                let full = if name.starts_with("SIG") { name.to_owned() } else { format!("SIG{name}") };
                full.parse::<nix::sys::signal::Signal>()
                    .map(|signal| SignalName(signal as i32))
                    .map_err(|_| E::custom(format_args!("expected {EXPECTED_SIGNAL}")))
            }
        }
        from.deserialize_any(Signal)
    }
}
