//! What each sector may hold: its value when it was last made durable, and every value given to it since.

use super::ops::Op;
use super::setup::{Mode, Setup, BACKING_TAG};

/// A value that a failed operation has left open.
const UNKNOWN: u32 = u32::MAX - 1;

/// See the module.
#[derive(Clone, Debug)]
pub struct Expect {
    setup: Setup,
    /// Sizes that the disk may have, in sectors.
    pub sizes: Vec<u64>,
    /// For each sector, all values that it may have after a power cut.
    pub sets: Vec<Vec<u32>>,
    /// For each sector, what it reads now; two values while an operation runs.
    current: Vec<Vec<u32>>,
}

impl Expect {
    pub fn new(setup: &Setup) -> Expect {
        let one: Vec<Vec<u32>> = setup.initial().into_iter().map(|t| vec![t]).collect();
        Expect { setup: *setup, sizes: vec![setup.sectors], sets: one.clone(), current: one }
    }

    /// Size of the disk when no operation runs.
    pub fn size(&self) -> u64 {
        self.sizes[self.sizes.len() - 1]
    }

    fn may(&mut self, sector: u64, tag: u32) {
        let sector = sector as usize;
        for list in [&mut self.sets[sector], &mut self.current[sector]] {
            if !list.contains(&tag) {
                list.push(tag);
            }
        }
    }

    /// `op` starts; it writes `tag`.
    pub fn begin(&mut self, op: &Op, tag: u32) {
        if let Some((sector, count)) = op.range() {
            let tag = if matches!(op, Op::Write { .. }) { tag } else { 0 };
            (sector..sector + count).for_each(|s| self.may(s, tag));
        }
        if let Op::Resize { sectors } = *op {
            for s in sectors..self.size().max(sectors) {
                // Dropped entries show what is below until the size has changed.
                self.may(s, 0);
                if self.setup.below(s) == BACKING_TAG {
                    self.may(s, BACKING_TAG);
                }
            }
            let grown = (sectors as usize).max(self.sets.len());
            self.sets.resize(grown, vec![0]);
            self.current.resize(grown, vec![0]);
            if !self.sizes.contains(&sectors) {
                self.sizes.push(sectors);
            }
        }
    }

    /// `op` has succeeded. `reads`: what its sectors read now, where that is not known.
    pub fn complete(&mut self, op: &Op, tag: u32, reads: &dyn Fn(u64) -> u32) -> Result<(), String> {
        let through = self.setup.mode == Mode::Writethrough;
        if let Some((sector, count)) = op.range() {
            for s in sector..sector + count {
                let (now, durable) = match *op {
                    Op::Write { fua, .. } => (tag, fua || through),
                    Op::Zero { fua, .. } => (0, fua || through),
                    _ => (reads(s), through),
                };
                self.settle(s, now, durable)?;
            }
        }
        match *op {
            Op::Resize { sectors } => {
                self.sizes = vec![sectors];
                self.sets.truncate(sectors as usize);
                self.current.truncate(sectors as usize);
                self.all_durable();
            }
            Op::Flush | Op::Reopen => self.all_durable(),
            Op::Kill => {
                for s in 0..self.size() {
                    self.settle(s, reads(s), false)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn settle(&mut self, sector: u64, now: u32, durable: bool) -> Result<(), String> {
        let set = &mut self.sets[sector as usize];
        if !set.contains(&now) {
            return Err(format!("sector {sector} reads {now:#x}, may be {set:x?}"));
        }
        if durable {
            *set = vec![now];
        }
        self.current[sector as usize] = vec![now];
        Ok(())
    }

    fn all_durable(&mut self) {
        for (set, current) in self.sets.iter_mut().zip(&self.current) {
            set.clone_from(current);
        }
    }

    /// `op` has failed: its sectors hold the old value or the new one.
    pub fn failed(&mut self, op: &Op, new_size: Option<u64>) {
        if let (Op::Resize { .. }, Some(size)) = (op, new_size) {
            self.sizes.retain(|s| *s != size);
            self.sizes.push(size);
            self.sets.truncate(size as usize);
            self.current.truncate(size as usize);
        }
    }

    /// What the disk reads now is any of what it may.
    pub fn forget_current(&mut self) {
        self.current.clone_from(&self.sets);
    }

    /// Whether a disk may read like this after a power cut. `killed`: every write that was issued is there.
    pub fn check(&self, tags: &[u32], killed: bool) -> Result<(), String> {
        let size = tags.len() as u64;
        if !self.sizes.contains(&size) {
            return Err(format!("the disk has {size} sectors, may have {:?}", self.sizes));
        }
        let exact = killed && self.setup.mode != Mode::Writeback;
        let lists = if exact { &self.current } else { &self.sets };
        for (sector, (tag, may)) in tags.iter().zip(lists).enumerate() {
            if !may.contains(tag) && !may.contains(&UNKNOWN) {
                return Err(format!("sector {sector} reads {tag:#x}, may be {may:x?}"));
            }
        }
        Ok(())
    }

    /// Whether the running disk reads as it must.
    pub fn check_live(&self, tags: &[u32]) -> Result<(), String> {
        for (sector, (tag, may)) in tags.iter().zip(&self.current).enumerate() {
            if !may.contains(tag) {
                return Err(format!("live: sector {sector} reads {tag:#x}, must be {may:x?}"));
            }
        }
        Ok(())
    }
}
