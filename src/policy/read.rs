//! The text of one policy file → the keys that it sets, each with its place.

use super::keys::{ADD, EXTENDS, KEYS, Key};
use super::value::{self, Fault};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Largest policy file, bytes.
pub const MAX_TEXT: usize = 256 * 1024;

/// A place in a file; lines and columns (in characters) begin at 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file as it was named.
    pub file: Arc<str>,
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct FileError {
    /// Where.
    pub place: Place,
    /// What, fit for people.
    pub message: String,
}

/// A value that a file sets.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The value; null for "nothing".
    pub value: Value,
    /// Where its key stands.
    pub place: Place,
    /// Of a list, each element with its place.
    pub elements: Vec<(Value, Place)>,
}

/// Values by `(section, name)`.
pub type Entries = BTreeMap<(&'static str, &'static str), Entry>;

/// What one file says.
#[derive(Debug, Clone)]
pub struct File {
    /// Its beginning, for what is missing.
    pub start: Place,
    /// The policy that it extends.
    pub extends: Option<(String, Place)>,
    /// What it sets.
    pub sets: Entries,
    /// What it adds to lists.
    pub adds: Entries,
}

/// Reads a file of that name.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn read(file: &str, text: &str) -> Result<File, FileError> {
    let source = Source { file: file.into(), text };
    if text.len() > MAX_TEXT {
        return Err(source.error((0..0, format!("larger than {MAX_TEXT} bytes"))));
    }
    let table = DeTable::parse(text)
        .map_err(|error| source.error((error.span().unwrap_or(0..0), error.message().to_owned())))?;
    let mut found =
        File { start: source.place(0), extends: None, sets: Entries::new(), adds: Entries::new() };
    source.top(table.get_ref(), &mut found).map_err(|fault| source.error(fault))?;
    Ok(found)
}

struct Source<'a> {
    file: Arc<str>,
    text: &'a str,
}

type Pair<'a, 'b> = (&'a Spanned<std::borrow::Cow<'b, str>>, &'a Spanned<DeValue<'b>>);

impl Source<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Place { file: Arc::clone(&self.file), line, column }
    }

    fn error(&self, (at, message): Fault) -> FileError {
        FileError { place: self.place(at.start), message }
    }

    fn top(&self, table: &DeTable<'_>, into: &mut File) -> Result<(), Fault> {
        for (key, found) in in_order(table) {
            let name = key.get_ref().as_ref();
            if name == EXTENDS {
                let base = found.get_ref().as_str().filter(|text| value::is_name(text));
                let base = base.ok_or_else(|| (found.span(), "expected the name of a policy".to_owned()))?;
                into.extends = Some((base.to_owned(), self.place(found.span().start)));
                continue;
            }
            match KEYS.iter().find(|key| !key.section.is_empty() && key.section == name) {
                Some(section) => {
                    let table = found.get_ref().as_table();
                    let table = table.ok_or_else(|| (found.span(), format!("expected a table [{name}]")))?;
                    for pair in in_order(table) {
                        self.one(section.section, pair, into)?;
                    }
                }
                None => self.one("", (key, found), into)?,
            }
        }
        Ok(())
    }

    fn one(&self, section: &str, (name, found): Pair<'_, '_>, into: &mut File) -> Result<(), Fault> {
        let at = name.span();
        let text = name.get_ref().as_ref();
        let added = text.strip_prefix(ADD).and_then(|list| Key::find(section, list));
        let (key, adds) = match (Key::find(section, text), added.filter(|key| key.kind.is_list())) {
            (Some(key), _) => (key, false),
            (None, Some(key)) => (key, true),
            (None, None) => return Err((at, unknown(section, text))),
        };
        let read = value::read(key.kind, found)?;
        if adds && read.value.is_null() {
            return Err((found.span(), "there is nothing to add".into()));
        }
        let other = if adds { &into.sets } else { &into.adds };
        if other.contains_key(&(key.section, key.name)) {
            return Err((at, format!("{} is set and added to in one file", key.path())));
        }
        let place = |span: Range<usize>| self.place(span.start);
        let elements = read.elements.into_iter().map(|(value, span)| (value, place(span))).collect();
        let entry = Entry { value: read.value, place: place(at), elements };
        let target = if adds { &mut into.adds } else { &mut into.sets };
        target.insert((key.section, key.name), entry);
        Ok(())
    }
}

/// In the file's order, so that the first fault is the first in the file.
fn in_order<'a, 'b>(table: &'a DeTable<'b>) -> Vec<Pair<'a, 'b>> {
    let mut pairs: Vec<Pair<'a, 'b>> = table.iter().collect();
    pairs.sort_by_key(|(key, _)| key.span().start);
    pairs
}

/// "unknown key", and where it would be right if there is such a place.
fn unknown(section: &str, name: &str) -> String {
    let elsewhere = KEYS.iter().find(|key| key.name == name && key.section != section);
    let hint = match (elsewhere, section) {
        (Some(key), _) if key.section.is_empty() => format!("; {name} stands before the first table"),
        (Some(key), _) => format!("; there is {}", key.path()),
        (None, _) => String::new(),
    };
    let place = if section.is_empty() { String::new() } else { format!(" in [{section}]") };
    format!("unknown key {name:?}{place}{hint}")
}
