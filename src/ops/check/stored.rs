//! The refcounts as the image stores them: the table in memory, blocks through a small cache.

use super::{no_memory, zeroed};
use crate::error::Result;
use crate::format::entries::REFCOUNT_TABLE_RESERVED;
use crate::format::{be64s, refcount, Geometry, Header};
use crate::storage::{read_exact, write_all, Purpose, Storage};
use std::collections::HashMap;

/// Blocks kept, bytes. Lookups are mostly sequential; the cache is emptied when it is full.
const CACHE_BYTES: u64 = 4 << 20;

/// Bytes of blocks that are read at once, if a block is not larger.
const READ_BYTES: u64 = 64 << 10;

/// What stands where a refcount block should be.
pub(super) enum Block<'a> {
    /// No block: all its counts are zero.
    Absent,
    /// The table entry cannot be followed.
    Unreadable,
    /// The block.
    Bytes(&'a [u8]),
}

/// Refcount table and blocks of the image.
pub(super) struct Stored {
    geometry: Geometry,
    /// Table entries as stored, reserved bits included.
    pub table: Vec<u64>,
    cache: HashMap<u64, Vec<u8>>,
    /// Blocks changed and not yet written.
    dirty: Vec<u64>,
}

impl Stored {
    /// Reads the table, whose size the header check has bounded to 8 MiB.
    pub fn load(storage: &dyn Storage, header: &Header, file_length: u64) -> Result<Stored> {
        let geometry = header.geometry();
        let bytes = u64::from(header.refcount_table_clusters) << header.cluster_bits;
        // Past the end of the file all entries are zero; no memory for them.
        let inside = bytes.min(file_length.saturating_sub(header.refcount_table_offset)).div_ceil(8) * 8;
        let mut buffer = zeroed(inside)?;
        read_exact(storage, Purpose::RefcountTable, header.refcount_table_offset, &mut buffer)?;
        let mut table = Vec::new();
        table.try_reserve_exact((inside / 8) as usize).map_err(|_| no_memory())?;
        table.extend(be64s(&buffer));
        Ok(Stored { geometry, table, cache: HashMap::new(), dirty: Vec::new() })
    }

    /// Table entry `block_index`, reserved bits included; 0 past the table.
    pub fn entry(&self, block_index: u64) -> u64 {
        usize::try_from(block_index).ok().and_then(|i| self.table.get(i).copied()).unwrap_or(0)
    }

    /// Host offset of block `block_index`: `Ok(0)` for none, `Err` for an offset that cannot be one.
    fn offset(&self, block_index: u64) -> std::result::Result<u64, u64> {
        let offset = self.entry(block_index) & !REFCOUNT_TABLE_RESERVED;
        if self.geometry.in_cluster(offset) != 0 || offset >= 1 << 63 {
            return Err(offset);
        }
        Ok(offset)
    }

    /// The misaligned offset of a table entry that cannot be followed.
    pub fn misaligned(&self, block_index: u64) -> Option<u64> {
        self.offset(block_index).err().filter(|o| self.geometry.in_cluster(*o) != 0)
    }

    /// Block `block_index`.
    pub fn block(&mut self, storage: &dyn Storage, block_index: u64) -> Result<Block<'_>> {
        let offset = match self.offset(block_index) {
            Ok(0) => return Ok(Block::Absent),
            Err(_) => return Ok(Block::Unreadable),
            Ok(offset) => offset,
        };
        if !self.cache.contains_key(&block_index) {
            let cluster_bytes = self.geometry.cluster_bytes();
            let blocks = self.neighbours(block_index, offset);
            if (self.cache.len() as u64 + blocks) * cluster_bytes > CACHE_BYTES.max(2 * cluster_bytes) {
                self.write_back(storage)?;
                self.cache.clear();
            }
            let mut bytes = vec![0; (blocks * cluster_bytes) as usize];
            read_exact(storage, Purpose::RefcountBlock, offset, &mut bytes)?;
            for (index, block) in (block_index..).zip(bytes.chunks_exact(cluster_bytes as usize)) {
                self.cache.insert(index, block.to_vec());
            }
        }
        Ok(match self.cache.get(&block_index) {
            Some(bytes) => Block::Bytes(bytes),
            None => Block::Absent,
        })
    }

    /// How many blocks from this one on, none of the others in the cache, follow each other in the file: they are
    /// read at once.
    fn neighbours(&self, block_index: u64, offset: u64) -> u64 {
        let cluster_bytes = self.geometry.cluster_bytes();
        let follows = |n: &u64| {
            self.entry(block_index + n) == offset + n * cluster_bytes
                && !self.cache.contains_key(&(block_index + n))
        };
        1 + (1..READ_BYTES / cluster_bytes).take_while(follows).count() as u64
    }

    /// Stored count of a cluster; `None` when its block cannot be followed.
    pub fn get(&mut self, storage: &dyn Storage, cluster: u64) -> Result<Option<u64>> {
        let geometry = self.geometry;
        let index = geometry.refcount_block_index(cluster);
        Ok(match self.block(storage, geometry.refcount_table_index(cluster))? {
            Block::Absent => Some(0),
            Block::Unreadable => None,
            Block::Bytes(bytes) => Some(refcount::get(bytes, geometry.refcount_order, index)),
        })
    }

    /// Changes a count of a block that exists; false when there is none. Written by `write_back`.
    pub fn set(&mut self, storage: &dyn Storage, cluster: u64, value: u64) -> Result<bool> {
        let geometry = self.geometry;
        let block_index = geometry.refcount_table_index(cluster);
        if !matches!(self.block(storage, block_index)?, Block::Bytes(_)) {
            return Ok(false);
        }
        if let Some(bytes) = self.cache.get_mut(&block_index) {
            let index = geometry.refcount_block_index(cluster);
            refcount::set(bytes, geometry.refcount_order, index, value);
            if self.dirty.last() != Some(&block_index) {
                self.dirty.push(block_index);
            }
        }
        Ok(true)
    }

    /// Writes every changed block. Each count is right before and after, so their order does not matter.
    pub fn write_back(&mut self, storage: &dyn Storage) -> Result<()> {
        self.dirty.sort_unstable();
        self.dirty.dedup();
        for block_index in std::mem::take(&mut self.dirty) {
            if let (Some(bytes), Ok(offset)) = (self.cache.get(&block_index), self.offset(block_index)) {
                write_all(storage, Purpose::RefcountBlock, offset, bytes)?;
            }
        }
        Ok(())
    }
}
