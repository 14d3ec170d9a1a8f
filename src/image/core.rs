//! The state of an open image: everything that was loaded from the medium, and what may be done with it.

use super::bitmaps::{self, Tracker};
use super::chain::{Below, Chain};
use super::cipher::Cipher;
use super::inflation::Inflation;
use super::payload::Payload;
use super::session::Session;
use super::snapshot::{snapshot_header, SnapshotRef};
use super::unlock::{encryption, no_secret};
use super::{inactive_error, Disk};
use crate::alloc::{Allocator, Pass, Shared};
use crate::codec::{Codec, Compressor};
use crate::error::{Error, ErrorKind, Result};
use crate::format::extensions;
use crate::format::features::*;
use crate::format::snapshot::Snapshot;
use crate::format::{index_in_memory, Geometry, GuestOffset, Header, Structure};
use crate::map::Map;
use crate::meta::guard::Owner;
use crate::meta::snapshot_table::{index_snapshots, load_current_snapshots, load_snapshots};
use crate::meta::{HeaderPage, OverlapGuard};
use crate::options::{cache_sizes, DetectZeroes, OpenOptions};
use crate::planted::{planted, Plant};
use crate::storage::event::Event;
use crate::storage::medium::Medium;
use crate::storage::pool::Pool;
use crate::storage::Storage;
use crate::sync::locked;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// How an image is opened, below paths and locks.
#[derive(Clone)]
pub struct CoreSettings {
    /// Caches, cache mode, checks.
    pub options: OpenOptions,
    /// No write is made.
    pub read_only: bool,
    /// No guest I/O: for looks at the header and for checks.
    pub metadata_only: bool,
    /// What holes read from.
    pub backing: Option<Disk>,
    /// Where guest data is, for an image with an external data file.
    pub data_file: Option<Arc<dyn Storage>>,
    /// What guest data is encrypted with.
    pub cipher: Option<Arc<Cipher>>,
}

/// The parts that serve guest I/O.
pub struct Io {
    /// Guest to host.
    pub map: Map,
    /// There for a writable image.
    pub alloc: Option<Arc<Allocator>>,
}

/// See the module.
pub struct Core {
    pub(super) session: Arc<Session>,
    pub(super) shared: Shared,
    /// Guest bytes.
    pub(super) payload: Payload,
    pub(super) geometry: Geometry,
    pub(super) virtual_size: u64,
    pub(super) codec: Codec,
    pub(super) inflation: Inflation,
    pub(super) compressors: Pool<Compressor>,
    pub(super) settings: CoreSettings,
    pub(super) io: Option<Io>,
    /// What knows of changes, of a writable image that has bitmaps.
    pub(super) bitmaps: Option<Arc<Tracker>>,
    /// Somebody else may have the image: there is no guest I/O until it is read anew.
    inactive: bool,
    /// What reads pass through where the image has holes.
    pub(super) chain: Option<Chain<Core>>,
    /// The data file shows what the disk shows.
    pub(super) raw_data_file: bool,
    /// A write has nothing to do but to write: no zero detection, no sync or write-through after it.
    pub(super) writes_are_plain: AtomicBool,
    /// Why nothing is to be changed before an earlier change is complete (`unfinished`).
    suspended: OnceLock<Error>,
    /// What is read where the image has holes becomes the image's own.
    pub(super) copies_on_read: bool,
    /// A read has nothing to do but to read: nothing becomes the image's own, nothing is encrypted.
    pub(super) reads_are_plain: bool,
    /// The snapshot table, once somebody has asked for it.
    snapshots: Mutex<Option<Arc<[Snapshot]>>>,
}

/// Everything that can be said against an open from the header alone, before a byte is written.
pub(crate) fn validate(header: &Header, settings: &CoreSettings) -> Result<()> {
    header.check_tables(settings.metadata_only)?;
    let geometry = header.geometry();
    settings.options.check_geometry(&geometry)?;
    if settings.metadata_only {
        return Ok(());
    }
    let encrypted = encryption(header)?.is_some();
    if !settings.read_only && header.incompatible & INCOMPAT_CORRUPT != 0 {
        let text = "qcow2: Image is corrupt; cannot be opened read/write";
        return Err(Error::new(ErrorKind::MarkedCorrupt, text));
    }
    if header.autoclear & AUTOCLEAR_RAW_DATA != 0 && !geometry.external_data {
        return Err(Error::invalid("data-file-raw requires a data file"));
    }
    if encrypted && header.autoclear & AUTOCLEAR_RAW_DATA != 0 {
        // Such a file shows the disk to whoever reads it alone.
        return Err(Error::unsupported("an encrypted image has no raw data file"));
    }
    if !settings.read_only && SnapshotRef::of(&settings.options).is_some() {
        return Err(Error::invalid("a snapshot can only be read: it needs a read-only open"));
    }
    if settings.read_only && settings.options.copy_on_read {
        return Err(Error::invalid("Can't use copy-on-read on read-only device"));
    }
    lazy_in_force(header, &settings.options)?;
    cache_sizes(&settings.options, &geometry, header.virtual_size).map(drop)
}

/// Fails where the image has to be repaired first, or lacks its data file.
fn check_ready(header: &Header, medium: &Medium, settings: &CoreSettings) -> Result<()> {
    if settings.metadata_only {
        return Ok(());
    }
    if !settings.read_only && header.incompatible & INCOMPAT_DIRTY != 0 {
        let text = "the dirty bit is set: the image must be repaired before it is written";
        return Err(Error::new(ErrorKind::Dirty, text));
    }
    if encryption(header)?.is_some() && settings.cipher.is_none() {
        return Err(no_secret());
    }
    if header.geometry().external_data && medium.data_file().is_none() {
        return Err(Error::invalid("'data-file' is required for this image"));
    }
    Ok(())
}

impl Core {
    /// Loads an image whose header is `header`. For guest I/O the image must be clean or opened read-only.
    pub(crate) fn load(
        medium: Arc<Medium>,
        session: Arc<Session>,
        header: Header,
        sector: Vec<u8>,
        settings: CoreSettings,
    ) -> Result<Core> {
        let header = match SnapshotRef::of(&settings.options) {
            Some(wanted) => snapshot_header(medium.storage(), header, wanted)?,
            None => header,
        };
        validate(&header, &settings)?;
        check_ready(&header, &medium, &settings)?;
        let geometry = header.geometry();
        let virtual_size = header.virtual_size;
        let codec = Codec::from_type(header.compression_type);
        let checked = if settings.read_only { 0 } else { checked_owners(&settings.options) };
        let header_page = Arc::new(HeaderPage::new(Arc::clone(&medium), header.clone(), sector));
        let shared = Shared {
            guard: Arc::new(OverlapGuard::new(&geometry, checked, Some(Arc::clone(&header_page)))),
            header: header_page,
            medium,
            readers: Arc::clone(&session.readers),
        };
        let io = (!settings.metadata_only).then(|| Self::load_io(&shared, &header, &settings)).transpose()?;
        let alloc = io.as_ref().and_then(|io: &Io| io.alloc.as_deref()).filter(|_| !settings.read_only);
        let load = |alloc| session.bitmaps(|| bitmaps::load(&shared, &header, alloc, &settings.options));
        let bitmaps = alloc.map_or(Ok(None), |alloc| load(Some(alloc)))?;
        let raw_data_file = geometry.external_data && header.autoclear & AUTOCLEAR_RAW_DATA != 0;
        let options = &settings.options;
        let cipher = settings.cipher.clone().filter(|_| header.crypt_method != 0);
        let writes_are_plain = !settings.read_only
            && cipher.is_none()
            && options.detect_zeroes == DetectZeroes::Off
            && !options.cache.sync_each_write()
            && !options.metadata_writethrough;
        let copies_on_read = options.copy_on_read;
        let reads_are_plain = !copies_on_read && cipher.is_none();
        Ok(Core {
            session,
            payload: Payload::new(&shared.medium, &shared.guard, geometry.external_data, cipher),
            shared,
            geometry,
            virtual_size,
            codec,
            inflation: Inflation::new(codec, &geometry),
            compressors: Pool::default(),
            settings,
            io,
            bitmaps,
            inactive: false,
            chain: None,
            raw_data_file,
            writes_are_plain: AtomicBool::new(writes_are_plain),
            suspended: OnceLock::new(),
            copies_on_read,
            reads_are_plain,
            snapshots: Mutex::default(),
        })
    }

    /// The same without anything cached and without guest I/O. Everything is on the medium.
    pub(super) fn inactive(&self) -> Core {
        Core {
            session: Arc::clone(&self.session),
            payload: Payload::new(&self.shared.medium, &self.shared.guard, self.geometry.external_data, None),
            shared: self.shared.clone(),
            geometry: self.geometry,
            virtual_size: self.virtual_size,
            codec: self.codec,
            inflation: Inflation::new(self.codec, &self.geometry),
            compressors: Pool::default(),
            settings: self.settings.clone(),
            io: None,
            bitmaps: None,
            inactive: true,
            chain: None,
            raw_data_file: self.raw_data_file,
            writes_are_plain: AtomicBool::new(false),
            suspended: OnceLock::new(),
            copies_on_read: false,
            reads_are_plain: false,
            snapshots: Mutex::default(),
        }
    }

    fn load_io(shared: &Shared, header: &Header, settings: &CoreSettings) -> Result<Io> {
        let geometry = header.geometry();
        let sizes = cache_sizes(&settings.options, &geometry, header.virtual_size)?;
        let alloc = if settings.read_only {
            None
        } else {
            // What a killed writer left may be in the host's cache only: durable before anything relies on it.
            shared.medium.sync_step()?;
            let lazy = lazy_in_force(header, &settings.options)?;
            let blocks = index_in_memory(sizes.refcount_cache_bytes >> geometry.cluster_bits);
            index_other_tables(shared, header)?;
            let ahead = settings.options.refcounts_ahead.flushes_before();
            let pass = Pass {
                requests: settings.options.passes_discard_request(),
                snapshots: settings.options.pass_discard_snapshot,
                others: settings.options.pass_discard_other,
            };
            Some(Arc::new(Allocator::open(shared.clone(), lazy, pass, blocks, ahead)?))
        };
        let seconds = u64::from(settings.options.cache_clean_interval_seconds);
        let interval = (seconds > 0).then(|| Duration::from_secs(seconds));
        let map = Map::open(shared.clone(), alloc.clone(), &sizes, interval)?;
        Ok(Io { map, alloc })
    }

    /// The parts for guest I/O, or why there are none.
    #[inline]
    pub(super) fn io(&self) -> Result<&Io> {
        match &self.io {
            Some(io) => Ok(io),
            None if self.inactive => Err(inactive_error()),
            None => Err(Error::new(
                ErrorKind::NotAllowed,
                "guest I/O on a handle that was opened for metadata only",
            )),
        }
    }

    /// Fails after a failed sync.
    #[inline]
    pub(crate) fn check_latch(&self) -> Result<()> {
        self.shared.medium.latch().check()
    }

    /// Fails after a failed sync, and while an earlier change is not complete.
    #[inline]
    pub(super) fn check_writable(&self) -> Result<()> {
        self.check_latch()?;
        match self.suspended.get() {
            None => Ok(()),
            Some(why) => Err(unfinished(why.clone())),
        }
    }

    /// Why nothing is changed.
    pub(super) fn suspended(&self) -> Option<&Error> {
        self.suspended.get()
    }

    /// Changes nothing more: another state is to take its place (U1).
    pub(super) fn suspend(&self, why: Error) {
        self.writes_are_plain.store(false, Ordering::SeqCst);
        let _ = self.suspended.set(why);
    }

    /// Runs or joins a barrier that starts after this call.
    pub(crate) fn flush(&self) -> Result<()> {
        self.session.flusher.join(|| self.barrier())
    }

    /// Everything that was stored is durable when it returns. One caller at a time.
    pub(crate) fn barrier(&self) -> Result<()> {
        match &self.io {
            Some(Io { map, alloc: Some(alloc) }) => {
                self.storage().event(Event::FlushToOs);
                self.storage().event(Event::FlushToDisk);
                map.barrier()?;
                if alloc.is_lazy() && planted(Plant::DirtyBitAfterEntry) {
                    self.shared.header.mark_dirty()?;
                }
                alloc.settle_due()
            }
            _ => Ok(()),
        }
    }

    /// Brings everything to the medium and leaves the image clean. The caller is alone.
    pub(crate) fn settle(&self) -> Result<()> {
        if self.inactive {
            return Ok(());
        }
        self.shared.medium.latch().check()?;
        let Some(Io { map, alloc: Some(alloc) }) = &self.io else { return Ok(()) };
        alloc.settling(|| map.barrier())?;
        if planted(Plant::CleanBeforeCounts) {
            self.shared.header.mark_clean()?;
        }
        alloc.settle_all()?;
        if self.shared.header.is_dirty() {
            self.shared.medium.sync_step()?;
            self.shared.header.mark_clean()?;
        }
        Ok(())
    }

    /// Frees what compressed and encrypted requests have kept for the next ones.
    pub(super) fn forget_inflated(&self) {
        self.inflation.clear();
        self.compressors.clear();
        self.payload.forget();
    }

    /// The snapshots, in table order: read once for all who ask, for a list may be long. Called inside the gate.
    pub fn snapshots(&self) -> Result<Arc<[Snapshot]>> {
        self.check_active()?;
        let mut known = locked(self.snapshots.lock());
        if let Some(list) = &*known {
            return Ok(Arc::clone(list));
        }
        let list = match self.is_read_only() {
            true => load_current_snapshots(&**self.storage(), self.header())?.1,
            false => load_snapshots(&**self.storage(), &self.header())?.0,
        };
        let list: Arc<[Snapshot]> = list.into();
        *known = Some(Arc::clone(&list));
        Ok(list)
    }

    /// Forgets the snapshots that somebody has asked for.
    pub(super) fn forget_snapshots(&self) {
        *locked(self.snapshots.lock()) = None;
    }

    /// Nothing more is written, because of `why`: only a new open helps.
    pub fn give_up(&self, why: Error) -> Error {
        self.shared.medium.latch().close(why)
    }

    /// Sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// One past the last byte of the disk.
    pub(crate) fn disk_end(&self) -> GuestOffset {
        GuestOffset(self.virtual_size)
    }

    /// Virtual size in bytes.
    pub fn length(&self) -> u64 {
        self.virtual_size
    }

    /// The header as it stands.
    pub fn header(&self) -> Header {
        self.shared.header.header()
    }

    /// The image's storages.
    pub(crate) fn medium(&self) -> &Medium {
        &self.shared.medium
    }

    /// The image file.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        self.shared.medium.storage()
    }

    /// What holes read from.
    pub fn backing(&self) -> Option<&Disk> {
        self.settings.backing.as_ref()
    }

    /// How the image was opened.
    pub fn settings(&self) -> &CoreSettings {
        &self.settings
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.settings.read_only
    }

    /// Whether guest I/O shows an internal snapshot.
    pub fn is_snapshot(&self) -> bool {
        SnapshotRef::of(&self.settings.options).is_some()
    }

    /// Whether refcounts are lazy in this session.
    pub fn is_lazy(&self) -> bool {
        match &self.io {
            Some(Io { alloc: Some(alloc), .. }) => alloc.is_lazy(),
            _ => {
                let header = self.header();
                self.settings.options.lazy_refcounts.unwrap_or(header.compatible & COMPAT_LAZY_REFCOUNTS != 0)
            }
        }
    }

    /// Fails while another program may have the image.
    pub fn check_active(&self) -> Result<()> {
        match self.inactive {
            true => Err(inactive_error()),
            false => Ok(()),
        }
    }

    /// Whether the corrupt bit is set.
    pub fn is_corrupt(&self) -> bool {
        self.shared.header.is_corrupt()
    }
}

impl Below for Core {
    #[inline(always)]
    fn mapping(&self) -> Option<&Map> {
        self.io.as_ref().map(|io| &io.map)
    }

    #[inline(always)]
    fn payload(&self) -> &Payload {
        &self.payload
    }

    #[inline(always)]
    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    #[inline(always)]
    fn cluster_bits(&self) -> u32 {
        self.geometry.cluster_bits
    }
}

/// Why a request has to wait for steps that cannot be done.
pub(super) fn unfinished(why: Error) -> Error {
    why.within("an earlier change of the image could not be completed yet")
}

/// Whether refcounts are lazy: the option if given, else the image's compatible bit.
fn lazy_in_force(header: &Header, options: &OpenOptions) -> Result<bool> {
    let wanted = options.lazy_refcounts.unwrap_or(header.compatible & COMPAT_LAZY_REFCOUNTS != 0);
    if wanted && header.version < 3 {
        return Err(Error::invalid(
            "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level",
        ));
    }
    Ok(wanted)
}

fn checked_owners(options: &OpenOptions) -> u16 {
    let checks = options.overlap_checks();
    let owners = Structure::ALL.into_iter().filter(|s| checks.contains(*s)).map(Owner::of);
    owners.fold(0, |mask, owner| mask | owner.0)
}

/// Adds snapshot tables and the bitmap directory to the overlap index.
fn index_other_tables(shared: &Shared, header: &Header) -> Result<()> {
    let guard = &shared.guard;
    // Without their bit the bitmaps are void: a repair has given their clusters to others, or will.
    let bitmaps = header.extension(extensions::BITMAPS);
    if let Some(data) = bitmaps.filter(|_| header.autoclear & AUTOCLEAR_BITMAPS != 0) {
        let pointer = extensions::bitmaps(data)?;
        // A directory that no reader accepts is nobody's, and may claim to be larger than memory.
        if crate::format::bitmap::check_pointer(&pointer, &header.geometry()).is_ok() {
            guard.add(Owner::BITMAP_DIRECTORY, pointer.directory_offset, pointer.directory_bytes);
        }
    }
    super::unlock::index_header(guard, header)?;
    index_snapshots(guard, &**shared.medium.storage(), header)
}
