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
