//! Starting an exec: what the client asked, three descriptors, one message to the init.

use super::Daemon;
use super::actor::{self, Tap, tap};
use super::config::{MAX_RUNNING_EXECS, MAX_STDIN};
use super::create::{check_labels, check_scopes};
use super::dispatch::{Call, invalid};
use super::ending::Life;
use super::exec::{Exec, Inbox, Rules};
use super::link::LinkError;
use super::output::Ring;
use super::session::Session;
use super::wire::types::{Encoding, ExecParams, OnDisconnect, OnExit, OpaqueText, Overflow, StdinMode};
use super::wire::{Code, WireError};
use crate::ids::ExecId;
use crate::launcher::protocol::{ATTACKS, MAX_PATH, SpawnHeader, spawn_packets};
use crate::secret::Environment;
use nix::fcntl::OFlag;
use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;
use zeroize::Zeroizing;

/// Bytes of a client's text, decoded.
///
/// # Errors
/// `INVALID_PARAMS` for what is not base64, or is too long.
pub fn bytes_of(
    field: &str,
    text: OpaqueText,
    encoding: Option<Encoding>,
) -> Result<Zeroizing<Vec<u8>>, WireError> {
    let mut text = text.0;
    let bytes = match encoding {
        Some(Encoding::Base64) => {
            use base64::Engine as _;
            let decoded = base64::engine::general_purpose::STANDARD.decode(&text.0);
            Zeroizing::new(decoded.map_err(|_| invalid(field, "not base64"))?)
        }
        _ => Zeroizing::new(std::mem::take(&mut text.0)),
    };
    if bytes.len() > MAX_STDIN {
        return Err(invalid(field, "at most 1 MiB"));
    }
    Ok(bytes)
}

/// Whether to watch the pipes from the start, and whether the init is to say when it has started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// `exec.run`: only the end counts.
    Run,
    /// `exec.start`, `exec.stream`.
    Start,
}

struct Input {
    mode: StdinMode,
    content: Option<Zeroizing<Vec<u8>>>,
}

fn input(params: &mut ExecParams, manner: Manner) -> Result<Input, WireError> {
    let content = match params.stdin.take() {
        Some(text) => Some(bytes_of("stdin", text, params.stdin_encoding)?),
        None => None,
    };
    let mode =
        params.stdin_mode.unwrap_or(if content.is_some() { StdinMode::Content } else { StdinMode::Null });
    match (mode, &content) {
        (StdinMode::Null, Some(_)) => Err(invalid("stdin_mode", "null goes without stdin")),
        (StdinMode::Content, None) => Err(invalid("stdin_mode", "content goes with stdin")),
        (StdinMode::Pipe, _) if manner == Manner::Run && params.yield_ms.is_none() => {
            Err(invalid("stdin_mode", "pipe needs exec.start, exec.stream or yield_ms"))
        }
        _ => Ok(Input { mode, content }),
    }
}

fn argv(session: &Session, params: &mut ExecParams) -> Result<Vec<Zeroizing<Vec<u8>>>, WireError> {
    let own = |text: OpaqueText| {
        let mut text = text.0;
        Zeroizing::new(std::mem::take(&mut text.0))
    };
    match (params.command.take(), params.argv.take()) {
        (Some(command), None) => Ok(vec![
            Zeroizing::new(session.shell.as_bytes().to_vec()),
            Zeroizing::new(b"-c".to_vec()),
            own(command),
        ]),
        (None, Some(argv)) if !argv.is_empty() => Ok(argv.into_iter().map(own).collect()),
        (None, Some(_)) => Err(invalid("argv", "at least one string")),
        (Some(_), Some(_)) => Err(invalid("argv", "either command or argv")),
        (None, None) => Err(invalid("command", "command or argv is missing")),
    }
}

fn rules(call: &Call, session: &Session, params: &ExecParams, manner: Manner) -> Result<Rules, WireError> {
    let most = call.daemon.config.max_output_bytes;
    let max_output = match params.max_output_bytes {
        None => most,
        Some(0) => return Err(invalid("max_output_bytes", "at least 1")),
        Some(wanted) => usize::try_from(wanted).unwrap_or(most).min(most),
    };
    let default = if manner == Manner::Run && params.yield_ms.is_none() {
        OnDisconnect::Kill
    } else {
        OnDisconnect::Keep
    };
    Ok(Rules {
        timeout: params.timeout_s.map_or(session.timeout, Duration::from_secs_f64),
        idle_timeout: params.idle_timeout_s.map(Duration::from_secs_f64),
        grace: params.grace_s.map_or(session.grace, Duration::from_secs_f64),
        overflow: params.overflow.unwrap_or(Overflow::Drop),
        on_disconnect: params.on_disconnect.unwrap_or(default),
        on_exit: params.on_exit_descendants.unwrap_or(OnExit::Keep),
        max_output,
        cpu_seconds: session.cpu_seconds,
    })
}

/// Starts an exec and its actor.
///
/// # Errors
/// As in the protocol; then nothing was started.
pub fn start(
    call: &Call,
    session: &Rc<Session>,
    mut params: ExecParams,
    manner: Manner,
) -> Result<Rc<Exec>, WireError> {
    let daemon = &call.daemon;
    if session.life.get() != Life::Live {
        return Err(WireError::new(Code::SessionNotFound, "no such session"));
    }
    if params.expect_policy_digest.as_ref().is_some_and(|digest| *digest != session.isolation.digest) {
        return Err(WireError::new(Code::PolicyChanged, "the session has another policy"));
    }
    let input = input(&mut params, manner)?;
    let argv = argv(session, &mut params)?;
    let rules = rules(call, session, &params, manner)?;
    let cwd = params.cwd.take();
    if cwd.as_ref().is_some_and(|path| path.is_empty() || path.len() > MAX_PATH || path.contains('\0')) {
        return Err(invalid("cwd", "not a path"));
    }
    let env = params.env.take().map(|map| map.0).unwrap_or_default();
    let secrets = params.secrets.take().map(|map| map.0).unwrap_or_default();
    check_scopes(&env, &secrets)?;
    let labels = params.labels.take().unwrap_or_default();
    check_labels(&labels)?;
    if session.running.get() >= session.max_running.min(MAX_RUNNING_EXECS.max(session.max_running)) {
        return Err(WireError::new(Code::SessionBusy, "as many commands run in the session as may")
            .with(serde_json::json!({"max_running_execs": session.max_running})));
    }
    let number = session.number();
    let probe =
        daemon.config.attacks && argv.first().is_some_and(|name| name.as_slice() == ATTACKS.as_bytes());
    let want_started = manner == Manner::Start;
    let header = SpawnHeader { exec: number, want_started, probe, ..SpawnHeader::default() };
    let packets = {
        let scopes = [&daemon.runtime_env, &session.env, &session.secrets, &env, &secrets];
        let environment = Environment::layered(&scopes);
        let argv: Vec<&[u8]> = argv.iter().map(|text| text.as_slice()).collect();
        spawn_packets(header, cwd.as_ref().map(String::as_bytes), &argv, &environment)
            .map_err(|error| WireError::new(Code::InvalidParams, error.to_string()))?
    };
    let pipes = Pipes::make(&input, daemon)
        .map_err(|error| WireError::new(Code::ResourcePressure, format!("pipes of an exec: {error}")))?;
    let exec = Rc::new(Exec {
        id: ExecId::random(),
        number,
        session: session.id,
        principal: Rc::clone(&session.principal),
        started_at: SystemTime::now(),
        started: Instant::now(),
        labels,
        output: RefCell::new([Ring::new(rules.max_output), Ring::new(rules.max_output)]),
        rules,
        isolation: Rc::clone(&session.isolation),
        link: Rc::downgrade(&session.link),
        inbox: RefCell::new(Inbox::default()),
        wake: Notify::new(),
        changed: Notify::new(),
        progressed: Notify::new(),
        consumed: Cell::new([0, 0]),
        stdin: RefCell::new(None),
        followers: Cell::new(0),
        writer: Cell::new(None),
        expiring: Cell::new(None),
        accounted: Cell::new(0),
        kept: Rc::clone(&session.kept),
        end: RefCell::new(None),
    });
    if input.mode != StdinMode::Null {
        let mut buffer = Exec::stdin_buffer();
        let content = input.content.as_ref().map_or(&[][..], |content| content.as_slice());
        buffer
            .write(None, content, input.mode == StdinMode::Content)
            .map_err(|_| invalid("stdin", "at most 1 MiB"))?;
        *exec.stdin.borrow_mut() = Some(buffer);
    }
    session.link.send(packets, pipes.theirs).map_err(|error| match error {
        LinkError::Gone => WireError::new(Code::SessionNotFound, "the session has just ended"),
        LinkError::Full => WireError::new(Code::ResourcePressure, "the session does not take commands now"),
    })?;
    prepare(daemon);
    session.trees.borrow_mut().insert(number, Rc::clone(&exec));
    session.running.set(session.running.get() + 1);
    session.commands.set(session.commands.get() + 1);
    session.touch();
    daemon.commands.set(daemon.commands.get() + 1);
    daemon.execs.borrow_mut().insert(exec.id, Rc::clone(&exec));
    call.outbox.own(&exec);
    let run =
        actor::run(Rc::clone(daemon), Rc::clone(&exec), pipes.stdin, pipes.output, manner == Manner::Start);
    tokio::task::spawn_local(run);
    Ok(exec)
}

/// The daemon's end, non-blocking, and the command's.
fn output_pipe() -> std::io::Result<(Tap, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    Ok((tap(read)?, write))
}

/// Makes the next exec's pipes while this one's command is being started. Where there is no room for them now,
/// that exec will say so.
fn prepare(daemon: &Daemon) {
    let mut pipes = daemon.pipes.borrow_mut();
    while pipes.len() < 2
        && let Ok(pipe) = output_pipe()
    {
        pipes.push(pipe);
    }
}

struct Pipes {
    stdin: Tap,
    output: [Tap; 2],
    theirs: Vec<Rc<OwnedFd>>,
}

impl Pipes {
    fn make(input: &Input, daemon: &Daemon) -> std::io::Result<Self> {
        let (stdin, their_stdin) = if input.mode == StdinMode::Null {
            (Tap::Closed, Rc::clone(&daemon.null))
        } else {
            let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
            (tap(write)?, Rc::new(read))
        };
        let spare = || daemon.pipes.borrow_mut().pop();
        let (stdout, their_stdout) = spare().map_or_else(output_pipe, Ok)?;
        let (stderr, their_stderr) = spare().map_or_else(output_pipe, Ok)?;
        Ok(Self {
            stdin,
            output: [stdout, stderr],
            theirs: vec![their_stdin, Rc::new(their_stdout), Rc::new(their_stderr)],
        })
    }
}
