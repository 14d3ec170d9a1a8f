//! A disk with what its later life needs: how it was opened, so that it can be reopened, checked and closed.

use super::check::{check, CheckOptions, CheckReport, Messages};
use super::open::{sync_before_repair, OpenFlags, Opening, Origin};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{inactive_error, CoreSettings, Disk, Image};
use crate::options::OpenOptions;
use crate::storage::file::FileStorage;
use crate::storage::Storage;
use arc_swap::ArcSwapOption;
use std::sync::{Arc, Mutex, MutexGuard};

/// What changes when a handle is reopened.
pub(super) struct Manner {
    pub(super) flags: OpenFlags,
    pub(super) options: OpenOptions,
    pub(super) file: Option<Arc<FileStorage>>,
    pub(super) repaired: Option<CheckReport>,
}

impl Manner {
    pub(super) fn new(flags: OpenFlags, options: OpenOptions, file: Option<Arc<FileStorage>>) -> Self {
        Manner { flags, options, file, repaired: None }
    }

    fn settle(
        &mut self,
        opening: Opening<'_>,
        file: Option<Arc<FileStorage>>,
        repaired: Option<CheckReport>,
    ) {
        self.flags = opening.flags;
        self.options = opening.options;
        if file.is_some() {
            self.file = file;
        }
        if repaired.is_some() {
            self.repaired = repaired;
        }
    }

    pub(super) fn after_repair(self, repaired: Option<CheckReport>) -> Self {
        Manner { repaired, ..self }
    }
}

/// An open disk.
pub struct Handle {
    disk: Arc<Disk>,
    origin: Origin,
    manner: Mutex<Manner>,
    /// The backing file's handle; its disk is the one that holes of this disk read from.
    below: ArcSwapOption<Handle>,
}

impl Handle {
    pub(super) fn new(disk: Disk, origin: Origin, manner: Manner, below: Option<Handle>) -> Handle {
        let below = ArcSwapOption::from(below.map(Arc::new));
        Handle { disk: Arc::new(disk), origin, manner: Mutex::new(manner), below }
    }

    /// Opens `origin`.
    pub fn open(opening: &mut Opening<'_>, origin: &Origin) -> Result<Handle> {
        opening.open(origin)
    }

    pub(super) fn manner(&self) -> MutexGuard<'_, Manner> {
        self.manner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The disk.
    #[inline]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(super) fn shared_disk(&self) -> Arc<Disk> {
        Arc::clone(&self.disk)
    }

    /// The backing file's handle.
    pub fn below(&self) -> Option<Arc<Handle>> {
        self.below.load_full()
    }

    /// Another backing file's handle.
    pub(super) fn put_below(&self, below: Option<Arc<Handle>>) {
        self.below.store(below);
    }

    /// Whether this disk or one below it is on a caller's storage.
    pub fn uses_callbacks(&self) -> bool {
        matches!(self.origin, Origin::Custom(_)) || self.below().is_some_and(|b| b.uses_callbacks())
    }

    /// Where it was opened.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The flags in force.
    pub fn flags(&self) -> OpenFlags {
        self.manner().flags
    }

    /// The options in force.
    pub fn options(&self) -> OpenOptions {
        self.manner().options.clone()
    }

    /// What the repair at the last writable open did.
    pub fn repaired(&self) -> Option<CheckReport> {
        self.manner().repaired
    }

    /// The host's descriptor of the file, where there is one.
    pub fn descriptor(&self) -> Option<i32> {
        self.manner().file.as_ref().map(|f| f.descriptor())
    }

    /// Changes flags and run-time options. Everything is on the medium before the change; on failure the
    /// handle goes on as it was, or, when even that fails, refuses everything.
    pub fn reopen(
        &self,
        read_only: bool,
        no_repair: bool,
        changes: &[&str],
        messages: Option<super::open::Messages<'_>>,
    ) -> Result<()> {
        let mut manner = self.manner();
        if manner.flags.inactive {
            return Err(inactive_error());
        }
        let mut options = manner.options.clone();
        options.update(changes)?;
        let flags = OpenFlags { read_only, no_repair, ..manner.flags };
        let image = match self.disk() {
            Disk::Raw(raw) => {
                raw.flush()?;
                let opening = Opening { flags, options, resolver: None, messages };
                let file = reopen_file(&manner, &opening, &self.origin)?;
                let storage = file.as_ref().map_or(raw.storage(), |f| Arc::clone(f) as Arc<dyn Storage>);
                raw.replace(storage, read_only, opening.options.cache.sync_each_write());
                manner.settle(opening, file, None);
                return Ok(());
            }
            Disk::Qcow2(image) => image,
        };
        let alone = image.alone();
        alone.settle()?;
        let core = alone.core();
        let settings = CoreSettings { options: options.clone(), read_only, ..core.settings().clone() };
        crate::image::validate(&core.header(), &settings)?;
        let mut opening = Opening { flags, options, resolver: None, messages };
        let file = reopen_file(&manner, &opening, &self.origin)?;
        let storage = file.as_ref().map_or(Arc::clone(core.storage()), |f| Arc::clone(f) as Arc<dyn Storage>);
        let done = opening
            .repair_if_dirty(&core.header(), &*storage)
            .and_then(|repaired| alone.reload(storage, settings).map(|()| repaired));
        match done {
            Ok(repaired) => {
                manner.settle(opening, file, repaired);
                Ok(())
            }
            Err(e) => {
                if let (Some(new), Some(old)) = (&file, &manner.file) {
                    let (flags, options) = (manner.flags, manner.options.clone());
                    let back = Opening { flags, options, resolver: None, messages: None };
                    back.take_back(new, old, &self.origin)?;
                }
                alone.reload(Arc::clone(core.storage()), core.settings().clone())?;
                Err(e)
            }
        }
    }

    /// Checks the image, and repairs it when asked. Requests wait; caches are dropped.
    pub fn check(
        &self,
        options: CheckOptions,
        messages: Option<Messages<'_>>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<CheckReport> {
        let Disk::Qcow2(image) = self.disk() else {
            return Err(Error::unsupported("This image format does not support checks"));
        };
        let repairs = options.repair_leaks || options.repair_errors;
        let alone = image.alone();
        let core = alone.core();
        core.check_active()?;
        if repairs && core.is_read_only() {
            return Err(Error::new(ErrorKind::ReadOnly, "repairing needs a writable open"));
        }
        alone.settle()?;
        let storage = Arc::clone(core.storage());
        if !repairs {
            return check(&*storage, options, messages, progress);
        }
        let report =
            sync_before_repair(&*storage).and_then(|()| check(&*storage, options, messages, progress));
        match report {
            // A sync may have failed, and what was written before it be lost: only a new open can tell.
            Err(e) if matches!(e.kind(), ErrorKind::Host(_)) => Err(core.give_up(e)),
            report => alone.reload(storage, core.settings().clone()).and(report),
        }
    }

    /// Brings everything to the medium, reports the first failure, and lets go of the file.
    pub fn close(self) -> Result<()> {
        match self.disk() {
            _ if self.flags().inactive => Ok(()),
            Disk::Qcow2(image) => close_image(image),
            Disk::Raw(raw) => raw.flush(),
        }
    }
}

/// The handle's file with another access; `None` when it stays as it is, or is not a file.
fn reopen_file(manner: &Manner, opening: &Opening<'_>, origin: &Origin) -> Result<Option<Arc<FileStorage>>> {
    match (&manner.file, origin) {
        (Some(old), _) => opening.reopen_file(old, origin),
        (None, Origin::Custom(storage)) if !opening.flags.read_only && storage.traits().read_only => {
            Err(Error::new(ErrorKind::ReadOnly, "the caller's storage takes no writes"))
        }
        (None, _) => Ok(None),
    }
}

/// Settles an image that nobody will use any more.
pub fn close_image(image: &Image) -> Result<()> {
    let alone = image.alone();
    if alone.core().is_read_only() {
        return Ok(());
    }
    alone.settle()
}
