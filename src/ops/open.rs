//! Opening: file, lock, header, chain, repair of a dirty image, in the order in which a refusal changes nothing.
//!
//! No file is opened because an image names it unless the caller allowed it: by flag for all recorded
//! files, or by a resolver for each. A missing backing format is never probed.

use super::below::located;
pub use super::check::Messages;
use super::check::{check, CheckOptions, CheckReport};
use super::data_file::DataFile;
use super::handle::{Handle, Manner};
use super::overlay::open_on_temporary;
use crate::error::{Error, ErrorKind, Result};
use crate::format::features::INCOMPAT_DIRTY;
use crate::format::Header;
use crate::image::{validate, CoreSettings, Disk, Image, RawDisk};
use crate::meta::read_header;
use crate::options::OpenOptions;
use crate::storage::file::{FileOptions, FileStorage};
use crate::storage::lock::Access;
use crate::storage::Storage;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What an open is allowed and asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// Change nothing.
    pub read_only: bool,
    /// A dirty image is an error rather than repaired.
    pub no_repair: bool,
    /// Read although somebody else writes.
    pub force_share: bool,
    /// Open the files that the image names.
    pub allow_recorded: bool,
    /// No guest I/O; no other file is opened.
    pub metadata_only: bool,
    /// Take no lock.
    pub no_lock: bool,
    /// The file is a raw disk.
    pub raw: bool,
    /// Ignore a recorded backing file.
    pub no_backing: bool,
    /// Another program has the image: no guest I/O and no repair until it is invalidated.
    pub inactive: bool,
}

/// Where the bytes of a node are.
#[derive(Clone)]
pub enum Origin {
    /// A file by name.
    Path(PathBuf),
    /// A descriptor, which is duplicated.
    Descriptor(i32),
    /// A caller's storage.
    Custom(Arc<dyn Storage>),
}

/// A file that an image names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// Its backing file.
    Backing,
    /// Its external data file.
    DataFile,
}

/// An image asks for a file that it names.
#[derive(Debug)]
pub struct ResolveRequest {
    /// Which one.
    pub named: Named,
    /// Of a backing file, its own: 1 for the top image's. Of a data file, that of the image that names it.
    pub depth: usize,
    /// As stored.
    pub recorded_name: OsString,
    /// Of a backing file, joined to the image's directory, when that is known.
    pub resolved_path: Option<PathBuf>,
    /// Recorded format.
    pub format: Option<String>,
}

/// What the caller gives for it.
pub struct ResolveAnswer {
    /// Where it is.
    pub origin: Origin,
    /// Its format; `None`: the recorded one.
    pub format: Option<String>,
}

impl Named {
    fn words(self) -> &'static str {
        match self {
            Named::Backing => "backing file",
            Named::DataFile => "data file",
        }
    }
}

/// What a file is to its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Image,
    DataFile,
}

/// A storage, and the file behind it where there is one.
pub(super) type StorageAndFile = (Arc<dyn Storage>, Option<Arc<FileStorage>>);
/// The nodes above, top first; a caller's storage has no identity and still counts as a link.
pub(super) type Seen = Vec<Option<(u64, u64)>>;
/// Decides about each file that an image names.
pub type Resolver<'a> = &'a mut dyn FnMut(&ResolveRequest) -> Result<ResolveAnswer>;

/// Parameters that hold for the whole chain.
pub struct Opening<'a> {
    /// Flags of the top node.
    pub flags: OpenFlags,
    /// Options of the top node.
    pub options: OpenOptions,
    /// Decides about recorded names; wins over `allow_recorded`.
    pub resolver: Option<Resolver<'a>>,
    /// Takes the messages of a repair.
    pub messages: Option<Messages<'a>>,
}

/// A node whose file is open, and whose backing file is not yet.
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) manner: Manner,
    pub(super) settings: CoreSettings,
    /// None of a raw disk.
    pub(super) header: Option<Header>,
    pub(super) data_file: Option<DataFile>,
}

impl Opening<'_> {
    /// Opens the node at `origin` with its chain.
    pub fn open(&mut self, origin: &Origin) -> Result<Handle> {
        if self.options.snapshot && !self.flags.read_only {
            return open_on_temporary(self, origin);
        }
        if self.flags.force_share && !self.flags.read_only {
            return Err(Error::invalid("QCOW2_OPEN_FORCE_SHARE needs QCOW2_OPEN_READ_ONLY"));
        }
        let mut seen = Vec::new();
        let (storage, file) = self.open_storage(origin, self.flags.read_only, Role::Image)?;
        self.open_node(origin, storage, file, &mut seen).map_err(|e| located(e, origin))
    }

    pub(super) fn access(&self, read_only: bool, role: Role) -> Access {
        match (read_only, self.flags.force_share, role) {
            _ if self.flags.inactive => Access::ReadShared,
            (true, true, _) => Access::ReadShared,
            (true, false, Role::Image) => Access::Read,
            (true, false, Role::DataFile) => Access::ReadData,
            (false, _, Role::Image) => Access::Write,
            (false, _, Role::DataFile) => Access::WriteData,
        }
    }

    /// Opens and locks the file of a node.
    pub(super) fn open_storage(
        &self,
        origin: &Origin,
        read_only: bool,
        role: Role,
    ) -> Result<StorageAndFile> {
        let options = self.file_options(read_only);
        let (file, shown) = match origin {
            Origin::Custom(storage) => {
                if !read_only && storage.traits().read_only {
                    return Err(Error::new(ErrorKind::ReadOnly, "the caller's storage takes no writes"));
                }
                return Ok((Arc::clone(storage), None));
            }
            Origin::Path(path) => {
                let shown = path.display().to_string();
                let file = FileStorage::open(path, options);
                (file.map_err(|e| Error::host(format_args!("Could not open '{shown}'"), &e))?, shown)
            }
            Origin::Descriptor(fd) => {
                let file = FileStorage::from_fd(*fd, options);
                let asked = if read_only { "reading" } else { "reading and writing" };
                let what = format!("file descriptor {fd} for {asked}");
                (file.map_err(|e| Error::host(what, &e))?, format!("fd {fd}"))
            }
        };
        let file = Arc::new(file);
        if !self.flags.no_lock {
            file.lock(self.access(read_only, role), &shown)?;
        }
        Ok((Arc::clone(&file) as Arc<dyn Storage>, Some(file)))
    }

    /// How the flags and the cache mode want a file opened.
    fn file_options(&self, read_only: bool) -> FileOptions {
        let cache = self.options.cache;
        FileOptions { writable: !read_only, create: false, direct: cache.direct(), no_sync: cache.no_sync() }
    }

    /// The file of `old` with the access that the flags ask for; `None` when it is open that way already. The
    /// lock goes over to the new one.
    pub(super) fn reopen_file(
        &self,
        old: &FileStorage,
        origin: &Origin,
        role: Role,
    ) -> Result<Option<Arc<FileStorage>>> {
        let options = self.file_options(self.flags.read_only);
        if (FileOptions { create: false, ..old.options() }) == options {
            return Ok(None);
        }
        let shown = shown_name(origin);
        let path = match origin {
            Origin::Path(path) => Some(&**path),
            _ => None,
        };
        let file = old.reopen(options, path);
        let file = Arc::new(file.map_err(|e| Error::host(format_args!("Could not reopen '{shown}'"), &e))?);
        file.take_lock_from(old, self.access(self.flags.read_only, role), &shown)?;
        Ok(Some(file))
    }

    /// Undoes `reopen_file`: `old` is in use again, with the access of these flags.
    pub(super) fn take_back(
        &self,
        new: &FileStorage,
        old: &FileStorage,
        origin: &Origin,
        role: Role,
    ) -> Result<()> {
        old.take_lock_from(new, self.access(self.flags.read_only, role), &shown_name(origin))
    }

    fn open_node(
        &mut self,
        origin: &Origin,
        storage: Arc<dyn Storage>,
        file: Option<Arc<FileStorage>>,
        seen: &mut Seen,
    ) -> Result<Handle> {
        let node = self.begin_node(origin, storage, file, seen)?;
        let below = match &node.header {
            Some(header) => self.open_backing(header, origin, seen)?,
            None => None,
        };
        self.finish_node(node, below)
    }

    /// What is done of a node before the ones below it are opened.
    pub(super) fn begin_node(
        &mut self,
        origin: &Origin,
        storage: Arc<dyn Storage>,
        file: Option<Arc<FileStorage>>,
        seen: &mut Seen,
    ) -> Result<Box<Node>> {
        let manner = Manner::new(self.flags, self.options.clone(), file);
        let settings = CoreSettings {
            options: self.options.clone(),
            read_only: self.flags.read_only,
            metadata_only: self.flags.metadata_only,
            backing: None,
            data_file: None,
        };
        let origin = origin.clone();
        let mut node = Box::new(Node { origin, storage, manner, settings, header: None, data_file: None });
        if !self.flags.raw {
            let (header, _) = read_header(&*node.storage)?;
            validate(&header, &node.settings)?;
            seen.push(node.storage.identity());
            node.data_file = self.open_data_file(&header, seen)?;
            node.header = Some(header);
        }
        Ok(node)
    }

    /// The rest: `below` is open.
    pub(super) fn finish_node(&mut self, node: Box<Node>, below: Option<Handle>) -> Result<Handle> {
        let Node { origin, storage, manner, mut settings, header, data_file } = *node;
        let Some(header) = header else {
            let raw = RawDisk::open(storage, settings.read_only, settings.options.cache.sync_each_write())?;
            if self.flags.inactive {
                raw.exclusive().deactivate();
            }
            return Ok(Handle::new(Disk::Raw(raw), origin, manner, None, None));
        };
        settings.data_file = data_file.as_ref().map(|d| Arc::clone(&d.storage));
        settings.backing = below.as_ref().map(Handle::shared_disk);
        settings.metadata_only |= self.flags.inactive;
        let repaired = self.repair_if_dirty(&header, &*storage, &origin)?;
        let image = Image::open(storage, settings)?;
        if self.flags.inactive {
            image.exclusive().deactivate();
        }
        let disk = Disk::Qcow2(Box::new(image));
        Ok(Handle::new(disk, origin, manner.after_repair(repaired), below, data_file))
    }

    /// Repairs a dirty image before its first request. The dirty bit goes last, after the counts.
    pub(super) fn repair_if_dirty(
        &mut self,
        header: &Header,
        storage: &dyn Storage,
        origin: &Origin,
    ) -> Result<Option<CheckReport>> {
        let flags = self.flags;
        let untouched = flags.read_only || flags.metadata_only || flags.inactive;
        if header.incompatible & INCOMPAT_DIRTY == 0 || untouched {
            return Ok(None);
        }
        if flags.no_repair {
            let text = "the image was not closed properly (dirty bit, incompatible feature bit 0) and QCOW2_OPEN_NO_REPAIR forbids its repair";
            return Err(Error::new(ErrorKind::Dirty, text));
        }
        let workers = if matches!(origin, Origin::Custom(_)) { 1 } else { self.options.check_threads };
        let options = CheckOptions { repair_leaks: true, repair_errors: true, workers };
        let messages = self.messages.as_mut().map(|messages| &mut **messages as Messages<'_>);
        sync_before_repair(storage)?;
        let report = check(storage, options, messages, &mut |_, _| true)?;
        let (now, _) = read_header(storage)?;
        if now.incompatible & INCOMPAT_DIRTY != 0 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "Could not repair dirty image ({} corruptions, {} check errors left)",
                    report.corruptions, report.check_errors
                ),
            ));
        }
        Ok(Some(report))
    }

    pub(super) fn resolve(&mut self, request: &ResolveRequest) -> Result<ResolveAnswer> {
        if let Some(resolver) = &mut self.resolver {
            return resolver(request);
        }
        if !self.flags.allow_recorded {
            return Err(Error::new(
                ErrorKind::NotAllowed,
                format!(
                    "the image records {} '{}', which needs QCOW2_OPEN_ALLOW_RECORDED or a resolver to be opened",
                    request.named.words(),
                    request.recorded_name.to_string_lossy()
                ),
            ));
        }
        let Some(path) = &request.resolved_path else {
            return Err(Error::unsupported(format!(
                "{} name '{}' is not a file name, or is relative to an image without a path",
                request.named.words(),
                request.recorded_name.to_string_lossy()
            )));
        };
        Ok(ResolveAnswer { origin: Origin::Path(path.clone()), format: None })
    }
}

/// What a killed writer left may be in the host's cache only: a repair that reuses clusters because of it must
/// not become durable before it.
pub(super) fn sync_before_repair(storage: &dyn Storage) -> Result<()> {
    storage.sync().map_err(|e| Error::failed_sync("sync before a repair", &e))
}

/// A node's name for messages.
pub(super) fn shown_name(origin: &Origin) -> String {
    match origin {
        Origin::Path(path) => path.display().to_string(),
        Origin::Descriptor(fd) => format!("fd {fd}"),
        Origin::Custom(_) => "custom storage".into(),
    }
}

/// The path that a recorded backing file's name stands for: relative to the directory of the image that records it, but
/// relative to the working directory after "file:", as in the reference implementation.
pub fn resolve_path(name: &OsStr, origin: &Origin) -> Option<PathBuf> {
    if let Some(rest) = name.as_bytes().strip_prefix(b"file:") {
        let rest = OsStr::from_bytes(rest);
        return match (rest.is_empty(), has_protocol(rest)) {
            (true, _) => None,
            // What is left is a file's name, whatever it begins with.
            (_, true) => Some(Path::new(".").join(rest)),
            (_, false) => Some(rest.into()),
        };
    }
    if name.is_empty() || has_protocol(name) {
        return None;
    }
    let path = Path::new(name);
    if path.is_absolute() {
        return Some(path.to_owned());
    }
    match origin {
        Origin::Path(image) => Some(image.parent().unwrap_or(Path::new("")).join(path)),
        _ => None,
    }
}

/// "nbd:...", "json:{...}": a colon before any slash.
pub(super) fn has_protocol(name: &OsStr) -> bool {
    let mut marks = name.as_bytes().iter().filter(|b| matches!(b, b':' | b'/'));
    marks.next() == Some(&b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_relative_to_the_image() {
        let image = Origin::Path("/a/b/top.qcow2".into());
        assert_eq!(resolve_path(OsStr::new("base"), &image), Some("/a/b/base".into()));
        assert_eq!(resolve_path(OsStr::new("/c/base"), &image), Some("/c/base".into()));
        assert_eq!(resolve_path(OsStr::new("file:x/base"), &image), Some("x/base".into()));
        assert_eq!(resolve_path(OsStr::new("file:a:b"), &image), Some("./a:b".into()));
        assert_eq!(resolve_path(OsStr::new("file:/c/a:b"), &image), Some("/c/a:b".into()));
        assert_eq!(resolve_path(OsStr::new("file:base"), &Origin::Descriptor(3)), Some("base".into()));
        assert_eq!(resolve_path(OsStr::new("file:"), &image), None);
        assert_eq!(resolve_path(OsStr::new("C:\\x"), &image), None);
        assert_eq!(resolve_path(OsStr::new(":x"), &image), None);
        assert_eq!(resolve_path(OsStr::new(""), &image), None);
        assert_eq!(resolve_path(OsStr::new("nbd://host/x"), &image), None);
        assert_eq!(resolve_path(OsStr::new("json:{\"a\": 1}"), &image), None);
        assert_eq!(resolve_path(OsStr::new("./a:b"), &image), Some("/a/b/./a:b".into()));
        assert_eq!(resolve_path(OsStr::new("base"), &Origin::Descriptor(3)), None);
    }
}
