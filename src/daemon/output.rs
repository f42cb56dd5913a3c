//! What programs wrote and what they will read: a bounded ring of output with absolute offsets, and a bounded
//! buffer of standard input with offsets that make a repeated write harmless.
//!
//! Output never blocks its program here: the ring drops its oldest bytes, and a reader that comes too late is
//! told which range it missed ([`Read::gap`]). Bytes are overwritten when they leave either buffer, also when a
//! buffer grows; `Debug` prints lengths only.

use crate::sys::memory::wipe;
use std::collections::VecDeque;
use std::fmt;

/// Largest chunk of a ring, bytes; also the longest contiguous [`Read`].
pub const CHUNK: usize = 64 * 1024;
/// First allocation of a buffer: most commands write less than this.
const FIRST_ALLOCATION: usize = 1024;

/// Bytes with a consumed front. Whatever leaves it, by consumption, growth or drop, is wiped.
#[derive(Default)]
struct Wiped {
    bytes: Vec<u8>,
    head: usize,
}

impl Wiped {
    fn as_slice(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.head
    }

    /// Appends; `limit` bounds the allocation unless `more` alone asks for a larger one.
    fn append(&mut self, more: &[u8], limit: usize) {
        if self.bytes.len() + more.len() > self.bytes.capacity() {
            self.make_room(more.len(), limit);
        }
        self.bytes.extend_from_slice(more);
    }

    /// Moves what is left to the front of a larger (or the same) allocation and wipes where it was.
    fn make_room(&mut self, more: usize, limit: usize) {
        let needed = self.len() + more;
        if needed <= self.bytes.capacity() && self.head >= self.len() {
            let left = self.len();
            self.bytes.copy_within(self.head.., 0);
            wipe(&mut self.bytes[left..]);
            self.bytes.truncate(left);
        } else {
            let capacity = needed.max((2 * self.bytes.capacity()).max(FIRST_ALLOCATION).min(limit));
            let mut larger = Vec::with_capacity(capacity);
            larger.extend_from_slice(self.as_slice());
            wipe(&mut self.bytes);
            self.bytes = larger;
        }
        self.head = 0;
    }

    fn consume(&mut self, count: usize) {
        let end = self.head + count.min(self.len());
        wipe(&mut self.bytes[self.head..end]);
        self.head = end;
        if self.head == self.bytes.len() {
            self.bytes.clear();
            self.head = 0;
        }
    }

    /// Takes the last `count` bytes off into `to`.
    fn move_tail(&mut self, count: usize, to: &mut Self) {
        let from = self.bytes.len() - count.min(self.len());
        to.append(&self.bytes[from..], CHUNK);
        wipe(&mut self.bytes[from..]);
        self.bytes.truncate(from);
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        wipe(&mut self.bytes);
    }
}

/// Part of a ring's output.
#[derive(PartialEq, Eq)]
pub struct Read<'a> {
    /// Bytes from the first offset up to the second that were asked for and are gone.
    pub gap: Option<(u64, u64)>,
    /// Offset of the first of `bytes`.
    pub offset: u64,
    /// What is there; empty at the end.
    pub bytes: &'a [u8],
}

impl fmt::Debug for Read<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Read {{ gap: {:?}, offset: {}, {} bytes }}", self.gap, self.offset, self.bytes.len())
    }
}

/// The retained end of one output stream. At most `capacity` bytes are retained, in chunks of up to [`CHUNK`];
/// a chunk does not end within a UTF-8 character that the next one goes on with.
pub struct Ring {
    capacity: usize,
    /// With the absolute offset of the first byte that is left in each.
    chunks: VecDeque<(u64, Wiped)>,
    /// The allocation of a whole chunk that was dropped, wiped: a full ring goes round without allocating.
    spare: Wiped,
    retained: usize,
    end: u64,
    closed: bool,
}

impl Ring {
    /// An empty ring that retains up to `capacity` bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            chunks: VecDeque::new(),
            spare: Wiped::default(),
            retained: 0,
            end: 0,
            closed: false,
        }
    }

    /// Appends and drops the oldest beyond the capacity. Ignored once closed.
    pub fn push(&mut self, mut bytes: &[u8]) {
        if self.closed {
            return;
        }
        while !bytes.is_empty() {
            let room = match self.chunks.back() {
                Some((_, last)) if last.bytes.len() < CHUNK => CHUNK - last.bytes.len(),
                _ => self.add_chunk(),
            };
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            if let Some((_, last)) = self.chunks.back_mut() {
                last.append(now, CHUNK);
            }
            self.retained += now.len();
            self.end += now.len() as u64;
            self.evict_to(self.capacity);
            bytes = later;
        }
    }

    /// Adds a chunk, which takes the incomplete character at the end of the one before over; its room.
    fn add_chunk(&mut self) -> usize {
        let mut next = std::mem::take(&mut self.spare);
        if let Some((_, last)) = self.chunks.back_mut() {
            // What filled one chunk will fill another: no growing from small.
            next.bytes.reserve_exact(CHUNK);
            let tail = incomplete_tail(last.as_slice());
            if tail < last.len() {
                last.move_tail(tail, &mut next);
            }
        }
        let room = CHUNK - next.len();
        self.chunks.push_back((self.end - next.len() as u64, next));
        room
    }

    /// Drops the oldest until at most `retained` bytes are left, and up to 3 more so that the rest does not
    /// begin within a character.
    pub fn evict_to(&mut self, retained: usize) {
        let Some(excess) = self.retained.checked_sub(retained).filter(|excess| *excess > 0) else {
            return;
        };
        self.drop_front(excess);
        for _ in 0..3 {
            match self.chunks.front() {
                Some((_, first)) if first.as_slice().first().is_some_and(|byte| byte & 0xc0 == 0x80) => {
                    self.drop_front(1);
                }
                _ => return,
            }
        }
    }

    fn drop_front(&mut self, mut count: usize) {
        while count > 0 {
            let Some((offset, first)) = self.chunks.front_mut() else {
                return;
            };
            let now = count.min(first.len());
            *offset += now as u64;
            count -= now;
            self.retained -= now;
            first.consume(now);
            if first.len() == 0
                && let Some((_, emptied)) = self.chunks.pop_front()
                && emptied.bytes.capacity() >= CHUNK
                && !self.closed
            {
                self.spare = emptied;
            }
        }
    }

    /// Absolute offset of the oldest byte retained; the end where none is.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.end - self.retained as u64
    }

    /// Absolute offset after the newest byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// How many bytes were ever produced.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.end
    }

    /// How many of these are gone.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.start()
    }

    /// How many are here.
    #[must_use]
    pub fn retained(&self) -> usize {
        self.retained
    }

    /// Whether the next byte pushes the oldest out.
    #[must_use]
    pub fn full(&self) -> bool {
        self.retained >= self.capacity
    }

    /// Nothing more will come.
    pub fn close(&mut self) {
        self.closed = true;
        self.spare = Wiped::default();
    }

    /// Whether nothing more will come.
    #[must_use]
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// What is at `offset`, at most `max` bytes, as far as it is contiguous. The next read goes on at the
    /// answer's offset plus its length. An offset beyond the end yields nothing, at that offset.
    #[must_use]
    pub fn read(&self, offset: u64, max: usize) -> Read<'_> {
        let start = self.start();
        let gap = (offset < start).then_some((offset, start));
        let offset = offset.max(start);
        let index = self.chunks.partition_point(|(first, _)| *first <= offset);
        let bytes = index.checked_sub(1).and_then(|index| self.chunks.get(index)).map_or(&[][..], |chunk| {
            let (first, chunk) = (chunk.0, chunk.1.as_slice());
            let skip = usize::try_from(offset - first).map_or(chunk.len(), |skip| skip.min(chunk.len()));
            &chunk[skip..chunk.len().min(skip.saturating_add(max))]
        });
        Read { gap, offset, bytes }
    }

    /// All that is retained from `offset` on. The caller answers for the copy.
    #[must_use]
    pub fn copy(&self, offset: u64) -> Vec<u8> {
        let mut next = offset.max(self.start());
        let mut all = Vec::with_capacity(usize::try_from(self.end.saturating_sub(next)).unwrap_or(0));
        loop {
            let read = self.read(next, usize::MAX);
            if read.bytes.is_empty() {
                return all;
            }
            all.extend_from_slice(read.bytes);
            next += read.bytes.len() as u64;
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Ring {{ {}..{}, capacity: {}, closed: {} }}",
            self.start(),
            self.end,
            self.capacity,
            self.closed
        )
    }
}

/// How many bytes at the end begin a UTF-8 character without ending it: 0 to 3.
fn incomplete_tail(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let length = match bytes[bytes.len() - back] {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => return 0,
        };
        return if back < length { back } else { 0 };
    }
    0
}

/// Why a write to standard input was not taken as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StdinError {
    /// End-of-file was said, or the program closed its end.
    #[error("standard input is closed")]
    Closed,
    /// It does not fit now; go on from `accepted_offset`.
    #[error("standard input is full after offset {accepted_offset}")]
    Full {
        /// How many bytes were ever accepted.
        accepted_offset: u64,
    },
    /// The write begins after what was accepted.
    #[error("standard input was accepted up to offset {accepted_offset} only")]
    Gap {
        /// How many bytes were ever accepted.
        accepted_offset: u64,
    },
}

/// Standard input that a program has not read yet, at most `capacity` bytes.
pub struct StdinBuffer {
    capacity: usize,
    pending: Wiped,
    accepted: u64,
    eof: bool,
    closed: bool,
}

impl StdinBuffer {
    /// An empty buffer.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity, pending: Wiped::default(), accepted: 0, eof: false, closed: false }
    }

    /// Takes `bytes` that stand at `offset` of the stream (none: at its end) and, with `eof`, ends the stream
    /// after them. What was accepted before is not written again, so a write may be repeated. With an offset as
    /// much is taken as fits; without one all or nothing, since its repetition could not be told from new bytes.
    ///
    /// # Errors
    /// [`StdinError`]; `Full` says how far it was taken.
    pub fn write(&mut self, offset: Option<u64>, bytes: &[u8], eof: bool) -> Result<u64, StdinError> {
        let accepted_offset = self.accepted;
        let Some(known) = accepted_offset.checked_sub(offset.unwrap_or(accepted_offset)) else {
            return Err(StdinError::Gap { accepted_offset });
        };
        let new = usize::try_from(known).ok().and_then(|known| bytes.get(known..));
        let fresh = new.unwrap_or_default();
        if self.closed || (self.eof && (!fresh.is_empty() || offset.is_none())) {
            return Err(StdinError::Closed);
        }
        let room = self.capacity - self.pending.len();
        if fresh.len() > room && offset.is_none() {
            return Err(StdinError::Full { accepted_offset });
        }
        let taken = &fresh[..fresh.len().min(room)];
        self.pending.append(taken, self.capacity);
        self.accepted += taken.len() as u64;
        if taken.len() < fresh.len() {
            return Err(StdinError::Full { accepted_offset: self.accepted });
        }
        self.eof |= eof && new.is_some();
        Ok(self.accepted)
    }

    /// What the program gets next.
    #[must_use]
    pub fn peek(&self) -> &[u8] {
        self.pending.as_slice()
    }

    /// The program got `count` bytes; they are wiped.
    pub fn consume(&mut self, count: usize) {
        self.pending.consume(count);
    }

    /// Whether the program has all of it and its end of the pipe is to be closed.
    #[must_use]
    pub fn eof(&self) -> bool {
        self.eof && self.pending.len() == 0
    }

    /// The program closed its end: what is pending is wiped and nothing more is taken.
    pub fn close(&mut self) {
        self.closed = true;
        self.pending = Wiped::default();
    }

    /// How many bytes were ever accepted.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted
    }
}

impl fmt::Debug for StdinBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "StdinBuffer {{ {} pending, accepted: {}, eof: {}, closed: {} }}",
            self.pending.len(),
            self.accepted,
            self.eof,
            self.closed
        )
    }
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
