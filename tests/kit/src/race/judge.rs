//! Whether what was read, is left, and was promised fits some order of the operations.

use super::{Files, Ran, Scene, Stage, SHRUNK};
use crate::recorder::Recorder;
use crate::rows::{Gives, Promise};
use crate::setup::{BACKING_TAG, BAD_TAG};
use crate::sweep::check_clean;

impl Scene {
    pub(super) fn judge(&self, stage: Stage, ran: &[Ran]) -> Result<(), String> {
        let Stage { handle, recorder, base, .. } = stage;
        for (index, part) in ran.iter().enumerate() {
            self.judge_part(ran, index, &base).map_err(|e| format!("{}: {e}", part.row.name))?;
        }
        let all = (1 << ran.len()) - 1;
        let tags = self.read(&handle)?;
        let places = (0..).zip(tags.iter().copied());
        self.fits(ran, all, all, false, places, &[&self.before])?;
        // The process dies: what is in the file must be whole, with whatever values were on their way.
        let now = || self.recover(Files::of(&recorder, Recorder::contents), base.contents());
        for killed in now().map_err(|e| format!("killed: {e}"))? {
            let fits = self.fits(ran, 0, all, true, (0..).zip(killed), &[&self.before, &self.initial]);
            fits.map_err(|e| format!("killed: {e}"))?;
        }
        handle.close().map_err(|e| format!("close: {e}"))?;
        let leaks = check_clean(&*recorder)?;
        let same = now()?.iter().all(|again| *again == tags);
        if !same || leaks != 0 {
            return Err(format!("after closing: {leaks} leaks, the same contents: {same}"));
        }
        recorder.judge()
    }

    /// What a part has seen, and what it left on the medium when it returned.
    fn judge_part(&self, ran: &[Ran], index: usize, base: &Recorder) -> Result<(), String> {
        let part = &ran[index];
        let (mut before, mut beside) = (0u32, 0u32);
        for (i, other) in ran.iter().enumerate() {
            before |= u32::from(other.ended < part.began) << i;
            beside |= u32::from(other.began < part.ended) << i;
        }
        self.fits(ran, before, beside, false, part.seen.iter().copied(), &[&self.before])?;
        let Some(view) = part.promised.clone().filter(|_| !part.refused) else { return Ok(()) };
        let told = |e: String| format!("what was promised when it returned: {e}");
        let own = self.promise(part.row) == Promise::Own;
        let inside = |s: &u64| part.row.ranges.iter().any(|(f, n)| (*f..f + n).contains(s));
        let starts = [&self.before[..], &self.initial[..]];
        let starts = if own { &starts[..] } else { &starts[..1] };
        for tags in self.recover(view, base.contents()).map_err(told)? {
            let places = (0..).zip(tags).filter(|(s, _)| !own || inside(s));
            self.fits(ran, before | 1 << index, beside, true, places, starts).map_err(told)?;
        }
        Ok(())
    }

    /// Whether the sectors can hold this after all of the parts `must`, some of `may`, in some order.
    /// `crash`: those that are not in `must` may be half done.
    fn fits(
        &self,
        ran: &[Ran],
        must: u32,
        may: u32,
        crash: bool,
        places: impl Iterator<Item = (u64, u32)>,
        starts: &[&[u32]],
    ) -> Result<(), String> {
        let orders = orders(ran, must, may);
        let shrinking = |i: &usize| (may & !must) >> i & 1 != 0 && ran[*i].row.gives == Gives::Shrunk;
        let half_shrunk = crash && (0..ran.len()).any(|i| shrinking(&i));
        for (sector, tag) in places {
            let mut values: Vec<u32> = starts.iter().map(|s| s[sector as usize]).collect();
            if values.contains(&tag) && !ran.iter().any(|r| touches(r, sector)) {
                continue;
            }
            values = orders
                .iter()
                .flat_map(|o| outcomes(ran, o, (sector, self.initial[sector as usize]), values.clone()))
                .collect();
            if half_shrunk && sector >= SHRUNK {
                // Dropped entries show what is below until the size has changed.
                values.push(self.setup.below(sector));
            }
            if tag == BAD_TAG || !values.contains(&tag) {
                return Err(format!("sector {sector} reads {tag:#x}, may be {values:x?}"));
            }
        }
        Ok(())
    }
}

fn touches(part: &Ran, sector: u64) -> bool {
    if part.refused && !matches!(part.row.gives, Gives::Tag | Gives::Zero | Gives::MayZero) {
        return false;
    }
    part.row.ranges.iter().any(|(first, count)| (*first..first + count).contains(&sector))
        || part.row.gives == Gives::Shrunk && sector >= SHRUNK
        || matches!(part.row.gives, Gives::Initial | Gives::Empty | Gives::Unbacked)
}

/// Every order of the parts `must` and of some of `may` that agrees with when they began and ended.
fn orders(ran: &[Ran], must: u32, may: u32) -> Vec<Vec<usize>> {
    let mut found = Vec::new();
    let mut open = vec![Vec::new()];
    while let Some(order) = open.pop() {
        let used = order.iter().fold(0u32, |bits, i: &usize| bits | 1 << i);
        for next in (0..ran.len()).filter(|i| (must | may) & !used & 1 << i != 0) {
            if order.iter().all(|i| ran[*i].began < ran[next].ended) {
                open.push([&order[..], &[next]].concat());
            }
        }
        if must & !used == 0 {
            found.push(order);
        }
    }
    found
}

fn outcomes(ran: &[Ran], order: &[usize], (sector, initial): (u64, u32), mut values: Vec<u32>) -> Vec<u32> {
    for (place, part) in order.iter().map(|i| &ran[*i]).enumerate().filter(|(_, p)| touches(p, sector)) {
        match part.row.gives {
            Gives::Nothing => {}
            // Refused in the middle.
            Gives::Tag if part.refused => values.push(part.tag),
            Gives::Tag => values = vec![part.tag],
            Gives::Zero if part.refused => values.push(0),
            Gives::Zero => values = vec![0],
            Gives::MayZero => values.push(0),
            Gives::Shrunk => values = vec![0],
            Gives::Initial => values = vec![initial],
            Gives::Empty => values = vec![0],
            Gives::Unbacked if place == 0 => {
                values.iter_mut().filter(|v| **v == BACKING_TAG).for_each(|v| *v = 0);
            }
            // What came before may have copied it into the image, or the image's own out of it.
            Gives::Unbacked => values.push(0),
        }
    }
    values
}
