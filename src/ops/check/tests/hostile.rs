//! Images made to hurt: each byte of the metadata in turn, huge tables, pointers everywhere. Nothing may
//! panic, loop or ask for memory that the file does not warrant.

use super::build::{build, EXTENDED, SMALL};
use super::{run, run_bytes, seed, Random, ALL, LEAKS, LOOK};
use crate::error::ErrorKind;
use crate::format::be64;
use crate::storage::memory::Memory;
use crate::storage::{HostRun, Purpose, Storage, Traits};
use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Mutex;

/// Counts reads by purpose.
pub(super) struct Counting {
    inner: Memory,
    reads: Mutex<HashMap<Purpose, u64>>,
    /// Length that the storage claims; past the memory it is a hole.
    claims: Option<u64>,
}

impl Counting {
    pub fn new(inner: Memory) -> Counting {
        Counting { inner, reads: Mutex::new(HashMap::new()), claims: None }
    }

    pub fn reads_of(&self, purpose: Purpose) -> u64 {
        self.reads.lock().unwrap().get(&purpose).copied().unwrap_or(0)
    }
}

impl Storage for Counting {
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        *self.reads.lock().unwrap().entry(purpose).or_default() += 1;
        self.inner.read(purpose, offset, buffers)
    }
    fn write(&self, _: Purpose, _: u64, _: &[IoSlice<'_>]) -> io::Result<()> {
        panic!("a look must not write")
    }
    fn sync(&self) -> io::Result<()> {
        panic!("a look must not sync")
    }
    fn length(&self) -> io::Result<u64> {
        self.claims.map_or_else(|| self.inner.length(), Ok)
    }
    fn set_length(&self, _: u64) -> io::Result<()> {
        panic!("a look must not resize")
    }
    fn write_zeroes(&self, _: Purpose, _: u64, _: u64) -> io::Result<()> {
        panic!("a look must not write")
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        panic!("a look must not discard")
    }
    fn preallocate(&self, _: u64, _: u64) -> io::Result<()> {
        panic!("a look must not write")
    }
    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
        self.inner.host_run(offset)
    }
    fn traits(&self) -> Traits {
        self.inner.traits()
    }
}

#[test]
fn every_metadata_byte_may_be_anything() {
    for (shape, each, values) in [(SMALL, 24, &[0x00, 0x01, 0x7f, 0xff][..]), (EXTENDED, 16, &[0xff][..])] {
        let image = build(shape);
        let cluster_bytes = image.geometry.cluster_bytes();
        for (cluster, kind) in &image.kinds {
            if kind.contains("data") && !kind.contains("bitmap") || *kind == "VM state" {
                continue;
            }
            let each = if *kind == "header" { 120 } else { each };
            for at in (cluster * cluster_bytes)..(cluster * cluster_bytes + each) {
                for value in values.iter().copied() {
                    let mut broken = image.bytes.clone();
                    broken[at as usize] = value;
                    let (_, _, after) = run_bytes(&broken, LOOK);
                    assert!(after == broken, "{kind} byte {at}: a look changed the image");
                    if shape.cluster_bits == 9 {
                        for options in [LEAKS, ALL] {
                            let _ = run_bytes(&broken, options);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn random_words_in_any_table_end_in_an_answer() {
    let mut random = Random(seed() ^ 0x505);
    let image = build(SMALL);
    for _ in 0..1000 {
        let mut broken = image.bytes.clone();
        for _ in 0..1 + random.below(4) {
            let at = random.below(broken.len() as u64 / 8) as usize * 8;
            let value = match random.below(4) {
                0 => random.next(),
                1 => random.below(broken.len() as u64) & !511,
                2 => u64::MAX,
                _ => 1 << random.below(64),
            };
            broken[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        let (report, messages, after) = run_bytes(&broken, ALL);
        assert!(after.len() <= broken.len() + (80 << 20));
        // What a repair calls clean is clean.
        if report.is_ok_and(|r| r.corruptions == 0 && r.check_errors == 0 && r.leaks == 0) {
            super::assert_clean(&after, &format!("{messages:#?}"));
        }
    }
}

#[test]
fn a_file_that_claims_to_be_huge_costs_nothing() {
    let image = build(SMALL);
    for claims in [1 << 33, 1 << 43, 1 << 56, 1 << 62, u64::MAX] {
        let mut storage = Counting::new(Memory::new(image.bytes.clone()));
        storage.claims = Some(claims);
        match run(&storage, LOOK).0 {
            Ok(report) => assert_eq!((report.corruptions, report.leaks), (0, 0)),
            Err(e) => assert_eq!(e.kind(), ErrorKind::TooLarge, "{e}"),
        }
    }
}

#[test]
fn tables_at_their_limits_are_read_as_far_as_the_file_goes() {
    let image = build(SMALL);
    let mut bytes = image.bytes.clone();
    bytes[36..40].copy_from_slice(&(4u32 << 20).to_be_bytes());
    bytes[56..60].copy_from_slice(&(16384u32).to_be_bytes());
    bytes[60..64].copy_from_slice(&65536u32.to_be_bytes());
    let storage = Counting::new(Memory::new(bytes));
    let _ = run(&storage, LOOK);
    assert!(storage.reads_of(Purpose::L1) < 100);
}

#[test]
fn an_l1_table_full_of_one_l2_table_is_one_visit() {
    let image = build(SMALL);
    let mut bytes = image.bytes.clone();
    let l2 = be64(&bytes, be64(&bytes, 40) as usize);
    let at = bytes.len();
    bytes.resize(at + (1 << 20), 0);
    for entry in bytes[at..].chunks_exact_mut(8) {
        entry.copy_from_slice(&l2.to_be_bytes());
    }
    bytes[40..48].copy_from_slice(&(at as u64).to_be_bytes());
    bytes[36..40].copy_from_slice(&(1u32 << 17).to_be_bytes());
    let storage = Counting::new(Memory::new(bytes));
    let mut calls = 0;
    let cancelled = super::check(&storage, LOOK, None, &mut |_, _| {
        calls += 1;
        calls < 1000
    });
    assert_eq!(cancelled.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(storage.reads_of(Purpose::L2) < 100);
}

#[test]
fn read_only_storages_are_not_repaired() {
    struct ReadOnly(Memory);
    impl Storage for ReadOnly {
        fn read(&self, p: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
            self.0.read(p, offset, buffers)
        }
        fn write(&self, _: Purpose, _: u64, _: &[IoSlice<'_>]) -> io::Result<()> {
            panic!("written")
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
        fn length(&self) -> io::Result<u64> {
            self.0.length()
        }
        fn set_length(&self, _: u64) -> io::Result<()> {
            panic!("resized")
        }
        fn write_zeroes(&self, _: Purpose, _: u64, _: u64) -> io::Result<()> {
            panic!("written")
        }
        fn discard(&self, _: u64, _: u64) -> io::Result<()> {
            panic!("discarded")
        }
        fn preallocate(&self, _: u64, _: u64) -> io::Result<()> {
            panic!("written")
        }
        fn host_run(&self, offset: u64) -> io::Result<HostRun> {
            self.0.host_run(offset)
        }
        fn traits(&self) -> Traits {
            Traits { read_only: true, ..self.0.traits() }
        }
    }
    let storage = ReadOnly(Memory::new(build(SMALL).bytes));
    assert!(run(&storage, LOOK).0.is_ok());
    assert_eq!(run(&storage, ALL).0.unwrap_err().kind(), ErrorKind::ReadOnly);
}
