//! Each call of work on a whole image fails: a conversion, another backing file, a commit.

use qcow2::testing::error::{Error, ErrorKind};
use qcow2::testing::ops::convert::{convert, convert_telling, ConvertOptions};
use qcow2::testing::ops::handle::Handle;
use std::collections::BTreeSet;
use testkit::ops::{random_list, random_setup, Op, Op::*};
use testkit::oracle;
use testkit::pair::{fail_commit, Pair};
use testkit::rebase::{fail_rebase, Change, Other};
use testkit::recorder::{Fault, Kind, Recorder};
use testkit::rng::{base_seed, cases, replay_line, share, Rng};
use testkit::setup::{self, Setup};
use testkit::sweep::check_clean;

/// A conversion whose target fails at each of its calls: the failure is told, what was copied before stays, the rest
/// of the target is as it was, and the image is sound. Bytes through memory, copied by the host, and compressed.
#[test]
fn each_call_of_a_conversion_fails() {
    let from = Setup { sectors: 420, prefill: 300, cluster_bits: 10, ..Setup::default() };
    let source = from.open(Recorder::new(from.create())).unwrap();
    let tags = setup::read_all(&source).unwrap();
    let usual = ConvertOptions { target_zero: true, workers: 1, ..ConvertOptions::default() };
    let ways = [
        ConvertOptions { sparse_bytes: 512, ..usual },
        ConvertOptions { sparse_bytes: 0, ..usual },
        ConvertOptions { sparse_bytes: 512, workers: 3, ..usual },
        ConvertOptions { compressed: true, workers: 2, ..usual },
        ConvertOptions { compressed: true, any_order: true, workers: 3, ..usual },
    ];
    let (mut faults, errno) = (0, libc::ENOSPC);
    for (options, lazy) in share(ways.into_iter().flat_map(|w| [(w, false), (w, true)]).collect()) {
        let to = Setup { sectors: 420, lazy, cluster_bits: 10, ..Setup::default() };
        for call in 0.. {
            let recorder = to.recorder();
            recorder.helpers_work_on((0, to.sectors * testkit::SECTOR));
            let handle = to.open(recorder.clone()).unwrap();
            recorder.inject(Some(Fault { kind: None, call, errno, forever: false, torn: call % 2 == 0 }));
            let answer = convert(source.disk(), handle.disk(), &options, &mut |_, _| true);
            let answer = answer.and_then(|()| handle.disk().flush());
            let whole = recorder.failed() == 0;
            recorder.inject(None);
            if answer.is_ok() {
                assert_eq!(setup::read_all(&handle).unwrap(), tags, "{options:?} call {call}");
                assert_eq!(options.compressed, has_streams(&recorder));
            }
            drop(handle);
            let left = to.open(recorder.clone()).unwrap();
            let seen = setup::read_all(&left).unwrap();
            let fits = |(is, shall): (&u32, &u32)| is == shall || *is == 0;
            assert!(seen.iter().zip(&tags).all(fits), "{options:?} call {call}: {seen:x?}");
            left.close().unwrap();
            check_clean(&*recorder).unwrap_or_else(|e| panic!("{options:?} call {call}: {e}"));
            if whole {
                answer.unwrap();
                break;
            }
            faults += 1;
        }
    }
    testkit::tell!("{faults} faults injected into conversions");
    assert!(faults > 20);
}

/// A conversion into a part of the target, whose calls fail: what lies outside of the part is never touched.
#[test]
fn each_call_of_a_conversion_into_a_part_fails() {
    let from = Setup { sectors: 130, prefill: 90, cluster_bits: 10, ..Setup::default() };
    let source = from.open(Recorder::new(from.create())).unwrap();
    let tags = setup::read_all(&source).unwrap();
    let ways = [(false, 1, 7), (false, 3, 64), (true, 1, 7), (true, 2, 65)];
    let mut faults = 0;
    for (compressed, workers, first) in ways {
        let target_offset = first * testkit::SECTOR;
        let usual = ConvertOptions { sparse_bytes: 512, workers, compressed, ..ConvertOptions::default() };
        let options = ConvertOptions { target_offset, ..usual };
        // A compressed write overwrites nothing.
        let prefill = if compressed { 0 } else { 220 };
        let to = Setup { sectors: 220, prefill, cluster_bits: 10, ..Setup::default() };
        let before = to.initial();
        let part = first as usize..first as usize + tags.len();
        for call in 0.. {
            let recorder = to.recorder();
            recorder.helpers_work_on((target_offset, target_offset + tags.len() as u64 * testkit::SECTOR));
            let handle = to.open(recorder.clone()).unwrap();
            recorder.inject(Some(Fault {
                kind: None,
                call,
                errno: libc::EIO,
                forever: false,
                torn: call % 2 == 0,
            }));
            let answer = convert(source.disk(), handle.disk(), &options, &mut |_, _| true);
            let answer = answer.and_then(|()| handle.disk().flush());
            let whole = recorder.failed() == 0;
            recorder.inject(None);
            drop(handle);
            let left = to.open(recorder.clone()).unwrap();
            let seen = setup::read_all(&left).unwrap();
            for sector in (0..seen.len()).filter(|s| !part.contains(s)) {
                assert_eq!(seen[sector], before[sector], "{options:?} call {call} sector {sector}");
            }
            has_moved(&left, first, &tags, answer.is_err().then_some(before[part.start]))
                .unwrap_or_else(|e| panic!("{options:?} call {call}: {e}"));
            left.close().unwrap();
            check_clean(&*recorder).unwrap_or_else(|e| panic!("{options:?} call {call}: {e}"));
            if whole {
                answer.unwrap();
                break;
            }
            faults += 1;
        }
    }
    testkit::tell!("{faults} faults injected into conversions into a part");
    assert!(faults > 20);
}

/// From sector `first` on the disk shows what sectors with these tags held in another one; or, where not all has been
/// moved, what it held `before`.
fn has_moved(disk: &Handle, first: u64, tags: &[u32], before: Option<u32>) -> Result<(), String> {
    for (index, tag) in (0..).zip(tags) {
        let (mut is, mut new, mut old) = ([0; 512], [0; 512], [0; 512]);
        let at = (first + index) * testkit::SECTOR;
        disk.disk().read(at, &mut [std::io::IoSliceMut::new(&mut is)]).map_err(|e| e.to_string())?;
        // A sector says where it was written first.
        setup::fill(&mut new, index, *tag);
        setup::fill(&mut old, first + index, before.unwrap_or(0));
        if is != new && (before.is_none() || is != old) {
            return Err(format!("sector {index} of the source is not there"));
        }
    }
    Ok(())
}

/// What cannot be read is salvaged: each read of the source fails, once or from then on. Exactly the sectors that were told
/// are zeroes, all others are the source's.
#[test]
fn each_read_of_a_salvaged_source_fails() {
    let (mut faults, mut lost_sectors) = (0, 0);
    for (workers, forever) in [(1, false), (1, true), (3, false), (3, true)] {
        let from = Setup { sectors: 140, cluster_bits: 9, tiny_cache: true, ..Setup::default() };
        let (image, tags) = scattered(&from);
        let usual = ConvertOptions { target_zero: true, sparse_bytes: 512, ..ConvertOptions::default() };
        let options = ConvertOptions { workers, salvage: true, ..usual };
        for call in 0.. {
            let failing = Recorder::new(image.clone());
            let source = from.open(failing.clone()).unwrap();
            let to = Setup { sectors: 140, cluster_bits: 12, ..Setup::default() };
            let recorder = to.recorder();
            recorder.helpers_work_on((0, to.sectors * testkit::SECTOR));
            let handle = to.open(recorder.clone()).unwrap();
            let kind = Some(Kind::Read);
            failing.inject(Some(Fault { kind, call, errno: libc::EIO, forever, torn: false }));
            let mut lost = BTreeSet::new();
            let mut tell = |at: u64, error: &Error| {
                assert_eq!(error.kind(), ErrorKind::Host(libc::EIO));
                assert!(lost.insert(at / testkit::SECTOR), "sector at {at} is told twice");
            };
            convert_telling(source.disk(), handle.disk(), &options, &mut tell, &mut |_, _| true).unwrap();
            let whole = failing.failed() == 0;
            failing.inject(None);
            let seen = setup::read_all(&handle).unwrap();
            for (sector, shall) in (0..).zip(&tags) {
                let shall = if lost.contains(&sector) { 0 } else { *shall };
                assert_eq!(seen[sector as usize], shall, "{options:?} call {call} sector {sector}: {lost:?}");
            }
            handle.close().unwrap();
            check_clean(&*recorder).unwrap();
            if whole {
                assert!(lost.is_empty());
                break;
            }
            lost_sectors += lost.len();
            faults += 1;
        }
    }
    testkit::tell!("{faults} faults injected into salvaged sources");
    assert!(faults > 20 && lost_sectors > faults);
}

/// An image whose neighbours on the disk are nowhere near each other in the file, and what it shows.
fn scattered(setup: &Setup) -> (Vec<u8>, Vec<u32>) {
    let image = Recorder::new(setup.create());
    let handle = setup.open(image.clone()).unwrap();
    let mut tags = setup.initial();
    for index in 0..setup.sectors * 2 / 3 {
        let sector = index * 37 % setup.sectors;
        tags[sector as usize] = index as u32 + 1;
        setup::write(&handle, sector, 1, tags[sector as usize], false).unwrap();
    }
    handle.close().unwrap();
    (image.contents(), tags)
}

/// Another backing file, each call of the change failing once: the old name over the old contents, or the new one.
#[test]
fn each_call_of_a_change_of_the_backing_file_fails() {
    let seed = base_seed();
    let mut rng = Rng::new(seed);
    let mut faults = 0;
    for case in 0..cases(24) {
        let mut top = random_setup(&mut rng);
        top.sectors = 16 + rng.below(60);
        top.backing = Some(1 + rng.below(top.sectors * 5 / 4));
        top.prefill = 0;
        let ops = random_list(&mut rng, &top, 3);
        let ops: Vec<_> = ops.into_iter().filter(|o| matches!(o, Write { .. } | Zero { .. })).collect();
        let long = if top.cluster_bits >= 12 { 700 } else { 40 };
        let other = Other { name_bytes: *rng.pick(&[0, 20, long]), sectors: 1 + rng.below(90), differs: 3 };
        let change = if case % 3 == 0 { Change::Name } else { Change::File { compressed: case % 3 == 1 } };
        faults += fail_rebase(&top, &ops, &other, change, &mut rng).unwrap_or_else(|e| {
            let replay = replay_line("faults", "each_call_of_a_change_of_the_backing_file_fails", seed);
            panic!("case {case}: {e}\n{top:?}\n{ops:?}\n{other:?} {change:?}\n{replay}")
        });
    }
    testkit::tell!("{faults} faults injected into changes of the backing file");
    assert!(faults > cases(24) * 4);
}

/// A commit into a raw or a qcow2 base, each call on the overlay and on the base failing once.
#[test]
fn each_call_of_a_commit_fails() {
    let seed = base_seed();
    let mut rng = Rng::new(seed);
    let mut faults = 0;
    for case in 0..cases(16) {
        let mut top = random_setup(&mut rng);
        top.sectors = 16 + rng.below(60);
        top.backing = Some(1 + rng.below(top.sectors * 5 / 4));
        top.prefill = 0;
        let ops = random_list(&mut rng, &top, 4);
        let plain = |op: &Op| op.range().is_some() && !matches!(op, Compressed { .. });
        let ops: Vec<_> = ops.into_iter().filter(plain).collect();
        let base =
            (case % 3 > 0).then(|| Setup { backing: None, prefill: 0, depth: 1, ..random_setup(&mut rng) });
        let pair = Pair { top, base };
        faults += fail_commit(&pair, &ops, &mut rng).unwrap_or_else(|e| {
            let replay = replay_line("faults", "each_call_of_a_commit_fails", seed);
            panic!("case {case}: {e}\n{pair:?}\n{ops:?}\n{replay}")
        });
    }
    testkit::tell!("{faults} faults injected into commits");
    assert!(faults > cases(16) * 4);
}

fn has_streams(recorder: &Recorder) -> bool {
    oracle::Owners::of(&recorder.contents()).0.values().flatten().any(|u| u.is_stream())
}
