//! Creating an image in files: its own, and that of an external data file.

use super::create::create_with_data_file;
use super::open::{has_protocol, shown_name, Origin};
use crate::error::{Error, Result};
use crate::options::CreateOptions;
use crate::storage::file::{FileOptions, FileStorage};
use crate::storage::lock::Access;
use crate::storage::Storage;
use std::path::PathBuf;
use std::sync::Arc;

/// Creates an image at `origin`, in place of whatever is there, and its data file at `data_origin`, or where the options
/// say. The files are locked meanwhile.
pub fn create_at(
    origin: &Origin,
    data_origin: Option<&Origin>,
    virtual_size: u64,
    options: &CreateOptions,
) -> Result<()> {
    options.validate()?;
    let named = match (&options.data_file, data_origin) {
        (Some(name), None) if has_protocol(name) => {
            return Err(Error::unsupported(format!(
                "data file name '{}' is not a file name",
                name.to_string_lossy()
            )));
        }
        (Some(name), None) => Some(Origin::Path(PathBuf::from(name))),
        _ => None,
    };
    let image = NewFile::open(origin, Access::Write)?;
    let data = data_origin.or(named.as_ref()).map(|at| NewFile::open(at, Access::WriteData)).transpose()?;
    let data_storage = data.as_ref().map(|d| &*d.storage);
    create_with_data_file(&*image.storage, data_storage, virtual_size, options)?;
    image.keep();
    if let Some(data) = data {
        data.keep();
    }
    Ok(())
}

/// A file that is being made; removed when it is dropped, if it was not there before.
struct NewFile {
    storage: Arc<dyn Storage>,
    made: Option<PathBuf>,
}

impl NewFile {
    fn open(origin: &Origin, access: Access) -> Result<NewFile> {
        let shown = shown_name(origin);
        let made = match origin {
            Origin::Path(path) if !path.exists() => Some(path.clone()),
            _ => None,
        };
        let how = FileOptions { writable: true, create: true, ..FileOptions::default() };
        let file = match origin {
            Origin::Custom(storage) => return Ok(NewFile { storage: Arc::clone(storage), made: None }),
            Origin::Path(path) => FileStorage::open(path, how),
            Origin::Descriptor(fd) => FileStorage::from_fd(*fd, how),
        };
        let file = file.map_err(|e| Error::host(format_args!("Could not create '{shown}'"), &e))?;
        let file = Arc::new(file);
        let new = NewFile { storage: Arc::clone(&file) as Arc<dyn Storage>, made };
        file.lock(access, &shown)?;
        Ok(new)
    }

    fn keep(mut self) {
        self.made = None;
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(path) = &self.made {
            let _ = std::fs::remove_file(path);
        }
    }
}
