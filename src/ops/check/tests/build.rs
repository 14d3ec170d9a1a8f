//! A small image with every kind of reference, built by hand at the smallest geometry.

use crate::format::entries::{COMPRESSED, COPIED};
use crate::format::extensions::{self, Extension};
use crate::format::features::AUTOCLEAR_BITMAPS;
use crate::format::{be64, bitmap, refcount, snapshot, Geometry, Header};

/// Sizes of a test image.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub cluster_bits: u32,
    pub refcount_order: u32,
    pub extended_l2: bool,
}

/// 512-byte clusters, 64-bit refcounts: tables grow after a few clusters.
pub const SMALL: Shape = Shape { cluster_bits: 9, refcount_order: 6, extended_l2: false };
/// What most images have.
pub const USUAL: Shape = Shape { cluster_bits: 16, refcount_order: 4, extended_l2: false };
/// The smallest clusters that extended entries allow.
pub const EXTENDED: Shape = Shape { cluster_bits: 14, refcount_order: 4, extended_l2: true };

/// An image in memory with a count for each cluster, and the name of what is in it.
pub struct Built {
    pub bytes: Vec<u8>,
    pub geometry: Geometry,
    /// Cluster index and kind.
    pub kinds: Vec<(u64, &'static str)>,
}

struct Builder {
    shape: Shape,
    bytes: Vec<u8>,
    kinds: Vec<(u64, &'static str)>,
    counts: Vec<u64>,
}

impl Builder {
    fn cluster_bytes(&self) -> usize {
        1 << self.shape.cluster_bits
    }

    /// Takes `clusters` new clusters; answers the offset of the first.
    fn take(&mut self, clusters: u64, kind: &'static str) -> u64 {
        let first = self.counts.len() as u64;
        for cluster in first..first + clusters {
            self.kinds.push((cluster, kind));
            self.counts.push(1);
        }
        self.bytes.resize(self.counts.len() << self.shape.cluster_bits, 0);
        first << self.shape.cluster_bits
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.bytes[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    fn put64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_be_bytes());
    }

    fn data(&mut self, kind: &'static str, fill: u8) -> u64 {
        let at = self.take(1, kind);
        let bytes = vec![fill; self.cluster_bytes()];
        self.put(at, &bytes);
        at
    }

    /// Writes entry `index` of an L2 table; an extended entry has all subclusters.
    fn entry(&mut self, l2: u64, index: u64, descriptor: u64) {
        if !self.shape.extended_l2 {
            return self.put64(l2 + index * 8, descriptor);
        }
        self.put64(l2 + index * 16, descriptor);
        let plain = descriptor & COMPRESSED == 0;
        self.put64(l2 + index * 16 + 8, if plain { u64::from(u32::MAX) } else { 0 });
    }

    fn compressed(&self, offset: u64, sectors: u64) -> u64 {
        COMPRESSED | (sectors - 1) << (62 - (self.shape.cluster_bits - 8)) | offset
    }

    /// Two compressed clusters: both start in the first of two host clusters, the second ends in the next.
    fn compressed_pair(&mut self, l2: u64) {
        let at = self.take(2, "compressed");
        let bytes = self.cluster_bytes() as u64;
        self.put(at, &vec![0xc3; 2 * bytes as usize]);
        let first = self.compressed(at + 7, 1);
        let sectors = bytes / 512 + 1;
        let second = self.compressed(at + bytes - 100, sectors);
        self.entry(l2, 1, first);
        self.entry(l2, 2, second);
        let index = (at >> self.shape.cluster_bits) as usize;
        // 512-byte clusters: the second's last sector is in the second host cluster.
        let last =
            (at + bytes - 100 + sectors * 512 - (at + bytes - 100) % 512 - 1) >> self.shape.cluster_bits;
        self.counts[index] += 1;
        while self.counts.len() as u64 <= last {
            self.take(1, "compressed");
        }
    }
}

/// Builds the image: an active layer, a snapshot that shares a table with VM state behind the disk, a
/// bitmap, an encryption header, compressed clusters, preallocated zeroes.
pub fn build(shape: Shape) -> Built {
    let mut b = Builder { shape, bytes: Vec::new(), kinds: Vec::new(), counts: Vec::new() };
    let cluster_bytes = b.cluster_bytes() as u64;
    b.take(1, "header");
    let table = b.take(1, "refcount table");
    let l2_entries = cluster_bytes / if shape.extended_l2 { 16 } else { 8 };
    let disk_bytes = 2 * l2_entries * cluster_bytes;
    let l1 = b.take(1, "L1");
    let own = b.take(1, "L2");
    let shared = b.take(1, "shared L2");
    let first = b.data("data", 0x11);
    b.entry(own, 0, first | COPIED);
    b.compressed_pair(own);
    let prealloc = b.take(1, "preallocated");
    b.entry(own, 5, prealloc | COPIED | u64::from(!shape.extended_l2));
    let both = b.data("shared data", 0x22);
    b.entry(shared, 3, both);
    b.counts[(shared >> shape.cluster_bits) as usize] = 2;
    b.counts[(both >> shape.cluster_bits) as usize] = 2;
    b.put64(l1, own | COPIED);
    b.put64(l1 + 8, shared);
    let snapshots = snapshot_layer(&mut b, shared, disk_bytes);
    let bitmaps = bitmap_layer(&mut b);
    let keys = b.take(3, "encryption header");
    b.put(keys, &vec![0x4b; 3 * cluster_bytes as usize]);
    let extensions = vec![
        Extension { kind: extensions::BITMAPS, data: bitmaps, offset: 0 },
        Extension {
            kind: extensions::ENCRYPTION,
            data: [keys, 2 * cluster_bytes + 5].iter().flat_map(|v| v.to_be_bytes()).collect(),
            offset: 0,
        },
    ];
    let mut header = header(shape, (l1, table), snapshots, disk_bytes, extensions);
    let encoded = header.encode().unwrap();
    b.put(0, &encoded);
    store_counts(&mut b, table);
    Built { bytes: b.bytes, geometry: header.geometry(), kinds: b.kinds }
}

fn header(
    shape: Shape,
    (l1, table): (u64, u64),
    snapshots: u64,
    disk_bytes: u64,
    extensions: Vec<Extension>,
) -> Header {
    Header {
        version: 3,
        backing_file_offset: 0,
        backing_file_bytes: 0,
        cluster_bits: shape.cluster_bits,
        virtual_size: disk_bytes,
        crypt_method: 0,
        l1_size: 3,
        l1_table_offset: l1,
        refcount_table_offset: table,
        refcount_table_clusters: 1,
        snapshot_count: 1,
        snapshots_offset: snapshots,
        incompatible: if shape.extended_l2 { 1 << 4 } else { 0 },
        compatible: 1,
        autoclear: AUTOCLEAR_BITMAPS,
        refcount_order: shape.refcount_order,
        header_length: 112,
        compression_type: 0,
        extra: vec![0; 7],
        extensions,
        backing_file: None,
    }
}

/// A snapshot with a table of its own, the shared one, and VM state; answers the snapshot table's offset.
fn snapshot_layer(b: &mut Builder, shared: u64, disk_bytes: u64) -> u64 {
    let l1 = b.take(1, "snapshot L1");
    let own = b.take(1, "snapshot L2");
    let old = b.data("snapshot data", 0x33);
    b.entry(own, 0, old);
    let state_table = b.take(1, "VM state L2");
    let state = b.data("VM state", 0x44);
    b.entry(state_table, 0, state);
    for (index, table) in [own, shared, state_table].into_iter().enumerate() {
        b.put64(l1 + index as u64 * 8, table);
    }
    let entry = snapshot::Snapshot {
        l1_table_offset: l1,
        l1_size: 3,
        id: b"1".to_vec(),
        name: b"before".to_vec(),
        vm_state_bytes: 100,
        virtual_size: Some(disk_bytes),
        ..snapshot::Snapshot::default()
    };
    let mut bytes = Vec::new();
    entry.encode(0, &mut bytes);
    let table = b.take(1, "snapshot table");
    b.put(table, &bytes);
    table
}

/// A bitmap with one cluster of bits; answers the payload of the header extension.
fn bitmap_layer(b: &mut Builder) -> Vec<u8> {
    let table = b.take(1, "bitmap table");
    let bits = b.data("bitmap data", 0x55);
    b.put64(table, bits);
    b.put64(table + 8, 1);
    let entry = bitmap::Bitmap {
        table_offset: table,
        table_entries: 2,
        flags: 0,
        kind: 1,
        granularity_bits: 16,
        extra: Vec::new(),
        name: b"changes".to_vec(),
    };
    let mut bytes = Vec::new();
    entry.encode(&mut bytes);
    let directory = b.take(1, "bitmap directory");
    b.put(directory, &bytes);
    let mut payload = vec![0, 0, 0, 1, 0, 0, 0, 0];
    payload.extend((bytes.len() as u64).to_be_bytes());
    payload.extend(directory.to_be_bytes());
    payload
}

/// Adds one block of counts (the image is small enough) and points the table to it.
fn store_counts(b: &mut Builder, table: u64) {
    let block = b.take(1, "refcount block");
    assert!(b.counts.len() <= (b.cluster_bytes() * 8) >> b.shape.refcount_order);
    b.put64(table, block);
    let mut bytes = vec![0; b.cluster_bytes()];
    for (index, count) in b.counts.iter().enumerate() {
        refcount::set(&mut bytes, b.shape.refcount_order, index as u64, *count);
    }
    b.put(block, &bytes);
}

/// Where the image stores the count of `cluster`: block offset and index.
pub fn stored_at(bytes: &[u8], geometry: &Geometry, cluster: u64) -> (u64, u64) {
    let table = be64(bytes, 48);
    let block = be64(bytes, (table + 8 * geometry.refcount_table_index(cluster)) as usize);
    (block, geometry.refcount_block_index(cluster))
}

/// Sets a stored count.
pub fn set_count(bytes: &mut [u8], geometry: &Geometry, cluster: u64, value: u64) {
    let (block, index) = stored_at(bytes, geometry, cluster);
    let block = &mut bytes[block as usize..][..geometry.cluster_bytes() as usize];
    refcount::set(block, geometry.refcount_order, index, value);
}

/// Every byte that a guest or a user of snapshots, bitmaps and keys can see, COPIED flags left out.
pub fn visible(bytes: &[u8], geometry: &Geometry) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    let cluster = |at: u64| {
        let end = bytes.len().min((at + geometry.cluster_bytes()) as usize);
        bytes[end.min(at as usize)..end].to_vec()
    };
    let mut tables = vec![be64(bytes, 40)];
    let snapshots = be64(bytes, 64) as usize;
    let (list, _) = snapshot::parse_table(&bytes[snapshots..], 1).unwrap();
    tables.extend(list.iter().map(|s| s.l1_table_offset));
    seen.push(format!("{list:?}").into_bytes());
    for l1 in tables {
        for index in 0..3 {
            let l2 = be64(bytes, (l1 + index * 8) as usize) & !COPIED;
            if l2 == 0 {
                continue;
            }
            for at in (l2..l2 + geometry.cluster_bytes()).step_by(geometry.l2_entry_bytes() as usize) {
                let entry = be64(bytes, at as usize) & !COPIED;
                if entry != 0 {
                    seen.push(entry.to_be_bytes().to_vec());
                    let offset = if entry & COMPRESSED != 0 { entry & 0xff_ffff } else { entry & !0x1ff };
                    seen.push(cluster(offset));
                }
            }
        }
    }
    let header = Header::parse(&bytes[..geometry.cluster_bytes() as usize]).unwrap();
    for extension in &header.extensions {
        seen.push(extension.data.clone());
        if extension.kind == extensions::ENCRYPTION {
            let at = be64(&extension.data, 0);
            seen.extend((0..3).map(|i| cluster(at + i * geometry.cluster_bytes())));
        } else {
            let directory = be64(&extension.data, 16);
            seen.push(cluster(directory));
            let table = be64(bytes, directory as usize);
            seen.push(cluster(table));
            seen.push(cluster(be64(bytes, table as usize)));
        }
    }
    seen
}
