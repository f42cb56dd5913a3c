//! `session.create`: a plan, an init, the evidence that it is as planned.

use super::Daemon;
use super::config::KILL_BOUND;
use super::dispatch::{Call, Reply, invalid};
use super::ending::{Life, Slot};
use super::exec::rfc3339;
use super::idempotency::{Answer, Begun};
use super::isolation::{self, Judged, Named};
use super::limits;
use super::link::Link;
use super::session::Session;
use super::wire::types::CreateParams;
use super::wire::{self, Code, Node, WireError};
use super::workspace;
use crate::ids::SessionId;
use crate::launcher::protocol::{FromInit, MAX_PATH, Stage, ToLauncher};
use crate::plan::SessionPlan;
use crate::report::{Demand, Enforcement};
use crate::secret::Environment;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde_json::{Value, json};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;
use tokio::time::timeout;
use zeroize::Zeroizing;

/// The number of the probe's exec; the first command has the next.
const PROBE: u64 = 1;
/// Most labels of a session or an exec.
const MAX_LABELS: usize = 64;
/// Longest label, key and value together, bytes.
const MAX_LABEL: usize = 512;
/// Longest name, bytes.
const MAX_NAME: usize = 256;

/// `session.create`.
///
/// # Errors
/// As in the protocol.
pub async fn create(call: &Call, params: Node) -> Result<Reply, WireError> {
    let entry = match call.daemon.idempotency.find("session.create", &params)? {
        None => None,
        Some((key, digest)) => match call.daemon.idempotency.begin(&call.principal, &key, digest).await? {
            Begun::Again(Answer::Value(value)) => return Ok(Reply::Value(value)),
            Begun::Again(Answer::Error(code, message, detail)) => {
                return Err(WireError::new(code, message).with(detail));
            }
            Begun::Again(Answer::Exec(_)) => {
                return Err(WireError::new(Code::IdempotencyConflict, "the key was used for an exec"));
            }
            Begun::New(entry) => Some(entry),
        },
    };
    let result = admit(call, params).await;
    if let Some(entry) = entry {
        entry.answered(match &result {
            Ok(value) => Answer::Value(value.clone()),
            Err(error) => Answer::Error(error.code, error.message.clone(), error.detail.clone()),
        });
    }
    result.map(Reply::Value)
}

/// Counts a session that is being made.
struct Place<'a>(&'a Call);

impl<'a> Place<'a> {
    fn take(call: &'a Call) -> Result<Self, WireError> {
        let daemon = &call.daemon;
        let sessions = daemon.sessions.borrow();
        let mut creating = daemon.creating.borrow_mut();
        let own = sessions.values().filter(|session| session.principal == call.principal).count()
            + creating.get(&call.principal).copied().unwrap_or(0);
        let all = sessions.len() + creating.values().sum::<usize>();
        let config = &daemon.config;
        if own >= config.max_sessions_per_principal || all >= config.max_sessions {
            return Err(WireError::new(Code::MaxSessionsReached, "no more sessions are allowed").with(
                json!({
                    "max_sessions": config.max_sessions,
                    "max_sessions_per_principal": config.max_sessions_per_principal,
                }),
            ));
        }
        *creating.entry(Rc::clone(&call.principal)).or_insert(0) += 1;
        Ok(Self(call))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut creating = self.0.daemon.creating.borrow_mut();
        if let Some(count) = creating.get_mut(&self.0.principal) {
            *count -= 1;
            if *count == 0 {
                creating.remove(&self.0.principal);
            }
        }
    }
}

/// Refuses the same key in `env` and `secrets`.
///
/// # Errors
/// `INVALID_PARAMS`, which names the key.
pub fn check_scopes(env: &Environment, secrets: &Environment) -> Result<(), WireError> {
    match env.keys().find(|key| secrets.get(key).is_some()) {
        Some(key) => Err(invalid("secrets", &format!("key {key} is in env too"))),
        None => Ok(()),
    }
}

/// Refuses more or longer labels than are kept.
///
/// # Errors
/// `INVALID_PARAMS`.
pub fn check_labels(labels: &std::collections::BTreeMap<String, String>) -> Result<(), WireError> {
    if labels.len() > MAX_LABELS || labels.iter().any(|(key, value)| key.len() + value.len() > MAX_LABEL) {
        return Err(invalid("labels", "at most 64, of at most 512 bytes each"));
    }
    Ok(())
}

fn absolute(field: &str, path: &str) -> Result<Vec<u8>, WireError> {
    if !path.starts_with('/') || path.len() > MAX_PATH || path.contains('\0') {
        return Err(invalid(field, "expected an absolute path"));
    }
    Ok(path.as_bytes().to_vec())
}

async fn admit(call: &Call, params: Node) -> Result<Value, WireError> {
    let params: CreateParams = wire::params(params)?;
    let daemon = &call.daemon;
    let env = params.env.map(|map| map.0).unwrap_or_default();
    let secrets = params.secrets.map(|map| map.0).unwrap_or_default();
    check_scopes(&env, &secrets)?;
    let labels = params.labels.unwrap_or_default();
    check_labels(&labels)?;
    if params.name.as_ref().is_some_and(|name| name.len() > MAX_NAME) {
        return Err(invalid("name", "at most 256 bytes"));
    }
    let shell = params.shell.unwrap_or_else(|| "/bin/sh".into());
    let policy =
        isolation::resolve(daemon, params.policy.as_deref().unwrap_or(&daemon.config.default_policy))?;
    let digest = policy.digest();
    let is_limited = params.limits.is_some();
    let policy = limits::narrowed(policy, params.limits, daemon.config.clients_operate)?;
    if let Some(working_dir) = &params.working_dir {
        absolute("working_dir", working_dir)?;
    }
    let request = workspace::request(daemon, &policy, params.workspace, params.working_dir.as_deref())?;
    let isolated = isolation::plan(daemon, &policy, &request).await?;
    let working_dir = params
        .working_dir
        .or_else(|| workspace::beginning(&isolated))
        .unwrap_or_else(|| daemon.config.working_dir.to_string_lossy().into_owned());
    workspace::is_shown(&isolated, &working_dir)?;
    let workspace = workspace::shown(isolated.root.as_ref().and_then(|root| root.workspace.as_ref()));
    let plan = SessionPlan {
        uid: daemon.config.uid,
        gid: daemon.config.gid,
        mark: daemon.mark,
        umask: policy.umask,
        nproc: policy.rlimits.nproc,
        no_new_privileges: policy.no_new_privileges != Demand::Off,
        working_dir: absolute("working_dir", &working_dir)?,
        shell: absolute("shell", &shell)?,
        rlimits: policy.rlimits(),
        isolation: isolated,
    };
    let limited_digest = if is_limited { policy.digest() } else { digest.clone() };
    let place = Place::take(call)?;
    let (number, link, slot, judged) =
        launch(daemon, plan, &Named { limited: &policy, digest: &digest, limited_digest: &limited_digest })
            .await?;
    let unmade = |error| {
        daemon.tell_launcher(&ToLauncher::Kill { session: number });
        error
    };
    require(params.require.as_deref().unwrap_or_default(), &judged).map_err(unmade)?;
    if daemon.stopping.get() {
        return Err(unmade(WireError::new(Code::ShuttingDown, "the daemon stops")));
    }
    let seconds =
        |value: Option<f64>, bound: Duration| value.map_or(bound, |s| Duration::from_secs_f64(s).min(bound));
    let session = Rc::new(Session {
        id: SessionId::random(),
        number,
        principal: Rc::clone(&call.principal),
        name: params.name,
        shell,
        working_dir,
        env,
        secrets,
        labels,
        timeout: params.timeout_s.map_or(daemon.config.default_timeout, Duration::from_secs_f64),
        grace: params.grace_s.map_or(policy.grace(), Duration::from_secs_f64),
        max_running: policy.max_running_execs as usize,
        cpu_seconds: policy.rlimits.cpu_s,
        isolation: Rc::clone(&judged.isolation),
        report: judged.json.to_string().into_boxed_str(),
        workspace,
        created_at: SystemTime::now(),
        idle_timeout: seconds(params.idle_timeout_s, daemon.config.idle_timeout),
        ttl: seconds(params.ttl_s, daemon.config.ttl),
        link,
        slot,
        life: Cell::new(Life::Live),
        born: Cell::new(Instant::now()),
        active: Cell::new((Instant::now(), SystemTime::now())),
        warned: Cell::new(false),
        commands: Cell::new(0),
        next: Cell::new(PROBE),
        trees: Default::default(),
        kept: Default::default(),
        running: Cell::new(0),
        signals: Default::default(),
        cpu_us: Cell::new((0, 0)),
        destroyed: Cell::new(None),
        result: Cell::default(),
        changed: Notify::new(),
    });
    drop(place);
    daemon.sessions.borrow_mut().insert(session.id, Rc::clone(&session));
    tokio::task::spawn_local(Rc::clone(&session).listen(Rc::clone(daemon)));
    tracing::info!(session = %session.id, policy = policy.name, principal = &*call.principal, "session created");
    Ok(json!({
        "session_id": session.id,
        "shell": session.shell,
        "working_dir": session.working_dir,
        "state": session.state(),
        "created_at": rfc3339(session.created_at),
        "policy": session.isolation.policy,
        "policy_digest": session.isolation.digest,
        "workspace": session.workspace,
        "isolation": judged.json,
    }))
}

/// The client's own demands.
fn require(layers: &[String], judged: &Judged) -> Result<(), WireError> {
    let mut short = Vec::new();
    for name in layers {
        match judged.report.layers.iter().find(|layer| layer.layer == name) {
            None => return Err(invalid("require", "not a layer of the policy")),
            Some(layer) if layer.enforced != Enforcement::Full => short.push(layer),
            Some(_) => {}
        }
    }
    if short.is_empty() { Ok(()) } else { Err(isolation::unavailable(json!(short))) }
}

/// Has the launcher make an init, and waits until it is ready and judged. On an error nothing is left.
async fn launch(
    daemon: &Rc<Daemon>,
    plan: SessionPlan,
    policy: &Named<'_>,
) -> Result<(u64, Rc<Link>, Rc<Slot>, Judged), WireError> {
    let pressure =
        |error: std::io::Error| WireError::new(Code::ResourcePressure, format!("session socket: {error}"));
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| pressure(errno.into()))?;
    let link = Link::new(ours).map_err(pressure)?;
    daemon.next_session.set(daemon.next_session.get() + 1);
    let number = daemon.next_session.get();
    let slot = Rc::new(Slot::default());
    daemon.slots.borrow_mut().insert(number, Rc::clone(&slot));
    let packet =
        Zeroizing::new(ToLauncher::Create { session: number, plan: Box::new(plan.clone()) }.encode());
    if let Err(error) = daemon.launcher.send(vec![packet], vec![Rc::new(theirs)]) {
        daemon.slots.borrow_mut().remove(&number);
        return Err(WireError::new(Code::ResourcePressure, format!("launcher: {error}")));
    }
    let judged = match ready(&link, &slot).await {
        Ok(()) => match created(&slot).await {
            Some(init) => isolation::judge(daemon, &link, PROBE, init, &plan, policy).await,
            None => Err(WireError::new(Code::ResourcePressure, "the launcher did not say which the init is")),
        },
        Err(error) => Err(error),
    };
    match judged {
        Ok(judged) => Ok((number, link, slot, judged)),
        Err(error) => {
            daemon.tell_launcher(&ToLauncher::Kill { session: number });
            Err(error)
        }
    }
}

/// The init's process id, from the launcher: its word comes another way than the init's, and may come later.
async fn created(slot: &Slot) -> Option<i32> {
    let said = async {
        loop {
            let changed = slot.changed.notified();
            match slot.pid.get() {
                0 => changed.await,
                pid => return pid,
            }
        }
    };
    timeout(KILL_BOUND, said).await.ok()
}

async fn ready(link: &Link, slot: &Slot) -> Result<(), WireError> {
    let failed = |stage: Stage, errno: i32, about: &str| match stage {
        Stage::WorkingDirectory => invalid("working_dir", "not a directory that the session can enter")
            .with(json!({"field": "working_dir", "errno": errno})),
        Stage::Shell => invalid("shell", "not an executable file of the session")
            .with(json!({"field": "shell", "errno": errno})),
        Stage::HostIds if errno == libc::EAGAIN => {
            WireError::new(Code::ResourcePressure, "all host ids for sessions are in use")
                .with(json!({"stage": stage.name(), "errno": errno}))
        }
        Stage::Namespaces
        | Stage::HostIds
        | Stage::Root
        | Stage::Network
        | Stage::Capabilities
        | Stage::Landlock
        | Stage::Seccomp => isolation::unmade(stage, errno, about),
        _ => {
            let remedy = isolation::exhausted(errno);
            let code = if remedy.is_some() { Code::ResourcePressure } else { Code::InternalError };
            let why = nix::errno::Errno::from_raw(errno);
            let more = remedy.map_or_else(String::new, |remedy| format!("; {remedy}"));
            WireError::new(code, format!("session not made: {}: {why:?}{more}", stage.name()))
                .with(json!({"stage": stage.name(), "errno": errno}))
        }
    };
    let mut buffer = [0u8; 256];
    let said = timeout(KILL_BOUND, link.receive(&mut buffer)).await;
    match said {
        Err(_) => Err(WireError::new(Code::ResourcePressure, "the session did not get ready in time")),
        Ok(Ok(length @ 1..)) => match FromInit::decode(&buffer[..length]) {
            Ok(FromInit::Ready { .. }) => Ok(()),
            Ok(FromInit::Failed { stage, errno, about }) => Err(failed(stage, errno, about.as_str())),
            _ => Err(WireError::new(Code::InternalError, "init said what is not of its protocol")),
        },
        Ok(_) => {
            // No init came: the launcher says why.
            let why = async {
                loop {
                    let changed = slot.changed.notified();
                    if let Some(why) = slot.failed.get() {
                        return why;
                    }
                    if slot.ended.get().is_some() {
                        return (Stage::Init, libc::ECHILD);
                    }
                    changed.await;
                }
            };
            let (stage, errno) = timeout(KILL_BOUND, why).await.unwrap_or((Stage::Init, libc::ETIMEDOUT));
            Err(failed(stage, errno, ""))
        }
    }
}
