//! What a client is told when something is refused.

use serde::{Serialize, Serializer};
use serde_json::Value;

macro_rules! codes {
    ($($variant:ident = $name:literal,)*) => {
        /// The string codes of the wire; programs decide by them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// The code as it stands on the wire.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Code::$variant => $name,)*
                }
            }
        }
    };
}

codes! {
    InvalidParams = "INVALID_PARAMS",
    MethodNotFound = "METHOD_NOT_FOUND",
    SessionNotFound = "SESSION_NOT_FOUND",
    SessionBusy = "SESSION_BUSY",
    MaxSessionsReached = "MAX_SESSIONS_REACHED",
    SessionLimitExceeded = "SESSION_LIMIT_EXCEEDED",
    ResourcePressure = "RESOURCE_PRESSURE",
    InternalError = "INTERNAL_ERROR",
    AuthFailed = "AUTH_FAILED",
    ExecNotFound = "EXEC_NOT_FOUND",
    ExecExpired = "EXEC_EXPIRED",
    StdinClosed = "STDIN_CLOSED",
    StdinFull = "STDIN_FULL",
    WriterTaken = "WRITER_TAKEN",
    SlowConsumer = "SLOW_CONSUMER",
    TooManyRequests = "TOO_MANY_REQUESTS",
    RequestTooLarge = "REQUEST_TOO_LARGE",
    IsolationUnavailable = "ISOLATION_UNAVAILABLE",
    PolicyNotFound = "POLICY_NOT_FOUND",
    PolicyDenied = "POLICY_DENIED",
    PolicyChanged = "POLICY_CHANGED",
    IdempotencyConflict = "IDEMPOTENCY_CONFLICT",
    OutcomeUnknown = "OUTCOME_UNKNOWN",
    SpawnFailed = "SPAWN_FAILED",
    ShuttingDown = "SHUTTING_DOWN",
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// JSON-RPC: the line is not JSON.
pub(super) const RPC_PARSE_ERROR: i32 = -32700;
/// JSON-RPC: JSON, but not a request that is served here (a batch).
pub(super) const RPC_INVALID_REQUEST: i32 = -32600;

/// An error as the client gets it. Holds no value that a client or a workload sent.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}: {message}", .code.name())]
pub struct WireError {
    /// For programs.
    pub code: Code,
    /// For people.
    pub message: String,
    /// An object, typed per code.
    pub detail: Value,
    rpc_code: Option<i32>,
}

impl WireError {
    /// An error without detail.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), detail: Value::Object(serde_json::Map::new()), rpc_code: None }
    }

    /// The same error with a detail, which must be an object.
    #[must_use]
    pub fn with(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }

    /// The same error with a JSON-RPC code that does not follow from `code`.
    pub(super) fn with_rpc_code(mut self, rpc_code: i32) -> Self {
        self.rpc_code = Some(rpc_code);
        self
    }

    /// The integer code of a JSON-RPC answer.
    pub(super) fn rpc_code(&self) -> i32 {
        self.rpc_code.unwrap_or(match self.code {
            Code::MethodNotFound => -32601,
            Code::InvalidParams => -32602,
            _ => -32000,
        })
    }
}
