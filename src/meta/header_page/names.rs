//! Other names, extensions or another version in the header of an open image: what moves everything behind the fixed
//! fields.
//!
//! What does not fit into sector 0 is written and durable before sector 0 refers to it, in bytes that the header
//! does not refer to until then; so a power cut shows the old header or the new one, with every extension. When
//! the place of the new tail is taken by the old one, the header passes through a state between the two:
//!
//! ```text
//! old      fixed | extensions .......... | name |
//! aside    fixed | filler ......................| extensions .......... | name |
//! new      fixed | extensions .......... | name |
//! ```
//!
//! The filler is an extension that nobody knows. Where the cluster is too small for that, the state between is
//! the new header without the feature name table (which is text only) in sector 0; where that is too small as
//! well, the change is refused.

use super::HeaderPage;
use crate::error::{Error, ErrorKind, Result};
use crate::format::extensions::{self, BitmapsPointer, Extension};
use crate::format::features::{encode_name_table, AUTOCLEAR_BITMAPS, MIN_NAME_TABLE_CLUSTER_BYTES};
use crate::format::geometry::{round_up, SECTOR_BYTES};
use crate::format::header::{V2_BYTES, V3_BYTES, V3_MIN_BYTES};
use crate::format::Header;
use crate::storage::Purpose;

const SECTOR: usize = SECTOR_BYTES as usize;

/// One durable change of sector 0, with the bytes that have to be durable before it.
struct Step {
    tail_at: usize,
    tail: Vec<u8>,
    sector: Vec<u8>,
}

impl HeaderPage {
    /// Records another backing file; `name` `None`: none. Durable when it returns. The caller is alone.
    pub fn change_backing(&self, name: Option<&[u8]>, format: Option<&[u8]>) -> Result<()> {
        self.rewrite(|header| with_backing(header, name, format))
    }

    /// Records another data file, `None`: none by name. Durable when it returns. The caller is alone.
    pub fn change_data_file(&self, name: Option<&[u8]>) -> Result<()> {
        self.rewrite(|header| with_data_file(header, name))
    }

    /// Has the header name another bitmap directory, `None`: none, of a disk of `virtual_size` bytes. Durable when it
    /// returns. The caller is alone.
    pub fn change_bitmaps(&self, directory: Option<&BitmapsPointer>, virtual_size: u64) -> Result<()> {
        self.rewrite(|header| with_bitmaps(header, directory, virtual_size))
    }

    /// Makes it a header of version 2 or 3. Durable when it returns; the image is to be loaded anew. The caller is
    /// alone and has made the tables valid in both versions.
    pub fn change_version(&self, version: u32) -> Result<()> {
        self.rewrite(|header| {
            let next = with_version(header, version, true);
            // The names of the features are text only, and the first to go where a small cluster lacks room.
            match next.clone().encode() {
                Ok(_) => next,
                Err(_) => with_version(header, version, false),
            }
        })
    }

    fn rewrite(&self, edit: impl FnOnce(&Header) -> Header) -> Result<()> {
        let mut guard = self.lock();
        let (header, sector) = &mut *guard;
        let mut cluster = vec![0; 1 << header.cluster_bits];
        let storage = self.medium.storage();
        let length = storage.length().map_err(|e| Error::host("length of the image file", &e))?;
        let stored = length.min(cluster.len() as u64) as usize;
        self.medium.read_table(Purpose::Header, 0, &mut cluster[..stored])?;
        cluster[..SECTOR].copy_from_slice(sector);
        let mut used = used_bytes(&Header::parse(&cluster)?, &cluster);
        let mut end = 0;
        for step in plan(&cluster, edit(header))? {
            if !step.tail.is_empty() {
                self.medium.write_unlinked(Purpose::Header, step.tail_at as u64, &step.tail)?;
                cluster[step.tail_at..step.tail_at + step.tail.len()].copy_from_slice(&step.tail);
            }
            self.replace_sector(header, sector, &step.sector)?;
            cluster[..SECTOR].copy_from_slice(&step.sector);
            *header = Header::parse(&cluster)?;
            self.note_autoclear(header);
            sector.copy_from_slice(&step.sector);
            end = step.tail_at + step.tail.len();
            used = used.max(end);
        }
        let (end, used) = (round_up(end.max(SECTOR) as u64, SECTOR_BYTES), (used as u64).min(length));
        if end < used {
            // Bytes that mean nothing any more; whether they stay is no reason to fail.
            let _ = self.medium.write_unlinked(Purpose::Header, end, &vec![0; (used - end) as usize]);
        }
        Ok(())
    }
}

/// The header with other names: the format comes first, as the reference implementation has it.
fn with_backing(header: &Header, name: Option<&[u8]>, format: Option<&[u8]>) -> Header {
    let mut next = header.clone();
    next.extensions.retain(|e| e.kind != extensions::BACKING_FORMAT && e.kind != extensions::FILLER);
    next.backing_file = name.map(<[u8]>::to_vec);
    if let Some(format) = format {
        let format = Extension { kind: extensions::BACKING_FORMAT, data: format.to_vec(), offset: 0 };
        next.extensions.insert(0, format);
    }
    next
}

fn with_data_file(header: &Header, name: Option<&[u8]>) -> Header {
    let mut next = header.clone();
    next.extensions.retain(|e| e.kind != extensions::DATA_FILE && e.kind != extensions::FILLER);
    if let Some(name) = name {
        let name = Extension { kind: extensions::DATA_FILE, data: name.to_vec(), offset: 0 };
        next.extensions.insert(after(&next, &[extensions::BACKING_FORMAT]), name);
    }
    next
}

/// The extension is the last one, as the reference implementation has it.
fn with_bitmaps(header: &Header, directory: Option<&BitmapsPointer>, virtual_size: u64) -> Header {
    let mut next = header.clone();
    next.extensions.retain(|e| e.kind != extensions::BITMAPS && e.kind != extensions::FILLER);
    next.autoclear &= !AUTOCLEAR_BITMAPS;
    if let Some(directory) = directory {
        next.autoclear |= AUTOCLEAR_BITMAPS;
        next.extensions.push(extensions::bitmaps_extension(directory));
    }
    next.virtual_size = virtual_size;
    next
}

/// Version 3 gets the fields as the reference implementation writes them; version 2 has none of them.
fn with_version(header: &Header, version: u32, feature_names: bool) -> Header {
    let mut next = header.clone();
    next.extensions.retain(|e| e.kind != extensions::FEATURE_NAMES && e.kind != extensions::FILLER);
    next.version = version;
    (next.incompatible, next.compatible, next.autoclear) = (0, 0, 0);
    (next.refcount_order, next.compression_type) = (4, 0);
    if version == 2 {
        (next.header_length, next.extra) = (V2_BYTES as u32, Vec::new());
        return next;
    }
    (next.header_length, next.extra) = (V3_BYTES as u32, vec![0; V3_BYTES - V3_MIN_BYTES - 1]);
    if feature_names && 1 << next.cluster_bits >= MIN_NAME_TABLE_CLUSTER_BYTES {
        let names = Extension { kind: extensions::FEATURE_NAMES, data: encode_name_table(), offset: 0 };
        next.extensions.insert(after(&next, &[extensions::BACKING_FORMAT, extensions::ENCRYPTION]), names);
    }
    next
}

/// The place behind the last extension of these kinds, as the reference implementation orders them.
fn after(header: &Header, kinds: &[u32]) -> usize {
    header.extensions.iter().rposition(|e| kinds.contains(&e.kind)).map_or(0, |at| at + 1)
}

/// Bytes of the cluster that the header refers to.
fn used_bytes(header: &Header, cluster: &[u8]) -> usize {
    let last = header.extensions.last();
    let extensions_end =
        last.map_or(header.header_length as usize, |e| e.offset as usize + e.data.len().div_ceil(8) * 8) + 8;
    let name_end = match header.backing_file_offset {
        0 => 0,
        at => at as usize + header.backing_file_bytes as usize,
    };
    extensions_end.max(name_end).min(cluster.len())
}

fn no_room() -> Error {
    Error::new(ErrorKind::Host(libc::ENOSPC), "No space left in the file header")
}

/// The changes that lead from the header in `cluster` to `next`.
fn plan(cluster: &[u8], mut next: Header) -> Result<Vec<Step>> {
    let mut bytes = next.encode().map_err(|_| no_room())?;
    let new_end = bytes.len();
    bytes.resize(round_up(new_end.max(SECTOR) as u64, SECTOR_BYTES) as usize, 0);
    let old_end = used_bytes(&Header::parse(cluster)?, cluster);
    let last = Step { tail_at: SECTOR, tail: bytes[SECTOR..].to_vec(), sector: bytes[..SECTOR].to_vec() };
    let is_there = cluster[SECTOR..bytes.len()] == bytes[SECTOR..];
    if old_end <= SECTOR || is_there {
        return Ok(vec![last]);
    }
    let between = match aside(&next, &bytes[..new_end], old_end, cluster.len()) {
        Some(step) => step,
        None => small(&next).ok_or_else(no_room)?,
    };
    Ok(vec![between, last])
}

/// All that follows the fixed fields, behind everything that the old and the new header use.
fn aside(next: &Header, bytes: &[u8], old_end: usize, cluster_bytes: usize) -> Option<Step> {
    let fixed = next.header_length as usize;
    let at = round_up(old_end.max(bytes.len()) as u64, SECTOR_BYTES) as usize;
    let moved = at.checked_sub(fixed)?;
    if fixed % 8 != 0
        || fixed + extensions::HEAD_BYTES as usize > SECTOR
        || bytes.len() + moved > cluster_bytes
    {
        return None;
    }
    let mut sector = bytes[..bytes.len().min(SECTOR)].to_vec();
    sector.resize(SECTOR, 0);
    extensions::put_head(&mut sector[fixed..], extensions::FILLER, moved as u32 - extensions::HEAD_BYTES);
    if next.backing_file_offset != 0 {
        let moved = Header { backing_file_offset: next.backing_file_offset + moved as u64, ..next.clone() };
        moved.put_fixed_fields(&mut sector);
    }
    let mut tail = bytes[fixed..].to_vec();
    // Whole sectors: what lies behind an end mark or a name belongs to nobody.
    tail.resize((round_up(tail.len() as u64, SECTOR_BYTES) as usize).min(cluster_bytes - at), 0);
    Some(Step { tail_at: at, tail, sector })
}

/// Everything but the feature name table, when that fits into sector 0.
fn small(next: &Header) -> Option<Step> {
    let mut less = next.clone();
    less.extensions.retain(|e| e.kind != extensions::FEATURE_NAMES);
    let mut sector = less.encode().ok().filter(|bytes| bytes.len() <= SECTOR)?;
    sector.resize(SECTOR, 0);
    Some(Step { tail_at: SECTOR, tail: Vec::new(), sector })
}

#[cfg(test)]
mod tests;
