//! The external data file of an image: opened behind the permission that a backing file needs, with the image's access
//! and cache mode, and reopened with it.
//!
//! A relative name means the process's working directory, as in the reference implementation, at create and at open:
//! two programs that disagree here would put one disk's data into two files. For the same reason a recorded name is a
//! file's name letter by letter, whatever it begins with. An option of the caller goes before the
//! recorded name and needs no permission.

use super::files::Role;
use super::origin::Origin;
use super::params::{Named, Opening, ResolveRequest, Seen};
use crate::disk::Draft;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::formats::Driver;
use crate::storage::access::Identity;
use crate::storage::Storage;
use std::path::PathBuf;
use std::sync::Arc;

/// An open data file.
pub(super) struct DataFile {
    /// Where its bytes are.
    pub(super) storage: Arc<dyn Storage>,
    /// Where it was opened.
    pub(super) origin: Origin,
}

impl Opening<'_> {
    /// Opens the data file of the image that was looked at last, `seen`'s last; `None` where there is none, or no guest
    /// data is asked for.
    pub(super) fn open_data_file(&mut self, draft: &dyn Draft, seen: &Seen) -> Result<Option<DataFile>> {
        if !draft.has_data_file() || self.flags.metadata_only {
            return Ok(None);
        }
        let origin = match (self.options.data_file.clone(), draft.names().data_file_name()) {
            (Some(path), _) => Origin::Path(path.into()),
            (None, None) => return Err(Error::invalid("'data-file' is required for this image")),
            (None, Some(recorded_name)) => self.resolve_data_file(ResolveRequest {
                named: Named::DataFile,
                depth: seen.len() - 1,
                resolved_path: Some(PathBuf::from(recorded_name)),
                format: Some(Driver::RAW.name.into()),
                recorded_name: recorded_name.to_owned(),
            })?,
        };
        // Before the lock, which would refuse it for another reason.
        refuse_seen(origin.identity(), seen)?;
        let storage = self.open_storage(&origin, self.flags.read_only, Role::DataFile)?;
        refuse_seen(storage.identity(), seen)?;
        Ok(Some(DataFile { storage, origin }))
    }

    fn resolve_data_file(&mut self, request: ResolveRequest) -> Result<Origin> {
        let answer = self.resolve(&request)?;
        if answer.format.is_some_and(|format| format != Driver::RAW) {
            return Err(Error::unsupported(format!(
                "data file '{}': its format can only be raw",
                request.recorded_name.to_string_lossy()
            )));
        }
        Ok(answer.origin)
    }
}

fn refuse_seen(identity: Option<Identity>, seen: &Seen) -> Result<()> {
    match identity.is_some() && seen.contains(&identity) {
        true => {
            Err(Error::new(ErrorKind::Loop, "the data file is the image itself, or one that is above it"))
        }
        false => Ok(()),
    }
}
