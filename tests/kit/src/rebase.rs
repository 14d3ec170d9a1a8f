//! An image whose backing file changes, on the storage double: power cuts in the middle.

use crate::cut::Cutter;
use crate::encrypted::secrets_from;
use crate::ops::Op;
use crate::oracle;
use crate::recorder::{Fault, Recorder};
use crate::rng::Rng;
use crate::runner::apply_recorded;
use crate::setup::{self, backing_bytes, Setup};
use crate::sweep::{check_clean, Count};
use crate::SECTOR;
use qcow2::testing::error::Result;
use qcow2::testing::ops::backing::change_backing_file;
use qcow2::testing::ops::formats::Driver;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::open::{OpenFlags, Opening, Origin, ResolveAnswer, ResolveRequest, Secrets};
use qcow2::testing::ops::rebase::rebase;
use qcow2::testing::storage::memory::Memory;
use qcow2::testing::storage::Storage;
use std::collections::HashSet;
use std::sync::Arc;

/// Unsynced events up to which all their subsets are tried.
const EXHAUSTIVE_EVENTS: usize = 9;
/// Sectors of the new backing file that no image has written.
const OTHER_TAG: u32 = 0x0007_4e50;

/// What changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The name only.
    Name,
    /// The file, and the disk shows the same.
    File { compressed: bool },
}

/// The new backing file.
#[derive(Clone, Copy, Debug)]
pub struct Other {
    /// Bytes of its name; 0: none.
    pub name_bytes: usize,
    pub sectors: u64,
    /// One sector in so many differs from the old file's.
    pub differs: u64,
}

impl Other {
    fn name(&self) -> Option<String> {
        (self.name_bytes > 0).then(|| "n".repeat(self.name_bytes))
    }

    fn contents(&self, rng: &mut Rng) -> Vec<u8> {
        let mut bytes = backing_bytes(self.sectors);
        for sector in 0..self.sectors {
            if rng.one_in(self.differs) {
                let tag = if rng.one_in(3) { 0 } else { OTHER_TAG };
                setup::fill(&mut bytes[(sector * SECTOR) as usize..][..SECTOR as usize], sector, tag);
            }
        }
        bytes
    }
}

/// Opens the image with the backing file that its header names.
fn open(setup: &Setup, storage: Arc<dyn Storage>, other: &[u8]) -> Result<Handle> {
    let mut resolver = |request: &ResolveRequest| {
        let bytes = match request.recorded_name.to_str().expect("a name of the test's") {
            "base" => setup.backing_file(),
            name if name.bytes().all(|b| b == b'n') => other.to_vec(),
            name => panic!("the header names {name:?}"),
        };
        let is_image = request.recorded_name.to_str() == Some("base") && setup.encrypted_backing;
        assert_eq!(request.format.as_deref(), Some(if is_image { "qcow2" } else { "raw" }));
        Ok(ResolveAnswer { origin: Origin::Custom(Arc::new(Memory::new(bytes))), format: None })
    };
    let flags = OpenFlags::default();
    let mut secrets = secrets_from(setup.depth);
    let mut opening = Opening {
        flags,
        options: setup.options(),
        resolver: Some(&mut resolver),
        messages: None,
        secrets: Secrets { source: Some(&mut secrets), progress: None },
    };
    opening.open(&Origin::Custom(storage))
}

fn open_raw(bytes: &[u8]) -> Result<Handle> {
    let flags = OpenFlags { format: Driver::RAW, read_only: true, ..OpenFlags::default() };
    let mut opening = Opening {
        flags,
        options: Default::default(),
        resolver: None,
        messages: None,
        secrets: Default::default(),
    };
    opening.open(&Origin::Custom(Arc::new(Memory::new(bytes.to_vec()))))
}

type Written = (Arc<Recorder>, Handle, Vec<u32>);

/// An image after `ops`, all of it durable, and what it shows.
fn written(setup: &Setup, ops: &[Op], other: &[u8]) -> std::result::Result<Written, String> {
    let recorder = setup.recorder();
    let handle = open(setup, recorder.clone(), other).map_err(|e| format!("open: {e}"))?;
    for (op, tag) in ops.iter().zip(1..) {
        let Some(op) = op.clipped(setup.sectors) else { continue };
        apply_recorded(&recorder, &handle, &op, tag).map_err(|e| format!("{op:?}: {e}"))?;
    }
    handle.disk().flush().map_err(|e| format!("flush: {e}"))?;
    let shown = setup::read_all(&handle).map_err(|e| e.to_string())?;
    Ok((recorder, handle, shown))
}

/// Changes the backing file after `ops`, and cuts after each event of that; the count, and whether an image was seen
/// with the old name and with the new one.
pub fn sweep_rebase(
    setup: &Setup,
    ops: &[Op],
    other: &Other,
    change: Change,
    rng: &mut Rng,
) -> std::result::Result<Count, String> {
    let bytes = other.contents(rng);
    let (recorder, handle, old) = written(setup, ops, &bytes)?;
    let begun = recorder.log_length();
    recorder.change_names();
    run(&recorder, &handle, &bytes, other, change).map_err(|e| format!("{change:?}: {e}"))?;
    recorder.judge()?;
    let name = |storage: &dyn Storage| names(storage);
    if name(&*recorder)? != other.name() {
        return Err("the name has not changed".into());
    }
    let copy: Arc<dyn Storage> = Arc::new(Memory::new(recorder.contents()));
    let new =
        open(setup, copy, &bytes).and_then(|h| setup::read_all(&h)).map_err(|e| format!("reopen: {e}"))?;
    if change != Change::Name && new != old {
        return Err("the disk changed".into());
    }
    // A handle keeps the chain that it has open, unless there is none any more.
    let wanted = if other.name().is_some() { &old } else { &new };
    if setup::read_all(&handle).map_err(|e| e.to_string())? != *wanted {
        return Err("the open handle shows something else".into());
    }
    let look = Look { setup, bytes: &bytes, old: &old, new: &new, name: other.name() };
    look.cut(&recorder, begun, rng)
}

/// Fails each call of the change once; how many. Afterwards the image has the old name or the new one.
pub fn fail_rebase(
    setup: &Setup,
    ops: &[Op],
    other: &Other,
    change: Change,
    rng: &mut Rng,
) -> std::result::Result<u64, String> {
    let bytes = other.contents(rng);
    let errno = *rng.pick(&[libc::EIO, libc::ENOSPC]);
    let forever = rng.one_in(2);
    for call in 0.. {
        let (recorder, handle, old) = written(setup, ops, &bytes)?;
        let new = shown_over(setup, &old, &recorder, &bytes, other, change)?;
        recorder.change_names();
        recorder.inject(Some(Fault { kind: None, call, errno, forever, torn: false }));
        let answer = run(&recorder, &handle, &bytes, other, change);
        let whole = recorder.failed() == 0;
        recorder.inject(None);
        drop(handle);
        if whole {
            return answer.map(|()| call).map_err(|e| format!("without a fault: {e}"));
        }
        let look = Look { setup, bytes: &bytes, old: &old, new: &new, name: other.name() };
        let is_new = look.judge(recorder).map_err(|e| format!("call {call} fails with {errno}: {e}"))?;
        if answer.is_ok() && !is_new {
            return Err(format!("call {call} fails with {errno}: a success, and the old name"));
        }
    }
    unreachable!()
}

/// What the disk shows once the change is done.
fn shown_over(
    setup: &Setup,
    old: &[u32],
    recorder: &Recorder,
    bytes: &[u8],
    other: &Other,
    change: Change,
) -> std::result::Result<Vec<u32>, String> {
    if change != Change::Name {
        return Ok(old.to_vec());
    }
    let copy = Recorder::new(recorder.contents());
    copy.change_names();
    let handle = open(setup, copy.clone(), bytes).map_err(|e| e.to_string())?;
    run(&copy, &handle, bytes, other, change).map_err(|e| e.to_string())?;
    drop(handle);
    open(setup, copy, bytes).and_then(|h| setup::read_all(&h)).map_err(|e| e.to_string())
}

fn run(recorder: &Recorder, handle: &Handle, bytes: &[u8], other: &Other, change: Change) -> Result<()> {
    let name = other.name();
    let (name, format) = (name.as_deref().map(str::as_bytes), name.as_ref().map(|_| "raw"));
    let all = Some((0, u64::MAX));
    recorder.request(all, all, || match change {
        Change::Name => change_backing_file(handle, name, format),
        Change::File { compressed } => {
            let below = name.map(|_| open_raw(bytes)).transpose()?;
            rebase(handle, below.as_ref(), name, format, compressed, &mut |_, _| true)
        }
    })
}

fn names(storage: &dyn Storage) -> std::result::Result<Option<String>, String> {
    let length = storage.length().map_err(|e| e.to_string())?;
    let mut start = vec![0; length.min(1 << 21) as usize];
    let mut part = [std::io::IoSliceMut::new(&mut start)];
    storage.read(qcow2::testing::storage::Purpose::Header, 0, &mut part).map_err(|e| e.to_string())?;
    let bytes =
        qcow2::testing::format::Header::peek_cluster_bytes(&start).map_err(|e| e.to_string())? as usize;
    start.truncate(bytes);
    let header = qcow2::testing::format::Header::parse(&start).map_err(|e| format!("header: {e}"))?;
    Ok(header.backing_name().map(|name| name.to_string_lossy().into_owned()))
}

struct Look<'a> {
    setup: &'a Setup,
    bytes: &'a [u8],
    old: &'a [u32],
    new: &'a [u32],
    name: Option<String>,
}

impl Look<'_> {
    fn cut(&self, recorder: &Recorder, begun: usize, rng: &mut Rng) -> std::result::Result<Count, String> {
        let log = recorder.log();
        let mut cutter = Cutter::new(recorder.base(), &log);
        (0..begun).for_each(|_| assert!(cutter.step()));
        let mut count = Count::default();
        let (mut seen, mut with_old, mut with_new) = (HashSet::new(), false, false);
        loop {
            let every = cutter.survivors(EXHAUSTIVE_EVENTS, rng, |cutter, keep| {
                count.enumerated += 1;
                let state = cutter.state(keep);
                if !seen.insert(state.hash) {
                    return Ok(());
                }
                count.opened += 1;
                let medium = cutter.medium(&state);
                count.repaired += u64::from(oracle::is_dirty(&medium.start()));
                let is_new = self
                    .judge(medium)
                    .map_err(|e| format!("cut after {} events, survivors {keep:?}: {e}", cutter.cut))?;
                *if is_new { &mut with_new } else { &mut with_old } = true;
                Ok::<(), String>(())
            })?;
            count.exhausted += u64::from(every);
            count.cuts += 1;
            if !cutter.step() {
                break;
            }
        }
        match with_old && with_new {
            true => Ok(count),
            false => Err(format!("states with the old name {with_old}, with the new one {with_new}")),
        }
    }

    /// Whether the image has the new name.
    fn judge(&self, medium: Arc<dyn Storage>) -> std::result::Result<bool, String> {
        let name = names(&*medium)?;
        let is_new = name == self.name;
        if !is_new && name.as_deref() != Some("base") {
            return Err(format!("the header names {name:?}"));
        }
        let wanted = if is_new { self.new } else { self.old };
        let handle = open(self.setup, medium.clone(), self.bytes).map_err(|e| format!("open: {e}"))?;
        let shown = setup::read_all(&handle).map_err(|e| format!("reading: {e}"))?;
        if let Some(sector) = (0..wanted.len()).find(|s| shown[*s] != wanted[*s]) {
            return Err(format!("sector {sector} reads {:#x}, must be {:#x}", shown[sector], wanted[sector]));
        }
        handle.close().map_err(|e| format!("close: {e}"))?;
        check_clean(&*medium).map(|_| is_new)
    }
}
