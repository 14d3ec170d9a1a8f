//! An image's storages with their clock and latch: the one way by which an open image writes and syncs.
//!
//! A **ticket** names the next sync not yet started; once that sync has completed, everything written before
//! the ticket was taken is durable. Syncs are numbered by `begin_sync`, so that the caller can fix under its
//! own lock what the sync will cover.

use super::access::Identity;
use super::data_file::DataFile;
use super::holes::Holes;
use super::latch::Latch;
use super::{read_exact, zero_range, HostRun, Purpose, Storage};
use crate::error::{Error, Result};
use crate::format::HostOffset;
use crate::planted::{ordered, planted, Plant};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{locked, Mutex};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

/// A point in time: "after sync number N". `Ticket::PAST` never waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ticket(u64);

impl Ticket {
    /// Already durable.
    pub const PAST: Ticket = Ticket(0);
}

/// Something has been written: what points to it waits for the sync that covers it (R2). Only writes give one.
#[derive(Clone, Copy, Debug)]
pub struct Written(Ticket);

impl Written {
    /// What a pointer waits for.
    pub fn ticket(self) -> Ticket {
        self.0
    }
}

/// A sync that has its number and has not run yet.
#[must_use]
pub struct StartedSync(u64);

/// The storages of one image.
pub struct Medium {
    image: Arc<dyn Storage>,
    /// Where guest data is, if not beside the tables.
    data_file: Option<DataFile>,
    latch: Arc<Latch>,
    /// Of the storage of guest data.
    holes: Holes,
    /// Held across syncs: of two that overlap the host tells one only that something is lost.
    syncing: Mutex<()>,
    started: AtomicU64,
    completed: AtomicU64,
}

impl Medium {
    /// A medium on one storage, where guest data is beside the tables.
    #[cfg(test)]
    pub fn new(image: Arc<dyn Storage>) -> Self {
        Medium::of_session(image, None, Arc::default())
    }

    /// A medium with guest data in a storage of its own, if there is one, and a latch that outlives it.
    pub fn of_session(
        image: Arc<dyn Storage>,
        data_file: Option<Arc<dyn Storage>>,
        latch: Arc<Latch>,
    ) -> Self {
        let holes = Holes::default();
        match &data_file {
            None if image.dense_bytes() > 0 => {
                holes.learn(0, HostRun { data: true, end: image.dense_bytes() });
            }
            _ => {}
        }
        Medium {
            image,
            data_file: data_file.map(DataFile::new),
            latch,
            holes,
            syncing: Mutex::new(()),
            started: AtomicU64::new(0),
            completed: AtomicU64::new(0),
        }
    }

    /// The storage of the image itself, for reads and properties.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.image
    }

    /// The external data file.
    pub fn data_file(&self) -> Option<&DataFile> {
        self.data_file.as_ref()
    }

    /// Which file guest data is in, where that can be told.
    pub fn data_identity(&self) -> Option<Identity> {
        self.data_storage().identity()
    }

    /// The storage that guest data is in, for reads and properties.
    #[inline]
    pub fn data_storage(&self) -> &Arc<dyn Storage> {
        self.data_file.as_ref().map_or(&self.image, DataFile::storage)
    }

    /// The failure latch.
    pub fn latch(&self) -> &Latch {
        &self.latch
    }

    /// Ticket for everything written so far.
    pub fn ticket(&self) -> Ticket {
        let started = self.started.load(ordered(Plant::TicketOfOldClock, Ordering::SeqCst));
        Ticket(if planted(Plant::TicketOfSyncUnderWay) { started.max(1) } else { started + 1 })
    }

    /// Whether what `ticket` stands for is durable.
    pub fn is_past(&self, ticket: Ticket) -> bool {
        ticket.0 <= self.completed.load(ordered(Plant::PastTicketOrdersNothing, Ordering::SeqCst))
    }

    /// Numbers a sync. Tickets taken from now on wait for the next one.
    pub fn begin_sync(&self) -> StartedSync {
        StartedSync(self.started.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Runs a numbered sync. A failure closes the latch: the kernel may have dropped what was not written.
    pub fn finish_sync(&self, sync: StartedSync) -> Result<()> {
        if planted(Plant::SyncCompletedAtOnce) {
            self.completed.fetch_max(sync.0, Ordering::SeqCst);
        }
        match planted(Plant::SyncSkipped) {
            true => self.latch.check()?,
            false => self.sync_storages()?,
        }
        // Syncs may overlap; the later one covers every earlier ticket too.
        self.completed.fetch_max(sync.0, Ordering::SeqCst);
        Ok(())
    }

    /// A sync between two writes of one step, which moves no ticket.
    pub fn sync_step(&self) -> Result<()> {
        self.sync_storages()
    }

    /// The data file first: whoever sees the image synced may rely on what its pointers lead to.
    fn sync_storages(&self) -> Result<()> {
        let _turn = locked(self.syncing.lock());
        self.latch.check()?;
        if let Some(data_file) = &self.data_file {
            data_file
                .sync()
                .map_err(|e| self.latch.close(Error::failed_sync("sync of the data file", &e)))?;
        }
        let done = match self.image.sync() {
            Err(_) if planted(Plant::SyncRetried) => self.image.sync(),
            done => done,
        };
        done.map_err(|e| self.latch.close(Error::failed_sync("sync", &e)))
    }

    /// Makes the host see where guest data is, so that `data_run` can tell. A sync that fails is as final as any.
    pub fn settle_runs(&self) -> Result<()> {
        let _turn = locked(self.syncing.lock());
        if self.latch.check().is_err() || self.is_dense() {
            return Ok(());
        }
        let done = self.holes.settle(&**self.data_storage());
        done.map_err(|e| self.latch.close(Error::failed_sync("sync before the host is asked for holes", &e)))
    }

    /// What the host has at an offset of the storage of guest data; all data where it cannot tell now.
    pub fn data_run(&self, host_offset: HostOffset) -> io::Result<HostRun> {
        self.holes.run(&**self.data_storage(), host_offset.0)
    }

    /// Whether all of the storage of guest data is known to be data.
    fn is_dense(&self) -> bool {
        let known = self.holes.known(0).filter(|run| run.data);
        known.is_some_and(|run| self.data_storage().length().is_ok_and(|length| run.end >= length))
    }

    /// Fills `buffers` with guest data.
    pub fn read_data(&self, host_offset: HostOffset, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.data_storage()
            .read(Purpose::Data, host_offset.0, buffers)
            .map_err(|e| Error::host(format_args!("reading guest data at host offset {host_offset:#x}"), &e))
    }

    /// Everything that has been written so far.
    pub fn written(&self) -> Written {
        Written(self.ticket())
    }

    /// Writes guest data. A failure is the caller's to undo and closes nothing.
    pub fn write_data(&self, host_offset: HostOffset, buffers: &[IoSlice<'_>]) -> Result<Written> {
        let write = |storage: &dyn Storage| storage.write(Purpose::Data, host_offset.0, buffers);
        match self.change_data(write)? {
            Err(e) if !planted(Plant::LinkedAfterFailedWrite) => {
                Err(Error::host(format_args!("writing guest data at host offset {host_offset:#x}"), &e))
            }
            _ => Ok(self.written()),
        }
    }

    /// Has the host copy guest data from another storage. A failure is the caller's to undo and closes nothing.
    pub fn copy_data(
        &self,
        host_offset: HostOffset,
        source: &dyn Storage,
        source_offset: u64,
        length: u64,
    ) -> Result<Written> {
        let copy = |storage: &dyn Storage| {
            storage.copy_from(Purpose::Data, host_offset.0, source, source_offset, length)
        };
        let copied = self.change_data(copy)?;
        copied.map_err(|e| {
            Error::host(format_args!("copying guest data to host offset {host_offset:#x}"), &e)
        })?;
        Ok(self.written())
    }

    /// As `change_data`, where the host may have less afterwards.
    pub fn reshape_data<T>(&self, change: impl FnOnce(&dyn Storage) -> T) -> Result<T> {
        let done = self.change_data(change);
        self.holes.forget();
        done
    }

    /// Changes the storage of guest data; a sync from now on has something to do there.
    #[inline]
    fn change_data<T>(&self, change: impl FnOnce(&dyn Storage) -> T) -> Result<T> {
        self.latch.check()?;
        let done = change(&**self.data_storage());
        self.holes.note_change();
        if let Some(data_file) = &self.data_file {
            data_file.note_change();
        }
        Ok(done)
    }

    /// Reads a table or a part of one.
    pub fn read_table(&self, purpose: Purpose, host_offset: u64, buffer: &mut [u8]) -> Result<()> {
        read_exact(&*self.image, purpose, host_offset, buffer)
    }

    /// Writes a table that nothing points to yet. A failure closes nothing.
    pub fn write_unlinked(&self, purpose: Purpose, host_offset: u64, buffer: &[u8]) -> Result<Written> {
        self.latch.check()?;
        super::write_all(&*self.image, purpose, host_offset, buffer)?;
        Ok(self.written())
    }

    /// Zeroes a table that nothing points to yet. A failure closes nothing.
    pub fn zero_unlinked(&self, purpose: Purpose, host_offset: u64, length: u64) -> Result<Written> {
        self.latch.check()?;
        zero_range(&*self.image, purpose, host_offset, length)?;
        Ok(self.written())
    }

    /// Makes the image file at least `length` bytes long, and never shorter; its length then.
    pub fn grow(&self, length: u64) -> Result<std::io::Result<u64>> {
        self.latch.check()?;
        Ok(self.image.grow(length))
    }

    /// Cuts the image file after `length` bytes.
    pub fn cut(&self, length: u64) -> Result<std::io::Result<()>> {
        self.latch.check()?;
        Ok(self.image.set_length(length))
    }

    /// Gives clusters that nothing refers to back to the host. A courtesy: a host that cannot is no error.
    pub fn give_back(&self, host_offset: u64, length: u64) -> Result<()> {
        self.latch.check()?;
        let _ = self.image.discard(host_offset, length);
        Ok(())
    }

    /// Writes a live table or header back. A failure closes nothing, but any part of the bytes may be in the file: the
    /// caller keeps them and writes them again before anything may count on either.
    pub fn write_live(&self, purpose: Purpose, host_offset: u64, buffer: &[u8]) -> Result<()> {
        self.latch.check()?;
        let done = super::write_all(&*self.image, purpose, host_offset, buffer);
        if done.is_err() && planted(Plant::FailedWriteForgotten) {
            return Ok(());
        }
        done
    }
}
