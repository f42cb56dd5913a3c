//! JSON Schema (2020-12) of a policy file, for editors, made from the list that the parser reads.

use super::keys::{ADD, EXTENDS, FAMILIES, KEYS, Key, Kind};
use serde_json::{Map, Value, json};

/// The schema.
#[must_use]
pub fn schema() -> Value {
    let mut top = Map::new();
    top.insert(
        EXTENDS.into(),
        json!({"type": "string", "description": "The policy that this one is built on."}),
    );
    let mut sections: Map<String, Value> = Map::new();
    for key in KEYS {
        let into = if key.section.is_empty() {
            &mut top
        } else {
            let table = sections.entry(key.section).or_insert_with(|| Value::Object(Map::new()));
            let Some(table) = table.as_object_mut() else { continue };
            table
        };
        into.insert(key.name.into(), of(key));
        if key.kind.is_list() {
            into.insert(
                format!("{ADD}{}", key.name),
                json!({"type": "array", "items": element(key.kind), "uniqueItems": true,
                    "description": format!("Added to what is inherited. {}", key.meaning)}),
            );
        }
    }
    for (name, properties) in sections {
        top.insert(name, json!({"type": "object", "additionalProperties": false, "properties": properties}));
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "TRL policy",
        "type": "object",
        "additionalProperties": false,
        "required": ["name", "description"],
        "properties": top,
    })
}

fn of(key: &Key) -> Value {
    let mut value = match key.kind {
        Kind::Name => json!({"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}),
        Kind::Line => json!({"type": "string", "maxLength": 256}),
        Kind::Hostname => {
            json!({"type": "string", "maxLength": 64, "pattern": "^([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)?$"})
        }
        Kind::Demand => json!({"enum": ["required", "best_effort", "off"]}),
        Kind::Switch => json!({"type": "boolean"}),
        Kind::Integer(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
        Kind::Size(least, most) => {
            json!({"anyOf": [size(least, most), {"type": "string", "pattern": "^[0-9]+[KMGT]?$"}]})
        }
        Kind::Limit(least, most) => {
            json!({"anyOf": [size(least, most), {"type": "string", "pattern": "^([0-9]+[KMGT]?|unlimited)$"}]})
        }
        Kind::Mask => json!({"type": "string", "pattern": "^0o[0-7]+$"}),
        Kind::OneOf(words) => json!({"enum": words}),
        Kind::Path => path(),
        Kind::Rootfs => json!({"anyOf": [{"const": "host"}, path()]}),
        Kind::Ports => json!({"anyOf": [{"const": "any"}, list(key.kind)]}),
        Kind::Paths | Kind::Entries | Kind::Groups | Kind::Calls | Kind::Families => list(key.kind),
    };
    value["description"] = key.meaning.into();
    value
}

fn size(least: u64, most: u64) -> Value {
    json!({"type": "integer", "minimum": least, "maximum": most})
}

fn path() -> Value {
    json!({"type": "string", "pattern": "^/"})
}

fn list(kind: Kind) -> Value {
    json!({"type": "array", "items": element(kind), "uniqueItems": true})
}

fn element(kind: Kind) -> Value {
    match kind {
        Kind::Ports => json!({"type": "integer", "minimum": 1, "maximum": 65535}),
        Kind::Paths => path(),
        Kind::Entries => json!({"type": "string", "pattern": "^[^/]"}),
        Kind::Families => json!({"enum": FAMILIES.map(|(name, _)| name)}),
        _ => json!({"type": "string"}),
    }
}
