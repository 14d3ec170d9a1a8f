//! Where the bytes of a node are, and what messages call it.

use crate::error::Error;
use crate::storage::access::Identity;
use crate::storage::Storage;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the bytes of a node are.
#[derive(Clone)]
pub enum Origin {
    /// A file by name.
    Path(PathBuf),
    /// A descriptor, which is duplicated.
    Descriptor(i32),
    /// A caller's storage.
    Custom(Arc<dyn Storage>),
    /// Something that is reached by a protocol ("nbd://host/x").
    Uri(OsString),
}

impl Origin {
    /// Its name for messages.
    pub(crate) fn shown(&self) -> String {
        match self {
            Origin::Path(path) => path.display().to_string(),
            Origin::Descriptor(fd) => format!("fd {fd}"),
            Origin::Custom(_) => "custom storage".into(),
            Origin::Uri(uri) => uri.to_string_lossy().into_owned(),
        }
    }

    /// The file's name, where it has one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Origin::Path(path) => Some(path),
            _ => None,
        }
    }

    /// Which file has the name now.
    pub(crate) fn identity(&self) -> Option<Identity> {
        std::fs::metadata(self.path()?).ok().map(|metadata| Identity::of(&metadata))
    }

    /// Whether it is a caller's storage, which is called on the caller's threads only.
    pub(crate) fn is_custom(&self) -> bool {
        matches!(self, Origin::Custom(_))
    }
}

/// An error about a node's contents says which file has them; below a caller's storage nothing has a name.
pub(super) fn located(error: Error, origin: &Origin) -> Error {
    match origin {
        Origin::Custom(_) => error,
        _ => error.in_file(origin.shown()),
    }
}
