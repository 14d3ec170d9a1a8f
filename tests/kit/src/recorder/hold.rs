//! Calls that are parked until somebody lets them go.

use super::{Kind, Recorder, State, ACTOR};
use qcow2::testing::storage::Purpose;
use std::sync::MutexGuard;
use std::time::Duration;

pub(super) struct Hold {
    id: usize,
    wanted: Wanted,
    /// Wanted calls that pass before one is parked.
    skip: u64,
    /// Parked when the call is done, not before.
    after: bool,
    taken: bool,
    released: bool,
}

/// Which calls a hold is for.
#[derive(Clone, Copy)]
enum Wanted {
    Calls(Kind, Option<Purpose>),
    /// Of one actor; writes of one purpose, if given.
    Actor(u32, Option<Purpose>),
}

impl Hold {
    fn wants(&self, kind: Kind, purpose: Option<Purpose>, after: bool) -> bool {
        let wanted = match self.wanted {
            Wanted::Calls(k, p) => k == kind && p.is_none_or(|p| Some(p) == purpose),
            Wanted::Actor(actor, p) => {
                ACTOR.get() == actor && p.is_none_or(|p| kind == Kind::Write && Some(p) == purpose)
            }
        };
        !self.taken && self.after == after && wanted
    }
}

impl Recorder {
    /// Parks the next call of `kind` (with `purpose`, if given).
    pub fn hold(&self, kind: Kind, purpose: Option<Purpose>) -> usize {
        self.add_hold(Wanted::Calls(kind, purpose), 0, false)
    }

    /// Parks call number `call` (from 0) that `actor` makes, whatever it is, or its write number `call` with
    /// this purpose: before it takes effect, or after.
    pub fn hold_call(&self, actor: u32, purpose: Option<Purpose>, call: u64, after: bool) -> usize {
        self.add_hold(Wanted::Actor(actor, purpose), call, after)
    }

    fn add_hold(&self, wanted: Wanted, skip: u64, after: bool) -> usize {
        let mut state = self.lock();
        let id = state.holds.len();
        state.holds.push(Hold { id, wanted, skip, after, taken: false, released: false });
        id
    }

    /// Whether the call of hold `id` is or was parked.
    pub fn is_parked(&self, id: usize) -> bool {
        self.lock().holds[id].taken
    }

    /// Waits until the call of hold `id` is parked; false after `patience`.
    pub fn wait_parked(&self, id: usize, patience: Duration) -> bool {
        let state = self.lock();
        let (state, _) = self.moved.wait_timeout_while(state, patience, |s| !s.holds[id].taken).unwrap();
        state.holds[id].taken
    }

    pub fn release(&self, id: usize) {
        self.lock().holds[id].released = true;
        self.moved.notify_all();
    }

    pub(super) fn park<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        kind: Kind,
        purpose: Option<Purpose>,
        after: bool,
    ) -> MutexGuard<'a, State> {
        let mut parked = None;
        for hold in state.holds.iter_mut().filter(|h| h.wants(kind, purpose, after)) {
            if hold.skip > 0 {
                hold.skip -= 1;
                continue;
            }
            hold.taken = true;
            parked = Some(hold.id);
            break;
        }
        let Some(id) = parked else { return state };
        self.moved.notify_all();
        self.moved.wait_while(state, |s| !s.holds[id].released).unwrap()
    }

    /// A call is done.
    pub(super) fn leave(&self, state: MutexGuard<'_, State>, kind: Kind, purpose: Option<Purpose>) {
        drop(self.park(state, kind, purpose, true));
    }
}
