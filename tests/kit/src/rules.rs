//! The ordering rules R1 to R7 on a trace, by the independent parser; `ownership` has what may be written where.
//!
//! At every event three views exist: `durable` (what a completed sync covers), `issued` (everything), and the
//! events between them, of which any may survive. While the durable header is dirty, stored counts mean
//! nothing, and only ownership and contents are judged.

use crate::bitmaps::{check_change, directory};
use crate::cut::apply;
use crate::oracle::{be64, compressed, count_in, Head, Owners, Use, COMPRESSED, OFFSET};
use crate::recorder::{Event, Recorder, What, Zeroed};
use crate::SECTOR;
use qcow2::testing::storage::Purpose;
use std::collections::HashSet;
use std::rc::Rc;

/// The bits of an extended entry's bitmap that say where a subcluster's bytes are in the host cluster.
const ALLOCATED: u64 = 0xffff_ffff;

/// The guest bytes of an L2 entry.
struct Place {
    from: u64,
    to: u64,
    /// The event since which the entry stands.
    since: usize,
    /// Host offset of the entry.
    at: usize,
}

/// What a new pointer points to.
struct Target {
    /// 1 in the L1 table, 2 in an L2 table, 3 in the refcount table.
    level: u32,
    /// Zeroes are a value that the target may have.
    zeroes_do: bool,
    place: Option<Place>,
    cluster_bits: u32,
    extended: Option<Extended>,
}

/// An extended entry that is replaced: each subcluster has its own state.
struct Extended {
    descriptor: u64,
    bitmap: u64,
    /// Subclusters, a bit each, whose bytes the new entry shows and the old one did not.
    shown: u64,
}

/// The views at one point of a trace.
pub(crate) struct Trace<'a> {
    pub(crate) log: &'a [Event],
    zeroed: &'a [Zeroed],
    /// Holes below this many guest bytes show a backing disk.
    backing_end: u64,
    pub(crate) durable: Vec<u8>,
    pub(crate) issued: Vec<u8>,
    /// The header's names are what the trace is about.
    pub(crate) names_may_change: bool,
    /// Zero flags may go from tables that are shared.
    pub(crate) amended: bool,
    /// Events that a sync covers.
    covered: usize,
    /// The event that is judged.
    at: usize,
    /// Owners in `durable`, until the next sync.
    owners: Option<Owners>,
    /// Owners in `issued`, until the next write of a table.
    live: Option<Rc<Owners>>,
    /// Requests ran at the same time. What was in memory when a request wrote its data is not in the trace
    /// then, so a durable older version of a cluster's data may be taken for a newer one.
    pub(crate) threads: bool,
}

/// Judges every event of a trace.
pub fn check_trace(recorder: &Recorder) -> Result<(), String> {
    let (log, zeroed) = (&recorder.log()[..], &recorder.zeroed()[..]);
    if log.is_empty() {
        return Ok(());
    }
    let (durable, issued) = (recorder.base().to_vec(), recorder.base().to_vec());
    let mut trace = Trace {
        log,
        zeroed,
        backing_end: recorder.backing_end(),
        names_may_change: recorder.names_may_change(),
        amended: recorder.is_amended(),
        durable,
        issued,
        covered: 0,
        at: 0,
        owners: None,
        live: None,
        threads: recorder.has_threads(),
    };
    for (at, event) in log.iter().enumerate() {
        trace.at = at;
        trace.judge(event).map_err(|e| {
            let Event { what, purpose, offset, length, request, .. } = event;
            format!("event {at} ({what:?} {purpose:?} at {offset:#x}, {length} bytes, {request:?}): {e}")
        })?;
        trace.advance(event);
    }
    trace.live().map(drop).map_err(|e| format!("in the end: {e}"))?;
    match recorder.data_file() {
        Some(data) => crate::split::check_traces(recorder, &data),
        None => Ok(()),
    }
}

impl Trace<'_> {
    fn advance(&mut self, event: &Event) {
        if let What::Sync { covers } = event.what {
            for old in &self.log[self.covered.min(covers)..covers] {
                apply(&mut self.durable, old);
            }
            self.covered = self.covered.max(covers);
            self.owners = None;
        }
        apply(&mut self.issued, event);
        if !matches!(event.purpose, Purpose::Data | Purpose::RefcountBlock) {
            self.live = None;
        }
    }

    /// The owners of everything as it was issued, each cluster with one of them or shared as it may be.
    pub(crate) fn live(&mut self) -> Result<Rc<Owners>, String> {
        if let Some(live) = &self.live {
            return Ok(Rc::clone(live));
        }
        let live = Rc::new(Owners::of(&self.issued));
        if let Some(conflict) = live.conflict() {
            return Err(format!("C13: {conflict}"));
        }
        self.live = Some(Rc::clone(&live));
        Ok(live)
    }

    pub(crate) fn pending(&self) -> &[Event] {
        &self.log[self.covered..self.at]
    }

    pub(crate) fn owners(&mut self) -> &Owners {
        self.owners.get_or_insert_with(|| Owners::of(&self.durable))
    }

    fn judge(&mut self, event: &Event) -> Result<(), String> {
        let Some(head) = Head::parse(&self.issued) else { return Ok(()) };
        match (event.what, event.purpose) {
            (What::Sync { .. }, _) => Ok(()),
            (What::SetLength, _) => self.length(&head, event.offset),
            (What::Discard, _) => self.unowned(&head, event.offset, event.length, "R4: discard of"),
            (What::Write | What::Zeroes, Purpose::Data) => {
                self.marked(&head, event)?;
                self.data(&head, event)
            }
            (What::Zeroes, _) => self.unlinked(&head, event),
            (_, Purpose::Header) => self.header(&head, event),
            (_, Purpose::L1) => self.table(&head, event, 1),
            (_, Purpose::L2) => self.table(&head, event, 2),
            (_, Purpose::RefcountTable) => self.table(&head, event, 3),
            (_, Purpose::RefcountBlock) => self.block(&head, event),
            (_, Purpose::Snapshots | Purpose::Bitmaps | Purpose::Encryption) => self.aside(&head, event),
        }
    }

    /// R7: what is about to change is marked, or no bitmap is believed.
    fn marked(&self, head: &Head, event: &Event) -> Result<(), String> {
        let request = event.request.filter(|request| !request.unchanging);
        match request.and_then(|request| request.guest) {
            Some((from, to)) => check_change(&self.durable, from, to.min(head.size)),
            None => Ok(()),
        }
    }

    /// R1, R2, R5 for each new pointer of a table sector.
    fn table(&mut self, head: &Head, event: &Event, level: u32) -> Result<(), String> {
        if level == 2 && !self.owns_l2(head, event)? {
            // A table that nothing points to yet: R5 lets it be written in any order.
            return self.unlinked(head, event);
        }
        if level == 2 && head.has_data_file() {
            // Its pointers lead to another file: `split` judges them.
            return Ok(());
        }
        if level != 2 && !self.is_live_table(head, event.offset, event.length, level) {
            return self.unlinked(head, event);
        }
        let cluster_bits = head.cluster_bits;
        // What the host has as zeroes is garbage for the guest.
        let hides_zeroes = level == 2 && head.is_encrypted();
        for (index, entry) in event.bytes.chunks_exact(8).enumerate() {
            let at = event.offset as usize + index * 8;
            if level == 2 && at as u64 % head.entry_bytes != 0 {
                continue; // the bitmap of an extended entry is no pointer
            }
            let (old, new) = (be64(&self.issued, at), be64(entry, 0));
            if level == 2 && new & COMPRESSED != 0 {
                if new != old {
                    self.stream(head, new, at).map_err(|e| format!("entry at {at:#x}: {e}"))?;
                }
                continue;
            }
            let extended = (level == 2 && head.entry_bytes == 16).then(|| {
                let (bitmap, next) = (be64(&self.issued, at + 8), be64(&event.bytes, index * 8 + 8));
                let same = new & OFFSET == old & OFFSET && old & COMPRESSED == 0;
                let shown = next & ALLOCATED & if same { !bitmap } else { u64::MAX };
                Extended { descriptor: old, bitmap, shown }
            });
            let appears = extended.as_ref().is_some_and(|e| e.shown != 0);
            let old = if level == 2 && old & COMPRESSED != 0 { old & OFFSET & !1 } else { old };
            if new & OFFSET != 0 && new & OFFSET != old & OFFSET {
                // A hole may become a cluster whose durable bytes are zeroes still, if it reads as zeroes.
                let place = if level == 2 { self.place(head, at)? } else { None };
                let zeroed = place.as_ref().is_some_and(|p| old & 1 != 0 || self.was_zeroed(p));
                let bare = place.as_ref().is_none_or(|p| !self.shows_backing(p.from));
                let kind = Target {
                    level,
                    zeroes_do: level != 3 && (old & OFFSET == 0 && bare || zeroed) && !hides_zeroes,
                    place,
                    cluster_bits,
                    extended,
                };
                self.pointer(head, new, &kind).map_err(|e| format!("entry at {at:#x}: {e}"))?;
            } else if level == 2 && new & OFFSET != 0 && old & 1 != 0 && new & 1 == 0 {
                let place = self.place(head, at)?;
                let kind = Target { level, zeroes_do: !hides_zeroes, place, cluster_bits, extended };
                self.contents(head, new & OFFSET, &kind).map_err(|e| format!("entry at {at:#x}: {e}"))?;
            } else if new & OFFSET != 0 && appears {
                let place = self.place(head, at)?;
                let kind = Target { level, zeroes_do: false, place, cluster_bits, extended };
                self.contents(head, new & OFFSET, &kind).map_err(|e| format!("entry at {at:#x}: {e}"))?;
            }
        }
        Ok(())
    }

    /// R1, R2 for the entry of a compressed cluster.
    fn stream(&mut self, head: &Head, new: u64, at: usize) -> Result<(), String> {
        let (offset, length) = compressed(head, new);
        let durable = Head::parse(&self.durable).ok_or("no durable header")?;
        for cluster in offset >> head.cluster_bits..=(offset + length - 1) >> head.cluster_bits {
            let uses = self.owners().uses(cluster).len() as u64;
            let count = durable.count(&self.durable, cluster);
            if !durable.is_dirty() && count <= uses {
                return Err(format!(
                    "R1: durable count of host cluster {cluster} is {count}, {uses} refer to it"
                ));
            }
        }
        let Some(place) = self.place(head, at)? else { return Ok(()) };
        let of_place = |e: &&Event| {
            let guest = e.request.and_then(|r| r.guest);
            guest.is_some_and(|(first, end)| first < place.to && place.from < end)
        };
        // Not the next stream of the same request, which may start in this one's last sector.
        let touches = |e: &&Event| e.offset <= offset && offset < e.offset + e.length;
        let mut data = self.pending().iter().filter(|e| e.purpose == Purpose::Data);
        match data.find(|e| e.what != What::Discard && touches(e) && of_place(e)) {
            Some(e) => Err(format!("R2: the stream at {:#x} is not durable", e.offset)),
            None => Ok(()),
        }
    }

    pub(crate) fn is_live_table(&self, head: &Head, offset: u64, length: u64, level: u32) -> bool {
        let (start, bytes) = match level {
            1 => (head.l1_offset, (head.l1_size * 8).div_ceil(SECTOR) * SECTOR),
            _ => (head.table_offset, head.table_clusters << head.cluster_bits),
        };
        (start..start + bytes).contains(&offset) && offset + length <= start + bytes
    }

    /// The guest cluster of the L2 entry at `at`, and the event since which that entry stands.
    fn place(&mut self, head: &Head, at: usize) -> Result<Option<Place>, String> {
        let uses = self.live()?;
        let table = uses.uses(at as u64 >> head.cluster_bits).iter().find(|u| is_l2(u));
        let Some(Use::L2 { l1_index }) = table else { return Ok(None) };
        let in_table = (at as u64 & (head.cluster_bytes() - 1)) / head.entry_bytes;
        let from = (l1_index * (head.cluster_bytes() / head.entry_bytes) + in_table) << head.cluster_bits;
        // Back over the versions of the table that hold the same entry, or to the data that it refers to:
        // of two threads, one may have copied the table before the other's request and write it after.
        let now = be64(&self.issued, at);
        let versions = self.versions(at, 0);
        let since = versions.iter().take_while(|(_, v)| *v == now).last().map_or(0, |(i, _)| *i);
        let target = now & OFFSET;
        let touches = |e: &Event| e.offset < target + head.cluster_bytes() && target < e.offset + e.length;
        let data = self.log[..self.at].iter().rposition(|e| e.purpose == Purpose::Data && touches(e));
        let since = if target == 0 { since } else { since.min(data.unwrap_or(since)) };
        // VM state begins past the end of the disk, which cuts the disk's last cluster only.
        let area_end = if from < head.size { head.size } else { u64::MAX };
        Ok(Some(Place { from, to: (from + head.cluster_bytes()).min(area_end), since, at }))
    }

    /// The values of the entry at `at`, newest first, back to the one in force at event `from`, with the
    /// event that wrote each.
    fn versions(&self, at: usize, from: usize) -> Vec<(usize, u64)> {
        let mut versions = Vec::new();
        for (i, event) in self.log[..self.at].iter().enumerate().rev() {
            let inside = (at as u64).checked_sub(event.offset).filter(|o| *o < event.length);
            if let Some(inside) = inside {
                versions.push((i, be64(&event.bytes, inside as usize)));
                if i <= from {
                    return versions;
                }
            }
        }
        versions
    }

    /// The guest has zeroed all of `place` since its entry was written.
    fn was_zeroed(&self, place: &Place) -> bool {
        let mut since = self.zeroed.iter().filter(|z| z.end >= place.since && z.at <= self.at);
        since.any(|z| z.from <= place.from && place.to <= z.to)
    }

    fn pointer(&mut self, head: &Head, new: u64, kind: &Target) -> Result<(), String> {
        let target = new & OFFSET;
        let end = target + head.cluster_bytes();
        // A host that cannot be resized may end inside its last cluster, the rest of which reads as zeroes.
        if end > (self.durable.len() as u64).next_multiple_of(head.cluster_bytes()) {
            return Err(format!(
                "the target ends at {end:#x}, the durable file at {:#x}",
                self.durable.len()
            ));
        }
        let durable = Head::parse(&self.durable).ok_or("no durable header")?;
        // Blocks count themselves, inside what R2 wants to be durable.
        if !durable.is_dirty()
            && kind.level != 3
            && durable.count(&self.durable, target >> head.cluster_bits) == 0
        {
            return Err(format!("R1: host cluster {} has no durable count", target >> head.cluster_bits));
        }
        self.contents(head, target, kind)
    }

    /// Whether a hole shows a backing disk at this guest offset: not where VM state is, past the end of the disk.
    fn shows_backing(&self, offset: u64) -> bool {
        let size = Head::parse(&self.issued).map_or(0, |head| head.size);
        offset < size.min(self.backing_end)
    }

    /// R2, R5: no sector that the entry shows waits for a sync, unless its durable bytes are zeroes and may be
    /// read so.
    fn contents(&self, head: &Head, target: u64, kind: &Target) -> Result<(), String> {
        let bits = if kind.extended.is_some() { head.cluster_bits - 5 } else { head.cluster_bits };
        for part in 0..head.cluster_bytes() >> bits {
            let zero = match &kind.extended {
                Some(e) if e.shown >> part & 1 == 0 => continue,
                Some(e) => kind.zeroes_do || self.is_zero(kind, e, part) && !head.is_encrypted(),
                None => kind.zeroes_do,
            };
            let start = target + (part << bits);
            self.bytes(start, start + (1 << bits), zero, kind)?;
            if let (2, true, Some(place)) = (kind.level, head.is_encrypted(), &kind.place) {
                self.written(start, (start + (1 << bits)).min(target + (place.to - place.from)))?;
            }
        }
        Ok(())
    }

    /// R2 of an encrypted image: each sector that the entry shows has been written. What is encrypted is not all zeroes.
    fn written(&self, start: u64, end: u64) -> Result<(), String> {
        let bare = |at: &u64| {
            let sector = self.durable.get(*at as usize..(*at + SECTOR) as usize).unwrap_or_default();
            sector.iter().all(|b| *b == 0)
        };
        match (start..end).step_by(SECTOR as usize).find(bare) {
            Some(at) => Err(format!("R2: the sector at {at:#x} was never encrypted")),
            None => Ok(()),
        }
    }

    fn bytes(&self, start: u64, end: u64, zeroes_do: bool, kind: &Target) -> Result<(), String> {
        for event in self.pending() {
            let (from, to) = (event.offset.max(start), (event.offset + event.length).min(end));
            if from >= to || event.what == What::Discard {
                continue;
            }
            if self.is_newer_version(from, to, kind) {
                continue;
            }
            let bytes = &self.durable[from as usize..(to as usize).min(self.durable.len())];
            if !zeroes_do || bytes.iter().any(|b| *b != 0) {
                return Err(format!("R2: bytes {from:#x}..{to:#x} of the target are not durable"));
            }
        }
        Ok(())
    }

    /// Whether a subcluster reads as zeroes by the entry before, or the guest has zeroed it since.
    fn is_zero(&self, kind: &Target, old: &Extended, sub: u64) -> bool {
        let Some(place) = &kind.place else { return false };
        let bits = kind.cluster_bits - 5;
        let (start, end) = (place.from + (sub << bits), place.from + ((sub + 1) << bits));
        let part = Place { from: start, to: end.min(place.to), ..*place };
        let allocated = old.descriptor & COMPRESSED != 0 || old.bitmap >> sub & 1 != 0;
        let zero = old.bitmap >> (32 + sub) & 1 != 0 || !self.shows_backing(part.from);
        !allocated && zero || part.from >= part.to || self.was_zeroed(&part)
    }

    /// What is under way is newer than a durable version of the same contents: an L2 table whose birth is
    /// durable, or data of the same guest cluster written since its entry stands.
    fn is_newer_version(&self, from: u64, to: u64, kind: &Target) -> bool {
        let touches = |e: &Event| e.offset < to && from < e.offset + e.length;
        let Some(last) = self.log[..self.covered].iter().rposition(touches) else { return false };
        let event = &self.log[last];
        match (kind.level, &kind.place, event.request.and_then(|r| r.guest)) {
            (1, ..) => event.purpose == Purpose::L2,
            (2, Some(place), Some((first, end))) => {
                // The cluster, or the subcluster, has not been dropped and taken again in between.
                let dropped = !self.threads && self.was_shown(place, from, last, kind);
                event.purpose == Purpose::Data && !dropped && first < place.to && place.from < end
            }
            _ => false,
        }
    }

    /// Whether the entry has shown the host byte at `host` as data since event `since`.
    fn was_shown(&self, place: &Place, host: u64, since: usize, kind: &Target) -> bool {
        let cluster_bytes = 1 << kind.cluster_bits;
        let cluster = host & !(cluster_bytes - 1);
        let data = |(_, v): &(usize, u64)| v & OFFSET == cluster && v & 1 == 0;
        let versions = self.versions(place.at, since);
        if kind.extended.is_none() {
            return versions.iter().any(data);
        }
        let bit = 1 << ((host - cluster) / (cluster_bytes / 32));
        let bitmaps = self.versions(place.at + 8, since);
        versions.iter().zip(bitmaps).any(|(v, (_, bitmap))| data(v) && bitmap & bit != 0)
    }

    /// R3: a count is not below the references that may survive.
    fn block(&mut self, head: &Head, event: &Event) -> Result<(), String> {
        let durable = Head::parse(&self.durable).ok_or("no durable header")?;
        let home = event.offset >> head.cluster_bits;
        let uses = self.live()?;
        let Some(Use::RefcountBlock { index }) =
            uses.uses(home).iter().find(|u| matches!(u, Use::RefcountBlock { .. })).copied()
        else {
            return self.unlinked(head, event);
        };
        if (event.offset + event.length - 1) >> head.cluster_bits != home {
            return Err("C13: a refcount block is written past its end".into());
        }
        if durable.is_dirty() || head.is_dirty() {
            return Ok(());
        }
        let order = head.refcount_order;
        let inside = ((event.offset - (home << head.cluster_bits)) * 8) >> order;
        for i in 0..(event.length * 8) >> order {
            let at = event.offset as usize;
            let (old, new) = (count_in(&self.issued[at..], order, i), count_in(&event.bytes, order, i));
            if new >= old {
                continue;
            }
            let cluster = index * head.block_entries() + inside + i;
            let uses: HashSet<Use> = self.possible_uses(head, cluster).into_iter().collect();
            if uses.len() as u64 > new {
                return Err(format!("R3: count of host cluster {cluster} falls to {new}: {uses:?}"));
            }
        }
        Ok(())
    }

    /// R5, R6: what a new header names is durable, and so is everything when the dirty bit goes.
    fn header(&mut self, head: &Head, event: &Event) -> Result<(), String> {
        self.header_place(head, event)?;
        if event.offset != 0 {
            return Ok(());
        }
        let Some(next) = Head::parse(&*event.bytes) else { return Ok(()) };
        let mut after = self.issued.clone();
        apply(&mut after, event);
        let bitmaps_moved = directory(&after) != directory(&self.issued);
        let tables_moved = (next.l1_offset, next.table_offset) != (head.l1_offset, head.table_offset);
        let moved = tables_moved || bitmaps_moved;
        let cleaned = head.is_dirty() && !next.is_dirty();
        let open = self.pending().iter().filter(|e| !matches!(e.what, What::Sync { .. } | What::Discard));
        if (moved || cleaned) && open.count() > 0 {
            return Err(format!("R5/R6: {} events are not durable", self.pending().len()));
        }
        if !(moved || cleaned) {
            return Ok(());
        }
        let mut after = self.durable.clone();
        apply(&mut after, event);
        let owners = Owners::of(&after);
        for (cluster, uses) in &owners.0 {
            let count = next.count(&after, *cluster);
            if !next.is_dirty() && count < uses.len() as u64 {
                return Err(format!("R6: host cluster {cluster} has count {count}: {uses:?}"));
            }
        }
        Ok(())
    }
}

pub(crate) fn is_l2(owner: &Use) -> bool {
    matches!(owner, Use::L2 { .. })
}
