//! Descriptors: how a file is opened, what its description can do, where it is kept.
//!
//! 0, 1 and 2 are never used, not even for a moment: where a program has closed one of them, its own messages (or those
//! of a library of its) would be written over the header.

use super::sys;
use crate::storage::lock::opening_turn;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The first descriptor that no program prints to.
const FIRST: i32 = 3;

/// Opens a regular file or a block device by name. Anything else is refused before it is opened: a FIFO would wait for
/// its other end, and devices may act on an open.
pub(super) fn open(path: &Path, how: &OpenOptions, flags: i32) -> io::Result<File> {
    if let Ok(found) = std::fs::metadata(path) {
        refuse_other_kinds(&found)?;
    }
    let _low = LowTaken::new();
    // In case the name has become a FIFO meanwhile.
    let open =
        |more: i32| how.clone().custom_flags(flags | libc::O_CLOEXEC | libc::O_NOCTTY | more).open(path);
    let file = match open(libc::O_NONBLOCK) {
        // Somebody holds a lease, which is to be waited for.
        Err(e) if e.kind() == ErrorKind::WouldBlock => open(0)?,
        done => done?,
    };
    refuse_other_kinds(&file.metadata()?)?;
    // A network file system may be told of the flag with each request.
    sys::let_block(&file);
    above_standard(file)
}

/// Makes a file in `folder` that has no name, or none any more.
pub(super) fn nameless(folder: &Path) -> io::Result<File> {
    let _low = LowTaken::new();
    let how = |options: &mut OpenOptions| options.read(true).write(true).mode(0o600).clone();
    match how(File::options().custom_flags(sys::O_TMPFILE)).open(folder) {
        // The host's ways of saying that this file system has none such.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {}
        made => return above_standard(made?),
    }
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("qcow2-{}-{number}-{:x}", std::process::id(), since.as_nanos());
        let path = folder.join(name);
        match how(File::options().create_new(true)).open(&path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            made => {
                let file = made?;
                std::fs::remove_file(&path)?;
                return above_standard(file);
            }
        }
    }
}

fn above_standard(file: File) -> io::Result<File> {
    match file.as_raw_fd() {
        fd if fd >= FIRST => Ok(file),
        fd => duplicate(fd),
    }
}

pub(super) fn refuse_other_kinds(found: &std::fs::Metadata) -> io::Result<()> {
    let kind = found.file_type();
    let what = match () {
        () if kind.is_file() || kind.is_block_device() => return Ok(()),
        () if kind.is_dir() => return Err(io::Error::from_raw_os_error(libc::EISDIR)),
        () if kind.is_fifo() => "a FIFO or pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() => "a character device",
        () => "of an unknown kind",
    };
    Err(io::Error::new(
        ErrorKind::InvalidInput,
        format!("it is {what}, and only regular files and block devices hold images"),
    ))
}

/// A duplicate of a descriptor, at 3 or above.
pub(super) fn duplicate(fd: i32) -> io::Result<File> {
    sys::duplicate(fd, FIRST)
}

/// Holds those of 0, 1 and 2 that are free while another file is opened. Reading and writing what it holds fails as on a
/// closed descriptor.
struct LowTaken {
    places: Vec<File>,
    identity: (u64, u64),
    _turn: Option<std::sync::MutexGuard<'static, ()>>,
}

impl LowTaken {
    fn new() -> LowTaken {
        let mut taken = LowTaken { places: Vec::new(), identity: (0, 0), _turn: None };
        if (0..FIRST).all(sys::is_open) {
            return taken;
        }
        // One at a time: what this one lets go of, another open that has looked already would get.
        taken._turn = Some(opening_turn());
        let place = || OpenOptions::new().read(true).custom_flags(sys::O_PATH | libc::O_CLOEXEC).open("/");
        while let Ok(file) = place() {
            if file.as_raw_fd() >= FIRST {
                break;
            }
            taken.identity = file.metadata().map_or((0, 0), |m| (m.dev(), m.ino()));
            taken.places.push(file);
        }
        taken
    }
}

impl Drop for LowTaken {
    fn drop(&mut self) {
        for file in self.places.drain(..) {
            // The program may have put something of its own there meanwhile.
            let ours = file.metadata().is_ok_and(|m| (m.dev(), m.ino()) == self.identity);
            if !ours {
                std::mem::forget(file);
            }
        }
    }
}
