//! Changes of entries that were nothing before, in memory until what they wait for is durable: a bit each, for a guest
//! that never flushes makes a million of them.

use super::bits::Bits;
use crate::storage::medium::{Medium, Ticket};

/// Those that wait for one ticket.
pub(super) struct Group {
    pub(super) after: Ticket,
    pub(super) entries: Bits,
    /// How many.
    pub(super) count: u64,
}

/// All of a page, by ticket: mostly one group, and one more for each sync that is under way.
#[derive(Default)]
pub(super) struct Newborn {
    one: Option<Group>,
    more: Vec<Group>,
}

impl Newborn {
    pub(super) fn is_empty(&self) -> bool {
        self.one.is_none() && self.more.is_empty()
    }

    /// What the change of an entry waits for, if it is here.
    pub(super) fn ticket_of(&self, entry: usize) -> Option<Ticket> {
        self.groups().find(|g| g.entries.has(entry)).map(|g| g.after)
    }

    /// Adds a change of an entry that has none, of a page of `entry_count`.
    pub(super) fn add(&mut self, after: Ticket, entry: usize, entry_count: usize) {
        let group = match self.one.iter_mut().chain(&mut self.more).find(|g| g.after == after) {
            Some(group) => group,
            None => self.begin(Group { after, entries: Bits::new(entry_count), count: 0 }),
        };
        group.entries.set(entry);
        group.count += 1;
    }

    fn begin(&mut self, group: Group) -> &mut Group {
        if self.one.is_none() {
            return self.one.insert(group);
        }
        self.more.push(group);
        let last = self.more.len() - 1;
        &mut self.more[last]
    }

    fn groups(&self) -> impl Iterator<Item = &Group> {
        self.one.iter().chain(&self.more)
    }

    /// Takes a group that waits no more.
    pub(super) fn take_past(&mut self, medium: &Medium) -> Option<Group> {
        if let Some(group) = self.one.take_if(|g| medium.is_past(g.after)) {
            return Some(group);
        }
        let at = self.more.iter().position(|g| medium.is_past(g.after))?;
        Some(self.more.swap_remove(at))
    }

    pub(super) fn any_past(&self, medium: &Medium) -> bool {
        self.groups().any(|g| medium.is_past(g.after))
    }

    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Group> {
        let Newborn { one, more } = std::mem::take(self);
        one.into_iter().chain(more)
    }

    /// The entries, of which the file may have nothing yet.
    pub(super) fn entries(&self) -> impl Iterator<Item = usize> + '_ {
        self.groups().flat_map(|g| g.entries.iter())
    }
}
