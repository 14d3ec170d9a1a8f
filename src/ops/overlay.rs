//! Images that stand on another one: the size that a new one takes from it, and the temporary one of `snapshot=on`.

use super::create::create_with_data_file;
use super::handle::{Handle, Manner};
use super::open::{resolve_path, shown_name, OpenFlags, Opening, Origin};
use crate::error::{Error, Result};
use crate::format::header::MAX_BACKING_NAME_BYTES;
use crate::image::{CoreSettings, Disk, Image};
use crate::options::{CacheMode, CreateOptions, OpenOptions};
use crate::storage::file::{FileOptions, FileStorage};
use crate::storage::Storage;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

/// The size of a new image at `origin` that is given none: its backing file's, which is opened for that. A writer may
/// have it.
pub fn size_of_new(origin: &Origin, options: &CreateOptions) -> Result<u64> {
    let Some(name) = &options.backing_file else {
        return Err(Error::invalid("no size is given, and no backing file that has one"));
    };
    let Some(path) = resolve_path(name, origin) else {
        let name = name.to_string_lossy();
        return Err(Error::invalid(format!(
            "no size is given, and the backing file '{name}' is none that can be asked"
        )));
    };
    let raw = match options.backing_format.as_deref() {
        Some("raw") => true,
        Some("qcow2") => false,
        other => {
            let other = other.unwrap_or("none");
            return Err(Error::invalid(format!(
                "no size is given, and the backing file's format is neither qcow2 nor raw: {other}"
            )));
        }
    };
    let flags =
        OpenFlags { read_only: true, force_share: true, metadata_only: true, raw, ..OpenFlags::default() };
    let mut opening = Opening { flags, options: OpenOptions::default(), resolver: None, messages: None };
    let below = opening.open(&Origin::Path(path)).map_err(|e| e.within("Could not open backing file"))?;
    Ok(below.disk().length())
}

/// Opens `origin` read-only, and on top of it an image in a file without a name.
pub(super) fn open_on_temporary(opening: &mut Opening<'_>, origin: &Origin) -> Result<Handle> {
    if opening.flags.inactive {
        return Err(Error::invalid("snapshot=on cannot be given with QCOW2_OPEN_INACTIVE"));
    }
    // What such a handle can change is the image's own metadata, which a temporary image on top does not have.
    if opening.flags.metadata_only {
        return Err(Error::invalid(
            "snapshot=on cannot be given with QCOW2_OPEN_METADATA_ONLY, unless read-only",
        ));
    }
    let (flags, options) = (opening.flags, opening.options.clone());
    opening.flags.read_only = true;
    opening.options = OpenOptions {
        cache: options.cache,
        data_file: options.data_file.clone(),
        snapshot_id: options.snapshot_id.clone(),
        snapshot_name: options.snapshot_name.clone(),
        ..OpenOptions::default()
    };
    let below = opening.open(origin);
    (opening.flags, opening.options) = (flags, options.clone());
    let below = below?;
    // Nothing of it outlives the handle, so nothing of it need be durable.
    let options = OpenOptions {
        cache: CacheMode::Unsafe,
        data_file: None,
        snapshot_id: None,
        snapshot_name: None,
        ..options
    };
    let file = Arc::new(temporary_storage()?);
    create_with_data_file(&*file, None, below.disk().length(), &description(origin, &below))?;
    let settings = CoreSettings {
        options: options.clone(),
        read_only: false,
        metadata_only: false,
        backing: Some(below.shared_disk()),
        data_file: None,
    };
    let image = Image::open(Arc::clone(&file) as Arc<dyn Storage>, settings)?;
    let manner = Manner::new(OpenFlags { raw: false, ..flags }, options, Some(file));
    Ok(Handle::new(Disk::Qcow2(Box::new(image)), origin.clone(), manner, Some(below), None))
}

/// The name that the temporary image records tells a reader of its header what it stands on; nobody opens it.
fn description(origin: &Origin, below: &Handle) -> CreateOptions {
    let name = match origin {
        Origin::Path(path) if path.as_os_str().len() <= MAX_BACKING_NAME_BYTES as usize => {
            path.as_os_str().to_owned()
        }
        Origin::Path(_) => OsStr::new("(a long name)").to_owned(),
        _ => shown_name(origin).into(),
    };
    let format = if matches!(below.disk(), Disk::Raw(_)) { "raw" } else { "qcow2" };
    CreateOptions {
        backing_file: Some(name),
        backing_format: Some(format.into()),
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
