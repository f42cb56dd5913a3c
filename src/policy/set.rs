//! All policies that a daemon knows: the shipped ones, and an operator's own.
//!
//! What `extends` means: a key that a policy sets replaces what it inherits, a list too; `add_KEY` adds to an
//! inherited list. `name` and `description` are not inherited. A policy that extends nothing sets every key.

use super::keys::{EXTENDS, KEYS};
use super::read::{Entries, Entry, File, FileError, Place, read};
use super::{Policy, check, value};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Name and text of each policy that is compiled in.
pub const SHIPPED: [(&str, &str); 5] = [
    ("default", include_str!("../../policies/default.toml")),
    ("strict", include_str!("../../policies/strict.toml")),
    ("build", include_str!("../../policies/build.toml")),
    ("ci", include_str!("../../policies/ci.toml")),
    ("l1", include_str!("../../policies/l1.toml")),
];
/// Most policies between one and the one it is built on.
const DEEPEST: usize = 4;
/// Most policies of an operator.
pub const MOST_OWN: usize = 256;

/// A policy file as it was read.
#[derive(Debug, Clone)]
pub struct Text {
    /// The policy's name, which its file is named after.
    pub name: String,
    /// The file, for errors.
    pub file: String,
    /// What it holds.
    pub text: String,
}

/// Policies by their names, each complete.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    files: BTreeMap<String, File>,
    policies: BTreeMap<String, Policy>,
}

impl Policies {
    /// Those that are compiled in.
    ///
    /// # Errors
    /// None but a fault of the build; a test parses them.
    pub fn shipped() -> Result<Self, FileError> {
        let mut files = BTreeMap::new();
        for (name, text) in SHIPPED {
            files.insert(name.to_owned(), read(&format!("{name}.toml"), text)?);
        }
        Self::of(files)
    }

    /// The shipped ones and an operator's own.
    ///
    /// # Errors
    /// The first fault, with file, line and column.
    pub fn with(own: &[Text]) -> Result<Self, FileError> {
        let mut files = Self::shipped()?.files;
        for Text { name, file, text } in own {
            let found = read(file, text)?;
            let fault = |message: String| FileError { place: found.start.clone(), message };
            if files.contains_key(name) {
                return Err(fault(format!("there is a policy {name:?} already")));
            }
            if files.len() - SHIPPED.len() >= MOST_OWN {
                return Err(fault(format!("more than {MOST_OWN} policies")));
            }
            if let Some(entry) = found.sets.get(&("", "name"))
                && entry.value.as_str() != Some(name)
            {
                let place = entry.place.clone();
                return Err(FileError {
                    place,
                    message: format!("name must be {name:?}, as the file is named"),
                });
            }
            files.insert(name.clone(), found);
        }
        Self::of(files)
    }

    fn of(files: BTreeMap<String, File>) -> Result<Self, FileError> {
        let mut policies = BTreeMap::new();
        for (name, file) in &files {
            policies.insert(name.clone(), complete(file, &files)?);
        }
        Ok(Self { files, policies })
    }

    /// The policy of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Policy> {
        self.policies.get(name)
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.policies.keys().map(String::as_str)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values()
    }

    /// A policy of its own that may extend these; it is not kept.
    ///
    /// # Errors
    /// The first fault, with file, line and column.
    pub fn parse(&self, file: &str, text: &str) -> Result<Policy, FileError> {
        complete(&read(file, text)?, &self.files)
    }
}

fn complete(file: &File, files: &BTreeMap<String, File>) -> Result<Policy, FileError> {
    let entries = inherit(file, files, &mut Vec::new())?;
    if let Some(key) = KEYS.iter().find(|key| !entries.contains_key(&(key.section, key.name))) {
        let message = match file.extends {
            Some(_) => format!("{} is missing", key.path()),
            None => format!("{} is missing; a policy that extends nothing sets every key", key.path()),
        };
        return Err(FileError { place: file.start.clone(), message });
    }
    let policy: Policy = serde_json::from_value(tree(&entries))
        .map_err(|error| FileError { place: file.start.clone(), message: error.to_string() })?;
    check::check(&policy, &entries)?;
    Ok(policy)
}

/// What the file sets, over what it extends. `above` are the names on the way here.
fn inherit<'a>(
    file: &'a File,
    files: &'a BTreeMap<String, File>,
    above: &mut Vec<&'a str>,
) -> Result<Entries, FileError> {
    let mut entries = match &file.extends {
        None => Entries::new(),
        Some((name, place)) => inherit(base(name, place, files, above)?, files, above)?,
    };
    entries.remove(&("", "name"));
    entries.remove(&("", "description"));
    entries.extend(file.sets.iter().map(|(key, entry)| (*key, entry.clone())));
    for (key, added) in &file.adds {
        match entries.get_mut(key) {
            Some(entry) if !entry.value.is_null() => add(entry, added),
            _ => {
                let message = "there is no inherited list to add to".to_owned();
                return Err(FileError { place: added.place.clone(), message });
            }
        }
    }
    Ok(entries)
}

fn base<'a>(
    name: &'a str,
    place: &Place,
    files: &'a BTreeMap<String, File>,
    above: &mut Vec<&'a str>,
) -> Result<&'a File, FileError> {
    let fault = |message: String| Err(FileError { place: place.clone(), message });
    if above.contains(&name) {
        return fault(format!("{EXTENDS}: {name:?} comes to extend itself"));
    }
    if above.len() == DEEPEST {
        return fault(format!("{EXTENDS}: more than {DEEPEST} policies on top of one another"));
    }
    above.push(name);
    match files.get(name) {
        Some(file) => Ok(file),
        None => fault(format!("{EXTENDS}: there is no policy {name:?}")),
    }
}

fn add(entry: &mut Entry, added: &Entry) {
    let Some(list) = entry.value.as_array_mut() else { return };
    for (value, place) in &added.elements {
        if !list.contains(value) {
            list.push(value.clone());
            entry.elements.push((value.clone(), place.clone()));
        }
    }
    value::sort(list);
}

/// The entries as the tree that a [`Policy`] is made of.
fn tree(entries: &Entries) -> Value {
    let mut top = Map::new();
    for ((section, name), entry) in entries {
        let value = entry.value.clone();
        if section.is_empty() {
            top.insert((*name).to_owned(), value);
        } else if let Value::Object(table) = top.entry(*section).or_insert_with(|| Value::Object(Map::new()))
        {
            table.insert((*name).to_owned(), value);
        }
    }
    Value::Object(top)
}

/// One spelling of a tree: keys sorted, no blanks.
#[must_use]
pub fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            let pairs: Vec<String> = sorted
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), canonical(value)))
                .collect();
            format!("{{{}}}", pairs.join(","))
        }
        Value::Array(list) => format!("[{}]", list.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}
