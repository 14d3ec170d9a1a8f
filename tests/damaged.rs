//! Images whose counts are wrong: a cluster of metadata that is counted as free is not handed out and not written
//! over, by any request, and what the guest had stays readable.

use qcow2::testing::error::ErrorKind;
use qcow2::testing::ops::snapshot;
use qcow2::testing::ops::snapshot::NewSnapshot;
use testkit::ops::{random_op, Op};
use testkit::oracle::{be64, Head, Owners, Use, OFFSET};
use testkit::recorder::Recorder;
use testkit::rng::{base_seed, cases, replay_line, Rng};
use testkit::runner::apply_recorded;
use testkit::setup::{self, Setup, PREFILL_TAG};

const PREFILL: u64 = 120;

/// An image with two L2 tables in use and one snapshot, clean.
fn image(setup: &Setup) -> Vec<u8> {
    let recorder = setup.recorder();
    let handle = setup.open(recorder.clone()).expect("open");
    let name = NewSnapshot {
        id: None,
        name: b"kept".to_vec(),
        date_seconds: 0,
        date_nanoseconds: 0,
        guest_clock_nanoseconds: 0,
        icount: u64::MAX,
        vm_state_bytes: 0,
    };
    snapshot::create(&handle, &name).expect("snapshot");
    // The disk's first table is its own again, the second one is shared.
    setup::write(&handle, 0, 1, PREFILL_TAG, false).expect("write");
    handle.close().expect("close");
    recorder.contents()
}

/// Sets the 16-bit count of a cluster to zero.
fn forget(bytes: &mut [u8], cluster: u64) {
    let head = Head::parse(bytes).expect("a header");
    assert_eq!(head.refcount_order, 4);
    let index = (cluster / head.block_entries()) as usize;
    let block = be64(bytes, head.table_offset as usize + index * 8) & OFFSET;
    let at = (block + cluster % head.block_entries() * 2) as usize;
    assert_ne!(bytes[at..at + 2], [0, 0], "cluster {cluster} was free before");
    bytes[at..at + 2].fill(0);
}

/// Random requests, until one is refused; true if one was.
fn use_image(setup: &Setup, bytes: Vec<u8>, rng: &mut Rng) -> Result<bool, String> {
    let recorder = Recorder::new(bytes);
    let handle = setup.open(recorder.clone()).map_err(|e| format!("open: {e}"))?;
    // The tables of snapshots are checked on request only, as with the stock driver.
    handle.reopen(false, false, &["overlap-check=all".as_ref()], None).map_err(|e| format!("reopen: {e}"))?;
    let mut refused = false;
    for tag in 1..40 {
        let op = random_op(rng, setup.sectors, 1);
        if !matches!(op, Op::Write { .. } | Op::Zero { .. } | Op::Discard { .. } | Op::Flush) {
            continue;
        }
        match apply_recorded(&recorder, &handle, &op, tag) {
            Ok(()) if refused && !matches!(op, Op::Discard { .. }) => {
                return Err(format!("{op:?} succeeds on an image that is marked corrupt"));
            }
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::MarkedCorrupt | ErrorKind::Latched) => refused = true,
            Err(e) => return Err(format!("{op:?}: {e}")),
        }
    }
    drop(handle);
    recorder.judge()?;
    let bytes = recorder.contents();
    if refused && be64(&bytes, 72) & 2 == 0 {
        return Err("a write was refused and the corrupt bit is clear".into());
    }
    Ok(refused)
}

#[test]
fn metadata_that_is_counted_as_free_is_not_written_over() {
    let seed = base_seed();
    let mut rng = Rng::new(seed);
    let replay = replay_line("damaged", "metadata_that_is_counted_as_free_is_not_written_over", seed);
    let (mut looked_at, mut refused) = (0, 0);
    for _ in 0..cases(20) {
        for lazy in [false, true] {
            let setup = Setup { lazy, sectors: 200, prefill: PREFILL, ..Setup::default() };
            let whole = image(&setup);
            let metadata =
                |uses: &[Use]| !uses.iter().any(|u| matches!(u, Use::Data { .. } | Use::SnapshotData { .. }));
            let owners = Owners::of(&whole);
            let mut clusters: Vec<_> = owners.0.iter().filter(|(_, uses)| metadata(uses)).collect();
            clusters.sort_by_key(|(cluster, _)| **cluster);
            assert!(clusters.iter().any(|(_, uses)| uses.contains(&Use::Snapshots)));
            assert!(clusters
                .iter()
                .any(|(_, uses)| uses.contains(&Use::SnapshotL2 { number: 0, l1_index: 0 })));
            for (cluster, uses) in clusters {
                let mut bytes = whole.clone();
                forget(&mut bytes, *cluster);
                let told = |e| {
                    panic!("host cluster {cluster}, {uses:?}, is counted as free: {e}\n{setup:?}\n{replay}")
                };
                refused += u64::from(use_image(&setup, bytes, &mut rng).unwrap_or_else(told));
                looked_at += 1;
            }
        }
    }
    testkit::tell!("{looked_at} damaged images, on {refused} of them a write was refused");
    assert!(refused * 10 > looked_at * 9, "{refused} of {looked_at}: the free clusters were not reached");
}
