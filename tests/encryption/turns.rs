//! A write of a part of a sector, caught when the half of it is in the file: whoever reads other bytes of that sector sees
//! what they were, and who has to do with other sectors does not wait.

use super::read;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::storage::memory::Memory;
use qcow2::testing::storage::{HostRun, Purpose, Storage, Traits};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use testkit::encrypted::Encrypted;
use testkit::setup::Setup;

/// Told when a half is written; waits until the other one may follow.
type Tear = (Sender<()>, Receiver<()>);

/// A host whose writes of sectors can be caught in the middle, as those of a file can.
struct Torn {
    memory: Memory,
    next: Mutex<Option<Tear>>,
}

impl Storage for Torn {
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.memory.read(purpose, offset, buffers)
    }

    fn write(&self, purpose: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let tear = if purpose == Purpose::Data { self.next.lock().unwrap().take() } else { None };
        let Some((told, go_on)) = tear else { return self.memory.write(purpose, offset, buffers) };
        let bytes: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.to_vec()).collect();
        let (first, second) = bytes.split_at(bytes.len() / 2);
        self.memory.write(purpose, offset, &[IoSlice::new(first)])?;
        told.send(()).unwrap();
        go_on.recv().unwrap();
        self.memory.write(purpose, offset + first.len() as u64, &[IoSlice::new(second)])
    }

    fn sync(&self) -> io::Result<()> {
        self.memory.sync()
    }

    fn length(&self) -> io::Result<u64> {
        self.memory.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.memory.set_length(length)
    }

    fn write_zeroes(&self, purpose: Purpose, offset: u64, length: u64) -> io::Result<()> {
        self.memory.write_zeroes(purpose, offset, length)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.memory.discard(offset, length)
    }

    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.memory.preallocate(offset, length)
    }

    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
        self.memory.host_run(offset)
    }

    fn traits(&self) -> Traits {
        self.memory.traits()
    }
}

fn write(handle: &Handle, offset: u64, bytes: &[u8]) {
    handle.disk().write(offset, &[IoSlice::new(bytes)], false).unwrap();
}

fn caught(encrypted: Encrypted) {
    let setup = Setup { cluster_bits: 12, encrypted: Some(encrypted), ..Setup::default() };
    let host = Arc::new(Torn { memory: Memory::new(setup.create()), next: Mutex::new(None) });
    let handle = setup.open(host.clone()).unwrap();
    write(&handle, 0, &[7; 8192]);
    let (told, in_the_middle) = channel();
    let (go_on, going_on) = channel();
    *host.next.lock().unwrap() = Some((told, going_on));
    std::thread::scope(|scope| {
        let handle = &handle;
        scope.spawn(move || write(handle, 1030, &[1]));
        in_the_middle.recv_timeout(Duration::from_secs(10)).expect("a write of a sector");
        // Other sectors: by whole ones, by parts, and by reads.
        let beside = scope.spawn(move || {
            write(handle, 1536, &[2; 512]);
            write(handle, 10, &[3]);
            write(handle, 4095, &[4; 2]);
            assert_eq!(read(handle.disk(), 2046, 4), [2, 2, 7, 7]);
        });
        // The same sector: bytes that nobody writes, alone and among others, and a write of them.
        let reads = [(1270, 40), (1024 + 256, 256), (512, 3584)]
            .map(|(at, length)| scope.spawn(move || (at, read(handle.disk(), at, length))));
        let whole = scope.spawn(move || write(handle, 0, &[5; 512]));
        let (done, is_done) = channel();
        let last = scope.spawn(move || {
            beside.join().unwrap();
            whole.join().unwrap();
            done.send(()).unwrap();
        });
        let passed = is_done.recv_timeout(Duration::from_secs(20));
        go_on.send(()).unwrap();
        passed.expect("those at other sectors waited");
        last.join().unwrap();
        for read in reads {
            let (at, bytes) = read.join().unwrap();
            let odd = bytes.iter().zip(at..).find(|(byte, at)| {
                let may: &[u8] = match *at {
                    1030 => &[1, 7],
                    1536..2048 => &[2, 7],
                    4095 => &[4, 7],
                    _ => &[7],
                };
                !may.contains(byte)
            });
            assert_eq!(odd, None, "{encrypted:?}: a read of {at} saw a sector that was half written");
        }
    });
    assert_eq!(read(handle.disk(), 1029, 3), [7, 1, 7]);
    handle.close().unwrap();
}

#[test]
fn a_part_of_a_sector_is_seen_whole() {
    for encrypted in [Encrypted::Aes, Encrypted::Luks(0), Encrypted::Luks(1), Encrypted::Luks(2)] {
        caught(encrypted);
    }
}

/// Many threads write and read parts of few sectors; each byte is one thread's, and only that one changes it.
#[test]
fn bytes_of_one_sector_are_many_threads() {
    let setup = Setup { cluster_bits: 9, encrypted: Some(Encrypted::Luks(1)), ..Setup::default() };
    let handle = setup.open(Arc::new(Memory::new(setup.create()))).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let handle = &handle;
            scope.spawn(move || {
                for round in 0..300u64 {
                    let at = round % 5 * 700 + thread * 100;
                    let bytes = [(round % 250 + 1) as u8; 100];
                    write(handle, at, &bytes);
                    assert_eq!(read(handle.disk(), at, 100), bytes, "thread {thread}, round {round}");
                }
            });
        }
    });
    handle.close().unwrap();
}
