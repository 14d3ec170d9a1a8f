//! Power cuts after every event of many operation lists, with every choice of surviving writes.

use testkit::bitmaps::BitmapOp;
use testkit::encrypted::Encrypted;
use testkit::ops::{encrypted_setup, random_list, random_setup, with_data_file, Op, Op::*};
use testkit::pair::{sweep_commit, Pair};
use testkit::rebase::{sweep_rebase, Change, Other};
use testkit::recorder::What;
use testkit::rng::{base_seed, cases, replay_line, share, Rng};
use testkit::setup::{Mode, Setup};
use testkit::split::sweep_split;
use testkit::sweep::{run_cases, sweep, Work};
use testkit::SECTOR;

fn run(test: &str, seed: u64, cases: &[(Setup, Vec<Op>, u64)]) {
    report(test, &replay_line("power_cut", test, seed), cases, &sweep);
}

fn report(test: &str, replay: &str, cases: &[(Setup, Vec<Op>, u64)], work: &Work) {
    let started = std::time::Instant::now();
    let count = run_cases(replay, cases, work);
    testkit::tell!(
        "{test}: {} lists, {} cuts ({} with every subset), {} states enumerated, {} different ones opened, {} of them repaired, {:.1} s",
        cases.len(),
        count.cuts,
        count.exhausted,
        count.enumerated,
        count.opened,
        count.repaired,
        started.elapsed().as_secs_f32()
    );
    assert!(count.enumerated > 0 && count.opened > 0);
}

/// Writes with something beside them in their clusters, which the others drop.
const PARTS: [Op; 6] = [
    Write { sector: 3, count: 1, fua: false },
    Write { sector: 3, count: 7, fua: false },
    Zero { sector: 2, count: 4, unmap: true, fua: false },
    Discard { sector: 0, count: 8 },
    Flush,
    Kill,
];

#[test]
fn random_lists_on_random_images() {
    let seed = base_seed();
    let mut rng = Rng::new(seed);
    let cases: Vec<_> = (0..cases(1000))
        .map(|_| {
            let setup = random_setup(&mut rng);
            let length = 2 + rng.below(9) as usize;
            (setup, random_list(&mut rng, &setup, length), rng.next())
        })
        .collect();
    run("random_lists_on_random_images", seed, &cases);
}

/// Every list of three operations on one cluster and its neighbour.
#[test]
fn all_short_lists() {
    let alphabet = [
        Write { sector: 3, count: 1, fua: false },
        Write { sector: 3, count: 2, fua: false },
        Write { sector: 4, count: 1, fua: true },
        Zero { sector: 3, count: 1, unmap: false, fua: false },
        Zero { sector: 3, count: 2, unmap: true, fua: false },
        Discard { sector: 3, count: 2 },
        Flush,
        Kill,
    ];
    let mut cases = Vec::new();
    for (lazy, backing, mode) in [
        (false, None, Mode::Writeback),
        (true, None, Mode::Writeback),
        (false, Some(10), Mode::Writeback),
        (true, Some(10), Mode::MetadataWritethrough),
    ] {
        let base = Setup { lazy, backing, mode, sectors: 70, ..Setup::default() };
        for number in 0..alphabet.len().pow(3) {
            let ops = (0..3).map(|digit| alphabet[number / alphabet.len().pow(digit) % alphabet.len()]);
            cases.push((Setup { ahead: number % 2 == 0, ..base }, ops.collect(), number as u64));
        }
    }
    run("all_short_lists", 0, &cases);
}

/// All lists of three operations on two clusters with subclusters of one sector.
#[test]
fn short_lists_on_subclusters() {
    let alphabet = [
        Write { sector: 3, count: 2, fua: false },
        Write { sector: 30, count: 4, fua: false },
        Zero { sector: 4, count: 3, unmap: true, fua: false },
        Discard { sector: 0, count: 34 },
        Flush,
        Kill,
    ];
    let mut cases = Vec::new();
    for (lazy, backing) in [(false, None), (true, Some(40)), (false, Some(40))] {
        let base = Setup { extended: true, cluster_bits: 14, lazy, backing, sectors: 64, ..Setup::default() };
        for number in 0..alphabet.len().pow(3) {
            let ops = (0..3).map(|digit| alphabet[number / alphabet.len().pow(digit) % alphabet.len()]);
            let ahead = number % 2 == 0;
            cases.push((Setup { ahead, ..base }, ops.collect(), number as u64));
        }
    }
    run("short_lists_on_subclusters", 0, &share(cases));
}

/// Every list of up to six operations from small alphabets in which each operation meets the others.
#[test]
fn all_lists_of_up_to_six() {
    let write = Write { sector: 3, count: 2, fua: false };
    let alphabets: [[Op; 3]; 4] = [
        [write, Discard { sector: 3, count: 2 }, Flush],
        [
            Write { sector: 4, count: 1, fua: true },
            Zero { sector: 3, count: 2, unmap: true, fua: false },
            Kill,
        ],
        [write, Resize { sectors: 4 }, Resize { sectors: 140 }],
        [Write { sector: 62, count: 4, fua: false }, Discard { sector: 62, count: 4 }, Reopen],
    ];
    let mut cases = Vec::new();
    for (number, alphabet) in alphabets.iter().enumerate() {
        for lazy in [false, true] {
            let (backing, mode) = [
                (None, Mode::Writeback),
                (Some(90), Mode::Writethrough),
                (None, Mode::MetadataWritethrough),
                (Some(10), Mode::Writeback),
            ][number];
            // Each width of a refcount comes up in turn.
            let order = |list: usize| ((list + number) % 7) as u32;
            let base = Setup { lazy, backing, mode, sectors: 70, ..Setup::default() };
            for length in 1..=6 {
                // Of the longest lists every other one is eager, the rest lazy.
                let wanted = |list: &usize| length < 6 || (list % 2 == 1) == lazy;
                for list in (0..3usize.pow(length)).filter(wanted) {
                    let op = |digit: u32| alphabet[list / 3usize.pow(digit) % 3];
                    let setup = Setup { refcount_order: order(list), ahead: list / 2 % 2 == 0, ..base };
                    cases.push((setup, (0..length).map(op).collect(), list as u64));
                }
            }
        }
    }
    run("all_lists_of_up_to_six", 0, &share(cases));
}

/// All short lists in which snapshots and compressed clusters meet other operations.
#[test]
fn short_lists_with_snapshots_and_compressed_clusters() {
    let (write, discard) = (Write { sector: 3, count: 2, fua: false }, Discard { sector: 3, count: 2 });
    let (apply, delete) = (Apply { pick: 0 }, Delete { pick: 0 });
    // Two streams that are written together.
    let compressed = Compressed { sector: 3, count: 2 };
    let alphabets: [[Op; 3]; 4] = [
        [write, Snapshot, apply],
        [write, Snapshot, delete],
        [compressed, write, discard],
        [compressed, Snapshot, Kill],
    ];
    let mut lists = Vec::new();
    for alphabet in alphabets {
        for (lazy, backing) in [(false, None), (true, Some(90))] {
            for length in 2..=4 {
                for list in 0..3usize.pow(length) {
                    let op = |digit: u32| alphabet[list / 3usize.pow(digit) % 3];
                    let refcount_order = 2 + list as u32 % 5; // narrower ones cannot count the snapshots
                    let ahead = list % 2 == 0;
                    let setup =
                        Setup { lazy, backing, refcount_order, ahead, sectors: 70, ..Setup::default() };
                    lists.push((setup, (0..length).map(op).collect(), list as u64));
                }
            }
        }
    }
    run("short_lists_with_snapshots_and_compressed_clusters", 0, &share(lists));
}

/// All short lists in which bitmaps meet writes, discards, other sizes, reopens and kills (R7).
#[test]
fn short_lists_with_bitmaps() {
    let (write, discard) = (Write { sector: 3, count: 2, fua: false }, Discard { sector: 3, count: 2 });
    let bitmaps = |op| Bitmaps { op };
    let (rotate, fold, sync) = (bitmaps(BitmapOp::Rotate), bitmaps(BitmapOp::Fold), bitmaps(BitmapOp::Sync));
    let alphabets: [[Op; 4]; 5] = [
        [write, Write { sector: 9, count: 1, fua: true }, sync, Reopen],
        [write, rotate, fold, Flush],
        [write, discard, bitmaps(BitmapOp::Toggle), sync],
        [write, Resize { sectors: 9 }, Resize { sectors: 5000 }, Reopen],
        [discard, bitmaps(BitmapOp::Recover), Kill, HandOver],
    ];
    let mut lists = Vec::new();
    for (number, alphabet) in alphabets.into_iter().enumerate() {
        for (lazy, backing) in [(false, None), (true, Some(90))] {
            for length in 1..=4u32 {
                // Of the longest lists every third one.
                let wanted = |list: &usize| length < 4 || list % 3 == number % 3;
                for list in (0..4usize.pow(length)).filter(wanted) {
                    let op = |digit: u32| alphabet[list / 4usize.pow(digit) % 4];
                    let setup = Setup {
                        lazy,
                        backing,
                        sectors: 70,
                        prefill: 8,
                        bitmaps: true,
                        ahead: list % 2 == 0,
                        ..Setup::default()
                    };
                    lists.push((setup, (0..length).map(op).collect(), list as u64));
                }
            }
        }
    }
    run("short_lists_with_bitmaps", 0, &share(lists));
}

/// All short lists in which settings change and change back over data, zero clusters and snapshots.
#[test]
fn short_lists_of_amended_settings() {
    let (write, zero) =
        (Write { sector: 3, count: 2, fua: false }, Zero { sector: 3, count: 2, unmap: false, fua: false });
    let (down, up) = (Amend { option: "compat=0.10" }, Amend { option: "compat=1.1" });
    let (wide, narrow) = (Amend { option: "refcount_bits=64" }, Amend { option: "refcount_bits=2" });
    let (lazy_on, lazy_off) = (Amend { option: "lazy_refcounts=on" }, Amend { option: "lazy_refcounts=off" });
    let alphabets: [[Op; 4]; 4] = [
        [write, zero, down, up],
        [zero, Snapshot, down, up],
        [write, Snapshot, wide, narrow],
        [write, lazy_on, lazy_off, down],
    ];
    let mut lists = Vec::new();
    for (number, alphabet) in alphabets.into_iter().enumerate() {
        for (lazy, backing) in [(false, None), (true, Some(90)), (false, Some(90))] {
            for length in 2..=4 {
                for list in 0..4usize.pow(length) {
                    let op = |digit: u32| alphabet[list / 4usize.pow(digit) % 4];
                    let refcount_order = if number == 2 { list as u32 % 7 } else { 4 };
                    let setup = Setup {
                        lazy,
                        backing,
                        refcount_order,
                        sectors: 70,
                        prefill: 5,
                        snapshots: true,
                        ..Setup::default()
                    };
                    lists.push((setup, (0..length).map(op).collect(), list as u64));
                }
            }
        }
    }
    run("short_lists_of_amended_settings", 0, &share(lists));
}

/// A snapshot shares its L2 tables. What was dropped from the disk's copy of one was freed once the copy was
/// durable; the durable L1 table still named the shared one.
#[test]
fn nothing_is_freed_before_a_copied_table_is_linked() {
    let mut lists = Vec::new();
    for mode in [Mode::Writeback, Mode::MetadataWritethrough] {
        for lazy in [false, true] {
            let setup = Setup { mode, lazy, prefill: 69, backing: Some(161), ..Setup::default() };
            for drops in [Discard { sector: 2, count: 1 }, Write { sector: 2, count: 1, fua: false }] {
                let more = Write { sector: 0, count: 1, fua: true };
                lists.push((setup, vec![Snapshot, drops, more, more], 1));
            }
        }
    }
    run("nothing_is_freed_before_a_copied_table_is_linked", 0, &lists);
}

/// A commit into a raw and a qcow2 base: overlay and base lose what they have not synced, each on its own.
#[test]
fn commits() {
    let seed = base_seed();
    let mut rng = Rng::new(seed);
    let cases: Vec<_> = (0..cases(400))
        .map(|_| {
            let mut top = random_setup(&mut rng);
            top.sectors = 16 + rng.below(120);
            top.backing = Some(1 + rng.below(top.sectors * 5 / 4));
            top.prefill = 0;
            let length = 1 + rng.below(6) as usize;
            let list = random_list(&mut rng, &top, length);
            (
                top,
                list.into_iter()
                    .filter(|op| op.range().is_some() && !matches!(op, Compressed { .. }))
                    .collect(),
                rng.next(),
            )
        })
        .collect();
    let work = |top: &Setup, ops: &[Op], rng: &mut Rng| {
        let base =
            (!rng.one_in(4)).then(|| Setup { backing: None, prefill: 0, depth: 1, ..random_setup(rng) });
        let pair = Pair { top: *top, base };
        sweep_commit(&pair, ops, rng.one_in(4), rng).map_err(|e| format!("{pair:?}: {e}"))
    };
    report("commits", &replay_line("power_cut", "commits", seed), &cases, &work);
}

/// Guest data in an external data file, raw or not: each of the two files loses what it has not synced.
#[test]
fn external_data_files() {
    let seed = base_seed();
    let mut rng = Rng::new(seed);
    let (alphabet, mut lists) = (PARTS, Vec::new());
    for (raw, lazy, backing) in [(true, false, None), (false, true, None), (false, false, Some(40))] {
        // Clusters of two sectors, so that a write has something beside it.
        let data_file = Some(raw);
        let base = Setup { cluster_bits: 10, lazy, backing, sectors: 70, data_file, ..Setup::default() };
        for number in 0..alphabet.len().pow(3) {
            let ops = (0..3).map(|digit| alphabet[number / alphabet.len().pow(digit) % alphabet.len()]);
            lists.push((base, ops.collect(), number as u64));
        }
    }
    let mut lists = share(lists);
    lists.extend((0..cases(200)).map(|_| {
        let setup = Setup { version: 3, snapshots: false, ..random_setup(&mut rng) };
        let setup = with_data_file(setup, rng.one_in(2));
        let length = 1 + rng.below(6) as usize;
        let list = random_list(&mut rng, &setup, length);
        (setup, list.into_iter().filter(|op| !matches!(op, Compressed { .. })).collect(), rng.next())
    }));
    report(
        "external_data_files",
        &replay_line("power_cut", "external_data_files", seed),
        &lists,
        &sweep_split,
    );
}

/// Another backing file, by name and with a safe rebase: the old name over the old contents, or the new one over
/// what is documented.
#[test]
fn backing_files_change() {
    let seed = base_seed();
    let mut rng = Rng::new(seed);
    let cases: Vec<_> = (0..cases(150))
        .map(|_| {
            let mut top = random_setup(&mut rng);
            top.sectors = 16 + rng.below(100);
            top.backing = Some(1 + rng.below(top.sectors * 5 / 4));
            top.prefill = 0;
            let length = rng.below(6) as usize;
            let list = random_list(&mut rng, &top, length);
            let plain = |op: &Op| op.range().is_some() && !matches!(op, Compressed { .. });
            let list = list.into_iter().filter(plain);
            (top, list.collect::<Vec<_>>(), rng.next())
        })
        .collect();
    let work = |top: &Setup, ops: &[Op], rng: &mut Rng| {
        // Longer ones leave sector 0, where the cluster has room for them.
        let long = if top.cluster_bits >= 12 { 700 } else { 2 };
        let name_bytes = [0, 1, 30, 150, long][rng.below(5) as usize];
        let other = Other { name_bytes, sectors: 1 + rng.below(150), differs: 1 + rng.below(12) };
        let change = match rng.below(4) {
            0 => Change::Name,
            n => Change::File { compressed: n == 1 },
        };
        sweep_rebase(top, ops, &other, change, rng).map_err(|e| format!("{other:?} {change:?}: {e}"))
    };
    report("backing_files_change", &replay_line("power_cut", "backing_files_change", seed), &cases, &work);
}

/// The refcount table of 64 entries for 64 clusters each is full at 4096 clusters: the list crosses that.
#[test]
fn the_refcount_table_grows() {
    let mut cases = Vec::new();
    // In the middle of a long write, and by its first cluster.
    for (lazy, prefill) in [(false, 3890), (true, 3890), (false, 3955), (true, 3955)] {
        let setup =
            Setup { lazy, refcount_order: 6, sectors: 4200, prefill, tiny_cache: true, ..Setup::default() };
        let ops = vec![
            Write { sector: prefill, count: 100, fua: false },
            Discard { sector: 10, count: 3 },
            Write { sector: 4100, count: 2, fua: false },
            Flush,
        ];
        let mut runner = testkit::runner::Runner::new(&setup).unwrap();
        let table = |r: &testkit::runner::Runner| testkit::oracle::Head::parse(&r.recorder.contents());
        let before = table(&runner).unwrap().table_clusters;
        ops.iter().for_each(|op| assert!(runner.run(*op).unwrap().is_none()));
        assert!(table(&runner).unwrap().table_clusters > before, "the table has not grown");
        cases.push((setup, ops, 1));
    }
    run("the_refcount_table_grows", 0, &cases);
}

/// An L1 table of more clusters than a refcount block counts: the block of the next range lies in front of the table.
#[test]
fn a_table_is_longer_than_a_block_counts() {
    let mut cases = Vec::new();
    for lazy in [false, true] {
        let setup = Setup { lazy, refcount_order: 6, prefill: 30, ..Setup::default() };
        let write = |sector| Write { sector, count: 3, fua: false };
        let ops = vec![write(40), Resize { sectors: 270_000 }, write(7), Flush];
        let mut runner = testkit::runner::Runner::new(&setup).unwrap();
        ops.iter().for_each(|op| assert!(runner.run(*op).unwrap().is_none()));
        let bytes = runner.recorder.contents();
        let head = testkit::oracle::Head::parse(&bytes).unwrap();
        let block = |i: u64| testkit::oracle::be64(&bytes, (head.table_offset + i * 8) as usize) / SECTOR;
        assert!((0..64).any(|i| block(i) > 0 && block(i) < i * 64), "each block is in its own range");
        cases.push((setup, ops, 1));
    }
    run("a_table_is_longer_than_a_block_counts", 0, &cases);
}

/// A file that is almost used up grows before the sync of a flush, and clusters handed out later wait for no other.
#[test]
fn the_file_grows_before_a_barrier() {
    // Clusters of 1 MiB: each new one takes as much as the file grows by.
    let write = |cluster: u64| Write { sector: (cluster << 11) + 3, count: 2, fua: false };
    let ops = [write(0), Flush, write(1), Flush, write(2), Kill, write(1)];
    let mut cases = Vec::new();
    for (lazy, backing) in [(false, None), (true, None), (true, Some(5000))] {
        let setup = Setup { lazy, backing, cluster_bits: 20, sectors: 3 << 11, ..Setup::default() };
        let mut runner = testkit::runner::Runner::new(&setup).unwrap();
        let (mut grown, mut syncs) = (0, Vec::new());
        for op in ops {
            let before = runner.recorder.log_length();
            assert!(runner.run(op).unwrap().is_none());
            let log = runner.recorder.log().split_off(before);
            if op == Flush {
                let sync = log.iter().position(|e| matches!(e.what, What::Sync { .. })).expect("a sync");
                grown += log[..sync].iter().filter(|e| e.what == What::SetLength).count();
                syncs.push(log.iter().filter(|e| matches!(e.what, What::Sync { .. })).count());
            }
        }
        assert!(grown > 0, "no flush has made the file longer: {setup:?}");
        assert!(!lazy || backing.is_some() || syncs[1] == 1, "what waits for the length? {syncs:?}");
        cases.push((setup, ops.to_vec(), 1));
    }
    run("the_file_grows_before_a_barrier", 0, &cases);
}

/// A kill leaves a table with a count too many; below it, entries that are alone in their clusters have their flags. A
/// snapshot that left those alone had the next write change what it had kept.
#[test]
fn a_snapshot_over_a_leaked_count() {
    let write = Write { sector: 45, count: 1, fua: false };
    let ops = vec![Snapshot, write, Kill, Apply { pick: 0 }, Delete { pick: 0 }, Snapshot, write, Flush];
    let mut lists = Vec::new();
    for refcount_order in [1, 4] {
        for mode in [Mode::Writeback, Mode::MetadataWritethrough] {
            let setup =
                Setup { refcount_order, mode, sectors: 90, prefill: 12, snapshots: true, ..Setup::default() };
            lists.push((setup, ops.clone(), 1));
        }
    }
    run("a_snapshot_over_a_leaked_count", 0, &lists);
}

/// What the guest sees of an encrypted image is old, new or zeroes, never a sector that nobody has encrypted.
#[test]
fn random_lists_on_encrypted_images() {
    let seed = base_seed();
    let mut rng = Rng::new(seed ^ 0x6c75);
    let cases: Vec<_> = (0..cases(80))
        .map(|_| {
            let setup = encrypted_setup(&mut rng);
            (setup, random_list(&mut rng, &setup, 6), rng.next())
        })
        .collect();
    run("random_lists_on_encrypted_images", seed, &cases);
}

/// The same of lists of three operations on clusters of several sectors.
#[test]
fn short_lists_on_encrypted_images() {
    let (alphabet, mut lists) = (PARTS, Vec::new());
    for (encrypted, lazy, backing, cluster_bits) in [
        (Encrypted::Aes, false, None, 11),
        (Encrypted::Luks(0), true, None, 11),
        (Encrypted::Aes, true, Some(40), 11),
        (Encrypted::Luks(3), false, Some(5), 11),
        (Encrypted::Aes, false, Some(40), 14),
    ] {
        let base = Setup {
            encrypted: Some(encrypted),
            encrypted_backing: lazy,
            cluster_bits,
            extended: cluster_bits == 14,
            lazy,
            backing,
            sectors: 70,
            ..Setup::default()
        };
        // Each open of a LUKS image derives its key.
        for number in (0..alphabet.len().pow(3)).step_by(if encrypted == Encrypted::Aes { 1 } else { 4 }) {
            let ops = (0..3).map(|digit| alphabet[number / alphabet.len().pow(digit) % alphabet.len()]);
            lists.push((Setup { ahead: number % 3 == 0, ..base }, ops.collect(), number as u64));
        }
    }
    run("short_lists_on_encrypted_images", 0, &share(lists));
}
