//! The test kit: a storage double that records, fails and parks; operation lists with what each sector may
//! hold; power-cut states; an independent parser with the ordering rules R1 to R7 on every trace.
//!
//! Every random test takes its seed from the commit, or from `QCOW2_TEST_SEED`, and prints one line that
//! replays a failure. `QCOW2_TEST_EFFORT` multiplies the number of cases (default 1).
/// Prints a line that the test runner does not swallow: what a run has covered is part of its result.
#[macro_export]
macro_rules! tell {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}
pub mod bitmaps;
pub mod counting;
pub mod cut;
pub mod encrypted;
pub mod expect;
pub mod history;
pub mod images;
pub mod ops;
pub mod oracle;
pub mod overlay;
mod ownership;
pub mod pair;
pub mod race;
pub mod rebase;
pub mod recorder;
pub mod rng;
pub mod rows;
pub mod rules;
pub mod runner;
pub mod setup;
pub mod split;
pub mod stock;
pub mod sweep;

/// Bytes that the medium writes whole or not at all.
pub const SECTOR: u64 = 512;
