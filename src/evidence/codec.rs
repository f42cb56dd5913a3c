//! [`Observed`] as bytes: it may be taken in the launcher and judged in the daemon. Lengths and numbers are little
//! endian; nothing is left out, and nothing may be left over.

use super::Observed;
use crate::sys::privilege::Sets;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Most bytes of an encoded [`Observed`].
pub const MAX_ENCODED: usize = 48 * 1024;

impl Observed {
    /// As bytes; `None` where that is more than [`MAX_ENCODED`].
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        for id in [self.pid, self.parent, self.pgid, self.sid] {
            word(&mut out, id as u32);
        }
        out.push(u8::from(self.no_new_privs));
        for list in [&self.uids, &self.gids, &self.groups] {
            word(&mut out, list.len() as u32);
            list.iter().for_each(|id| word(&mut out, *id));
        }
        let sets = &self.capabilities;
        for set in [sets.inheritable, sets.permitted, sets.effective, sets.bounding, sets.ambient] {
            long(&mut out, set);
        }
        word(&mut out, self.seccomp_mode);
        word(&mut out, self.seccomp_filters);
        path(&mut out, &self.cwd);
        path(&mut out, &self.root);
        for map in [&self.namespaces, &self.limits] {
            word(&mut out, map.len() as u32);
            for (name, (first, second)) in map {
                bytes(&mut out, name.as_bytes());
                long(&mut out, *first);
                long(&mut out, *second);
            }
        }
        for map in [&self.uid_map, &self.gid_map] {
            word(&mut out, map.len() as u32);
            map.iter().flatten().for_each(|id| word(&mut out, *id));
        }
        bytes(&mut out, self.mountinfo.as_bytes());
        word(&mut out, self.fds.len() as u32);
        self.fds.iter().for_each(|fd| word(&mut out, *fd as u32));
        word(&mut out, self.environ_keys.len() as u32);
        self.environ_keys.iter().for_each(|key| bytes(&mut out, key.as_bytes()));
        (out.len() <= MAX_ENCODED).then_some(out)
    }

    /// From bytes of [`Observed::encode`]; `None` for any others.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut read = Reader(bytes.get(..bytes.len().min(MAX_ENCODED + 1))?);
        let observed = Self {
            pid: read.word()? as i32,
            parent: read.word()? as i32,
            pgid: read.word()? as i32,
            sid: read.word()? as i32,
            no_new_privs: read.take(1)? == [1],
            uids: read.list(Reader::word)?,
            gids: read.list(Reader::word)?,
            groups: read.list(Reader::word)?,
            capabilities: Sets {
                inheritable: read.long()?,
                permitted: read.long()?,
                effective: read.long()?,
                bounding: read.long()?,
                ambient: read.long()?,
            },
            seccomp_mode: read.word()?,
            seccomp_filters: read.word()?,
            cwd: read.path()?,
            root: read.path()?,
            namespaces: read.list(Reader::pair)?.into_iter().collect(),
            limits: read.list(Reader::pair)?.into_iter().collect(),
            uid_map: read.list(Reader::three)?,
            gid_map: read.list(Reader::three)?,
            mountinfo: read.text()?,
            fds: read.list(Reader::word)?.into_iter().map(|fd| fd as i32).collect(),
            environ_keys: read.list(Reader::text)?.into_iter().collect(),
        };
        read.0.is_empty().then_some(observed)
    }
}

fn word(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn long(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    word(out, value.len() as u32);
    out.extend_from_slice(value);
}

fn path(out: &mut Vec<u8>, value: &Path) {
    bytes(out, value.as_os_str().as_bytes());
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }
    fn word(&mut self) -> Option<u32> {
        self.take(4)?.try_into().map(u32::from_le_bytes).ok()
    }
    fn long(&mut self) -> Option<u64> {
        self.take(8)?.try_into().map(u64::from_le_bytes).ok()
    }
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.word()? as usize;
        self.take(length)
    }
    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }
    fn path(&mut self) -> Option<PathBuf> {
        Some(PathBuf::from(std::ffi::OsString::from_vec(self.bytes()?.to_vec())))
    }
    fn pair(&mut self) -> Option<(String, (u64, u64))> {
        Some((self.text()?, (self.long()?, self.long()?)))
    }
    fn three(&mut self) -> Option<[u32; 3]> {
        Some([self.word()?, self.word()?, self.word()?])
    }
    /// Each entry takes bytes, so a count that lies ends at the end of them.
    fn list<T>(&mut self, each: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.word()?;
        (0..count).map(|_| each(self)).collect()
    }
}
