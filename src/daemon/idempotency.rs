//! Idempotency keys: a request with a key that is known is answered with its first answer, and runs nothing.
//!
//! Kept in memory with a salted digest of the request; of each, the [journal](super::journal) keeps the SHA-256
//! of principal and key, so that a key from before a restart is known for what it is. Each principal has a
//! share, in memory and in the journal: nobody's keys push out another's.

use super::dispatch::invalid;
use super::exec::Principal;
use super::journal::Journal;
use super::wire::{Code, Node, WireError};
use crate::ids::ExecId;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::rc::Rc;
use tokio::sync::Notify;

/// Most keys of one principal that are kept; its oldest go first.
pub const MAX_KEYS_PER_PRINCIPAL: usize = 8 * 1024;
/// Most keys that are kept in all; the oldest of who has most go first.
pub const MAX_KEYS: usize = 32 * 1024;
/// Longest key, bytes.
const MAX_KEY: usize = 256;

type Name = [u8; 32];

/// The first answer.
#[derive(Clone)]
pub enum Answer {
    /// Data.
    Value(Value),
    /// An exec; its method's answer is made from it again.
    Exec(ExecId),
    /// A refusal.
    Error(Code, String, Value),
}

/// One key.
pub struct Entry {
    digest: [u8; 32],
    answer: RefCell<Option<Answer>>,
    changed: Notify,
}

impl Entry {
    /// Keeps the first answer.
    pub fn answered(&self, answer: Answer) {
        *self.answer.borrow_mut() = Some(answer);
        self.changed.notify_waiters();
    }
}

/// What a key means.
pub enum Begun {
    /// Never seen: the request runs, and says its answer.
    New(Rc<Entry>),
    /// Seen: this was the answer.
    Again(Answer),
}

/// By name, and each principal's in order of age.
#[derive(Default)]
struct Known {
    entries: HashMap<Name, Rc<Entry>>,
    order: HashMap<Principal, VecDeque<Name>>,
}

impl Known {
    fn add(&mut self, principal: &Principal, name: Name, entry: Rc<Entry>) {
        let own = self.order.get(principal).map_or(0, VecDeque::len);
        if own >= MAX_KEYS_PER_PRINCIPAL {
            self.evict(principal);
        } else if self.entries.len() >= MAX_KEYS {
            let most = self.order.iter().max_by_key(|(_, names)| names.len());
            if let Some(most) = most.map(|(principal, _)| Rc::clone(principal)) {
                self.evict(&most);
            }
        }
        self.entries.insert(name, entry);
        self.order.entry(Rc::clone(principal)).or_default().push_back(name);
    }

    /// Drops a principal's oldest that has its answer; those without are as few as requests under way.
    fn evict(&mut self, principal: &Principal) {
        let Some(names) = self.order.get_mut(principal) else { return };
        let is_answered =
            |name: &Name| self.entries.get(name).is_none_or(|entry| entry.answer.borrow().is_some());
        if let Some(name) = names.iter().position(is_answered).and_then(|index| names.remove(index)) {
            self.entries.remove(&name);
        }
    }
}

/// All keys.
pub struct Keys {
    salt: [u8; 16],
    known: RefCell<Known>,
    before: HashSet<String>,
    journal: Option<RefCell<Journal>>,
}

fn name_of(principal: &Principal, key: &str) -> Name {
    Sha256::new().chain_update(principal.as_bytes()).chain_update([0]).chain_update(key).finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut line, byte| {
        // Writing to a String cannot fail.
        line.push_str(&format!("{byte:02x}"));
        line
    })
}

impl Keys {
    /// Reads the keys of former lives. Without a state directory, or where it fails (which is logged), keys do
    /// not outlive the daemon.
    pub fn open(state_dir: Option<File>) -> Self {
        let (mut before, mut journal) = (HashSet::new(), None);
        match state_dir.map(Journal::open).transpose() {
            Ok(None) => {}
            Ok(Some((opened, names))) => {
                before = names.collect();
                journal = Some(RefCell::new(opened));
            }
            Err(error) => tracing::warn!(%error, "idempotency keys are not kept"),
        }
        let salt = *uuid::Uuid::new_v4().as_bytes();
        Self { salt, known: RefCell::default(), before, journal }
    }

    /// Whether the key was ever used.
    pub fn is_known(&self, principal: &Principal, key: &str) -> bool {
        let name = name_of(principal, key);
        self.known.borrow().entries.contains_key(&name) || self.before.contains(&hex(&name))
    }

    /// The key of a request and the request's digest, where it has one.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for an empty or too long key.
    pub fn find(&self, method: &str, params: &Node) -> Result<Option<(String, [u8; 32])>, WireError> {
        let Node::Map(fields) = params else { return Ok(None) };
        let key = fields.iter().find_map(|(name, value)| match value {
            Node::Text(text) if name == "idempotency_key" => Some(text.as_str()),
            _ => None,
        });
        let Some(key) = key else { return Ok(None) };
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(invalid("idempotency_key", "expected 1 to 256 bytes"));
        }
        let salt = [&self.salt, method.as_bytes()].concat();
        Ok(Some((key.to_owned(), params.digest(&salt))))
    }

    /// Looks a key up and, where it is new, writes it down before anything starts.
    ///
    /// # Errors
    /// `IDEMPOTENCY_CONFLICT` for another request, `OUTCOME_UNKNOWN` for a key of a former life.
    pub async fn begin(
        &self,
        principal: &Principal,
        key: &str,
        digest: [u8; 32],
    ) -> Result<Begun, WireError> {
        let name = name_of(principal, key);
        let known = self.known.borrow().entries.get(&name).cloned();
        if let Some(entry) = known {
            if entry.digest != digest {
                return Err(WireError::new(
                    Code::IdempotencyConflict,
                    "the key was used for another request",
                ));
            }
            loop {
                let changed = entry.changed.notified();
                if let Some(answer) = entry.answer.borrow().as_ref() {
                    return Ok(Begun::Again(answer.clone()));
                }
                changed.await;
            }
        }
        let line = hex(&name);
        if self.before.contains(&line) {
            let message = "the key is from before a restart; whether its request ran is not known";
            return Err(WireError::new(Code::OutcomeUnknown, message));
        }
        if let Some(journal) = &self.journal {
            let tag = hex(&Sha256::digest(principal.as_bytes())[..4]);
            journal.borrow_mut().add(&tag, &line).map_err(|error| {
                WireError::new(Code::InternalError, format!("write idempotency key: {error}"))
            })?;
        }
        let entry = Rc::new(Entry { digest, answer: RefCell::new(None), changed: Notify::new() });
        self.known.borrow_mut().add(principal, name, Rc::clone(&entry));
        Ok(Begun::New(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(command: &str) -> Node {
        let text = |text: &str| Node::Text(text.to_owned().into());
        Node::Map(vec![("idempotency_key".into(), text("k")), ("command".into(), text(command))])
    }

    #[tokio::test]
    async fn a_key_of_a_former_life_is_of_unknown_outcome() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let principal: Principal = "uid:1".into();
        let keys = Keys::open(Some(File::open(directory.path())?));
        let find =
            |keys: &Keys, command| keys.find("exec.run", &request(command)).ok().flatten().ok_or("no key");
        let (key, digest) = find(&keys, "a")?;
        let Ok(Begun::New(entry)) = keys.begin(&principal, &key, digest).await else {
            return Err("not new".into());
        };
        entry.answered(Answer::Value(Value::from(7)));
        let again = keys.begin(&principal, &key, digest).await;
        assert!(matches!(again, Ok(Begun::Again(Answer::Value(value))) if value == 7));
        let other = keys.begin(&principal, &key, find(&keys, "b")?.1).await;
        assert_eq!(other.err().map(|error| error.code), Some(Code::IdempotencyConflict));

        let keys = Keys::open(Some(File::open(directory.path())?));
        let late = keys.begin(&principal, &key, find(&keys, "a")?.1).await;
        assert_eq!(late.err().map(|error| error.code), Some(Code::OutcomeUnknown));
        let stranger = keys.begin(&"uid:2".into(), &key, digest).await;
        assert!(matches!(stranger, Ok(Begun::New(_))));
        Ok(())
    }
}
