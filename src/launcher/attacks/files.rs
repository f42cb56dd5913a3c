//! Attacks on files and devices.

use super::errno;
use crate::sys::attempt;
use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

/// What a session's `/dev` may have.
const USUAL: [&str; 12] =
    ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "stdin", "stdout"];
/// A file of an attack's own.
const OWN: &str = "trl-verify";

/// Opens for reading and reads a byte: `ENODATA` where there is none.
pub fn read(path: &str) -> i32 {
    read_at(Path::new(path))
}

pub fn read_at(path: &Path) -> i32 {
    let mut byte = [0u8; 1];
    match File::open(path).and_then(|mut file| file.read(&mut byte)) {
        Ok(0) => libc::ENODATA,
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    }
}

/// Opens for writing and writes.
pub fn write(path: &str, bytes: &[u8]) -> i32 {
    errno(OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(bytes)))
}

/// Opens a directory.
pub fn list(path: &CStr) -> i32 {
    attempt::open(path, libc::O_RDONLY | libc::O_DIRECTORY)
}

/// Makes a file in a directory, and removes it.
pub fn make(directory: &str) -> i32 {
    let path = Path::new(directory).join(OWN);
    let made = OpenOptions::new().write(true).create_new(true).open(&path);
    if made.is_ok() {
        std::fs::remove_file(&path).ok();
    }
    errno(made)
}

/// Writes a file in the working directory, reads it back, removes it.
pub fn round_trip() -> i32 {
    let back = std::fs::write(OWN, "content").and_then(|()| std::fs::read(OWN));
    let removed = std::fs::remove_file(OWN);
    match (back, removed) {
        (Ok(content), Ok(())) if content == b"content" => 0,
        (Err(error), _) | (_, Err(error)) => error.raw_os_error().unwrap_or(libc::EIO),
        _ => libc::EIO,
    }
}

/// Makes a file in the working directory whose mode has the set-user-id bit.
pub fn set_user_id() -> i32 {
    let made = File::create(OWN).and_then(|file| file.set_permissions(PermissionsExt::from_mode(0o4755)));
    std::fs::remove_file(OWN).ok();
    errno(made)
}

/// `mknod(2)` of the first disk.
pub fn block_device() -> i32 {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let made = mknod(OWN, SFlag::S_IFBLK, Mode::S_IRUSR, makedev(8, 0));
    if made.is_ok() {
        std::fs::remove_file(OWN).ok();
    }
    made.err().map_or(0, |errno| errno as i32)
}

/// Opens a device for reading, without waiting for it.
pub fn device(path: &CStr) -> i32 {
    attempt::open(path, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY)
}

/// Reads and writes what every program expects to be there.
pub fn usual_devices() -> i32 {
    match (read("/dev/urandom"), read("/dev/zero")) {
        (0, 0) => write("/dev/null", b"x"),
        (0, other) | (other, _) => other,
    }
}

/// Whether `/dev` has any device that a session needs not: `ENODEV` where it has not.
pub fn other_devices() -> i32 {
    let Ok(entries) = std::fs::read_dir("/dev") else { return libc::ENODEV };
    let is_other = |entry: std::fs::DirEntry| {
        let is_device = entry.file_type().is_ok_and(|kind| kind.is_block_device() || kind.is_char_device());
        is_device && !USUAL.iter().any(|usual| entry.file_name() == *usual)
    };
    if entries.flatten().any(is_other) { 0 } else { libc::ENODEV }
}
