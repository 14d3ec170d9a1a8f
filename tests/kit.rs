//! The kit's own checks fail where they should: a recording that ends is judged, whatever the test looked at.

use qcow2::testing::storage::{Purpose, Storage};
use std::io::IoSlice;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use testkit::oracle::{Head, Owners, Use};
use testkit::recorder::{as_request, Recorder};
use testkit::setup::{self, Setup};
use testkit::SECTOR;

/// A clean image with two clusters of data, guest clusters 0 and 1.
fn recorder() -> Arc<Recorder> {
    Setup { prefill: 2, ..Setup::default() }.recorder()
}

/// What the end of a recording says after `act` on it.
fn verdict(act: impl FnOnce(&Recorder)) -> Result<(), String> {
    let recorder = recorder();
    act(&recorder);
    let end = catch_unwind(AssertUnwindSafe(|| drop(recorder)));
    end.map_err(|panic| panic.downcast_ref::<String>().cloned().expect("a text"))
}

fn host_of(recorder: &Recorder, wanted: Use) -> u64 {
    let owners = Owners::of(recorder.base());
    let mut hosts = owners.0.iter().filter(|(_, uses)| uses.contains(&wanted)).map(|(c, _)| *c);
    hosts.next().expect("the image has it") * SECTOR
}

fn write(recorder: &Recorder, purpose: Purpose, offset: u64, bytes: &[u8]) {
    recorder.write(purpose, offset, &[IoSlice::new(bytes)]).unwrap();
}

#[track_caller]
fn breaks(rule: &str, act: impl FnOnce(&Recorder)) {
    let e = verdict(act).expect_err("a broken rule goes unnoticed");
    assert!(e.contains(rule), "{e}");
}

#[test]
fn a_recording_without_a_fault_passes() {
    verdict(|_| {}).unwrap();
    let recorder = recorder();
    let handle = Setup::default().open(recorder.clone()).unwrap();
    setup::write(&handle, 0, 4, 1, false).unwrap();
    handle.close().unwrap();
    assert!(recorder.log_length() > 0);
    drop(recorder);
    let ordinary = |recorder: &Recorder| {
        let host = host_of(recorder, Use::Data { guest_cluster: 1 });
        as_request(Some((SECTOR, 2 * SECTOR)), || write(recorder, Purpose::Data, host, &[1; 512]));
    };
    verdict(ordinary).unwrap();
}

#[test]
fn guest_data_is_held_against_its_owner() {
    for table in [Use::Header, Use::L1, Use::L2 { l1_index: 0 }, Use::RefcountTable] {
        breaks("C13", |recorder| {
            let host = host_of(recorder, table);
            as_request(Some((0, SECTOR)), || write(recorder, Purpose::Data, host, &[1; 512]));
        });
    }
    breaks("C13: data of another guest range", |recorder| {
        let host = host_of(recorder, Use::Data { guest_cluster: 1 });
        as_request(Some((0, SECTOR)), || write(recorder, Purpose::Data, host, &[1; 512]));
    });
    breaks("outside a request", |recorder| {
        let host = host_of(recorder, Use::Data { guest_cluster: 1 });
        write(recorder, Purpose::Data, host, &[1; 512]);
    });
}

#[test]
fn metadata_is_held_against_its_owner() {
    for purpose in
        [Purpose::L1, Purpose::L2, Purpose::RefcountBlock, Purpose::RefcountTable, Purpose::Snapshots]
    {
        breaks("C13", |recorder| {
            let host = host_of(recorder, Use::Data { guest_cluster: 1 });
            write(recorder, purpose, host, &[0; 512]);
        });
    }
    breaks("C8", |recorder| {
        let mut sector = recorder.base()[..512].to_vec();
        sector[120] ^= 1;
        write(recorder, Purpose::Header, 0, &sector);
    });
}

#[test]
fn a_cluster_with_two_owners_is_found_at_the_end() {
    breaks("more than one owner", |recorder| {
        let table = host_of(recorder, Use::L2 { l1_index: 0 });
        let mut bytes = recorder.base()[table as usize..][..512].to_vec();
        bytes.copy_within(0..8, 8);
        write(recorder, Purpose::L2, table, &bytes);
    });
}

/// Host cluster and L2 entry of guest cluster 0, of which subcluster 0 is allocated; the rest shows a backing
/// disk. Without `linked`, the entry is gone and its cluster still counted.
fn subclusters(linked: bool) -> (Arc<Recorder>, u64, u64) {
    let setup =
        Setup { cluster_bits: 14, extended: true, prefill: 1, backing: Some(200), ..Setup::default() };
    let mut bytes = setup.create();
    let owners = Owners::of(&bytes);
    let host =
        |wanted: Use| owners.0.iter().find(|(_, uses)| uses.contains(&wanted)).expect("it has").0 << 14;
    let (data, entry) = (host(Use::Data { guest_cluster: 0 }), host(Use::L2 { l1_index: 0 }));
    if !linked {
        bytes[entry as usize..][..16].fill(0);
    }
    let recorder = Recorder::new(bytes);
    recorder.set_backing(200 * SECTOR);
    (recorder, data, entry)
}

/// What the rules say of a trace that is to end here.
fn judged(recorder: &Recorder) -> Result<(), String> {
    let verdict = recorder.judge();
    recorder.leave_unjudged("the judge has just been asked");
    verdict
}

/// What the rules say when the subclusters of `synced` are written and synced, then subcluster 5, and the entry shows
/// those of `shown`, a bit each.
fn subclusters_verdict(linked: bool, synced: &[u64], shown: u64) -> Result<(), String> {
    let (recorder, data, entry) = subclusters(linked);
    let fill = |sub: u64| {
        let guest = Some((sub * SECTOR, (sub + 1) * SECTOR));
        as_request(guest, || write(&recorder, Purpose::Data, data + sub * SECTOR, &[1; 512]));
    };
    synced.iter().for_each(|sub| fill(*sub));
    recorder.sync().unwrap();
    fill(5);
    let mut sector = recorder.base()[entry as usize..][..512].to_vec();
    sector[..8].copy_from_slice(&(data | 1 << 63).to_be_bytes());
    sector[8..16].copy_from_slice(&shown.to_be_bytes());
    write(&recorder, Purpose::L2, entry, &sector);
    judged(&recorder)
}

#[test]
fn an_entry_shows_only_durable_subclusters() {
    for linked in [true, false] {
        subclusters_verdict(linked, &[3], 1 | 1 << 3).unwrap();
        // What is under way is a newer version of what is durable.
        subclusters_verdict(linked, &[5], 1 | 1 << 5).unwrap();
        for shown in [1 | 1 << 5, 1 | 1 << 3 | 1 << 5] {
            let e = subclusters_verdict(linked, &[3], shown).expect_err("a broken rule goes unnoticed");
            assert!(e.contains("R2"), "{e}");
        }
    }
}

/// What the rules say of an image with a data file whose guest cluster 0 is zeroed, written and synced, then, after what
/// `between` does, written without a sync before its entry shows the data file.
fn data_file_verdict(between: impl FnOnce(&Recorder)) -> Result<(), String> {
    let recorder = Setup { prefill: 2, data_file: Some(false), ..Setup::default() }.recorder();
    let data = recorder.data_file().expect("it has one");
    let owners = Owners::of(recorder.base());
    let of_table = |uses: &Vec<Use>| uses.contains(&Use::L2 { l1_index: 0 });
    let table = owners.0.iter().find(|(_, uses)| of_table(uses)).expect("it has").0 * SECTOR;
    let shown = recorder.base()[table as usize..][..512].to_vec();
    let mut zeroed = shown.clone();
    zeroed[..8].copy_from_slice(&1u64.to_be_bytes());
    let cluster = Some((0, SECTOR));
    let fill = |value: u8| as_request(cluster, || write(&data, Purpose::Data, 0, &[value; 512]));
    recorder.request(cluster, cluster, || ());
    fill(1);
    // When the entry that says zero gets into the file says nothing about when it was zeroed.
    write(&recorder, Purpose::L2, table, &zeroed);
    data.sync().unwrap();
    recorder.sync().unwrap();
    between(&recorder);
    fill(2);
    write(&recorder, Purpose::L2, table, &shown);
    judged(&recorder)
}

#[test]
fn what_a_flush_has_seen_zeroed_does_not_show_again() {
    let zero = |recorder: &Recorder| recorder.request(Some((0, SECTOR)), Some((0, SECTOR)), || ());
    data_file_verdict(|_| {}).unwrap();
    data_file_verdict(zero).unwrap();
    let flushed = data_file_verdict(|recorder| {
        zero(recorder);
        recorder.kept(0, SECTOR);
    });
    let e = flushed.expect_err("a broken rule goes unnoticed");
    assert!(e.contains("R2"), "{e}");
}

#[test]
fn only_an_explicit_word_leaves_a_recording_unjudged() {
    let hit = |recorder: &Recorder| write(recorder, Purpose::L2, 0, &[0; 512]);
    assert!(verdict(hit).is_err());
    let excused = |recorder: &Recorder| {
        recorder.leave_unjudged("this test breaks the rules on purpose");
        hit(recorder);
    };
    verdict(excused).unwrap();
    assert!(Head::parse(recorder().base()).is_some());
}
