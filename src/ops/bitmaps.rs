//! The bitmaps that an image names: for listings, and to free them where a resize makes them void.

use crate::alloc::{ClusterRun, Freed};
use crate::error::{zeroed, Error, ErrorKind, Result};
use crate::format::be64;
use crate::format::bitmap::{check_pointer, decode_table_entry, parse_directory, Bitmap, BitmapCluster};
use crate::format::extensions::{self, BITMAPS};
use crate::format::features::AUTOCLEAR_BITMAPS;
use crate::format::{Header, HostOffset};
use crate::image::Parts;
use crate::meta::guard::Owner;
use crate::storage::{read_exact, Purpose, Storage};

/// Bytes of a bitmap table that are read at once.
const PIECE_BYTES: usize = 16 << 10;

/// Reads the directory; none where a writer that knew no bitmaps has made them void.
pub(crate) fn load_bitmaps(storage: &dyn Storage, header: &Header) -> Result<Vec<Bitmap>> {
    let void = header.autoclear & AUTOCLEAR_BITMAPS == 0;
    let Some(data) = header.extension(BITMAPS).filter(|_| !void) else { return Ok(Vec::new()) };
    let geometry = header.geometry();
    let pointer = extensions::bitmaps(data)?;
    check_pointer(&pointer, &geometry)?;
    let length = storage.length().map_err(|e| Error::host("length of the image file", &e))?;
    if length.saturating_sub(pointer.directory_offset) < pointer.directory_bytes {
        let broken = Error::new(ErrorKind::Corrupt, "Broken bitmap directory");
        return Err(broken.detail("it ends past the end of the file"));
    }
    let mut directory = zeroed("bitmap directory", pointer.directory_bytes)?;
    read_exact(storage, Purpose::Bitmaps, pointer.directory_offset, &mut directory)?;
    parse_directory(&directory, pointer.count, &geometry)
}

/// Frees `bitmaps`, all that there are, and their directory. The header calls them void, durably.
pub(super) fn free_bitmaps(parts: &Parts<'_>, bitmaps: &[Bitmap]) -> Result<()> {
    let header = parts.header.header();
    let Some(data) = header.extension(BITMAPS).filter(|_| !bitmaps.is_empty()) else { return Ok(()) };
    let (alloc, guard, geometry) = (parts.alloc, parts.guard, parts.geometry);
    let pointer = extensions::bitmaps(data)?;
    let clusters = |offset, bytes| ClusterRun {
        first: geometry.cluster_index(HostOffset(offset)),
        count: geometry.clusters_ceil(bytes),
    };
    let directory = clusters(pointer.directory_offset, pointer.directory_bytes);
    // All of it is looked at before the first count falls.
    guard.check_release(Owner::BITMAP_DIRECTORY, directory.first, directory.count)?;
    for bitmap in bitmaps {
        let table = clusters(bitmap.table_offset, u64::from(bitmap.table_entries) * 8);
        guard.check_release(Owner::NOBODY, table.first, table.count)?;
        each_cluster_of(parts, bitmap, &mut |runs| {
            runs.iter().try_for_each(|run| guard.check_release(Owner::NOBODY, run.first, run.count))
        })?;
    }
    guard.remove(Owner::BITMAP_DIRECTORY, pointer.directory_offset, pointer.directory_bytes);
    for bitmap in bitmaps {
        let table = clusters(bitmap.table_offset, u64::from(bitmap.table_entries) * 8);
        each_cluster_of(parts, bitmap, &mut |runs| alloc.lower_all(runs, Freed::ByChange).map(drop))?;
        alloc.lower_all(&mut [table], Freed::ByChange)?;
    }
    alloc.lower_all(&mut [directory], Freed::ByChange).map(drop)
}

/// Gives the clusters of bits of a bitmap to `each`, some at a time.
fn each_cluster_of(
    parts: &Parts<'_>,
    bitmap: &Bitmap,
    each: &mut dyn FnMut(&mut [ClusterRun]) -> Result<()>,
) -> Result<()> {
    let bytes = u64::from(bitmap.table_entries) * 8;
    let mut piece = [0; PIECE_BYTES];
    for at in (0..bytes).step_by(PIECE_BYTES) {
        let part = &mut piece[..(bytes - at).min(PIECE_BYTES as u64) as usize];
        parts.medium.read_table(Purpose::Bitmaps, bitmap.table_offset + at, part)?;
        let mut runs = Vec::with_capacity(PIECE_BYTES / 8);
        for (index, raw) in part.chunks_exact(8).enumerate() {
            let entry = be64(raw, 0);
            let cluster = decode_table_entry(entry, parts.geometry)
                .map_err(|rule| Error::corrupt("bitmap table entry", at / 8 + index as u64, entry, rule))?;
            if let BitmapCluster::Host(offset) = cluster {
                runs.push(ClusterRun { first: parts.geometry.cluster_index(HostOffset(offset)), count: 1 });
            }
        }
        each(&mut runs)?;
    }
    Ok(())
}
