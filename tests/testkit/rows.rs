//! The operations that race with each other: one row each. A new kind of request is one more row.

use super::race::Stage;
use super::setup::{self, Setup};
use super::SECTOR;
use qcow2::error::{Error, ErrorKind, Result};
use qcow2::image::{Disk, ZeroFlags};
use qcow2::ops::check::CheckOptions;
use qcow2::ops::commit::commit;
use qcow2::ops::handle::close_image;
use qcow2::ops::resize::resize;
use qcow2::options::Preallocation;

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

/// Sectors and the tags that were read there.
pub type Seen = Vec<(u64, u32)>;

/// See the module.
pub struct Row {
    pub name: &'static str,
    /// First sectors and counts.
    pub ranges: &'static [(u64, u64)],
    pub gives: Gives,
    pub promise: Promise,
    /// It keeps all others out.
    pub alone: bool,
    /// It may load or make tables other than the contested one.
    pub loads: bool,
    /// From this sector on it drops what is there, besides what `gives` says.
    pub drops: Option<u64>,
    pub run: fn(&Stage, &Row, u32) -> Result<Seen>,
    pub fits: fn(&Setup) -> bool,
}

/// A row that fits every setup and gives nothing.
const fn row(name: &'static str, run: fn(&Stage, &Row, u32) -> Result<Seen>) -> Row {
    let (gives, promise) = (Gives::Nothing, Promise::Nothing);
    Row { name, ranges: &[], gives, promise, alone: false, loads: false, drops: None, run, fits: |_| true }
}

const fn change(
    name: &'static str,
    ranges: &'static [(u64, u64)],
    gives: Gives,
    run: fn(&Stage, &Row, u32) -> Result<Seen>,
) -> Row {
    Row { ranges, gives, ..row(name, run) }
}

/// Sectors in tables of their own, away from the contested ones: whoever uses them makes a small cache let go
/// of the contested table.
const AFAR: &[(u64, u64)] = &[(66, 2), (132, 2), (196, 2)];

/// Sectors 0 to 51 have data, and those of `AFAR`; the others have none, and those from 256 on no table.
pub static ROWS: [Row; 18] = [
    change("write in place", &[(40, 12)], Gives::Tag, |stage, row, tag| write(stage, row, tag, false)),
    change("allocating write", &[(50, 12)], Gives::Tag, |stage, row, tag| write(stage, row, tag, false)),
    Row {
        promise: Promise::Own,
        ..change("FUA write", &[(47, 9)], Gives::Tag, |stage, row, tag| write(stage, row, tag, true))
    },
    change("zero", &[(40, 24)], Gives::Zero, |stage, row, _| zero(stage, row, false, false)),
    change("zero and unmap", &[(41, 22)], Gives::Zero, |stage, row, _| zero(stage, row, true, false)),
    Row {
        promise: Promise::Own,
        ..change("FUA zero", &[(44, 12)], Gives::Zero, |stage, row, _| zero(stage, row, true, true))
    },
    change("discard", &[(40, 24)], Gives::MayZero, |stage, row, _| {
        let (sector, count) = row.ranges[0];
        stage.disk().discard(sector * SECTOR, count * SECTOR).map(|()| Seen::new())
    }),
    Row { promise: Promise::All, ..row("flush", |stage, _, _| stage.disk().flush().map(|()| Seen::new())) },
    Row {
        promise: Promise::All,
        alone: true,
        drops: Some(SIZE),
        ..row("grow", |stage, _, _| {
            resize(&stage.handle, GROWN * SECTOR, Preallocation::Off).map(|()| Seen::new())
        })
    },
    Row {
        promise: Promise::All,
        alone: true,
        drops: Some(SHRUNK),
        ..change("shrink", &[(SHRUNK, SIZE - SHRUNK)], Gives::Shrunk, |stage, _, _| {
            resize(&stage.handle, SHRUNK * SECTOR, Preallocation::Off).map(|()| Seen::new())
        })
    },
    Row { alone: true, ..row("check", check) },
    Row {
        promise: Promise::All,
        alone: true,
        ..row("reopen", |stage, _, _| stage.handle.reopen(false, false, &[], None).map(|()| Seen::new()))
    },
    Row { promise: Promise::All, alone: true, ..row("close", close) },
    Row {
        promise: Promise::All,
        alone: true,
        drops: Some(0),
        fits: |setup| setup.backing.is_some(),
        ..row("commit", |stage, _, _| {
            commit(&stage.handle, false, None, &mut |_, _| true).map(|()| Seen::new())
        })
    },
    Row { loads: true, ..row("read", |stage, _, _| read(stage, &[(36, 30)])) },
    Row { loads: true, ..row("read afar", |stage, _, _| read(stage, AFAR)) },
    Row {
        loads: true,
        ..change("write afar", AFAR, Gives::Tag, |stage, row, tag| write(stage, row, tag, false))
    },
    Row {
        loads: true,
        ..change("write to a new table", &[(260, 3)], Gives::Tag, |stage, row, tag| {
            write(stage, row, tag, false)
        })
    },
];

/// The row of this name.
pub fn named(name: &str) -> &'static Row {
    ROWS.iter().find(|r| r.name == name).unwrap_or_else(|| panic!("no row {name:?}"))
}

/// Gives `AFAR` its data.
pub fn prepare(handle: &qcow2::ops::handle::Handle) -> Result<()> {
    AFAR.iter().try_for_each(|(s, n)| setup::write(handle, *s, *n, setup::PREFILL_TAG, false))
}

fn write(stage: &Stage, row: &Row, tag: u32, fua: bool) -> Result<Seen> {
    row.ranges.iter().try_for_each(|(s, n)| setup::write(&stage.handle, *s, *n, tag, fua))?;
    Ok(Seen::new())
}

fn zero(stage: &Stage, row: &Row, unmap: bool, fua: bool) -> Result<Seen> {
    let (sector, count) = row.ranges[0];
    let flags = ZeroFlags { unmap, no_fallback: false };
    stage.disk().write_zeroes(sector * SECTOR, count * SECTOR, flags, fua).map(|()| Seen::new())
}

fn read(stage: &Stage, ranges: &[(u64, u64)]) -> Result<Seen> {
    let mut seen = Seen::new();
    for (sector, count) in ranges {
        seen.extend((*sector..).zip(setup::read(&stage.handle, *sector, *count)?));
    }
    Ok(seen)
}

fn check(stage: &Stage, _: &Row, _: u32) -> Result<Seen> {
    let report = stage.handle.check(CheckOptions::default(), &mut |_, _| {}, &mut |_, _| true)?;
    match report.corruptions + report.check_errors {
        0 => Ok(Seen::new()),
        _ => Err(Error::new(ErrorKind::Corrupt, format!("{report:?}"))),
    }
}

/// What closing does before it lets go of the file.
fn close(stage: &Stage, _: &Row, _: u32) -> Result<Seen> {
    let Disk::Qcow2(image) = stage.disk() else { return Ok(Seen::new()) };
    close_image(image).map(|()| Seen::new())
}
