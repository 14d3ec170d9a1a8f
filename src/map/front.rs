//! The slices of a disk that the cache holds whole, found with two plain loads. A page that the cache has let go of
//! ([`Page::is_live`]) is looked up there again.

use crate::error::{room, Result};
use crate::format::entries::{COMPRESSED, COPIED, OFFSET_MASK, ZERO};
use crate::format::{index_in_memory, Geometry, GuestOffset, HostOffset};
use crate::meta::page::Words;
use crate::meta::Page;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// What one look at an entry says about a request that stays inside its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Data at this host offset; `true`: it may be overwritten there.
    Data(HostOffset, bool),
    /// Not in this image.
    Hole,
    /// `resolve` has to tell: something else, or not in memory.
    Unknown,
}

/// A page, and its entries: looking at one must not cost a look at the page.
struct Found {
    words: Words,
    page: Arc<Page>,
}

/// The pages of the slices that have been loaded, each at its number; no places where the cache is smaller.
pub(super) struct Front {
    places: Box<[OnceLock<Found>]>,
    /// Set before the first page is let go of: until then nobody has to ask whether one is live.
    is_stale: AtomicBool,
    /// A request has used a page since the last look.
    is_used: AtomicBool,
    /// Entries are of one word, and offset 0 is no cluster.
    is_plain: bool,
    cluster_bits: u32,
    /// log2 of the guest bytes of a slice.
    slice_guest_bits: u32,
    cluster_mask: u64,
    /// Entries of a slice - 1.
    index_mask: u64,
}

impl Front {
    /// Places for `slices` slices of `slice_bytes` bytes.
    pub(super) fn new(geometry: &Geometry, slice_bytes: u64, slices: u64) -> Result<Front> {
        let mut places = room("the index of the cached L2 slices", slices)?;
        places.resize_with(index_in_memory(slices), OnceLock::new);
        let entries = slice_bytes / geometry.l2_entry_bytes();
        Ok(Front {
            places: places.into_boxed_slice(),
            is_stale: AtomicBool::new(false),
            is_used: AtomicBool::new(false),
            is_plain: !geometry.extended_l2 && !geometry.external_data,
            cluster_bits: geometry.cluster_bits,
            slice_guest_bits: geometry.cluster_bits + entries.trailing_zeros(),
            cluster_mask: geometry.cluster_bytes() - 1,
            index_mask: entries - 1,
        })
    }

    /// What the entry of `bytes` at `guest_offset` says; `None` where no slice is in memory.
    #[inline(always)]
    pub(super) fn look(&self, guest_offset: GuestOffset, bytes: u64) -> Option<Look> {
        let in_cluster = guest_offset.0 & self.cluster_mask;
        if !self.is_plain || bytes > self.cluster_mask + 1 - in_cluster {
            return Some(Look::Unknown);
        }
        let found = self.places.get(index_in_memory(guest_offset.0 >> self.slice_guest_bits))?.get()?;
        let word = found.words.get((guest_offset.0 >> self.cluster_bits & self.index_mask) as usize);
        let Some(entry) = word.map(|w| w.load(Ordering::SeqCst)) else { return Some(Look::Unknown) };
        // In this order: what a live page said is what the table said at that moment.
        if self.is_stale.load(Ordering::SeqCst) && !found.page.is_live() {
            return Some(Look::Unknown);
        }
        self.note_used();
        let host = entry & OFFSET_MASK;
        if entry & (COMPRESSED | ZERO) | host & self.cluster_mask != 0 {
            return Some(Look::Unknown);
        }
        Some(match host {
            0 => Look::Hole,
            host => Look::Data(HostOffset(host + in_cluster), entry & COPIED != 0),
        })
    }

    /// The page of slice number `slice`.
    #[inline]
    pub(super) fn page(&self, slice: u64) -> Option<&Arc<Page>> {
        let found = self.places.get(index_in_memory(slice))?.get()?;
        self.note_used();
        found.page.is_live().then_some(&found.page)
    }

    #[inline]
    fn note_used(&self) {
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the cache has no room for the whole disk.
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// A page that the cache has.
    pub(super) fn put(&self, slice: u64, page: &Arc<Page>) {
        if let Some(place) = self.places.get(index_in_memory(slice)) {
            let _ = place.set(Found { words: Arc::clone(page.words()), page: Arc::clone(page) });
        }
    }

    /// Before the cache lets go of a page.
    pub(super) fn note_leaving(&self) {
        if !self.is_empty() {
            self.is_stale.store(true, Ordering::SeqCst);
        }
    }

    /// Before slice number `slice` is loaded. One past the disk (VM state) may take the place of one that is here.
    pub(super) fn note_loading(&self, slice: u64) {
        if index_in_memory(slice) >= self.places.len() {
            self.note_leaving();
        }
    }

    /// Whether there are pages that no request has used since the last call.
    pub(super) fn take_idle(&self) -> bool {
        let used = self.is_used.swap(false, Ordering::Relaxed);
        !used && self.places.iter().any(|p| p.get().is_some())
    }
}
