//! C12: tables and sizes that grow.

use crate::corruption::take_snapshot;
use qcow2::testing::error::ErrorKind;
use qcow2::testing::ops::resize::resize;
use qcow2::testing::options::Preallocation;
use qcow2::testing::storage::Storage;
use std::sync::Arc;
use testkit::images::*;
use testkit::oracle;

/// Tables that grew did not count themselves, or were put at offset 0. With the smallest clusters they grow after
/// a few megabytes, for every width of a refcount.
#[test]
fn c12_refcount_tables_grow_at_every_width() {
    for order in 0..=6u32 {
        let bits = format!("refcount_bits={}", 1 << order);
        let capacity = 64 * (4096u64 >> order) * 512;
        let image = new_image(capacity + 3 * MIB, &["cluster_size=512", &bits]);
        let storage: Arc<dyn Storage> = image.clone();
        let handle = open_over(&storage, None, WRITABLE, &[]).unwrap();
        let part = pattern(MIB, u64::from(order));
        for at in (0..capacity + 2 * MIB).step_by(MIB as usize) {
            write(&handle, at, &part);
        }
        handle.close().unwrap();
        let bytes = image.contents();
        let head = oracle::Head::parse(&bytes).unwrap();
        assert!(head.table_clusters > 1, "{bits}: the table has not grown");
        let reference = |at: u64| oracle::be64(&bytes, at as usize) & oracle::OFFSET;
        let used = (bytes.len() as u64 / 512).div_ceil(head.block_entries());
        assert!((0..used).all(|i| reference(head.table_offset + i * 8) != 0), "{bits}: a block is missing");
        assert_sound(&*image);
        let handle = open_over(&storage, None, READ_ONLY, &[]).unwrap();
        assert!(read(&handle, capacity + MIB, MIB) == part, "{bits}");
    }
}

/// A table that is longer than what one refcount block counts found no place, and the file grew until the host was
/// full: each new block lay in its own range and parted the run.
#[test]
fn c12_a_table_longer_than_a_block_counts_finds_a_place() {
    // In memory: a file that grows for ever ends in an error.
    if !in_bounded_process("growth::c12_a_table_longer_than_a_block_counts_finds_a_place") {
        return;
    }
    for order in [0, 4, 6u32] {
        let bits = format!("refcount_bits={}", 1 << order);
        let image = new_image(MIB, &["cluster_size=512", &bits]);
        let storage: Arc<dyn Storage> = image.clone();
        let handle = open_over(&storage, None, WRITABLE, &[]).unwrap();
        // An L1 table of so many blocks' worth of clusters, and its copy in a snapshot where the counts allow one.
        let size = 5 * (4096u64 >> order) * (512 / 8) * 32 * KIB;
        resize(&handle, size, Preallocation::Off).unwrap();
        write(&handle, size - 512, &[7; 512]);
        if order > 0 {
            take_snapshot(&handle, "whole");
            write(&handle, size - 512, &[8; 512]);
        }
        handle.close().unwrap();
        assert!(image.contents().len() as u64 <= 4 * size / 4096, "{bits}: {}", image.contents().len());
        assert_sound(&*image);
        let handle = open_over(&storage, None, READ_ONLY, &[]).unwrap();
        assert_eq!(read(&handle, size - 512, 512), [if order > 0 { 8 } else { 7 }; 512]);
    }
}

/// Table sizes for more than 4 TiB were computed in 32 bits.
#[test]
fn c12_sizes_at_the_edges() {
    let max = (32 * MIB / 8) * 8192 * 64 * KIB; // a full L1 table of 64 KiB clusters
    for size in [1, 511, 512, 2 * TIB - 1, 2 * TIB, 2 * TIB + 1, 4 * TIB + 512, 64 * TIB, max] {
        let image = new_image(size, &[]);
        let storage: Arc<dyn Storage> = image.clone();
        let handle = open_over(&storage, None, WRITABLE, &[]).unwrap();
        let length = size.div_ceil(512) * 512;
        assert_eq!(handle.disk().length(), length);
        write(&handle, length - 512, &[7; 512]);
        write(&handle, 0, &[8; 512]);
        assert_eq!(read(&handle, length - 512, 512), [if length == 512 { 8 } else { 7 }; 512]);
        handle.close().unwrap();
        assert_sound(&*image);
        assert!(image.contents().len() as u64 <= 34 * MIB, "{size}");
    }
    let over = qcow2::testing::options::CreateOptions::parse::<&str>(&[]).unwrap();
    let memory = qcow2::testing::storage::memory::Memory::default();
    let error = qcow2::testing::ops::create::create(&memory, max + 512, &over).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
}
