//! Commands with their streams: `exec.start`, then `exec.attach` on the same connection; standard input and
//! signals go over connections of their own, so that neither waits for the other.

use super::args::{AttachArgs, ExecArgs, ExecOptions};
use super::client::{Client, ClientError, data};
use super::show::{self, Failure};
use base64::{Engine, engine::general_purpose::STANDARD};
use nix::sys::signal::{SigSet, Signal};
use serde_json::{Map, Value, json};
use std::io::{self, Read, Write};
use std::time::Duration;

/// Bytes of standard input in one `exec.write`.
const CHUNK: usize = 32 * 1024;
/// First and longest pause after `STDIN_FULL`.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// How often an attach that was cut off without having read anything is tried again.
const MAX_RESUMES: u32 = 50;

/// What a command is run as.
pub struct Start<'a> {
    /// The session.
    pub session: &'a str,
    /// The command.
    pub argv: &'a [String],
    /// Environment of the command.
    pub env: Map<String, Value>,
    /// Working directory; else the session's.
    pub cwd: Option<&'a str>,
    /// Seconds.
    pub timeout: Option<f64>,
}

/// `--env K[=V]` as an object; a key without a value takes the caller's.
///
/// # Errors
/// Which key cannot be taken. Never a value.
pub fn environment(given: &[String]) -> Result<Map<String, Value>, Failure> {
    let mut env = Map::new();
    for entry in given {
        let (key, value) = match entry.split_once('=') {
            Some((key, value)) => (key, value.to_owned()),
            None => (
                entry.as_str(),
                std::env::var(entry)
                    .map_err(|_| Failure::text(format!("--env {entry}: not set here, or not UTF-8")))?,
            ),
        };
        if key.is_empty() {
            return Err(Failure::text("--env: a variable needs a name"));
        }
        env.insert(key.to_owned(), Value::from(value));
    }
    Ok(env)
}

/// `trl exec`.
///
/// # Errors
/// What TRL itself could not do.
pub fn exec(client: &mut Client, args: &ExecArgs, json: bool) -> Result<i32, Failure> {
    let ExecOptions { env, cwd, timeout } = &args.options;
    let start = Start {
        session: &args.session,
        argv: &args.argv,
        env: environment(env)?,
        cwd: cwd.as_deref(),
        timeout: *timeout,
    };
    if args.detach {
        let started = client.call("exec.start", &params(start, true))?;
        if json {
            show::json(&started);
        } else {
            show::line(started["exec_id"].as_str().unwrap_or_default());
        }
        return Ok(0);
    }
    block_signals()?;
    run(client, start, json)
}

/// `trl attach`.
///
/// # Errors
/// What TRL itself could not do.
pub fn attach(client: &mut Client, args: &AttachArgs, json: bool) -> Result<i32, Failure> {
    let from = if args.new { -1 } else { 0 };
    finish(&follow(client, &args.exec, from, "viewer", json)?, json)
}

/// Blocks the signals that [`run`] forwards; to be called while the process has one thread of its own.
///
/// # Errors
/// The kernel's.
pub fn block_signals() -> Result<(), Failure> {
    forwarded().thread_block().map_err(|errno| Failure::text(format!("sigprocmask: {errno}")))
}

fn forwarded() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect()
}

/// Starts a command, passes its streams and signals on, and yields its exit code.
///
/// # Errors
/// What TRL itself could not do.
pub fn run(client: &mut Client, start: Start<'_>, json: bool) -> Result<i32, Failure> {
    let started = client.call("exec.start", &params(start, false))?;
    let exec = started["exec_id"].as_str().ok_or(ClientError::Protocol)?.to_owned();
    let (input, signals) = (client.another()?, client.another()?);
    let name = exec.clone();
    spawn("stdin", move || forward_input(input, &name))?;
    let name = exec.clone();
    spawn("signals", move || forward_signals(signals, &name))?;
    finish(&follow(client, &exec, 0, "viewer", json)?, json)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map(drop)
        .map_err(|error| Failure::text(format!("starting a thread: {error}")))
}

fn params(start: Start<'_>, detach: bool) -> Value {
    let mut params = json!({
        "session_id": start.session,
        "argv": start.argv,
        "stdin_mode": if detach { "null" } else { "pipe" },
        "on_disconnect": if detach { "keep" } else { "kill" },
    });
    if !start.env.is_empty() {
        params["env"] = Value::Object(start.env);
    }
    if let Some(cwd) = start.cwd {
        params["cwd"] = cwd.into();
    }
    if let Some(timeout) = start.timeout {
        params["timeout_s"] = timeout.into();
    }
    params
}

/// Reads events to `end` and yields the outcome.
fn follow(client: &mut Client, exec: &str, from: i64, role: &str, json: bool) -> Result<Value, Failure> {
    let mut offsets = [from, from];
    let mut resumes = 0;
    loop {
        let id = client.send(
            "exec.attach",
            &json!({"exec_id": exec, "stdout_offset": offsets[0], "stderr_offset": offsets[1], "role": role}),
        )?;
        loop {
            let mut line = client.next(None)?;
            if line["id"] != id {
                continue;
            }
            let Some(event) = line["event"].as_str().map(str::to_owned) else {
                match data(line) {
                    Ok(_) => continue,
                    Err(ClientError::Refused { code, .. })
                        if code == "SLOW_CONSUMER" && resumes < MAX_RESUMES =>
                    {
                        resumes += 1;
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
            };
            let data = line["data"].take();
            if json {
                show::json(&json!({"event": event, "data": data}));
            }
            match event.as_str() {
                "output" => {
                    output(&data, &mut offsets, json)?;
                    resumes = 0;
                }
                "gap" if !json => show::note(&format!(
                    "output dropped: {} bytes {} to {}",
                    data["stream"].as_str().unwrap_or_default(),
                    data["from"],
                    data["to"]
                )),
                "end" => return Ok(data),
                _ => {}
            }
        }
    }
}

fn output(data: &Value, offsets: &mut [i64; 2], json: bool) -> Result<(), Failure> {
    let text = data["data"].as_str().ok_or(ClientError::Protocol)?;
    let decoded;
    let bytes = if data["encoding"] == "base64" {
        decoded = STANDARD.decode(text).map_err(|_| ClientError::Protocol)?;
        &decoded[..]
    } else {
        text.as_bytes()
    };
    let error = data["stream"] == "stderr";
    let length = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    if let Some(offset) = data["offset"].as_i64() {
        offsets[usize::from(error)] = offset.saturating_add(length);
    }
    if json {
        return Ok(());
    }
    let written = if error {
        io::stderr().write_all(bytes)
    } else {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush())
    };
    written.map_err(|error| Failure::text(format!("writing output: {error}")))
}

/// The exit code, with a word on standard error where it alone would mislead.
fn finish(outcome: &Value, json: bool) -> Result<i32, Failure> {
    let reason = outcome["end"]["reason"].as_str().unwrap_or("unknown");
    let detail = &outcome["end"]["detail"];
    match reason {
        "exited" | "signaled" => {}
        _ if json => {}
        "spawn_failed" => show::note(&format!(
            "the command was not started: {}, errno {}",
            detail["stage"].as_str().unwrap_or("?"),
            detail["errno"]
        )),
        reason => show::note(&format!("the command was ended: {reason}")),
    }
    outcome["exit_code"]
        .as_i64()
        .and_then(|code| i32::try_from(code).ok())
        .ok_or_else(|| ClientError::Protocol.into())
}

fn forward_input(mut client: Client, exec: &str) {
    let mut buffer = zeroize::Zeroizing::new(vec![0u8; CHUNK]);
    let mut offset = 0u64;
    let mut stdin = io::stdin().lock();
    loop {
        let length = match stdin.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        if !write_all(&mut client, exec, &mut offset, &buffer[..length]) || length == 0 {
            return;
        }
    }
}

/// Hands `bytes` (none: end-of-file) over, waiting where the program does not read; false once it never will.
fn write_all(client: &mut Client, exec: &str, offset: &mut u64, bytes: &[u8]) -> bool {
    let end = *offset + bytes.len() as u64;
    let mut pause = PAUSE.0;
    loop {
        let rest = &bytes[bytes.len() - usize::try_from(end - *offset).unwrap_or(0)..];
        let (text, encoding) = match std::str::from_utf8(rest) {
            Ok(text) => (text.to_owned(), "utf-8"),
            Err(_) => (STANDARD.encode(rest), "base64"),
        };
        let params = json!({"exec_id": exec, "offset": *offset, "data": text, "encoding": encoding, "eof": bytes.is_empty()});
        match client.call("exec.write", &params) {
            Ok(_) => {
                *offset = end;
                return true;
            }
            Err(ClientError::Refused { code, detail, .. }) if code == "STDIN_FULL" => {
                let accepted = detail["accepted_offset"].as_u64().unwrap_or(*offset);
                if accepted > *offset {
                    pause = PAUSE.0;
                }
                *offset = accepted.clamp(*offset, end);
                if *offset == end && !bytes.is_empty() {
                    return true;
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSE.1);
            }
            Err(_) => return false,
        }
    }
}

fn forward_signals(mut client: Client, exec: &str) {
    while let Ok(signal) = forwarded().wait() {
        let params = json!({"exec_id": exec, "signal": signal as i32, "target": "group"});
        if let Err(error) = client.call("exec.signal", &params) {
            show::note(&format!("passing {signal} on failed: {error}"));
        }
    }
}
