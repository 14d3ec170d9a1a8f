//! L1 and L2 table entries: what a 64-bit (or 128-bit, extended) entry says and how it is written.

use super::geometry::MAX_HOST_OFFSET;
use super::{be64, put_be64, Geometry};
use super::{HostCluster, HostOffset};

/// Bit 63: the refcount of the target is exactly one.
pub const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry: the cluster is compressed.
pub const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard L2 entry, version 3: the cluster reads as zeroes.
pub const ZERO: u64 = 1;
/// Bits 9-55: a host offset.
pub const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of an L1 entry that must be zero.
pub const L1_RESERVED: u64 = !(COPIED | OFFSET_MASK);
/// Bits of a standard L2 entry, or of an extended one that is not compressed, that must be zero: 1-8 and 56-61.
pub const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Bits of a refcount table entry that must be zero: all below the block offset.
pub const REFCOUNT_TABLE_RESERVED: u64 = 0x1ff;

/// One entry of the L1 table, big-endian on disk.
///
/// ```text
/// bit   63      62 .. 56   55 ............. 9   8 .. 0
///       copied  reserved   L2 table offset      reserved
/// ```
///
/// An entry with a zero offset has no L2 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L1Entry(pub u64);

impl L1Entry {
    /// An entry for an L2 table that only this L1 table refers to.
    pub fn owned(l2_table_offset: u64) -> Self {
        L1Entry(l2_table_offset | COPIED)
    }

    /// Host offset of the L2 table; 0 for none.
    pub fn table_offset(self) -> u64 {
        self.0 & OFFSET_MASK
    }

    /// The L2 table's refcount is one: it may be changed in place.
    pub fn copied(self) -> bool {
        self.0 & COPIED != 0
    }
}

/// An L2 entry as stored: descriptor, and the subcluster bitmap of an extended entry (else 0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawL2 {
    /// The 64-bit descriptor.
    pub descriptor: u64,
    /// Bits 0-31 allocated, bits 32-63 reads as zeroes; extended entries only.
    pub bitmap: u64,
}

/// What an L2 entry says, for both entry formats: a standard entry has one subcluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L2Entry {
    /// Anything but a compressed cluster.
    Plain(Mapping),
    /// A compressed cluster.
    Compressed(CompressedSpan),
}

/// A cluster with or without a host cluster.
///
/// For each subcluster: `alloc` set: data in the host cluster. `zero` set: reads as zeroes.
/// Neither: not in this image (backing file or zeroes). Never both. `alloc` needs `host`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Host offset of the cluster, when one is assigned.
    pub host: Option<HostOffset>,
    /// The host cluster's refcount is one: it may be written in place.
    pub copied: bool,
    /// Subclusters whose data is in the host cluster.
    pub alloc: u32,
    /// Subclusters that read as zeroes.
    pub zero: u32,
}

/// Where the bytes of a compressed cluster are. `bytes` counts to the end of the last 512-byte sector;
/// the stream may end before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedSpan {
    /// Host offset of the first byte, any alignment.
    pub host_offset: HostOffset,
    /// Length in bytes to the end of the last sector.
    pub bytes: u64,
}

impl CompressedSpan {
    /// First and one past the last host cluster that the span touches.
    pub fn clusters(&self, geometry: &Geometry) -> (HostCluster, HostCluster) {
        let last = HostOffset(self.host_offset.0 + self.bytes - 1);
        (geometry.cluster_index(self.host_offset), geometry.cluster_index(last) + 1)
    }
}

impl CompressedSpan {
    /// The span of a stream of `stream_bytes` bytes at `host_offset`, to the end of its last sector.
    pub fn of_stream(host_offset: HostOffset, stream_bytes: u64) -> CompressedSpan {
        let end = (host_offset.0 + stream_bytes).div_ceil(512) * 512;
        CompressedSpan { host_offset, bytes: end - host_offset.0 }
    }

    fn encode(&self, geometry: &Geometry) -> RawL2 {
        let shift = geometry.compressed_shift();
        let start = self.host_offset.0;
        let sectors = (start + self.bytes).div_ceil(512) - start / 512;
        debug_assert!(sectors >= 1 && sectors - 1 < 1 << (geometry.cluster_bits - 8));
        debug_assert!(start >> shift == 0);
        RawL2 { descriptor: COMPRESSED | (sectors - 1) << shift | start, bitmap: 0 }
    }
}

impl L2Entry {
    /// The stored form.
    pub fn encode(&self, geometry: &Geometry) -> RawL2 {
        match self {
            L2Entry::Plain(mapping) => mapping.encode(geometry),
            L2Entry::Compressed(span) => span.encode(geometry),
        }
    }
}

impl From<Mapping> for L2Entry {
    fn from(mapping: Mapping) -> L2Entry {
        L2Entry::Plain(mapping)
    }
}

impl RawL2 {
    /// The entry at the start of `bytes`, which has at least its length.
    pub fn read(geometry: &Geometry, bytes: &[u8]) -> RawL2 {
        RawL2 { descriptor: be64(bytes, 0), bitmap: if geometry.extended_l2 { be64(bytes, 8) } else { 0 } }
    }

    /// Puts the entry into `bytes`: 8 of them, or 16 for an extended one.
    pub fn put(self, bytes: &mut [u8]) {
        put_be64(bytes, 0, self.descriptor);
        if bytes.len() > 8 {
            put_be64(bytes, 8, self.bitmap);
        }
    }

    /// Whether an entry that is not compressed has a host cluster. With an external data file, offset 0 is one and COPIED
    /// says that it is meant; a standard entry that reads as zeroes cannot say so.
    pub fn is_assigned(self, geometry: &Geometry) -> bool {
        let plain_zero = !geometry.extended_l2 && self.descriptor & ZERO != 0;
        let first = geometry.external_data && self.descriptor & COPIED != 0 && !plain_zero;
        self.descriptor & OFFSET_MASK != 0 || first
    }

    /// Decodes an entry; an error is the rule that it breaks.
    pub fn decode(self, geometry: &Geometry) -> Result<L2Entry, &'static str> {
        if self.descriptor & COMPRESSED != 0 {
            return self.decode_compressed(geometry);
        }
        let offset = self.descriptor & OFFSET_MASK;
        if geometry.in_cluster(offset) != 0 {
            return Err("host offset is not a multiple of the cluster size");
        }
        let copied = self.descriptor & COPIED != 0;
        let assigned = self.is_assigned(geometry);
        let host = assigned.then_some(HostOffset(offset));
        let (alloc, zero) = if geometry.extended_l2 {
            let (alloc, zero) = (self.bitmap as u32, (self.bitmap >> 32) as u32);
            if alloc & zero != 0 {
                return Err("a subcluster is both allocated and zero");
            }
            if alloc != 0 && !assigned {
                return Err("subclusters are allocated in no host cluster");
            }
            (alloc, zero)
        } else if self.descriptor & ZERO != 0 {
            if geometry.version < 3 {
                return Err("zero flag in a version 2 image");
            }
            (0, 1)
        } else {
            (u32::from(assigned), 0)
        };
        Ok(L2Entry::Plain(Mapping { host, copied, alloc, zero }))
    }

    /// A compressed cluster has no subclusters: what its bitmap says, if anything, means nothing.
    fn decode_compressed(self, geometry: &Geometry) -> Result<L2Entry, &'static str> {
        if geometry.external_data {
            return Err("compressed cluster in an image with an external data file");
        }
        let span = self.compressed_span(geometry);
        if span.host_offset.0 >= MAX_HOST_OFFSET {
            return Err("compressed data starts at or past 2^56");
        }
        Ok(L2Entry::Compressed(span))
    }

    /// Where a compressed cluster says that its bytes are.
    pub fn compressed_span(self, geometry: &Geometry) -> CompressedSpan {
        let shift = geometry.compressed_shift();
        let host_offset = self.descriptor & ((1 << shift) - 1);
        let sector_mask = (1u64 << (geometry.cluster_bits - 8)) - 1;
        let sectors = ((self.descriptor >> shift) & sector_mask) + 1;
        CompressedSpan { host_offset: HostOffset(host_offset), bytes: sectors * 512 - (host_offset & 511) }
    }
}

impl Mapping {
    /// The stored form. A standard entry cannot say "host cluster assigned, contents elsewhere".
    pub fn encode(&self, geometry: &Geometry) -> RawL2 {
        debug_assert_eq!(self.alloc & self.zero, 0);
        debug_assert!(self.alloc == 0 || self.host.is_some());
        let copied = if self.copied && self.host.is_some() { COPIED } else { 0 };
        let descriptor = self.host.unwrap_or_default().0 | copied;
        if geometry.extended_l2 {
            let bitmap = u64::from(self.zero) << 32 | u64::from(self.alloc);
            return RawL2 { descriptor, bitmap };
        }
        debug_assert!(self.host.is_none() || self.alloc | self.zero == 1);
        RawL2 { descriptor: descriptor | u64::from(self.zero), bitmap: 0 }
    }
}

/// How many of the first entries of a part of an L2 table are standard ones that break no rule, with the same flags
/// and host clusters in a row: almost all entries of most images. 0 where the format has other entries.
pub fn plain_run(geometry: &Geometry, table: &[u8]) -> usize {
    let first = be64(table, 0);
    let step = geometry.cluster_bytes();
    let zero_flag = if geometry.version < 3 { ZERO } else { 0 };
    let wrong = !(COPIED | OFFSET_MASK | ZERO) | zero_flag | (OFFSET_MASK & (step - 1));
    let offset = first & OFFSET_MASK;
    if geometry.extended_l2 || geometry.external_data || first & wrong != 0 || offset == 0 {
        return 0;
    }
    let mut run = 0;
    // Eight at a time, for a branch costs more than a comparison.
    for eight in table.chunks_exact(64) {
        let mut expected = first.wrapping_add(run * step);
        let mut differs = 0;
        for entry in eight.chunks_exact(8) {
            differs |= be64(entry, 0) ^ expected;
            expected = expected.wrapping_add(step);
        }
        if differs != 0 {
            break;
        }
        run += 8;
    }
    let rest = table[run as usize * 8..].chunks_exact(8).zip(run..);
    run += rest.take_while(|(entry, i)| be64(entry, 0) == first.wrapping_add(i * step)).count() as u64;
    // Past the largest offset the sum has other bits set.
    run.min((MAX_HOST_OFFSET - offset) / step) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(cluster_bits: u32, extended_l2: bool) -> Geometry {
        Geometry { version: 3, cluster_bits, refcount_order: 4, extended_l2, external_data: false }
    }

    #[test]
    fn plain_entries_round_trip() {
        for extended in [false, true] {
            let g = geometry(16, extended);
            let all = g.all_subclusters();
            let cases = [
                Mapping::default(),
                Mapping { zero: all, ..Mapping::default() },
                Mapping { host: Some(HostOffset(0x50000)), copied: true, alloc: all, zero: 0 },
                Mapping { host: Some(HostOffset(0x50000)), copied: false, alloc: 0, zero: all },
            ];
            for mapping in cases {
                assert_eq!(mapping.encode(&g).decode(&g), Ok(L2Entry::Plain(mapping)));
            }
        }
    }

    #[test]
    fn compressed_fields_follow_the_cluster_size() {
        for cluster_bits in 9..=21 {
            let g = geometry(cluster_bits, false);
            let shift = g.compressed_shift();
            let max_sectors = (1u64 << (cluster_bits - 8)) - 1;
            for host_offset in [1u64, 511, 512, 70001] {
                let descriptor = COMPRESSED | max_sectors << shift | host_offset;
                let span = CompressedSpan {
                    host_offset: HostOffset(host_offset),
                    bytes: (max_sectors + 1) * 512 - host_offset % 512,
                };
                assert_eq!(RawL2 { descriptor, bitmap: 0 }.decode(&g), Ok(L2Entry::Compressed(span)));
                assert_eq!(L2Entry::Compressed(span).encode(&g), RawL2 { descriptor, bitmap: 0 });
                let e = Geometry { extended_l2: cluster_bits >= 14, ..g };
                assert_eq!(
                    RawL2 { descriptor, bitmap: 1 << 32 | 1 }.decode(&e),
                    Ok(L2Entry::Compressed(span))
                );
            }
        }
    }

    #[test]
    fn a_plain_run_ends_where_an_entry_is_another() {
        let g = geometry(16, false);
        let bytes = |entries: &[u64]| entries.iter().flat_map(|e| e.to_be_bytes()).collect::<Vec<u8>>();
        let run = |entries: &[u64]| plain_run(&g, &bytes(entries));
        let row: Vec<u64> = (0..40).map(|i| COPIED | (0x50000 + i * 0x10000)).collect();
        assert_eq!((run(&row), run(&row[..1]), run(&row[39..])), (40, 1, 1));
        for at in 1..row.len() {
            for other in [0, row[at] ^ COPIED, row[at] ^ ZERO, row[at] | 2, row[at] | 1 << 56, row[at] + 512]
            {
                let mut changed = row.clone();
                changed[at] = other;
                assert_eq!(run(&changed), at, "{other:#x}");
            }
        }
        for wrong in [0, COPIED, COPIED | ZERO, COMPRESSED | 0x50000, 0x50200, 0x50000 | 1 << 60] {
            assert_eq!(run(&[wrong, wrong + 0x10000]), 0, "{wrong:#x}");
        }
        let last = OFFSET_MASK & !0xffff;
        assert_eq!(run(&[last, last + 0x10000]), 1);
        let others =
            [Geometry { version: 2, ..g }, geometry(16, true), Geometry { external_data: true, ..g }];
        let zeroes = bytes(&[0x50001, 0x60001]);
        assert_eq!(others.map(|g| plain_run(&g, &zeroes)), [0, 0, 0]);
        assert_eq!(plain_run(&g, &zeroes), 2);
    }

    #[test]
    fn broken_entries_name_their_rule() {
        let g = geometry(16, false);
        assert!(RawL2 { descriptor: 0x50200, bitmap: 0 }.decode(&g).is_err());
        let v2 = Geometry { version: 2, ..g };
        assert!(RawL2 { descriptor: 1, bitmap: 0 }.decode(&v2).is_err());
        let e = geometry(16, true);
        assert!(RawL2 { descriptor: 0x50000, bitmap: 1 << 32 | 1 }.decode(&e).is_err());
        assert!(RawL2 { descriptor: 0, bitmap: 1 }.decode(&e).is_err());
    }
}
