//! How large an image file gets before it is made.

use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Geometry;
use crate::options::{CreateOptions, Preallocation};

/// Lengths of a file that is not there yet, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// With what it holds at first.
    pub required_bytes: u64,
    /// With every cluster of the disk allocated.
    pub fully_allocated_bytes: u64,
    /// What the source's bitmaps would add, where both images can have some and they can be measured.
    pub bitmaps_bytes: Option<u64>,
}

/// Measures an image of `virtual_size` bytes with `options`; with a source, one that takes the source's data.
pub fn measure(virtual_size: u64, options: &CreateOptions, source: Option<&Disk>) -> Result<Measured> {
    options.validate()?;
    let geometry = options.geometry();
    let size = source.map_or(virtual_size, |disk| disk.length());
    if size > geometry.max_virtual_size() {
        let text = "The image size is too large (try using a larger cluster size)";
        return Err(Error::new(ErrorKind::TooLarge, text));
    }
    let disk_clusters = geometry.clusters_ceil(size);
    let header = options.encryption.as_ref().map_or(0, |encryption| encryption.header_bytes());
    let all = all_clusters(&geometry, size) + geometry.clusters_ceil(header);
    let is_full = matches!(options.preallocation, Preallocation::Falloc | Preallocation::Full);
    let held = match source {
        _ if is_full => disk_clusters,
        // What the new backing file will have is not known here.
        Some(_) if options.backing_file.is_some() => disk_clusters,
        Some(disk) => data_clusters(disk, &geometry)?,
        None => 0,
    };
    let bytes = |clusters: u64| clusters << geometry.cluster_bits;
    Ok(Measured {
        required_bytes: bytes(all - disk_clusters + held),
        fully_allocated_bytes: bytes(all),
        bitmaps_bytes: source
            .filter(|_| options.version >= 3)
            .and_then(|disk| disk.bitmaps_bytes(geometry.cluster_bytes())),
    })
}

/// Measures a plain LUKS file of `virtual_size` bytes; with a source, one that takes the source's data.
pub fn measure_luks(virtual_size: u64, options: &CreateOptions, source: Option<&Disk>) -> Result<Measured> {
    let size = source.map_or(virtual_size, |disk| disk.length());
    let header = options.encryption.as_ref().map_or(0, |encryption| encryption.header_bytes());
    let too_large = || Error::new(ErrorKind::TooLarge, "The requested file size is too large");
    let bytes = header.checked_add(size).ok_or_else(too_large)?;
    Ok(Measured { required_bytes: bytes, fully_allocated_bytes: bytes, bitmaps_bytes: None })
}

/// Clusters of a file in which everything is allocated: header, tables, counts of all of them, data.
fn all_clusters(geometry: &Geometry, size: u64) -> u64 {
    let data = geometry.clusters_ceil(size);
    let l2_tables = geometry.l1_entries_for(size);
    let l1 = geometry.clusters_ceil(l2_tables * 8);
    let counted = 1 + l1 + l2_tables + data;
    let (mut blocks, mut table) = (0, 0);
    // Counts count themselves; both only grow, and each round brings them nearer.
    loop {
        let new_blocks = (counted + blocks + table).div_ceil(geometry.refcount_block_entries());
        let new_table = geometry.clusters_ceil(new_blocks * 8);
        if (new_blocks, new_table) == (blocks, table) {
            return counted + blocks + table;
        }
        (blocks, table) = (new_blocks, new_table);
    }
}

/// Clusters that hold data other than zeroes.
fn data_clusters(disk: &Disk, geometry: &Geometry) -> Result<u64> {
    disk.settle_runs()?;
    let length = disk.length();
    let (mut at, mut count, mut counted_to) = (0, 0, 0);
    while at < length {
        let status = disk.status(at, length - at, false)?;
        let end = at + status.length;
        if status.data && !status.zero {
            let first = geometry.cluster_index(at).max(counted_to);
            let last = geometry.clusters_ceil(end);
            count += last.saturating_sub(first);
            counted_to = last;
        }
        at = end;
    }
    Ok(count)
}
