//! An open qcow2 image as its users see it.

use super::bitmaps::Tracker;
use super::chain::{Chain, Layer};
use super::core::{unfinished, Core, CoreSettings};
use super::session::Session;
use super::unlock::check_same;
use super::{check_range, PackedClusters, Status, UseHost, ZeroFlags};
use crate::codec::is_zero;
use crate::error::Result;
use crate::format::snapshot::Snapshot;
use crate::format::GuestOffset;
use crate::meta::read_header;
use crate::options::DetectZeroes;
use crate::storage::gate::{Exclusive, Gate, Pin, Readers};
use crate::storage::medium::Medium;
use crate::storage::Storage;
use crate::sync::locked;
use std::cell::RefCell;
use std::io::{IoSlice, IoSliceMut};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Most guest bytes under one pin: what a request lets go of cannot be reused while it is inside.
const PINNED_BYTES: u64 = 1 << 30;

/// A state; `None` before the first and after the last.
type State = Option<Arc<Core>>;

/// What completes a change, the whole of which may be done again; another state is in force after it.
pub(super) type LastSteps = Arc<dyn Fn(&ExclusiveImage<'_>) -> Result<()> + Send + Sync>;

/// A qcow2 image. Requests enter the gate, which has the state in force.
pub struct Image {
    gate: Arc<Gate<State>>,
    pub(super) session: Arc<Session>,
    /// The state in force, for those who do not enter the gate. Held for a look only.
    now: Mutex<State>,
    /// What is left to do of an earlier change.
    pub(super) steps: Mutex<Option<LastSteps>>,
    /// Whether anything is; changed by whoever is alone.
    pub(super) is_unfinished: AtomicBool,
}

/// A request inside the gate, with the state in force.
pub(super) struct Inside<'a>(Pin<'a, State>);

impl Deref for Inside<'_> {
    type Target = Core;

    #[inline(always)]
    fn deref(&self) -> &Core {
        match &*self.0 {
            Some(core) => core,
            None => unreachable!("an image that is open has a state"),
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // The state has the session, which has the gate, which has the state.
        self.gate.enter_alone().put(None);
    }
}

impl Image {
    /// Opens the image on `storage`.
    pub fn open(storage: Arc<dyn Storage>, settings: CoreSettings) -> Result<Image> {
        let gate = Arc::new(Gate::new(None));
        let session = Arc::new(Session::new(Arc::clone(&gate) as Arc<dyn Readers>));
        let core = Self::load(storage, &session, settings)?;
        let image = Image {
            gate,
            session,
            now: Mutex::new(None),
            steps: Mutex::default(),
            is_unfinished: AtomicBool::new(false),
        };
        image.exclusive_unfinished().put(core);
        Ok(image)
    }

    fn load(storage: Arc<dyn Storage>, session: &Arc<Session>, settings: CoreSettings) -> Result<Core> {
        let (header, sector) = read_header(&*storage)?;
        let data_file = settings.data_file.clone().filter(|_| header.geometry().external_data);
        let medium = Medium::of_session(storage, data_file, session.latch());
        let mut core = Core::load(Arc::new(medium), Arc::clone(session), header, sector, settings)?;
        core.chain = chain_below(&core);
        Ok(core)
    }

    /// The state as of now. Structure changes replace it.
    pub fn core(&self) -> Arc<Core> {
        locked(self.now.lock()).clone().expect("an image that is open has a state")
    }

    /// Whether the chain that is open is the one that the header means.
    pub fn is_chain_kept(&self) -> bool {
        self.session.is_chain_kept()
    }

    /// Virtual size in bytes.
    pub fn length(&self) -> u64 {
        self.session.virtual_size()
    }

    /// Fills `buffer` from `offset`, if that takes one read of a file; `false`: nothing has been done.
    #[inline]
    pub fn read_short(&self, offset: u64, buffer: &mut [u8]) -> Result<bool> {
        self.enter().read_short(GuestOffset(offset), buffer)
    }

    /// Fills `buffers` from `offset`.
    pub fn read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let core = self.enter();
        if core.copies_on_read {
            self.copy_on_read(&core, offset, buffers)?;
        }
        core.read(GuestOffset(offset), buffers)
    }

    #[cold]
    fn copy_on_read(&self, core: &Core, offset: u64, buffers: &[IoSliceMut<'_>]) -> Result<()> {
        if self.session.check_chain().is_err() {
            // What is below is not what the image is meant to show.
            return Ok(());
        }
        core.copy_on_read(GuestOffset(offset), buffers.iter().map(|b| b.len() as u64).sum())
    }

    /// Overwrites a range where it is, if that is all there is to do; `false`: nothing has been done.
    #[inline]
    pub fn overwrite(&self, offset: u64, bytes: &[u8]) -> Result<bool> {
        self.enter().overwrite(GuestOffset(offset), bytes)
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
        let core = self.enter();
        match core.settings.options.detect_zeroes {
            detect if detect != DetectZeroes::Off && buffers.iter().all(|b| is_zero(b)) => {
                self.session.check_chain()?;
                let flags = ZeroFlags { unmap: detect == DetectZeroes::Unmap, no_fallback: false };
                let bytes = buffers.iter().map(|b| b.len() as u64).sum();
                core.write_zeroes(GuestOffset(offset), bytes, flags)?;
            }
            _ => core.write(GuestOffset(offset), buffers)?,
        }
        self.finish_write(&core, fua)
    }

    /// Writes whole clusters, compressed.
    pub fn write_compressed(&self, offset: u64, buffers: &[IoSlice<'_>], fua: bool) -> Result<()> {
        self.after_steps(|| {
            let core = self.enter();
            core.write_compressed(GuestOffset(offset), buffers)?;
            self.finish_write(&core, fua)
        })
    }

    /// Compresses whole clusters at `offset` without writing them.
    pub fn pack(&self, offset: u64, data: &[u8]) -> Result<PackedClusters> {
        let core = self.core();
        core.check_clusters(GuestOffset(offset), data.len() as u64)?;
        core.pack(data)
    }

    /// Writes what `pack` has made of `data` for the same offset.
    pub fn write_packed(&self, packed: &PackedClusters, offset: u64, data: &[u8]) -> Result<()> {
        self.after_steps(|| {
            let core = self.enter();
            core.write_packed(packed, GuestOffset(offset), data)?;
            self.finish_write(&core, false)
        })
    }

    /// Hands bytes to `use_host` that lie in a file.
    pub(super) fn with_host_bytes(&self, offset: u64, length: u64, use_host: UseHost<'_>) -> Result<u64> {
        self.enter().with_host_bytes(GuestOffset(offset), length, use_host)
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
        let Some(core) = self.gate.try_enter().map(Inside) else { return Ok(0) };
        let done = core.write_from(GuestOffset(offset), length, source, source_offset)?;
        self.finish_write(&core, false)?;
        Ok(done)
    }

    /// Makes a range read as zeroes.
    pub fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags, fua: bool) -> Result<()> {
        check_range(self.length(), offset, length)?;
        self.after_steps(|| {
            for (at, bytes) in pinned_steps(offset, length) {
                let core = self.enter();
                self.session.check_chain()?;
                core.write_zeroes(GuestOffset(at), bytes, flags)?;
            }
            self.finish_write(&self.enter(), fua)
        })
    }

    /// Lets go of a range.
    pub fn discard(&self, offset: u64, length: u64) -> Result<()> {
        check_range(self.length(), offset, length)?;
        self.after_steps(|| {
            for (at, bytes) in pinned_steps(offset, length) {
                let core = self.enter();
                self.session.check_chain()?;
                core.discard(GuestOffset(at), bytes)?;
            }
            self.finish_write(&self.enter(), false)
        })
    }

    /// Fills `buffer` from `offset` of the VM state.
    pub fn read_vm_state(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.enter().read_vm_state(offset, buffer)
    }

    /// Writes `bytes` at `offset` of the VM state; `false`: the L1 table has no room, and nothing has been done.
    pub(crate) fn write_vm_state(&self, offset: u64, bytes: &[u8]) -> Result<bool> {
        let core = self.enter();
        let written = core.write_vm_state(offset, bytes)?;
        if written {
            self.finish_write(&core, false)?;
        }
        Ok(written)
    }

    /// Durable, in the file or in memory, as request and cache mode ask.
    fn finish_write(&self, core: &Core, fua: bool) -> Result<()> {
        let options = &core.settings.options;
        if fua || options.cache.sync_each_write() {
            return core.flush();
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
        let core = self.enter();
        if core.is_read_only() {
            return Ok(());
        }
        core.io()?;
        match core.suspended() {
            Some(why) => Err(unfinished(why.clone())),
            None => core.flush(),
        }
    }

    /// Before status is asked for.
    pub fn settle_runs(&self) -> Result<()> {
        self.enter().settle_runs()
    }

    /// The first extent of a range.
    pub fn status(&self, offset: u64, length: u64, top_only: bool) -> Result<Status> {
        let core = self.enter();
        check_range(core.virtual_size, offset, length)?;
        core.status(offset, length, top_only)
    }

    /// Whether a range certainly reads as zeroes.
    pub fn reads_zero(&self, offset: u64, length: u64) -> Result<bool> {
        let core = self.enter();
        check_range(core.virtual_size, offset, length)?;
        core.reads_zero(GuestOffset(offset), length)
    }

    /// The snapshots in table order, with the state that has them: whole while somebody takes or deletes one.
    pub fn snapshots(&self) -> Result<(Arc<Core>, Arc<[Snapshot]>)> {
        let inside = self.enter();
        let list = inside.snapshots()?;
        Ok((self.core(), list))
    }

    /// The bitmaps that are in force, with the state that has them.
    pub(crate) fn with_bitmaps<T>(
        &self,
        look: impl FnOnce(&Core, Option<Arc<Tracker>>) -> Result<T>,
    ) -> Result<T> {
        let inside = self.enter();
        let bitmaps = inside.bitmaps()?;
        look(&inside, bitmaps)
    }

    /// Drops what is kept of compressed clusters, and cached tables that were not used since the last call. An
    /// image whose whole mapping is cached and idle is brought to the medium and loaded anew.
    pub fn clean_caches(&self) -> Result<()> {
        let core = self.enter();
        core.forget_inflated();
        core.forget_snapshots();
        let idle = core.io.as_ref().is_some_and(|io| io.map.forget_unused());
        drop(core);
        if !idle {
            return Ok(());
        }
        let alone = self.exclusive();
        alone.settle()?;
        alone.reload()
    }

    /// Enters as a request.
    #[inline(always)]
    pub(super) fn enter(&self) -> Inside<'_> {
        Inside(self.gate.enter())
    }

    /// Keeps every request out. What is left of an earlier change is done first; where that fails, whatever changes
    /// the image fails.
    pub fn exclusive(&self) -> ExclusiveImage<'_> {
        let alone = self.exclusive_unfinished();
        let _ = self.finish(&alone);
        alone
    }

    pub(super) fn exclusive_unfinished(&self) -> ExclusiveImage<'_> {
        ExclusiveImage { inside: RefCell::new(self.gate.enter_alone()), image: self }
    }
}

/// The chain below an image that is being loaded; `None` when its backing disk is no qcow2 image, or may change.
fn chain_below(core: &Core) -> Option<Chain<Core>> {
    let image = Image::find(core.backing()?)?;
    let generation = Arc::clone(image.session.generation());
    let seen = generation.load(Ordering::SeqCst);
    let below = image.core();
    if !below.is_read_only() || !below.payload.zeroes_are_zero() {
        return None;
    }
    let nearest = Layer::new(Arc::clone(&below), generation, seen);
    Some(Chain::new(nearest, below.chain.as_ref(), core.geometry(), core.virtual_size))
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

/// An image whose requests wait outside: what changes its structure holds this.
pub struct ExclusiveImage<'a> {
    image: &'a Image,
    inside: RefCell<Exclusive<'a, State>>,
}

impl ExclusiveImage<'_> {
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

    /// The next state loads the bitmaps from the medium, which has all of them.
    pub(crate) fn forget_bitmaps(&self) {
        self.image.session.forget_bitmaps();
    }

    /// The image itself.
    pub(super) fn image(&self) -> &Image {
        self.image
    }

    /// Fails when the header names another backing file than the one that is open.
    pub(crate) fn check_chain(&self) -> Result<()> {
        self.image.session.check_chain()
    }

    /// Notes whether the header names another backing file than the one that is open: then nothing may become a hole.
    pub(crate) fn leave_chain(&self, left: bool) {
        self.image.session.leave_chain(left);
    }

    fn load(&self, storage: Arc<dyn Storage>, settings: CoreSettings) -> Result<Core> {
        let core = Image::load(storage, &self.image.session, settings)?;
        if let Some(cipher) = &core.settings.cipher {
            check_same(cipher, &core.header(), &**core.storage())?;
        }
        Ok(core)
    }

    /// The image as if it had `virtual_size` bytes, not in force.
    pub(crate) fn load_sized(&self, virtual_size: u64) -> Result<Core> {
        let core = self.core();
        let mut wide = self.load(Arc::clone(core.storage()), core.settings.clone())?;
        wide.virtual_size = virtual_size;
        Ok(wide)
    }

    /// Puts a state in force, as one of `virtual_size` bytes.
    pub(crate) fn put_sized(&self, mut core: Core, virtual_size: u64) {
        core.virtual_size = virtual_size;
        self.put(core);
    }

    /// Drops everything that is cached: somebody else may change the image from now on, and requests are refused.
    /// Everything is on the medium.
    pub fn deactivate(&self) {
        self.forget_bitmaps();
        self.put(self.core().inactive());
    }

    /// Loads an inactive image as it is now. On failure it stays inactive.
    pub fn activate(&self, storage: Arc<dyn Storage>, settings: CoreSettings) -> Result<()> {
        // Those of a load that failed are older than what the other side may have written since.
        self.forget_bitmaps();
        let loaded = self.load(storage, settings);
        let core = loaded.inspect_err(|_| self.image.session.renew_latch())?;
        self.put(core);
        self.image.session.leave_chain(false);
        Ok(())
    }

    /// Puts a state in force.
    fn put(&self, core: Core) {
        self.image.drop_steps();
        let core = Arc::new(core);
        self.image.session.note_state(core.virtual_size);
        *locked(self.image.now.lock()) = Some(Arc::clone(&core));
        self.inside.borrow_mut().put(Some(core));
    }

    /// Loads the image again, as it is and was opened. See `reload_from`.
    pub fn reload(&self) -> Result<()> {
        let core = self.core();
        self.reload_from(Arc::clone(core.storage()), core.settings.clone())
    }

    /// Loads the image again from `storage`. On failure the old state is what the medium may no longer hold: it takes
    /// no more writes, and loading is tried again before the next one.
    pub fn reload_from(&self, storage: Arc<dyn Storage>, settings: CoreSettings) -> Result<()> {
        self.complete(move |image| image.put_from(Arc::clone(&storage), settings.clone()))
    }

    /// Loads the image again; on failure the old state stays in force.
    pub(crate) fn load_again(&self) -> Result<()> {
        let core = self.core();
        self.put_from(Arc::clone(core.storage()), core.settings.clone())
    }

    fn put_from(&self, storage: Arc<dyn Storage>, settings: CoreSettings) -> Result<()> {
        let core = self.load(storage, settings)?;
        self.put(core);
        Ok(())
    }
}
