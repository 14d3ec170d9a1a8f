//! Headers, there and back, and broken ones.

use super::*;

fn sample() -> Header {
    Header {
        version: 3,
        backing_file_offset: 0,
        backing_file_bytes: 0,
        cluster_bits: 16,
        virtual_size: 1 << 30,
        crypt_method: 0,
        l1_size: 2,
        l1_table_offset: 0x30000,
        refcount_table_offset: 0x10000,
        refcount_table_clusters: 1,
        snapshot_count: 0,
        snapshots_offset: 0,
        incompatible: 0,
        compatible: COMPAT_LAZY_REFCOUNTS,
        autoclear: 0,
        refcount_order: 4,
        header_length: V3_BYTES as u32,
        compression_type: 0,
        extra: vec![0; 7],
        extensions: vec![Extension { kind: 0x1111_2222, data: vec![1, 2, 3], offset: 120 }],
        backing_file: Some(b"base.img".to_vec()),
    }
}

#[test]
fn headers_round_trip() {
    let mut header = sample();
    let bytes = header.encode().unwrap();
    assert_eq!(Header::parse(&bytes).unwrap(), header);
    header.check_tables(false).unwrap();
}

#[test]
fn version_2_ignores_what_looks_like_version_3_fields() {
    let mut header = sample();
    header.version = 2;
    header.header_length = V2_BYTES as u32;
    header.compatible = 0;
    header.extra.clear();
    header.extensions.clear();
    header.backing_file = None;
    let mut bytes = header.encode().unwrap();
    bytes.resize(512, 0);
    // Behind an end-of-extensions mark, anything may follow.
    bytes[96..100].copy_from_slice(&9u32.to_be_bytes());
    assert_eq!(Header::parse(&bytes).unwrap(), header);
}

#[test]
fn every_prefix_and_every_byte_is_survived() {
    let bytes = sample().encode().unwrap();
    for length in 0..bytes.len() {
        let _ = Header::parse(&bytes[..length]).map(|h| h.check_tables(false));
    }
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut broken = bytes.clone();
            broken[at] = value;
            let _ = Header::parse(&broken).map(|h| h.check_tables(false));
        }
    }
}

/// A start in which a header lies says all that the whole cluster says, whatever it is broken by.
#[test]
fn a_header_lies_in_what_parse_looks_at() {
    let mut headers = vec![sample(), sample(), sample()];
    headers[1].backing_file = None;
    headers[1].extensions[0].data = vec![7; 60];
    headers[2].backing_file = None;
    let (mut within, mut beyond) = (0, 0);
    for mut header in headers {
        let mut cluster = header.encode().unwrap();
        let used = cluster.len();
        cluster.resize(1 << 16, 0);
        for at in 0..used {
            for value in [cluster[at], 0, 1, 0x20, 0xff] {
                let mut broken = cluster.clone();
                broken[at] = value;
                for length in [104, 112, 128, 136, used, used + 8, 512] {
                    if !Header::lies_in(&broken[..length]) {
                        beyond += 1;
                        continue;
                    }
                    within += 1;
                    let said = |bytes: &[u8]| Header::parse(bytes).map_err(|e| e.to_string());
                    assert_eq!(
                        said(&broken[..length]),
                        said(&broken),
                        "byte {at} is {value}, {length} bytes"
                    );
                }
            }
        }
    }
    assert!(within > 1000 && beyond > 1000, "{within} {beyond}");
}
