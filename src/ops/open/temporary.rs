//! The temporary image of `snapshot=on`.

use super::origin::Origin;
use super::params::Opening;
use crate::disk::{Files, Parts};
use crate::error::{Error, Result};
use crate::format::header::MAX_BACKING_NAME_BYTES;
use crate::ops::formats::Driver;
use crate::ops::handle::{Handle, HandleState};
use crate::options::{CacheMode, CreateOptions, OpenOptions};
use crate::storage::file::{FileOptions, FileStorage};
use crate::storage::Storage;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

impl Opening<'_> {
    /// Opens `origin` read-only, and on top of it an image in a file without a name.
    pub(super) fn open_on_temporary(&mut self, origin: &Origin) -> Result<Handle> {
        if self.flags.inactive {
            return Err(Error::invalid("snapshot=on cannot be given with QCOW2_OPEN_INACTIVE"));
        }
        // What such a handle can change is the image's own metadata, which a temporary image on top does not have.
        if self.flags.metadata_only {
            return Err(Error::invalid(
                "snapshot=on cannot be given with QCOW2_OPEN_METADATA_ONLY, unless read-only",
            ));
        }
        let below = self.open_below_temporary(origin)?;
        let image: Arc<dyn Storage> = Arc::new(temporary_storage()?);
        let format = Driver::QCOW2;
        format.create(&*image, None, below.disk().length(), &description(origin, &below), None)?;
        let (flags, options) = (self.flags, self.options.clone());
        // Nothing of it outlives the handle, so nothing of it need be durable.
        self.flags.format = format;
        self.options = OpenOptions {
            cache: CacheMode::Unsafe,
            data_file: None,
            snapshot_id: None,
            snapshot_name: None,
            ..options.clone()
        };
        let draft = (format.draft)(Arc::clone(&image), self.settings());
        let state = HandleState::new(self.flags, self.options.clone(), Files { image, data: None });
        (self.flags, self.options) = (flags, options);
        let parts = Parts { backing: Some(below.disk().clone()), ..Parts::default() };
        Ok(Handle::new(draft?.open(parts)?, origin.clone(), state, Some(below), None))
    }

    fn open_below_temporary(&mut self, origin: &Origin) -> Result<Handle> {
        let below = OpenOptions {
            cache: self.options.cache,
            data_file: self.options.data_file.clone(),
            snapshot_id: self.options.snapshot_id.clone(),
            snapshot_name: self.options.snapshot_name.clone(),
            ..OpenOptions::default()
        };
        let flags = self.flags;
        self.flags.read_only = true;
        let options = std::mem::replace(&mut self.options, below);
        let opened = self.open(origin);
        (self.flags, self.options) = (flags, options);
        opened
    }
}

/// The name that the temporary image records tells a reader of its header what it stands on; nobody opens it.
fn description(origin: &Origin, below: &Handle) -> CreateOptions {
    let name = match origin {
        Origin::Path(path) if path.as_os_str().len() <= MAX_BACKING_NAME_BYTES as usize => {
            path.as_os_str().to_owned()
        }
        Origin::Path(_) => OsStr::new("(a long name)").to_owned(),
        _ => origin.shown().into(),
    };
    CreateOptions {
        backing_file: Some(name),
        backing_format: Some(below.disk().name().into()),
        ..CreateOptions::default()
    }
}

fn temporary_storage() -> Result<FileStorage> {
    let folder = match std::env::var_os("TMPDIR") {
        Some(named) if !named.is_empty() => PathBuf::from(named),
        // Where /tmp is in memory, a disk's contents do not belong there.
        _ => PathBuf::from("/var/tmp"),
    };
    let options = FileOptions { writable: true, no_sync: true, ..FileOptions::default() };
    FileStorage::nameless(&folder, options).map_err(|e| {
        let what = format!("Could not create temporary overlay: a file in '{}'", folder.display());
        Error::host(what, &e)
    })
}
