//! One line of text, made of words and numbers: there may be one for each of a million clusters, and `format!` takes
//! several times as long.

use std::ffi::CStr;
use std::ops::Range;

/// Digits of the largest number.
const MAX_DIGITS: usize = 20;
/// "00" to "99".
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut number = 0;
    while number < 100 {
        pairs[number] = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
        number += 1;
    }
    pairs
};

/// A text that is put together piece by piece, in memory that the next one uses again. It is ended before it is shown.
#[derive(Default)]
pub(super) struct Line {
    bytes: Vec<u8>,
}

impl Line {
    /// Starts anew.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Adds words.
    pub fn push(&mut self, words: &str) {
        self.bytes.extend_from_slice(words.as_bytes());
    }

    /// Adds a number in decimal; where its digits are.
    pub fn push_decimal(&mut self, number: u64) -> Range<usize> {
        let start = self.bytes.len();
        let digits = number.checked_ilog10().map_or(1, |log| log as usize + 1);
        self.bytes.resize(start + digits, b'0');
        self.put_decimal(start..start + digits, number);
        start..start + digits
    }

    /// Puts a number where another one of as many digits was; `false`: it has not as many, and the text is spoilt.
    pub fn put_decimal(&mut self, digits: Range<usize>, number: u64) -> bool {
        let places = &mut self.bytes[digits];
        let (mut at, mut rest) = (places.len(), number);
        while at >= 2 {
            places[at - 2..at].copy_from_slice(&PAIRS[(rest % 100) as usize]);
            rest /= 100;
            at -= 2;
        }
        if at == 1 {
            places[0] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        rest == 0 && (places.len() == 1 || places[0] != b'0')
    }

    /// Adds a number in hexadecimal.
    pub fn push_hex(&mut self, number: u64) {
        let mut digits = [0; MAX_DIGITS];
        let (mut first, mut rest) = (MAX_DIGITS, number);
        loop {
            first -= 1;
            digits[first] = b"0123456789abcdef"[(rest % 16) as usize];
            rest /= 16;
            if rest == 0 {
                break;
            }
        }
        self.bytes.extend_from_slice(&digits[first..]);
    }

    /// Nothing more is added.
    pub fn end(&mut self) {
        self.bytes.push(0);
    }

    /// The text.
    pub fn text(&self) -> &CStr {
        CStr::from_bytes_with_nul(&self.bytes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: [u64; 13] = [0, 1, 9, 10, 15, 16, 99, 100, 255, 256, 1_234_567_890, 1 << 63, u64::MAX];

    #[test]
    fn numbers_are_those_of_the_standard_library() {
        let mut line = Line::default();
        for number in NUMBERS {
            line.clear();
            line.push("Repairing cluster ");
            line.push_decimal(number);
            line.push(" at 0x");
            line.push_hex(number);
            line.end();
            assert_eq!(line.text().to_str().unwrap(), format!("Repairing cluster {number} at {number:#x}"));
        }
    }

    #[test]
    fn a_number_takes_the_place_of_one_of_as_many_digits_only() {
        for old in NUMBERS {
            for new in NUMBERS {
                let mut line = Line::default();
                let digits = line.push_decimal(old);
                line.end();
                let fits = old.to_string().len() == new.to_string().len();
                assert_eq!(line.put_decimal(digits, new), fits, "{old} {new}");
                if fits {
                    assert_eq!(line.text().to_str().unwrap(), new.to_string());
                }
            }
        }
    }
}
