//! Whether bytes are zero.

/// Bytes that are looked at one by one.
const HEAD_BYTES: usize = 16;

/// Whether all bytes are zero: the first ones are, and the others are equal to those before them, which the host compares
/// fast.
pub fn is_zero(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(HEAD_BYTES)];
    head.iter().all(|b| *b == 0) && bytes[head.len()..] == bytes[..bytes.len() - head.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_seen() {
        for length in 0..70 {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in 0..length {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {length}");
                bytes[at] = 0;
            }
        }
    }
}
