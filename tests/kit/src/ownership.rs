//! Who may write where (story C13): every write of a trace, guest data too, against the owner of its clusters.

use crate::oracle::{be32, be64, Head, Use, COMPRESSED, OFFSET};
use crate::recorder::{Event, What};
use crate::rules::{is_l2, Trace};
use qcow2::testing::storage::Purpose;

/// Fixed fields of the header that the library knows: what follows stays as it is, byte for byte.
const KNOWN_BYTES: [usize; 2] = [72, 104];

impl Trace<'_> {
    /// Who refers to `cluster` in the durable view, or in a replaced version that may still become durable.
    pub(crate) fn possible_uses(&mut self, head: &Head, cluster: u64) -> Vec<Use> {
        let mut uses = self.owners().uses(cluster).to_vec();
        let wanted = cluster << head.cluster_bits;
        let named = Head::parse(&self.durable);
        let in_force = |event: &Event, level: u32| {
            let mut heads = named.iter().chain([head]);
            heads.any(|h| self.is_live_table(h, event.offset, event.length, level))
        };
        for event in self.pending() {
            let owner = match (event.what, event.purpose) {
                // In an external data file it is not a cluster of the image.
                (What::Write, Purpose::L2) if !head.has_data_file() => Use::Data { guest_cluster: u64::MAX },
                // One that no header has named refers to nothing.
                (What::Write, Purpose::L1) if in_force(event, 1) => Use::L2 { l1_index: u64::MAX },
                (What::Write, Purpose::RefcountTable) if in_force(event, 3) => {
                    Use::RefcountBlock { index: u64::MAX }
                }
                _ => continue,
            };
            // What is still in force shows in the issued view; here are the versions before.
            let replaced = |i: usize| be64(&self.issued, event.offset as usize + i * 8) & OFFSET != wanted;
            let mut entries = event.bytes.chunks_exact(8).enumerate();
            let found = entries.find(|(i, e)| be64(e, 0) & OFFSET == wanted && replaced(*i));
            if let Some((_, entry)) = found.filter(|_| wanted != 0) {
                let stream = event.purpose == Purpose::L2 && be64(entry, 0) & COMPRESSED != 0;
                uses.push(if stream { Use::Stream { guest_cluster: u64::MAX } } else { owner });
            }
        }
        uses
    }

    /// C13, R4: guest data goes to a cluster of the same guest range, or to one that nothing refers to.
    pub(crate) fn data(&mut self, head: &Head, event: &Event) -> Result<(), String> {
        let bits = head.cluster_bits;
        let Some(request) = event.request else {
            return Err("guest data outside a request: nobody can tell whose it is".into());
        };
        let Some((from, to)) = request.guest else {
            // Room that a resize prepares.
            return self.unowned(head, event.offset, event.length, "C13: data of no guest range over");
        };
        let live = self.live()?;
        let guest = |u: &Use| matches!(u, Use::Data { guest_cluster: g } | Use::Stream { guest_cluster: g } if g << bits < to && from < (g + 1) << bits);
        let range = (event.offset, event.offset + event.length);
        let hit = self.owners().stream_hit(range.0, range.1, guest);
        if let Some(other) = hit.or_else(|| live.stream_hit(range.0, range.1, guest)) {
            return Err(format!("C13: data over a compressed stream: {other:?}"));
        }
        for cluster in event.offset >> bits..=(event.offset + event.length - 1) >> bits {
            let durable = self.owners().uses(cluster).to_vec();
            if let Some(other) =
                durable.iter().chain(live.uses(cluster)).find(|u| !guest(u) && !u.is_stream())
            {
                return Err(format!(
                    "C13: data of another guest range over host cluster {cluster}: {other:?}"
                ));
            }
            // A late write of a request that was inside when its cluster was dropped harms nobody.
            if !self.threads
                && durable.is_empty()
                && live.uses(cluster).is_empty()
                // Behind a stream that may come back another one starts; they share the cluster.
                && self.possible_uses(head, cluster).iter().any(|u| !u.is_stream())
            {
                return Err(format!("R4: host cluster {cluster} may still be referred to"));
            }
        }
        Ok(())
    }

    /// R4: nothing may refer to the range, now or after a power cut.
    pub(crate) fn unowned(
        &mut self,
        head: &Head,
        offset: u64,
        length: u64,
        what: &str,
    ) -> Result<(), String> {
        let live = self.live()?;
        for cluster in offset >> head.cluster_bits..=(offset + length - 1) >> head.cluster_bits {
            let mut uses = self.possible_uses(head, cluster);
            uses.extend(live.uses(cluster));
            if let Some(owner) = uses.first() {
                return Err(format!("{what} host cluster {cluster}: {owner:?}"));
            }
        }
        Ok(())
    }

    /// R5: a table that nothing points to is written over nobody's clusters.
    pub(crate) fn unlinked(&mut self, head: &Head, event: &Event) -> Result<(), String> {
        self.unowned(head, event.offset, event.length, "C13: new table over")
    }

    /// Nothing that is referred to is cut off.
    pub(crate) fn length(&mut self, head: &Head, length: u64) -> Result<(), String> {
        let end = (self.issued.len() as u64).div_ceil(head.cluster_bytes());
        let first = length.div_ceil(head.cluster_bytes());
        if first >= end {
            return Ok(());
        }
        let (from, bytes) = (first << head.cluster_bits, (end - first) << head.cluster_bits);
        self.unowned(head, from, bytes, "the file is cut before")
    }

    /// Whether a write of an L2 table goes to a live one, which must be the disk's alone.
    pub(crate) fn owns_l2(&mut self, head: &Head, event: &Event) -> Result<bool, String> {
        let live = self.live()?;
        let cluster = event.offset >> head.cluster_bits;
        let uses = live.uses(cluster);
        if !uses.iter().any(is_l2) {
            return Ok(
                uses.iter().any(|u| matches!(u, Use::SnapshotL2 { .. })) && self.takes_zero_flags(event)
            );
        }
        if (event.offset + event.length - 1) >> head.cluster_bits != cluster {
            return Err("C13: an L2 table is written past its end".into());
        }
        match uses.iter().find(|u| !is_l2(u)) {
            Some(_) if self.takes_zero_flags(event) => Ok(true),
            Some(other) => Err(format!("C5: the L2 table is not the disk's alone: {other:?}")),
            None => Ok(true),
        }
    }

    /// Of an L2 table, only entries with a zero flag change, and have none afterwards: what a snapshot shows stays.
    fn takes_zero_flags(&self, event: &Event) -> bool {
        let of_guest = event.request.is_none_or(|r| r.guest.is_some());
        let stays = |(i, new): (usize, &[u8])| {
            let (old, new) = (be64(&self.issued, event.offset as usize + i * 8), be64(new, 0));
            old == new || old & (COMPRESSED | 1) == 1 && new & (COMPRESSED | 1) == 0
        };
        self.amended && !of_guest && event.bytes.chunks_exact(8).enumerate().all(stays)
    }

    /// Snapshots, bitmaps and keys are written to their own clusters or to nobody's.
    pub(crate) fn aside(&mut self, head: &Head, event: &Event) -> Result<(), String> {
        let live = self.live()?;
        let own = |u: &Use| match u {
            Use::Snapshots => event.purpose == Purpose::Snapshots,
            Use::Bitmaps | Use::BitmapTable => event.purpose == Purpose::Bitmaps,
            Use::Encryption => event.purpose == Purpose::Encryption,
            _ => false,
        };
        if event.purpose == Purpose::Bitmaps {
            self.bitmap_table(head, event)?;
        }
        for cluster in
            event.offset >> head.cluster_bits..=(event.offset + event.length - 1) >> head.cluster_bits
        {
            if let Some(other) = live.uses(cluster).iter().find(|u| !own(u)) {
                return Err(format!("C13: {:?} over host cluster {cluster}: {other:?}", event.purpose));
            }
        }
        Ok(())
    }

    /// R1, R2 for each new pointer of a bitmap's table.
    fn bitmap_table(&mut self, head: &Head, event: &Event) -> Result<(), String> {
        let live = self.live()?;
        if !live.uses(event.offset >> head.cluster_bits).iter().any(|u| matches!(u, Use::BitmapTable)) {
            return Ok(());
        }
        let durable = Head::parse(&self.durable).ok_or("no durable header")?;
        for (index, entry) in event.bytes.chunks_exact(8).enumerate() {
            let (old, new) = (be64(&self.issued, event.offset as usize + index * 8), be64(entry, 0));
            let target = new & OFFSET;
            if target == 0 || old == new {
                continue;
            }
            if !durable.is_dirty() && durable.count(&self.durable, target >> head.cluster_bits) == 0 {
                return Err(format!("R1: the bits at {target:#x} have no durable count"));
            }
            let touches =
                |e: &&Event| e.offset < target + head.cluster_bytes() && target < e.offset + e.length;
            if self.pending().iter().filter(|e| e.what != What::Discard).any(|e| touches(&e)) {
                return Err(format!("R2: the bits at {target:#x} are not durable"));
            }
        }
        Ok(())
    }

    /// C8, R5: with other names in sector 0 the extensions of others stay; a write behind it changes nothing that
    /// the header refers to.
    fn header_names(&self, event: &Event) -> Result<(), String> {
        let mut after = self.issued.clone();
        let (at, end) = (event.offset as usize, (event.offset + event.length) as usize);
        after[at..end].copy_from_slice(&event.bytes);
        let (old, new) = (names(&self.issued), names(&after));
        match at {
            0 if old.1 != new.1 => Err("C8: extensions of others change".into()),
            0 => Ok(()),
            _ if old != new => Err("R5: the names in force are written over".into()),
            _ => Ok(()),
        }
    }

    /// C13, C8: a header stays in its cluster, and leaves what it does not know as it is.
    pub(crate) fn header_place(&mut self, head: &Head, event: &Event) -> Result<(), String> {
        let end = event.offset + event.length;
        if end > head.cluster_bytes() {
            return Err(format!("C13: a header of {end} bytes is longer than its cluster"));
        }
        if self.names_may_change || names_bitmaps(&self.issued) {
            return self.header_names(event);
        }
        let known = KNOWN_BYTES[usize::from(head.version >= 3)];
        for at in known.max(event.offset as usize)..end as usize {
            let (old, new) =
                (self.issued.get(at).copied().unwrap_or(0), event.bytes[at - event.offset as usize]);
            if old != new {
                let length = if head.version >= 3 { be32(&self.issued, 100) } else { 72 };
                return Err(format!("C8: byte {at} of the header changes, its fields end at {length}"));
            }
        }
        Ok(())
    }
}

/// Whether bitmaps are named, so that their place in the header may change.
fn names_bitmaps(image: &[u8]) -> bool {
    crate::bitmaps::directory(image).is_some()
}

/// The backing file's name with its format, and the extensions that a change of these has nothing to do with.
type Names = ((Vec<u8>, Vec<u8>), Vec<(u64, Vec<u8>)>);

fn names(image: &[u8]) -> Names {
    const FORMAT: u64 = 0xe279_2aca;
    const BITMAPS: u64 = 0x2385_2875;
    /// The feature name table, which is text for people, and what fills an old place.
    const PASSED_OVER: [u64; 2] = [0x6803_f857, 0x7161_7369];
    let (offset, bytes) = (be64(image, 8) as usize, be32(image, 16) as usize);
    let mut at = if be32(image, 4) >= 3 { be32(image, 100) as usize } else { 72 };
    let limit = if offset > 0 { offset } else { 1 << be32(image, 20) };
    let (mut format, mut others) = (Vec::new(), Vec::new());
    while at + 8 <= limit && be32(image, at) != 0 {
        let (kind, length) = (be32(image, at), be32(image, at + 4) as usize);
        let data = image[at + 8..at + 8 + length].to_vec();
        match kind {
            FORMAT => format = data,
            BITMAPS => {}
            kind if PASSED_OVER.contains(&kind) => {}
            kind => others.push((kind, data)),
        }
        at += 8 + length.div_ceil(8) * 8;
    }
    ((image[offset..offset + bytes].to_vec(), format), others)
}
