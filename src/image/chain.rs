//! The layers below an image, for reads of holes that looks alone can answer.
//!
//! Nobody changes a backing image that is open read-only, but for a commit: that keeps the requests of the image
//! above out, and in the end another state of the backing image is in force. So a layer is read as it was when the
//! image above was loaded, without entering its gate, for as long as its count of states stays what it was; after
//! that, requests take the long way through the disk below.
//!
//! What a walk through several layers has found is remembered, one word for each guest cluster in a table of limited
//! size, so that a deep chain costs little more than one layer. A word is valid while all layers down to its own are
//! what they were. It says nothing of the image itself, whose own entry is looked at first.
//!
//! ```text
//! bit   63 .... 48   47 .. 40   39 ............ 0
//!       tag + 1      layer      host cluster
//! ```
//!
//! The tag is the part of the guest cluster's index that the word's place does not tell. Words stand alone: one that
//! another thread overwrites is the other thread's finding, and as good.

use super::payload::Payload;
use super::{Core, Disk, Image};
use crate::format::{Geometry, GuestOffset, HostOffset};
use crate::map::Look;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Most words: half a megabyte.
const MOST_WORDS: u64 = 1 << 16;
const TAG_SHIFT: u32 = 48;
const LAYER_SHIFT: u32 = 40;
const HOST_MASK: u64 = (1 << LAYER_SHIFT) - 1;

/// See the module. Belongs to one state of the image above.
pub(super) struct Chain {
    /// The nearest first.
    layers: Vec<Layer>,
    /// log2 of the cluster size of the image above.
    cluster_bits: u32,
    /// log2 of the number of words.
    word_bits: u32,
    words: OnceLock<Box<[AtomicU64]>>,
}

/// The state of a backing image, its image's count of states, and what that was.
#[derive(Clone)]
struct Layer {
    core: Arc<Core>,
    generation: Arc<AtomicU64>,
    seen: u64,
}

impl Layer {
    fn is_unchanged(&self) -> bool {
        self.generation.load(Ordering::SeqCst) == self.seen
    }
}

impl Chain {
    /// The chain below an image that is being loaded; `None` when its backing disk is no image, or may change.
    pub(super) fn of(backing: Option<&Disk>, geometry: &Geometry, virtual_size: u64) -> Option<Chain> {
        let image = Image::find(backing?)?;
        let generation = Arc::clone(image.session.generation());
        let seen = generation.load(Ordering::SeqCst);
        let core = image.core();
        if !core.is_read_only() {
            return None;
        }
        let further = core.chain.as_ref().map_or(&[][..], |chain| &chain.layers);
        let layers = further.to_vec();
        let nearest = Layer { core, generation, seen };
        let words = geometry.clusters_ceil(virtual_size).next_power_of_two().min(MOST_WORDS);
        Some(Chain {
            layers: std::iter::once(nearest).chain(layers).collect(),
            cluster_bits: geometry.cluster_bits,
            word_bits: words.trailing_zeros(),
            words: OnceLock::new(),
        })
    }

    /// Where the data of a range is that is inside one cluster of the image above, which has a hole there.
    pub(super) fn find(&self, offset: GuestOffset, bytes: u64) -> Option<(&Payload, HostOffset)> {
        let cluster = offset.0 >> self.cluster_bits;
        if let Some(words) = self.words.get() {
            let word = words[self.word_index(cluster)].load(Ordering::Relaxed);
            if word >> TAG_SHIFT == self.tag(cluster) {
                let layer = (word >> LAYER_SHIFT) as u8 as usize;
                if self.layers[..=layer].iter().all(Layer::is_unchanged) {
                    let in_cluster = offset.0 & ((1 << self.cluster_bits) - 1);
                    let host = (word & HOST_MASK) << self.cluster_bits;
                    return Some((&self.layers[layer].core.payload, HostOffset(host + in_cluster)));
                }
            }
        }
        self.walk(offset, bytes)
    }

    fn walk(&self, offset: GuestOffset, bytes: u64) -> Option<(&Payload, HostOffset)> {
        let cluster_bytes = 1 << self.cluster_bits;
        let in_cluster = offset.0 & (cluster_bytes - 1);
        // Every layer so far says the same of all of the cluster.
        let mut whole = true;
        for (index, layer) in self.layers.iter().enumerate() {
            let core = &layer.core;
            if !layer.is_unchanged() || offset.0 + bytes > core.virtual_size {
                return None;
            }
            whole &= core.geometry.cluster_bits >= self.cluster_bits
                && offset.0 - in_cluster + cluster_bytes <= core.virtual_size;
            match core.io.as_ref()?.map.look(offset, bytes) {
                Look::Data(host, _) => {
                    if whole && index > 0 {
                        self.keep(offset.0 >> self.cluster_bits, index, host);
                    }
                    return Some((&core.payload, host));
                }
                Look::Hole => continue,
                Look::Unknown => return None,
            }
        }
        None
    }

    /// Remembers that the layer has the cluster, around this host offset.
    fn keep(&self, cluster: u64, layer: usize, host: HostOffset) {
        let (tag, host) = (self.tag(cluster), host.0 >> self.cluster_bits);
        if tag >> (u64::BITS - TAG_SHIFT) != 0 || layer > usize::from(u8::MAX) || host > HOST_MASK {
            return;
        }
        let words = self.words.get_or_init(|| (0..1 << self.word_bits).map(|_| AtomicU64::new(0)).collect());
        let word = tag << TAG_SHIFT | (layer as u64) << LAYER_SHIFT | host;
        words[self.word_index(cluster)].store(word, Ordering::Relaxed);
    }

    fn word_index(&self, cluster: u64) -> usize {
        (cluster & ((1 << self.word_bits) - 1)) as usize
    }

    fn tag(&self, cluster: u64) -> u64 {
        (cluster >> self.word_bits) + 1
    }
}
