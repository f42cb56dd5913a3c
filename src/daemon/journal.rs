//! The file in which idempotency keys outlive a daemon: a line for each, a tag of its principal and a hash.
//!
//! It lies in a directory that workloads of the same uid may write to, so what is there is not believed: it is
//! opened by the directory's handle without following a link or waiting for a FIFO's other end, read up to a
//! bound, and never written to. A new file takes its place.

use super::idempotency::{MAX_KEYS, MAX_KEYS_PER_PRINCIPAL};
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;

const NAME: &str = "idempotency-keys";
const NEW_NAME: &str = "idempotency-keys.new";
/// Length of a tag and of a hash, hexadecimal digits.
const TAG: usize = 8;
const HASH: usize = 64;
/// Most lines of the file; beyond it is written anew with those that are kept.
const MAX_LINES: usize = 2 * MAX_KEYS;
/// Most bytes that are read: the lines and their ends.
const MAX_FILE: u64 = (MAX_LINES * (TAG + HASH + 2)) as u64;

/// The file, open for writing at its end.
pub struct Journal {
    directory: File,
    file: File,
    lines: usize,
}

impl Journal {
    /// Takes the file of that directory over; with the hashes that were in it.
    ///
    /// # Errors
    /// A new one cannot be made.
    pub fn open(directory: File) -> io::Result<(Self, impl Iterator<Item = String>)> {
        let kept = kept(read(&directory));
        let file = replace(&directory, &kept)?;
        let journal = Self { directory, file, lines: kept.len() };
        Ok((journal, kept.into_iter().map(|line| line[TAG + 1..].to_owned())))
    }

    /// Adds a line.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add(&mut self, tag: &str, hash: &str) -> io::Result<()> {
        if self.lines >= MAX_LINES {
            let kept = kept(read(&self.directory));
            self.file = replace(&self.directory, &kept)?;
            self.lines = kept.len();
        }
        self.file.write_all(format!("{tag} {hash}\n").as_bytes())?;
        self.lines += 1;
        Ok(())
    }
}

/// The newest lines of each tag.
fn kept(lines: Vec<String>) -> Vec<String> {
    let mut of_tag: HashMap<String, usize> = HashMap::new();
    let mut kept: Vec<String> = lines
        .into_iter()
        .rev()
        .filter(|line| {
            let count = of_tag.entry(line[..TAG].to_owned()).or_default();
            *count += 1;
            *count <= MAX_KEYS_PER_PRINCIPAL
        })
        .take(MAX_KEYS)
        .collect();
    kept.reverse();
    kept
}

/// The lines that have the right form. What is not a file of this process's own is as good as none.
fn read(directory: &File) -> Vec<String> {
    let bytes = open_own(directory).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MAX_FILE)))?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    let bytes = match bytes {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::warn!(%error, "what was in place of the idempotency keys of former lives is replaced");
            Vec::new()
        }
    };
    let is_hex = |text: &[u8]| text.iter().all(u8::is_ascii_hexdigit);
    bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| {
            line.len() == TAG + 1 + HASH
                && is_hex(&line[..TAG])
                && line[TAG] == b' '
                && is_hex(&line[TAG + 1..])
        })
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect()
}

fn open_own(directory: &File) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = File::from(openat(directory, NAME, flags, Mode::empty())?);
    let found = file.metadata()?;
    if found.is_file() && found.uid() == nix::unistd::geteuid().as_raw() && found.nlink() == 1 {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file of the daemon's own"))
    }
}

/// Puts a new file with these lines in place of whatever is there.
fn replace(directory: &File, lines: &[String]) -> io::Result<File> {
    match unlinkat(directory, NEW_NAME, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(directory, NEW_NAME, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    let mut text = lines.join("\n");
    if !lines.is_empty() {
        text.push('\n');
    }
    file.write_all(text.as_bytes())?;
    renameat(directory, NEW_NAME, directory, NAME)?;
    Ok(file)
}
