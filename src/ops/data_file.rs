//! The external data file of an image: opened behind the permission that a backing file needs, with the image's access
//! and cache mode, and reopened with it.
//!
//! A relative name means the process's working directory, as in the reference implementation, at create and at open:
//! two programs that disagree here would put one disk's data into two files. For the same reason a recorded name is a
//! file's name letter by letter, whatever it begins with. An option of the caller goes before the
//! recorded name and needs no permission.

use super::open::{Named, Opening, Origin, ResolveRequest, Role};
use crate::error::{Error, ErrorKind, Result};
use crate::format::extensions;
use crate::format::features::INCOMPAT_DATA_FILE;
use crate::format::Header;
use crate::storage::device;
use crate::storage::file::FileStorage;
use crate::storage::Storage;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open data file.
pub struct DataFile {
    /// Where its bytes are.
    pub storage: Arc<dyn Storage>,
    /// Where it was opened.
    pub origin: Origin,
    /// There where it is a file.
    pub(super) file: Option<Arc<FileStorage>>,
}

impl Opening<'_> {
    /// Opens the data file of the image that was opened last, `seen`'s last; `None` where there is none, or no guest
    /// data is asked for.
    pub(super) fn open_data_file(
        &mut self,
        header: &Header,
        seen: &[Option<(u64, u64)>],
    ) -> Result<Option<DataFile>> {
        let asked = self.options.data_file.clone();
        if header.incompatible & INCOMPAT_DATA_FILE == 0 {
            return match asked {
                Some(_) => {
                    Err(Error::invalid("'data-file' can only be set for images with an external data file"))
                }
                None => Ok(None),
            };
        }
        if self.flags.metadata_only {
            return Ok(None);
        }
        let recorded = header.extension_name(extensions::DATA_FILE);
        let origin = match (asked, recorded) {
            (Some(path), _) => Origin::Path(path.into()),
            (None, None) => return Err(Error::invalid("'data-file' is required for this image")),
            (None, Some(recorded_name)) => {
                let request = ResolveRequest {
                    named: Named::DataFile,
                    depth: seen.len() - 1,
                    resolved_path: Some(PathBuf::from(recorded_name)),
                    format: Some("raw".into()),
                    recorded_name: recorded_name.to_owned(),
                };
                let answer = self.resolve(&request)?;
                if answer.format.as_deref().is_some_and(|f| f != "raw") {
                    return Err(Error::unsupported(format!(
                        "data file '{}': its format can only be raw",
                        request.recorded_name.to_string_lossy()
                    )));
                }
                answer.origin
            }
        };
        // Before the lock, which would refuse it for another reason.
        let before = match &origin {
            Origin::Path(path) => identity_of(path),
            _ => None,
        };
        refuse_seen(before, seen)?;
        let (storage, file) = self.open_storage(&origin, self.flags.read_only, Role::DataFile)?;
        refuse_seen(storage.identity(), seen)?;
        Ok(Some(DataFile { storage, origin, file }))
    }
}

pub(super) fn identity_of(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|m| device::identity_of(&m))
}

fn refuse_seen(identity: Option<(u64, u64)>, seen: &[Option<(u64, u64)>]) -> Result<()> {
    match identity.is_some() && seen.contains(&identity) {
        true => {
            Err(Error::new(ErrorKind::Loop, "the data file is the image itself, or one that is above it"))
        }
        false => Ok(()),
    }
}
