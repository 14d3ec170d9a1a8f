//! A raw file as a disk: a layer of a chain, or what a tool was asked to treat as raw.

use super::buffers::total;
use super::copy::UseHost;
use super::status::Status;
use super::{check_range, inactive_error, ZeroFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::round_up;
use crate::storage::{is_not_supported, zero_range, Purpose, Storage};
use arc_swap::ArcSwap;
use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

/// The file's length, rounded up to a sector.
fn length_of(storage: &dyn Storage) -> Result<u64> {
    let length = storage.length().map_err(|e| Error::host("length of the raw file", &e))?;
    Ok(round_up(length, 512))
}

/// See the module.
pub struct RawDisk {
    /// Replaced by a reopen.
    file: ArcSwap<RawFile>,
    length: AtomicU64,
    /// Somebody else may have the file.
    inactive: AtomicBool,
}

struct RawFile {
    storage: Arc<dyn Storage>,
    read_only: bool,
    sync_each_write: bool,
}

impl RawDisk {
    /// A disk of the file's length, rounded up to a sector as the stock driver does.
    pub fn open(storage: Arc<dyn Storage>, read_only: bool, sync_each_write: bool) -> Result<RawDisk> {
        let length = AtomicU64::new(length_of(&*storage)?);
        let file = ArcSwap::from_pointee(RawFile { storage, read_only, sync_each_write });
        Ok(RawDisk { file, length, inactive: AtomicBool::new(false) })
    }

    /// Refuses requests from now on: somebody else may change the file.
    pub fn deactivate(&self) {
        self.inactive.store(true, Ordering::SeqCst);
    }

    /// Goes on with the file as it is now.
    pub fn activate(&self) -> Result<()> {
        self.length.store(length_of(&*self.storage())?, Ordering::Relaxed);
        self.inactive.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn check_active(&self) -> Result<()> {
        match self.inactive.load(Ordering::Relaxed) {
            true => Err(inactive_error()),
            false => Ok(()),
        }
    }

    /// Goes on with another descriptor of the same file.
    pub fn replace(&self, storage: Arc<dyn Storage>, read_only: bool, sync_each_write: bool) {
        self.file.store(Arc::new(RawFile { storage, read_only, sync_each_write }));
    }

    /// The file.
    pub fn storage(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.file.load().storage)
    }

    /// Size in bytes.
    pub fn length(&self) -> u64 {
        self.length.load(Ordering::Relaxed)
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.file.load().read_only
    }

    /// Fills `buffers` from `offset`.
    pub fn read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.check_active()?;
        let bytes = total(buffers.iter().map(|b| b.len())).unwrap_or(u64::MAX);
        check_range(self.length(), offset, bytes)?;
        let answer = self.file.load().storage.read(Purpose::Data, offset, buffers);
        answer.map_err(|e| Error::host(format_args!("reading the raw file at {offset:#x}"), &e))
    }

    fn begin_write(&self, offset: u64, bytes: u64) -> Result<()> {
        self.check_active()?;
        if self.is_read_only() {
            return Err(Error::new(ErrorKind::ReadOnly, "the raw file is open read-only"));
        }
        check_range(self.length(), offset, bytes)
    }

    fn finish_write(&self, fua: bool) -> Result<()> {
        if fua || self.file.load().sync_each_write {
            return self.flush();
        }
        Ok(())
    }

    /// Writes `buffers` at `offset`.
    pub fn write(&self, offset: u64, buffers: &[IoSlice<'_>], fua: bool) -> Result<()> {
        let bytes = total(buffers.iter().map(|b| b.len())).unwrap_or(u64::MAX);
        self.begin_write(offset, bytes)?;
        let answer = self.file.load().storage.write(Purpose::Data, offset, buffers);
        answer.map_err(|e| Error::host(format_args!("writing the raw file at {offset:#x}"), &e))?;
        self.finish_write(fua)
    }

    /// Hands a range to `use_host`.
    pub(super) fn with_host_bytes(&self, offset: u64, length: u64, use_host: UseHost<'_>) -> Result<u64> {
        self.check_active()?;
        check_range(self.length(), offset, length)?;
        use_host(&*self.storage(), offset, length)
    }

    /// Copies bytes of another file here; how many.
    pub(super) fn write_from(
        &self,
        offset: u64,
        length: u64,
        source: &dyn Storage,
        source_offset: u64,
    ) -> Result<u64> {
        self.begin_write(offset, length)?;
        let copied = self.file.load().storage.copy_from(Purpose::Data, offset, source, source_offset, length);
        copied.map_err(|e| Error::host(format_args!("copying to the raw file at {offset:#x}"), &e))?;
        self.finish_write(false)?;
        Ok(length)
    }

    /// Makes a range read as zeroes.
    pub fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags, fua: bool) -> Result<()> {
        self.begin_write(offset, length)?;
        if length == 0 {
            return self.finish_write(fua);
        }
        let file = self.file.load();
        let punched = flags.unmap
            && file.storage.traits().discard_zeroes
            && file.storage.discard(offset, length).is_ok();
        if !punched && flags.no_fallback {
            let answer = file.storage.write_zeroes(Purpose::Data, offset, length);
            answer.map_err(|e| Error::host("zeroing the raw file", &e))?;
        } else if !punched {
            zero_range(&*file.storage, Purpose::Data, offset, length)?;
        }
        self.finish_write(fua)
    }

    /// Gives a range back to the host.
    pub fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.begin_write(offset, length)?;
        match self.file.load().storage.discard(offset, length) {
            Err(e) if !is_not_supported(&e) => Err(Error::host("discarding in the raw file", &e)),
            _ => Ok(()),
        }
    }

    /// Makes completed writes durable.
    pub fn flush(&self) -> Result<()> {
        self.check_active()?;
        if self.is_read_only() {
            return Ok(());
        }
        self.file.load().storage.sync().map_err(|e| Error::host("sync of the raw file", &e))
    }

    /// The first run of a range.
    pub fn status(&self, offset: u64, length: u64) -> Result<Status> {
        self.check_active()?;
        let run =
            self.file.load().storage.host_run(offset).map_err(|e| Error::host("map of the raw file", &e))?;
        let end = if run.end <= offset { offset + length } else { run.end.min(offset + length) };
        let zero = !run.data || run.end <= offset;
        Ok(Status {
            length: end - offset,
            data: !zero,
            zero,
            allocated: true,
            compressed: false,
            host: Some(offset),
            in_data_file: false,
            depth: 0,
        })
    }

    /// Changes the size.
    pub fn resize(&self, length: u64) -> Result<()> {
        self.check_active()?;
        if self.is_read_only() {
            return Err(Error::new(ErrorKind::ReadOnly, "the raw file is open read-only"));
        }
        self.file.load().storage.set_length(length).map_err(|e| Error::host("Could not resize file", &e))?;
        self.length.store(round_up(length, 512), Ordering::Relaxed);
        Ok(())
    }
}
