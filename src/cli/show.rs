//! How answers look: JSON for programs, tables for people, colour on a terminal only.

use super::client::ClientError;
use comfy_table::{Table, presets};
use serde_json::Value;
use std::io::{self, IsTerminal, Write};

/// Exit code of a failure of TRL's own.
pub const FAILED: i32 = 125;

/// Why a subcommand could not do its work, fit for "trl: …".
#[derive(Debug)]
pub struct Failure {
    text: String,
    exit_code: i32,
}

impl Failure {
    /// From a text.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), exit_code: FAILED }
    }

    /// The exit code: of a command that did not start 127 or 126, else [`FAILED`].
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        self.exit_code
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit_code = match &error {
            ClientError::Refused { code, detail, .. } if code == "SPAWN_FAILED" => {
                detail["exit_code"].as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or(FAILED)
            }
            _ => FAILED,
        };
        Self { text: error.to_string(), exit_code }
    }
}

impl From<crate::error::SysError> for Failure {
    fn from(error: crate::error::SysError) -> Self {
        Self::text(error.to_string())
    }
}

/// A line on standard output; a reader that is gone is no failure.
pub fn line(text: &str) {
    writeln!(io::stdout(), "{text}").ok();
}

/// A value as one line of JSON.
pub fn json(value: &Value) {
    line(&value.to_string());
}

/// A word of TRL's own beside a command's output.
pub fn note(text: &str) {
    writeln!(io::stderr(), "trl: {text}").ok();
}

/// An object as a table of keys and values.
pub fn object(value: &Value) {
    let mut table = table();
    if let Some(map) = value.as_object() {
        for (key, value) in map {
            table.add_row([key.clone(), cell(value)]);
        }
    }
    line(&table.to_string());
}

/// A list of objects as a table with these columns.
pub fn list(rows: &Value, columns: &[&str]) {
    let mut table = table();
    table.set_header(columns);
    for row in rows.as_array().into_iter().flatten() {
        table.add_row(columns.iter().map(|column| cell(&row[*column])));
    }
    let text = table.to_string();
    match text.split_once('\n') {
        Some((head, rest)) if io::stdout().is_terminal() => {
            line(&format!("\u{1b}[1m{head}\u{1b}[0m\n{rest}"));
        }
        _ => line(&text),
    }
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
}

/// A value in a cell. Control characters (a name is a client's text) are escaped.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text
            .chars()
            .flat_map(|c| {
                let escaped = c.is_control().then(|| c.escape_default());
                let plain = (!c.is_control()).then_some(c);
                escaped.into_iter().flatten().chain(plain)
            })
            .collect(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().map(cell).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_drive_the_terminal() {
        assert_eq!(cell(&Value::from("a\u{1b}[31mb")), "a\\u{1b}[31mb");
    }
}
