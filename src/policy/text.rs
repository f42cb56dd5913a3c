//! A policy as TOML with nothing inherited: what `trl policy show` prints.

use super::Policy;
use super::keys::KEYS;
use serde_json::Value;

/// The text; parsed again it is the same policy.
#[must_use]
pub fn toml(policy: &Policy) -> String {
    let tree = serde_json::to_value(policy).unwrap_or_default();
    let mut text = String::new();
    let mut section = "";
    for key in KEYS {
        if key.section != section {
            section = key.section;
            text.push_str(&format!("\n[{section}]\n"));
        }
        let found = if section.is_empty() { &tree[key.name] } else { &tree[section][key.name] };
        let value = match (found, key.kind.nothing()) {
            (Value::Null, Some(word)) => Value::from(word).to_string(),
            (Value::Array(list), _) => {
                format!("[{}]", list.iter().map(Value::to_string).collect::<Vec<_>>().join(", "))
            }
            (other, _) => other.to_string(),
        };
        text.push_str(&format!("# {}\n{} = {value}\n", key.meaning, key.name));
    }
    text
}
