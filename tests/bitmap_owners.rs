//! Bitmaps that lead to what something else has: a check names them, and whatever becomes of them the rest of the image
//! stays what it is.

use qcow2::testing::ops::bitmaps;
use qcow2::testing::ops::check::check;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::snapshot;
use qcow2::testing::storage::Storage;
use std::sync::Arc;
use testkit::bitmaps::{bitmaps as stored, directory};
use testkit::images::*;
use testkit::oracle::{be64, Head, OFFSET};

const SIZE: u64 = MIB;
const CLUSTER: u64 = 4096;
const DROP: &[&str] = &["drop-damaged-bitmaps=on"];

fn open(storage: &Arc<dyn Storage>, options: &[&str]) -> Handle {
    open_over(storage, None, WRITABLE, options).unwrap()
}

/// An image with two enabled bitmaps, data that a snapshot has, data of its own, and something compressed.
fn image() -> Vec<u8> {
    let memory = new_image(SIZE, &["cluster_size=4096"]);
    let handle = open(&(Arc::clone(&memory) as _), &[]);
    write(&handle, 0, &[1; 4 * CLUSTER as usize]);
    snapshot::create(&handle, &testkit::setup::snapshot_named(b"s")).unwrap();
    write(&handle, 0, &[0; CLUSTER as usize]);
    for name in [b"A", b"B"] {
        bitmaps::add(&handle, name, Some(512), true).unwrap();
    }
    write(&handle, 2 * CLUSTER, &[2; 512]);
    handle.close().unwrap();
    memory.contents()
}

/// Clusters of each kind that an image has, by what has them.
fn places(bytes: &[u8]) -> Vec<(&'static str, u64)> {
    let head = Head::parse(bytes).unwrap();
    let table = |at: u64| be64(bytes, at as usize) & OFFSET;
    let (l1, l2) = (head.l1_offset, table(head.l1_offset));
    let snapshot_l1 = be64(bytes, head.snapshots_offset as usize);
    let snapshot_l2 = table(snapshot_l1);
    vec![
        ("data of zeroes", table(l2)),
        ("data that a snapshot has, too", table(l2 + 8)),
        ("data of a snapshot", table(snapshot_l2)),
        ("L2 table", l2),
        ("L2 table of a snapshot", snapshot_l2),
        ("L1 table", l1),
        ("L1 table of a snapshot", snapshot_l1),
        ("snapshot table", head.snapshots_offset),
        ("refcount table", head.table_offset),
        ("refcount block", table(head.table_offset)),
        ("directory", directory(bytes).unwrap().0),
    ]
}

fn set_count(bytes: &mut [u8], offset: u64, count: u16) {
    let block = be64(bytes, Head::parse(bytes).unwrap().table_offset as usize) & OFFSET;
    put(bytes, block as usize + (offset / CLUSTER) as usize * 2, &count.to_be_bytes());
}

/// Where the first entry of the directory, "A", has its flags.
fn flags_of_a(bytes: &[u8]) -> usize {
    directory(bytes).unwrap().0 as usize + 15
}

/// Table or bits of "A", which is in use, lead to what something else has; it goes or becomes usable. Nothing of the
/// image that the guest sees changes, then or with what is written later.
#[test]
fn what_bitmaps_in_use_lead_to_stays() {
    let whole = image();
    let guest = |storage: &Arc<dyn Storage>, options: &[&str]| {
        let handle = open_over(storage, None, READ_ONLY, options).unwrap();
        read(&handle, 0, SIZE / 2)
    };
    let snapshot = ["snapshot.name=s"];
    let clean = memory(whole.clone());
    let expected = (guest(&clean, &[]), guest(&clean, &snapshot));
    for (place, offset) in places(&whole) {
        for (of_table, recover, overlap) in
            [(false, false, "none"), (false, true, "cached"), (true, false, "cached"), (true, true, "none")]
        {
            let why = format!("{place} table={of_table} recover={recover} overlap-check={overlap}");
            let mut bytes = whole.clone();
            let at = match of_table {
                true => directory(&bytes).unwrap().0 as usize,
                false => stored(&bytes).iter().find(|b| b.name == "A").unwrap().table.0 as usize,
            };
            let flags = flags_of_a(&bytes);
            bytes[flags] |= 1;
            put(&mut bytes, at, &offset.to_be_bytes());
            let image = memory(bytes);
            let option = format!("overlap-check={overlap}");
            let handle = open(&image, &[&option]);
            match recover {
                true => bitmaps::recover(&handle, b"A"),
                false => bitmaps::remove(&handle, b"A"),
            }
            .unwrap_or_else(|e| panic!("{why}: {e}"));
            write(&handle, SIZE / 2, &[5; SIZE as usize / 2]);
            handle.close().unwrap();
            assert!(guest(&image, &[]) == expected.0, "{why}: the guest's data");
            assert!(guest(&image, &snapshot) == expected.1, "{why}: the snapshot's data");
            let (report, said) = checked(&*image, LOOK);
            assert_eq!((report.corruptions, report.check_errors), (0, 0), "{why}: {said:?}");
        }
    }
}

/// What crashed writers leave goes without a leak.
#[test]
fn what_only_a_bitmap_in_use_has_goes_with_it() {
    for step in [bitmaps::recover, bitmaps::remove] {
        let mut bytes = image();
        let flags = flags_of_a(&bytes);
        bytes[flags] |= 1;
        let image = memory(bytes);
        let handle = open(&image, &[]);
        step(&handle, b"A").unwrap();
        handle.close().unwrap();
        assert_sound(&*image);
    }
}

/// A check names a table, or the directory, that is where something else is; what counts say of it is told as ever. A
/// repair loses nothing of either, and the check after it still says so.
#[test]
fn a_check_names_tables_and_directories_with_two_users() {
    let whole = image();
    let list = stored(&whole);
    let (a, b) = (list[0].table.0, list[1].table.0);
    let own = directory(&whole).unwrap().0;
    for counted in [false, true] {
        // "A" has the table of "B"; and a guest cluster is where the table of "A", or the directory, is.
        for (what, at, value, names) in [
            ("one table", own, b, &["bitmap table of 'A'", "bitmap table of 'B'"][..]),
            ("the table as data", 0, a, &["bitmap table of 'A'"][..]),
            ("the directory as data", 0, own, &["bitmap directory"][..]),
        ] {
            let mut bytes = whole.clone();
            let head = Head::parse(&bytes).unwrap();
            let l2 = be64(&bytes, head.l1_offset as usize) & OFFSET;
            let at = if at == 0 { l2 + 100 * 8 } else { at };
            let copied = if at == own || counted { 0 } else { 1 << 63 };
            put(&mut bytes, at as usize, &(value | copied).to_be_bytes());
            if counted {
                set_count(&mut bytes, value, 2);
            }
            let image = memory(bytes);
            let (report, said) = checked(&*image, LOOK);
            let expected: Vec<String> = names
                .iter()
                .map(|name| format!("ERROR {name}: value {value:#x}: clusters that nothing else has; that at {value:#x} has 2 uses"))
                .collect();
            let named: Vec<&String> = said
                .iter()
                .filter(|text| text.contains("nothing else"))
                .filter(|text| !text.contains("entry"))
                .collect();
            assert_eq!(named, expected.iter().collect::<Vec<_>>(), "{what} {counted}: {said:#?}");
            assert!(report.corruptions > 0, "{what} {counted}");
            let before = read(&open_over(&image, None, READ_ONLY, &[]).unwrap(), 0, SIZE);
            checked(&*image, REPAIR);
            let (report, said) = checked(&*image, LOOK);
            assert!(report.corruptions > 0 && report.leaks == 0, "{what} {counted}: {said:#?}");
            assert!(said.iter().all(|text| text.contains("nothing else")), "{what} {counted}: {said:#?}");
            let handle = open(&image, DROP);
            assert!(read(&handle, 0, SIZE) == before, "{what} {counted}");
            write(&handle, SIZE / 2, &[5; SIZE as usize / 4]);
            assert!(read(&handle, 0, SIZE / 2) == before[..SIZE as usize / 2], "{what} {counted}");
            handle.close().unwrap();
            checked(&*image, REPAIR);
            assert_sound(&*image);
        }
    }
}

/// A table where metadata of another kind is: named, and the repair, which may build counts anew, keeps what the guest has.
#[test]
fn a_check_names_tables_over_metadata() {
    let whole = image();
    for (place, offset) in places(&whole) {
        let mut bytes = whole.clone();
        let own = directory(&bytes).unwrap().0;
        let flags = flags_of_a(&bytes);
        bytes[flags] |= 1;
        put(&mut bytes, own as usize, &offset.to_be_bytes());
        let image = memory(bytes);
        let report = check(&*image, LOOK, None, &mut |_, _| true);
        let Ok(report) = report else {
            // What is there is no table by its contents: that is told instead.
            assert!(report.unwrap_err().to_string().contains("bitmap table of 'A' entry"), "{place}");
            continue;
        };
        let (_, said) = checked(&*image, LOOK);
        let name = format!("ERROR bitmap table of 'A': value {offset:#x}: clusters that nothing else has");
        assert!(said.iter().any(|text| text.starts_with(&name)), "{place}: {said:#?}");
        assert!(report.corruptions > 0, "{place}");
        let before = read(&open_over(&image, None, READ_ONLY, &[]).unwrap(), 0, SIZE);
        checked(&*image, REPAIR);
        // A directory that has another owner leaves nothing but giving it up.
        let is_lost = place == "directory";
        let handle = open(&image, if is_lost { DROP } else { &[] });
        assert!(read(&handle, 0, SIZE) == before, "{place}");
        if !is_lost {
            bitmaps::remove(&handle, b"A").unwrap();
        }
        write(&handle, SIZE / 2, &[5; SIZE as usize / 2]);
        handle.close().unwrap();
        let after = read(&open_over(&image, None, READ_ONLY, &[]).unwrap(), 0, SIZE / 2);
        assert!(after == before[..SIZE as usize / 2], "{place}");
        let (report, said) = checked(&*image, LOOK);
        assert_eq!((report.corruptions, report.check_errors), (0, 0), "{place}: {said:?}");
    }
}
