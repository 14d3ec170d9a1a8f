//! Bitmaps, read straight from the bytes of an image; and R7, of a medium and of a trace.

use crate::oracle::{Bytes, Head, OFFSET};
use crate::setup::Setup;
use crate::SECTOR;
use qcow2::testing::error::Result;
use qcow2::testing::ops::bitmaps;
use qcow2::testing::ops::handle::Handle;

/// The bitmap that lists hand over again and again; what it was called before has this and a number.
pub const ROTATED: &str = "b0";
/// One with granules of several sectors, which nobody hands over.
pub const STEADY: &str = "b1";
/// One that comes and goes.
pub const PASSING: &str = "a bitmap that comes and goes";

const EXTENSION: u64 = 0x2385_2875;
const IN_USE: u64 = 1;
const AUTO: u64 = 2;

/// One bitmap as the medium has it.
#[derive(Clone, Debug)]
pub struct Bitmap {
    pub name: String,
    pub in_use: bool,
    pub enabled: bool,
    pub granularity_bits: u32,
    /// Host offset of its table, and entries.
    pub table: (u64, u64),
    /// Entries of its table.
    pub entries: Vec<u64>,
    granules: u64,
    bits: Vec<u8>,
}

impl Bitmap {
    /// Whether the granule with a guest byte is dirty; past the end none is.
    pub fn is_dirty(&self, offset: u64) -> bool {
        let granule = offset >> self.granularity_bits;
        granule < self.granules && self.bits[granule as usize / 8] >> (granule % 8) & 1 != 0
    }

    /// The granules, each clean or dirty.
    pub fn granules(&self) -> Vec<bool> {
        (0..self.granules).map(|g| self.is_dirty(g << self.granularity_bits)).collect()
    }

    /// Whether all of `[from, to)` is dirty, as far as there are granules.
    fn covers(&self, from: u64, to: u64) -> bool {
        let end = to.min(self.granules << self.granularity_bits);
        (from..end).step_by(SECTOR as usize).all(|at| self.is_dirty(at))
    }
}

/// Host offset and bytes of the directory that is in force, and the number of bitmaps.
pub fn directory(bytes: &(impl Bytes + ?Sized)) -> Option<(u64, u64, u64)> {
    let head = Head::parse(bytes)?;
    if head.version < 3 || !head.has_bitmaps() {
        return None;
    }
    let mut at = bytes.be32(100);
    while at + 8 <= head.cluster_bytes() && bytes.be32(at) != 0 {
        if bytes.be32(at) == EXTENSION {
            return Some((bytes.be64(at + 24), bytes.be64(at + 16), bytes.be32(at + 8)));
        }
        at += 8 + bytes.be32(at + 4).div_ceil(8) * 8;
    }
    None
}

/// All bitmaps that are in force. What breaks a rule is read as far as it goes.
pub fn bitmaps(bytes: &(impl Bytes + ?Sized)) -> Vec<Bitmap> {
    let (Some(head), Some((mut at, _, count))) = (Head::parse(bytes), directory(bytes)) else {
        return Vec::new();
    };
    let mut list = Vec::new();
    for _ in 0..count.min(65_535) {
        let (name_bytes, extra_bytes) = (bytes.be32(at + 16) & 0xffff, bytes.be32(at + 20));
        let mut name = vec![0; name_bytes as usize];
        bytes.read_at(at + 24 + extra_bytes, &mut name);
        let table = (bytes.be64(at), bytes.be32(at + 8));
        let flags = bytes.be32(at + 12);
        // Of a broken one, as far as there are numbers.
        let granularity_bits = (bytes.be32(at + 16) >> 16 & 0xff).min(63) as u32;
        let granules = head.size.div_ceil(1 << granularity_bits);
        let entries: Vec<u64> =
            (0..table.1.min(1 << 16)).map(|i| bytes.be64(table.0.wrapping_add(i * 8))).collect();
        list.push(Bitmap {
            name: String::from_utf8_lossy(&name).into_owned(),
            in_use: flags & IN_USE != 0,
            enabled: flags & AUTO != 0,
            granularity_bits,
            table,
            bits: bits_of(bytes, &head, &entries, granules.div_ceil(8)),
            entries,
            granules,
        });
        at += (24 + extra_bytes + name_bytes).next_multiple_of(8);
    }
    list
}

fn bits_of(bytes: &(impl Bytes + ?Sized), head: &Head, entries: &[u64], length: u64) -> Vec<u8> {
    let cluster = head.cluster_bytes() as usize;
    let mut bits = vec![0; length as usize];
    for (part, entry) in bits.chunks_mut(cluster).zip(entries) {
        match entry & OFFSET {
            0 => part.fill(if entry & 1 != 0 { 0xff } else { 0 }),
            offset => bytes.read_at(offset, part),
        }
    }
    bits
}

/// R7 of a trace: where guest bytes are about to change, no enabled bitmap that would be believed after a power cut calls
/// them clean.
pub fn check_change(durable: &[u8], from: u64, to: u64) -> std::result::Result<(), String> {
    for bitmap in bitmaps(durable) {
        if bitmap.enabled && !bitmap.in_use && !bitmap.covers(from, to) {
            return Err(format!(
                "R7: guest bytes {from:#x}..{to:#x} change, and bitmap '{}' would be believed without them",
                bitmap.name
            ));
        }
    }
    Ok(())
}

/// What there is to be said of the bitmaps of a medium after a power cut: for each that lists begin with, by sector,
/// whether it has changed; `None` where that is not to be believed.
pub type Verdicts = Vec<(&'static str, Option<Vec<bool>>)>;

/// The verdicts of a medium; a bitmap that was handed over speaks with those that it was before.
pub fn verdicts(bytes: &(impl Bytes + ?Sized), sectors: u64) -> std::result::Result<Verdicts, String> {
    let all = bitmaps(bytes);
    let of = |first: &'static str| {
        if !all.iter().any(|b| b.name == first) {
            return Err(format!("bitmap '{first}' is gone"));
        }
        let before = format!("{first}.");
        let family: Vec<&Bitmap> =
            all.iter().filter(|b| b.name == first || b.name.starts_with(&before)).collect();
        if family.iter().any(|b| b.in_use) {
            return Ok((first, None));
        }
        let dirty = |sector: u64| family.iter().any(|b| b.is_dirty(sector * SECTOR));
        Ok((first, Some((0..sectors).map(dirty).collect())))
    };
    [ROTATED, STEADY].into_iter().map(of).collect()
}

/// What lists do with bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapOp {
    /// `ROTATED` begins anew.
    Rotate,
    /// What it was before goes back into it.
    Fold,
    Sync,
    /// All that are inconsistent are believed again, with all of it dirty.
    Recover,
    /// `PASSING` comes, or goes.
    Toggle,
}

impl BitmapOp {
    pub const ALL: [BitmapOp; 5] =
        [BitmapOp::Rotate, BitmapOp::Fold, BitmapOp::Sync, BitmapOp::Recover, BitmapOp::Toggle];

    /// Does it, as far as that can be done.
    pub fn run(self, handle: &Handle, tag: u32) -> Result<()> {
        let list = bitmaps::list(handle)?;
        let is_lost = |b: &bitmaps::BitmapStatus| b.inconsistent;
        let name = ROTATED.as_bytes();
        let own = list.iter().find(|b| b.name == name).filter(|b| !is_lost(b));
        let frozen = list.iter().find(|b| b.name.starts_with(format!("{ROTATED}.").as_bytes()));
        match self {
            BitmapOp::Rotate if own.is_some() => {
                bitmaps::rotate(handle, name, format!("{ROTATED}.{tag}").as_bytes())
            }
            BitmapOp::Fold if own.is_some() => match frozen {
                Some(frozen) => {
                    bitmaps::merge(handle, name, None, &frozen.name)?;
                    bitmaps::remove(handle, &frozen.name)
                }
                None => Ok(()),
            },
            BitmapOp::Sync => bitmaps::sync(handle),
            BitmapOp::Recover => {
                list.iter().filter(|b| is_lost(b)).try_for_each(|b| bitmaps::recover(handle, &b.name))
            }
            BitmapOp::Toggle => match list.iter().any(|b| b.name == PASSING.as_bytes()) {
                true => bitmaps::remove(handle, PASSING.as_bytes()),
                false => bitmaps::add(handle, PASSING.as_bytes(), Some(4096), tag % 2 == 0),
            },
            _ => Ok(()),
        }
    }
}

/// Adds the bitmaps that lists begin with.
pub fn add_bitmaps(setup: &Setup, handle: &Handle) -> Result<()> {
    if setup.bitmaps {
        bitmaps::add(handle, ROTATED.as_bytes(), Some(512), true)?;
        bitmaps::add(handle, STEADY.as_bytes(), Some(2048), true)?;
    }
    Ok(())
}
