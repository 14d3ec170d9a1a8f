//! Requests on a file or block device.

use super::sys::{self, host_offset, Allocate, Seek};
use super::transfer::{copy_range, once, read_many, read_one, write_many, write_one};
use super::FileStorage;
use crate::error::{Error, Result};
use crate::storage::access::{Access, FileOptions, Identity};
use crate::storage::end::EndAlone;
use crate::storage::{device, names, HostRun, Purpose, Storage, Traits};
use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::Arc;

impl FileStorage {
    pub(in crate::storage) fn allocate(&self, what: Allocate, offset: u64, length: u64) -> io::Result<()> {
        let (offset, length) = (host_offset(offset)?, host_offset(length)?);
        // Beside a block that is read, changed and written back, this would be undone.
        let _blocks = self.direct.as_ref().map(|d| d.beside());
        once(|| sys::fallocate(&self.file, what, offset, length)).map(drop)
    }

    fn sync_data(&self) -> io::Result<()> {
        loop {
            match self.file.sync_data() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    pub(super) fn set_length_alone(&self, alone: &EndAlone<'_>, length: u64) -> io::Result<()> {
        if !self.regular {
            // A device keeps its size; growing inside it is no change.
            return match length <= self.length()? {
                true => Ok(()),
                false => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            };
        }
        if length > self.size_limit && length > self.length()? {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        alone.set(length, || self.file.set_len(length))?;
        if let Some(shared) = &self.shared_length {
            shared.store(length, Ordering::SeqCst);
        }
        Ok(())
    }

    /// As `Allocate::ZeroInside` of a kernel that does so for devices (Linux 4.9).
    pub(in crate::storage) fn zero_blocks(&self, offset: u64, length: u64) -> io::Result<()> {
        let _blocks = self.direct.as_ref().map(|d| d.beside());
        sys::zero_blocks(&self.file, offset, length)
    }

    /// Never on a shared description: the offset that moves is this storage's, which reads and writes nothing there.
    fn seek(&self, to: Seek) -> io::Result<Option<u64>> {
        debug_assert!(self.shared_length.is_none());
        sys::seek(&self.file, to)
    }

    /// Before the file may become `end` bytes long. The host would end the program for a length over the limit.
    #[cold]
    fn before_growth(&self, end: u64) -> io::Result<()> {
        if end.next_multiple_of(self.traits().alignment) > self.size_limit {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        if let Some(shared) = self.shared_length.as_ref().filter(|_| self.regular) {
            shared.fetch_max(end, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Any write: several buffers, past the end, or direct.
    fn write_any(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes: u64 = buffers.iter().map(|b| b.len() as u64).sum();
        let end = offset.saturating_add(bytes);
        self.end.write(end, || {
            if self.watches_growth() {
                self.before_growth(end)?;
            }
            match (&self.direct, buffers) {
                (None, [one]) => write_one(&self.file, offset, one),
                (None, many) => write_many(&self.file, offset, many),
                (Some(direct), many) => {
                    let length = || self.regular.then(|| self.length()).transpose();
                    direct.write(&self.file, offset, many, &length)
                }
            }
        })
    }

    /// Whether `before_growth` has something to do.
    #[inline]
    fn watches_growth(&self) -> bool {
        self.size_limit != u64::MAX || self.shared_length.is_some()
    }
}

impl Storage for FileStorage {
    #[inline]
    fn read(&self, _: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        match (&self.direct, buffers) {
            (None, [one]) => read_one(&self.file, offset, one),
            (None, many) => read_many(&self.file, offset, many),
            (Some(direct), many) => direct.read(&self.file, offset, many),
        }
    }

    #[inline]
    fn write(&self, _: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        if let (None, [one]) = (&self.direct, buffers) {
            let end = offset.saturating_add(one.len() as u64);
            if self.end.is_before(end) && end <= self.size_limit {
                return write_one(&self.file, offset, one);
            }
        }
        self.write_any(offset, buffers)
    }

    fn sync(&self) -> io::Result<()> {
        match self.options.no_sync {
            true => Ok(()),
            false => self.sync_data(),
        }
    }

    fn length(&self) -> io::Result<u64> {
        let length = match &self.shared_length {
            Some(shared) if self.options.writable || self.keeps_length() => {
                return Ok(shared.load(Ordering::SeqCst));
            }
            Some(_) => sys::length_in_place(&self.file)?,
            None => self.seek(Seek::End)?.unwrap_or(0),
        };
        if self.regular {
            self.end.note(length);
        }
        Ok(length)
    }

    fn size_limit(&self) -> u64 {
        self.size_limit
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let alone = self.end.alone();
        let _blocks = self.direct.as_ref().map(|d| d.alone());
        self.set_length_alone(&alone, length)
    }

    fn grow(&self, length: u64) -> io::Result<u64> {
        let alone = self.end.alone();
        let _blocks = self.direct.as_ref().map(|d| d.alone());
        let now = self.length()?;
        if now < length {
            self.set_length_alone(&alone, length)?;
        }
        Ok(now.max(length))
    }

    fn write_zeroes(&self, _: Purpose, offset: u64, length: u64) -> io::Result<()> {
        if !self.regular {
            return device::zero(self, offset, length);
        }
        let end = offset.saturating_add(length);
        // What crosses the end, or ends before it, the host does in one step, and never cuts.
        let zero = || self.allocate(Allocate::Zero, offset, length);
        if self.end.is_before(end) {
            return zero();
        }
        let alone = self.end.alone();
        let blocks = self.direct.as_ref().map(|d| d.alone());
        if offset >= self.length()? {
            // Growing the file is enough and costs nothing.
            return self.set_length_alone(&alone, end);
        }
        drop(blocks);
        if self.watches_growth() {
            self.before_growth(end)?;
        }
        zero()
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.allocate(Allocate::Punch, offset, length)
    }

    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset.saturating_add(length);
        self.end.write(end, || {
            if self.watches_growth() {
                self.before_growth(end)?;
            }
            self.allocate(Allocate::Reserve, offset, length)
        })
    }

    fn is_device(&self) -> bool {
        !self.regular
    }

    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
        if self.shared_length.is_some() {
            // Only lseek knows, and that is not ours to use.
            return Ok(HostRun { data: true, end: i64::MAX as u64 });
        }
        let length = self.length()?;
        let whole = HostRun { data: true, end: length };
        if !self.regular || offset >= length {
            return Ok(whole);
        }
        match self.seek(Seek::Data(offset)) {
            Ok(None) => Ok(HostRun { data: false, end: length }),
            Ok(Some(data)) if data > offset => Ok(HostRun { data: false, end: data.min(length) }),
            Ok(Some(_)) => {
                let end = self.seek(Seek::Hole(offset))?.unwrap_or(length);
                Ok(HostRun { data: true, end: end.min(length) })
            }
            Err(_) => Ok(whole),
        }
    }

    fn hole_end(&self, offset: u64) -> io::Result<Option<u64>> {
        let length = self.length()?;
        if !self.regular || self.shared_length.is_some() || offset >= length {
            return Ok(None);
        }
        match self.seek(Seek::Data(offset)) {
            Ok(None) => Ok(Some(length)),
            Ok(Some(data)) if data > offset => Ok(Some(data.min(length))),
            // Hosts that cannot tell say an error.
            Ok(Some(_)) | Err(_) => Ok(None),
        }
    }

    fn settle_runs(&self) -> io::Result<()> {
        match self.regular && self.shared_length.is_none() {
            true => self.sync_data(),
            false => Ok(()),
        }
    }

    fn copy_from(
        &self,
        _: Purpose,
        offset: u64,
        source: &dyn Storage,
        source_offset: u64,
        length: u64,
    ) -> io::Result<()> {
        match source.copy_source() {
            Some(from) if self.direct.is_none() => {
                let end = offset.saturating_add(length);
                self.end.write(end, || {
                    if self.watches_growth() {
                        self.before_growth(end)?;
                    }
                    copy_range(from, source_offset, &self.file, offset, length)
                })
            }
            _ => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        }
    }

    fn copy_source(&self) -> Option<i32> {
        self.direct.is_none().then(|| self.file.as_raw_fd())
    }

    fn traits(&self) -> Traits {
        Traits {
            alignment: self.direct.as_ref().map_or(1, |d| d.alignment()),
            zero_past_end: self.regular,
            // Of a device Linux punches what it can make read as zeroes, and refuses the rest.
            discard_zeroes: true,
            read_only: !self.options.writable,
        }
    }

    fn identity(&self) -> Option<Identity> {
        Some(self.identity)
    }

    fn descriptor(&self) -> Option<i32> {
        Some(self.file.as_raw_fd())
    }

    fn resolve(&self, name: &OsStr) -> Option<PathBuf> {
        names::resolve(name, self.path.as_deref())
    }

    fn lock(&self, access: Access, shown: &str) -> Result<()> {
        self.take_lock(access, shown)
    }

    fn change_lock(&self, access: Access, shown: &str) -> Result<()> {
        self.take_over_lock(access, shown)
    }

    fn reopen(&self, options: FileOptions, shown: &str) -> Result<Option<Arc<dyn Storage>>> {
        if (FileOptions { create: false, ..self.options }) == options {
            return Ok(None);
        }
        let again = self.opened_again(options);
        let again = again
            .map_err(|e| Error::host(format_args!("Could not reopen '{shown}'"), &e).about_file(shown))?;
        Ok(Some(Arc::new(again)))
    }

    fn dense_bytes(&self) -> u64 {
        self.dense_bytes
    }

    fn allocated_bytes(&self) -> Option<u64> {
        self.file.metadata().ok().map(|m| m.blocks() * 512)
    }
}
