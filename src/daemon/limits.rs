//! `limits` of `session.create`.

use super::dispatch::invalid;
use super::wire::{Code, Node, WireError};
use crate::policy::{Amount, LimitError, Policy};
use serde_json::json;

/// The policy within the limits that the session asks for.
///
/// # Errors
/// `POLICY_DENIED` for one beyond the policy's, unless they are the operator's own word; `INVALID_PARAMS`.
pub fn narrowed(policy: Policy, limits: Option<Node>, by_operator: bool) -> Result<Policy, WireError> {
    const FIELD: &str = "limits";
    let entries = match limits {
        None | Some(Node::Null) => return Ok(policy),
        Some(Node::Map(entries)) => entries,
        Some(_) => return Err(invalid(FIELD, "expected an object")),
    };
    let amount = |value: &Node| match value {
        Node::Int(number) => u64::try_from(*number).ok().map(Amount::Number),
        Node::Text(text) => Some(Amount::Text(text.to_string())),
        _ => None,
    };
    let wanted = entries
        .into_iter()
        .map(|(name, value)| Some((name, amount(&value)?)))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| invalid(FIELD, "expected whole numbers, or text like \"256M\""))?;
    policy.limited(&wanted, by_operator).map_err(|error| match &error {
        LimitError::Beyond { name, maximum } => {
            WireError::new(Code::PolicyDenied, format!("the policy does not allow a {error}"))
                .with(json!({"field": FIELD, "limit": name, "maximum": maximum}))
        }
        _ => invalid(FIELD, &error.to_string()),
    })
}
