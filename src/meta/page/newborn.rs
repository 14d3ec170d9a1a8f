//! Changes of entries that were nothing before, in memory until what they wait for is durable: a bit each, for a guest
//! that never flushes makes a million of them.

use crate::storage::medium::{Medium, Ticket};

/// Those that wait for one ticket.
pub(super) struct Group {
    pub(super) after: Ticket,
    bits: Box<[u64]>,
    /// Bits that are set.
    pub(super) count: u64,
}

impl Group {
    fn has(&self, entry: usize) -> bool {
        self.bits[entry / 64] >> (entry % 64) & 1 != 0
    }

    /// The entries, in order.
    pub(super) fn entries(&self) -> impl Iterator<Item = usize> + '_ {
        self.bits.iter().enumerate().flat_map(|(word, bits)| {
            let mut rest = *bits;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
                rest &= rest - 1;
                Some(word * 64 + bit)
            })
        })
    }
}

/// All of a page, by ticket: as many groups as syncs are under way at once, and one.
#[derive(Default)]
pub(super) struct Newborn(Vec<Group>);

impl Newborn {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the change of an entry waits for, if it is here.
    pub(super) fn ticket_of(&self, entry: usize) -> Option<Ticket> {
        self.0.iter().find(|g| g.has(entry)).map(|g| g.after)
    }

    /// Adds a change of an entry that has none, of a page of `entry_count`.
    pub(super) fn add(&mut self, after: Ticket, entry: usize, entry_count: usize) {
        let at = self.0.iter().position(|g| g.after == after).unwrap_or_else(|| {
            self.0.push(Group { after, bits: vec![0; entry_count.div_ceil(64)].into(), count: 0 });
            self.0.len() - 1
        });
        let group = &mut self.0[at];
        group.bits[entry / 64] |= 1 << (entry % 64);
        group.count += 1;
    }

    /// Takes a group that waits no more.
    pub(super) fn take_past(&mut self, medium: &Medium) -> Option<Group> {
        let at = self.0.iter().position(|g| medium.is_past(g.after))?;
        Some(self.0.swap_remove(at))
    }

    pub(super) fn any_past(&self, medium: &Medium) -> bool {
        self.0.iter().any(|g| medium.is_past(g.after))
    }

    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Group> {
        std::mem::take(&mut self.0).into_iter()
    }

    /// The entries, of which the file may have nothing yet.
    pub(super) fn entries(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().flat_map(Group::entries)
    }
}
