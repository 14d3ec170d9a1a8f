//! A raw file as a disk: a layer of a chain, or what a tool was asked to treat as raw.

use super::{
    check_range, inactive_error, total, Disk, Draft, Files, Format, Parts, Settings, Status, Stopped,
    Unlocking, UseHost, ZeroFlags,
};
use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::round_up;
use crate::options::Preallocation;
use crate::storage::flusher::Flusher;
use crate::storage::gate::{Exclusive, Gate};
use crate::storage::holes::Holes;
use crate::storage::latch::Latch;
use crate::storage::{is_not_supported, reserve_range, write_zero_bytes, zero_range, Purpose, Storage};
use crate::sync::locked;
use std::any::Any;
use std::cell::RefCell;
use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The file's length, rounded up to a sector.
fn length_of(storage: &dyn Storage) -> Result<u64> {
    let length = storage.length().map_err(|e| Error::host("length of the raw file", &e))?;
    Ok(round_up(length, 512))
}

/// A disk whose bytes are those of its file. Like an image it is behind a gate, and takes no writes after a failed sync.
pub struct RawDisk {
    gate: Gate<Arc<RawFile>>,
    latch: Latch,
    flusher: Flusher,
    holes: Holes,
    /// The one in the gate, for those who do not enter it. Held for a look only.
    file: Mutex<Arc<RawFile>>,
    length: AtomicU64,
    /// Somebody else may have the file.
    inactive: AtomicBool,
}

struct RawFile {
    storage: Arc<dyn Storage>,
    read_only: bool,
    sync_each_write: bool,
}

/// A raw disk whose requests wait outside.
pub struct ExclusiveRaw<'a> {
    raw: &'a RawDisk,
    inside: RefCell<Exclusive<'a, Arc<RawFile>>>,
}

/// A file that is to be a raw disk: any will do.
struct RawDraft {
    storage: Arc<dyn Storage>,
    settings: Settings,
}

impl Draft for RawDraft {
    fn open(self: Box<Self>, parts: Parts) -> Result<Disk> {
        let Settings { options, read_only, .. } = self.settings;
        let raw = RawDisk::open(self.storage, read_only, options.cache.sync_each_write())?;
        if parts.inactive {
            raw.exclusive().deactivate();
        }
        Ok(Disk::new(raw))
    }
}

impl RawDisk {
    /// What the format is called.
    pub const NAME: &str = "raw";

    /// Looks at a file that is to be opened.
    pub fn draft(storage: Arc<dyn Storage>, settings: Settings) -> Result<Box<dyn Draft>> {
        Ok(Box::new(RawDraft { storage, settings }))
    }

    /// A disk of the file's length, rounded up to a sector as the stock driver does.
    pub fn open(storage: Arc<dyn Storage>, read_only: bool, sync_each_write: bool) -> Result<RawDisk> {
        let length = AtomicU64::new(length_of(&*storage)?);
        let file = Arc::new(RawFile { storage, read_only, sync_each_write });
        Ok(RawDisk {
            gate: Gate::new(Arc::clone(&file)),
            latch: Latch::default(),
            flusher: Flusher::default(),
            holes: Holes::default(),
            file: Mutex::new(file),
            length,
            inactive: AtomicBool::new(false),
        })
    }

    /// Keeps every request out.
    pub fn exclusive(&self) -> ExclusiveRaw<'_> {
        ExclusiveRaw { raw: self, inside: RefCell::new(self.gate.enter_alone()) }
    }

    fn check_active(&self) -> Result<()> {
        match self.inactive.load(Ordering::Relaxed) {
            true => Err(inactive_error()),
            false => Ok(()),
        }
    }

    fn file(&self) -> Arc<RawFile> {
        locked(self.file.lock()).clone()
    }

    /// Runs a change of `[offset, offset + bytes)`. Its failure is the caller's, and closes nothing.
    fn change<T>(
        &self,
        file: &RawFile,
        offset: u64,
        bytes: u64,
        change: impl FnOnce(&dyn Storage) -> Result<T>,
    ) -> Result<T> {
        self.check_writable(file)?;
        check_range(self.length(), offset, bytes)?;
        let done = change(&*file.storage);
        self.holes.note_change();
        done
    }

    fn check_writable(&self, file: &RawFile) -> Result<()> {
        self.check_active()?;
        if file.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "the raw file is open read-only"));
        }
        self.latch.check()
    }

    fn finish_write(&self, file: &RawFile, fua: bool) -> Result<()> {
        if fua || file.sync_each_write {
            return self.sync(file);
        }
        Ok(())
    }

    /// A failure is final: the host may have dropped what it could not write. Syncs do not overlap, for the host tells
    /// one of two only.
    fn sync(&self, file: &RawFile) -> Result<()> {
        self.check_active()?;
        if file.read_only {
            return Ok(());
        }
        self.flusher.join(|| {
            self.latch.check()?;
            let done = file.storage.sync();
            done.map_err(|e| self.latch.close(Error::host("sync of the raw file", &e)))
        })
    }
}

impl Format for RawDisk {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn storage(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.file().storage)
    }

    fn length(&self) -> u64 {
        self.length.load(Ordering::Relaxed)
    }

    fn read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let file = self.gate.enter();
        self.check_active()?;
        let bytes = total(buffers.iter().map(|b| b.len())).unwrap_or(u64::MAX);
        check_range(self.length(), offset, bytes)?;
        let answer = file.storage.read(Purpose::Data, offset, buffers);
        answer.map_err(|e| Error::host(format_args!("reading the raw file at {offset:#x}"), &e))
    }

    fn status(&self, offset: u64, length: u64, _top_only: bool) -> Result<Status> {
        check_range(self.length(), offset, length)?;
        let file = self.gate.enter();
        self.check_active()?;
        let run = self.holes.run(&*file.storage, offset);
        let run = run.map_err(|e| Error::host("map of the raw file", &e))?;
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

    fn reads_zero(&self, offset: u64, length: u64) -> Result<bool> {
        check_range(self.length(), offset, length)?;
        let file = self.gate.enter();
        self.check_active()?;
        let hole = self.holes.is_hole(&*file.storage, offset, length);
        hole.map_err(|e| Error::host("map of the raw file", &e))
    }

    fn is_read_only(&self) -> bool {
        self.file().read_only
    }

    fn settle_runs(&self) -> Result<()> {
        let file = self.gate.enter();
        if file.read_only || self.check_active().is_err() {
            return Ok(());
        }
        self.flusher.join(|| {
            if self.latch.check().is_err() {
                return Ok(());
            }
            let done = self.holes.settle(&*file.storage);
            done.map_err(|e| self.latch.close(Error::host("sync before the host is asked for holes", &e)))
        })
    }

    fn with_host_bytes(&self, offset: u64, length: u64, use_host: UseHost<'_>) -> Result<u64> {
        let file = self.gate.enter();
        self.check_active()?;
        check_range(self.length(), offset, length)?;
        use_host(&*file.storage, offset, length)
    }

    fn write(&self, offset: u64, buffers: &[IoSlice<'_>], fua: bool) -> Result<()> {
        let file = self.gate.enter();
        let bytes = total(buffers.iter().map(|b| b.len())).unwrap_or(u64::MAX);
        self.change(&file, offset, bytes, |storage| {
            let answer = storage.write(Purpose::Data, offset, buffers);
            answer.map_err(|e| Error::host(format_args!("writing the raw file at {offset:#x}"), &e))
        })?;
        self.finish_write(&file, fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags, fua: bool) -> Result<()> {
        let file = self.gate.enter();
        let done = self.change(&file, offset, length, |storage| match length {
            0 => Ok(()),
            _ => zero(storage, offset, length, flags),
        });
        self.holes.forget();
        done?;
        self.finish_write(&file, fua)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        let file = self.gate.enter();
        let done = self.change(&file, offset, length, |storage| match storage.discard(offset, length) {
            Err(e) if !is_not_supported(&e) => Err(Error::host("discarding in the raw file", &e)),
            _ => Ok(()),
        });
        self.holes.forget();
        done
    }

    fn write_from(&self, offset: u64, length: u64, source: &dyn Storage, source_offset: u64) -> Result<u64> {
        let Some(file) = self.gate.try_enter() else { return Ok(0) };
        self.change(&file, offset, length, |storage| {
            let copied = storage.copy_from(Purpose::Data, offset, source, source_offset, length);
            copied.map_err(|e| Error::host(format_args!("copying to the raw file at {offset:#x}"), &e))
        })?;
        self.finish_write(&file, false)?;
        Ok(length)
    }

    fn flush(&self) -> Result<()> {
        let file = self.gate.enter();
        self.sync(&file)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn stop(&self) -> Box<dyn Stopped + '_> {
        Box::new(self.exclusive())
    }
}

/// Zeroes a range of the file.
fn zero(storage: &dyn Storage, offset: u64, length: u64, flags: ZeroFlags) -> Result<()> {
    let punched = flags.unmap && storage.traits().discard_zeroes && storage.discard(offset, length).is_ok();
    match flags.no_fallback {
        _ if punched => Ok(()),
        true => {
            let answer = storage.write_zeroes(Purpose::Data, offset, length);
            answer.map_err(|e| Error::host("zeroing the raw file", &e))
        }
        false => zero_range(storage, Purpose::Data, offset, length),
    }
}

impl Stopped for ExclusiveRaw<'_> {
    fn settle(&self) -> Result<()> {
        self.raw.sync(&self.raw.file())
    }

    fn reload(&self, files: Files, settings: Settings) -> Result<()> {
        let file = Arc::new(RawFile {
            storage: files.image,
            read_only: settings.read_only,
            sync_each_write: settings.options.cache.sync_each_write(),
        });
        *locked(self.raw.file.lock()) = Arc::clone(&file);
        self.inside.borrow_mut().put(file);
        self.raw.holes.note_change();
        self.raw.holes.forget();
        Ok(())
    }

    fn deactivate(&self) {
        self.raw.inactive.store(true, Ordering::SeqCst);
    }

    fn activate(
        &self,
        files: Files,
        _settings: Settings,
        _backing: Option<Disk>,
        _unlocking: &mut Unlocking<'_>,
    ) -> Result<()> {
        self.raw.length.store(length_of(&*files.image)?, Ordering::Relaxed);
        self.raw.holes.note_change();
        self.raw.holes.forget();
        self.raw.inactive.store(false, Ordering::SeqCst);
        Ok(())
    }
}

impl ExclusiveRaw<'_> {
    /// Changes the size to `size`, with room on the host as asked for. On failure it is as it was.
    pub fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let raw = self.raw;
        let file = raw.file();
        raw.check_writable(&file)?;
        let storage = Arc::clone(&file.storage);
        if preallocation == Preallocation::Metadata {
            return Err(Error::unsupported("Unsupported preallocation mode: metadata"));
        }
        let bytes = storage.length().map_err(|e| Error::host("length of the raw file", &e))?;
        let old = round_up(bytes, 512);
        refuse_device(&*storage, old, size, preallocation)?;
        let done = set_length(&*storage, size).and_then(|()| match preallocation {
            Preallocation::Falloc if size > old => {
                let done = reserve_range(&*storage, Purpose::Data, old, size - old);
                done.map_err(|e| Error::host("preallocating the raw file", &e))
            }
            Preallocation::Full if size > old => write_zero_bytes(&*storage, Purpose::Data, old, size - old),
            _ => Ok(()),
        });
        raw.holes.note_change();
        raw.holes.forget();
        if let Err(e) = done {
            // A resize that failed has not happened.
            let _ = storage.set_length(bytes);
            return Err(e);
        }
        raw.length.store(round_up(size, 512), Ordering::Relaxed);
        raw.sync(&file)
    }
}

/// A device has the size that it has, and no holes to fill.
fn refuse_device(storage: &dyn Storage, old: u64, size: u64, preallocation: Preallocation) -> Result<()> {
    let mode = match preallocation {
        Preallocation::Falloc => "falloc",
        Preallocation::Full => "full",
        _ => "off",
    };
    match storage.is_device() {
        true if mode != "off" && size > old => Err(Error::unsupported(format!(
            "Preallocation mode '{mode}' unsupported for this non-regular file"
        ))),
        true if size != old => Err(Error::unsupported("Cannot resize device files")),
        _ => Ok(()),
    }
}

/// Sets the length, and looks whether the storage has really taken it.
fn set_length(storage: &dyn Storage, size: u64) -> Result<()> {
    storage.set_length(size).map_err(|e| Error::host("Could not resize file", &e))?;
    match storage.length().map_err(|e| Error::host("length of the raw file", &e))? {
        length if length == size => Ok(()),
        length => Err(Error::unsupported(format!(
            "Could not resize file: it has {length} bytes whatever is asked for, not {size}"
        ))),
    }
}
