//! The bitmap directory and the bitmap tables that it points to.
//!
//! ```text
//! entry  byte 0  table offset   8  table entries   12  flags   16  type   17  granularity bits
//!            18  name length   20  extra length    24  extra data, name, padding to 8
//! table  bit  0  all ones (only without an offset)    9-55  host offset of one cluster of bits
//! ```

use super::extensions::BitmapsPointer;
use super::{be16, be32, be64, Geometry};
use crate::error::{Error, ErrorKind, Result};

/// Most bitmaps of an image, the reference implementation's limit.
pub const MAX_BITMAPS: u32 = 65535;
/// Largest directory: 1024 bytes for each bitmap, the reference implementation's limit.
pub const MAX_DIRECTORY_BYTES: u64 = MAX_BITMAPS as u64 * 1024;
/// Most entries of one bitmap table, the reference implementation's limit.
pub const MAX_TABLE_ENTRIES: u32 = 0x0800_0000;
/// Longest name, the reference implementation's limit.
pub const MAX_NAME_BYTES: u16 = 1023;
/// Bytes of the fixed part of a directory entry.
pub const FIXED_BYTES: usize = 24;
/// The bitmap was not saved and may be wrong.
pub const FLAG_IN_USE: u32 = 1 << 0;
/// The bitmap tracks every write.
pub const FLAG_AUTO: u32 = 1 << 1;
/// The bitmap may be used although its extra data is not understood.
pub const FLAG_EXTRA_COMPATIBLE: u32 = 1 << 2;
/// Type of a dirty tracking bitmap, the only one there is.
pub const TYPE_DIRTY_TRACKING: u8 = 1;
/// Bytes of `flags` in an entry, and where they are.
pub const FLAGS_AT: usize = 12;
/// Largest bitmap, bytes of bits, the reference implementation's limit.
pub const MAX_BITS_BYTES: u64 = 0x2000_0000;
/// A table entry of a cluster whose bits are all clear, and of one whose bits are all set: neither has a place.
pub const ENTRY_ZEROES: u64 = 0;
/// See `ENTRY_ZEROES`.
pub const ENTRY_ONES: u64 = 1;
/// Bits 9-55 of a table entry.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// One entry of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Host offset of the table.
    pub table_offset: u64,
    /// Entries of the table.
    pub table_entries: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// Type; 1 is the only one defined.
    pub kind: u8,
    /// log2 of the guest bytes that one bit stands for.
    pub granularity_bits: u8,
    /// Extra data, kept byte for byte.
    pub extra: Vec<u8>,
    /// Name, bytes as stored.
    pub name: Vec<u8>,
}

/// Where one cluster of bits is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapCluster {
    /// No host cluster: all bits clear.
    Zeroes,
    /// No host cluster: all bits set.
    Ones,
    /// Host offset of the cluster.
    Host(u64),
}

/// Decodes an entry of a bitmap table; an error is the rule that it breaks.
pub fn decode_table_entry(
    entry: u64,
    geometry: &Geometry,
) -> std::result::Result<BitmapCluster, &'static str> {
    let offset = entry & OFFSET_MASK;
    if entry & !(OFFSET_MASK | 1) != 0 {
        return Err("reserved bits are set");
    }
    match (offset, entry & 1) {
        (0, 0) => Ok(BitmapCluster::Zeroes),
        (0, _) => Ok(BitmapCluster::Ones),
        (_, 1) => Err("all-ones flag with a host offset"),
        _ if geometry.in_cluster(offset) != 0 => Err("host offset is not a multiple of the cluster size"),
        _ => Ok(BitmapCluster::Host(offset)),
    }
}

/// Bytes of bits and entries of the table of a bitmap, for a disk of `virtual_size` bytes.
pub fn table_entries(virtual_size: u64, granularity_bits: u8, geometry: &Geometry) -> (u64, u64) {
    let bytes = virtual_size.div_ceil(1 << granularity_bits).div_ceil(8);
    (bytes, geometry.clusters_ceil(bytes))
}

/// Bytes that bitmaps of a disk of `virtual_size` bytes take, with all of their bits, in clusters of so many bytes.
pub fn stored_bytes(list: &[Bitmap], virtual_size: u64, cluster_bytes: u64) -> u64 {
    let of = |bitmap: &Bitmap| {
        let bits = virtual_size.div_ceil(1 << bitmap.granularity_bits).div_ceil(8);
        let clusters = bits.div_ceil(cluster_bytes);
        clusters * cluster_bytes + (clusters * 8).next_multiple_of(cluster_bytes)
    };
    let directory: u64 = list.iter().map(|bitmap| bitmap.stored_bytes() as u64).sum();
    list.iter().map(of).sum::<u64>() + directory.next_multiple_of(cluster_bytes)
}

/// log2 of a granularity; fails unless it is a power of two from 512 to 2^31.
pub fn granularity_bits(bytes: u64) -> Result<u8> {
    match bytes.is_power_of_two() && (1 << 9..=1 << 31).contains(&bytes) {
        true => Ok(bytes.trailing_zeros() as u8),
        false => {
            let rule = "Granularity must be power of 2 and at least 512";
            Err(Error::invalid(rule).detail(format!("{bytes}, and at most 2 GiB")))
        }
    }
}

/// The granularity of a bitmap when nobody says another one: a cluster, from 4 KiB to 64 KiB.
pub fn default_granularity(geometry: &Geometry) -> u64 {
    geometry.cluster_bytes().clamp(4 << 10, 64 << 10)
}

/// Fails unless a new bitmap may have this name.
pub fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() {
        return Err(Error::invalid("Bitmap name cannot be empty"));
    }
    if name.len() > usize::from(MAX_NAME_BYTES) {
        return Err(Error::invalid(format!(
            "Can't make bitmap '{}' persistent: Name length exceeds maximum ({MAX_NAME_BYTES} characters)",
            printable(name)
        )));
    }
    Ok(())
}

/// A name for messages: names come from the image, so control characters must not reach a terminal.
pub fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The bytes of a directory.
pub fn encode_directory(list: &[Bitmap]) -> Vec<u8> {
    let mut bytes = Vec::new();
    list.iter().for_each(|bitmap| bitmap.encode(&mut bytes));
    bytes
}

/// Refuses a pointer whose directory nobody may read. Called before memory for it is allocated.
pub fn check_pointer(pointer: &BitmapsPointer, geometry: &Geometry) -> Result<()> {
    if pointer.count == 0 {
        return Err(Error::invalid("found bitmaps extension with zero bitmaps"));
    }
    if pointer.count > MAX_BITMAPS {
        return Err(Error::invalid(format!(
            "bitmaps_ext: Image has {} bitmaps, exceeding the QEMU supported maximum of {MAX_BITMAPS}",
            pointer.count
        )));
    }
    if pointer.directory_offset == 0 || geometry.in_cluster(pointer.directory_offset) != 0 {
        return Err(Error::invalid("bitmaps_ext: invalid bitmap directory offset"));
    }
    if pointer.directory_bytes > MAX_DIRECTORY_BYTES {
        return Err(Error::invalid(format!(
            "bitmaps_ext: bitmap directory size ({}) exceeds the maximum supported size ({MAX_DIRECTORY_BYTES})",
            pointer.directory_bytes
        )));
    }
    if pointer.directory_bytes == 0 {
        return Err(Error::invalid("Requested bitmap directory size is zero"));
    }
    Ok(())
}

impl Bitmap {
    /// Parses the entry at the start of `bytes`; also answers its padded length.
    fn parse(bytes: &[u8]) -> Option<(Bitmap, usize)> {
        if bytes.len() < FIXED_BYTES {
            return None;
        }
        let (name_bytes, extra_bytes) = (be16(bytes, 18), be32(bytes, 20));
        if name_bytes > MAX_NAME_BYTES {
            return None;
        }
        let name_at = (FIXED_BYTES as u64).checked_add(u64::from(extra_bytes))?;
        let end = name_at + u64::from(name_bytes);
        if end.div_ceil(8) * 8 > bytes.len() as u64 {
            return None;
        }
        let (name_at, end) = (name_at as usize, end as usize);
        let bitmap = Bitmap {
            table_offset: be64(bytes, 0),
            table_entries: be32(bytes, 8),
            flags: be32(bytes, 12),
            kind: bytes[16],
            granularity_bits: bytes[17],
            extra: bytes[FIXED_BYTES..name_at].to_vec(),
            name: bytes[name_at..end].to_vec(),
        };
        Some((bitmap, end.div_ceil(8) * 8))
    }

    /// The name for messages.
    pub fn printable_name(&self) -> String {
        printable(&self.name)
    }

    /// Bytes of the entry, padded.
    pub fn stored_bytes(&self) -> usize {
        (FIXED_BYTES + self.extra.len() + self.name.len()).div_ceil(8) * 8
    }

    /// Whether it may lack changes: a writer did not come to storing it.
    pub fn is_inconsistent(&self) -> bool {
        self.flags & FLAG_IN_USE != 0
    }

    /// Whether it tracks changes.
    pub fn is_enabled(&self) -> bool {
        self.flags & FLAG_AUTO != 0
    }

    fn check(&self, geometry: &Geometry) -> Result<()> {
        if !self.extra.is_empty() {
            return Err(Error::unsupported("Bitmap extra data is not supported"));
        }
        let bad = self.table_entries == 0
            || self.table_entries > MAX_TABLE_ENTRIES
            || u64::from(self.table_entries) << geometry.cluster_bits > MAX_BITS_BYTES
            || self.table_offset == 0
            || geometry.in_cluster(self.table_offset) != 0
            || self.flags & !(FLAG_IN_USE | FLAG_AUTO | FLAG_EXTRA_COMPATIBLE) != 0
            || self.kind != TYPE_DIRTY_TRACKING
            || !(9..=31).contains(&self.granularity_bits)
            || self.name.is_empty();
        if bad {
            let text = format!("Bitmap '{}' doesn't satisfy the constraints", self.printable_name());
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        Ok(())
    }

    /// Appends the entry with padding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.table_offset.to_be_bytes());
        out.extend(self.table_entries.to_be_bytes());
        out.extend(self.flags.to_be_bytes());
        out.extend([self.kind, self.granularity_bits]);
        out.extend((self.name.len() as u16).to_be_bytes());
        out.extend((self.extra.len() as u32).to_be_bytes());
        out.extend(&self.extra);
        out.extend(&self.name);
        out.resize(out.len().div_ceil(8) * 8, 0);
    }
}

/// Parses a directory of `count` bitmaps. `bytes` is as long as the header extension says.
pub fn parse_directory(bytes: &[u8], count: u32, geometry: &Geometry) -> Result<Vec<Bitmap>> {
    let mut list = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        if list.len() as u64 >= u64::from(count) {
            return Err(Error::invalid("More bitmaps found than specified in header extension"));
        }
        let (bitmap, length) =
            Bitmap::parse(rest).ok_or_else(|| Error::invalid("Broken bitmap directory"))?;
        bitmap.check(geometry)?;
        rest = &rest[length..];
        list.push(bitmap);
    }
    if (list.len() as u64) < u64::from(count) {
        return Err(Error::invalid("Less bitmaps found than specified in header extension"));
    }
    check_unique(&list)?;
    Ok(list)
}

fn check_unique(list: &[Bitmap]) -> Result<()> {
    let mut names: Vec<&[u8]> = list.iter().map(|bitmap| &*bitmap.name).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => {
            let twice = Error::invalid(format!("Bitmap already exists: {}", printable(pair[0])));
            Err(twice.detail("the bitmap directory has the name twice"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry { version: 3, cluster_bits: 16, refcount_order: 4, extended_l2: false, external_data: false }
    }

    fn sample(name: &str) -> Bitmap {
        Bitmap {
            table_offset: 0x50000,
            table_entries: 3,
            flags: FLAG_AUTO,
            kind: TYPE_DIRTY_TRACKING,
            granularity_bits: 16,
            extra: Vec::new(),
            name: name.as_bytes().to_vec(),
        }
    }

    #[test]
    fn directories_round_trip() {
        let list = [sample("a"), sample("a longer name"), sample("12345678")];
        let mut bytes = Vec::new();
        list.iter().for_each(|b| b.encode(&mut bytes));
        assert_eq!(parse_directory(&bytes, 3, &geometry()).unwrap(), list);
        assert!(parse_directory(&bytes, 2, &geometry()).is_err());
        let mut twice = bytes.clone();
        list[0].encode(&mut twice);
        let error = parse_directory(&twice, 4, &geometry()).unwrap_err().to_string();
        assert!(error.starts_with("Bitmap already exists: a"), "{error}");
        assert!(parse_directory(&bytes, 4, &geometry()).is_err());
    }

    #[test]
    fn a_table_is_no_longer_than_the_largest_bitmap() {
        let most = (MAX_BITS_BYTES >> geometry().cluster_bits) as u32;
        for (entries, fits) in [(most, true), (most + 1, false), (MAX_TABLE_ENTRIES, false)] {
            let bytes = encode_directory(&[Bitmap { table_entries: entries, ..sample("x") }]);
            assert_eq!(parse_directory(&bytes, 1, &geometry()).is_ok(), fits, "{entries}");
        }
    }

    #[test]
    fn every_byte_of_an_entry_may_be_anything() {
        let mut bytes = Vec::new();
        sample("x").encode(&mut bytes);
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut broken = bytes.clone();
                broken[at] = value;
                let _ = parse_directory(&broken, 1, &geometry());
            }
            assert!(parse_directory(&bytes[..at], 1, &geometry()).is_err());
        }
    }

    #[test]
    fn table_entries_follow_the_format() {
        let g = geometry();
        assert_eq!(decode_table_entry(0, &g), Ok(BitmapCluster::Zeroes));
        assert_eq!(decode_table_entry(1, &g), Ok(BitmapCluster::Ones));
        assert_eq!(decode_table_entry(0x50000, &g), Ok(BitmapCluster::Host(0x50000)));
        for broken in [0x50001, 0x50200, 1 << 60, 2] {
            assert!(decode_table_entry(broken, &g).is_err());
        }
    }

    #[test]
    fn pointers_are_bounded() {
        let g = geometry();
        let good = BitmapsPointer { count: 1, directory_bytes: 32, directory_offset: 0x30000 };
        check_pointer(&good, &g).unwrap();
        for bad in [
            BitmapsPointer { count: 0, ..good },
            BitmapsPointer { count: 65536, ..good },
            BitmapsPointer { directory_bytes: 0, ..good },
            BitmapsPointer { directory_bytes: u64::MAX, ..good },
            BitmapsPointer { directory_offset: 0x30200, ..good },
            BitmapsPointer { directory_offset: 0, ..good },
        ] {
            assert!(check_pointer(&bad, &g).is_err());
        }
    }
}
