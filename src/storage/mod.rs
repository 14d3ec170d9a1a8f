//! Bytes at offsets: what an image file, a memory double or a caller's callbacks offer to the engine.
//!
//! Every call moves the whole range or fails. Reads past the end give zeroes. Writes past the end extend.
//! Implementations retry `EINTR` and short transfers themselves and know nothing of the format.
//!
//! Media assumptions of everything above: a 512-byte sector is written whole or not at all; writes not yet
//! synced may survive in any subset and order, and so may changes of the length, each on its own; after `sync`
//! returns `Ok` they are durable; bytes outside a write do not change; a file that grows by `set_length` reads as
//! zeroes there.

pub mod access;
pub(crate) mod aligned;
pub(crate) mod buffers;
mod data_file;
pub mod device;
mod direct;
pub mod end;
pub mod event;
pub mod file;
pub mod flusher;
pub mod gate;
pub mod helper;
pub mod holes;
pub mod latch;
pub mod lock;
pub mod medium;
pub mod memory;
pub mod names;
pub(crate) mod pool;
pub(crate) mod turns;

use crate::error::{Error, ErrorKind, Result};
use access::{Access, FileOptions, Identity};
use event::Event;
use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::PathBuf;
use std::sync::Arc;

/// What a storage call is for. Traces, injected faults and the ownership map of tests use it; files ignore it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Guest data, with the copy-on-write bytes around it; of an external data file everything.
    Data,
    /// Header, extensions and names.
    Header,
    /// An L1 table, active or a snapshot's.
    L1,
    /// An L2 table.
    L2,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// Snapshot table.
    Snapshots,
    /// Bitmap directory, table or data.
    Bitmaps,
    /// Encryption header.
    Encryption,
}

/// What a storage can do, fixed while it is open.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// Requests at multiples of this many bytes avoid a read-modify-write; 1 for buffered files.
    pub alignment: u64,
    /// Bytes past the current length read as zeroes once the length has grown over them (regular files).
    pub zero_past_end: bool,
    /// What `discard` gives back reads as zeroes; otherwise it may keep its bytes.
    pub discard_zeroes: bool,
    /// No write is accepted.
    pub read_only: bool,
}

/// A run of a storage as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRun {
    /// Allocated on the host; otherwise it reads as zeroes.
    pub data: bool,
    /// One past the last byte of the run.
    pub end: u64,
}

/// Bytes at offsets.
pub trait Storage: Send + Sync {
    /// Fills `buffers` from `offset`; zeroes past the end.
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()>;
    /// Writes all of `buffers` at `offset`.
    fn write(&self, purpose: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()>;
    /// Makes every completed write durable. A failed sync is never retried.
    fn sync(&self) -> io::Result<()>;
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// No length over this will be taken.
    fn size_limit(&self) -> u64 {
        u64::MAX
    }
    /// Cuts or extends (with zeroes) to `length`.
    fn set_length(&self, length: u64) -> io::Result<()>;
    /// Makes it at least `length` bytes long, and never cuts what somebody else writes further on; its length then.
    fn grow(&self, length: u64) -> io::Result<u64> {
        let now = self.length()?;
        if now < length {
            self.set_length(length)?;
        }
        Ok(now.max(length))
    }
    /// Makes the range read as zeroes without moving data; `ENOTSUP` when that is not possible.
    fn write_zeroes(&self, purpose: Purpose, offset: u64, length: u64) -> io::Result<()>;
    /// Gives the range back to the host; it reads as zeroes or keeps its bytes. `ENOTSUP` is fine.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Reserves host space for the range, extending the file. `ENOTSUP` when that is not possible.
    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()>;
    /// The run that holds `offset`; storages that cannot tell answer one run of data to the end.
    fn host_run(&self, offset: u64) -> io::Result<HostRun>;
    /// Where the hole that holds `offset` ends; `None`: data is there, or nobody can tell. Costs no walk over the data.
    fn hole_end(&self, offset: u64) -> io::Result<Option<u64>> {
        self.host_run(offset).map(|run| (!run.data && run.end > offset).then_some(run.end))
    }
    /// Makes `host_run` see every completed write: a sync, also where syncs are turned off. Nothing to do for storages
    /// that cannot tell holes.
    fn settle_runs(&self) -> io::Result<()> {
        self.sync()
    }
    /// Copies `length` bytes from `source_offset` of another storage to `offset` without passing them through memory.
    /// `ENOTSUP` when that is not possible, or where `source` ends before; the range holds anything then.
    fn copy_from(
        &self,
        _purpose: Purpose,
        _offset: u64,
        _source: &dyn Storage,
        _source_offset: u64,
        _length: u64,
    ) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
    /// The host's descriptor, where the host may copy from it: bytes through its cache, at the same offsets.
    fn copy_source(&self) -> Option<i32> {
        None
    }
    /// The engine comes to a point that no purpose of a read or a write tells. Only a storage for tests listens.
    fn event(&self, _event: Event) {}
    /// Whether it listens.
    fn listens(&self) -> bool {
        false
    }
    /// What this storage can do.
    fn traits(&self) -> Traits;
    /// A device: it keeps its length, and what it held before.
    fn is_device(&self) -> bool {
        false
    }
    /// Which file it is, to recognise one that is opened twice; `None`: it cannot be told.
    fn identity(&self) -> Option<Identity> {
        None
    }
    /// The host's descriptor, where there is one.
    fn descriptor(&self) -> Option<i32> {
        None
    }
    /// The path of the file that is recorded here under `name`, where that is a path and known.
    fn resolve(&self, name: &OsStr) -> Option<PathBuf> {
        names::resolve(name, None)
    }
    /// Keeps others from what `access` excludes, until the storage and all that were reopened from it are gone. Nothing
    /// to do for storages that are nobody else's. `shown` is the name for messages.
    fn lock(&self, _access: Access, _shown: &str) -> Result<()> {
        Ok(())
    }
    /// Changes the access of the lock, where there is one, and takes it over from the storage that this one was reopened
    /// from, or that was reopened from this one. On failure it is as it was.
    fn change_lock(&self, _access: Access, _shown: &str) -> Result<()> {
        Ok(())
    }
    /// The same bytes, opened in another way; `None`: this storage serves that. The lock stays where it is.
    fn reopen(&self, options: FileOptions, _shown: &str) -> Result<Option<Arc<dyn Storage>>> {
        check_access(self.traits(), options.writable).map(|()| None)
    }
    /// Bytes from the start for each of which the host had taken room when the file was opened, as far as it tells: nobody
    /// need be asked for holes there. What is reserved and never written is among them.
    fn dense_bytes(&self) -> u64 {
        0
    }
    /// Bytes allocated on the host, where known.
    fn allocated_bytes(&self) -> Option<u64> {
        None
    }
}

/// Fails where writes are wanted of a caller's storage that takes none.
pub fn check_access(traits: Traits, writable: bool) -> Result<()> {
    match writable && traits.read_only {
        true => Err(Error::new(ErrorKind::ReadOnly, "the caller's storage takes no writes")),
        false => Ok(()),
    }
}

/// Reads `buffer.len()` bytes at `offset`.
pub fn read_exact(storage: &dyn Storage, purpose: Purpose, offset: u64, buffer: &mut [u8]) -> Result<()> {
    storage
        .read(purpose, offset, &mut [IoSliceMut::new(buffer)])
        .map_err(|e| Error::host(format_args!("reading {purpose:?} at {offset:#x}"), &e))
}

/// Writes all of `buffer` at `offset`.
pub fn write_all(storage: &dyn Storage, purpose: Purpose, offset: u64, buffer: &[u8]) -> Result<()> {
    storage
        .write(purpose, offset, &[IoSlice::new(buffer)])
        .map_err(|e| Error::host(format_args!("writing {purpose:?} at {offset:#x}"), &e))
}

/// Largest buffer of zeroes that is written at once, bytes.
const ZERO_CHUNK_BYTES: u64 = 1 << 20;

/// Makes a range read as zeroes, by the host's means or by writing zeroes.
pub fn zero_range(storage: &dyn Storage, purpose: Purpose, offset: u64, length: u64) -> Result<()> {
    match storage.write_zeroes(purpose, offset, length) {
        Ok(()) => return Ok(()),
        Err(e) if is_not_supported(&e) => {}
        Err(e) => return Err(Error::host(format_args!("zeroing {purpose:?} at {offset:#x}"), &e)),
    }
    write_zero_bytes(storage, purpose, offset, length)
}

/// Writes zeroes, which take room on the host.
pub fn write_zero_bytes(storage: &dyn Storage, purpose: Purpose, offset: u64, length: u64) -> Result<()> {
    let zeroes = vec![0; length.min(ZERO_CHUNK_BYTES) as usize];
    let end = offset + length;
    let mut at = offset;
    while at < end {
        let bytes = (end - at).min(ZERO_CHUNK_BYTES);
        write_all(storage, purpose, at, &zeroes[..bytes as usize])?;
        at += bytes;
    }
    Ok(())
}

/// Reserves host space for a range that nobody else writes to, by the host's means or by writing what is there.
pub fn reserve_range(storage: &dyn Storage, purpose: Purpose, offset: u64, length: u64) -> io::Result<()> {
    match storage.preallocate(offset, length) {
        Err(e) if is_not_supported(&e) => {}
        done => return done,
    }
    let end = offset + length;
    let held = storage.length()?.clamp(offset, end);
    let mut bytes = vec![0; length.min(ZERO_CHUNK_BYTES) as usize];
    let mut at = offset;
    while at < end {
        // What is past the end of the file is zeroes already.
        let stop = if at < held { held } else { end };
        let part = &mut bytes[..(stop - at).min(ZERO_CHUNK_BYTES) as usize];
        if at < held {
            storage.read(purpose, at, &mut [IoSliceMut::new(part)])?;
        } else {
            part.fill(0);
        }
        storage.write(purpose, at, &[IoSlice::new(part)])?;
        at += part.len() as u64;
    }
    Ok(())
}

/// Whether the host says "cannot" rather than "failed".
pub fn is_not_supported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENOTTY | libc::ENODEV)
    )
}
