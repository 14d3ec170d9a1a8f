//! The power-cut sweep of one operation list, the shrinking of lists that fail, and the sweep over many lists
//! on all processors.

use crate::bitmaps::{self, Verdicts};
use crate::cut::{CrashState, Cutter, Keep};
use crate::expect::Contents;
use crate::ops::Op;
use crate::oracle;
use crate::overlay::Overlay;
use crate::rng::{most_cases, shrinks, Rng};
use crate::runner::Runner;
use crate::setup::{self, Setup, BAD_TAG};
use qcow2::testing::ops::check::{check, in_words, CheckOptions, MessageKind};
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::storage::Storage;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// States that were looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// Choices of survivors.
    pub enumerated: u64,
    /// Different media among them, each opened, checked and read.
    pub opened: u64,
    /// Of those, the ones that were repaired.
    pub repaired: u64,
    /// Points at which the power failed.
    pub cuts: u64,
    /// Of those, the ones where every subset of the unsynced events was tried.
    pub exhausted: u64,
}

/// Operations of a short list, and the unsynced events of which all subsets are tried for such a list, and else.
const SHORT: usize = 6;
const EXHAUSTIVE_EVENTS: [usize; 2] = [16, 12];

/// One in so many states is also written to after its recovery.
const WRITTEN_STATES: u64 = 16;

/// `QCOW2_TEST_CUTS=0` is for tests of the kit, which ask what the rules see by themselves.
pub(crate) fn tries_cuts() -> bool {
    std::env::var("QCOW2_TEST_CUTS").map_or(true, |s| s != "0")
}

/// Runs a list and looks at every state that a power cut may leave behind.
pub fn sweep(setup: &Setup, ops: &[Op], rng: &mut Rng) -> Result<Count, String> {
    let mut runner = Runner::new(setup)?;
    for op in ops {
        if let Some(e) = runner.run(*op)? {
            return Err(format!("{op:?} failed: {e}"));
        }
    }
    runner.check_live()?;
    let log = runner.recorder.log();
    runner.recorder.judge()?;
    if !tries_cuts() {
        return Ok(Count { enumerated: 1, opened: 1, ..Count::default() });
    }
    let mut count = Count::default();
    let mut cutter = Cutter::new(runner.recorder.base(), &log);
    let mut known: HashMap<u64, Arc<Contents>> = HashMap::new();
    let mut seen: HashSet<(u64, usize, bool)> = HashSet::new();
    let mut tears = rng.clone();
    let exhaustive = EXHAUSTIVE_EVENTS[usize::from(ops.len() > SHORT)];
    loop {
        let stage_at = runner.stages.iter().rposition(|s| s.first <= cutter.cut).unwrap_or(0);
        let expect = &runner.stages[stage_at].expect;
        let all = cutter.survivors(exhaustive, &mut tears, |cutter, keep| {
            count.enumerated += 1;
            let state = cutter.state(keep);
            if !seen.insert((state.hash, stage_at, state.killed)) {
                return Ok(());
            }
            let tags = match known.get(&state.hash) {
                Some(tags) => Arc::clone(tags),
                None => {
                    let tags = open_state(setup, cutter, &state, &mut count);
                    let tags = tags.map_err(|e| describe(cutter, keep, e))?;
                    known.insert(state.hash, Arc::clone(&tags));
                    tags
                }
            };
            expect.check(&tags, state.killed).map_err(|e| describe(cutter, keep, e))
        })?;
        count.cuts += 1;
        count.exhausted += u64::from(all);
        if !cutter.step() {
            return Ok(count);
        }
    }
}

fn describe(cutter: &Cutter<'_>, keep: &[Keep], what: String) -> String {
    format!("cut after {} events, of the unsynced ones survive {keep:?}: {what}", cutter.cut)
}

fn open_state(
    setup: &Setup,
    cutter: &Cutter<'_>,
    state: &CrashState,
    count: &mut Count,
) -> Result<Arc<Contents>, String> {
    count.opened += 1;
    let medium = cutter.medium(state);
    let was_dirty = oracle::is_dirty(&medium.start());
    count.repaired += u64::from(was_dirty);
    let tags = recover(setup, &medium, was_dirty)?;
    if state.hash % WRITTEN_STATES == 0 {
        write_on(setup, &medium, tags.disk.len() as u64)?;
    }
    Ok(Arc::new(tags))
}

/// Opens a state, checks it and reads everything.
pub fn recover(setup: &Setup, medium: &Arc<Overlay>, was_dirty: bool) -> Result<Contents, String> {
    let handle = setup.open(medium.clone()).map_err(|e| format!("open: {e}"))?;
    let (handle, leaks) = match check_clean(&**medium) {
        Err(e) if oracle::is_version_2(&medium.contents()) && setup.snapshots => {
            let leaks = mend_flags(handle, &**medium, e)?;
            (setup.open(medium.clone()).map_err(|e| format!("open: {e}"))?, leaks)
        }
        leaks => (handle, leaks?),
    };
    if was_dirty && leaks != 0 {
        return Err(format!("{leaks} leaks after a repair"));
    }
    let tags = setup::read_all(&handle).map_err(|e| format!("reading: {e}"))?;
    match tags.iter().position(|t| *t == BAD_TAG) {
        Some(sector) => Err(format!("sector {sector} holds what nobody wrote")),
        None => Ok(Contents {
            bitmaps: verdicts(setup, medium, &tags)?,
            disk: tags,
            snapshots: read_snapshots(setup, medium)?,
        }),
    }
}

fn verdicts(setup: &Setup, medium: &Arc<Overlay>, tags: &[u32]) -> Result<Verdicts, String> {
    match setup.bitmaps {
        true => bitmaps::verdicts(&medium.contents(), tags.len() as u64),
        false => Ok(Vec::new()),
    }
}

fn read_snapshots(setup: &Setup, medium: &Arc<Overlay>) -> Result<Vec<(String, Vec<u32>)>, String> {
    if !oracle::has_snapshots(&medium.start()) {
        return Ok(Vec::new());
    }
    let names = oracle::snapshot_names(&medium.contents()).into_iter();
    let read = |name: String| {
        let handle =
            setup.open_snapshot(medium.clone(), &name).map_err(|e| format!("snapshot {name}: {e}"))?;
        let tags = setup::read_all(&handle).map_err(|e| format!("reading snapshot {name}: {e}"))?;
        check_vm_state(&handle, &name)?;
        Ok((name, tags))
    };
    names.map(read).collect()
}

/// A snapshot that is in the table has the VM state that it was taken with.
fn check_vm_state(handle: &Handle, name: &str) -> Result<(), String> {
    let wanted = setup::vm_state_of(name);
    let mut found = vec![0x55; wanted.len()];
    handle
        .disk()
        .read_vm_state(0, &mut found)
        .map_err(|e| format!("reading the VM state of snapshot {name}: {e}"))?;
    match found == wanted {
        true => Ok(()),
        false => Err(format!("the VM state of snapshot {name} is another one")),
    }
}

/// Version 2 has no dirty bit: a snapshot operation that was cut may leave COPIED flags that fit neither the old
/// counts nor the new ones. They cost no data, and a repair sets them right.
pub(crate) fn mend_flags(handle: Handle, medium: &dyn Storage, found: String) -> Result<u64, String> {
    let before = setup::read_all(&handle).map_err(|e| format!("reading before the repair: {e}"))?;
    let mut others = Vec::new();
    let mut look = |kind, text: &str| {
        if kind == MessageKind::Error && !text.contains("OFLAG_COPIED") {
            others.push(text.to_string());
        }
    };
    let options = CheckOptions { repair_errors: true, repair_leaks: true, workers: 1 };
    handle.check(options, Some(&mut look), &mut |_, _| true).map_err(|e| format!("repair: {e}"))?;
    if !others.is_empty() {
        return Err(found);
    }
    let after = setup::read_all(&handle).map_err(|e| format!("reading after the repair: {e}"))?;
    if before != after {
        return Err("a repair of COPIED flags changed what the disk shows".into());
    }
    handle.close().map_err(|e| format!("closing after the repair: {e}"))?;
    check_clean(medium)
}

/// No corruption; returns the leaks.
pub fn check_clean(storage: &dyn Storage) -> Result<u64, String> {
    let mut texts = Vec::new();
    let mut message = |_, text: &str| texts.push(text.to_string());
    let report = check(storage, CheckOptions::default(), Some(&mut in_words(&mut message)), &mut |_, _| true)
        .map_err(|e| format!("check: {e}"))?;
    if report.corruptions + report.check_errors > 0 {
        return Err(format!("check: {report:?}: {texts:?}"));
    }
    Ok(report.leaks)
}

/// A recovered image goes on as any other.
fn write_on(setup: &Setup, medium: &Arc<Overlay>, sectors: u64) -> Result<(), String> {
    let told = |e| format!("after recovery: {e}");
    let handle = setup.open(medium.clone()).map_err(told)?;
    setup::write(&handle, 0, sectors, 0x777, false).map_err(told)?;
    handle.close().map_err(told)?;
    check_clean(&**medium).map_err(|e| format!("written after recovery: {e}"))?;
    let handle = setup.open(medium.clone()).map_err(told)?;
    let tags = setup::read_all(&handle).map_err(told)?;
    if tags.iter().any(|t| *t != 0x777) {
        return Err("after recovery: a write is lost".into());
    }
    Ok(())
}

/// Shrinks a list that `fails`: drops operations while it still fails. Returns the list and its message.
pub fn shrink(mut ops: Vec<Op>, fails: &dyn Fn(&[Op]) -> Option<String>) -> (Vec<Op>, String) {
    let mut message = fails(&ops).unwrap_or_else(|| "does not fail again".into());
    let mut length = ops.len() / 2;
    while length > 0 {
        let mut at = 0;
        while at < ops.len() {
            let mut less = ops.clone();
            less.drain(at..(at + length).min(ops.len()));
            match fails(&less) {
                Some(text) => (ops, message) = (less, text),
                None => at += length,
            }
        }
        length /= 2;
    }
    for at in 0..ops.len() {
        while let Some(smaller) = halved(&ops[at]) {
            let mut less = ops.clone();
            less[at] = smaller;
            match fails(&less) {
                Some(text) => (ops, message) = (less, text),
                None => break,
            }
        }
    }
    (ops, message)
}

fn halved(op: &Op) -> Option<Op> {
    let half = |count: u64| (count > 1).then_some(count / 2);
    Some(match *op {
        Op::Write { sector, count, fua } => Op::Write { sector, count: half(count)?, fua },
        Op::Zero { sector, count, unmap, fua } => Op::Zero { sector, count: half(count)?, unmap, fua },
        Op::Discard { sector, count } => Op::Discard { sector, count: half(count)? },
        Op::Apply { pick } | Op::Delete { pick } if pick == 0 => return None,
        Op::Apply { pick } => Op::Apply { pick: pick / 2 },
        Op::Delete { pick } => Op::Delete { pick: pick / 2 },
        _ => return None,
    })
}

/// A look at one list; the error is what is wrong.
pub type Work = dyn Fn(&Setup, &[Op], &mut Rng) -> Result<Count, String> + Sync;

/// Runs `work` for each case on all processors, or for the first `QCOW2_TEST_CASES` of them. Panics with the first failing
/// list, shrunk, as code.
pub fn run_cases(replay: &str, cases: &[(Setup, Vec<Op>, u64)], work: &Work) -> Count {
    let cases = &cases[..most_cases().min(cases.len())];
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let totals = [const { AtomicU64::new(0) }; 5];
    let failure = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get()).min(8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| loop {
                let index = next.fetch_add(1, Ordering::SeqCst);
                let Some((setup, ops, seed)) = cases.get(index) else { return };
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                match guarded(work, setup, ops, *seed) {
                    Ok(count) => {
                        let parts =
                            [count.enumerated, count.opened, count.repaired, count.cuts, count.exhausted];
                        for (total, part) in totals.iter().zip(parts) {
                            total.fetch_add(part, Ordering::SeqCst);
                        }
                    }
                    Err(_) => {
                        stop.store(true, Ordering::SeqCst);
                        failure.lock().unwrap().get_or_insert(index);
                        return;
                    }
                }
            });
        }
    });
    if let Some(index) = *failure.lock().unwrap() {
        let (setup, ops, seed) = &cases[index];
        let fails = |ops: &[Op]| guarded(work, setup, ops, *seed).err();
        let (ops, message) = if shrinks() {
            shrink(ops.clone(), &fails)
        } else {
            (ops.clone(), fails(ops).unwrap_or_else(|| "does not fail again".into()))
        };
        panic!("case {index}: {message}\nlet setup = {setup:?};\nlet ops = vec!{ops:?};\n{replay}");
    }
    let get = |i: usize| totals[i].load(Ordering::SeqCst);
    Count { enumerated: get(0), opened: get(1), repaired: get(2), cuts: get(3), exhausted: get(4) }
}

/// `work` with a panic turned into a failure.
fn guarded(work: &Work, setup: &Setup, ops: &[Op], seed: u64) -> Result<Count, String> {
    let run = std::panic::AssertUnwindSafe(|| work(setup, ops, &mut Rng::new(seed)));
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}
