//! References of the bitmaps, and which of their clusters have another use.

use super::finding::{Finding, What};
use super::pass::Pass;
use super::seen::BITMAPS;
use crate::error::{Error, Result};
use crate::format::bitmap::{self, Bitmap, BitmapCluster};
use crate::format::features::AUTOCLEAR_BITMAPS;
use crate::format::{be64s, extensions};
use crate::storage::{read_exact, Purpose};

/// Bytes of a table read at once.
const CHUNK_BYTES: u64 = 1 << 20;
/// Most entries of all tables together: bounds the time that they take.
const MAX_CHECKED_ENTRIES: u64 = 1 << 26;

impl Pass<'_> {
    /// Counts bitmap directory, tables and data, if the autoclear bit says that they are consistent.
    pub fn count_bitmaps(&mut self) -> Result<()> {
        let Some(pointer) = self.bitmaps_pointer()? else { return Ok(()) };
        self.count_region(pointer.directory_offset, pointer.directory_bytes, 1)?;
        self.note_region(BITMAPS, pointer.directory_offset, pointer.directory_bytes);
        for bitmap in self.read_bitmaps(&pointer)? {
            let bytes = u64::from(bitmap.table_entries) * 8;
            self.count_region(bitmap.table_offset, bytes, 1)?;
            self.note_region(BITMAPS, bitmap.table_offset, bytes);
            self.each_bits_cluster(&bitmap, &mut |pass, _, offset| {
                pass.count_region(offset, pass.geometry.cluster_bytes(), 1)
            })?;
        }
        Ok(())
    }

    /// Names what bitmaps have that something else refers to as well: the directory, tables, and entries of tables, which
    /// a wrong count gives away. All references have been counted.
    pub fn tell_shared_bitmaps(&mut self) -> Result<()> {
        for (what, name, numbers) in self.shared_regions()? {
            self.tell(Finding::new(what, numbers).with_name(&name));
        }
        let Some(pointer) = self.bitmaps_pointer()?.filter(|_| self.report.corruptions > 0) else {
            return Ok(());
        };
        for bitmap in self.read_bitmaps(&pointer)? {
            let name = bitmap.printable_name();
            self.each_bits_cluster(&bitmap, &mut |pass, index, offset| {
                let uses = pass.counts.get(pass.geometry.cluster_index(offset));
                if uses > 1 {
                    pass.tell(Finding::new(What::BitmapShared, [index, offset, uses]).with_name(&name));
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// No repair can tell whose the contents of a shared table or directory are: an error where the count is right or
    /// too high, too.
    pub fn count_shared_bitmaps(&mut self) -> Result<()> {
        for (_, _, [at, _, uses]) in self.shared_regions()? {
            let stored = self.stored.get(self.storage, self.geometry.cluster_index(at))?;
            if stored.is_some_and(|stored| stored >= uses) {
                self.report.corruptions += 1;
                self.shared_bitmaps += 1;
            }
        }
        Ok(())
    }

    /// The directory and the tables that have a cluster that something else refers to, each with the first such one:
    /// offset of the cluster, of all of it, references.
    fn shared_regions(&self) -> Result<Vec<(What, String, [u64; 3])>> {
        let mut shared = Vec::new();
        if !self.counts.any_shared() {
            return Ok(shared);
        }
        let Some(pointer) = self.bitmaps_pointer()? else { return Ok(shared) };
        let find = |offset: u64, bytes: u64| {
            let first = self.geometry.cluster_index(offset);
            let mut clusters = first..first + self.geometry.clusters_ceil(bytes);
            let found = clusters.find(|cluster| self.counts.get(*cluster) > 1);
            let found = found.filter(|_| self.is_in_file(offset, bytes));
            found.map(|at| [self.geometry.cluster_offset(at), offset, self.counts.get(at)])
        };
        if let Some(numbers) = find(pointer.directory_offset, pointer.directory_bytes) {
            shared.push((What::BitmapDirectoryShared, String::new(), numbers));
        }
        for bitmap in self.read_bitmaps(&pointer)? {
            if let Some(numbers) = find(bitmap.table_offset, u64::from(bitmap.table_entries) * 8) {
                shared.push((What::BitmapTableShared, bitmap.printable_name(), numbers));
            }
        }
        Ok(shared)
    }

    /// Where the directory is, if there is one that is in force.
    fn bitmaps_pointer(&self) -> Result<Option<extensions::BitmapsPointer>> {
        let in_force = self.header.autoclear & AUTOCLEAR_BITMAPS != 0;
        let Some(data) = self.header.extension(extensions::BITMAPS).filter(|_| in_force) else {
            return Ok(None);
        };
        let pointer = extensions::bitmaps(data)?;
        bitmap::check_pointer(&pointer, &self.geometry)?;
        Ok(Some(pointer))
    }

    /// None of a directory that is past the end of the file.
    fn read_bitmaps(&self, pointer: &extensions::BitmapsPointer) -> Result<Vec<Bitmap>> {
        if !self.is_in_file(pointer.directory_offset, pointer.directory_bytes) {
            return Ok(Vec::new());
        }
        let mut directory = super::zeroed(pointer.directory_bytes)?;
        read_exact(self.storage, Purpose::Bitmaps, pointer.directory_offset, &mut directory)?;
        let list = bitmap::parse_directory(&directory, pointer.count, &self.geometry)?;
        let entries: u64 = list.iter().map(|bitmap| u64::from(bitmap.table_entries)).sum();
        match entries > MAX_CHECKED_ENTRIES {
            true => Err(Error::invalid(format!(
                "the bitmap tables have {entries} entries together, more than {MAX_CHECKED_ENTRIES}"
            ))),
            false => Ok(list),
        }
    }

    /// Gives the entries that lead to a cluster to `each`: index and offset.
    fn each_bits_cluster(
        &mut self,
        bitmap: &Bitmap,
        each: &mut dyn FnMut(&mut Self, u64, u64) -> Result<()>,
    ) -> Result<()> {
        let bytes = u64::from(bitmap.table_entries) * 8;
        let inside = bytes.min(self.file_length.saturating_sub(bitmap.table_offset)).div_ceil(8) * 8;
        let mut at = 0;
        while at < inside {
            let mut chunk = vec![0; (inside - at).min(CHUNK_BYTES) as usize];
            read_exact(self.storage, Purpose::Bitmaps, bitmap.table_offset + at, &mut chunk)?;
            for (index, entry) in (at / 8..).zip(be64s(&chunk)) {
                match bitmap::decode_table_entry(entry, &self.geometry) {
                    Ok(BitmapCluster::Host(offset)) => each(self, index, offset)?,
                    Ok(_) => {}
                    Err(rule) => return Err(broken_bitmap(bitmap, index, entry, rule)),
                }
            }
            at += chunk.len() as u64;
            self.advance(0)?;
        }
        Ok(())
    }
}

fn broken_bitmap(bitmap: &Bitmap, index: u64, entry: u64, rule: &str) -> Error {
    let name = bitmap.printable_name();
    Error::invalid(format!("bitmap table of '{name}' entry {index}: value {entry:#x}: {rule}"))
}
