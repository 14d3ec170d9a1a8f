//! Write-zeroes and discard.
//!
//! Zeroing a whole cluster changes its entry only; what it referred to is let go of or kept for later
//! writes. Part of a cluster is widened to the whole where the rest reads as zeroes anyway; otherwise zero
//! bytes are written. Version 2 has no zero flag: there a cluster becomes a hole, which reads as zeroes only
//! without a backing file; with one, zero bytes are written and a discard does nothing (story C7).

use super::data_file::RawZeroes;
use super::{check_range, Core, Io, ZeroFlags};
use crate::error::{Error, Result};
use crate::format::entries::{L2Entry, Mapping};
use crate::format::{GuestCluster, GuestOffset};
use crate::map::{Claim, NewEntry};
use crate::options::Discard;
use crate::planted::{planted, Plant};
use crate::storage::medium::Written;
use std::io::IoSlice;

/// Guest clusters that one claim covers.
const STEP_CLUSTERS: u64 = 4096;
/// Largest buffer of zero bytes that is written at once.
const ZERO_BYTES: usize = 1 << 20;

/// What becomes of whole clusters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ClusterChange {
    /// Reads as zeroes, host clusters kept.
    Zero,
    /// Reads as zeroes, host clusters let go of.
    ZeroUnmap,
    /// Let go of; reads as zeroes or as it did.
    Discard,
}

impl Core {
    /// Makes `[offset, offset + length)` read as zeroes.
    pub(crate) fn write_zeroes(&self, offset: GuestOffset, length: u64, flags: ZeroFlags) -> Result<()> {
        check_range(self.virtual_size, offset.0, length)?;
        let (io, _) = self.begin_change(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        let change = if flags.unmap && self.settings.options.discard == Discard::Unmap {
            ClusterChange::ZeroUnmap
        } else {
            ClusterChange::Zero
        };
        let end = offset + length;
        let (first, last) = self.whole_clusters(offset, end);
        if first >= last {
            // Inside one cluster, or across one boundary.
            let middle = self.geometry.cluster_floor(GuestOffset(end.0 - 1)).max(offset);
            if middle > offset {
                self.zero_part(io, offset, middle, change, flags)?;
            }
            return self.zero_part(io, middle, end, change, flags);
        }
        let (from, to) = (self.geometry.cluster_offset(first), self.geometry.cluster_offset(last));
        if offset < from {
            self.zero_part(io, offset, from, change, flags)?;
        }
        if to < end {
            self.zero_part(io, to, end, change, flags)?;
        }
        self.change_clusters(io, first, last, change, flags)
    }

    /// Clusters wholly inside `[offset, end)`; the disk's last cluster counts as whole when the range reaches
    /// the end of the disk.
    fn whole_clusters(&self, offset: GuestOffset, end: GuestOffset) -> (GuestCluster, GuestCluster) {
        let first = self.geometry.cluster_after(offset);
        let last = if end == self.disk_end() {
            self.geometry.cluster_after(end)
        } else {
            self.geometry.cluster_index(end)
        };
        (first, last)
    }

    /// Zeroes a part of one cluster.
    fn zero_part(
        &self,
        io: &Io,
        from: GuestOffset,
        to: GuestOffset,
        change: ClusterChange,
        flags: ZeroFlags,
    ) -> Result<()> {
        let cluster = self.geometry.cluster_index(from);
        let start = self.geometry.cluster_offset(cluster);
        let cluster_end = (start + self.geometry.cluster_bytes()).min(self.disk_end());
        // What is zeroed may show a disk below; what this image has there stays allocated.
        let may_widen = self.is_unassigned(io, from)? && self.rest_is_zero(start, from, to, cluster_end)?;
        if may_widen && self.change_widened(io, (from, to), change, flags, cluster_end)? {
            return Ok(());
        }
        if self.geometry.extended_l2 {
            return self.zero_subclusters(io, from, to, flags);
        }
        self.write_zero_bytes(from, to, flags)
    }

    /// Whether `[start, end)` reads as zeroes but for `[from, to)`.
    fn rest_is_zero(
        &self,
        start: GuestOffset,
        from: GuestOffset,
        to: GuestOffset,
        end: GuestOffset,
    ) -> Result<bool> {
        Ok(self.reads_zero(start, from - start)? && self.reads_zero(to, end - to)?)
    }

    /// Zeroes a whole cluster for a request on `part` of it; `false` when somebody has written it meanwhile.
    fn change_widened(
        &self,
        io: &Io,
        (from, to): (GuestOffset, GuestOffset),
        change: ClusterChange,
        flags: ZeroFlags,
        cluster_end: GuestOffset,
    ) -> Result<bool> {
        let cluster = self.geometry.cluster_index(from);
        let start = self.geometry.cluster_offset(cluster);
        let claim = io.map.claim(cluster, cluster + 1);
        // Who writes the cluster for the first time holds its claim: from here on this does not change.
        if !self.is_unassigned(io, start)? || !self.rest_is_zero(start, from, to, cluster_end)? {
            return Ok(false);
        }
        let old = io.map.entry(&claim, cluster)?;
        let Some(new) = self.changed_entry(&old, change) else { return Ok(false) };
        if L2Entry::Plain(new) != old {
            io.map.own_table(&claim, cluster)?;
            let RawZeroes::Ready(zeroed) = self.zero_raw_data_for(change, start, cluster_end, flags)? else {
                return Ok(true);
            };
            if self.replace(io, &claim, cluster, &old, new, zeroed)? {
                self.give_back_data(start, cluster_end)?;
            }
        }
        Ok(true)
    }

    /// Whether the cluster at `offset` has no data in this image.
    fn is_unassigned(&self, io: &Io, offset: GuestOffset) -> Result<bool> {
        let extent = io.map.resolve(offset, 1)?;
        Ok(matches!(extent.source, crate::map::Source::Hole | crate::map::Source::Zero))
    }

    /// The subclusters of one cluster that `[from, to)` covers, and those at its edges that this image has nothing of and
    /// whose rest reads as zeroes.
    fn widened(&self, io: &Io, from: GuestOffset, to: GuestOffset) -> Result<(GuestOffset, GuestOffset)> {
        let sub = self.geometry.subcluster_bytes();
        let may_widen = |start: GuestOffset| -> Result<bool> {
            let end = (start + sub).min(self.disk_end());
            Ok(self.is_unassigned(io, start)?
                && self.rest_is_zero(start, from.max(start), to.min(end), end)?)
        };
        let (first, last) = (from.floor_to(sub), GuestOffset(to.0 - 1).floor_to(sub));
        let inner_from = if from == first || may_widen(first)? { first } else { first + sub };
        let ends_whole = to.0 % sub == 0 || (to == self.disk_end() && last >= from);
        let inner_to = if ends_whole || may_widen(last)? { last + sub } else { last };
        Ok((inner_from, inner_to))
    }

    /// Zeroes whole subclusters of one cluster by their bits, and the edges by writing.
    fn zero_subclusters(&self, io: &Io, from: GuestOffset, to: GuestOffset, flags: ZeroFlags) -> Result<()> {
        let (inner_from, inner_to) = self.widened(io, from, to)?;
        if inner_from >= inner_to {
            return self.write_zero_bytes(from, to, flags);
        }
        if from < inner_from {
            self.write_zero_bytes(from, inner_from, flags)?;
        }
        if inner_to < to {
            self.write_zero_bytes(inner_to, to, flags)?;
        }
        let cluster = self.geometry.cluster_index(from);
        let start = self.geometry.cluster_offset(cluster);
        let claim = io.map.claim(cluster, cluster + 1);
        if self.widened(io, from, to)? != (inner_from, inner_to) {
            // Somebody has written an edge meanwhile.
            drop(claim);
            return self.write_zero_bytes(from, to, flags);
        }
        let L2Entry::Plain(old) = io.map.entry(&claim, cluster)? else {
            drop(claim);
            return self.write_zero_bytes(inner_from, inner_to, flags);
        };
        let bits = self.geometry.subclusters_touched(inner_from - start, inner_to - start);
        let mapping = Mapping { alloc: old.alloc & !bits, zero: old.zero | bits, ..old };
        if mapping == old {
            return Ok(());
        }
        io.map.own_table(&claim, cluster)?;
        let RawZeroes::Ready(zeroed) =
            self.zero_raw_data_for(ClusterChange::Zero, inner_from, inner_to, flags)?
        else {
            return Ok(());
        };
        io.map.unmap(&claim, cluster, NewEntry { new: mapping.into(), dropped: None }, zeroed)
    }

    fn write_zero_bytes(&self, from: GuestOffset, to: GuestOffset, flags: ZeroFlags) -> Result<()> {
        if flags.no_fallback {
            return Err(Error::unsupported(format!(
                "zeroing {} bytes at {from}: only by writing zeroes, which the caller did not want",
                to - from
            )));
        }
        let zeroes = vec![0; (to - from).min(ZERO_BYTES as u64) as usize];
        let mut at = from;
        while at < to {
            let bytes = (to - at).min(ZERO_BYTES as u64);
            self.write(at, &[IoSlice::new(&zeroes[..bytes as usize])])?;
            at += bytes;
        }
        Ok(())
    }

    /// Lets go of the whole clusters in `[offset, offset + length)`.
    pub(super) fn discard(&self, offset: GuestOffset, length: u64) -> Result<()> {
        check_range(self.virtual_size, offset.0, length)?;
        // In version 2 an entry cannot say that it is zeroes where a backing file would show.
        let says_nothing = self.geometry.version < 3 && self.has_backing();
        if self.settings.options.discard == Discard::Ignore || says_nothing {
            return self.begin_change(offset, 0).map(drop);
        }
        let (io, _) = self.begin_change(offset, length)?;
        let (first, last) = self.whole_clusters(offset, offset + length);
        if first >= last {
            return Ok(());
        }
        self.change_clusters(io, first, last, ClusterChange::Discard, ZeroFlags::default())
    }

    fn change_clusters(
        &self,
        io: &Io,
        first: GuestCluster,
        last: GuestCluster,
        change: ClusterChange,
        flags: ZeroFlags,
    ) -> Result<()> {
        let mut at = first;
        while at < last {
            let table_end = self.geometry.table_end(at);
            let end = last.min(table_end).min(at + STEP_CLUSTERS);
            if change == ClusterChange::Discard
                && !self.has_backing()
                && self.skip_tableless(io, &mut at, last)?
            {
                continue;
            }
            let by_hand = self.change_step(io, at, end, change, flags)?;
            for cluster in by_hand {
                let from = self.geometry.cluster_offset(cluster);
                let to = (from + self.geometry.cluster_bytes()).min(self.disk_end());
                self.write_zero_bytes(from, to, flags)?;
            }
            if let Some(alloc) = &io.alloc {
                self.relieve(io, alloc)?;
            }
            at = end;
        }
        Ok(())
    }

    /// Passes over guest ranges without an L2 table in one step: a discard has nothing to do there.
    fn skip_tableless(&self, io: &Io, at: &mut GuestCluster, last: GuestCluster) -> Result<bool> {
        let from = self.geometry.cluster_offset(*at);
        let to = self.geometry.cluster_offset(last).min(self.disk_end());
        let extent = io.map.resolve(from, to - from)?;
        let clusters = extent.length >> self.geometry.cluster_bits;
        if extent.source != crate::map::Source::Hole || extent.host.is_some() || clusters == 0 {
            return Ok(false);
        }
        *at += clusters;
        Ok(true)
    }

    /// Changes the entries of claimed clusters; returns those that must be zeroed by writing.
    fn change_step(
        &self,
        io: &Io,
        first: GuestCluster,
        end: GuestCluster,
        change: ClusterChange,
        flags: ZeroFlags,
    ) -> Result<Vec<GuestCluster>> {
        let claim = io.map.claim(first, end);
        let (from, to) = (self.geometry.cluster_offset(first), self.geometry.cluster_offset(end));
        let RawZeroes::Ready(zeroed) = self.zero_raw_data_for(change, from, to, flags)? else {
            return Ok(Vec::new());
        };
        let mut by_hand = Vec::new();
        let mut owned = false;
        // Of a data file, clusters in a row that are to be given back together.
        let mut freed = None;
        for cluster in first.to(end) {
            let old = io.map.entry(&claim, cluster)?;
            let new = match self.changed_entry(&old, change) {
                Some(new) => new,
                None => {
                    by_hand.push(cluster);
                    continue;
                }
            };
            if L2Entry::Plain(new) == old {
                continue;
            }
            if !owned {
                io.map.own_table(&claim, cluster)?;
                owned = true;
            }
            if self.replace(io, &claim, cluster, &old, new, zeroed)? {
                freed = match freed {
                    Some((from, to)) if to == cluster => Some((from, cluster + 1)),
                    before => {
                        self.give_back_clusters(before)?;
                        Some((cluster, cluster + 1))
                    }
                };
            }
        }
        self.give_back_clusters(freed)?;
        if self.geometry.version < 3 && self.has_backing() && change != ClusterChange::Discard {
            let mut needed = Vec::new();
            for cluster in by_hand {
                let from = self.geometry.cluster_offset(cluster);
                let bytes = self.geometry.cluster_bytes().min(self.disk_end() - from);
                if !self.reads_zero(from, bytes)? {
                    needed.push(cluster);
                }
            }
            return Ok(needed);
        }
        Ok(by_hand)
    }

    /// Links `new`; whether it lets go of the host cluster.
    fn replace(
        &self,
        io: &Io,
        claim: &Claim<'_>,
        cluster: GuestCluster,
        old: &L2Entry,
        new: Mapping,
        zeroed: Option<Written>,
    ) -> Result<bool> {
        let keeps_host = matches!(old, L2Entry::Plain(m) if m.host == new.host);
        let dropped = if keeps_host { None } else { self.dropped_by(old, true) };
        io.map.unmap(claim, cluster, NewEntry { new: new.into(), dropped }, zeroed)?;
        Ok(!keeps_host)
    }

    fn give_back_clusters(&self, clusters: Option<(GuestCluster, GuestCluster)>) -> Result<()> {
        let Some((first, end)) = clusters else { return Ok(()) };
        self.give_back_data(self.geometry.cluster_offset(first), self.geometry.cluster_offset(end))
    }

    /// What a raw data file needs before entries of `[from, to)` change; see `zero_raw_data`.
    fn zero_raw_data_for(
        &self,
        change: ClusterChange,
        from: GuestOffset,
        to: GuestOffset,
        flags: ZeroFlags,
    ) -> Result<RawZeroes> {
        let passed = change == ClusterChange::ZeroUnmap || self.settings.options.passes_discard_request();
        self.zero_raw_data(
            from,
            to,
            change != ClusterChange::Zero && passed,
            change == ClusterChange::Discard,
            flags,
        )
    }

    /// The new mapping of a whole cluster; `None` when only writing zeroes will do.
    fn changed_entry(&self, old: &L2Entry, change: ClusterChange) -> Option<Mapping> {
        let all = self.geometry.all_subclusters();
        let plain = match old {
            L2Entry::Plain(m) => Some(*m),
            L2Entry::Compressed(_) => None,
        };
        if self.geometry.version < 3 {
            // A hole would show the backing file.
            return (!self.has_backing()).then(Mapping::default);
        }
        let zero = Mapping { zero: all, ..Mapping::default() };
        let kept = plain.map_or(zero, |m| Mapping { alloc: 0, zero: all, ..m });
        Some(match change {
            ClusterChange::Zero => kept,
            ClusterChange::ZeroUnmap if self.settings.options.discard_no_unref => kept,
            ClusterChange::ZeroUnmap => zero,
            // Nothing there and nothing below: it stays as it is.
            ClusterChange::Discard if !self.has_backing() && plain.is_some_and(|m| m.host.is_none()) => {
                plain?
            }
            ClusterChange::Discard if self.settings.options.discard_no_unref => kept,
            ClusterChange::Discard if planted(Plant::DiscardShowsBacking) => Mapping::default(),
            ClusterChange::Discard => zero,
        })
    }
}
