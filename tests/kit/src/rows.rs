//! The operations that race with each other: one row each. A new kind of request is one more row.

use crate::encrypted::secrets_from;
use crate::race::Scene;
use crate::recorder::Recorder;
use crate::runner::take_over;
use crate::setup;
use crate::SECTOR;
use qcow2::testing::disk::ZeroFlags;
use qcow2::testing::error::{Error, ErrorKind, Result};
use qcow2::testing::image::{Image, SnapshotRef};
use qcow2::testing::ops::amend::amend;
use qcow2::testing::ops::backing::{change_backing_file, make_empty};
use qcow2::testing::ops::check::CheckOptions;
use qcow2::testing::ops::commit::commit;
use qcow2::testing::ops::convert::{convert, ConvertOptions};
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::inactive::{inactivate, invalidate_with};
use qcow2::testing::ops::open::{ResolveAnswer, ResolveRequest, Secrets};
use qcow2::testing::ops::rebase::rebase;
use qcow2::testing::ops::resize::resize;
use qcow2::testing::ops::snapshot;
use qcow2::testing::options::Preallocation;
use qcow2::testing::storage::memory::Memory;
use std::sync::Arc;

/// Sectors of the disk at first, after a shrink (the contested ones are past it), and after a growth that
/// needs a longer L1 table.
pub const SIZE: u64 = 320;
pub const SHRUNK: u64 = 32;
pub const GROWN: u64 = 5000;

/// What an operation leaves in the sectors of its ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gives {
    /// What they held.
    Nothing,
    /// Its tag.
    Tag,
    /// Zeroes.
    Zero,
    /// Zeroes or what they held.
    MayZero,
    /// Zeroes past `SHRUNK`, if they are read at all.
    Shrunk,
    /// What they held when the scene was prepared, everywhere.
    Initial,
    /// Zeroes, everywhere.
    Empty,
    /// Zeroes where they showed the backing file.
    Unbacked,
}

/// What is durable when an operation returns, whatever the cache mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    Nothing,
    /// What it did itself.
    Own,
    /// All that was completed when it began.
    All,
}

/// See the module.
pub struct Row {
    pub name: &'static str,
    /// First sectors and counts of what it changes.
    pub ranges: &'static [(u64, u64)],
    /// And of what it reads when it has run.
    pub reads: &'static [(u64, u64)],
    pub gives: Gives,
    pub promise: Promise,
    /// It writes past the end of the disk.
    pub past_end: bool,
    /// It keeps all others out.
    pub alone: bool,
    /// It may load or make tables other than the contested one.
    pub loads: bool,
    /// From this sector on it drops what is there, besides what `gives` says.
    pub drops: Option<u64>,
    /// It changes what the header names, or settings.
    pub tell: fn(&Recorder),
    pub run: fn(&Handle, &Row, u32) -> Result<()>,
    pub fits: fn(&Scene) -> bool,
}

/// A row that does nothing.
const NONE: Row = Row {
    name: "",
    ranges: &[],
    reads: &[],
    gives: Gives::Nothing,
    promise: Promise::Nothing,
    past_end: false,
    alone: false,
    loads: false,
    drops: None,
    tell: |_| {},
    run: |_, _, _| Ok(()),
    fits: |_| true,
};

const ALONE: Row = Row { promise: Promise::All, alone: true, ..NONE };
const WRITE: Row = Row { gives: Gives::Tag, run: |handle, row, tag| write(handle, row, tag, false), ..NONE };

/// Sectors in tables of their own, away from the contested ones: whoever uses them makes a small cache let go
/// of the contested table.
const AFAR: &[(u64, u64)] = &[(66, 2), (132, 2), (196, 2)];

/// Sectors 0 to 51 have data, and those of `AFAR`; the others have none, and those from 256 on no table.
pub static ROWS: [Row; 34] = [
    Row { name: "write in place", ranges: &[(40, 12)], ..WRITE },
    Row { name: "allocating write", ranges: &[(50, 12)], ..WRITE },
    Row {
        name: "FUA write",
        ranges: &[(47, 9)],
        promise: Promise::Own,
        run: |handle, row, tag| write(handle, row, tag, true),
        ..WRITE
    },
    Row { name: "write afar", ranges: AFAR, loads: true, ..WRITE },
    Row { name: "write to a new table", ranges: &[(260, 3)], loads: true, ..WRITE },
    Row {
        name: "compressed write",
        ranges: &[(54, 6)],
        run: write_compressed,
        fits: |scene| scene.setup.data_file.is_none() && scene.setup.encrypted.is_none(),
        ..WRITE
    },
    Row {
        name: "zero",
        ranges: &[(40, 24)],
        gives: Gives::Zero,
        run: |handle, row, _| zero(handle, row, false, false),
        ..NONE
    },
    Row {
        name: "zero and unmap",
        ranges: &[(41, 22)],
        gives: Gives::Zero,
        run: |handle, row, _| zero(handle, row, true, false),
        ..NONE
    },
    Row {
        name: "FUA zero",
        ranges: &[(44, 12)],
        gives: Gives::Zero,
        promise: Promise::Own,
        run: |handle, row, _| zero(handle, row, true, true),
        ..NONE
    },
    Row {
        name: "discard",
        ranges: &[(40, 24)],
        gives: Gives::MayZero,
        run: |handle, row, _| {
            let (sector, count) = row.ranges[0];
            handle.disk().discard(sector * SECTOR, count * SECTOR)
        },
        ..NONE
    },
    Row {
        name: "stream",
        ranges: &[(46, 20)],
        loads: true,
        run: |handle, _, tag| take_over(handle, 46, 20, tag % 2 == 0),
        fits: |scene| scene.setup.backing.is_some(),
        ..NONE
    },
    Row {
        name: "VM state write",
        past_end: true,
        loads: true,
        run: |handle, _, tag| write_vm_state(handle, tag),
        fits: |scene| scene.setup.data_file.is_none(),
        ..NONE
    },
    Row { name: "flush", promise: Promise::All, run: |handle, _, _| handle.disk().flush(), ..NONE },
    Row { name: "read", reads: &[(36, 30)], loads: true, ..NONE },
    Row { name: "read afar", reads: AFAR, loads: true, ..NONE },
    Row {
        name: "grow",
        drops: Some(SIZE),
        run: |handle, _, _| resize(handle, GROWN * SECTOR, Preallocation::Off),
        ..ALONE
    },
    Row {
        name: "shrink",
        gives: Gives::Shrunk,
        drops: Some(SHRUNK),
        run: |handle, _, _| resize(handle, SHRUNK * SECTOR, Preallocation::Off),
        ..ALONE
    },
    Row { name: "check", promise: Promise::Nothing, run: check, ..ALONE },
    Row { name: "reopen", run: |handle, _, _| handle.reopen(false, false, &[], None), ..ALONE },
    Row { name: "hand over", run: |handle, _, _| change_hands(handle), ..ALONE },
    Row { name: "close", run: close, ..ALONE },
    Row {
        name: "commit",
        drops: Some(0),
        run: |handle, _, _| match commit(handle, false, None, &mut |_, _| true) {
            // A rebase came before.
            Err(e) if e.kind() == ErrorKind::Unsupported => handle.disk().flush(),
            done => done,
        },
        fits: |scene| scene.setup.backing.is_some() && !scene.snapshot,
        ..ALONE
    },
    Row {
        name: "snapshot",
        run: |handle, _, _| snapshot::create(handle, &setup::snapshot_named(b"later")),
        fits: |scene| scene.setup.data_file.is_none(),
        ..ALONE
    },
    Row {
        name: "apply snapshot",
        gives: Gives::Initial,
        drops: Some(0),
        run: |handle, _, _| snapshot::apply(handle, FIRST),
        fits: |scene| scene.snapshot,
        ..ALONE
    },
    Row {
        name: "delete snapshot",
        run: |handle, _, _| snapshot::delete(handle, FIRST),
        fits: |scene| scene.snapshot,
        ..ALONE
    },
    Row {
        name: "amend refcounts",
        tell: Recorder::amend,
        run: |handle, _, _| amend(handle, &["compat=1.1", "refcount_bits=64"], &mut |_, _| true),
        ..ALONE
    },
    // With a snapshot, version 2 refuses what others do; it has no data files, and no zeroes that are encrypted.
    Row {
        name: "amend version",
        tell: Recorder::amend,
        run: |handle, _, _| amend(handle, &["refcount_bits=16", "compat=0.10"], &mut |_, _| true),
        fits: |scene| !scene.snapshot && scene.setup.data_file.is_none() && scene.setup.encrypted.is_none(),
        ..ALONE
    },
    Row {
        name: "amend lazy refcounts",
        tell: Recorder::amend,
        run: |handle, _, _| amend(handle, &["lazy_refcounts=off"], &mut |_, _| true),
        fits: |scene| scene.setup.lazy,
        ..ALONE
    },
    Row {
        name: "amend raw data file",
        tell: Recorder::amend,
        run: |handle, _, _| amend(handle, &["data_file_raw=off"], &mut |_, _| true),
        fits: |scene| scene.setup.data_file == Some(true),
        ..ALONE
    },
    // The chain that is open stays, and what depends on what is below is refused from then on.
    Row {
        name: "change backing file",
        tell: Recorder::change_names,
        run: |handle, _, _| rename_backing_file(handle),
        fits: |scene| scene.setup.backing.is_some(),
        ..ALONE
    },
    Row {
        name: "let go of the backing file",
        gives: Gives::Unbacked,
        tell: Recorder::change_names,
        run: |handle, _, _| change_backing_file(handle, None, None),
        fits: |scene| scene.setup.backing.is_some() && !scene.snapshot,
        ..ALONE
    },
    Row {
        name: "rebase",
        tell: Recorder::change_names,
        run: |handle, _, _| rebase(handle, None, None, None, false, &mut |_, _| true),
        fits: |scene| scene.setup.backing.is_some(),
        ..ALONE
    },
    Row {
        name: "make empty",
        gives: Gives::Empty,
        drops: Some(0),
        run: |handle, _, _| make_empty(handle),
        fits: |scene| scene.setup.backing.is_none(),
        ..ALONE
    },
    Row { name: "convert", loads: true, run: |handle, _, _| copy_out(handle), ..NONE },
];

/// The header extension that names the backing file's format.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// Another name for the file below, which stays of its format.
fn rename_backing_file(handle: &Handle) -> Result<()> {
    let header = Image::find(handle.disk()).expect("an image").core().header();
    // There is none where the image has let go of the file meanwhile.
    let format = header.extension_text(BACKING_FORMAT);
    change_backing_file(handle, Some(b"another"), Some(format.as_deref().unwrap_or("raw")))
}

/// The row of this name.
pub fn named(name: &str) -> &'static Row {
    ROWS.iter().find(|r| r.name == name).unwrap_or_else(|| panic!("no row {name:?}"))
}

/// The snapshot of a prepared scene.
const FIRST: SnapshotRef<'static> = SnapshotRef { id: None, name: Some(b"first") };

/// Gives `AFAR` its data, and the image its first snapshot if it is to have one.
pub fn prepare(handle: &Handle, with_snapshot: bool) -> Result<()> {
    AFAR.iter().try_for_each(|(s, n)| setup::write(handle, *s, *n, setup::PREFILL_TAG, false))?;
    match with_snapshot {
        true => snapshot::create(handle, &setup::snapshot_named(b"first")),
        false => Ok(()),
    }
}

fn write(handle: &Handle, row: &Row, tag: u32, fua: bool) -> Result<()> {
    row.ranges.iter().try_for_each(|(s, n)| setup::write(handle, *s, *n, tag, fua))
}

/// Behind the disk as it is now: the L1 table grows.
fn write_vm_state(handle: &Handle, tag: u32) -> Result<()> {
    let bytes = tag.to_be_bytes().repeat(300);
    qcow2::testing::ops::vm_state::write(handle, 0, &bytes)?;
    let mut read = vec![0; bytes.len()];
    handle.disk().read_vm_state(0, &mut read)?;
    // Nothing where a change of the size came after it, another actor's where one has written its own.
    match read.chunks(4).all(|word| word[..3] == [0; 3] && word[3] < 4) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Corrupt, "VM state that nobody wrote")),
    }
}

fn write_compressed(handle: &Handle, row: &Row, tag: u32) -> Result<()> {
    let (sector, count) = row.ranges[0];
    let mut bytes = vec![0; (count * SECTOR) as usize];
    setup::fill(&mut bytes, sector, tag);
    handle.disk().write_compressed(sector * SECTOR, &[std::io::IoSlice::new(&bytes)], false)
}

fn zero(handle: &Handle, row: &Row, unmap: bool, fua: bool) -> Result<()> {
    let (sector, count) = row.ranges[0];
    let flags = ZeroFlags { unmap, no_fallback: false };
    handle.disk().write_zeroes(sector * SECTOR, count * SECTOR, flags, fua)
}

/// Given away and taken back, with the same file below whatever the header calls it by then.
fn change_hands(handle: &Handle) -> Result<()> {
    let below = handle.below().map(|b| b.origin().clone());
    inactivate(handle)?;
    let mut resolver = |_: &ResolveRequest| match &below {
        Some(origin) => Ok(ResolveAnswer { origin: origin.clone(), format: None }),
        None => Err(Error::new(ErrorKind::Corrupt, "a backing file that was not there")),
    };
    // A file by another name is opened anew, which an encrypted one wants its secret for.
    let mut source = secrets_from(0);
    let secrets = Secrets { source: Some(&mut source), progress: None };
    invalidate_with(handle, Some(&mut resolver), None, secrets)
}

fn check(handle: &Handle, _: &Row, _: u32) -> Result<()> {
    let report = handle.check(CheckOptions::default(), None, &mut |_, _| true)?;
    match report.corruptions + report.check_errors {
        0 => Ok(()),
        _ => Err(Error::new(ErrorKind::Corrupt, format!("{report:?}"))),
    }
}

/// A copy of the disk holds what somebody has written there, nothing else.
fn copy_out(handle: &Handle) -> Result<()> {
    let setup = setup::Setup { sectors: GROWN, ..Default::default() };
    let target = setup.open(Arc::new(Memory::new(setup.create())))?;
    convert(handle.disk(), target.disk(), &ConvertOptions::default(), &mut |_, _| true)?;
    match setup::read_all(&target)?.iter().position(|tag| *tag == setup::BAD_TAG) {
        Some(sector) => Err(Error::new(ErrorKind::Corrupt, format!("sector {sector} of the copy"))),
        None => Ok(()),
    }
}

/// What closing does before it lets go of the file.
fn close(handle: &Handle, _: &Row, _: u32) -> Result<()> {
    handle.disk().stop().close()
}
