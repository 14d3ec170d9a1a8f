//! One line of text, made of words and numbers: there may be one for each of a million clusters, and `format!` takes
//! several times as long.

/// A text that is put together piece by piece, in memory that the next one uses again.
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

    /// Adds a number in decimal.
    pub fn push_decimal(&mut self, number: u64) {
        let digits = number.checked_ilog10().map_or(1, |log| log as usize + 1);
        let mut rest = number;
        for place in self.room(digits).iter_mut().rev() {
            *place = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }

    /// Adds a number in hexadecimal.
    pub fn push_hex(&mut self, number: u64) {
        let digits = number.checked_ilog2().map_or(1, |log| log as usize / 4 + 1);
        let mut rest = number;
        for place in self.room(digits).iter_mut().rev() {
            *place = b"0123456789abcdef"[(rest % 16) as usize];
            rest /= 16;
        }
    }

    fn room(&mut self, bytes: usize) -> &mut [u8] {
        let used = self.bytes.len();
        self.bytes.resize(used + bytes, 0);
        &mut self.bytes[used..]
    }

    /// The text so far.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_standard_library() {
        let mut line = Line::default();
        for number in [0, 1, 9, 10, 15, 16, 99, 100, 255, 256, 1_234_567_890, 1 << 63, u64::MAX] {
            line.clear();
            line.push("Repairing cluster ");
            line.push_decimal(number);
            line.push(" at 0x");
            line.push_hex(number);
            assert_eq!(line.text(), format!("Repairing cluster {number} at {number:#x}"));
        }
    }
}
