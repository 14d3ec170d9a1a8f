//! Changes of entries that were nothing before, in memory until what they wait for is durable: a bit each, for a guest
//! that never flushes makes a million of them.

use super::bits::Bits;
use super::DirtyPages;
use crate::storage::medium::{Medium, Ticket};

/// Those that wait for one ticket.
#[derive(Default)]
struct Group {
    after: Ticket,
    entries: Bits,
    /// How many.
    count: u64,
}

impl Group {
    fn is_past(&self, medium: &Medium) -> bool {
        self.count > 0 && medium.is_past(self.after)
    }

    #[inline]
    fn add(&mut self, entry: usize) -> bool {
        let new = self.entries.set(entry);
        self.count += u64::from(new);
        new
    }

    /// Hands every entry to `each`, and is empty then.
    fn drain(&mut self, list: &DirtyPages, each: &mut dyn FnMut(usize)) {
        self.entries.iter().for_each(each);
        list.remove_waiting(self.after, self.count);
        self.entries.clear();
        self.count = 0;
    }
}

/// All of a page, by ticket: mostly one group, and one more for each sync that is under way.
#[derive(Default)]
pub(super) struct Newborn {
    /// Keeps its memory while it is empty.
    one: Group,
    more: Vec<Group>,
}

impl Newborn {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.one.count == 0 && self.more.is_empty()
    }

    /// What the change of an entry waits for, if it is here.
    #[inline]
    pub(super) fn ticket_of(&self, entry: usize) -> Option<Ticket> {
        match self.is_empty() {
            true => None,
            false => self.groups().find(|g| g.entries.has(entry)).map(|g| g.after),
        }
    }

    /// Adds a change of an entry of a page of `entry_count`; `false`: it has one already.
    pub(super) fn add(&mut self, after: Ticket, entry: usize, entry_count: usize) -> bool {
        if self.more.iter().any(|g| g.entries.has(entry)) {
            return false;
        }
        if self.one.count == 0 {
            self.one.after = after;
            self.one.entries.make_room(entry_count);
        }
        if self.one.after == after {
            return self.one.add(entry);
        }
        if self.one.entries.has(entry) {
            return false;
        }
        match self.more.iter_mut().find(|g| g.after == after) {
            Some(group) => group.add(entry),
            None => {
                let mut group = Group { after, entries: Bits::new(entry_count), count: 0 };
                group.add(entry);
                self.more.push(group);
                true
            }
        }
    }

    fn groups(&self) -> impl Iterator<Item = &Group> {
        std::iter::once(&self.one).chain(&self.more)
    }

    pub(super) fn any_past(&self, medium: &Medium) -> bool {
        self.groups().any(|g| g.is_past(medium))
    }

    /// Hands the entries whose ticket is past to `each`; they are here no more.
    pub(super) fn take_past(&mut self, medium: &Medium, list: &DirtyPages, mut each: impl FnMut(usize)) {
        if self.one.is_past(medium) {
            self.one.drain(list, &mut each);
        }
        self.more.retain_mut(|group| {
            let past = group.is_past(medium);
            if past {
                group.drain(list, &mut each);
            }
            !past
        });
    }

    /// Forgets all of them.
    pub(super) fn abandon(&mut self, list: &DirtyPages) {
        let Newborn { one, more } = std::mem::take(self);
        for mut group in std::iter::once(one).chain(more).filter(|g| g.count > 0) {
            group.drain(list, &mut |_| {});
        }
    }

    /// The entries, of which the file may have nothing yet.
    pub(super) fn entries(&self) -> impl Iterator<Item = usize> + '_ {
        self.groups().filter(|g| g.count > 0).flat_map(|g| g.entries.iter())
    }
}
