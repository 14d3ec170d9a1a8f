//! Operation lists. `{:?}` of a list is code: paste it into a test after `use Op::*`.

use crate::bitmaps::BitmapOp;
use crate::encrypted::Encrypted;
use crate::rng::Rng;
use crate::setup::{Mode, Setup};
use qcow2::testing::options::Preallocation;

/// One operation; places and sizes in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Write {
        sector: u64,
        count: u64,
        fua: bool,
    },
    Zero {
        sector: u64,
        count: u64,
        unmap: bool,
        fua: bool,
    },
    Discard {
        sector: u64,
        count: u64,
    },
    Flush,
    /// Close and open again.
    Reopen,
    /// Given away and taken back by one handle.
    HandOver,
    /// The process dies and another one opens the image (and repairs it if it is dirty).
    Kill,
    Resize {
        sectors: u64,
    },
    /// Grows and preallocates; nothing happens to a disk that is as large.
    Grow {
        sectors: u64,
        how: Preallocation,
    },
    /// A compressed write of one cluster; nothing happens where it is allocated.
    Compressed {
        sector: u64,
        count: u64,
    },
    /// Takes over what is below a range, by request or as a read does.
    Stream {
        sector: u64,
        count: u64,
        reads: bool,
    },
    /// Takes a snapshot; nothing happens where a count would not fit.
    Snapshot,
    /// Goes back to one of the snapshots there are, if there are any.
    Apply {
        pick: u64,
    },
    /// Deletes one of the snapshots there are, if there are any.
    Delete {
        pick: u64,
    },
    /// Changes a setting; nothing happens where that is refused.
    Amend {
        option: &'static str,
    },
    /// Works on bitmaps, if the image began with some.
    Bitmaps {
        op: BitmapOp,
    },
}

use Op::*;

impl Op {
    /// Sectors that it touches, `(first, count)`.
    pub fn range(&self) -> Option<(u64, u64)> {
        match *self {
            Write { sector, count, .. }
            | Zero { sector, count, .. }
            | Discard { sector, count }
            | Compressed { sector, count } => Some((sector, count)),
            _ => None,
        }
    }

    /// The size of the disk afterwards, if it changes.
    pub fn new_size(&self) -> Option<u64> {
        match *self {
            Resize { sectors } | Grow { sectors, .. } => Some(sectors),
            _ => None,
        }
    }

    /// The same on a disk of `size` sectors; `None` if nothing is left of it.
    pub fn clipped(self, size: u64) -> Option<Op> {
        if let Stream { sector, count, reads } = self {
            return (sector < size).then(|| Stream { sector, count: count.min(size - sector), reads });
        }
        let Some((sector, count)) = self.range() else { return Some(self) };
        if sector >= size {
            return None;
        }
        let count = count.min(size - sector);
        Some(match self {
            Write { fua, .. } => Write { sector, count, fua },
            Zero { unmap, fua, .. } => Zero { sector, count, unmap, fua },
            Compressed { .. } => Compressed { sector, count },
            _ => Discard { sector, count },
        })
    }
}

/// A random operation for a disk of about `size` sectors. Places come from few spots, so that operations meet.
pub fn random_op(rng: &mut Rng, size: u64, cluster_sectors: u64) -> Op {
    let spot = rng.below(4) * (size / 4) / cluster_sectors * cluster_sectors;
    let sector = (spot + rng.below(4 * cluster_sectors)).min(size - 1);
    let most = if rng.one_in(8) { 70 * cluster_sectors } else { 3 * cluster_sectors };
    let count = (1 + rng.below(most)).min(size - sector);
    match rng.below(22) {
        20..=21 => {
            let first = sector / cluster_sectors * cluster_sectors;
            Compressed { sector: first, count: cluster_sectors.min(size - first) }
        }
        0..=8 => Write { sector, count, fua: rng.one_in(6) },
        9..=11 => Zero { sector, count, unmap: rng.one_in(2), fua: rng.one_in(6) },
        12..=14 => Discard { sector, count },
        15..=16 => Flush,
        17 => *rng.pick(&[Reopen, HandOver]),
        18 => Kill,
        _ if rng.one_in(3) => {
            let how = [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full];
            Grow { sectors: size + rng.below(size), how: *rng.pick(&how) }
        }
        _ => Resize { sectors: (size / 2 + rng.below(size)).max(8) },
    }
}

/// A random list of `length` operations.
pub fn random_list(rng: &mut Rng, setup: &Setup, length: usize) -> Vec<Op> {
    let cluster_sectors = 1 << (setup.cluster_bits - 9);
    (0..length)
        .map(|_| match () {
            () if setup.amends && rng.one_in(3) => {
                Amend { option: AMENDS[rng.below(AMENDS.len() as u64) as usize] }
            }
            () if setup.snapshots && rng.one_in(3) => random_snapshot_op(rng),
            () if setup.bitmaps && rng.one_in(3) => Bitmaps { op: *rng.pick(&BitmapOp::ALL) },
            () if setup.backing.is_some() && rng.one_in(8) => random_stream(rng, setup.sectors),
            () => random_op(rng, setup.sectors, cluster_sectors),
        })
        // Refused: streams would be stored as they are.
        .filter(|op| setup.encrypted.is_none() || !matches!(op, Compressed { .. }))
        .collect()
}

/// Settings that lists change.
const AMENDS: [&str; 10] = [
    "compat=0.10",
    "compat=0.10",
    "compat=1.1",
    "refcount_bits=1",
    "refcount_bits=4",
    "refcount_bits=16",
    "refcount_bits=16",
    "refcount_bits=64",
    "lazy_refcounts=on",
    "lazy_refcounts=off",
];

fn random_stream(rng: &mut Rng, size: u64) -> Op {
    let sector = rng.below(size);
    let most = if rng.one_in(2) { 8 } else { size };
    let count = 1 + rng.below(most);
    Stream { sector, count, reads: rng.one_in(2) }
}

fn random_snapshot_op(rng: &mut Rng) -> Op {
    match rng.below(5) {
        0..=1 => Snapshot,
        2..=3 => Apply { pick: rng.below(4) },
        _ => Delete { pick: rng.below(4) },
    }
}

/// A random image. Small enough that thousands are made in a second.
pub fn random_setup(rng: &mut Rng) -> Setup {
    let version = if rng.one_in(6) { 2 } else { 3 };
    let extended = version == 3 && rng.one_in(20);
    let cluster_bits = if extended { 14 } else { *rng.pick(&[9, 9, 9, 9, 10, 12]) };
    let sectors = (rng.below(300) + 20) << (cluster_bits - 9).min(2);
    Setup {
        version,
        cluster_bits,
        refcount_order: if version == 2 { 4 } else { rng.below(7) as u32 },
        lazy: version == 3 && rng.one_in(2),
        mode: *rng.pick(&[
            Mode::Writeback,
            Mode::Writeback,
            Mode::Writeback,
            Mode::Writethrough,
            Mode::MetadataWritethrough,
        ]),
        sectors,
        backing: rng.one_in(3).then(|| rng.below(sectors * 3 / 2) + 1),
        tiny_cache: rng.one_in(3),
        prefill: if rng.one_in(3) { rng.below(sectors / 2) } else { 0 },
        extended,
        ahead: rng.one_in(2),
        snapshots: rng.one_in(3),
        amends: rng.one_in(4),
        data_file: None,
        bitmaps: version == 3 && rng.one_in(3),
        encrypted: rng.one_in(6).then(|| Encrypted::random(rng)),
        encrypted_backing: rng.one_in(6),
        depth: 0,
    }
}

/// The same with guest data in a file of its own. A raw one shows what the disk shows, so it has nothing below and is not
/// encrypted.
pub fn with_data_file(setup: Setup, raw: bool) -> Setup {
    let backing = setup.backing.filter(|_| !raw);
    Setup { data_file: Some(raw), backing, encrypted: setup.encrypted.filter(|_| !raw), ..setup }
}

/// As `random_setup`, with encrypted guest data.
pub fn encrypted_setup(rng: &mut Rng) -> Setup {
    let setup = random_setup(rng);
    Setup { encrypted: Some(Encrypted::random(rng)), encrypted_backing: rng.one_in(2), ..setup }
}
