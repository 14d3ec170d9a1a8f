//! A repair that dies at any write, losing any subset of the sectors not yet synced: the next repair completes
//! it, and nothing that can be seen changes. The dirty bit outlives everything it stands for.

use super::build::{build, set_count, visible, Built, EXTENDED, SMALL};
use super::{assert_clean, check, run_bytes, seed, Random, ALL, LOOK};
use crate::format::be64;
use crate::format::entries::COPIED;
use crate::storage::{HostRun, Purpose, Storage, Traits};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Mutex;

/// A medium that dies after a number of writes and syncs.
struct Mortal(Mutex<State>);

struct State {
    /// What reads see.
    now: Vec<u8>,
    /// What is durable.
    durable: Vec<u8>,
    /// Sectors written since the last sync, in order.
    pending: Vec<(u64, Vec<u8>)>,
    budget: u64,
    operations: u64,
}

impl State {
    fn spend(&mut self) -> io::Result<()> {
        self.operations += 1;
        if self.operations > self.budget {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }
}

impl Mortal {
    fn new(bytes: Vec<u8>, budget: u64) -> Mortal {
        let state = State { now: bytes.clone(), durable: bytes, pending: Vec::new(), budget, operations: 0 };
        Mortal(Mutex::new(state))
    }

    /// What is left after the power failed: the durable bytes and any of the pending sectors.
    fn remains(&self, random: &mut Random) -> Vec<u8> {
        let state = self.0.lock().unwrap();
        let mut bytes = state.durable.clone();
        for (at, sector) in &state.pending {
            if random.below(2) == 0 {
                let end = *at as usize + sector.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at as usize..end].copy_from_slice(sector);
            }
        }
        bytes
    }
}

impl Storage for Mortal {
    fn read(&self, _: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        let mut at = offset as usize;
        for buffer in buffers {
            for byte in buffer.iter_mut() {
                *byte = state.now.get(at).copied().unwrap_or(0);
                at += 1;
            }
        }
        Ok(())
    }

    fn write(&self, _: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let mut data = Vec::new();
        buffers.iter().for_each(|b| data.extend_from_slice(b));
        let dies = state.spend();
        let mut at = offset as usize;
        let mut rest = data.as_slice();
        while !rest.is_empty() {
            let bytes = rest.len().min(512 - at % 512);
            if state.now.len() < at + bytes {
                state.now.resize(at + bytes, 0);
            }
            state.now[at..at + bytes].copy_from_slice(&rest[..bytes]);
            // Whole sectors survive or are lost.
            let first = at / 512 * 512;
            let end = (first + 512).min(state.now.len());
            let sector = state.now[first..end].to_vec();
            state.pending.push((first as u64, sector));
            at += bytes;
            rest = &rest[bytes..];
        }
        dies
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.spend()?;
        state.durable = state.now.clone();
        state.pending.clear();
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.now.resize(length as usize, 0);
        state.durable.resize(length as usize, 0);
        Ok(())
    }

    fn write_zeroes(&self, _: Purpose, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        assert!(state.pending.is_empty(), "clusters given back before the repair was durable");
        let end = state.now.len().min((offset + length) as usize);
        state.now[offset as usize..end].fill(0xdd);
        state.durable[offset as usize..end].fill(0xdd);
        Ok(())
    }

    fn preallocate(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn host_run(&self, _: u64) -> io::Result<HostRun> {
        Ok(HostRun { data: true, end: self.length()? })
    }

    fn traits(&self) -> Traits {
        Traits { alignment: 1, zero_past_end: true, discard_zeroes: true, read_only: false }
    }
}

fn dies_everywhere(image: &Built, damaged: &[u8], why: &str) {
    let mut random = Random(seed() ^ damaged.len() as u64);
    let wanted = visible(&image.bytes, &image.geometry);
    for budget in 0.. {
        let mortal = Mortal::new(damaged.to_vec(), budget);
        let died = check(&mortal, ALL, None, &mut |_, _| true).is_err();
        for _ in 0..8 {
            let left = mortal.remains(&mut random);
            let dirty = left[79] & 1 != 0;
            let (report, messages, after) = run_bytes(&left, LOOK);
            let report = report.unwrap_or_else(|e| panic!("{why}, cut {budget}: {e}"));
            assert!(after == left);
            // A clean image only leaks.
            assert!(dirty || report.corruptions == 0, "{why}, cut {budget}: {messages:#?}");
            let (report, messages, after) = run_bytes(&left, ALL);
            let report = report.unwrap_or_else(|e| panic!("{why}, cut {budget}: {e}: {messages:#?}"));
            assert_eq!((report.corruptions, report.leaks), (0, 0), "{why}, cut {budget}: {messages:#?}");
            assert_clean(&after, why);
            assert_eq!(after[79] & 1, 0, "{why}, cut {budget}: still dirty");
            assert!(visible(&after, &image.geometry) == wanted, "{why}, cut {budget}: contents changed");
        }
        if !died {
            assert!(budget > 3, "{why}: the repair hardly wrote");
            return;
        }
    }
}

/// Builds a dirty image and damages it.
fn dirty(image: &Built, damage: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = image.bytes.clone();
    bytes[79] |= 1;
    damage(&mut bytes);
    bytes
}

#[test]
fn a_rebuild_may_die_anywhere() {
    for shape in [SMALL, EXTENDED] {
        let image = build(shape);
        let damaged = dirty(&image, |bytes| {
            for (cluster, _) in image.kinds.iter().skip(4) {
                set_count(bytes, &image.geometry, *cluster, 0);
            }
        });
        dies_everywhere(&image, &damaged, "rebuild");
    }
}

#[test]
fn a_repair_of_counts_and_flags_may_die_anywhere() {
    let image = build(SMALL);
    let damaged = dirty(&image, |bytes| {
        let shared = image.kinds.iter().find(|k| k.1 == "shared data").unwrap().0;
        set_count(bytes, &image.geometry, shared, 1);
        let data = image.kinds.iter().find(|k| k.1 == "data").unwrap().0;
        set_count(bytes, &image.geometry, data, 7);
        let l1 = be64(bytes, 40) as usize;
        let own = (be64(bytes, l1) & !COPIED) as usize;
        bytes[own] ^= 0x80;
        bytes[l1 + 8] ^= 0x80;
    });
    dies_everywhere(&image, &damaged, "counts");
}

#[test]
fn a_lost_refcount_table_may_be_lost_twice() {
    let image = build(SMALL);
    for junk in [0u64, 0x8201, 1 << 40, u64::MAX] {
        let damaged = dirty(&image, |bytes| {
            let table = be64(bytes, 48) as usize;
            bytes[table..table + 8].copy_from_slice(&junk.to_be_bytes());
        });
        dies_everywhere(&image, &damaged, "table");
    }
}

#[test]
fn a_new_snapshot_table_may_die_anywhere() {
    let image = build(SMALL);
    let damaged = dirty(&image, |bytes| {
        let table = be64(bytes, 64) as usize;
        // Eight bytes of extra data too few; what is left of them reads as the same VM state.
        bytes[table + 36..table + 40].copy_from_slice(&8u32.to_be_bytes());
        let names = b"1before";
        bytes[table + 48..table + 48 + names.len()].copy_from_slice(names);
    });
    dies_everywhere(&image, &damaged, "snapshots");
}
