//! A disk with what its later life needs: how it was opened, so that it can be reopened, checked and closed.

use super::backing;
use super::check::{check, CheckOptions, CheckReport, Messages};
use super::data_file::DataFile;
use super::open::{sync_before_repair, OpenFlags, Opening, Origin, Role};
use crate::error::{Error, ErrorKind, Result};
use crate::format::extensions::DATA_FILE;
use crate::format::Header;
use crate::image::{inactive_error, CoreSettings, Disk, Image};
use crate::meta::read_header;
use crate::options::OpenOptions;
use crate::storage::file::FileStorage;
use crate::storage::Storage;
use crate::sync::locked;
use arc_swap::ArcSwapOption;
use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard};

/// What changes when a handle is reopened.
pub(super) struct Manner {
    pub(super) flags: OpenFlags,
    pub(super) options: OpenOptions,
    pub(super) file: Option<Arc<FileStorage>>,
    /// The data file's, where it is a file.
    pub(super) data_file: Option<Arc<FileStorage>>,
    pub(super) repaired: Option<CheckReport>,
}

impl Manner {
    pub(super) fn new(flags: OpenFlags, options: OpenOptions, file: Option<Arc<FileStorage>>) -> Self {
        Manner { flags, options, file, data_file: None, repaired: None }
    }

    fn settle(&mut self, opening: Opening<'_>, files: NewFiles, repaired: Option<CheckReport>) {
        self.flags = opening.flags;
        self.options = opening.options;
        if files.image.is_some() {
            self.file = files.image;
        }
        if files.data.is_some() {
            self.data_file = files.data;
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
    /// Where the data file was opened.
    pub(super) data_origin: Option<Origin>,
}

/// What a reopen has opened anew; the others stay.
#[derive(Default)]
struct NewFiles {
    image: Option<Arc<FileStorage>>,
    data: Option<Arc<FileStorage>>,
}

impl Handle {
    pub(super) fn new(
        disk: Disk,
        origin: Origin,
        mut manner: Manner,
        below: Option<Handle>,
        data_file: Option<DataFile>,
    ) -> Handle {
        let data_origin = data_file.as_ref().map(|d| d.origin.clone());
        manner.data_file = data_file.and_then(|d| d.file);
        let below = ArcSwapOption::from(below.map(Arc::new));
        Handle { disk: Arc::new(disk), origin, manner: Mutex::new(manner), below, data_origin }
    }

    /// Opens `origin`.
    pub fn open(opening: &mut Opening<'_>, origin: &Origin) -> Result<Handle> {
        opening.open(origin)
    }

    pub(super) fn manner(&self) -> MutexGuard<'_, Manner> {
        locked(self.manner.lock())
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

    /// The handle `depth` disks below this one, 1 at least.
    pub fn node_below(&self, depth: u32) -> Option<Arc<Handle>> {
        let mut node = self.below()?;
        for _ in 1..depth {
            node = node.below()?;
        }
        Some(node)
    }

    /// Another backing file's handle.
    pub(super) fn put_below(&self, below: Option<Arc<Handle>>) {
        self.below.store(below);
    }

    /// Whether this disk or one below it is on a caller's storage.
    pub fn uses_callbacks(&self) -> bool {
        let custom = |origin: &Origin| matches!(origin, Origin::Custom(_));
        custom(&self.origin)
            || self.data_origin.as_ref().is_some_and(custom)
            || self.below().is_some_and(|b| b.uses_callbacks())
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
        changes: &[&OsStr],
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
                let alone = raw.exclusive();
                alone.settle()?;
                let opening = Opening { flags, options, resolver: None, messages };
                let files = self.reopen_files(&manner, &opening)?;
                let storage = as_storage(&files.image).unwrap_or_else(|| raw.storage());
                alone.replace(storage, read_only, opening.options.cache.sync_each_write());
                manner.settle(opening, files, None);
                return Ok(());
            }
            Disk::Qcow2(image) => image,
        };
        let alone = image.exclusive();
        alone.settle()?;
        let core = alone.core();
        let mut settings = CoreSettings { options: options.clone(), read_only, ..core.settings().clone() };
        crate::image::validate(&core.header(), &settings)?;
        let mut opening = Opening { flags, options, resolver: None, messages };
        let files = self.reopen_files(&manner, &opening)?;
        let storage = as_storage(&files.image).unwrap_or_else(|| Arc::clone(core.storage()));
        settings.data_file = as_storage(&files.data).or(settings.data_file);
        let done = header_now(&*storage, &core.header())
            .and_then(|header| opening.repair_if_dirty(&header, &*storage, &self.origin))
            .and_then(|repaired| alone.reload_from(storage, settings).map(|()| repaired));
        match done {
            Ok(repaired) => {
                manner.settle(opening, files, repaired);
                Ok(())
            }
            Err(e) => {
                self.take_back(&manner, &files)?;
                alone.reload()?;
                Err(e)
            }
        }
    }

    /// The handle's files with the access that `opening` asks for.
    fn reopen_files(&self, manner: &Manner, opening: &Opening<'_>) -> Result<NewFiles> {
        let image = reopen_file(manner.file.as_deref(), opening, &self.origin, Role::Image)?;
        let mut files = NewFiles { image, data: None };
        let Some(origin) = &self.data_origin else { return Ok(files) };
        match reopen_file(manner.data_file.as_deref(), opening, origin, Role::DataFile) {
            Ok(data) => files.data = data,
            Err(e) => {
                self.take_back(manner, &files)?;
                return Err(e);
            }
        }
        Ok(files)
    }

    /// Undoes `reopen_files`.
    fn take_back(&self, manner: &Manner, files: &NewFiles) -> Result<()> {
        let (flags, options) = (manner.flags, manner.options.clone());
        let back = Opening { flags, options, resolver: None, messages: None };
        if let (Some(new), Some(old)) = (&files.image, &manner.file) {
            back.take_back(new, old, &self.origin, Role::Image)?;
        }
        if let (Some(new), Some(old), Some(origin)) = (&files.data, &manner.data_file, &self.data_origin) {
            back.take_back(new, old, origin, Role::DataFile)?;
        }
        Ok(())
    }

    /// Threads that a check of this image may use. A caller's storage is called on the caller's thread only.
    pub fn check_workers(&self) -> u32 {
        match self.disk() {
            Disk::Qcow2(image) if !self.uses_callbacks() => image.core().settings().options.check_threads,
            _ => 1,
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
        let alone = image.exclusive();
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
            Err(e) if e.is_failed_sync() => Err(core.give_up(e)),
            report => alone.reload_from(storage, core.settings().clone()).and(report),
        }
    }

    /// Brings everything to the medium, reports the first failure, and lets go of the file.
    pub fn close(self) -> Result<()> {
        match self.disk() {
            _ if self.flags().inactive => Ok(()),
            Disk::Qcow2(image) => close_image(image),
            Disk::Raw(raw) => raw.exclusive().settle(),
        }
    }
}

/// A file with another access; `None` when it stays as it is, or is not a file.
fn reopen_file(
    old: Option<&FileStorage>,
    opening: &Opening<'_>,
    origin: &Origin,
    role: Role,
) -> Result<Option<Arc<FileStorage>>> {
    match (old, origin) {
        (Some(old), _) => opening.reopen_file(old, origin, role),
        (None, Origin::Custom(storage)) if !opening.flags.read_only && storage.traits().read_only => {
            Err(Error::new(ErrorKind::ReadOnly, "the caller's storage takes no writes"))
        }
        (None, _) => Ok(None),
    }
}

/// The header as the file has it now, which somebody may have changed where the handle had no lock to prevent it.
fn header_now(storage: &dyn Storage, old: &Header) -> Result<Header> {
    let (header, _) = read_header(storage)?;
    if header.extension(DATA_FILE) != old.extension(DATA_FILE)
        || backing::names(&header) != backing::names(old)
    {
        return Err(Error::invalid("the image names another data file or backing file: open it anew"));
    }
    Ok(header)
}

fn as_storage(file: &Option<Arc<FileStorage>>) -> Option<Arc<dyn Storage>> {
    file.as_ref().map(|f| Arc::clone(f) as Arc<dyn Storage>)
}

/// Settles an image that nobody will use any more.
pub fn close_image(image: &Image) -> Result<()> {
    let alone = image.exclusive();
    if alone.core().is_read_only() {
        return Ok(());
    }
    alone.settle()
}
