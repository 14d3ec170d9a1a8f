//! What an operation asks of the host does not grow with what the host holds: each job at two sizes, counted.

use qcow2::testing::disk::Disk;
use qcow2::testing::ops::compare::{compare, Verdict};
use qcow2::testing::ops::convert::{convert, ConvertOptions};
use qcow2::testing::ops::create::create;
use qcow2::testing::options::CreateOptions;
use qcow2::testing::storage::memory::Memory;
use qcow2::testing::storage::{Purpose, Storage};
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use testkit::counting::{Calls, Counting};
use testkit::images::*;

const CLUSTER: u64 = 4 * KIB;
/// Clusters of a job, small and large. An L2 table has 512.
const SIZES: [u64; 2] = [1024, 8192];

/// All numbers below `count`, a power of two, in a mixed order.
fn mixed(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |i| i.wrapping_mul(0x9e37_79b1) % count)
}

/// An image whose clusters lie in a mixed order in the file; of every second cluster the host has nothing, if `holes`.
fn scattered(clusters: u64, holes: bool) -> Arc<Counting> {
    let image = Counting::new(new_image(clusters * CLUSTER, &["cluster_size=4096"]));
    let storage: Arc<dyn Storage> = image.clone();
    let handle = open_over(&storage, None, WRITABLE, &[]).unwrap();
    for cluster in mixed(clusters) {
        write(&handle, cluster * CLUSTER, &pattern(CLUSTER, cluster));
    }
    handle.close().unwrap();
    if holes {
        punch(&image);
    }
    image
}

/// Takes every second data cluster's bytes away from under the image, as a program does that makes files sparse.
fn punch(image: &Counting) {
    let mut bytes = vec![0; image.length().unwrap() as usize];
    image.read(Purpose::Data, 0, &mut [IoSliceMut::new(&mut bytes)]).unwrap();
    for (_, entry) in l2_entries(&bytes) {
        let host = entry & testkit::oracle::OFFSET;
        if host / CLUSTER % 2 == 0 {
            image.discard(host, CLUSTER).unwrap();
        }
    }
}

/// The most of each kind of call that an operation may make, and by how much the large job may exceed the small one.
fn assert_bounded(job: &str, most: [f64; 5], measure: impl Fn(u64) -> Calls) {
    let [small, large] = SIZES.map(|size| {
        let calls = measure(size);
        let each = |count: u64| count as f64 / size as f64;
        [calls.reads, calls.writes, calls.syncs, calls.walks, calls.questions + calls.lengths].map(each)
    });
    testkit::tell!("{job}: reads, writes, syncs, walks, questions of each: {small:.3?}, {large:.3?}");
    for (index, what) in ["reads", "writes", "syncs", "walks", "questions"].iter().enumerate() {
        assert!(
            large[index] <= most[index],
            "{job}: {} {what} of each, {} at most",
            large[index],
            most[index]
        );
        assert!(
            large[index] <= small[index] * 1.25 + 0.05,
            "{job}: {what} of each grow from {} to {}",
            small[index],
            large[index]
        );
    }
}

/// A raw disk of which the host has every second cluster.
fn raw_base(clusters: u64) -> Arc<Counting> {
    let base = Counting::new(Arc::new(Memory::default()));
    base.set_length(clusters * CLUSTER).unwrap();
    for cluster in (0..clusters).step_by(2) {
        write_all(&base, cluster * CLUSTER, &pattern(CLUSTER, cluster));
    }
    base
}

fn write_all(storage: &Counting, offset: u64, bytes: &[u8]) {
    storage.write(Purpose::Data, offset, &[IoSlice::new(bytes)]).unwrap();
}

/// A part of each cluster is written over `base`.
fn copies_on_write(base: &Counting, format: &str, clusters: u64) -> Calls {
    let base = base.for_reading();
    let memory = Arc::new(Memory::default());
    let words = ["cluster_size=4096", "backing_file=base", &format!("backing_fmt={format}")];
    create(&*memory, clusters * CLUSTER, &CreateOptions::parse(&words).unwrap()).unwrap();
    let top = Counting::new(memory);
    let (top_storage, base_storage): (Arc<dyn Storage>, Arc<dyn Storage>) = (top.clone(), base.clone());
    let handle = open_over(&top_storage, Some(&base_storage), WRITABLE, &[]).unwrap();
    let (before_top, before_base) = (top.calls(), base.calls());
    for cluster in mixed(clusters) {
        write(&handle, cluster * CLUSTER + 512, &[7; 512]);
    }
    let (top, base) = (top.calls() - before_top, base.calls() - before_base);
    assert_eq!(base.writes + base.syncs + base.others, 0);
    top + base
}

/// Each copy-on-write asked where the base's file has holes: a walk over the file each time (`lseek`).
#[test]
fn c24_calls_of_copy_on_write_do_not_grow_with_the_base() {
    for holes in [false, true] {
        let bases = SIZES.map(|size| scattered(size, holes));
        if holes {
            assert!(bases[1].host_extents() > SIZES[1] / 8, "the base is not fragmented");
        }
        assert_bounded("copy-on-write", [2.2, 1.2, 0.0, 0.0, 0.1], |size| {
            copies_on_write(&bases[usize::from(size == SIZES[1])], "qcow2", size)
        });
    }
}

/// A raw base is asked once for each hole that is copied, which costs no walk, and not at all where it is dense.
#[test]
fn c24_calls_of_copy_on_write_do_not_grow_with_a_raw_base() {
    assert_bounded("copy-on-write over a raw disk", [1.2, 1.2, 0.0, 0.0, 1.2], |size| {
        copies_on_write(&raw_base(size), "raw", size)
    });
}

fn statuses(disk: &Disk) -> u64 {
    let (mut at, mut extents) = (0, 0);
    while at < disk.length() {
        at += disk.status(at, disk.length() - at, false).unwrap().length;
        extents += 1;
    }
    extents
}

/// A map of clusters in any order walked over the file for each of them.
#[test]
fn c24_calls_of_a_map_do_not_grow_with_its_clusters() {
    for holes in [false, true] {
        assert_bounded("map", [0.1, 0.0, 0.0, 1.2, 1.2], |size| {
            let image = scattered(size, holes).for_reading();
            let storage: Arc<dyn Storage> = image.clone();
            let handle = open_over(&storage, None, READ_ONLY, &[]).unwrap();
            assert!(statuses(handle.disk()) >= size / 4);
            image.calls()
        });
    }
}

/// The same of a conversion, which asks as it goes, and of a comparison, which asks two files.
#[test]
fn c24_calls_of_whole_disks_do_not_grow_with_their_clusters() {
    for holes in [false, true] {
        let images = SIZES.map(|size| scattered(size, holes));
        let of = |size: u64| images[usize::from(size == SIZES[1])].for_reading();
        assert_bounded("convert", [1.2, 0.6, 0.01, 1.2, 1.2], |size| {
            let (from, to) = (of(size), Counting::new(new_image(size * CLUSTER, &["cluster_size=4096"])));
            let (from_storage, to_storage): (Arc<dyn Storage>, Arc<dyn Storage>) = (from.clone(), to.clone());
            let source = open_over(&from_storage, None, READ_ONLY, &[]).unwrap();
            let target = open_over(&to_storage, None, WRITABLE, &[]).unwrap();
            convert(source.disk(), target.disk(), &ConvertOptions::default(), &mut |_, _| true).unwrap();
            target.close().unwrap();
            from.calls() + to.calls()
        });
        assert_bounded("compare", [2.2, 0.0, 0.0, 2.4, 2.4], |size| {
            let (left, right) = (of(size), of(size));
            let storages: [Arc<dyn Storage>; 2] = [left.clone(), right.clone()];
            let [a, b] = storages.map(|storage| open_over(&storage, None, READ_ONLY, &[]).unwrap());
            let verdict = compare(a.disk(), b.disk(), false, &mut |_, _| true);
            assert!(matches!(verdict, Ok(Verdict::Same)));
            left.calls() + right.calls()
        });
    }
}
