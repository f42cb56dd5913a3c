//! The `exec.*` methods.

use super::config::KILL_BOUND;
use super::dispatch::{Call, LISTING, Reply, has_label, invalid, unknown_method};
use super::exec::{Exec, Reason, STREAMS, Stop, failure, rfc3339};
use super::follow;
use super::idempotency::{Answer, Begun};
use super::output::StdinError;
use super::session::Session;
use super::start::{self, Manner, bytes_of};
use super::wire::text::{complete_prefix, encode_bytes};
use super::wire::types::{
    AttachParams, CancelParams, ExecInfoParams, ExecListParams, ExecParams, ReadParams, Role, SignalParams,
    StreamName, TargetName, WaitParams, WriteParams,
};
use super::wire::{self, Code, Node, WireError};
use crate::launcher::protocol::{Target, ToInit};
use serde_json::json;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::timeout;

/// Most bytes of one `exec.read`.
const MAX_READ: u64 = 1024 * 1024;
/// Longest wait of `exec.read` and `exec.wait` without a timeout, and of `yield_ms`.
const MAX_WAIT: Duration = Duration::from_secs(604_800);

/// `exec.run`, `exec.start`, `exec.stream`.
///
/// # Errors
/// As in the protocol.
pub async fn start(call: &Call, method: &str, params: Node) -> Result<Reply, WireError> {
    let key = call.daemon.idempotency.find(method, &params)?;
    let params: ExecParams = wire::params(params)?;
    let yield_ms = params.yield_ms;
    // A request that can have no effect takes no key.
    if let Some((key, _)) = &key
        && !call.daemon.idempotency.is_known(&call.principal, key)
    {
        call.daemon.session(&call.principal, &params.session_id)?;
    }
    let entry = match key {
        None => None,
        Some((key, digest)) => match call.daemon.idempotency.begin(&call.principal, &key, digest).await? {
            Begun::Again(Answer::Exec(id)) => {
                let exec = call.daemon.exec(&call.principal, &id.to_string())?;
                return answer(call, method, exec, yield_ms).await;
            }
            Begun::Again(Answer::Error(code, message, detail)) => {
                return Err(WireError::new(code, message).with(detail));
            }
            Begun::Again(Answer::Value(_)) => {
                return Err(WireError::new(Code::IdempotencyConflict, "the key was used for a session"));
            }
            Begun::New(entry) => Some(entry),
        },
    };
    let result = begin(call, method, params);
    if let Some(entry) = entry {
        entry.answered(match &result {
            Ok(exec) => Answer::Exec(exec.id),
            Err(error) => Answer::Error(error.code, error.message.clone(), error.detail.clone()),
        });
    }
    answer(call, method, result?, yield_ms).await
}

fn begin(call: &Call, method: &str, params: ExecParams) -> Result<Rc<Exec>, WireError> {
    if params.tty.is_some() {
        return Err(invalid("tty", "terminals are not supported"));
    }
    let session = call.daemon.session(&call.principal, &params.session_id)?;
    let manner = if method == "exec.run" { Manner::Run } else { Manner::Start };
    start::start(call, &session, params, manner)
}

async fn answer(
    call: &Call,
    method: &str,
    exec: Rc<Exec>,
    yield_ms: Option<u64>,
) -> Result<Reply, WireError> {
    match (method, yield_ms) {
        ("exec.run", None) => exec.finished().await,
        ("exec.run", Some(ms)) => {
            timeout(Duration::from_millis(ms).min(MAX_WAIT), exec.finished()).await.ok();
        }
        // A start that hangs is ended by the exec's own deadline.
        _ => exec.started().await,
    }
    // A run has an outcome even then; a start or a stream has nothing to go on with.
    if method != "exec.run"
        && let Some(end) = exec.end.borrow().as_ref()
        && let Some((stage, errno)) = end.failed
    {
        let errno_name = nix::errno::Errno::from_raw(errno);
        let message =
            format!("command did not start: {}: {errno_name:?} ({})", stage.name(), errno_name.desc());
        return Err(WireError::new(Code::SpawnFailed, message).with(failure(stage, errno)));
    }
    match method {
        "exec.run" => Ok(Reply::Outcome(exec)),
        "exec.start" => Ok(Reply::Value(json!({
            "exec_id": exec.id,
            "session_id": exec.session,
            "started_at": rfc3339(exec.started_at),
            "policy_digest": exec.isolation.digest,
        }))),
        _ => {
            exec.writer.set(Some(call.outbox.number));
            call.ok(&json!({"exec_id": exec.id})).await;
            follow_to_end(call, &exec, [0, 0]).await
        }
    }
}

async fn follow_to_end(call: &Call, exec: &Rc<Exec>, cursors: [u64; 2]) -> Result<Reply, WireError> {
    follow::follow(call, exec, cursors).await.map(|()| Reply::Done)
}

/// Every other `exec.*`.
///
/// # Errors
/// As in the protocol.
pub async fn route(call: &Call, method: &str, params: Node) -> Result<Reply, WireError> {
    match method {
        "exec.attach" => attach(call, &wire::params(params)?).await,
        "exec.read" => read(call, &wire::params(params)?).await,
        "exec.wait" => {
            let params: WaitParams = wire::params(params)?;
            let exec = call.daemon.exec(&call.principal, &params.exec_id)?;
            let bound = params.timeout_s.map_or(MAX_WAIT, Duration::from_secs_f64);
            timeout(bound, exec.finished()).await.ok();
            Ok(Reply::Outcome(exec))
        }
        "exec.write" => write(call, wire::params(params)?),
        "exec.signal" => signal(call, &wire::params(params)?).await,
        "exec.cancel" => cancel(call, &wire::params(params)?).await,
        "exec.list" => {
            call.outbox.room_for(LISTING).await;
            list(call, &wire::params(params)?)
        }
        "exec.info" => {
            let params: ExecInfoParams = wire::params(params)?;
            Ok(Reply::Value(call.daemon.exec(&call.principal, &params.exec_id)?.info()))
        }
        _ => Err(unknown_method()),
    }
}

async fn attach(call: &Call, params: &AttachParams) -> Result<Reply, WireError> {
    let exec = call.daemon.exec(&call.principal, &params.exec_id)?;
    let ends = {
        let rings = exec.output.borrow();
        [rings[0].end(), rings[1].end()]
    };
    let cursor = |field: &str, wanted: Option<i64>, end: u64| match wanted.unwrap_or(0) {
        -1 => Ok(end),
        offset => match u64::try_from(offset) {
            Ok(offset) if offset <= end => Ok(offset),
            _ => Err(invalid(field, "expected -1, or an offset up to the end")),
        },
    };
    let cursors = [
        cursor("stdout_offset", params.stdout_offset, ends[0])?,
        cursor("stderr_offset", params.stderr_offset, ends[1])?,
    ];
    if params.role == Some(Role::Writer) {
        let taken = exec.writer.get().is_some_and(|writer| writer != call.outbox.number);
        if taken && exec.followers.get() > 0 {
            return Err(WireError::new(Code::WriterTaken, "another connection writes to the exec"));
        }
        exec.writer.set(Some(call.outbox.number));
    }
    call.ok(&json!({
        "exec_id": exec.id,
        "session_id": exec.session,
        "state": if exec.has_ended() { "ended" } else { "running" },
        "stdout_offset": cursors[0],
        "stderr_offset": cursors[1],
    }))
    .await;
    follow_to_end(call, &exec, cursors).await
}

async fn read(call: &Call, params: &ReadParams) -> Result<Reply, WireError> {
    let exec = call.daemon.exec(&call.principal, &params.exec_id)?;
    let index = usize::from(params.stream == Some(StreamName::Stderr));
    let offset = params.offset.unwrap_or(0);
    let most = usize::try_from(params.max_bytes.unwrap_or(MAX_READ / 16).clamp(1, MAX_READ)).unwrap_or(1);
    if offset > exec.output.borrow()[index].end() {
        return Err(invalid("offset", "beyond the end of the stream"));
    }
    let some = async {
        loop {
            let changed = exec.changed.notified();
            if exec.has_ended() || exec.output.borrow()[index].end() > offset {
                return;
            }
            changed.await;
        }
    };
    timeout(Duration::from_millis(params.wait_ms.unwrap_or(0)).min(MAX_WAIT), some).await.ok();
    call.outbox.room_for(most).await;
    let (value, next) = {
        let rings = exec.output.borrow();
        // A first character that is longer than what was asked for comes whole all the same.
        let fits =
            (most..most.max(4)).find(|most| complete_prefix(rings[index].read(offset, *most).bytes) > 0);
        let found = rings[index].read(offset, fits.unwrap_or(most.max(4)));
        let at_end = found.offset + found.bytes.len() as u64 >= rings[index].end();
        let mut bytes = found.bytes;
        if !(at_end && exec.has_ended()) {
            let whole = complete_prefix(bytes);
            if whole > 0 || at_end {
                bytes = &bytes[..whole];
            }
        }
        let (data, encoding) = encode_bytes(bytes);
        let next = found.offset + bytes.len() as u64;
        let value = json!({
            "exec_id": exec.id,
            "stream": STREAMS[index],
            "data": data,
            "encoding": encoding,
            "offset": found.offset,
            "next_offset": next,
            "gap": found.gap.map(|(from, to)| json!({"from": from, "to": to})),
            "ended": at_end && exec.has_ended(),
        });
        (value, next)
    };
    follow::consumed(&exec, index, next);
    Ok(Reply::Value(value))
}

fn write(call: &Call, params: WriteParams) -> Result<Reply, WireError> {
    let exec = call.daemon.exec(&call.principal, &params.exec_id)?;
    if exec.writer.get().is_some_and(|writer| writer != call.outbox.number) && exec.followers.get() > 0 {
        return Err(WireError::new(Code::WriterTaken, "another connection writes to the exec"));
    }
    let bytes = match params.data {
        Some(data) => bytes_of("data", data, params.encoding)?,
        None => Default::default(),
    };
    let written = match exec.stdin.borrow_mut().as_mut() {
        Some(stdin) => stdin.write(params.offset, &bytes, params.eof.unwrap_or(false)),
        None => Err(StdinError::Closed),
    };
    exec.wake.notify_one();
    match written {
        Ok(accepted) => Ok(Reply::Value(json!({"exec_id": exec.id, "accepted_offset": accepted}))),
        Err(StdinError::Closed) => Err(WireError::new(Code::StdinClosed, "the exec takes no more input")),
        Err(StdinError::Full { accepted_offset }) => {
            Err(WireError::new(Code::StdinFull, "the program has not read what it was sent")
                .with(json!({"accepted_offset": accepted_offset})))
        }
        Err(StdinError::Gap { accepted_offset }) => {
            Err(WireError::new(Code::InvalidParams, "offset: beyond what was accepted")
                .with(json!({"field": "offset", "accepted_offset": accepted_offset})))
        }
    }
}

fn session_of(call: &Call, exec: &Exec) -> Option<Rc<Session>> {
    call.daemon.sessions.borrow().get(&exec.session).cloned()
}

async fn signal(call: &Call, params: &SignalParams) -> Result<Reply, WireError> {
    let exec = call.daemon.exec(&call.principal, &params.exec_id)?;
    let number = params.signal.map_or(libc::SIGTERM, |signal| signal.0);
    let target = match params.target.unwrap_or(TargetName::Group) {
        TargetName::Leader => Target::Leader,
        TargetName::Group => Target::Group,
        TargetName::Tree => Target::Tree,
    };
    let (delivered, errno) = match session_of(call, &exec) {
        Some(session) if !exec.inbox.borrow().tree_gone => session
            .signal(exec.number, number, target)
            .await
            .ok_or_else(|| WireError::new(Code::ResourcePressure, "the session did not answer in time"))?,
        _ => (0, libc::ESRCH),
    };
    if delivered == 0 && errno != 0 && errno != libc::ESRCH {
        return Err(WireError::new(Code::InternalError, format!("signal: errno {errno}"))
            .with(json!({"errno": errno})));
    }
    Ok(Reply::Value(json!({"exec_id": exec.id, "delivered": delivered})))
}

async fn cancel(call: &Call, params: &CancelParams) -> Result<Reply, WireError> {
    let exec = call.daemon.exec(&call.principal, &params.exec_id)?;
    exec.stop(Stop {
        reason: Reason::Canceled,
        signal: params.signal.map_or(libc::SIGTERM, |signal| signal.0),
        grace: params.grace_s.map_or(exec.rules.grace, Duration::from_secs_f64),
    });
    exec.finished().await;
    if let Some(session) = session_of(call, &exec)
        && session.trees.borrow().contains_key(&exec.number)
    {
        // What outlived its leader is ended too.
        exec.tell(ToInit::Kill { exec: exec.number }.encode());
        let gone = async {
            loop {
                let progressed = exec.progressed.notified();
                if exec.inbox.borrow().tree_gone || exec.inbox.borrow().lost.is_some() {
                    return;
                }
                progressed.await;
            }
        };
        if timeout(KILL_BOUND, gone).await.is_err() {
            // The stronger means; where that is not proven either, the client is told so.
            session.destroy(&call.daemon, true, Reason::Unknown).await?;
        }
    }
    Ok(Reply::Outcome(exec))
}

fn list(call: &Call, params: &ExecListParams) -> Result<Reply, WireError> {
    let session = match &params.session_id {
        Some(id) => Some(call.daemon.session(&call.principal, id)?.id),
        None => None,
    };
    let mut found: Vec<_> = call
        .daemon
        .execs
        .borrow()
        .values()
        .filter(|exec| exec.principal == call.principal && session.is_none_or(|id| exec.session == id))
        .filter(|exec| {
            let state = if exec.has_ended() { "ended" } else { "running" };
            params.state.as_ref().is_none_or(|wanted| wanted == state)
        })
        .filter(|exec| params.label.as_ref().is_none_or(|label| has_label(&exec.labels, label)))
        .cloned()
        .collect();
    found.sort_by_key(|exec| (exec.started, exec.number));
    Ok(Reply::Value(json!({"execs": found.iter().map(|exec| exec.info()).collect::<Vec<_>>()})))
}
