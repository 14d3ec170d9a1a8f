//! A bit for each sector or entry of a page. Those of a small page, of which there are many, take no memory of their own.

/// Bits, all clear at first.
#[derive(Default)]
pub(super) struct Bits {
    first: u64,
    rest: Box<[u64]>,
}

impl Bits {
    pub(super) fn new(count: usize) -> Bits {
        Bits { first: 0, rest: vec![0; count.div_ceil(64).saturating_sub(1)].into() }
    }

    /// Has at least `count` bits from now on, which are clear where there were fewer; called while none is set.
    pub(super) fn make_room(&mut self, count: usize) {
        if self.rest.len() + 1 < count.div_ceil(64) {
            *self = Bits::new(count);
        }
    }

    fn word(&self, index: usize) -> Option<u64> {
        match index {
            0 => Some(self.first),
            _ => self.rest.get(index - 1).copied(),
        }
    }

    pub(super) fn has(&self, bit: usize) -> bool {
        self.word(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 != 0)
    }

    /// Sets a bit; whether it was clear.
    pub(super) fn set(&mut self, bit: usize) -> bool {
        let word = match bit / 64 {
            0 => &mut self.first,
            index => &mut self.rest[index - 1],
        };
        let was_clear = *word >> (bit % 64) & 1 == 0;
        *word |= 1 << (bit % 64);
        was_clear
    }

    pub(super) fn clear(&mut self) {
        self.first = 0;
        self.rest.fill(0);
    }

    /// The first bit at or after `from` that is set.
    pub(super) fn next(&self, from: usize) -> Option<usize> {
        let word = self.word(from / 64)? >> (from % 64);
        if word != 0 {
            return Some(from + word.trailing_zeros() as usize);
        }
        let index = (from / 64..self.rest.len()).find(|index| self.rest[*index] != 0)?;
        Some((index + 1) * 64 + self.rest[index].trailing_zeros() as usize)
    }

    /// All bits that are set, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let bit = self.next(from)?;
            from = bit + 1;
            Some(bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_where_they_were_set() {
        for count in [1, 63, 64, 65, 128, 129, 500] {
            let mut bits = Bits::new(count);
            assert_eq!(bits.iter().count(), 0);
            let wanted: Vec<usize> =
                (0..count).filter(|bit| bit * bit % 7 < 3 || *bit == count - 1).collect();
            wanted.iter().for_each(|bit| assert!(bits.set(*bit) && !bits.set(*bit)));
            assert_eq!(bits.iter().collect::<Vec<_>>(), wanted);
            assert!((0..count + 200).all(|bit| bits.has(bit) == wanted.contains(&bit)));
            assert_eq!(bits.next(count), None);
            bits.clear();
            assert_eq!(bits.next(0), None);
        }
    }
}
