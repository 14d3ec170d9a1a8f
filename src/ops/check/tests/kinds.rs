//! Story C4: a repair that did not count some kind of reference freed live data. Each kind of cluster gets a
//! wrong count in turn, then all at once, and nothing that anybody can see may change.

use super::build::{build, set_count, visible, Built, EXTENDED, SMALL, USUAL};
use super::{assert_clean, run_bytes, seed, Random, ALL, LEAKS, LOOK};
use crate::error::ErrorKind;
use crate::format::be64;
use crate::format::entries::COPIED;

fn shapes() -> Vec<Built> {
    [SMALL, USUAL, EXTENDED].into_iter().map(build).collect()
}

fn repaired_shows_the_same(before: &Built, damaged: &[u8], why: &str) -> Vec<u8> {
    let (report, messages, after) = run_bytes(damaged, ALL);
    let report = report.unwrap_or_else(|e| panic!("{why}: {e}: {messages:#?}"));
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0), "{why}: {messages:#?}");
    assert_clean(&after, why);
    let (old, new) = (visible(&before.bytes, &before.geometry), visible(&after, &before.geometry));
    assert!(old == new, "{why}: something that can be seen has changed");
    after
}

#[test]
fn an_image_with_every_kind_of_reference_is_clean() {
    for image in shapes() {
        assert_clean(&image.bytes, "as built");
        for wanted in ["header", "compressed", "VM state", "bitmap data", "encryption header", "preallocated"]
        {
            assert!(image.kinds.iter().any(|(_, kind)| *kind == wanted), "{wanted}");
        }
    }
}

#[test]
fn a_count_of_zero_for_any_kind_is_found_and_rebuilt() {
    for image in shapes() {
        for (cluster, kind) in &image.kinds {
            let mut damaged = image.bytes.clone();
            set_count(&mut damaged, &image.geometry, *cluster, 0);
            let (report, messages, same) = run_bytes(&damaged, LOOK);
            assert!(report.unwrap().corruptions >= 1, "{kind}");
            assert!(messages[0].starts_with(&format!("ERROR cluster {cluster} refcount=0 reference=")));
            assert!(same == damaged);
            let (refused, messages, same) = run_bytes(&damaged, LEAKS);
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Corrupt);
            assert_eq!(
                messages.last().map(String::as_str),
                Some("ERROR need to rebuild refcount structures")
            );
            assert!(same == damaged, "{kind}: a repair of leaks alone changed an image beyond it");
            let after = repaired_shows_the_same(&image, &damaged, kind);
            assert_ne!(be64(&after, 48), be64(&damaged, 48), "{kind}: no new refcount table");
        }
    }
}

#[test]
fn a_count_that_is_too_high_for_any_kind_is_a_leak() {
    for image in shapes() {
        for (cluster, kind) in &image.kinds {
            let mut damaged = image.bytes.clone();
            set_count(&mut damaged, &image.geometry, *cluster, 9);
            let (report, messages, _) = run_bytes(&damaged, LOOK);
            assert_eq!(report.unwrap().leaks, 1, "{kind}");
            assert!(messages[0].starts_with(&format!("Leaked cluster {cluster} refcount=9 reference=")));
            let (report, _, after) = run_bytes(&damaged, LEAKS);
            assert_eq!(report.unwrap().leaks_fixed, 1);
            assert_clean(&after, kind);
            assert!(after == image.bytes, "{kind}: more than the count has changed");
        }
    }
}

#[test]
fn scrambled_counts_of_all_kinds_are_rebuilt() {
    let mut random = Random(seed());
    for image in shapes() {
        for round in 0..40 {
            let mut damaged = image.bytes.clone();
            for (cluster, _) in &image.kinds {
                set_count(&mut damaged, &image.geometry, *cluster, random.below(4));
            }
            if round % 4 == 0 {
                // The table itself is lost too.
                let table = be64(&damaged, 48) as usize;
                let junk = [0, 0x200 | 0x8000, 1 << 62, u64::MAX][round / 4 % 4];
                damaged[table..table + 8].copy_from_slice(&junk.to_be_bytes());
            }
            repaired_shows_the_same(&image, &damaged, "scrambled");
        }
    }
}

#[test]
fn a_rebuild_spends_no_calls_on_the_structures_that_it_replaces() {
    for image in shapes() {
        let mut damaged = image.bytes.clone();
        set_count(&mut damaged, &image.geometry, image.kinds[image.kinds.len() - 1].0, 0);
        let after = repaired_shows_the_same(&image, &damaged, "a rebuild");
        let table = be64(&damaged, 48);
        assert_ne!(be64(&after, 48), table, "no new refcount table");
        let block = be64(&damaged, table as usize) as usize;
        // Given back, they would read as zeroes.
        assert!(after[block..][..512].iter().any(|b| *b != 0));
    }
}

#[test]
fn every_wrong_copied_flag_is_mended() {
    let image = build(SMALL);
    let l1 = be64(&image.bytes, 40) as usize;
    let own = (be64(&image.bytes, l1) & !COPIED) as usize;
    let shared = be64(&image.bytes, l1 + 8) as usize;
    for (at, text) in [
        (l1, "L2 cluster: l1_index=0"),
        (l1 + 8, "L2 cluster: l1_index=1"),
        (own, "data cluster"),
        (shared + 24, "data"),
    ] {
        let mut damaged = image.bytes.clone();
        damaged[at] ^= 0x80;
        let (report, messages, _) = run_bytes(&damaged, LOOK);
        assert_eq!(report.unwrap().corruptions, 1);
        assert!(messages[0].starts_with(&format!("ERROR OFLAG_COPIED {text}")), "{messages:?}");
        for options in [LEAKS, ALL] {
            let (report, messages, after) = run_bytes(&damaged, options);
            assert_eq!(report.unwrap().corruptions_fixed, 1);
            assert!(messages[0].starts_with("Repairing OFLAG_COPIED"), "{messages:?}");
            assert!(after == image.bytes);
        }
    }
}

#[test]
fn bits_go_when_what_they_stand_for_is_right() {
    let image = build(SMALL);
    let with_bits = |bits: u8| {
        let mut bytes = image.bytes.clone();
        bytes[79] |= bits;
        bytes
    };
    let bits_after = |bytes: &[u8], options| run_bytes(bytes, options).2[79] & 3;
    for options in [LEAKS, ALL] {
        assert_eq!(bits_after(&with_bits(3), options), 0);
    }
    assert_eq!(bits_after(&with_bits(3), LOOK), 3);
    // Counts too low, only leaks repaired: the next writer must still repair.
    let mut low = with_bits(3);
    let shared = image.kinds.iter().find(|k| k.1 == "shared data").unwrap().0;
    set_count(&mut low, &image.geometry, shared, 1);
    assert_eq!(bits_after(&low, LEAKS), 3);
    assert_eq!(bits_after(&low, ALL), 0);
    // An entry that nothing can mend: counts are right, the image is not.
    let mut reserved = with_bits(3);
    let l1 = be64(&reserved, 40) as usize;
    reserved[l1] |= 0x40;
    assert_eq!(bits_after(&reserved, ALL), 2);
}

#[test]
fn a_misaligned_preallocation_loses_its_offset_and_not_more() {
    let image = build(USUAL);
    let mut damaged = image.bytes.clone();
    let l1 = be64(&damaged, 40) as usize;
    let own = (be64(&damaged, l1) & !COPIED) as usize;
    damaged[own + 5 * 8 + 6] |= 0x02;
    let (report, messages, after) = run_bytes(&damaged, ALL);
    let report = report.unwrap();
    assert_eq!((report.corruptions_fixed, report.leaks_fixed), (1, 1), "{messages:?}");
    assert_eq!(be64(&after, own + 5 * 8), 1);
    assert_clean(&after, "misaligned preallocation");
}

/// A broken snapshot L1 entry names a data cluster of the guest as an L2 table. The bytes of the guest look
/// like misaligned preallocations; the stock tool "repairs" them.
#[test]
fn guest_data_named_as_a_table_is_not_mended() {
    let image = build(USUAL);
    let mut damaged = image.bytes.clone();
    let data = image.kinds.iter().find(|k| k.1 == "data").unwrap().0;
    let at = (data << 16) as usize;
    damaged[at..at + 65536].fill(0);
    for word in damaged[at..at + 65536].chunks_exact_mut(8).take(100) {
        word.copy_from_slice(&0x0000_0000_0000_5201u64.to_be_bytes());
    }
    let guest = damaged[at..at + 65536].to_vec();
    let snapshot_l1 = image.kinds.iter().find(|k| k.1 == "snapshot L1").unwrap().0;
    let entry = (snapshot_l1 << 16) as usize;
    damaged[entry..entry + 8].copy_from_slice(&(data << 16).to_be_bytes());
    let (_, messages, after) = run_bytes(&damaged, ALL);
    assert!(messages.iter().any(|m| m.contains("Preallocated cluster is not properly aligned")));
    assert!(after[at..at + 65536] == guest);
}

/// The same with an entry of the active L1 table, and bytes that look like entries without COPIED. Found by
/// fuzzing: the repair set the "flag" in compressed data, which could not be read any more.
#[test]
fn guest_data_named_as_a_table_gets_no_copied_flags() {
    for image in [build(SMALL), build(USUAL)] {
        let mut damaged = image.bytes.clone();
        let cluster_bytes = image.geometry.cluster_bytes() as usize;
        let data = image.kinds.iter().find(|k| k.1 == "data").unwrap().0;
        let at = data as usize * cluster_bytes;
        for word in damaged[at..at + cluster_bytes].chunks_exact_mut(8) {
            word.copy_from_slice(&(data << image.geometry.cluster_bits).to_be_bytes());
        }
        damaged[at] = 0x80;
        let guest = damaged[at..at + cluster_bytes].to_vec();
        let l1 = be64(&damaged, 40) as usize;
        damaged[l1 + 8..l1 + 16].copy_from_slice(&(data << image.geometry.cluster_bits).to_be_bytes());
        for options in [LEAKS, ALL] {
            let (_, messages, after) = run_bytes(&damaged, options);
            assert!(messages.iter().any(|m| m.contains("OFLAG_COPIED data")), "{messages:?}");
            assert!(after[at..at + cluster_bytes] == guest, "{messages:?}");
        }
    }
}

#[test]
fn a_short_snapshot_entry_is_completed_in_a_new_table() {
    for shape in [SMALL, USUAL] {
        let image = build(shape);
        let mut damaged = image.bytes.clone();
        let table = be64(&damaged, 64) as usize;
        // No extra data: ID and name move up.
        damaged[table + 36..table + 40].fill(0);
        damaged[table + 40..table + 47].copy_from_slice(b"1before");
        let (report, messages, _) = run_bytes(&damaged, LOOK);
        assert_eq!(report.unwrap().corruptions, 1);
        assert_eq!(messages[0], "ERROR snapshot table entry 0 is incomplete");
        let (report, messages, after) = run_bytes(&damaged, ALL);
        assert_eq!(report.unwrap().corruptions_fixed, 1, "{messages:?}");
        assert_clean(&after, "completed");
        let at = be64(&after, 64) as usize;
        assert_ne!(at, table);
        let (list, _) = crate::format::snapshot::parse_table(&after[at..], 1).unwrap();
        assert_eq!((list[0].id.as_slice(), list[0].name.as_slice()), (&b"1"[..], &b"before"[..]));
        assert_eq!(list[0].virtual_size, Some(be64(&after, 24)));
    }
}

#[test]
fn a_table_shared_by_many_snapshots_is_read_twice_at_most() {
    use crate::storage::memory::Memory;
    let image = many_snapshots(1000);
    let storage = super::hostile::Counting::new(Memory::new(image));
    let (report, messages) = super::run(&storage, LOOK);
    let report = report.unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{messages:?}");
    assert!(
        storage.reads_of(crate::storage::Purpose::L2) <= 16,
        "{}",
        storage.reads_of(crate::storage::Purpose::L2)
    );
}

/// The usual image with `count` more snapshots that all name the L1 table of the first; counts to match.
fn many_snapshots(count: u64) -> Vec<u8> {
    let image = build(USUAL);
    let mut bytes = image.bytes.clone();
    let table = be64(&bytes, 64) as usize;
    let (list, end) = crate::format::snapshot::parse_table(&bytes[table..], 1).unwrap();
    assert_eq!(list.len(), 1);
    let entry = bytes[table..table + end.div_ceil(8) as usize * 8].to_vec();
    let at = bytes.len();
    for _ in 0..=count {
        bytes.extend(&entry);
    }
    let clusters = (bytes.len() - at).div_ceil(65536);
    bytes.resize(at + clusters * 65536, 0);
    bytes[60..64].copy_from_slice(&(count as u32 + 1).to_be_bytes());
    bytes[64..72].copy_from_slice(&(at as u64).to_be_bytes());
    for cluster in 0..clusters {
        set_count(&mut bytes, &image.geometry, (at >> 16) as u64 + cluster as u64, 1);
    }
    for (cluster, kind) in &image.kinds {
        let more = match *kind {
            "snapshot table" => 0,
            "snapshot L1" | "snapshot L2" | "snapshot data" | "VM state L2" | "VM state" => 1 + count,
            "shared L2" | "shared data" => 2 + count,
            _ => continue,
        };
        set_count(&mut bytes, &image.geometry, *cluster, more);
    }
    bytes
}

#[test]
fn counts_wider_than_the_image_holds_are_told() {
    // Five entries for one cluster with two-bit counts.
    let image = build(super::build::Shape { cluster_bits: 16, refcount_order: 1, extended_l2: false });
    let mut damaged = image.bytes.clone();
    let l1 = be64(&damaged, 40) as usize;
    let own = (be64(&damaged, l1) & !COPIED) as usize;
    let entry = damaged[own..own + 8].to_vec();
    for index in 10..14 {
        damaged[own + index * 8..own + index * 8 + 8].copy_from_slice(&entry);
    }
    let (report, messages, _) = run_bytes(&damaged, LOOK);
    assert!(report.unwrap().corruptions >= 2);
    assert!(messages[0].starts_with("ERROR: overflow cluster offset=0x"), "{messages:?}");
}
