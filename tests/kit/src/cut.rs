//! Power cuts: after every event of a log, the states that the medium may be in, and what a reopen makes of them.
//!
//! Durable is what a completed sync covers. Of the later events any may survive, each 512-byte sector of a
//! write on its own, and each change of the file's length on its own: a lost one leaves the length before it,
//! and what survives of a write past the end brings the length that it needs. What survives takes effect in the
//! order in which it was issued; a cut that survives drops everything past it, whatever was there before.

use crate::overlay::{Overlay, Sector};
use crate::recorder::{Event, What};
use crate::rng::{hash_bytes, mix, Rng};
use crate::SECTOR;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Random subsets otherwise.
const RANDOM_SUBSETS: usize = 150;
/// Random tears of all unsynced events.
const RANDOM_TEARS: usize = 24;

/// Which sectors of an event survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    Nothing,
    All,
    First(usize),
    Last(usize),
    Only(usize),
    Random(u64),
}

impl Keep {
    fn has(self, index: usize, count: usize) -> bool {
        match self {
            Keep::Nothing => false,
            Keep::All => true,
            Keep::First(n) => index < n,
            Keep::Last(n) => index + n >= count,
            Keep::Only(n) => index == n,
            Keep::Random(bits) => bits >> (index % 64) & 1 != 0,
        }
    }
}

struct Pending {
    /// Slot and content of each sector.
    pieces: Vec<(usize, u32)>,
    set_length: Option<u64>,
    offset: u64,
}

/// Contents of sectors, each once.
#[derive(Default)]
struct Contents {
    ids: HashMap<u64, u32>,
    bytes: Vec<(Sector, u64)>,
}

impl Contents {
    fn id(&mut self, bytes: &[u8]) -> u32 {
        let hash = if bytes.iter().all(|b| *b == 0) { 0 } else { hash_bytes(bytes) };
        let next = self.bytes.len() as u32;
        let id = *self.ids.entry(hash).or_insert(next);
        if id == next {
            self.bytes.push((bytes.into(), hash));
        }
        id
    }
}

fn place_hash(sector: u64, content: u64) -> u64 {
    if content == 0 {
        0
    } else {
        mix(content ^ sector.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }
}

/// Walks over a log, cut by cut.
pub struct Cutter<'a> {
    log: &'a [Event],
    contents: Contents,
    /// Everything that was issued.
    issued: Vec<u8>,
    /// The longest that the file may have been since the last sync, bytes.
    longest: u64,
    durable: Arc<Vec<u8>>,
    durable_hash: u64,
    /// Events that a sync covers.
    covered: usize,
    /// Events up to the cut.
    pub cut: usize,
    pending: Vec<Pending>,
    slots: Vec<u64>,
    slot_of: HashMap<u64, usize>,
    winners: Vec<u32>,
}

/// One state of the medium.
pub struct CrashState {
    /// Equal for equal bytes.
    pub hash: u64,
    length: u64,
    /// Everything that was issued has survived.
    pub killed: bool,
}

const NO_WINNER: u32 = u32::MAX;

impl<'a> Cutter<'a> {
    pub fn new(base: &[u8], log: &'a [Event]) -> Cutter<'a> {
        let mut cutter = Cutter {
            log,
            contents: Contents::default(),
            issued: base.to_vec(),
            longest: base.len() as u64,
            durable: Arc::new(base.to_vec()),
            durable_hash: 0,
            covered: 0,
            cut: 0,
            pending: Vec::new(),
            slots: Vec::new(),
            slot_of: HashMap::new(),
            winners: Vec::new(),
        };
        cutter.rehash();
        cutter
    }

    fn rehash(&mut self) {
        self.durable_hash = 0;
        for (index, sector) in self.durable.chunks(SECTOR as usize).enumerate() {
            if sector.iter().any(|b| *b != 0) {
                let hash = hash_of(sector);
                self.durable_hash = self.durable_hash.wrapping_add(place_hash(index as u64, hash));
            }
        }
    }

    /// Moves the cut behind the next event; false at the end.
    pub fn step(&mut self) -> bool {
        let Some(event) = self.log.get(self.cut) else { return false };
        self.cut += 1;
        match event.what {
            What::Sync { covers } => self.sync(covers),
            What::SetLength => self.set_length(event.offset),
            What::Write | What::Zeroes | What::Discard => self.write(event),
        }
        true
    }

    fn sync(&mut self, covers: usize) {
        // What the sync does not cover is pending again, on the new durable image.
        let mut durable = (*self.durable).clone();
        for event in &self.log[self.covered..covers.max(self.covered)] {
            apply(&mut durable, event);
        }
        self.covered = self.covered.max(covers);
        self.durable = Arc::new(durable);
        self.rehash();
        self.pending.clear();
        self.slots.clear();
        self.slot_of.clear();
        self.issued = (*self.durable).clone();
        self.longest = self.durable.len() as u64;
        for event in &self.log[self.covered..self.cut - 1] {
            match event.what {
                What::Sync { .. } => {}
                What::SetLength => self.set_length(event.offset),
                _ => self.write(event),
            }
        }
    }

    fn slot(&mut self, sector: u64) -> usize {
        let next = self.slots.len();
        let slot = *self.slot_of.entry(sector).or_insert(next);
        if slot == next {
            self.slots.push(sector);
        }
        slot
    }

    fn write(&mut self, event: &Event) {
        apply(&mut self.issued, event);
        self.longest = self.longest.max(self.issued.len() as u64);
        let (first, end) = (
            event.offset / SECTOR,
            (event.offset + event.length).div_ceil(SECTOR).max(event.offset / SECTOR),
        );
        let pieces = (first..end).map(|sector| self.piece(sector)).collect();
        self.pending.push(Pending { pieces, set_length: None, offset: event.offset });
    }

    fn piece(&mut self, sector: u64) -> (usize, u32) {
        let mut bytes = [0; SECTOR as usize];
        let at = ((sector * SECTOR) as usize).min(self.issued.len());
        let end = (at + SECTOR as usize).min(self.issued.len());
        bytes[..end - at].copy_from_slice(&self.issued[at..end]);
        let id = self.contents.id(&bytes);
        (self.slot(sector), id)
    }

    fn set_length(&mut self, length: u64) {
        self.issued.resize(length as usize, 0);
        let mut pieces = Vec::new();
        for sector in length.div_ceil(SECTOR)..self.longest.div_ceil(SECTOR) {
            pieces.push(self.piece(sector));
        }
        self.longest = self.longest.max(length);
        self.pending.push(Pending { pieces, set_length: Some(length), offset: length });
    }

    /// Events that are not durable at the present cut.
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// The state in which of each pending event what `keep` says has survived.
    pub fn state(&mut self, keep: &[Keep]) -> CrashState {
        self.winners.clear();
        self.winners.resize(self.slots.len(), NO_WINNER);
        let mut length = self.durable.len() as u64;
        let mut killed = true;
        for (pending, keep) in self.pending.iter().zip(keep) {
            killed &= *keep == Keep::All;
            let count = pending.pieces.len();
            if let Some(new) = pending.set_length {
                if !keep.has(0, 1) {
                    continue;
                }
                length = new;
                pending.pieces.iter().for_each(|(slot, content)| self.winners[*slot] = *content);
                continue;
            }
            for (i, (slot, content)) in pending.pieces.iter().enumerate() {
                if keep.has(i, count) {
                    self.winners[*slot] = *content;
                    length = length.max(pending.offset / SECTOR * SECTOR + (i as u64 + 1) * SECTOR);
                }
            }
        }
        CrashState { hash: self.hash(length), length, killed }
    }

    fn hash(&self, length: u64) -> u64 {
        let mut hash = self.durable_hash.wrapping_add(mix(length));
        for (slot, winner) in self.winners.iter().enumerate() {
            if *winner != NO_WINNER {
                let sector = self.slots[slot];
                let old = hash_of(sector_of(&self.durable, sector));
                let new = self.contents.bytes[*winner as usize].1;
                hash = hash.wrapping_sub(place_hash(sector, old)).wrapping_add(place_hash(sector, new));
            }
        }
        hash
    }

    /// The bytes of the state that `state` has just described.
    pub fn medium(&self, state: &CrashState) -> Arc<Overlay> {
        let mut sectors = BTreeMap::new();
        for (slot, winner) in self.winners.iter().enumerate() {
            if *winner != NO_WINNER {
                sectors.insert(self.slots[slot], self.contents.bytes[*winner as usize].0.clone());
            }
        }
        Overlay::new(Arc::clone(&self.durable), sectors, state.length)
    }

    /// Calls `look` with choices of survivors for the present cut: with every subset of the unsynced events when
    /// there are at most `exhaustive`, which is answered, and with torn writes.
    pub fn survivors<E>(
        &mut self,
        exhaustive: usize,
        rng: &mut Rng,
        mut look: impl FnMut(&mut Self, &[Keep]) -> Result<(), E>,
    ) -> Result<bool, E> {
        let count = self.pending.len();
        let mut keep = vec![Keep::Nothing; count];
        if count <= exhaustive {
            for mask in 0..1u32 << count {
                (0..count).for_each(|i| keep[i] = whole(mask >> i & 1 != 0));
                look(self, &keep)?;
            }
        } else {
            for choice in 0..4 * count + RANDOM_SUBSETS {
                let (kind, at) = (choice / count, choice % count);
                let bits = rng.next();
                for (i, k) in keep.iter_mut().enumerate() {
                    *k = whole(match kind {
                        0 => i < at,
                        1 => i != at,
                        2 => i == at,
                        3 => i >= at,
                        _ if i < 64 => bits >> i & 1 != 0,
                        _ => rng.one_in(2),
                    });
                }
                look(self, &keep)?;
            }
        }
        self.tears(rng, &mut look)?;
        Ok(count <= exhaustive)
    }

    fn tears<E>(
        &mut self,
        rng: &mut Rng,
        look: &mut impl FnMut(&mut Self, &[Keep]) -> Result<(), E>,
    ) -> Result<(), E> {
        let count = self.pending.len();
        let mut keep = vec![Keep::Nothing; count];
        let mut torn = false;
        for event in 0..count {
            let sectors = self.pending[event].pieces.len();
            if sectors < 2 || self.pending[event].set_length.is_some() {
                continue;
            }
            torn = true;
            let step = (sectors / 6).max(1);
            for n in (0..sectors).step_by(step) {
                for tear in [Keep::First(n.max(1)), Keep::Last(n.max(1)), Keep::Only(n)] {
                    for others in 0..3 {
                        for (i, k) in keep.iter_mut().enumerate() {
                            *k = whole(others == 0 || (others == 1 && i < event));
                        }
                        keep[event] = tear;
                        look(self, &keep)?;
                    }
                }
            }
        }
        for _ in 0..if torn { RANDOM_TEARS } else { 0 } {
            keep.iter_mut().for_each(|k| *k = Keep::Random(rng.next() | rng.next()));
            look(self, &keep)?;
        }
        Ok(())
    }
}

fn whole(all: bool) -> Keep {
    if all {
        Keep::All
    } else {
        Keep::Nothing
    }
}

fn sector_of(bytes: &[u8], sector: u64) -> &[u8] {
    let at = ((sector * SECTOR) as usize).min(bytes.len());
    &bytes[at..(at + SECTOR as usize).min(bytes.len())]
}

fn hash_of(sector: &[u8]) -> u64 {
    if sector.iter().all(|b| *b == 0) {
        0
    } else {
        hash_bytes(sector)
    }
}

/// Does to `bytes` what the event did to the medium.
pub fn apply(bytes: &mut Vec<u8>, event: &Event) {
    match event.what {
        What::Sync { .. } => {}
        What::SetLength => bytes.resize(event.offset as usize, 0),
        What::Write | What::Zeroes | What::Discard => {
            let (at, end) = (event.offset as usize, (event.offset + event.length) as usize);
            if end > bytes.len() {
                bytes.resize(end, 0);
            }
            bytes[at..end].copy_from_slice(&event.bytes);
        }
    }
}
