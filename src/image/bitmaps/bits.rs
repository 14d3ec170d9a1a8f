//! The bits of one bitmap. What the medium has is the base; what has been marked since lies over it, in words that
//! nobody needs a lock for. A part of the bits is read from the medium when somebody looks at it, and not before.
//!
//! B1: a bit that is set stays set: to clear bits is to make another bitmap. B2: a part that differs from the medium is
//! `changed`, from before the first bit of it is set.

use crate::error::{room, Result};
use crate::format::bitmap::{ENTRY_ONES, ENTRY_ZEROES};
use crate::format::Geometry;
use crate::storage::medium::Medium;
use crate::storage::Purpose;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::OnceLock;

const WORD_BITS: u64 = u64::BITS as u64;
/// Words that a search looks at together.
const SCANNED_WORDS: usize = 8;

/// The bits that one entry of the table is for.
pub(crate) struct Chunk {
    /// The entry, as the medium has it.
    stored: AtomicU64,
    /// All bits are set, whatever the words say.
    all: AtomicBool,
    changed: AtomicBool,
    /// The medium has a place for the bits, and none of them is set there.
    clear: AtomicBool,
    words: OnceLock<Words>,
}

struct Words {
    /// They have what the medium has, too.
    whole: AtomicBool,
    bits: Box<[AtomicU64]>,
}

/// See the module.
pub(crate) struct Bits {
    granularity_bits: u32,
    granules: u64,
    /// Of the disk, bytes.
    length: u64,
    /// log2 of the bits in a chunk.
    chunk_bits: u32,
    chunks: Box<[Chunk]>,
}

/// What a chunk holds.
pub(crate) enum Content<'a> {
    Zeroes,
    Ones,
    /// Words, the first bit is the lowest one.
    Words(&'a [AtomicU64]),
}

impl Bits {
    /// The bits of a disk of `virtual_size` bytes with these entries of a table, one for each cluster of bits.
    pub(crate) fn new(
        geometry: &Geometry,
        granularity_bits: u8,
        virtual_size: u64,
        table: &[u64],
    ) -> Result<Bits> {
        let mut chunks = room("bitmap", table.len() as u64)?;
        chunks.extend(table.iter().map(|entry| Chunk {
            stored: AtomicU64::new(*entry),
            all: AtomicBool::new(*entry == ENTRY_ONES),
            changed: AtomicBool::new(false),
            clear: AtomicBool::new(false),
            words: OnceLock::new(),
        }));
        Ok(Bits {
            granularity_bits: granularity_bits.into(),
            granules: virtual_size.div_ceil(1 << granularity_bits),
            length: virtual_size,
            chunk_bits: geometry.cluster_bits + 3,
            chunks: chunks.into(),
        })
    }

    /// Marks the granules that `[from, to)` touches, guest bytes; past the end of the bitmap there are none.
    #[inline]
    pub(crate) fn mark(&self, from: u64, to: u64) -> Result<()> {
        let first = from >> self.granularity_bits;
        if from >= to || first >= self.granules {
            return Ok(());
        }
        let last = ((to - 1) >> self.granularity_bits).min(self.granules - 1);
        let chunk = &self.chunks[(first >> self.chunk_bits) as usize];
        match chunk.words.get() {
            Some(words) if first == last => {
                let (word, bit) = place(first & self.chunk_mask());
                if words.bits[word].load(Ordering::Relaxed) & bit == 0 {
                    chunk.set(&words.bits[word], bit);
                }
                Ok(())
            }
            _ => self.mark_granules(first, last),
        }
    }

    /// Whether `[from, to)`, which is not empty, lies in one granule that is marked, as far as a look can tell.
    #[inline(always)]
    pub(crate) fn has(&self, from: u64, to: u64) -> bool {
        let granule = from >> self.granularity_bits;
        if (to - 1) >> self.granularity_bits != granule {
            return false;
        }
        let Some(chunk) = self.chunks.get((granule >> self.chunk_bits) as usize) else { return false };
        let Some(words) = chunk.words.get() else { return false };
        let (word, bit) = place(granule & self.chunk_mask());
        words.bits.get(word).is_some_and(|word| word.load(Ordering::Acquire) & bit != 0)
    }

    #[inline(never)]
    fn mark_granules(&self, first: u64, last: u64) -> Result<()> {
        let mut at = first;
        while at <= last {
            let index = at >> self.chunk_bits;
            let start = index << self.chunk_bits;
            let end = (start + self.chunk_granules(index)).min(last + 1);
            let chunk = &self.chunks[index as usize];
            if at == start && end - start == self.chunk_granules(index) {
                if !chunk.all.load(Ordering::Relaxed) {
                    chunk.changed.store(true, Ordering::Relaxed);
                    chunk.all.store(true, Ordering::Relaxed);
                }
            } else if !chunk.all.load(Ordering::Relaxed) {
                chunk.mark(self.words(index)?, at - start, end - start);
            }
            at = end;
        }
        Ok(())
    }

    fn chunk_mask(&self) -> u64 {
        (1 << self.chunk_bits) - 1
    }

    /// Bits of a chunk: of the last one, those that the disk has.
    pub(crate) fn chunk_granules(&self, index: u64) -> u64 {
        (self.granules - (index << self.chunk_bits)).min(1 << self.chunk_bits)
    }

    /// The table entry of a chunk that needs no place; `None`: it needs one. The last chunk of a disk needs one where all of
    /// its bits are set: the stock tools take its entry for one of all the bits that the disk may get.
    pub(crate) fn plain_entry(&self, index: u64, content: &Content<'_>) -> Option<u64> {
        let granules = self.chunk_granules(index);
        content.entry(granules).filter(|entry| *entry != ENTRY_ONES || granules == 1 << self.chunk_bits)
    }

    /// Where a chunk begins, guest bytes.
    pub(crate) fn chunk_start(&self, index: u64) -> u64 {
        index << self.chunk_bits << self.granularity_bits
    }

    /// Bytes of a granule.
    pub(crate) fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    pub(crate) fn chunk_count(&self) -> u64 {
        self.chunks.len() as u64
    }

    /// The words of a chunk, with memory.
    fn words(&self, index: u64) -> Result<&Words> {
        let chunk = &self.chunks[index as usize];
        if let Some(words) = chunk.words.get() {
            return Ok(words);
        }
        let count = self.chunk_granules(index).div_ceil(WORD_BITS);
        let mut bits = room("bitmap", count)?;
        bits.resize_with(count as usize, AtomicU64::default);
        let whole = AtomicBool::new(chunk.is_plain());
        Ok(chunk.words.get_or_init(|| Words { whole, bits: bits.into() }))
    }

    /// What a chunk holds, read from the medium if it has not been.
    pub(crate) fn content(&self, index: u64, medium: &Medium) -> Result<Content<'_>> {
        let chunk = &self.chunks[index as usize];
        if chunk.all.load(Ordering::Relaxed) {
            return Ok(Content::Ones);
        }
        if chunk.words.get().is_none() {
            // Memory is for bits that are set: a table of holes asks for none.
            if !chunk.is_plain()
                && (self.is_hole(index, medium) || self.read(index, medium)?.iter().all(|byte| *byte == 0))
            {
                chunk.clear.store(true, Ordering::Relaxed);
            }
            if chunk.is_plain() {
                return Ok(Content::Zeroes);
            }
        }
        let words = self.words(index)?;
        if !words.whole.load(Ordering::Acquire) {
            self.take_in(index, words, medium)?;
        }
        Ok(Content::Words(&words.bits))
    }

    /// Whether the host has nothing where the bits of a chunk are: asked before they are read, for a table of holes may be
    /// long.
    fn is_hole(&self, index: u64, medium: &Medium) -> bool {
        let at = self.chunks[index as usize].stored();
        let end = at + self.chunk_granules(index).div_ceil(8);
        medium.storage().host_run(at).is_ok_and(|run| !run.data && run.end >= end)
    }

    /// The bits of a chunk that the medium has a place for, in whole words.
    fn read(&self, index: u64, medium: &Medium) -> Result<Vec<u8>> {
        let mut bytes = crate::error::zeroed("bitmap", self.chunk_granules(index).div_ceil(WORD_BITS) * 8)?;
        medium.read_table(Purpose::Bitmaps, self.chunks[index as usize].stored(), &mut bytes)?;
        Ok(bytes)
    }

    /// Reads all that has not been read.
    pub(crate) fn read_all(&self, medium: &Medium) -> Result<()> {
        (0..self.chunk_count()).try_for_each(|index| self.content(index, medium).map(drop))
    }

    /// Adds what the medium has. More than one may do so at a time.
    fn take_in(&self, index: u64, words: &Words, medium: &Medium) -> Result<()> {
        let bytes = self.read(index, medium)?;
        let granules = self.chunk_granules(index);
        for (number, (word, raw)) in words.bits.iter().zip(bytes.chunks_exact(8)).enumerate() {
            let mut stored = [0; 8];
            stored.copy_from_slice(raw);
            let valid = low_bits(granules - number as u64 * WORD_BITS);
            word.fetch_or(u64::from_le_bytes(stored) & valid, Ordering::Relaxed);
        }
        words.whole.store(true, Ordering::Release);
        Ok(())
    }

    /// The table, as the medium has it.
    pub(crate) fn table(&self) -> impl Iterator<Item = u64> + '_ {
        self.chunks.iter().map(Chunk::stored)
    }

    pub(crate) fn chunk(&self, index: u64) -> &Chunk {
        &self.chunks[index as usize]
    }

    /// Guest bytes of the disk whose bits are set.
    pub(crate) fn dirty_bytes(&self, medium: &Medium) -> Result<u64> {
        // First: bits only rise beside this, and a last granule that is not counted must not be cut.
        let past = (self.granules << self.granularity_bits) - self.length;
        let ends_dirty = past > 0 && self.find(self.granules - 1, true, medium)?.is_some();
        let mut granules = 0;
        for index in 0..self.chunk_count() {
            granules += match self.content(index, medium)? {
                Content::Zeroes => 0,
                Content::Ones => self.chunk_granules(index),
                Content::Words(words) => {
                    words.iter().map(|w| u64::from(w.load(Ordering::Relaxed).count_ones())).sum()
                }
            };
        }
        let bytes = granules << self.granularity_bits;
        Ok(if ends_dirty { bytes - past } else { bytes })
    }

    /// The first dirty range at or after `offset`, guest bytes: from where to where.
    pub(crate) fn next_dirty(&self, offset: u64, medium: &Medium) -> Result<Option<(u64, u64)>> {
        if offset >= self.length {
            return Ok(None);
        }
        let Some(first) = self.find(offset >> self.granularity_bits, true, medium)? else { return Ok(None) };
        let end = self.find(first, false, medium)?.unwrap_or(self.granules);
        let (from, to) = (first << self.granularity_bits, end << self.granularity_bits);
        Ok(Some((from.max(offset), to.min(self.length))))
    }

    /// The first granule from `from` on whose bit is `set`.
    fn find(&self, from: u64, set: bool, medium: &Medium) -> Result<Option<u64>> {
        let mut at = from;
        while at < self.granules {
            let index = at >> self.chunk_bits;
            let start = index << self.chunk_bits;
            let granules = self.chunk_granules(index);
            let found = match self.content(index, medium)? {
                Content::Zeroes => (!set).then_some(at - start),
                Content::Ones => set.then_some(at - start),
                Content::Words(words) => find_in(words, at - start, set).filter(|found| *found < granules),
            };
            if let Some(found) = found {
                return Ok(Some(start + found));
            }
            at = start + granules;
        }
        Ok(None)
    }
}

/// The first bit from `from` on that is `set`; past the last word there is none.
fn find_in(words: &[AtomicU64], from: u64, set: bool) -> Option<u64> {
    let (first, _) = place(from);
    let value = |word: &AtomicU64| match set {
        true => word.load(Ordering::Relaxed),
        false => !word.load(Ordering::Relaxed),
    };
    let here = value(&words[first]) & (u64::MAX << (from % WORD_BITS));
    if here != 0 {
        return Some(first as u64 * WORD_BITS + u64::from(here.trailing_zeros()));
    }
    // Several words at a time: what is asked for is rare.
    let skipped = words[first + 1..]
        .chunks_exact(SCANNED_WORDS)
        .take_while(|words| words.iter().fold(0, |any, word| any | value(word)) == 0)
        .count();
    let start = first + 1 + skipped * SCANNED_WORDS;
    let next = words[start..].iter().position(|word| value(word) != 0)? + start;
    Some(next as u64 * WORD_BITS + u64::from(value(&words[next]).trailing_zeros()))
}

/// Word and bit of a granule of a chunk.
#[inline(always)]
fn place(granule: u64) -> (usize, u64) {
    ((granule / WORD_BITS) as usize, 1 << (granule % WORD_BITS))
}

/// The lowest `count` bits, all of them if there are no more.
fn low_bits(count: u64) -> u64 {
    if count >= WORD_BITS {
        u64::MAX
    } else {
        (1 << count) - 1
    }
}

impl Chunk {
    fn mark(&self, words: &Words, from: u64, to: u64) {
        let mut at = from;
        while at < to {
            let (word, _) = place(at);
            let end = ((at / WORD_BITS + 1) * WORD_BITS).min(to);
            let bits = low_bits(end - at) << (at % WORD_BITS);
            if words.bits[word].load(Ordering::Relaxed) & bits != bits {
                self.set(&words.bits[word], bits);
            }
            at = end;
        }
    }

    #[inline(never)]
    fn set(&self, word: &AtomicU64, bits: u64) {
        self.changed.store(true, Ordering::Relaxed);
        // Whoever sees them sees what this thread has marked before.
        word.fetch_or(bits, Ordering::Release);
    }

    /// What the medium has of it needs no words.
    fn is_plain(&self) -> bool {
        self.stored() <= ENTRY_ONES || self.clear.load(Ordering::Relaxed)
    }

    pub(crate) fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    pub(crate) fn is_changed(&self) -> bool {
        self.changed.load(Ordering::Relaxed)
    }

    /// The medium has `entry` for it. Called alone.
    pub(crate) fn note_stored(&self, entry: u64) {
        self.stored.store(entry, Ordering::Relaxed);
    }

    /// The medium has all of it. Called alone.
    pub(crate) fn note_unchanged(&self) {
        self.changed.store(false, Ordering::Relaxed);
    }
}

impl Content<'_> {
    /// The table entry of a chunk whose `granules` bits are alike.
    fn entry(&self, granules: u64) -> Option<u64> {
        let Content::Words(words) = self else {
            return Some(if matches!(self, Content::Ones) { ENTRY_ONES } else { ENTRY_ZEROES });
        };
        let all = |set: bool| {
            words.iter().enumerate().all(|(number, word)| {
                let valid = low_bits(granules - number as u64 * WORD_BITS);
                word.load(Ordering::Relaxed) == if set { valid } else { 0 }
            })
        };
        match () {
            () if all(false) => Some(ENTRY_ZEROES),
            () if all(true) => Some(ENTRY_ONES),
            () => None,
        }
    }

    /// The first `granules` bits as stored, in a cluster of `cluster_bytes`.
    pub(crate) fn encode(&self, granules: u64, cluster_bytes: u64) -> Result<Vec<u8>> {
        let mut bytes = crate::error::zeroed("bitmap", cluster_bytes)?;
        for (number, raw) in bytes.chunks_exact_mut(8).enumerate() {
            let Some(left) = granules.checked_sub(number as u64 * WORD_BITS) else { break };
            let word = match self {
                Content::Zeroes => 0,
                Content::Ones => u64::MAX,
                Content::Words(words) => words.get(number).map_or(0, |w| w.load(Ordering::Relaxed)),
            };
            raw.copy_from_slice(&(word & low_bits(left)).to_le_bytes());
        }
        Ok(bytes)
    }
}
