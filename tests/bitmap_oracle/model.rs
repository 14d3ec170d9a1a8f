//! The steps of a list, and what they do to a disk's bitmaps.

use std::collections::{BTreeMap, BTreeSet};
use testkit::rng::Rng;

pub const MIB: u64 = 1 << 20;
/// Bytes of a cluster of an overlay.
pub const OVERLAY_CLUSTER: u64 = 4096;

#[derive(Clone, Debug)]
pub enum Step {
    Add {
        name: &'static str,
        granularity: u64,
        enabled: bool,
    },
    Remove {
        name: &'static str,
    },
    Clear {
        name: &'static str,
    },
    Enable {
        name: &'static str,
        on: bool,
    },
    Merge {
        into: &'static str,
        from: &'static str,
    },
    /// From a file of the same size, whose bitmap has one dirty range.
    MergeFile {
        into: &'static str,
        granularity: u64,
        offset: u64,
        length: u64,
    },
    Write {
        offset: u64,
        length: u64,
    },
    Zero {
        offset: u64,
        length: u64,
        unmap: bool,
    },
    Discard {
        offset: u64,
        length: u64,
    },
    /// Of clusters that nobody has touched.
    Compressed {
        offset: u64,
        length: u64,
    },
    /// Of an overlay that has one range, of whole clusters of its own.
    Commit {
        offset: u64,
        length: u64,
    },
    Resize {
        size: u64,
    },
    Snapshot {
        number: u64,
    },
    /// Refused, as long as there are bitmaps.
    Apply {
        number: u64,
    },
}

use Step::*;

#[derive(Clone, Default)]
pub struct Modelled {
    pub granularity: u64,
    pub enabled: bool,
    pub dirty: BTreeSet<u64>,
}

#[derive(Default)]
pub struct Model {
    pub size: u64,
    pub cluster: u64,
    /// The data is in a file of its own: neither snapshots nor compressed clusters.
    pub data_file: bool,
    pub bitmaps: BTreeMap<&'static str, Modelled>,
    /// Clusters that a step has been about, by number.
    pub touched: BTreeSet<u64>,
    pub snapshots: u64,
}

impl Modelled {
    fn mark(&mut self, from: u64, to: u64) {
        self.dirty.extend(from / self.granularity..to.div_ceil(self.granularity));
    }
}

impl Model {
    /// Whether the step can be done; then it is.
    pub fn apply(&mut self, step: &Step) -> bool {
        let size = self.size;
        match *step {
            Add { name, granularity, enabled } => {
                let new = Modelled { granularity, enabled, dirty: BTreeSet::new() };
                let free = !self.bitmaps.contains_key(name);
                self.bitmaps.entry(name).or_insert(new);
                free
            }
            Remove { name } => self.bitmaps.remove(name).is_some(),
            Clear { name } => self.bitmaps.get_mut(name).map(|b| b.dirty.clear()).is_some(),
            Enable { name, on } => self.bitmaps.get_mut(name).map(|b| b.enabled = on).is_some(),
            Merge { into, from } => {
                let (Some(source), true) = (self.bitmaps.get(from).cloned(), self.bitmaps.contains_key(into))
                else {
                    return false;
                };
                let target = self.bitmaps.get_mut(into).unwrap();
                for granule in source.dirty {
                    let at = granule * source.granularity;
                    target.mark(at, (at + source.granularity).min(size));
                }
                true
            }
            MergeFile { into, granularity, offset, length } => {
                let from = offset / granularity * granularity;
                let to = (offset + length).next_multiple_of(granularity).min(size);
                self.bitmaps.get_mut(into).map(|b| b.mark(from, to)).is_some()
            }
            Snapshot { number } => {
                self.snapshots = number;
                true
            }
            Apply { .. } => false,
            Write { offset, length }
            | Zero { offset, length, .. }
            | Discard { offset, length }
            | Compressed { offset, length }
            | Commit { offset, length } => {
                self.touched.extend(offset / self.cluster..(offset + length).div_ceil(self.cluster));
                let enabled = self.bitmaps.values_mut().filter(|b| b.enabled);
                enabled.for_each(|b| b.mark(offset, offset + length));
                true
            }
            Resize { size } => {
                self.size = size;
                self.bitmaps.values_mut().for_each(|b| {
                    let end = size.div_ceil(b.granularity);
                    b.dirty.retain(|granule| *granule < end);
                });
                true
            }
        }
    }
}

pub fn random_step(rng: &mut Rng, model: &Model) -> Step {
    let size = model.size;
    let mut name = || *rng.pick(&["a", "b", "backup of the week", "d"]);
    let (name, other) = (name(), name());
    let offset = rng.below(size / 512) * 512;
    let most = if rng.one_in(4) { size / 512 } else { 300 };
    let length = ((1 + rng.below(most)) * 512).min(size - offset);
    let granularity = 512 << rng.below(12);
    match rng.below(22) {
        0..=2 => Add { name, granularity, enabled: !rng.one_in(4) },
        3 => Remove { name },
        4 => Clear { name },
        5 => Enable { name, on: rng.one_in(2) },
        6..=7 => Merge { into: name, from: other },
        8 => MergeFile { into: name, granularity, offset, length },
        9..=12 => Write { offset, length },
        13 => Zero { offset, length, unmap: rng.one_in(2) },
        14..=15 => Discard { offset, length },
        16 => Resize { size: (1 + rng.below(8 * MIB / 512)) * 512 },
        17 => {
            // The stock tool's commits set the bits of whole clusters of the base.
            let unit = OVERLAY_CLUSTER.max(model.cluster);
            let from = offset / unit * unit;
            let to = (offset + length).next_multiple_of(unit).min(size);
            Commit { offset: from, length: to - from }
        }
        18..=19 => {
            let cluster = offset / model.cluster;
            let (from, to) = (cluster * model.cluster, (cluster + 1) * model.cluster);
            match model.data_file || to > size || model.touched.contains(&cluster) {
                true => Write { offset, length },
                false => Compressed { offset: from, length: to - from },
            }
        }
        20 if !model.data_file => Snapshot { number: model.snapshots + 1 },
        21 if model.snapshots > 0 && !model.bitmaps.is_empty() => {
            Apply { number: 1 + rng.below(model.snapshots) }
        }
        _ => Write { offset, length },
    }
}
