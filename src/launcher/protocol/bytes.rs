//! Numbers as bytes: little endian, nothing left out, nothing left over.
#![allow(missing_docs, clippy::new_without_default)] // Named for what they write and read.

use super::DecodeError;

/// A packet that is being written.
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn new(kind: u8) -> Self {
        Self(vec![kind])
    }
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    pub fn i32(self, value: i32) -> Self {
        self.u32(value.cast_unsigned())
    }
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
}

/// What is left of a packet that is being read.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(DecodeError)?;
        self.0 = tail;
        Ok(head)
    }
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }
    pub fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError),
        }
    }
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take(4)?.try_into().map(u32::from_le_bytes).map_err(|_| DecodeError)
    }
    pub fn i32(&mut self) -> Result<i32, DecodeError> {
        self.u32().map(u32::cast_signed)
    }
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take(8)?.try_into().map(u64::from_le_bytes).map_err(|_| DecodeError)
    }
    pub fn end(self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError) }
    }
}

/// A small packet on the stack.
#[derive(Clone, Copy)]
pub struct Packet {
    bytes: [u8; 192],
    length: usize,
}

impl Packet {
    pub fn new() -> Self {
        Self { bytes: [0; 192], length: 0 }
    }

    pub fn push(mut self, bytes: &[u8]) -> Self {
        if let Some(room) = self.bytes.get_mut(self.length..self.length + bytes.len()) {
            room.copy_from_slice(bytes);
            self.length += bytes.len();
        }
        self
    }
    pub fn u8(self, value: u8) -> Self {
        self.push(&[value])
    }
    pub fn u32(self, value: u32) -> Self {
        self.push(&value.to_le_bytes())
    }
    pub fn u64(self, value: u64) -> Self {
        self.push(&value.to_le_bytes())
    }
    /// The bytes to send.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}
