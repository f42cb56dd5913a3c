//! The client side of the Unix carrier: blocking, one request at a time on a connection.

use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the answer to a plain request may take: a destroy waits for its grace.
const ANSWER_BOUND: Duration = Duration::from_secs(120);
/// A longer line from the daemon is not its protocol: the outcome of an exec holds both streams, escaped.
const MAX_LINE: u64 = 64 << 20;

/// Why a request has no data.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon there.
    #[error("connect {}: {source}; is `trl serve` running, and is --socket the same?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("{0} the daemon: {1}")]
    Io(&'static str, io::Error),
    /// The daemon closed the connection.
    #[error("the daemon closed the connection")]
    Closed,
    /// A line that is no envelope.
    #[error("the daemon's answer is not of the protocol")]
    Protocol,
    /// The daemon refused.
    #[error("{code}: {message}")]
    Refused {
        /// For programs.
        code: String,
        /// For people.
        message: String,
        /// Typed per code.
        detail: Value,
    },
}

/// A connection to the daemon.
pub struct Client {
    reader: BufReader<UnixStream>,
    path: PathBuf,
    last_id: u64,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| ClientError::Connect { path: path.to_path_buf(), source })?;
        Ok(Self { reader: BufReader::new(stream), path: path.to_path_buf(), last_id: 0 })
    }

    /// Another connection to the same daemon.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn another(&self) -> Result<Self, ClientError> {
        Self::connect(&self.path)
    }

    /// Sends a request and yields its id.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn send(&mut self, method: &str, params: &Value) -> Result<Value, ClientError> {
        self.last_id += 1;
        let id = Value::from(self.last_id.to_string());
        let mut line = json!({"id": id, "method": method, "params": params}).to_string();
        line.push('\n');
        let sent = self.reader.get_mut().write_all(line.as_bytes());
        zeroize::Zeroize::zeroize(&mut line);
        sent.map_err(|error| ClientError::Io("write to", error))?;
        Ok(id)
    }

    /// The next line of the daemon's; waits for `bound`, or for as long as the daemon lives.
    ///
    /// # Errors
    /// All but [`ClientError::Connect`] and [`ClientError::Refused`].
    pub fn next(&mut self, bound: Option<Duration>) -> Result<Value, ClientError> {
        let failed = |error| ClientError::Io("read from", error);
        self.reader.get_ref().set_read_timeout(bound).map_err(failed)?;
        let mut line = Vec::new();
        (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut line).map_err(failed)?;
        match line.last() {
            None => Err(ClientError::Closed),
            Some(b'\n') => serde_json::from_slice(&line).map_err(|_| ClientError::Protocol),
            Some(_) => Err(ClientError::Protocol),
        }
    }

    /// A request and the data of its answer.
    ///
    /// # Errors
    /// Any.
    pub fn call(&mut self, method: &str, params: &Value) -> Result<Value, ClientError> {
        let id = self.send(method, params)?;
        loop {
            let line = self.next(Some(ANSWER_BOUND))?;
            if line["id"] == id && line.get("event").is_none() {
                return data(line);
            }
            if line["id"].is_null() && line["ok"] == false {
                return data(line);
            }
        }
    }
}

/// The data of an answer, or its error.
///
/// # Errors
/// [`ClientError::Refused`].
pub fn data(mut answer: Value) -> Result<Value, ClientError> {
    if answer["ok"] == true {
        return Ok(answer["data"].take());
    }
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let error = &answer["error"];
    Err(ClientError::Refused {
        code: text(&error["code"]),
        message: text(&error["message"]),
        detail: error["detail"].clone(),
    })
}
