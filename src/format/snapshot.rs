//! The snapshot table: one entry for each internal snapshot, of variable length, in a row.
//!
//! ```text
//! byte  0  L1 table offset        8  L1 entries         12  ID length         14  name length
//!      16  seconds               20  nanoseconds        24  guest clock, ns   32  VM state bytes (32 bits)
//!      36  extra data length     40  extra data, ID, name, padding to 8
//! extra 0  VM state bytes         8  virtual size       16  icount            24  unknown, kept
//! ```
//!
//! Parsing is lenient where a repair can mend: a caller that wants to use a table asks `is_complete` too.

use super::{be16, be32, be64};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of the fixed part of an entry.
pub const FIXED_BYTES: usize = 40;
/// Most extra data of one entry, the reference implementation's limit.
pub const MAX_EXTRA_BYTES: u32 = 1024;
/// Longest entry.
pub const MAX_ENTRY_BYTES: u64 = FIXED_BYTES as u64 + MAX_EXTRA_BYTES as u64 + 2 * u16::MAX as u64;
/// Largest table: what 65,536 entries need at 1024 bytes each, the reference implementation's limit.
pub const MAX_TABLE_BYTES: u64 = 64 << 20;
/// Extra data that a version 3 entry must have: VM state size and virtual size.
pub const REQUIRED_EXTRA_BYTES: u32 = 16;
/// Extra data that has a meaning here; what follows is kept as it is.
const KNOWN_EXTRA_BYTES: usize = 24;

/// Lengths of the parts of an entry, from its fixed part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntrySizes {
    /// Extra data; not checked against the limit.
    pub extra_bytes: u32,
    /// ID.
    pub id_bytes: u16,
    /// Name.
    pub name_bytes: u16,
}

impl EntrySizes {
    /// Reads the lengths from the fixed part, which must be whole.
    pub fn parse(fixed: &[u8]) -> EntrySizes {
        EntrySizes { extra_bytes: be32(fixed, 36), id_bytes: be16(fixed, 12), name_bytes: be16(fixed, 14) }
    }

    /// Puts the lengths into the fixed part, which must be whole.
    pub fn put(&self, fixed: &mut [u8]) {
        fixed[36..40].copy_from_slice(&self.extra_bytes.to_be_bytes());
        fixed[12..14].copy_from_slice(&self.id_bytes.to_be_bytes());
        fixed[14..16].copy_from_slice(&self.name_bytes.to_be_bytes());
    }

    /// Bytes of the entry without padding. The next entry starts at the next multiple of 8.
    pub fn entry_bytes(&self) -> u64 {
        FIXED_BYTES as u64
            + u64::from(self.extra_bytes)
            + u64::from(self.id_bytes)
            + u64::from(self.name_bytes)
    }
}

/// One internal snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Host offset of its L1 table.
    pub l1_table_offset: u64,
    /// Entries of its L1 table.
    pub l1_size: u32,
    /// ID, bytes as stored.
    pub id: Vec<u8>,
    /// Name, bytes as stored.
    pub name: Vec<u8>,
    /// When it was taken: seconds since the epoch.
    pub date_seconds: u32,
    /// When it was taken: nanoseconds of the second.
    pub date_nanoseconds: u32,
    /// How long the guest had run, nanoseconds.
    pub guest_clock_nanoseconds: u64,
    /// Bytes of VM state behind the virtual disk; 0 for none.
    pub vm_state_bytes: u64,
    /// Virtual size when it was taken; `None` in an entry too short to say.
    pub virtual_size: Option<u64>,
    /// Instruction count of record/replay; `None` in an entry too short to say, `u64::MAX` when disabled.
    pub icount: Option<u64>,
    /// Length of the extra data as stored, which tells whether the entry is complete.
    pub extra_bytes: u32,
    /// Extra data past the fields above, kept byte for byte.
    pub unknown_extra: Vec<u8>,
}

impl Snapshot {
    /// Parses entry number `index`; `entry` holds at least its unpadded length. Extra data over the limit is an error.
    pub fn parse(entry: &[u8], index: u32) -> Result<Snapshot> {
        if entry.len() < FIXED_BYTES {
            return Err(truncated());
        }
        let sizes = EntrySizes::parse(entry);
        if sizes.extra_bytes > MAX_EXTRA_BYTES {
            let summary = format!("Too much extra metadata in snapshot table entry {index}");
            let detail = format!("{} bytes, the limit is {MAX_EXTRA_BYTES}", sizes.extra_bytes);
            let hint = "\nYou can force-remove this extra metadata with qemu-img check -r all";
            return Err(Error::new(ErrorKind::TooLarge, summary).hint(hint).detail(detail));
        }
        if (entry.len() as u64) < sizes.entry_bytes() {
            return Err(truncated());
        }
        let id_at = FIXED_BYTES + sizes.extra_bytes as usize;
        let name_at = id_at + usize::from(sizes.id_bytes);
        let extra = &entry[FIXED_BYTES..id_at];
        let field = |at: usize| (extra.len() >= at + 8).then(|| be64(extra, at));
        Ok(Snapshot {
            l1_table_offset: be64(entry, 0),
            l1_size: be32(entry, 8),
            id: entry[id_at..name_at].to_vec(),
            name: entry[name_at..name_at + usize::from(sizes.name_bytes)].to_vec(),
            date_seconds: be32(entry, 16),
            date_nanoseconds: be32(entry, 20),
            guest_clock_nanoseconds: be64(entry, 24),
            vm_state_bytes: field(0).unwrap_or_else(|| u64::from(be32(entry, 32))),
            virtual_size: field(8),
            icount: field(16),
            extra_bytes: sizes.extra_bytes,
            unknown_extra: extra.get(KNOWN_EXTRA_BYTES..).unwrap_or_default().to_vec(),
        })
    }

    /// Whether the entry has the extra data that version 3 asks for.
    pub fn is_complete(&self) -> bool {
        self.extra_bytes >= REQUIRED_EXTRA_BYTES
    }

    /// Appends the entry with padding. What an entry is too short to say gets its default: `default_virtual_size`, and
    /// no instruction count.
    pub fn encode(&self, default_virtual_size: u64, out: &mut Vec<u8>) {
        let mut extra = Vec::with_capacity(KNOWN_EXTRA_BYTES + self.unknown_extra.len());
        extra.extend(self.vm_state_bytes.to_be_bytes());
        extra.extend(self.virtual_size.unwrap_or(default_virtual_size).to_be_bytes());
        extra.extend(self.icount.unwrap_or(u64::MAX).to_be_bytes());
        extra.extend(&self.unknown_extra);
        out.extend(self.l1_table_offset.to_be_bytes());
        out.extend(self.l1_size.to_be_bytes());
        out.extend((self.id.len() as u16).to_be_bytes());
        out.extend((self.name.len() as u16).to_be_bytes());
        out.extend(self.date_seconds.to_be_bytes());
        out.extend(self.date_nanoseconds.to_be_bytes());
        out.extend(self.guest_clock_nanoseconds.to_be_bytes());
        // The old 32-bit field cannot say more than it can hold; readers of extra data ignore it.
        let short = u32::try_from(self.vm_state_bytes).unwrap_or(0);
        out.extend(short.to_be_bytes());
        out.extend((extra.len() as u32).to_be_bytes());
        out.extend(extra);
        out.extend(&self.id);
        out.extend(&self.name);
        out.resize(out.len().div_ceil(8) * 8, 0);
    }
}

/// Parses a whole table of `count` entries at the start of `bytes`. Refuses what a user of snapshots cannot
/// work with; also answers the length of the table without the last entry's padding.
pub fn parse_table(bytes: &[u8], count: u32) -> Result<(Vec<Snapshot>, u64)> {
    if count > super::header::MAX_SNAPSHOTS {
        let detail = format!("nb_snapshots {count}, the limit is {}", super::header::MAX_SNAPSHOTS);
        return Err(Error::new(ErrorKind::TooLarge, "Snapshot table too large").detail(detail));
    }
    let mut list = Vec::new();
    let (mut at, mut end) = (0usize, 0usize);
    for index in 0..count {
        let entry = bytes.get(at..).ok_or_else(truncated)?;
        let snapshot = Snapshot::parse(entry, index)?;
        end = at + EntrySizes::parse(entry).entry_bytes() as usize;
        at = end.div_ceil(8) * 8;
        list.push(snapshot);
    }
    Ok((list, end as u64))
}

fn truncated() -> Error {
    Error::new(ErrorKind::Corrupt, "snapshot table entry ends past the end of the table")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(extra: usize) -> Snapshot {
        Snapshot {
            l1_table_offset: 0x30000,
            l1_size: 7,
            id: b"1".to_vec(),
            name: b"before upgrade".to_vec(),
            date_seconds: 1_700_000_000,
            date_nanoseconds: 5,
            guest_clock_nanoseconds: 1 << 40,
            vm_state_bytes: (1 << 33) + 1,
            virtual_size: Some(1 << 30),
            icount: (extra > 0).then_some(u64::MAX),
            extra_bytes: if extra == 0 { 16 } else { 24 + extra as u32 - 1 },
            unknown_extra: vec![9; extra.saturating_sub(1)],
        }
    }

    #[test]
    fn entries_round_trip_with_unknown_extra_data() {
        let list = [sample(0), sample(1), sample(14), sample(1000)];
        let mut bytes = Vec::new();
        for snapshot in &list {
            snapshot.encode(0, &mut bytes);
        }
        let (parsed, end) = parse_table(&bytes, 4).unwrap();
        // The first one has become complete.
        let raised = Snapshot { icount: Some(u64::MAX), extra_bytes: 24, ..sample(0) };
        assert_eq!((&parsed[0], &parsed[1..]), (&raised, &list[1..]));
        assert_eq!(end.div_ceil(8) * 8, bytes.len() as u64);
    }

    #[test]
    fn extra_data_of_every_length_is_kept() {
        let mut bytes = Vec::new();
        sample(1000).encode(0, &mut bytes);
        let names = bytes[FIXED_BYTES + 1023..].to_vec();
        for length in 24..=1023u32 {
            let mut entry = bytes[..FIXED_BYTES + length as usize].to_vec();
            entry[36..40].copy_from_slice(&length.to_be_bytes());
            entry.extend(&names);
            let whole = entry.len();
            let mut again = Vec::new();
            Snapshot::parse(&entry, 0).unwrap().encode(0, &mut again);
            assert_eq!(again[..whole.min(again.len())], entry[..whole.min(again.len())], "{length} bytes");
            assert_eq!(again.len(), EntrySizes::parse(&entry).entry_bytes().div_ceil(8) as usize * 8);
        }
    }

    #[test]
    fn short_entries_use_the_old_field_and_are_incomplete() {
        let mut entry = vec![0; FIXED_BYTES];
        entry[35] = 9;
        let snapshot = Snapshot::parse(&entry, 0).unwrap();
        assert_eq!((snapshot.vm_state_bytes, snapshot.virtual_size), (9, None));
        assert!(!snapshot.is_complete());
        let mut out = Vec::new();
        snapshot.encode(4096, &mut out);
        let again = Snapshot::parse(&out, 0).unwrap();
        assert!(again.is_complete());
        assert_eq!((again.vm_state_bytes, again.virtual_size, again.icount), (9, Some(4096), Some(u64::MAX)));
        assert_eq!(again.extra_bytes, 24);
    }

    #[test]
    fn lengths_are_bounded() {
        let mut bytes = Vec::new();
        sample(0).encode(0, &mut bytes);
        for length in 0..bytes.len() - 8 {
            assert!(parse_table(&bytes[..length], 1).is_err());
        }
        bytes[36..40].copy_from_slice(&1025u32.to_be_bytes());
        assert_eq!(parse_table(&bytes, 1).unwrap_err().kind(), ErrorKind::TooLarge);
        bytes[36..40].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(parse_table(&bytes, 1).is_err());
        assert!(parse_table(&bytes, 65537).is_err());
    }
}
