//! Feature bits of a version 3 header and the names they have.

/// Incompatible: refcounts may be stale.
pub const INCOMPAT_DIRTY: u64 = 1 << 0;
/// Incompatible: some structure is corrupt; no writes.
pub const INCOMPAT_CORRUPT: u64 = 1 << 1;
/// Incompatible: guest data is in an external file.
pub const INCOMPAT_DATA_FILE: u64 = 1 << 2;
/// Incompatible: the compression type is not zlib.
pub const INCOMPAT_COMPRESSION: u64 = 1 << 3;
/// Incompatible: 16-byte L2 entries.
pub const INCOMPAT_EXTENDED_L2: u64 = 1 << 4;
/// All incompatible bits that the format defines.
pub const INCOMPAT_KNOWN: u64 = 0x1f;

/// Compatible: refcount updates may be postponed.
pub const COMPAT_LAZY_REFCOUNTS: u64 = 1 << 0;

/// Autoclear: the bitmaps extension is consistent.
pub const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
/// Autoclear: the external data file is a valid raw image.
pub const AUTOCLEAR_RAW_DATA: u64 = 1 << 1;
/// All autoclear bits that the format defines.
pub const AUTOCLEAR_KNOWN: u64 = 0x3;

/// Kind byte of a feature name table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FeatureKind {
    /// Must be understood to open.
    Incompatible = 0,
    /// May be ignored.
    Compatible = 1,
    /// Cleared by a writer that does not maintain it.
    Autoclear = 2,
}

/// The table as the reference implementation writes it.
pub const NAMES: [(FeatureKind, u8, &str); 8] = [
    (FeatureKind::Incompatible, 0, "dirty bit"),
    (FeatureKind::Incompatible, 1, "corrupt bit"),
    (FeatureKind::Incompatible, 2, "external data file"),
    (FeatureKind::Incompatible, 3, "compression type"),
    (FeatureKind::Incompatible, 4, "extended L2 entries"),
    (FeatureKind::Compatible, 0, "lazy refcounts"),
    (FeatureKind::Autoclear, 0, "bitmaps"),
    (FeatureKind::Autoclear, 1, "raw external data"),
];

/// Smallest cluster with a name table; the reference implementation leaves it out below.
pub const MIN_NAME_TABLE_CLUSTER_BYTES: u64 = 8192;

/// Bytes of one entry: kind, bit number, name padded with zeroes.
pub const NAME_ENTRY_BYTES: usize = 48;

/// The table as the payload of its header extension.
pub fn encode_name_table() -> Vec<u8> {
    let mut table = vec![0; NAMES.len() * NAME_ENTRY_BYTES];
    for (entry, (kind, bit, name)) in table.chunks_exact_mut(NAME_ENTRY_BYTES).zip(NAMES) {
        entry[0] = kind as u8;
        entry[1] = bit;
        entry[2..2 + name.len()].copy_from_slice(name.as_bytes());
    }
    table
}

/// "name" for each unknown bit that the image's own table names, and one "Unknown incompatible feature: HEX"
/// for the others, joined with commas. The table ends at an entry without a name; the last one may be cut short.
pub fn describe_unknown(bits: u64, name_table: &[u8]) -> String {
    let mut rest = bits;
    let mut texts = Vec::new();
    for entry in name_table.chunks(NAME_ENTRY_BYTES) {
        if entry.get(2).is_none_or(|first| *first == 0) {
            break;
        }
        let bit = u32::from(entry[1]);
        if entry[0] != FeatureKind::Incompatible as u8 || bit > 63 || rest & (1 << bit) == 0 {
            continue;
        }
        let name = &entry[2..];
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        texts.push(printable(&name[..end]));
        rest &= !(1 << bit);
    }
    if rest != 0 {
        texts.push(format!("Unknown incompatible feature: {rest:x}"));
    }
    texts.join(", ")
}

/// Names come from the image: control characters must not reach a terminal.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_bits_use_the_images_names() {
        let mut table = encode_name_table();
        let mut entry = vec![0u8; NAME_ENTRY_BYTES];
        entry[1] = 9;
        entry[2..7].copy_from_slice(b"frob\x07");
        table.extend(entry);
        assert_eq!(describe_unknown(1 << 9, &table), "frob?");
        assert_eq!(
            describe_unknown(1 << 9 | 1 << 63, &table),
            "frob?, Unknown incompatible feature: 8000000000000000"
        );
        assert_eq!(describe_unknown(1 << 9, b"\0\x09fr"), "fr");
        for nameless in [&b""[..], b"\0", b"\0\x09", b"\0\x09\0"] {
            assert_eq!(describe_unknown(1 << 9, nameless), "Unknown incompatible feature: 200");
        }
        let last = table.len() - NAME_ENTRY_BYTES;
        table[last - NAME_ENTRY_BYTES + 2] = 0;
        assert_eq!(describe_unknown(1 << 9, &table), "Unknown incompatible feature: 200");
    }
}
