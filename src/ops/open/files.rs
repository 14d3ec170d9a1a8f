//! The storage of a node: opened and locked, and opened again with another access.

use super::origin::Origin;
use super::params::Opening;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::access::{Access, FileOptions};
use crate::storage::file::FileStorage;
use crate::storage::{check_access, names, Storage};
use std::sync::Arc;

/// What a file is to its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum Role {
    Image,
    DataFile,
}

impl Opening<'_> {
    /// What a node's file is locked for.
    pub(in crate::ops) fn access(&self, read_only: bool, role: Role) -> Access {
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
    ) -> Result<Arc<dyn Storage>> {
        let storage = storage_at(origin, self.file_options(read_only))?;
        if !self.flags.no_lock {
            storage.lock(self.access(read_only, role), &origin.shown())?;
        }
        Ok(storage)
    }

    /// How the flags and the cache mode want a file opened.
    fn file_options(&self, read_only: bool) -> FileOptions {
        let cache = self.options.cache;
        FileOptions { writable: !read_only, create: false, direct: cache.direct(), no_sync: cache.no_sync() }
    }

    /// The file of `old` with the access that the flags ask for; `old` itself when it is open that way already. The
    /// lock goes over to the new one.
    pub(in crate::ops) fn reopen_storage(
        &self,
        old: &Arc<dyn Storage>,
        origin: &Origin,
        role: Role,
    ) -> Result<Arc<dyn Storage>> {
        let read_only = self.flags.read_only;
        let shown = origin.shown();
        let Some(new) = old.reopen(self.file_options(read_only), &shown)? else { return Ok(Arc::clone(old)) };
        new.change_lock(self.access(read_only, role), &shown)?;
        Ok(new)
    }

    /// Undoes `reopen_storage`: `old` is in use again, with the access of these flags.
    pub(in crate::ops) fn take_back(
        &self,
        new: &Arc<dyn Storage>,
        old: &Arc<dyn Storage>,
        origin: &Origin,
        role: Role,
    ) -> Result<()> {
        match Arc::ptr_eq(new, old) {
            true => Ok(()),
            false => old.change_lock(self.access(self.flags.read_only, role), &origin.shown()),
        }
    }
}

/// Opens what is at `origin`.
pub(in crate::ops) fn storage_at(origin: &Origin, options: FileOptions) -> Result<Arc<dyn Storage>> {
    let writable = options.writable;
    let (opened, what) = match origin {
        Origin::Custom(storage) => {
            check_access(storage.traits(), options.writable)?;
            return Ok(Arc::clone(storage));
        }
        Origin::Uri(uri) => {
            let (name, protocol) = (uri.to_string_lossy(), names::protocol(uri).unwrap_or_default());
            let protocol = protocol.to_string_lossy();
            let summary = format!("Could not open '{name}': nothing here opens protocol '{protocol}'");
            return Err(Error::unsupported(summary).about_file(name));
        }
        Origin::Path(path) => {
            (FileStorage::open(path, options), format!("Could not open '{}'", path.display()))
        }
        Origin::Descriptor(fd) => {
            let asked = if options.writable { "reading and writing" } else { "reading" };
            (FileStorage::from_fd(*fd, options), format!("file descriptor {fd} for {asked}"))
        }
    };
    match (opened, origin) {
        (Ok(file), _) => Ok(Arc::new(file)),
        (Err(e), Origin::Path(path)) if !writable && e.raw_os_error() == Some(libc::EISDIR) => {
            let rule = format!("'file' driver requires '{}' to be a regular file", path.display());
            Err(Error::new(ErrorKind::Host(libc::EISDIR), rule).about_file(origin.shown()))
        }
        (Err(e), _) => Err(Error::host(what, &e).about_file(origin.shown())),
    }
}
