//! From a method's name to its answer.

use super::config::{self, MAX_IN_FLIGHT, MAX_LINE, MAX_STDIN, RETAINED_EXECS, RETENTION, WRITE_QUEUE};
use super::connection::Outbox;
use super::exec::{Exec, Principal, Reason, rfc3339};
use super::wire::types::{DestroyParams, ListParams, NoParams, PolicyShowParams, SessionParams};
use super::wire::{self, Code, Id, Node, WireError};
use super::{Daemon, create, exec_methods};
use crate::ids::SessionId;
use serde::Serialize;
use serde_json::{Value, json};
use std::rc::Rc;
use std::time::Instant;

/// Most sessions in one answer of `session.list`.
const MAX_LIST: u64 = 1000;
/// About how large a list may be, bytes.
pub const LISTING: usize = 1024 * 1024;

/// One request under way.
pub struct Call {
    /// The daemon.
    pub daemon: Rc<Daemon>,
    /// Where the answer goes.
    pub outbox: Rc<Outbox>,
    /// Who asks.
    pub principal: Principal,
    /// The request's id; none for a notification.
    pub id: Option<Id>,
    /// Whether it came as JSON-RPC.
    pub rpc: bool,
}

/// What a method answers.
pub enum Reply {
    /// Data.
    Value(Value),
    /// The outcome of an exec, or that it runs.
    Outcome(Rc<Exec>),
    /// It has answered already.
    Done,
}

impl Call {
    /// Answers with data.
    pub async fn ok(&self, data: &impl Serialize) {
        self.outbox.room().await;
        if let Some(id) = &self.id {
            self.outbox.send(wire::encode_ok(id, self.rpc, data));
        }
    }

    /// Answers with an error.
    pub async fn error(&self, error: &WireError) {
        self.outbox.room().await;
        if let Some(id) = &self.id {
            self.outbox.send(wire::encode_error(id, self.rpc, error));
        }
    }

    /// Sends an event, once the queue has room.
    pub async fn event(&self, name: &str, data: &impl Serialize) {
        self.outbox.room().await;
        if let Some(id) = &self.id {
            self.outbox.send(wire::encode_event(id, self.rpc, name, data));
        }
    }
}

/// A refusal that names a field.
pub fn invalid(field: &str, message: &str) -> WireError {
    WireError::new(Code::InvalidParams, format!("{field}: {message}")).with(json!({"field": field}))
}

/// Carries a request out and answers it.
pub async fn handle(call: Call, method: String, params: Node) {
    let result = route(&call, &method, params).await;
    match result {
        Ok(Reply::Value(data)) => call.ok(&data).await,
        Ok(Reply::Outcome(exec)) => {
            call.outbox.room_for(exec.retained()).await;
            if let Some(id) = &call.id {
                let line = exec.outcome(|outcome| wire::encode_ok(id, call.rpc, outcome));
                call.outbox.send(line);
            }
        }
        Ok(Reply::Done) => {}
        Err(error) => {
            if error.code == Code::InternalError {
                tracing::error!(method, message = error.message, "request failed");
            }
            call.error(&error).await;
        }
    }
    call.outbox.done(call.id.as_ref());
}

async fn route(call: &Call, method: &str, params: Node) -> Result<Reply, WireError> {
    if call.id.is_none() && (method == "session.create" || method.starts_with("exec.")) {
        return Ok(Reply::Done);
    }
    if call.daemon.stopping.get() {
        return Err(WireError::new(Code::ShuttingDown, "the daemon stops"));
    }
    call.daemon.rates.admit(&call.principal, Instant::now())?;
    match method {
        "exec.run" | "exec.start" | "exec.stream" => exec_methods::start(call, method, params).await,
        "session.create" => create::create(call, params).await,
        "session.destroy" => destroy(call, wire::params(params)?).await,
        "session.list" => {
            call.outbox.room_for(LISTING).await;
            list(call, &wire::params(params)?)
        }
        "session.info" => {
            let session =
                call.daemon.session(&call.principal, &wire::params::<SessionParams>(params)?.session_id)?;
            Ok(Reply::Value(session.info(true)))
        }
        "session.touch" => {
            let session =
                call.daemon.session(&call.principal, &wire::params::<SessionParams>(params)?.session_id)?;
            session.touch();
            Ok(Reply::Value(json!({
                "session_id": session.id,
                "idle_at": rfc3339(session.idle_at()),
                "expires_at": rfc3339(session.expires_at()),
            })))
        }
        "system.ping" => {
            let NoParams {} = wire::params(params)?;
            Ok(Reply::Value(json!({
                "uptime_s": call.daemon.started.elapsed().as_secs(),
                "version": env!("CARGO_PKG_VERSION"),
            })))
        }
        "system.stats" => {
            let NoParams {} = wire::params(params)?;
            Ok(Reply::Value(stats(&call.daemon)))
        }
        "system.info" => {
            let NoParams {} = wire::params(params)?;
            Ok(Reply::Value(info(&call.daemon)))
        }
        "policy.list" => {
            let NoParams {} = wire::params(params)?;
            Ok(Reply::Value(super::isolation::list(&call.daemon)))
        }
        "policy.show" => {
            let PolicyShowParams { name } = wire::params(params)?;
            Ok(Reply::Value(super::isolation::show(&call.daemon, &name)?))
        }
        _ if method.starts_with("exec.") => exec_methods::route(call, method, params).await,
        _ => Err(unknown_method()),
    }
}

/// The answer to a method that there is not. It does not echo the name.
pub fn unknown_method() -> WireError {
    WireError::new(Code::MethodNotFound, "no such method")
}

async fn destroy(call: &Call, params: DestroyParams) -> Result<Reply, WireError> {
    let id = SessionId::parse(&params.session_id);
    let destroyed = match id.and_then(|id| call.daemon.late.take(&call.principal, id)) {
        Some(destroyed) => destroyed,
        None => {
            let session = call.daemon.session(&call.principal, &params.session_id)?;
            let force = params.force.unwrap_or(false);
            session.destroy(&call.daemon, force, Reason::SessionDestroyed).await?
        }
    };
    Ok(Reply::Value(json!({
        "session_id": id,
        "state": "terminated",
        "killed": destroyed.killed,
        "escalated": destroyed.escalated,
    })))
}

/// Whether labels have `key` or `key=value`.
pub fn has_label(labels: &std::collections::BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
        None => labels.contains_key(wanted),
    }
}

fn list(call: &Call, params: &ListParams) -> Result<Reply, WireError> {
    let limit = usize::try_from(params.limit.unwrap_or(MAX_LIST).clamp(1, MAX_LIST)).unwrap_or(1);
    let after = match &params.cursor {
        None => 0,
        Some(cursor) => cursor.parse::<u64>().map_err(|_| invalid("cursor", "not one of this daemon"))?,
    };
    let mut found: Vec<_> = call
        .daemon
        .sessions
        .borrow()
        .values()
        .filter(|session| session.principal == call.principal && session.number > after)
        .filter(|session| params.state.as_ref().is_none_or(|state| session.state() == state))
        .filter(|session| params.label.as_ref().is_none_or(|label| has_label(&session.labels, label)))
        .cloned()
        .collect();
    found.sort_by_key(|session| session.number);
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|session| session.number.to_string());
    let sessions: Vec<_> = found.iter().map(|session| session.info(false)).collect();
    Ok(Reply::Value(json!({"sessions": sessions, "next_cursor": next})))
}

fn stats(daemon: &Daemon) -> Value {
    let sessions = daemon.sessions.borrow();
    let pages: u64 = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_ascii_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0);
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    json!({
        "active_sessions": sessions.len(),
        "total_commands_run": daemon.commands.get(),
        "uptime_s": daemon.started.elapsed().as_secs(),
        "memory_rss_bytes": pages * page.unsigned_abs(),
        // The directory's own descriptor is not counted.
        "open_fds": std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1)),
        "running_execs": sessions.values().map(|session| session.running.get()).sum::<usize>(),
        "retained_output_bytes": daemon.retained_total.get(),
    })
}

fn info(daemon: &Daemon) -> Value {
    let config = &daemon.config;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "incarnation": daemon.incarnation,
        "limits": {
            "max_sessions": config.max_sessions,
            "max_sessions_per_principal": config.max_sessions_per_principal,
            "max_running_execs": config::MAX_RUNNING_EXECS,
            "max_connections": config::MAX_CONNECTIONS,
            "max_connections_per_principal": config::MAX_CONNECTIONS_PER_PRINCIPAL,
            "max_requests_per_s": config.max_requests_per_s,
            "max_in_flight": MAX_IN_FLIGHT,
            "max_request_bytes": MAX_LINE,
            "max_stdin_bytes": MAX_STDIN,
            "max_output_bytes": config.max_output_bytes,
            "retained_output_bytes_per_principal": config.retained_per_principal,
            "retained_output_bytes": config.retained_total,
            "retained_execs_per_session": RETAINED_EXECS,
            "retention_s": RETENTION.as_secs(),
            "write_queue_bytes": WRITE_QUEUE,
            "large_answer_bytes": config::LARGE_ANSWER,
            "large_queue_bytes_per_principal": config::LARGE_QUEUE_PER_PRINCIPAL,
            "large_queue_bytes": config::LARGE_QUEUE,
            "stalled_reader_s": config::STALLED.as_secs(),
            "idempotency_keys_per_principal": super::idempotency::MAX_KEYS_PER_PRINCIPAL,
            "idempotency_keys": super::idempotency::MAX_KEYS,
            "default_timeout_s": config.default_timeout.as_secs_f64(),
            "idle_timeout_s": config.idle_timeout.as_secs_f64(),
            "ttl_s": config.ttl.as_secs_f64(),
        },
        "default_policy": config.default_policy,
        "workspace_roots": config.workspaces.roots(),
        "host": super::isolation::host_facts(),
    })
}
