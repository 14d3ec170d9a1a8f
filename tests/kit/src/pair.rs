//! An overlay and its base, both on storage doubles: power cuts in the middle of a commit, with every file losing
//! its own unsynced events.

use crate::cut::{CrashState, Cutter, Keep};
use crate::encrypted::secrets_from;
use crate::ops::Op;
use crate::oracle;
use crate::recorder::{Fault, Recorder};
use crate::rng::Rng;
use crate::runner::apply_recorded;
use crate::setup::{self, backing_bytes, Setup, BACKING_TAG, BAD_TAG};
use crate::sweep::{check_clean, Count};
use qcow2::testing::error::Result;
use qcow2::testing::ops::commit::commit;
use qcow2::testing::ops::formats::Driver;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::open::{OpenFlags, Opening, Origin, ResolveAnswer, Secrets};
use qcow2::testing::storage::Storage;
use std::collections::HashSet;
use std::sync::Arc;

/// Unsynced events of one file up to which all their subsets are tried.
const EXHAUSTIVE_EVENTS: usize = 9;
/// One state in so many is committed again after its recovery.
const COMMITTED_STATES: u64 = 16;

/// An overlay above a raw or a qcow2 base.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The overlay; `backing` is the size of the base in sectors.
    pub top: Setup,
    /// How the base is made, unless it is raw; at depth 1.
    pub base: Option<Setup>,
}

impl Pair {
    /// The bytes of a base full of `BACKING_TAG`.
    pub fn create_base(&self) -> Vec<u8> {
        let sectors = self.top.backing.expect("a pair has a base");
        let Some(base) = self.base else { return backing_bytes(sectors) };
        assert_eq!(base.depth, 1, "the secret is that of a base");
        let recorder = Setup { sectors, ..base }.recorder();
        let handle = base.open(recorder.clone()).expect("open the base");
        setup::write(&handle, 0, sectors, BACKING_TAG, false).expect("fill the base");
        handle.close().expect("close the base");
        recorder.contents()
    }

    fn base_format(&self) -> Driver {
        if self.base.is_some() {
            Driver::QCOW2
        } else {
            Driver::RAW
        }
    }

    /// Opens the overlay writable above the base.
    pub fn open(&self, top: Arc<dyn Storage>, base: Arc<dyn Storage>) -> Result<Handle> {
        let format = self.base_format();
        let mut resolver =
            |_: &_| Ok(ResolveAnswer { origin: Origin::Custom(Arc::clone(&base)), format: Some(format) });
        let mut secrets = secrets_from(0);
        let mut opening = Opening {
            flags: OpenFlags::default(),
            options: self.top.options(),
            resolver: Some(&mut resolver),
            messages: None,
            secrets: Secrets { source: Some(&mut secrets), progress: None },
        };
        opening.open(&Origin::Custom(top))
    }

    /// What the base shows by itself, as far as the overlay's sectors go.
    pub fn read_base(&self, base: Arc<dyn Storage>, sectors: usize) -> std::result::Result<Vec<u32>, String> {
        let flags = OpenFlags { format: self.base_format(), read_only: true, ..OpenFlags::default() };
        let mut secrets = secrets_from(1);
        let mut opening = Opening {
            flags,
            options: self.top.options(),
            resolver: None,
            messages: None,
            secrets: Secrets { source: Some(&mut secrets), progress: None },
        };
        let handle = opening.open(&Origin::Custom(base)).map_err(|e| format!("the base alone: {e}"))?;
        let mut tags = setup::read_all(&handle).map_err(|e| format!("the base alone: {e}"))?;
        tags.truncate(sectors);
        Ok(tags)
    }
}

/// An overlay over its base, each on a storage double, and what it shows.
struct Written {
    top: Arc<Recorder>,
    base: Arc<Recorder>,
    handle: Handle,
    shows: Vec<u32>,
}

/// The pair after `ops`, all of it durable.
fn written(pair: &Pair, ops: &[Op]) -> std::result::Result<Written, String> {
    let (top, base) = (pair.top.recorder(), Recorder::new(pair.create_base()));
    let handle = pair.open(top.clone(), base.clone()).map_err(|e| format!("open: {e}"))?;
    for (op, tag) in ops.iter().zip(1..) {
        let Some(op) = op.clipped(pair.top.sectors) else { continue };
        apply_recorded(&top, &handle, &op, tag).map_err(|e| format!("{op:?}: {e}"))?;
    }
    handle.disk().flush().map_err(|e| format!("flush: {e}"))?;
    let shows = setup::read_all(&handle).map_err(|e| e.to_string())?;
    Ok(Written { top, base, handle, shows })
}

/// Fails each call of a commit on either file once; how many. Afterwards the overlay shows what it did, both files are
/// sound, and a commit can be made again.
pub fn fail_commit(pair: &Pair, ops: &[Op], rng: &mut Rng) -> std::result::Result<u64, String> {
    let (mut faults, errno) = (0, *rng.pick(&[libc::EIO, libc::ENOSPC]));
    for side in [0, 1] {
        for call in 0.. {
            let Written { top, base, handle, shows } = written(pair, ops)?;
            let failing = [&top, &base][side];
            failing.inject(Some(Fault {
                kind: None,
                call,
                errno,
                forever: rng.one_in(2),
                torn: rng.one_in(2),
            }));
            let all = Some((0, u64::MAX));
            let answer = top.request(all, all, || commit(&handle, false, None, &mut |_, _| true));
            let whole = failing.failed() == 0;
            failing.inject(None);
            drop(handle);
            if whole {
                answer.map_err(|e| format!("without a fault: {e}"))?;
                break;
            }
            let told = |e| format!("call {call} of file {side} fails with {errno} ({answer:?}): {e}");
            let dirty = oracle::is_dirty(&base.contents());
            let handle = sound(pair, top.clone(), base.clone(), dirty, &shows).map_err(told)?;
            let again = || commit_again(pair, handle, &(base.clone() as _), &shows);
            top.request(all, all, again).map_err(|e| told(format!("committed again: {e}")))?;
            faults += 1;
        }
    }
    Ok(faults)
}

/// A commit, cut after each of its events; what the overlay shows never changes.
pub fn sweep_commit(
    pair: &Pair,
    ops: &[Op],
    keep: bool,
    rng: &mut Rng,
) -> std::result::Result<Count, String> {
    let Written { top, base, handle, shows: wanted } = written(pair, ops)?;
    let begun = [top.log_length(), base.log_length()];
    // Of the base any cluster may be written, and any of the overlay dropped.
    let all = Some((0, u64::MAX));
    let run = || commit(&handle, keep, None, &mut |_, _| true);
    top.request(all, all, run).map_err(|e| format!("commit: {e}"))?;
    [&top, &base].into_iter().try_for_each(|r| r.judge())?;
    if pair.read_base(base.clone(), wanted.len())? != wanted {
        return Err("the base does not show what was committed".into());
    }
    if setup::read_all(&handle).map_err(|e| e.to_string())? != wanted {
        return Err("the overlay shows something else after the commit".into());
    }
    let logs = [top.log(), base.log()];
    let bases = [top.base(), base.base()];
    let mut cutters = [0, 1].map(|i| {
        let mut cutter = Cutter::new(bases[i], &logs[i]);
        (0..begun[i]).for_each(|_| assert!(cutter.step()));
        cutter
    });
    let mut count = Count::default();
    let mut seen = HashSet::new();
    loop {
        survivors(&mut cutters, rng, &mut |cutters, keeps| {
            count.enumerated += 1;
            let states = [cutters[0].state(&keeps[0]), cutters[1].state(&keeps[1])];
            if !seen.insert((states[0].hash, states[1].hash)) {
                return Ok(());
            }
            count.opened += 1;
            count.repaired += u64::from(oracle::is_dirty(&cutters[0].medium(&states[0]).start()));
            judge(pair, cutters, &states, &wanted).map_err(|e| {
                let cuts = [cutters[0].cut, cutters[1].cut];
                format!("cut after {cuts:?} events (overlay, base), survivors {keeps:?}: {e}")
            })
        })?;
        count.cuts += 1;
        // The file whose next event came first goes on.
        let next = |i: usize| logs[i].get(cutters[i].cut).map_or(u64::MAX, |e| e.stamp);
        let first = usize::from(next(1) < next(0));
        if !cutters[first].step() {
            return Ok(count);
        }
    }
}

pub(crate) type Look<'l, 'a> =
    &'l mut dyn FnMut(&mut [Cutter<'a>; 2], &[Vec<Keep>; 2]) -> std::result::Result<(), String>;

/// Choices of survivors of both files: all of one with nothing, everything and something of the other.
pub(crate) fn survivors<'a>(
    cutters: &mut [Cutter<'a>; 2],
    rng: &mut Rng,
    look: Look<'_, 'a>,
) -> std::result::Result<(), String> {
    for side in [0, 1] {
        let mut choices = Vec::new();
        cutters[side].survivors(EXHAUSTIVE_EVENTS, rng, |_, keep| {
            choices.push(keep.to_vec());
            Ok::<(), String>(())
        })?;
        let others = cutters[1 - side].pending_count();
        for choice in choices {
            let some = (0..others).map(|_| if rng.one_in(2) { Keep::All } else { Keep::Nothing }).collect();
            for other in [vec![Keep::Nothing; others], vec![Keep::All; others], some] {
                let keeps = if side == 0 { [choice.clone(), other] } else { [other, choice.clone()] };
                look(cutters, &keeps)?;
            }
        }
    }
    Ok(())
}

fn judge(
    pair: &Pair,
    cutters: &[Cutter<'_>; 2],
    states: &[CrashState; 2],
    wanted: &[u32],
) -> std::result::Result<(), String> {
    let (top, base) = (cutters[0].medium(&states[0]), cutters[1].medium(&states[1]));
    let dirty = oracle::is_dirty(&base.start());
    let handle = sound(pair, top, base.clone(), dirty, wanted)?;
    if states[0].hash.wrapping_add(states[1].hash) % COMMITTED_STATES == 0 {
        commit_again(pair, handle, &(base as _), wanted).map_err(|e| format!("committed again: {e}"))?;
    }
    Ok(())
}

/// Opens the overlay: it shows what it must, and neither file has a corruption.
fn sound(
    pair: &Pair,
    top: Arc<dyn Storage>,
    base: Arc<dyn Storage>,
    base_is_dirty: bool,
    wanted: &[u32],
) -> std::result::Result<Handle, String> {
    let handle = pair.open(top.clone(), base.clone()).map_err(|e| format!("open: {e}"))?;
    check_clean(&*top).map_err(|e| format!("overlay: {e}"))?;
    if pair.base.is_some() && !base_is_dirty {
        check_clean(&*base).map_err(|e| format!("base: {e}"))?;
    }
    same(&handle, wanted).map(|()| handle)
}

fn same(handle: &Handle, wanted: &[u32]) -> std::result::Result<(), String> {
    let tags = setup::read_all(handle).map_err(|e| format!("reading: {e}"))?;
    match (0..wanted.len()).find(|s| tags.get(*s) != Some(&wanted[*s])) {
        _ if tags.len() != wanted.len() => Err(format!("{} sectors, not {}", tags.len(), wanted.len())),
        Some(s) if tags[s] == BAD_TAG => Err(format!("sector {s} holds what nobody wrote")),
        Some(s) => Err(format!("sector {s} reads {:#x}, must be {:#x}", tags[s], wanted[s])),
        None => Ok(()),
    }
}

fn commit_again(
    pair: &Pair,
    handle: Handle,
    base: &Arc<dyn Storage>,
    wanted: &[u32],
) -> std::result::Result<(), String> {
    let committed = commit(&handle, false, None, &mut |_, _| true).map_err(|e| e.to_string());
    same(&handle, wanted)?;
    match committed {
        // A base whose bitmap was in use when it was left keeps its size until somebody gives that up.
        Err(e) if pair.base.is_some_and(|base| base.bitmaps) && e.contains("is inconsistent") => {
            return Ok(())
        }
        committed => committed?,
    }
    handle.close().map_err(|e| format!("close: {e}"))?;
    if pair.base.is_some() {
        check_clean(&**base)?;
    }
    match pair.read_base(base.clone(), wanted.len())? == wanted {
        true => Ok(()),
        false => Err("the base does not show what was committed".into()),
    }
}
