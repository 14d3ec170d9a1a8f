//! The header cluster: fields, extensions, backing file name. Versions 2 and 3, any valid geometry.
//!
//! `parse` accepts what an open for guest I/O may still refuse: a check, or a look at the header, must work on images
//! whose features are not served here.

mod rules;

use super::extensions::{self, Extension};
use super::features::*;
use super::geometry::*;
use super::{be32, be64, Geometry};
use crate::error::{Error, ErrorKind, Result};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// "QFI\xfb".
pub const MAGIC: u32 = 0x5146_49fb;
/// Header length of version 2, bytes.
pub const V2_BYTES: usize = 72;
/// Smallest header length of version 3, bytes.
pub const V3_MIN_BYTES: usize = 104;
/// Header length that the reference implementation writes, bytes.
pub const V3_BYTES: usize = 112;
/// Longest backing file name, bytes.
pub const MAX_BACKING_NAME_BYTES: u32 = 1023;
/// Most internal snapshots, the reference implementation's limit.
pub const MAX_SNAPSHOTS: u32 = 65536;
/// Byte offset of what the header says about snapshots.
pub const SNAPSHOT_FIELDS_AT: u64 = 60;
/// Bytes of it.
pub const SNAPSHOT_FIELDS_BYTES: usize = 12;

/// All fields of a header, host byte order. Offsets and lengths in bytes unless named otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Where the backing file's name is stored; 0 for none.
    pub backing_file_offset: u64,
    /// Length of that name.
    pub backing_file_bytes: u32,
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// 0 none, 1 AES, 2 LUKS.
    pub crypt_method: u32,
    /// Entries of the active L1 table.
    pub l1_size: u32,
    /// Host offset of the active L1 table.
    pub l1_table_offset: u64,
    /// Host offset of the refcount table.
    pub refcount_table_offset: u64,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: u32,
    /// Number of internal snapshots.
    pub snapshot_count: u32,
    /// Host offset of the snapshot table.
    pub snapshots_offset: u64,
    /// Incompatible feature bits.
    pub incompatible: u64,
    /// Compatible feature bits.
    pub compatible: u64,
    /// Autoclear feature bits.
    pub autoclear: u64,
    /// log2 of the refcount width in bits.
    pub refcount_order: u32,
    /// Length of the fixed fields; 72 for version 2.
    pub header_length: u32,
    /// 0 zlib, 1 zstd.
    pub compression_type: u8,
    /// Bytes of the fixed fields past those we know (105 and on), kept as they are.
    pub extra: Vec<u8>,
    /// Extensions in file order.
    pub extensions: Vec<Extension>,
    /// The backing file's name, as stored.
    pub backing_file: Option<Vec<u8>>,
}

/// Entries of the snapshot table and its host offset, from the bytes at `SNAPSHOT_FIELDS_AT`.
pub fn snapshot_fields(fields: &[u8; SNAPSHOT_FIELDS_BYTES]) -> (u32, u64) {
    (be32(fields, 0), be64(fields, 4))
}

fn bad(summary: impl Into<String>, detail: impl Into<String>) -> Error {
    Error::invalid(summary).detail(detail)
}

impl Header {
    /// Cluster size in bytes from the first bytes of a file, to know how much to read for `parse`.
    pub fn peek_cluster_bytes(start: &[u8]) -> Result<u64> {
        if start.len() < 24 || be32(start, 0) != MAGIC {
            return Err(Error::new(ErrorKind::NotQcow2, "Image is not in qcow2 format"));
        }
        let version = be32(start, 4);
        if !(2..=3).contains(&version) {
            return Err(Error::unsupported(format!("Unsupported qcow2 version {version}")));
        }
        let cluster_bits = be32(start, 20);
        if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits) {
            return Err(bad(
                format!("Unsupported cluster size: 2^{cluster_bits}"),
                format!("cluster_bits {cluster_bits}, must be 9 to 21"),
            ));
        }
        Ok(1 << cluster_bits)
    }

    /// Whether all that `parse` looks at is in `start`, the first bytes of the first cluster.
    pub fn lies_in(start: &[u8]) -> bool {
        if start.len() < V3_MIN_BYTES {
            return false;
        }
        let length = if be32(start, 4) == 2 { V2_BYTES as u64 } else { u64::from(be32(start, 100)) };
        let names_end = match be64(start, 8) {
            0 => 0,
            offset => offset.saturating_add(u64::from(be32(start, 16))),
        };
        length.max(names_end) <= start.len() as u64
            && (names_end > 0 || extensions::find_end(start, length as usize).is_some())
    }

    /// Parses the first cluster, or the part of it that it `lies_in`. It is shorter otherwise only when the file is.
    pub fn parse(cluster: &[u8]) -> Result<Header> {
        let cluster_bytes = Self::peek_cluster_bytes(cluster)? as usize;
        let version = be32(cluster, 4);
        let needed = if version == 2 { V2_BYTES } else { V3_MIN_BYTES };
        if cluster.len() < needed {
            return Err(bad(
                "qcow2 header too short",
                format!("the file has {} bytes, version {version} needs {needed}", cluster.len()),
            ));
        }
        let mut header = Header {
            version,
            backing_file_offset: be64(cluster, 8),
            backing_file_bytes: be32(cluster, 16),
            cluster_bits: be32(cluster, 20),
            virtual_size: be64(cluster, 24),
            crypt_method: be32(cluster, 32),
            l1_size: be32(cluster, 36),
            l1_table_offset: be64(cluster, 40),
            refcount_table_offset: be64(cluster, 48),
            refcount_table_clusters: be32(cluster, 56),
            snapshot_count: be32(cluster, 60),
            snapshots_offset: be64(cluster, 64),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: 4,
            header_length: V2_BYTES as u32,
            compression_type: 0,
            extra: Vec::new(),
            extensions: Vec::new(),
            backing_file: None,
        };
        if version >= 3 {
            header.parse_v3(cluster, cluster_bytes)?;
        }
        header.parse_names(cluster, cluster_bytes)?;
        header.check_features()?;
        Ok(header)
    }

    fn parse_v3(&mut self, cluster: &[u8], cluster_bytes: usize) -> Result<()> {
        self.incompatible = be64(cluster, 72);
        self.compatible = be64(cluster, 80);
        self.autoclear = be64(cluster, 88);
        self.refcount_order = be32(cluster, 96);
        self.header_length = be32(cluster, 100);
        let length = self.header_length as usize;
        if length < V3_MIN_BYTES {
            return Err(bad(
                "qcow2 header too short",
                format!("header_length {length}, at least {V3_MIN_BYTES}"),
            ));
        }
        if length > cluster_bytes || length > cluster.len() {
            return Err(bad("qcow2 header exceeds cluster size", format!("header_length {length}")));
        }
        if length > V3_MIN_BYTES {
            self.compression_type = cluster[V3_MIN_BYTES];
            self.extra = cluster[V3_MIN_BYTES + 1..length].to_vec();
        }
        Ok(())
    }

    fn parse_names(&mut self, cluster: &[u8], cluster_bytes: usize) -> Result<()> {
        let mut limit = cluster.len().min(cluster_bytes);
        let offset = self.backing_file_offset;
        if offset != 0 {
            if offset > cluster_bytes as u64 {
                return Err(bad(
                    "Invalid backing file offset",
                    format!("backing_file_offset {offset:#x}, past the first cluster"),
                ));
            }
            limit = limit.min(offset as usize);
        }
        if limit > self.header_length as usize {
            self.extensions = extensions::parse(cluster, self.header_length as usize, limit)?;
        }
        if offset == 0 {
            return Ok(());
        }
        let bytes = self.backing_file_bytes;
        let room = cluster_bytes as u64 - offset;
        if bytes > MAX_BACKING_NAME_BYTES || u64::from(bytes) > room {
            return Err(bad(
                "Backing file name too long",
                format!("backing_file_size {bytes} at {offset:#x}; the limit is {MAX_BACKING_NAME_BYTES} bytes inside the first cluster"),
            ));
        }
        let end = offset as usize + bytes as usize;
        let mut name = cluster.get(offset as usize..end.min(cluster.len())).unwrap_or_default().to_vec();
        if let Some(nul) = name.iter().position(|b| *b == 0) {
            name.truncate(nul);
        }
        if !name.is_empty() {
            self.backing_file = Some(name);
        }
        Ok(())
    }

    /// The sizes that follow.
    pub fn geometry(&self) -> Geometry {
        Geometry {
            version: self.version,
            cluster_bits: self.cluster_bits,
            refcount_order: self.refcount_order,
            extended_l2: self.incompatible & INCOMPAT_EXTENDED_L2 != 0,
            external_data: self.incompatible & INCOMPAT_DATA_FILE != 0,
        }
    }

    /// Payload of the extension of `kind`; of several the last one counts.
    pub fn extension(&self, kind: u32) -> Option<&[u8]> {
        self.extensions.iter().rev().find(|e| e.kind == kind).map(|e| e.data.as_slice())
    }

    /// An extension's payload as text; none is none given.
    pub fn extension_text(&self, kind: u32) -> Option<String> {
        let text = self.extension_name(kind)?.to_string_lossy().into_owned();
        Some(text).filter(|t| !t.is_empty())
    }

    /// An extension's payload as a name, which ends where it does for a C program.
    pub fn extension_name(&self, kind: u32) -> Option<&OsStr> {
        let name = self.extension(kind)?.split(|b| *b == 0).next();
        name.map(OsStr::from_bytes)
    }

    /// The backing file's name.
    pub fn backing_name(&self) -> Option<&OsStr> {
        self.backing_file.as_deref().map(OsStr::from_bytes)
    }

    /// The fixed fields, extensions and backing file name as the start of the first cluster.
    /// Sets the backing file's offset and length. Fails when they do not fit.
    pub fn encode(&mut self) -> Result<Vec<u8>> {
        let mut out = self.encode_fixed_fields();
        for extension in &self.extensions {
            extensions::encode(extension, &mut out);
        }
        out.extend([0; 8]);
        let room = 1usize << self.cluster_bits;
        match &self.backing_file {
            Some(name) => {
                self.backing_file_offset = out.len() as u64;
                self.backing_file_bytes = name.len() as u32;
                out[8..16].copy_from_slice(&self.backing_file_offset.to_be_bytes());
                out[16..20].copy_from_slice(&self.backing_file_bytes.to_be_bytes());
                out.extend(name);
            }
            None => {
                self.backing_file_offset = 0;
                self.backing_file_bytes = 0;
                out[8..20].fill(0);
            }
        }
        if out.len() > room {
            return Err(Error::new(
                ErrorKind::Host(libc::ENOSPC),
                format!(
                    "header: extensions and backing file name need {} bytes, a cluster has {room}",
                    out.len()
                ),
            ));
        }
        Ok(out)
    }

    /// Puts the fixed fields into the first sector; what follows them there stays, and so does a part past the sector.
    pub fn put_fixed_fields(&self, sector: &mut [u8]) {
        let fields = self.encode_fixed_fields();
        let bytes = fields.len().min(sector.len());
        sector[..bytes].copy_from_slice(&fields[..bytes]);
    }

    /// The fixed fields alone, `header_length` bytes.
    pub fn encode_fixed_fields(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        out.extend(MAGIC.to_be_bytes());
        out.extend(self.version.to_be_bytes());
        out.extend(self.backing_file_offset.to_be_bytes());
        out.extend(self.backing_file_bytes.to_be_bytes());
        out.extend(self.cluster_bits.to_be_bytes());
        out.extend(self.virtual_size.to_be_bytes());
        out.extend(self.crypt_method.to_be_bytes());
        out.extend(self.l1_size.to_be_bytes());
        out.extend(self.l1_table_offset.to_be_bytes());
        out.extend(self.refcount_table_offset.to_be_bytes());
        out.extend(self.refcount_table_clusters.to_be_bytes());
        out.extend(self.snapshot_count.to_be_bytes());
        out.extend(self.snapshots_offset.to_be_bytes());
        if self.version >= 3 {
            out.extend(self.incompatible.to_be_bytes());
            out.extend(self.compatible.to_be_bytes());
            out.extend(self.autoclear.to_be_bytes());
            out.extend(self.refcount_order.to_be_bytes());
            out.extend(self.header_length.to_be_bytes());
            if self.header_length as usize > V3_MIN_BYTES {
                out.push(self.compression_type);
                out.extend(&self.extra);
            }
            out.resize(self.header_length as usize, 0);
        }
        out
    }
}

#[cfg(test)]
mod tests;
