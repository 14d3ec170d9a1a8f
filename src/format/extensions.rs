//! Header extensions: parsed where we know them, kept byte for byte where we do not.

use super::{be32, be64};
use crate::error::{Error, Result};

/// End of the extension area.
pub const END: u32 = 0;
/// Name of the backing file's format.
pub const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Feature name table.
pub const FEATURE_NAMES: u32 = 0x6803_f857;
/// Bitmaps extension.
pub const BITMAPS: u32 = 0x2385_2875;
/// Full disk encryption header pointer.
pub const ENCRYPTION: u32 = 0x0537_be77;
/// Name of the external data file.
pub const DATA_FILE: u32 = 0x4441_5441;

/// An extension of ours that nobody reads: it fills the place of extensions that have moved.
pub const FILLER: u32 = 0x7161_7369;

/// Bytes before the payload: kind and length.
pub const HEAD_BYTES: u32 = 8;

/// One extension with its payload, in file order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// The magic number.
    pub kind: u32,
    /// Payload without padding.
    pub data: Vec<u8>,
    /// Offset of the payload in the file; 0 for one not yet written.
    pub offset: u64,
}

/// Payload of the bitmaps extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsPointer {
    /// Number of bitmaps.
    pub count: u32,
    /// Length of the bitmap directory in bytes.
    pub directory_bytes: u64,
    /// Host offset of the bitmap directory.
    pub directory_offset: u64,
}

/// Payload of the full disk encryption header pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncryptionPointer {
    /// Host offset of the header.
    pub offset: u64,
    /// Length of the header in bytes.
    pub bytes: u64,
}

/// Parses the extension area `header[from..limit]`; `limit` is the backing file name or the end of the cluster.
pub fn parse(header: &[u8], from: usize, limit: usize) -> Result<Vec<Extension>> {
    let mut list = Vec::new();
    let mut at = from;
    while at + 8 <= limit {
        let kind = be32(header, at);
        let bytes = be32(header, at + 4) as usize;
        if kind == END {
            break;
        }
        let start = at + 8;
        if bytes > limit - start {
            let detail = format!("extension {kind:#010x} at {at}: {bytes} bytes, {} left", limit - start);
            return Err(Error::invalid("Header extension too large").detail(detail));
        }
        list.push(Extension { kind, data: header[start..start + bytes].to_vec(), offset: start as u64 });
        // Padded to 8 bytes; the last one may end at the limit without its padding.
        at = start + bytes.div_ceil(8) * 8;
    }
    Ok(list)
}

/// Where the extension that ends the area is in `header[from..]`, if it is there.
pub fn find_end(header: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while at + 8 <= header.len() && be32(header, at) != END {
        at = (at + 8).checked_add((be32(header, at + 4) as usize).checked_next_multiple_of(8)?)?;
    }
    (at + 8 <= header.len()).then_some(at)
}

/// Puts kind and length of a payload to the start of `out`.
pub fn put_head(out: &mut [u8], kind: u32, payload_bytes: u32) {
    out[..4].copy_from_slice(&kind.to_be_bytes());
    out[4..8].copy_from_slice(&payload_bytes.to_be_bytes());
}

/// Appends one extension with padding.
pub fn encode(extension: &Extension, out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at + HEAD_BYTES as usize, 0);
    put_head(&mut out[at..], extension.kind, extension.data.len() as u32);
    out.extend(&extension.data);
    out.resize(out.len().div_ceil(8) * 8, 0);
}

/// Decodes the bitmaps extension's payload.
pub fn bitmaps(data: &[u8]) -> Result<BitmapsPointer> {
    if data.len() != 24 {
        return Err(Error::invalid(format!("bitmaps extension: {} bytes, must be 24", data.len())));
    }
    Ok(BitmapsPointer {
        count: be32(data, 0),
        directory_bytes: be64(data, 8),
        directory_offset: be64(data, 16),
    })
}

/// The bitmaps extension.
pub fn bitmaps_extension(pointer: &BitmapsPointer) -> Extension {
    let mut data = vec![0; 24];
    data[..4].copy_from_slice(&pointer.count.to_be_bytes());
    data[8..16].copy_from_slice(&pointer.directory_bytes.to_be_bytes());
    data[16..].copy_from_slice(&pointer.directory_offset.to_be_bytes());
    Extension { kind: BITMAPS, data, offset: 0 }
}

/// Decodes the encryption pointer's payload.
pub fn encryption(data: &[u8]) -> Result<EncryptionPointer> {
    if data.len() != 16 {
        return Err(Error::invalid(format!("encryption header extension: {} bytes, must be 16", data.len())));
    }
    Ok(EncryptionPointer { offset: be64(data, 0), bytes: be64(data, 8) })
}

/// The full disk encryption header pointer.
pub fn encryption_extension(pointer: &EncryptionPointer) -> Extension {
    let data = [pointer.offset, pointer.bytes].map(u64::to_be_bytes).concat();
    Extension { kind: ENCRYPTION, data, offset: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_extensions_survive_a_round_trip() {
        let list = vec![
            Extension { kind: BACKING_FORMAT, data: b"raw".to_vec(), offset: 8 },
            Extension { kind: 0x1234_5678, data: vec![7; 13], offset: 24 },
        ];
        let mut bytes = Vec::new();
        for e in &list {
            encode(e, &mut bytes);
        }
        bytes.extend([0; 8]);
        assert_eq!(parse(&bytes, 0, bytes.len()).unwrap(), list);
    }

    #[test]
    fn lengths_past_the_area_are_refused() {
        let mut bytes = 0x1234_5678u32.to_be_bytes().to_vec();
        bytes.extend(u32::MAX.to_be_bytes());
        bytes.extend([0; 64]);
        assert!(parse(&bytes, 0, bytes.len()).is_err());
    }
}
