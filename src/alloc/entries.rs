//! The entries of the refcount table in memory. Past the last block there are only zeroes, in most tables nearly all of it:
//! no memory is touched for these, so that an open costs what the image uses.

use crate::error::{room, Result};
use crate::format::index_in_memory;

/// See the module.
pub(super) struct Entries {
    /// Up to the last one that is not zero, with room for all.
    stored: Vec<u64>,
    count: u64,
}

impl Entries {
    /// A table of `count` zeroes.
    pub fn zeroes(count: u64) -> Result<Entries> {
        Ok(Entries { stored: room("refcount table", count)?, count })
    }

    /// Entries of the table, zeroes too.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// `None` past the end of the table.
    #[inline]
    pub fn get(&self, index: u64) -> Option<u64> {
        match self.stored.get(index_in_memory(index)) {
            Some(entry) => Some(*entry),
            None => (index < self.count).then_some(0),
        }
    }

    /// Sets an entry of the table.
    pub fn set(&mut self, index: u64, entry: u64) {
        debug_assert!(index < self.count);
        let place = index_in_memory(index);
        if place >= self.stored.len() {
            if entry == 0 {
                return;
            }
            self.stored.resize(place + 1, 0);
        }
        self.stored[place] = entry;
    }

    /// Sets entries from `index` on.
    pub fn set_all(&mut self, index: u64, entries: impl Iterator<Item = u64>) {
        (index..).zip(entries).for_each(|(i, entry)| self.set(i, entry));
    }

    /// All that are not behind the last one that is not zero.
    pub fn stored(&self) -> &[u64] {
        &self.stored
    }

    /// Entries `[from, to)`, as the file has them.
    pub fn bytes(&self, from: u64, to: u64) -> Result<Vec<u8>> {
        let stored = |index: u64| index_in_memory(index).min(self.stored.len());
        let mut bytes = room("refcount table", (to - from) * 8)?;
        let part = &self.stored[stored(from)..stored(to)];
        part.iter().for_each(|entry| bytes.extend_from_slice(&entry.to_be_bytes()));
        bytes.resize(index_in_memory((to - from) * 8), 0);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_stored_is_zero_up_to_the_end() {
        let mut entries = Entries::zeroes(6).unwrap();
        entries.set_all(0, [0, 7, 0, 9, 0, 0].into_iter());
        assert_eq!(entries.stored(), [0, 7, 0, 9]);
        assert_eq!(
            [0, 1, 3, 4, 5, 6].map(|i| entries.get(i)),
            [Some(0), Some(7), Some(9), Some(0), Some(0), None]
        );
        assert_eq!(entries.len(), 6);
        for (from, to) in [(0, 6), (2, 4), (3, 6), (4, 6), (1, 2)] {
            let whole: Vec<u8> = (from..to).flat_map(|i| entries.get(i).unwrap().to_be_bytes()).collect();
            assert_eq!(entries.bytes(from, to).unwrap(), whole);
        }
        entries.set(3, 0);
        assert_eq!(entries.get(3), Some(0));
    }
}
