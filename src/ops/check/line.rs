//! One message of a kind that may come millions of times: `format!` takes several times as long as what is below.

/// Longest message, bytes: three numbers of 20 digits and the words around them.
const LINE_BYTES: usize = 120;

/// A short text that is put together from words and numbers.
pub(super) struct Line {
    bytes: [u8; LINE_BYTES],
    used: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line { bytes: [0; LINE_BYTES], used: 0 }
    }
}

impl Line {
    /// Starts anew.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Adds a word. What does not fit is a mistake of the caller's.
    pub fn push(&mut self, word: &[u8]) {
        self.bytes[self.used..self.used + word.len()].copy_from_slice(word);
        self.used += word.len();
    }

    /// Adds a number in decimal.
    pub fn push_number(&mut self, number: u64) {
        let digits = number.checked_ilog10().map_or(1, |log| log as usize + 1);
        let mut rest = number;
        for place in self.bytes[self.used..self.used + digits].iter_mut().rev() {
            *place = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.used += digits;
    }

    /// The text so far.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.used]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_standard_library() {
        let mut line = Line::default();
        for number in [0, 1, 9, 10, 99, 100, 1_234_567_890, u64::MAX] {
            line.clear();
            line.push(b"Repairing cluster ");
            line.push_number(number);
            assert_eq!(line.text(), format!("Repairing cluster {number}"));
        }
    }
}
