//! Guest range to extents. Takes no lock; the caller holds a pin.

use super::{Look, Map};
use crate::error::Result;
use crate::format::entries::{
    CompressedSpan, L2Entry, Mapping, RawL2, COMPRESSED, COPIED, OFFSET_MASK, ZERO,
};
use crate::format::{index_in_memory, GuestCluster, GuestOffset, HostOffset};
use std::sync::Arc;

/// Where the bytes of an extent are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the data file, at the extent's host offset.
    Data,
    /// Nowhere: they are zeroes. The host offset, if any, is a cluster kept for later.
    Zero,
    /// Not in this image: in the backing file, or zeroes.
    Hole,
    /// Inside a compressed cluster; the extent does not cross its end.
    Compressed(CompressedSpan),
}

/// A run of guest bytes with one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where the bytes are.
    pub source: Source,
    /// Length in bytes, at least 1.
    pub length: u64,
    /// Host offset of the first byte, when a host cluster is assigned.
    pub host: Option<HostOffset>,
    /// `Data` that may be overwritten where it is: nothing else refers to the clusters.
    pub in_place: bool,
}

impl Map {
    /// Looks a request of `bytes` at `guest_offset` up without loading anything: the common case of a standard
    /// entry whose slice is in a cache that holds the whole disk.
    #[inline(always)]
    pub fn look(&self, guest_offset: GuestOffset, bytes: u64) -> Look {
        match self.front.look(guest_offset, bytes) {
            Some(look) => look,
            None => self.look_tableless(guest_offset),
        }
    }

    fn look_tableless(&self, guest_offset: GuestOffset) -> Look {
        match self.l1.word(index_in_memory(self.geometry.l1_index(guest_offset))) {
            Some(table) if table & OFFSET_MASK == 0 => Look::Hole,
            _ => Look::Unknown,
        }
    }

    /// The extent at `guest_offset`, at most `max_bytes` long. `max_bytes` is at least 1 and the range is
    /// inside the disk.
    #[inline]
    pub fn resolve(&self, guest_offset: GuestOffset, max_bytes: u64) -> Result<Extent> {
        let geometry = &self.geometry;
        let l1_index = geometry.l1_index(guest_offset);
        let table = self.l1_entry(l1_index)?.table_offset();
        if table == 0 {
            return self.resolve_tableless(guest_offset, max_bytes);
        }
        let cluster = geometry.cluster_index(guest_offset);
        let key = self.slice_key(cluster);
        if let Some(page) = self.front.page(key) {
            return self.resolve_in(page, guest_offset, max_bytes);
        }
        // The common case needs the page for no more than a look; a broken entry is for whoever has it in hand.
        let found = self.cache.find(key, |page| match self.resolve_inside(page, guest_offset, max_bytes) {
            Some(extent) => (Some(extent), None),
            None => (None, Some(Arc::clone(page))),
        });
        let page = match found {
            Some((Some(extent), _)) => return Ok(extent),
            Some((None, Some(page))) => page,
            _ => self.slice(cluster, table, super::Access::Look)?,
        };
        self.resolve_in(&page, guest_offset, max_bytes)
    }

    /// As `resolve`, for a read: data that goes on in the file where the next slice begins is one extent.
    pub fn resolve_long(&self, guest_offset: GuestOffset, max_bytes: u64) -> Result<Extent> {
        let mut extent = self.resolve(guest_offset, max_bytes)?;
        while let (Source::Data, Some(host)) = (extent.source, extent.host) {
            if extent.length >= max_bytes {
                break;
            }
            // A broken entry is the next request's error, not this one's.
            let next = self.resolve(guest_offset + extent.length, max_bytes - extent.length);
            let Ok(next) = next else { break };
            if next.source != Source::Data || next.host != Some(host + extent.length) {
                break;
            }
            extent.length += next.length;
            extent.in_place &= next.in_place;
        }
        Ok(extent)
    }

    /// A hole as long as there are no L2 tables.
    fn resolve_tableless(&self, guest_offset: GuestOffset, max_bytes: u64) -> Result<Extent> {
        let table_bytes = self.geometry.l2_table_guest_bytes();
        let mut length = table_bytes - (guest_offset.0 & (table_bytes - 1));
        let mut index = self.geometry.l1_index(guest_offset) + 1;
        while length < max_bytes && index < self.l1_entries && self.l1_entry(index)?.table_offset() == 0 {
            length = length.saturating_add(table_bytes);
            index += 1;
        }
        Ok(Extent { source: Source::Hole, length: length.min(max_bytes), host: None, in_place: false })
    }

    #[inline]
    fn resolve_in(
        &self,
        page: &crate::meta::Page,
        guest_offset: GuestOffset,
        max_bytes: u64,
    ) -> Result<Extent> {
        let geometry = &self.geometry;
        let cluster = geometry.cluster_index(guest_offset);
        let index = self.index_in_slice(cluster);
        let in_cluster = geometry.in_cluster(guest_offset);
        if let Some(extent) = self.resolve_inside(page, guest_offset, max_bytes) {
            return Ok(extent);
        }
        let raw = page.entry(index);
        let mut extent = self.extent_at(cluster, raw, in_cluster)?;
        if extent.length >= max_bytes {
            extent.length = max_bytes;
            return Ok(extent);
        }
        if matches!(extent.source, Source::Compressed(_)) {
            return Ok(extent);
        }
        self.extend(page, cluster, index, in_cluster, max_bytes, &mut extent)?;
        Ok(extent)
    }

    /// The common case: a request inside one cluster with data. Entries are looked at, and nothing else is done.
    #[inline]
    fn resolve_inside(
        &self,
        page: &crate::meta::Page,
        guest_offset: GuestOffset,
        max_bytes: u64,
    ) -> Option<Extent> {
        let in_cluster = self.geometry.in_cluster(guest_offset);
        if self.geometry.extended_l2 || self.geometry.cluster_bytes() - in_cluster < max_bytes {
            return None;
        }
        let cluster = self.geometry.cluster_index(guest_offset);
        let raw = page.entry(self.index_in_slice(cluster));
        let host = self.plain_data(cluster, raw)?;
        Some(Extent {
            source: Source::Data,
            length: max_bytes,
            host: Some(host + in_cluster),
            in_place: raw.descriptor & COPIED != 0,
        })
    }

    /// The host cluster of a standard entry that holds data and nothing else; `None`: decode it in full.
    #[inline]
    fn plain_data(&self, cluster: GuestCluster, raw: RawL2) -> Option<HostOffset> {
        let host = raw.descriptor & OFFSET_MASK;
        let other = COMPRESSED | ZERO;
        let simple = !self.geometry.extended_l2 && raw.descriptor & other == 0 && host != 0;
        let in_place = !self.geometry.external_data || host == self.geometry.cluster_offset(cluster).0;
        (simple && in_place && self.geometry.in_cluster(host) == 0).then_some(HostOffset(host))
    }

    /// Lengthens an extent over the following subclusters and entries of the slice while they continue it.
    fn extend(
        &self,
        page: &crate::meta::Page,
        mut cluster: GuestCluster,
        mut index: usize,
        mut in_cluster: u64,
        max_bytes: u64,
        extent: &mut Extent,
    ) -> Result<()> {
        let cluster_bytes = self.geometry.cluster_bytes();
        let mut last = extent.length;
        while extent.length < max_bytes {
            in_cluster += last;
            if in_cluster == cluster_bytes {
                in_cluster = 0;
                cluster += 1;
                index += 1;
                if index == page.entry_count() {
                    break;
                }
            }
            // A broken entry is the next request's error, not this one's.
            let Ok(next) = self.extent_at(cluster, page.entry(index), in_cluster) else { break };
            let follows = next.source == extent.source
                && next.in_place == extent.in_place
                && next.host == extent.host.map(|h| h + extent.length)
                && !matches!(next.source, Source::Compressed(_));
            if !follows {
                break;
            }
            last = next.length;
            extent.length += last;
        }
        extent.length = extent.length.min(max_bytes);
        Ok(())
    }

    /// The extent from `in_cluster` to the end of its run of like subclusters.
    #[inline]
    fn extent_at(&self, cluster: GuestCluster, raw: RawL2, in_cluster: u64) -> Result<Extent> {
        let cluster_bytes = self.geometry.cluster_bytes();
        match self.decode(cluster, raw)? {
            L2Entry::Compressed(span) => Ok(Extent {
                source: Source::Compressed(span),
                length: cluster_bytes - in_cluster,
                host: None,
                in_place: false,
            }),
            L2Entry::Plain(mapping) => {
                let bits = self.geometry.subcluster_bits();
                let first = (in_cluster >> bits) as u32;
                let source = source_of(&mapping, first);
                let mut end = first + 1;
                while end < self.geometry.subcluster_count() && source_of(&mapping, end) == source {
                    end += 1;
                }
                Ok(Extent {
                    source,
                    length: (u64::from(end) << bits) - in_cluster,
                    host: mapping.host.map(|h| h + in_cluster),
                    in_place: source == Source::Data && mapping.copied,
                })
            }
        }
    }
}

fn source_of(mapping: &Mapping, subcluster: u32) -> Source {
    if mapping.alloc >> subcluster & 1 != 0 {
        Source::Data
    } else if mapping.zero >> subcluster & 1 != 0 {
        Source::Zero
    } else {
        Source::Hole
    }
}
