//! Each call of work on a whole image fails: a conversion, another backing file, a commit.

use qcow2::testing::ops::convert::{convert, ConvertOptions};
use testkit::ops::{random_list, random_setup, Op, Op::*};
use testkit::oracle;
use testkit::pair::{fail_commit, Pair};
use testkit::rebase::{fail_rebase, Change, Other};
use testkit::recorder::{Fault, Recorder};
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
