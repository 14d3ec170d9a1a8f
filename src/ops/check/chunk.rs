//! The counts of one piece of the image file: a few runs of equal counts, or an array in the layout of refcount
//! blocks when there are too many of them. Most files are long runs of ones, which cost next to nothing so.

use super::{no_memory, zeroed};
use crate::codec::is_zero;
use crate::error::Result;
use crate::format::refcount;

/// Most runs; one more and they become an array. Their memory is a sixtieth of the smallest array's.
const MAX_RUNS: usize = 64;

/// Counts `[from, to)`, all of them `count`, which is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    from: u32,
    to: u32,
    count: u64,
}

/// Indices are inside the chunk, below 2^32; a count fits its width.
pub(super) enum Chunk {
    /// In order, apart, and no two neighbours could be one.
    Runs(Vec<Run>),
    /// All counts.
    Array(Box<[u8]>),
}

impl Chunk {
    /// A chunk without references.
    pub fn empty() -> Chunk {
        Chunk::Runs(Vec::new())
    }

    /// Count `index`.
    pub fn get(&self, order: u32, index: u64) -> u64 {
        match self {
            Chunk::Array(bytes) => refcount::get(bytes, order, index),
            Chunk::Runs(runs) => {
                let after = runs.partition_point(|run| u64::from(run.to) <= index);
                runs.get(after).filter(|run| u64::from(run.from) <= index).map_or(0, |run| run.count)
            }
        }
    }

    /// Adds `amount` to each count of `[from, to)` and answers the largest of them now; `None`, and nothing has
    /// changed: one would exceed `max`.
    pub fn add(&mut self, shape: Shape, from: u64, to: u64, amount: u64) -> Result<Option<u64>> {
        if amount <= shape.max() && self.insert(from, to, amount) {
            return Ok(Some(amount));
        }
        let bytes = self.array(shape)?;
        let (_, most) = refcount::bounds(bytes, shape.order, from, to);
        if amount > shape.max() - most {
            return Ok(None);
        }
        refcount::shift(bytes, shape.order, from, to, amount as i64);
        Ok(Some(most + amount))
    }

    /// Makes a run of counts that are 0 so far. `false`: they are not, or there are too many runs.
    fn insert(&mut self, from: u64, to: u64, count: u64) -> bool {
        let Chunk::Runs(runs) = self else { return false };
        let new = Run { from: from as u32, to: to as u32, count };
        let at = match runs.last() {
            Some(last) if last.to > new.from => runs.partition_point(|run| run.to <= new.from),
            _ => runs.len(),
        };
        if runs.get(at).is_some_and(|next| next.from < new.to) {
            return false;
        }
        let joins_next = runs.get(at).is_some_and(|next| next.from == new.to && next.count == count);
        let joins_last = at > 0 && runs[at - 1].to == new.from && runs[at - 1].count == count;
        match (joins_last, joins_next) {
            (true, true) => {
                runs[at - 1].to = runs[at].to;
                runs.remove(at);
            }
            (true, false) => runs[at - 1].to = new.to,
            (false, true) => runs[at].from = new.from,
            (false, false) if runs.len() == MAX_RUNS => return false,
            (false, false) => runs.insert(at, new),
        }
        true
    }

    /// Sets count `index`.
    pub fn set(&mut self, shape: Shape, index: u64, count: u64) -> Result<()> {
        if self.get(shape.order, index) == count || (count > 0 && self.insert(index, index + 1, count)) {
            return Ok(());
        }
        refcount::set(self.array(shape)?, shape.order, index, count);
        Ok(())
    }

    /// All counts as an array, which they are from now on.
    fn array(&mut self, shape: Shape) -> Result<&mut [u8]> {
        if let Chunk::Runs(_) = self {
            let mut bytes = zeroed(shape.bytes as u64)?;
            self.render(shape.order, 0, &mut bytes);
            *self = Chunk::Array(bytes.into_boxed_slice());
        }
        match self {
            Chunk::Array(bytes) => Ok(bytes),
            Chunk::Runs(_) => Err(no_memory()),
        }
    }

    /// The runs inside `[from, to)`, as indices from `from` on.
    fn runs_in(runs: &[Run], from: u64, to: u64) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let first = runs.partition_point(move |run| u64::from(run.to) <= from);
        let inside = runs[first..].iter().take_while(move |run| u64::from(run.from) < to);
        inside.map(move |run| {
            (u64::from(run.from).max(from) - from, u64::from(run.to).min(to) - from, run.count)
        })
    }

    /// Writes the counts from index `from` on into `block`, as many as it holds.
    pub fn render(&self, order: u32, from: u64, block: &mut [u8]) {
        match self {
            Chunk::Array(bytes) => {
                let at = refcount::byte_of(order, from) as usize;
                block.copy_from_slice(&bytes[at..at + block.len()]);
            }
            Chunk::Runs(runs) => {
                block.fill(0);
                let counts = (block.len() as u64 * 8) >> order;
                for (start, end, count) in Self::runs_in(runs, from, from + counts) {
                    refcount::shift(block, order, start, end, count as i64);
                }
            }
        }
    }

    /// Whether `block` holds the counts from index `from` on.
    pub fn is_same(&self, order: u32, from: u64, block: &[u8]) -> bool {
        let counts = (block.len() as u64 * 8) >> order;
        match self {
            Chunk::Array(bytes) => {
                let at = refcount::byte_of(order, from) as usize;
                bytes[at..at + block.len()] == *block
            }
            Chunk::Runs(runs) => {
                let all = |start, end, count| {
                    start == end || refcount::bounds(block, order, start, end) == (count, count)
                };
                let mut at = 0;
                for (start, end, count) in Self::runs_in(runs, from, from + counts) {
                    if !all(at, start, 0) || !all(start, end, count) {
                        return false;
                    }
                    at = end;
                }
                all(at, counts, 0)
            }
        }
    }

    /// The first count at or after `index` that is 0; the end of the chunk when there is none.
    pub fn next_zero(&self, shape: Shape, index: u64) -> u64 {
        let end = 1 << shape.bits();
        match self {
            Chunk::Array(bytes) => {
                (index..end).find(|i| refcount::get(bytes, shape.order, *i) == 0).unwrap_or(end)
            }
            Chunk::Runs(runs) => {
                let after = runs.partition_point(|run| u64::from(run.to) <= index);
                runs[after..].iter().fold(index, |at, run| match u64::from(run.from) <= at {
                    true => u64::from(run.to),
                    false => at,
                })
            }
        }
    }

    /// Whether all `counts` counts from index `from` on are 0.
    pub fn is_zero(&self, order: u32, from: u64, counts: u64) -> bool {
        match self {
            Chunk::Array(bytes) => {
                let at = |index| refcount::byte_of(order, index) as usize;
                is_zero(&bytes[at(from)..at(from + counts)])
            }
            Chunk::Runs(runs) => Self::runs_in(runs, from, from + counts).next().is_none(),
        }
    }
}

/// What all chunks of an image have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// log2 of the width of a count in bits.
    pub order: u32,
    /// Bytes of an array.
    pub bytes: usize,
}

impl Shape {
    /// log2 of the counts in one chunk.
    pub fn bits(self) -> u32 {
        self.bytes.trailing_zeros() + 3 - self.order
    }

    /// Largest count that fits.
    pub fn max(self) -> u64 {
        u64::MAX >> (64 - (1 << self.order))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator: the low bits of a linear congruence are poor, so the high ones are given.
    fn next(state: &mut u64, below: u64) -> u64 {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*state >> 33) % below
    }

    #[test]
    fn runs_and_arrays_agree_with_a_list_of_counts() {
        let mut grew = 0;
        for order in 0..=6 {
            let shape = Shape { order, bytes: 512 };
            let counts = 1u64 << shape.bits();
            for seed in 0..40 {
                let mut state = seed;
                let (mut chunk, mut model) = (Chunk::empty(), vec![0u64; counts as usize]);
                for _ in 0..80 {
                    let from = next(&mut state, counts);
                    let to = (from + 1 + next(&mut state, counts / 16)).min(counts);
                    let range = from as usize..to as usize;
                    if next(&mut state, 8) == 0 {
                        let value = next(&mut state, 3).min(shape.max());
                        chunk.set(shape, from, value).unwrap();
                        model[range.start] = value;
                        continue;
                    }
                    let fits = model[range.clone()].iter().all(|c| *c < shape.max());
                    let most = chunk.add(shape, from, to, 1).unwrap();
                    if fits {
                        model[range.clone()].iter_mut().for_each(|c| *c += 1);
                        assert_eq!(most, model[range].iter().max().copied());
                    } else {
                        assert_eq!(most, None);
                    }
                }
                grew += u32::from(matches!(chunk, Chunk::Array(_)));
                compare(shape, &chunk, &model);
            }
        }
        assert!(grew > 0);
    }

    fn compare(shape: Shape, chunk: &Chunk, model: &[u64]) {
        let order = shape.order;
        let half = model.len() / 2;
        for (from, part) in [(0, model), (0, &model[..half]), (half, &model[half..])] {
            let mut block = vec![0; (part.len() << order) / 8];
            (0..).zip(part).for_each(|(i, c)| refcount::set(&mut block, order, i, *c));
            let mut rendered = vec![0xff; block.len()];
            chunk.render(order, from as u64, &mut rendered);
            assert_eq!(rendered, block, "order {order}");
            assert!(chunk.is_same(order, from as u64, &block));
            assert_eq!(chunk.is_zero(order, from as u64, part.len() as u64), part.iter().all(|c| *c == 0));
            for (i, count) in (0..).zip(part) {
                let at = from as u64 + i;
                assert_eq!(chunk.get(order, at), *count);
                assert_eq!(
                    chunk.next_zero(shape, at),
                    model
                        .iter()
                        .skip(at as usize)
                        .position(|c| *c == 0)
                        .map_or(model.len() as u64, |more| at + more as u64)
                );
                refcount::set(&mut block, order, i, u64::from(*count == 0));
                assert!(!chunk.is_same(order, from as u64, &block), "order {order} index {i}");
                refcount::set(&mut block, order, i, *count);
            }
        }
    }

    #[test]
    fn neighbours_with_one_count_are_one_run() {
        let shape = Shape { order: 4, bytes: 512 };
        let mut chunk = Chunk::empty();
        for (from, to) in [(0, 3), (10, 20), (4, 10), (3, 4)] {
            assert_eq!(chunk.add(shape, from, to, 1).unwrap(), Some(1));
        }
        assert!(matches!(&chunk, Chunk::Runs(runs) if *runs == [Run { from: 0, to: 20, count: 1 }]));
        for index in 0..MAX_RUNS as u64 {
            chunk.add(shape, 21 + 2 * index, 22 + 2 * index, 1).unwrap();
        }
        assert!(matches!(chunk, Chunk::Array(_)));
    }
}
