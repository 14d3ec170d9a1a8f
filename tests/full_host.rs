//! A host that is full for a while, and then is not; the handle stays (story C19). While it is full requests fail with
//! what the host said; once it has room they succeed, and nothing is lost that any request before had answered.

use qcow2::testing::error::ErrorKind;
use qcow2::testing::options::Preallocation;
use std::sync::Arc;
use testkit::ops::{random_list, random_setup, with_data_file, Op, Op::*};
use testkit::overlay::Overlay;
use testkit::recorder::{Full, Recorder};
use testkit::rng::{base_seed, cases, replay_line, share, Rng};
use testkit::runner::Runner;
use testkit::setup::{self, Mode, Setup};
use testkit::sweep::{check_clean, run_cases, Count};

/// Most places of one list at which the host is full.
const MAX_PLACES: u64 = 60;

/// How a host is full, and what it says.
const WAYS: [(Full, i32); 4] = [
    (Full::New, libc::ENOSPC),
    (Full::Everything, libc::ENOSPC),
    (Full::Everything, libc::EDQUOT),
    (Full::Everything, libc::EIO),
];

/// One run of a list: from call `at` on the host is full, until some operations have failed.
struct Run {
    runner: Runner,
    recorder: Arc<Recorder>,
    errno: i32,
    /// Operations that are to fail before there is room.
    patience: u32,
}

impl Run {
    fn new(setup: &Setup, at: u64, way: (Full, i32), patience: u32) -> Result<Run, String> {
        let recorder = setup.recorder();
        let runner = Runner::on(setup, recorder.clone())?;
        for file in [Some(recorder.clone()), recorder.data_file()].into_iter().flatten() {
            file.fill_up(at, way.0, way.1);
        }
        Ok(Run { runner, recorder, errno: way.1, patience })
    }

    fn was_full(&self) -> bool {
        self.recorder.was_full() || self.recorder.data_file().is_some_and(|d| d.was_full())
    }

    /// The calls of the whole list that take bytes.
    fn calls(setup: &Setup, ops: &[Op]) -> Result<u64, String> {
        let mut run = Run::new(setup, u64::MAX, WAYS[0], 0)?;
        for op in ops {
            run.runner.run(*op)?;
        }
        Ok(u64::MAX - run.recorder.make_room().1)
    }

    /// Runs the list; `false`: the host was never asked while it was full.
    fn go(&mut self, ops: &[Op]) -> Result<bool, String> {
        let mut failed = 0;
        let mut full = true;
        let mut met = false;
        for op in ops {
            // A new handle finds what the old one could not write; that is another test.
            if full && matches!(op, Kill | Reopen | HandOver) {
                continue;
            }
            let answer = self.runner.run(*op)?;
            met |= self.was_full();
            let Some(error) = answer else { continue };
            if !full {
                return Err(format!("{op:?} fails although there is room: {error}"));
            }
            if error.kind() != ErrorKind::Host(self.errno) {
                return Err(format!(
                    "{op:?} fails with {:?}, not with what the host said: {error}",
                    error.kind()
                ));
            }
            failed += 1;
            if failed > self.patience || matches!(op, Apply { .. } | Resize { .. } | Grow { .. }) {
                full = false;
                self.make_room(op)?;
            }
        }
        self.make_room(&Flush)?;
        Ok(met)
    }

    /// The host has room again: the next flush succeeds.
    fn make_room(&mut self, failed: &Op) -> Result<(), String> {
        self.recorder.make_room();
        if let Some(data) = self.recorder.data_file() {
            data.make_room();
        }
        match self.runner.run(Flush)? {
            Some(e) => Err(format!("a flush fails although there is room: {e}")),
            None => {
                let size = self.runner.handle.as_ref().map(|h| h.disk().length() / testkit::SECTOR);
                self.runner.expect.failed(failed, size);
                self.runner.check_live().map_err(|e| format!("after the first flush with room: {e}"))
            }
        }
    }

    /// The handle's end: everything is there, and the image is clean.
    fn judge(mut self, setup: &Setup) -> Result<(), String> {
        self.runner.check_live()?;
        let Some(handle) = self.runner.handle.take() else { return Ok(()) };
        handle.close().map_err(|e| format!("close: {e}"))?;
        self.recorder.judge()?;
        if self.recorder.data_file().is_some() {
            return Ok(());
        }
        let bytes = self.recorder.contents();
        let length = bytes.len() as u64;
        let medium = Overlay::new(bytes.into(), Default::default(), length);
        check_clean(&*medium)?;
        let again = setup.open(medium).map_err(|e| format!("open: {e}"))?;
        let tags = setup::read_all(&again).map_err(|e| format!("reading: {e}"))?;
        self.runner.expect.check_live(&tags).map_err(|e| format!("opened again: {e}"))
    }
}

fn sweep(setup: &Setup, ops: &[Op], rng: &mut Rng) -> Result<Count, String> {
    let calls = Run::calls(setup, ops)?;
    let step = calls.div_ceil(MAX_PLACES).max(1);
    let mut count = Count::default();
    for way in WAYS {
        for at in (rng.below(step)..calls).step_by(step as usize) {
            let patience = rng.below(4) as u32;
            let told = |e: String| format!("full at call {at}, {way:?}, {patience} failures: {e}");
            let mut run = Run::new(setup, at, way, patience).map_err(told)?;
            count.enumerated += u64::from(run.go(ops).map_err(told)?);
            run.judge(setup).map_err(told)?;
        }
    }
    Ok(count)
}

#[test]
fn full_then_room_on_the_same_handle_loses_nothing() {
    let seed = base_seed();
    let mut rng = Rng::new(seed);
    let cases: Vec<_> = (0..cases(60))
        .map(|number| {
            let mut setup = random_setup(&mut rng);
            if number % 8 == 0 && setup.version == 3 && !setup.snapshots {
                setup = with_data_file(setup, number % 16 == 0);
            }
            let length = 4 + rng.below(10) as usize;
            let mut list = random_list(&mut rng, &setup, length);
            list.retain(|o| setup.data_file.is_none() || !matches!(o, Compressed { .. }));
            list.push(Flush);
            (setup, list, rng.next())
        })
        .collect();
    let replay = replay_line("full_host", "full_then_room_on_the_same_handle_loses_nothing", seed);
    let count = run_cases(&replay, &cases, &sweep);
    testkit::tell!("full hosts: {} lists, {} faults injected", cases.len(), count.enumerated);
    assert!(count.enumerated > cases.len() as u64);
}

/// Each operation by itself, in each mode, among writes that are not flushed.
#[test]
fn each_operation_on_a_full_host() {
    let seed = base_seed();
    let mut rng = Rng::new(seed);
    let write = |sector| Write { sector, count: 20, fua: false };
    let single = [
        Zero { sector: 3, count: 90, unmap: true, fua: true },
        Discard { sector: 3, count: 90 },
        Compressed { sector: 110, count: 1 },
        Resize { sectors: 40 },
        Resize { sectors: 5000 },
        Grow { sectors: 900, how: Preallocation::Metadata },
        Grow { sectors: 900, how: Preallocation::Falloc },
        Grow { sectors: 900, how: Preallocation::Full },
        Snapshot,
        Apply { pick: 0 },
        Delete { pick: 0 },
        Stream { sector: 2, count: 120, reads: false },
        Amend { option: "compat=0.10" },
        Amend { option: "refcount_bits=2" },
        Amend { option: "refcount_bits=64" },
        Amend { option: "lazy_refcounts=on" },
        Amend { option: "lazy_refcounts=off" },
    ];
    let mut lists = Vec::new();
    for (number, op) in single.into_iter().enumerate() {
        for lazy in [false, true] {
            let mode = [Mode::Writeback, Mode::MetadataWritethrough, Mode::Writethrough][number % 3];
            let amend = matches!(op, Amend { .. });
            let setup = Setup {
                lazy,
                mode,
                backing: lazy.then_some(130),
                refcount_order: if amend { 4 } else { 6 },
                ahead: !lazy,
                snapshots: true,
                ..Setup::default()
            };
            let ops = vec![write(3), Snapshot, write(30), Flush, write(60), op, write(10), write(150), Flush];
            lists.push((setup, ops, rng.next()));
        }
    }
    let lists = share(lists);
    let count = run_cases(&replay_line("full_host", "each_operation_on_a_full_host", seed), &lists, &sweep);
    testkit::tell!("full hosts, each operation: {} lists, {} faults injected", lists.len(), count.enumerated);
}

/// VM state was overwritten where it is, while the table that leads there waited for room: its durable contents were
/// older ones, as those of a disk's cluster may be, and the rules took its place for one before its beginning.
#[test]
fn vm_state_is_written_again_while_its_table_waits() {
    let write = |sector, count| Write { sector, count, fua: false };
    let setup = Setup {
        version: 2,
        sectors: 284,
        tiny_cache: true,
        ahead: true,
        snapshots: true,
        ..Setup::default()
    };
    let ops = [
        write(143, 5),
        write(71, 1),
        Flush,
        Resize { sectors: 209 },
        Write { sector: 145, count: 1, fua: true },
        Apply { pick: 0 },
        Snapshot,
        Discard { sector: 71, count: 1 },
        Snapshot,
    ];
    let mut met = 0;
    for at in 0..Run::calls(&setup, &ops).unwrap() {
        let mut run = Run::new(&setup, at, WAYS[0], 1).unwrap();
        met += u64::from(run.go(&ops).unwrap());
        run.judge(&setup).unwrap();
    }
    assert!(met > 3, "the host was full in {met} runs only");
}
