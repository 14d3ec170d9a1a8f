//! A table that another program replaces while it is read.

use super::*;
use crate::storage::memory::Memory;
use crate::storage::{HostRun, Traits};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicU32, Ordering};

const TABLE_AT: usize = 0x40000;

/// A host on which the table has gone, and its place is empty, while it is read for the first `gone` times.
struct Coming {
    memory: Memory,
    gone: AtomicU32,
}

impl Storage for Coming {
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.memory.read(purpose, offset, buffers)?;
        let gone = |left: u32| left.checked_sub(1);
        if purpose == Purpose::Snapshots
            && self.gone.fetch_update(Ordering::SeqCst, Ordering::SeqCst, gone).is_ok()
        {
            buffers.iter_mut().for_each(|b| b.fill(0));
        }
        Ok(())
    }
    fn write(&self, purpose: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.memory.write(purpose, offset, buffers)
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

/// An image of one snapshot, which is called "7".
fn image() -> Vec<u8> {
    let mut bytes = vec![0; TABLE_AT + 0x10000];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"QFI\xfb");
    for (at, value) in [(4, 3u32), (20, 16), (36, 1), (56, 1), (60, 1), (96, 4), (100, 104)] {
        put(at, &value.to_be_bytes());
    }
    for (at, value) in [(24, 1u64 << 20), (40, 0x30000), (48, 0x10000), (64, TABLE_AT as u64)] {
        put(at, &value.to_be_bytes());
    }
    put(TABLE_AT, &0x30000u64.to_be_bytes());
    put(TABLE_AT + 8, &1u32.to_be_bytes());
    put(TABLE_AT + 12, &1u16.to_be_bytes());
    put(TABLE_AT + 40, b"7");
    bytes
}

#[test]
fn a_table_that_was_gone_while_it_was_read_is_not_believed() {
    for gone in [0, 1] {
        let bytes = image();
        let header = Header::parse(&bytes[..0x10000]).unwrap();
        let host = Coming { memory: Memory::new(bytes), gone: AtomicU32::new(gone) };
        let (header, list) = load_current_snapshots(&host, header).unwrap();
        assert_eq!((header.snapshot_count, list.len()), (1, 1));
        assert_eq!(list[0].id, b"7", "gone for {gone} looks");
    }
}
