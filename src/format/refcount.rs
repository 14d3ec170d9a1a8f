//! Counts inside a refcount block: 1 to 64 bits wide, big-endian above 8 bits, least significant bits first below.

/// Count `index` of `block`. `order` is log2 of the width in bits; the index must be inside the block.
pub fn get(block: &[u8], order: u32, index: u64) -> u64 {
    let index = index as usize;
    match order {
        0..=2 => {
            let width = 1usize << order;
            let per_byte = 8 / width;
            let shift = (index % per_byte) * width;
            u64::from(block[index / per_byte] >> shift) & ((1 << width) - 1)
        }
        3 => u64::from(block[index]),
        4 => u64::from(super::be16(block, index * 2)),
        5 => u64::from(super::be32(block, index * 4)),
        _ => super::be64(block, index * 8),
    }
}

/// Sets count `index` of `block`; `value` must fit.
pub fn set(block: &mut [u8], order: u32, index: u64, value: u64) {
    debug_assert!(order == 6 || value < 1 << (1 << order));
    let index = index as usize;
    match order {
        0..=2 => {
            let width = 1usize << order;
            let per_byte = 8 / width;
            let shift = (index % per_byte) * width;
            let mask = (((1u16 << width) - 1) as u8) << shift;
            let byte = &mut block[index / per_byte];
            *byte = (*byte & !mask) | ((value as u8) << shift);
        }
        3 => block[index] = value as u8,
        4 => block[index * 2..][..2].copy_from_slice(&(value as u16).to_be_bytes()),
        5 => block[index * 4..][..4].copy_from_slice(&(value as u32).to_be_bytes()),
        _ => block[index * 8..][..8].copy_from_slice(&value.to_be_bytes()),
    }
}

/// Least and largest of the counts `[from, to)` of `block`, which are not none.
pub fn bounds(block: &[u8], order: u32, from: u64, to: u64) -> (u64, u64) {
    fn of<const N: usize, T: Copy + Ord>(bytes: &[u8], zero: T, max: T, parse: fn([u8; N]) -> T) -> (T, T) {
        bytes.chunks_exact(N).fold((max, zero), |(least, most), raw| {
            let mut part = [0; N];
            part.copy_from_slice(raw);
            let count = parse(part);
            (least.min(count), most.max(count))
        })
    }
    debug_assert!(from < to);
    if order < 3 {
        let counts = (from..to).map(|index| get(block, order, index));
        return counts.fold((u64::MAX, 0), |(least, most), c| (least.min(c), most.max(c)));
    }
    let bytes = &block[byte_of(order, from) as usize..byte_of(order, to) as usize];
    match order {
        3 => widen(of(bytes, 0, u8::MAX, u8::from_be_bytes)),
        4 => widen(of(bytes, 0, u16::MAX, u16::from_be_bytes)),
        5 => widen(of(bytes, 0, u32::MAX, u32::from_be_bytes)),
        _ => of(bytes, 0, u64::MAX, u64::from_be_bytes),
    }
}

fn widen<T: Into<u64>>((least, most): (T, T)) -> (u64, u64) {
    (least.into(), most.into())
}

/// The first of the counts `[from, to)` of `block` that is 0.
pub fn first_zero(block: &[u8], order: u32, from: u64, to: u64) -> Option<u64> {
    /// Counts that are looked at together.
    const STEP: u64 = 256;
    // Who searches mostly knows where.
    if from < to && get(block, order, from) == 0 {
        return Some(from);
    }
    let mut at = from;
    while at < to {
        let end = to.min((at / STEP + 1) * STEP);
        if bounds(block, order, at, end).0 == 0 {
            return (at..end).find(|index| get(block, order, *index) == 0);
        }
        at = end;
    }
    None
}

/// Adds `change` to each of the counts `[from, to)` of `block`. The caller has looked at their bounds: all of
/// them fit afterwards.
pub fn shift(block: &mut [u8], order: u32, from: u64, to: u64, change: i64) {
    fn all<const N: usize>(bytes: &mut [u8], add: impl Fn([u8; N]) -> [u8; N]) {
        for raw in bytes.chunks_exact_mut(N) {
            let mut part = [0; N];
            part.copy_from_slice(raw);
            raw.copy_from_slice(&add(part));
        }
    }
    if order < 3 {
        for index in from..to {
            set(block, order, index, get(block, order, index).wrapping_add_signed(change));
        }
        return;
    }
    let bytes = &mut block[byte_of(order, from) as usize..byte_of(order, to) as usize];
    match order {
        3 => all(bytes, |b| u8::from_be_bytes(b).wrapping_add(change as u8).to_be_bytes()),
        4 => all(bytes, |b| u16::from_be_bytes(b).wrapping_add(change as u16).to_be_bytes()),
        5 => all(bytes, |b| u32::from_be_bytes(b).wrapping_add(change as u32).to_be_bytes()),
        _ => all(bytes, |b| u64::from_be_bytes(b).wrapping_add(change as u64).to_be_bytes()),
    }
}

/// Byte of the block that holds count `index`.
pub fn byte_of(order: u32, index: u64) -> u64 {
    (index << order) >> 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_keeps_its_neighbours() {
        for order in 0..=6 {
            let entries = (64 * 8) >> order;
            let max = if order == 6 { u64::MAX } else { (1 << (1 << order)) - 1 };
            let mut block = vec![0; 64];
            for i in 0..entries {
                set(&mut block, order, i, (i * 7 + 1) & max);
            }
            for i in 0..entries {
                assert_eq!(get(&block, order, i), (i * 7 + 1) & max, "order {order} index {i}");
                assert!(byte_of(order, i) < 64);
            }
        }
    }

    #[test]
    fn runs_agree_with_single_counts() {
        for order in 0..=6 {
            let entries = (64 * 8) >> order;
            let max = if order == 6 { u64::MAX } else { (1 << (1 << order)) - 1 };
            let mut block = vec![0; 64];
            for i in 0..entries {
                set(&mut block, order, i, ((i * 11 + 5) % 7).min(max));
            }
            for (from, to) in [(0, entries), (1, 2), (3, 7), (entries - 1, entries)] {
                let counts: Vec<u64> = (0..entries).map(|i| get(&block, order, i)).collect();
                let run = &counts[from as usize..to as usize];
                let zero = (from..to).find(|i| counts[*i as usize] == 0);
                assert_eq!(first_zero(&block, order, from, to), zero);
                let (least, most) = bounds(&block, order, from, to);
                assert_eq!(
                    (Some(&least), Some(&most)),
                    (run.iter().min(), run.iter().max()),
                    "order {order}"
                );
                for change in [1i64, -1] {
                    let fits = if change > 0 { most < max } else { least > 0 };
                    if !fits {
                        continue;
                    }
                    let mut shifted = block.clone();
                    shift(&mut shifted, order, from, to, change);
                    for i in 0..entries {
                        let moved = if (from..to).contains(&i) { change } else { 0 };
                        let wanted = counts[i as usize].wrapping_add_signed(moved);
                        assert_eq!(get(&shifted, order, i), wanted, "order {order} index {i}");
                    }
                }
            }
        }
    }

    #[test]
    fn bit_order_is_the_formats() {
        let mut block = vec![0; 8];
        set(&mut block, 0, 1, 1);
        assert_eq!(block[0], 2);
        set(&mut block, 2, 2, 0xa);
        assert_eq!(block[1], 0xa);
        set(&mut block, 4, 2, 0x102);
        assert_eq!(&block[4..6], &[1, 2]);
    }
}
