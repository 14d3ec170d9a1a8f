//! What each sector may hold: its value when it was last made durable, and every value given to it since.

use crate::bitmaps::{BitmapOp, Verdicts};
use crate::ops::Op;
use crate::setup::{Mode, Setup, BACKING_TAG};
use crate::SECTOR;
use std::collections::BTreeMap;

/// A value that a failed operation has left open.
const UNKNOWN: u32 = u32::MAX - 1;

/// The values that a sector may have. Nearly always there is one, and a disk may have 270,000 sectors.
#[derive(Clone, Debug)]
enum Values {
    One(u32),
    More(Vec<u32>),
}

impl std::ops::Deref for Values {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        match self {
            Values::One(tag) => std::slice::from_ref(tag),
            Values::More(tags) => tags,
        }
    }
}

impl Values {
    fn add(&mut self, tag: u32) {
        if self.contains(&tag) {
            return;
        }
        match self {
            Values::One(first) => *self = Values::More(vec![*first, tag]),
            Values::More(tags) => tags.push(tag),
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Expect {
    setup: Setup,
    /// Sizes that the disk may have, in sectors.
    pub sizes: Vec<u64>,
    /// For each sector, all values that it may have after a power cut.
    sets: Vec<Values>,
    /// For each sector, what it reads now; two values while an operation runs.
    current: Vec<Values>,
    /// The names of the snapshots, as the table may list them.
    tables: Vec<Vec<String>>,
    /// What each snapshot that was ever taken shows; for each sector, the values that it may have.
    images: BTreeMap<String, Vec<Values>>,
    /// The process has died: of what was not flushed, the disk and a raw data file may show different versions.
    pub killed: bool,
    /// What each sector showed when the bitmaps were new, as far as the disk has had all of it ever since.
    first: Vec<u32>,
    /// The bitmaps have been stored, and nothing has changed since.
    stored: bool,
    /// A writer has died, and nobody has had the bitmaps recovered.
    lost: bool,
}

/// What a medium holds: the disk's sectors, and those of each snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    pub disk: Vec<u32>,
    pub snapshots: Vec<(String, Vec<u32>)>,
    pub bitmaps: Verdicts,
}

impl Expect {
    pub fn new(setup: &Setup) -> Expect {
        let one: Vec<Values> = setup.initial().into_iter().map(Values::One).collect();
        Expect {
            setup: *setup,
            sizes: vec![setup.sectors],
            sets: one.clone(),
            current: one,
            tables: vec![Vec::new()],
            images: BTreeMap::new(),
            killed: false,
            first: setup.initial(),
            stored: setup.bitmaps,
            lost: false,
        }
    }

    /// The snapshots when no operation runs.
    pub fn snapshots(&self) -> &[String] {
        &self.tables[self.tables.len() - 1]
    }

    /// The snapshot that `Apply` and `Delete` mean.
    fn picked(&self, pick: u64) -> Option<String> {
        let names = self.snapshots();
        (!names.is_empty()).then(|| names[(pick % names.len() as u64) as usize].clone())
    }

    /// The name that an operation on snapshots uses; `None`: there is nothing to do.
    pub fn name_of(&self, op: &Op, tag: u32) -> Option<String> {
        match *op {
            Op::Snapshot => Some(format!("s{tag}")),
            Op::Apply { pick } | Op::Delete { pick } => self.picked(pick),
            _ => None,
        }
    }

    /// The table after `op`.
    fn table_after(&self, op: &Op, name: &str) -> Vec<String> {
        let mut names = self.snapshots().to_vec();
        match op {
            Op::Snapshot => names.push(name.into()),
            Op::Delete { .. } => names.retain(|n| n != name),
            _ => {}
        }
        names
    }

    fn begin_snapshot(&mut self, op: &Op, name: &str) {
        let table = self.table_after(op, name);
        if !self.tables.contains(&table) {
            self.tables.insert(0, table);
        }
        if *op == Op::Snapshot {
            self.images.insert(name.into(), self.current[..self.size() as usize].to_vec());
        }
        let Some(image) = self.images.get(name).cloned().filter(|_| matches!(op, Op::Apply { .. })) else {
            return;
        };
        let longest = image.len().max(self.sets.len());
        for lists in [&mut self.sets, &mut self.current] {
            lists.resize(longest, Values::More(Vec::new()));
            for (list, more) in lists.iter_mut().zip(&image) {
                more.iter().for_each(|tag| list.add(*tag));
            }
        }
        if !self.sizes.contains(&(image.len() as u64)) {
            self.sizes.insert(0, image.len() as u64);
        }
    }

    fn complete_snapshot(&mut self, op: &Op, name: &str) {
        self.tables = vec![self.table_after(op, name)];
        if let (Op::Apply { .. }, Some(image)) = (op, self.images.get(name)) {
            self.sizes = vec![image.len() as u64];
            self.current.clone_from(image);
            self.sets.clone_from(image);
        }
        self.all_durable();
    }

    /// Size of the disk when no operation runs.
    pub fn size(&self) -> u64 {
        self.sizes[self.sizes.len() - 1]
    }

    fn may(&mut self, sector: u64, tag: u32) {
        let sector = sector as usize;
        for list in [&mut self.sets[sector], &mut self.current[sector]] {
            list.add(tag);
        }
    }

    /// `op` starts; it writes `tag`.
    pub fn begin(&mut self, op: &Op, tag: u32) {
        self.stored = false;
        let least = op.new_size().unwrap_or(u64::MAX).min(self.first.len() as u64);
        self.first.truncate(least as usize);
        if let Some(name) = self.name_of(op, tag) {
            self.begin_snapshot(op, &name);
        }
        if let Some((sector, count)) = op.range() {
            let tag = if matches!(op, Op::Write { .. } | Op::Compressed { .. }) { tag } else { 0 };
            (sector..sector + count).for_each(|s| self.may(s, tag));
        }
        if let Some(sectors) = op.new_size() {
            for s in sectors..self.size().max(sectors) {
                // Dropped entries show what is below until the size has changed.
                self.may(s, 0);
                if self.setup.below(s) == BACKING_TAG {
                    self.may(s, BACKING_TAG);
                }
            }
            (self.size()..sectors.min(self.sets.len() as u64)).for_each(|s| self.may(s, 0));
            let grown = (sectors as usize).max(self.sets.len());
            self.sets.resize(grown, Values::One(0));
            self.current.resize(grown, Values::One(0));
            if !self.sizes.contains(&sectors) {
                self.sizes.push(sectors);
            }
        }
    }

    /// `op` has succeeded. `reads`: what its sectors read now, where that is not known.
    pub fn complete(
        &mut self,
        op: &Op,
        name: Option<&str>,
        tag: u32,
        reads: &dyn Fn(u64) -> u32,
    ) -> Result<(), String> {
        if let Some(name) = name {
            self.complete_snapshot(op, name);
        }
        let through = self.setup.mode == Mode::Writethrough;
        if let Some((sector, count)) = op.range() {
            for s in sector..sector + count {
                let (now, durable) = match *op {
                    Op::Write { fua, .. } => (tag, fua || through),
                    Op::Compressed { .. } => (tag, through),
                    Op::Zero { fua, .. } => (0, fua || through),
                    _ => (reads(s), through),
                };
                self.settle(s, now, durable)?;
            }
        }
        match *op {
            Op::Resize { sectors } | Op::Grow { sectors, .. } => {
                self.sizes = vec![sectors];
                self.sets.truncate(sectors as usize);
                self.current.truncate(sectors as usize);
                self.all_durable();
            }
            Op::Flush | Op::Reopen | Op::HandOver => self.all_durable(),
            Op::Kill => {
                self.killed = true;
                self.lost = true;
                for s in 0..self.size() {
                    self.settle(s, reads(s), false)?;
                }
            }
            Op::Bitmaps { op: BitmapOp::Recover } => self.lost = false,
            _ => {}
        }
        let stores = matches!(op, Op::Reopen | Op::HandOver | Op::Bitmaps { op: BitmapOp::Sync });
        self.stored = self.setup.bitmaps && !self.lost && stores;
        Ok(())
    }

    /// The guest bytes that are durable once `op` has succeeded.
    pub fn keeps(&self, op: &Op) -> Option<(u64, u64)> {
        let fua = matches!(op, Op::Write { fua: true, .. } | Op::Zero { fua: true, .. });
        match *op {
            Op::Resize { .. } | Op::Grow { .. } | Op::Flush | Op::Reopen | Op::HandOver => {
                Some((0, u64::MAX))
            }
            _ if fua || self.setup.mode == Mode::Writethrough => {
                op.range().map(|(sector, count)| (sector * SECTOR, (sector + count) * SECTOR))
            }
            _ => None,
        }
    }

    fn settle(&mut self, sector: u64, now: u32, durable: bool) -> Result<(), String> {
        let set = &mut self.sets[sector as usize];
        if !set.contains(&now) {
            return Err(format!("sector {sector} reads {now:#x}, may be {:x?}", &**set));
        }
        if durable {
            *set = Values::One(now);
        }
        self.current[sector as usize] = Values::One(now);
        Ok(())
    }

    fn all_durable(&mut self) {
        for (set, current) in self.sets.iter_mut().zip(&self.current) {
            set.clone_from(current);
        }
    }

    /// `op` has failed: its sectors hold the old value or the new one.
    pub fn failed(&mut self, op: &Op, new_size: Option<u64>) {
        if let (Op::Resize { .. } | Op::Grow { .. } | Op::Apply { .. }, Some(size)) = (op, new_size) {
            self.sizes.insert(0, size);
            self.has_size(size);
        }
    }

    /// A change has been refused, which bitmaps may have been told of: they are in use for nothing then.
    pub fn refused(&mut self) {
        self.stored = false;
    }

    /// The disk has this size now, one of those that it may have. What is known past it stays: it may get longer again.
    pub fn has_size(&mut self, size: u64) {
        if self.sizes.contains(&size) {
            self.sizes.retain(|s| *s != size);
            self.sizes.push(size);
        }
    }

    /// What the disk reads now is any of what it may.
    pub fn forget_current(&mut self) {
        self.current.clone_from(&self.sets);
    }

    /// Whether an image may hold this after a power cut. `killed`: every write that was issued is there.
    pub fn check(&self, contents: &Contents, killed: bool) -> Result<(), String> {
        let names: Vec<_> = contents.snapshots.iter().map(|(name, _)| name.clone()).collect();
        if !self.tables.contains(&names) {
            return Err(format!("the snapshots are {names:?}, may be {:?}", self.tables));
        }
        for (name, tags) in &contents.snapshots {
            self.check_snapshot(name, tags)?;
        }
        let tags = &contents.disk;
        let size = tags.len() as u64;
        if !self.sizes.contains(&size) {
            return Err(format!("the disk has {size} sectors, may have {:?}", self.sizes));
        }
        self.check_bitmaps(contents)?;
        let exact = killed && self.setup.mode != Mode::Writeback;
        let lists = if exact { &self.current } else { &self.sets };
        for (sector, (tag, may)) in tags.iter().zip(lists).enumerate() {
            if !may.contains(tag) && !may.contains(&UNKNOWN) {
                return Err(format!("sector {sector} reads {tag:#x}, may be {:x?}", &**may));
            }
        }
        Ok(())
    }

    /// R7: a bitmap that is believed has every change; and those are believed that must be.
    fn check_bitmaps(&self, contents: &Contents) -> Result<(), String> {
        for (name, verdict) in &contents.bitmaps {
            let Some(dirty) = verdict else {
                match self.stored {
                    true => return Err(format!("bitmap '{name}' has been stored and is not believed")),
                    false => continue,
                }
            };
            let sectors = self.first.iter().zip(&contents.disk).zip(dirty);
            if let Some(sector) = sectors.into_iter().position(|((old, new), dirty)| old != new && !dirty) {
                return Err(format!("R7: sector {sector} has changed, bitmap '{name}' calls it clean"));
            }
        }
        Ok(())
    }

    fn check_snapshot(&self, name: &str, tags: &[u32]) -> Result<(), String> {
        let image = &self.images[name];
        if tags.len() != image.len() {
            return Err(format!("snapshot {name} has {} sectors, must have {}", tags.len(), image.len()));
        }
        match tags.iter().zip(image).position(|(t, may)| !may.contains(t)) {
            Some(s) => {
                Err(format!("snapshot {name}: sector {s} reads {:#x}, may be {:x?}", tags[s], &*image[s]))
            }
            None => Ok(()),
        }
    }

    /// Whether the running disk reads as it must.
    pub fn check_live(&self, tags: &[u32]) -> Result<(), String> {
        for (sector, (tag, may)) in tags.iter().zip(&self.current).enumerate() {
            if !may.contains(tag) {
                return Err(format!("live: sector {sector} reads {tag:#x}, must be {:x?}", &**may));
            }
        }
        Ok(())
    }
}
