//! A commit over layers: an image and a layer between go into the base below both, each call on each file failing once.

use qcow2::testing::error::Result;
use qcow2::testing::ops::commit::commit_to;
use qcow2::testing::ops::formats::Driver;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::open::{OpenFlags, Opening, Origin, ResolveAnswer, ResolveRequest, Secrets};
use qcow2::testing::storage::Storage;
use std::sync::Arc;
use testkit::encrypted::secrets_from;
use testkit::ops::{random_list, random_setup, Op, Op::*};
use testkit::oracle;
use testkit::pair::Pair;
use testkit::recorder::{Fault, Recorder};
use testkit::rng::{base_seed, cases, replay_line, Rng};
use testkit::runner::apply_recorded;
use testkit::setup::{self, Setup};
use testkit::sweep::check_clean;

/// An image, the layer below it and the base, each on a storage double.
struct Stack {
    setups: [Setup; 2],
    base: Option<Setup>,
    files: [Arc<Recorder>; 3],
}

impl Stack {
    /// The layers after `ops`, all of it durable. The base is full.
    fn new(setups: [Setup; 2], base: Option<Setup>, ops: &[Vec<Op>; 2]) -> std::result::Result<Self, String> {
        // A pair whose base's secret is that of depth 1 makes the base; here it is deeper and has none.
        let below = Pair { top: setups[1], base: base.map(|base| Setup { depth: 1, ..base }) }.create_base();
        let files = [setups[0].recorder(), setups[1].recorder(), Recorder::new(below)];
        // The layer between shows zeroes here and there, which the rules for what a hole shows do not know of.
        files[0].set_backing(0);
        let stack = Stack { setups, base, files };
        for (layer, first) in [(1, 100), (0, 1)] {
            let handle = stack.open(layer).map_err(|e| format!("open layer {layer}: {e}"))?;
            for (op, tag) in ops[layer].iter().zip(first..) {
                let Some(op) = op.clipped(setups[layer].sectors) else { continue };
                apply_recorded(&stack.files[layer], &handle, &op, tag).map_err(|e| format!("{op:?}: {e}"))?;
            }
            handle.close().map_err(|e| format!("close layer {layer}: {e}"))?;
        }
        Ok(stack)
    }

    /// Opens the chain from this layer down, writable.
    fn open(&self, layer: usize) -> Result<Handle> {
        let mut resolver = |request: &ResolveRequest| {
            let at = layer + request.depth;
            let raw = at == 2 && self.base.is_none();
            let format = Some(if raw { Driver::RAW } else { Driver::QCOW2 });
            Ok(ResolveAnswer { origin: Origin::Custom(self.files[at].clone() as Arc<dyn Storage>), format })
        };
        let setup = if layer < 2 { self.setups[layer] } else { self.base.unwrap_or_default() };
        let mut secrets = secrets_from(layer);
        let raw = layer == 2 && self.base.is_none();
        let format = if raw { Driver::RAW } else { Driver::QCOW2 };
        let mut opening = Opening {
            flags: OpenFlags { format, ..OpenFlags::default() },
            options: setup.options(),
            resolver: Some(&mut resolver),
            messages: None,
            secrets: Secrets { source: Some(&mut secrets), progress: None },
        };
        opening.open(&Origin::Custom(self.files[layer].clone() as Arc<dyn Storage>))
    }

    fn shows(&self, layer: usize) -> std::result::Result<Vec<u32>, String> {
        let handle = self.open(layer).map_err(|e| format!("open layer {layer}: {e}"))?;
        let tags = setup::read_all(&handle).map_err(|e| format!("reading layer {layer}: {e}"))?;
        handle.close().map_err(|e| format!("close layer {layer}: {e}"))?;
        Ok(tags)
    }

    /// The base shows what the image shows.
    fn has_committed(&self, shows: &[u32]) -> std::result::Result<(), String> {
        let mut base = self.shows(2)?;
        base.truncate(shows.len());
        match base == shows {
            true => Ok(()),
            false => Err("the base does not show what was committed".into()),
        }
    }

    fn commit(&self, handle: &Handle) -> Result<()> {
        let all = Some((0, u64::MAX));
        self.files[0].request(all, all, || commit_to(handle, 2, false, None, &mut |_, _| true))
    }
}

/// Fails each call once. Afterwards the image shows what it did, the files above the base are as they were byte for
/// byte, the base is sound, and a second commit makes it show what the image shows.
fn fail_commit_to(
    make: &dyn Fn() -> std::result::Result<Stack, String>,
    rng: &mut Rng,
) -> std::result::Result<u64, String> {
    let (mut faults, errno) = (0, *rng.pick(&[libc::EIO, libc::ENOSPC]));
    let first = make()?;
    let shows = first.shows(0)?;
    for side in [0, 1, 2] {
        for call in 0.. {
            let stack = make()?;
            let above = [0, 1].map(|i| stack.files[i].contents());
            let handle = stack.open(0).map_err(|e| format!("open: {e}"))?;
            let failing = &stack.files[side];
            failing.inject(Some(Fault {
                kind: None,
                call,
                errno,
                forever: rng.one_in(2),
                torn: rng.one_in(2),
            }));
            let answer = stack.commit(&handle);
            let whole = failing.failed() == 0;
            failing.inject(None);
            drop(handle);
            let told = |e| format!("call {call} of file {side} fails with {errno} ({answer:?}): {e}");
            for (i, above) in above.iter().enumerate() {
                // A session that opens an image for writing may leave its dirty bit.
                let now = stack.files[i].contents();
                if oracle::is_dirty(&now) == oracle::is_dirty(above) && now != *above {
                    return Err(told(format!("layer {i} is not what it was")));
                }
            }
            if stack.base.is_some() && !oracle::is_dirty(&stack.files[2].contents()) {
                check_clean(&*stack.files[2]).map_err(|e| told(format!("base: {e}")))?;
            }
            if stack.shows(0).map_err(told)? != shows {
                return Err(told("the image shows something else".into()));
            }
            // Calls that only give room back may fail.
            if answer.is_ok() {
                stack.has_committed(&shows).map_err(told)?;
            }
            let handle = stack.open(0).map_err(|e| told(format!("open: {e}")))?;
            stack.commit(&handle).map_err(|e| told(format!("committed again: {e}")))?;
            handle.close().map_err(|e| told(format!("close: {e}")))?;
            stack.has_committed(&shows).map_err(told)?;
            if whole {
                break;
            }
            faults += 1;
        }
    }
    Ok(faults)
}

#[test]
fn each_call_of_a_commit_over_layers_fails() {
    let seed = base_seed();
    let mut rng = Rng::new(seed);
    let mut faults = 0;
    for case in 0..cases(12) {
        let sectors = 16 + rng.below(60);
        let plain = |op: &Op| op.range().is_some() && !matches!(op, Compressed { .. });
        let mut layer = |depth: usize, backing: u64| {
            let drawn = random_setup(&mut rng);
            let setup = Setup { sectors, backing: Some(backing), prefill: 0, bitmaps: false, depth, ..drawn };
            let ops = random_list(&mut rng, &setup, 4).into_iter().filter(plain).collect::<Vec<_>>();
            (setup, ops)
        };
        let (top, top_ops) = layer(0, sectors);
        let (middle, middle_ops) = layer(1, 1 + sectors * (2 + case % 4) / 4);
        let base = (case % 3 > 0).then(|| {
            let drawn = random_setup(&mut rng);
            Setup { backing: None, prefill: 0, bitmaps: false, encrypted: None, ..drawn }
        });
        let ops = [top_ops, middle_ops];
        let make = || Stack::new([top, middle], base, &ops);
        faults += fail_commit_to(&make, &mut rng).unwrap_or_else(|e| {
            let replay = replay_line("faults", "each_call_of_a_commit_over_layers_fails", seed);
            panic!("case {case}: {e}\n{top:?}\n{middle:?}\n{base:?}\n{ops:?}\n{replay}")
        });
    }
    testkit::tell!("{faults} faults injected into commits over layers");
    assert!(faults > cases(12) * 4);
}
