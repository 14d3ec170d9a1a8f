//! An image that is open as one of its snapshots: which one is meant, and the header of the disk as it was then.

use crate::error::{Error, ErrorKind, Result};
use crate::format::snapshot::Snapshot;
use crate::format::Header;
use crate::meta::snapshot_table::load_current_snapshots;
use crate::options::OpenOptions;
use crate::storage::Storage;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// Which snapshot: what is given must fit, the first in the table that fits is meant.
#[derive(Clone, Copy, Debug, Default)]
pub struct SnapshotRef<'a> {
    /// Its ID.
    pub id: Option<&'a [u8]>,
    /// Its name.
    pub name: Option<&'a [u8]>,
}

impl<'a> SnapshotRef<'a> {
    /// The snapshot that an open asks for.
    pub fn of(options: &'a OpenOptions) -> Option<SnapshotRef<'a>> {
        let (id, name) = (options.snapshot_id.as_deref(), options.snapshot_name.as_deref());
        let wanted = SnapshotRef { id: id.map(OsStr::as_bytes), name: name.map(OsStr::as_bytes) };
        (id.is_some() || name.is_some()).then_some(wanted)
    }

    /// Its place in the table.
    pub fn index_in(&self, list: &[Snapshot]) -> Result<usize> {
        if self.id.is_none() && self.name.is_none() {
            return Err(Error::invalid("neither an ID nor a name of a snapshot is given"));
        }
        // As it is listed: to a C program a text ends where a zero byte is.
        let shown = |stored: &[u8]| stored.iter().position(|b| *b == 0).unwrap_or(stored.len());
        let fits = |given: Option<&[u8]>, stored: &[u8]| given.is_none_or(|g| *g == stored[..shown(stored)]);
        let found = list.iter().position(|s| fits(self.id, &s.id) && fits(self.name, &s.name));
        found.ok_or_else(|| {
            let text = |part: Option<&[u8]>| part.map(|p| String::from_utf8_lossy(p).into_owned());
            let rule = match (text(self.id), text(self.name)) {
                (Some(id), Some(name)) => format!("there is no snapshot with ID '{id}' and name '{name}'"),
                (Some(id), None) => format!("there is no snapshot with ID '{id}'"),
                (_, name) => format!("there is no snapshot with name '{}'", name.unwrap_or_default()),
            };
            Error::new(ErrorKind::NotFound, rule)
        })
    }
}

/// The header as if the disk were what it was at the snapshot.
pub(super) fn snapshot_header(
    storage: &Arc<dyn Storage>,
    header: Header,
    wanted: SnapshotRef<'_>,
) -> Result<Header> {
    let (header, list) = load_current_snapshots(&**storage, header)?;
    let found = &list[wanted.index_in(&list)?];
    Ok(Header {
        l1_table_offset: found.l1_table_offset,
        l1_size: found.l1_size,
        virtual_size: found.virtual_size.unwrap_or(header.virtual_size),
        ..header
    })
}
