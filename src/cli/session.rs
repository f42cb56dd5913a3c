//! Sessions, and what else is one request and one answer.

use super::args::{CreateArgs, PsArgs, SessionCommand};
use super::client::Client;
use super::exec::environment;
use super::show::{self, Failure};
use serde_json::{Value, json};

/// `trl session …`.
///
/// # Errors
/// The daemon's refusal, or no daemon.
pub fn session(client: &mut Client, command: &SessionCommand, json: bool) -> Result<(), Failure> {
    match command {
        SessionCommand::Create(args) => {
            let created = client.call("session.create", &create_params(args)?)?;
            if json {
                show::json(&created);
            } else {
                show::line(created["session_id"].as_str().unwrap_or_default());
            }
            Ok(())
        }
        SessionCommand::List => list(client, json),
        SessionCommand::Info { session } => {
            plain(client, "session.info", &json!({"session_id": session}), json)
        }
        SessionCommand::Destroy { session, force } => {
            plain(client, "session.destroy", &json!({"session_id": session, "force": force}), json)
        }
        SessionCommand::Touch { session } => {
            plain(client, "session.touch", &json!({"session_id": session}), json)
        }
    }
}

/// A method without streams, shown as it is.
///
/// # Errors
/// The daemon's refusal, or no daemon.
pub fn plain(client: &mut Client, method: &str, params: &Value, json: bool) -> Result<(), Failure> {
    let data = client.call(method, params)?;
    if json {
        show::json(&data);
    } else {
        show::object(&data);
    }
    Ok(())
}

/// `trl ps`.
///
/// # Errors
/// The daemon's refusal, or no daemon.
pub fn ps(client: &mut Client, args: &PsArgs, json: bool) -> Result<(), Failure> {
    let params = match &args.session {
        Some(session) => json!({"session_id": session}),
        None => json!({}),
    };
    let data = client.call("exec.list", &params)?;
    if json {
        show::json(&data);
    } else {
        show::list(&data["execs"], &["exec_id", "session_id", "state", "started_at", "exit_code"]);
    }
    Ok(())
}

fn list(client: &mut Client, json: bool) -> Result<(), Failure> {
    let mut sessions = Vec::new();
    let mut params = json!({});
    // The daemon's pages end: a cursor names the last session shown.
    loop {
        let mut data = client.call("session.list", &params)?;
        if let Value::Array(page) = data["sessions"].take() {
            sessions.extend(page);
        }
        match data["next_cursor"].take() {
            Value::Null => break,
            cursor => params["cursor"] = cursor,
        }
    }
    let sessions = Value::Array(sessions);
    if json {
        show::json(&json!({"sessions": sessions}));
    } else {
        show::list(&sessions, &["session_id", "name", "state", "created_at", "command_count", "working_dir"]);
    }
    Ok(())
}

/// `--limit K=V` as an object.
///
/// # Errors
/// One that has no value.
pub fn limits(given: &[String]) -> Result<Value, Failure> {
    let mut limits = serde_json::Map::new();
    for entry in given {
        let pair = entry.split_once('=').filter(|(name, value)| !name.is_empty() && !value.is_empty());
        let (name, value) =
            pair.ok_or_else(|| Failure::text("--limit: expected K=V, as in rlimits.cpu_s=60"))?;
        if limits.insert(name.to_owned(), value.into()).is_some() {
            return Err(Failure::text(format!("--limit {name}: is there twice")));
        }
    }
    Ok(Value::Object(limits))
}

fn create_params(args: &CreateArgs) -> Result<Value, Failure> {
    let mut params = json!({"env": environment(&args.options.env)?});
    let texts = [
        ("name", &args.name),
        ("shell", &args.shell),
        ("policy", &args.policy),
        ("working_dir", &args.options.cwd),
    ];
    for (key, value) in texts {
        if let Some(value) = value {
            params[key] = value.as_str().into();
        }
    }
    if let Some(workspace) = &args.workspace {
        params["workspace"] = match workspace.split_once(':') {
            Some((mode, path)) => json!({"mode": mode, "path": path, "read_only": args.read_only}),
            None => json!({"mode": workspace, "read_only": args.read_only}),
        };
    }
    if !args.limits.is_empty() {
        params["limits"] = limits(&args.limits)?;
    }
    if let Some(timeout) = args.options.timeout {
        params["timeout_s"] = timeout.into();
    }
    Ok(params)
}
