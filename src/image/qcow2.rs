//! An open qcow2 image as its users see it.

use super::core::{read_header, Core, CoreSettings};
use super::flush::Flusher;
use super::unfinished::{unfinished, Steps};
use super::{check_range, PackedClusters, Status, UseHost, ZeroFlags};
use crate::error::{Error, Result};
use crate::format::snapshot::Snapshot;
use crate::options::DetectZeroes;
use crate::storage::gate::{Exclusive, Gate, Pin};
use crate::storage::medium::Medium;
use crate::storage::Storage;
use arc_swap::ArcSwap;
use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Most guest bytes under one pin: what a request lets go of cannot be reused while it is inside.
const PINNED_BYTES: u64 = 1 << 30;

/// See the module.
pub struct Image {
    gate: Arc<Gate>,
    core: ArcSwap<Core>,
    flusher: Flusher,
    virtual_size: AtomicU64,
    /// Counts the states that have been replaced.
    generation: Arc<AtomicU64>,
    /// The header names another backing file than the one that is open: what would leave a hole, or show one, is
    /// refused, for nobody here knows what it will show.
    chain_left: AtomicBool,
    /// What is left to do of an earlier change.
    pub(super) steps: Mutex<Option<Steps>>,
    /// Whether anything is; changed by whoever is alone.
    pub(super) is_unfinished: AtomicBool,
}

impl Image {
    /// Opens the image on `storage`.
    pub fn open(storage: Arc<dyn Storage>, settings: CoreSettings) -> Result<Image> {
        let gate = Arc::new(Gate::default());
        let core = Self::load(storage, &gate, settings)?;
        Ok(Image {
            gate,
            virtual_size: AtomicU64::new(core.virtual_size),
            core: ArcSwap::from_pointee(core),
            flusher: Flusher::default(),
            generation: Arc::default(),
            chain_left: AtomicBool::new(false),
            steps: Mutex::default(),
            is_unfinished: AtomicBool::new(false),
        })
    }

    fn load(storage: Arc<dyn Storage>, gate: &Arc<Gate>, settings: CoreSettings) -> Result<Core> {
        let (header, sector) = read_header(&*storage)?;
        let data_file = settings.data_file.clone().filter(|_| header.geometry().external_data);
        let medium = Medium::with_data_file(storage, data_file);
        Core::load(Arc::new(medium), Arc::clone(gate), header, sector, settings)
    }

    /// The state as of now. Structure changes replace it.
    pub fn core(&self) -> Arc<Core> {
        self.core.load_full()
    }

    /// Changes whenever another state comes into force.
    #[inline]
    pub(super) fn generation(&self) -> &Arc<AtomicU64> {
        &self.generation
    }

    /// Fails when the header names another backing file than the one that is open. Called inside the gate.
    pub(super) fn check_chain(&self) -> Result<()> {
        match self.chain_left.load(Ordering::SeqCst) {
            true => Err(Error::invalid("the backing file has been changed: open the image anew first")),
            false => Ok(()),
        }
    }

    /// Whether the chain that is open is the one that the header means.
    pub fn is_chain_kept(&self) -> bool {
        !self.chain_left.load(Ordering::SeqCst)
    }

    /// Notes whether the header names another backing file. Called alone.
    pub(super) fn leave_chain(&self, left: bool) {
        self.chain_left.store(left, Ordering::SeqCst);
    }

    /// Virtual size in bytes.
    pub fn length(&self) -> u64 {
        self.virtual_size.load(Ordering::Relaxed)
    }

    /// Fills `buffers` from `offset`.
    #[inline]
    pub fn read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let _pin = self.gate.enter();
        let core = self.core.load();
        if core.copies_on_read {
            self.copy_on_read(&core, offset, buffers)?;
        }
        core.read(offset, buffers)
    }

    #[cold]
    fn copy_on_read(&self, core: &Core, offset: u64, buffers: &[IoSliceMut<'_>]) -> Result<()> {
        if self.check_chain().is_err() {
            // What is below is not what the image is meant to show.
            return Ok(());
        }
        core.copy_on_read(offset, buffers.iter().map(|b| b.len() as u64).sum(), &self.flusher)
    }

    /// Overwrites a range where it is, if that is all there is to do; `false`: nothing has been done.
    #[inline]
    pub fn overwrite(&self, offset: u64, bytes: &[u8]) -> Result<bool> {
        let _pin = self.gate.enter();
        self.core.load().overwrite(offset, bytes)
    }

    /// Writes `buffers` at `offset`.
    pub fn write(&self, offset: u64, buffers: &[IoSlice<'_>], fua: bool) -> Result<()> {
        match self.write_now(offset, buffers, fua) {
            Err(e) => self.again(e, &|| self.write_now(offset, buffers, fua)),
            done => done,
        }
    }

    #[inline(always)]
    fn write_now(&self, offset: u64, buffers: &[IoSlice<'_>], fua: bool) -> Result<()> {
        let _pin = self.gate.enter();
        let core = self.core.load();
        match core.settings.options.detect_zeroes {
            detect if detect != DetectZeroes::Off && all_zero(buffers) => {
                self.check_chain()?;
                let flags = ZeroFlags { unmap: detect == DetectZeroes::Unmap, no_fallback: false };
                let bytes = buffers.iter().map(|b| b.len() as u64).sum();
                core.write_zeroes(offset, bytes, flags, &self.flusher)?;
            }
            _ => core.write(offset, buffers, &self.flusher)?,
        }
        self.finish_write(&core, fua)
    }

    /// Writes whole clusters, compressed.
    pub fn write_compressed(&self, offset: u64, buffers: &[IoSlice<'_>], fua: bool) -> Result<()> {
        self.after_steps(|| {
            let _pin = self.gate.enter();
            let core = self.core.load();
            core.write_compressed(offset, buffers, &self.flusher)?;
            self.finish_write(&core, fua)
        })
    }

    /// Compresses whole clusters at `offset` without writing them.
    pub fn pack(&self, offset: u64, data: &[u8]) -> Result<PackedClusters> {
        let core = self.core();
        core.check_clusters(offset, data.len() as u64)?;
        core.pack(data)
    }

    /// Writes what `pack` has made of `data` for the same offset.
    pub fn write_packed(&self, packed: &PackedClusters, offset: u64, data: &[u8]) -> Result<()> {
        self.after_steps(|| {
            let _pin = self.gate.enter();
            let core = self.core.load();
            core.write_packed(packed, offset, data, &self.flusher)?;
            self.finish_write(&core, false)
        })
    }

    /// Hands bytes to `use_host` that lie in a file.
    pub(super) fn with_host_bytes(&self, offset: u64, length: u64, use_host: UseHost<'_>) -> Result<u64> {
        let _pin = self.gate.enter();
        self.core.load().with_host_bytes(offset, length, use_host)
    }

    /// Copies bytes of another file here; how many. Called inside the gate of the other disk: where this one's is
    /// closed, none.
    pub(super) fn write_from(
        &self,
        offset: u64,
        length: u64,
        source: &dyn Storage,
        source_offset: u64,
    ) -> Result<u64> {
        let Some(_pin) = self.gate.try_enter() else { return Ok(0) };
        let core = self.core.load();
        let done = core.write_from(offset, length, source, source_offset, &self.flusher)?;
        self.finish_write(&core, false)?;
        Ok(done)
    }

    /// Makes a range read as zeroes.
    pub fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags, fua: bool) -> Result<()> {
        check_range(self.length(), offset, length)?;
        self.after_steps(|| {
            for (at, bytes) in pinned_steps(offset, length) {
                let _pin = self.gate.enter();
                self.check_chain()?;
                self.core.load().write_zeroes(at, bytes, flags, &self.flusher)?;
            }
            let _pin = self.gate.enter();
            self.finish_write(&self.core.load(), fua)
        })
    }

    /// Lets go of a range.
    pub fn discard(&self, offset: u64, length: u64) -> Result<()> {
        check_range(self.length(), offset, length)?;
        self.after_steps(|| {
            for (at, bytes) in pinned_steps(offset, length) {
                let _pin = self.gate.enter();
                self.check_chain()?;
                self.core.load().discard(at, bytes, &self.flusher)?;
            }
            let _pin = self.gate.enter();
            self.finish_write(&self.core.load(), false)
        })
    }

    /// Fills `buffer` from `offset` of the VM state.
    pub fn read_vm_state(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let _pin = self.gate.enter();
        self.core.load().read_vm_state(offset, buffer)
    }

    /// Writes `bytes` at `offset` of the VM state. The L1 table grows where it has to.
    pub fn write_vm_state(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.after_steps(|| self.write_vm_state_now(offset, bytes))
    }

    fn write_vm_state_now(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        loop {
            {
                let _pin = self.gate.enter();
                let core = self.core.load();
                if core.write_vm_state(offset, bytes, &self.flusher)? {
                    return self.finish_write(&core, false);
                }
            }
            self.alone().make_vm_state_room(offset + bytes.len() as u64)?;
        }
    }

    /// Durable, in the file or in memory, as request and cache mode ask.
    fn finish_write(&self, core: &Core, fua: bool) -> Result<()> {
        let options = &core.settings.options;
        if fua || options.cache.sync_each_write() {
            return self.flusher.flush(core);
        }
        if options.metadata_writethrough {
            return core.io()?.map.write_through();
        }
        Ok(())
    }

    /// Everything completed before the call is durable when it returns.
    pub fn flush(&self) -> Result<()> {
        match self.flush_now() {
            Err(e) => self.again(e, &|| self.flush_now()),
            done => done,
        }
    }

    #[inline(always)]
    fn flush_now(&self) -> Result<()> {
        let _pin = self.gate.enter();
        let core = self.core.load();
        if core.is_read_only() {
            return Ok(());
        }
        core.io()?;
        match core.suspended() {
            Some(why) => Err(unfinished(why.clone())),
            None => self.flusher.flush(&core),
        }
    }

    /// Before status is asked for.
    pub fn settle_runs(&self) -> Result<()> {
        let _pin = self.gate.enter();
        self.core.load().settle_runs()
    }

    /// The first extent of a range.
    pub fn status(&self, offset: u64, length: u64, top_only: bool) -> Result<Status> {
        let _pin = self.gate.enter();
        let core = self.core.load();
        check_range(core.virtual_size, offset, length)?;
        core.status(offset, length, top_only)
    }

    /// The snapshots in table order, with the state that has them: whole while somebody takes or deletes one.
    pub fn snapshots(&self) -> Result<(Arc<Core>, Arc<[Snapshot]>)> {
        let _pin = self.gate.enter();
        let core = self.core();
        let list = core.snapshots()?;
        Ok((core, list))
    }

    /// Drops what is kept of compressed clusters, and cached tables that were not used since the last call. An
    /// image whose whole mapping is cached and idle is brought to the medium and loaded anew.
    pub fn clean_caches(&self) -> Result<()> {
        let pin = self.gate.enter();
        let core = self.core.load();
        core.forget_inflated();
        core.forget_snapshots();
        let idle = core.io.as_ref().is_some_and(|io| io.map.forget_unused());
        drop(core);
        drop(pin);
        if !idle {
            return Ok(());
        }
        let alone = self.alone();
        alone.settle()?;
        let core = alone.core();
        alone.reload(Arc::clone(core.storage()), core.settings.clone())
    }

    /// Enters as a request.
    pub(super) fn enter(&self) -> Pin<'_> {
        self.gate.enter()
    }

    /// The image's flushes.
    pub(super) fn flusher(&self) -> &Flusher {
        &self.flusher
    }

    /// Keeps every request out. What is left of an earlier change is done first; where that fails, whatever changes
    /// the image fails.
    pub fn alone(&self) -> Alone<'_> {
        let alone = self.alone_unfinished();
        let _ = self.finish(&alone);
        alone
    }

    pub(super) fn alone_unfinished(&self) -> Alone<'_> {
        Alone { _exclusive: self.gate.enter_alone(), image: self }
    }
}

fn all_zero(buffers: &[IoSlice<'_>]) -> bool {
    // Compares with itself, shifted by one: as fast as the host's memcmp.
    let zero = |b: &IoSlice<'_>| b.first().is_none_or(|f| *f == 0 && b[1..] == b[..b.len() - 1]);
    buffers.iter().all(zero)
}

/// A long range in steps of at most `PINNED_BYTES`, cut at multiples of it, at least one.
fn pinned_steps(offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + length;
    let mut at = Some(offset);
    std::iter::from_fn(move || {
        let from = at?;
        let to = end.min((from / PINNED_BYTES + 1) * PINNED_BYTES);
        at = (to < end).then_some(to);
        Some((from, to - from))
    })
}

/// An image whose requests wait outside.
pub struct Alone<'a> {
    image: &'a Image,
    _exclusive: Exclusive<'a>,
}

impl Alone<'_> {
    /// The state as of now.
    pub fn core(&self) -> Arc<Core> {
        self.image.core()
    }

    /// Brings everything to the medium and leaves the image clean.
    pub fn settle(&self) -> Result<()> {
        let core = self.image.core();
        match core.suspended() {
            Some(why) => Err(unfinished(why.clone())),
            None => core.settle(),
        }
    }

    /// The image itself.
    pub(super) fn image(&self) -> &Image {
        self.image
    }

    /// The image's flushes.
    pub(super) fn flusher(&self) -> &Flusher {
        &self.image.flusher
    }

    /// Loads the image from `storage`. A failed sync is final for the state in force.
    fn load(&self, storage: Arc<dyn Storage>, settings: CoreSettings) -> Result<Core> {
        let loaded = Image::load(storage, &self.image.gate, settings);
        loaded.map_err(|e| match e.is_failed_sync() {
            true => self.core().give_up(e),
            false => e,
        })
    }

    /// Loads the image from `storage` as if it had `virtual_size` bytes, without putting it in force.
    pub(super) fn load_sized(
        &self,
        storage: Arc<dyn Storage>,
        settings: CoreSettings,
        virtual_size: u64,
    ) -> Result<Core> {
        let mut core = self.load(storage, settings)?;
        core.virtual_size = virtual_size;
        Ok(core)
    }

    /// Drops everything that is cached: somebody else may change the image from now on, and requests are refused.
    /// Everything is on the medium.
    pub fn deactivate(&self) {
        self.put(self.core().inactive());
    }

    /// Loads an inactive image as it is now. On failure it stays inactive.
    pub fn activate(&self, storage: Arc<dyn Storage>, settings: CoreSettings) -> Result<()> {
        let core = Image::load(storage, &self.image.gate, settings)?;
        self.put(core);
        self.image.leave_chain(false);
        Ok(())
    }

    /// Puts a state in force.
    pub(super) fn put(&self, core: Core) {
        self.image.drop_steps();
        self.image.virtual_size.store(core.virtual_size, Ordering::Relaxed);
        self.image.generation.fetch_add(1, Ordering::SeqCst);
        self.image.core.store(Arc::new(core));
    }

    /// Loads the image again from `storage`. On failure the old state is what the medium may no longer hold: it takes
    /// no more writes, and loading is tried again before the next one.
    pub fn reload(&self, storage: Arc<dyn Storage>, settings: CoreSettings) -> Result<()> {
        self.complete(Steps::load(storage, settings))
    }

    pub(super) fn load_now(&self, storage: Arc<dyn Storage>, settings: CoreSettings) -> Result<()> {
        let core = self.load(storage, settings)?;
        self.put(core);
        Ok(())
    }
}
