//! Tests on images in memory: every kind of reference scrambled and repaired, hostile values, crashes.

mod build;
mod crash;
mod hostile;
mod kinds;

use super::{check, in_words, CheckOptions, CheckReport, MessageKind};
use crate::error::Result;
use crate::storage::memory::Memory;
use crate::storage::Storage;

const LOOK: CheckOptions = CheckOptions { repair_leaks: false, repair_errors: false, workers: 1 };
const LEAKS: CheckOptions = CheckOptions { repair_leaks: true, repair_errors: false, workers: 1 };
const ALL: CheckOptions = CheckOptions { repair_leaks: true, repair_errors: true, workers: 1 };

/// One pass over a storage, with its messages.
fn run(storage: &dyn Storage, options: CheckOptions) -> (Result<CheckReport>, Vec<String>) {
    let mut messages = Vec::new();
    let mut last = 0;
    let report = check(
        storage,
        options,
        Some(&mut in_words(&mut |_: MessageKind, text: &str| messages.push(text.to_owned()))),
        &mut |done, total| {
            assert!(done >= last && done <= total, "progress {done} of {total} after {last}");
            last = done;
            true
        },
    );
    (report, messages)
}

/// One pass over bytes; answers the bytes afterwards too. Threads that help change nothing.
fn run_bytes(bytes: &[u8], options: CheckOptions) -> (Result<CheckReport>, Vec<String>, Vec<u8>) {
    let once = |options| {
        let storage = Memory::new(bytes.to_vec());
        let (report, messages) = run(&storage, options);
        (report, messages, storage.contents())
    };
    let (alone, helped) = (once(options), once(CheckOptions { workers: 3, ..options }));
    assert_eq!(alone.1, helped.1);
    assert!(alone.2 == helped.2, "with more threads the image is another one");
    assert_eq!(format!("{:?}", alone.0), format!("{:?}", helped.0));
    alone
}

fn assert_clean(bytes: &[u8], why: &str) {
    let (report, messages, after) = run_bytes(bytes, LOOK);
    let report = report.unwrap();
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0), "{why}: {messages:#?}");
    assert!(messages.is_empty(), "{why}: {messages:#?}");
    assert!(after == bytes, "{why}: a look changed the image");
}

/// Splitmix64: tests need no better, and print the seed that replays them.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// `QCOW2_TEST_SEED`, or a fixed one; printed so that a failure can be replayed.
fn seed() -> u64 {
    let seed = std::env::var("QCOW2_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_260_101);
    println!("QCOW2_TEST_SEED={seed}");
    seed
}
