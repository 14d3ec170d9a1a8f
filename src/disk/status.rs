//! Block status: what the first extent of a range is.

/// The first extent of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Bytes from the start of the range that are alike.
    pub length: u64,
    /// Stored somewhere.
    pub data: bool,
    /// Reads as zeroes.
    pub zero: bool,
    /// The layer at `depth` decides; otherwise no layer has the range.
    pub allocated: bool,
    /// Inside compressed clusters.
    pub compressed: bool,
    /// Offset in the file of that layer, or in its data file.
    pub host: Option<u64>,
    /// `host` is in an external data file.
    pub in_data_file: bool,
    /// 0 this disk, 1 its backing disk, ...
    pub depth: u32,
}

impl Status {
    /// Whether `next`, which begins where this one ends, says the same.
    pub(crate) fn continues(&self, next: &Status) -> bool {
        let alike = (self.data, self.zero, self.allocated, self.compressed, self.depth)
            == (next.data, next.zero, next.allocated, next.compressed, next.depth);
        let host = self.host.map(|h| h + self.length);
        alike && host == next.host
    }

    /// What it says of the range without its first `bytes` bytes, of which there are fewer than `length`.
    pub(crate) fn after(&self, bytes: u64) -> Status {
        Status { length: self.length - bytes, host: self.host.map(|h| h + bytes), ..*self }
    }
}
