//! A crash state: an image shared by many states, with the sectors in which this one differs.

use crate::SECTOR;
use qcow2::testing::storage::{HostRun, Purpose, Storage, Traits};
use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex};

/// Contents of one sector.
pub type Sector = Arc<[u8]>;

struct State {
    base: Arc<Vec<u8>>,
    sectors: BTreeMap<u64, Sector>,
    length: u64,
}

/// See the module.
pub struct Overlay(Mutex<State>);

impl Overlay {
    pub fn new(base: Arc<Vec<u8>>, sectors: BTreeMap<u64, Sector>, length: u64) -> Arc<Overlay> {
        Arc::new(Overlay(Mutex::new(State { base, sectors, length })))
    }

    pub fn contents(&self) -> Vec<u8> {
        let state = self.0.lock().unwrap();
        let mut bytes = vec![0; state.length as usize];
        state.read(0, &mut bytes);
        bytes
    }

    /// The first sector, with the header's fields.
    pub fn start(&self) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR as usize];
        self.0.lock().unwrap().read(0, &mut bytes);
        bytes
    }
}

impl State {
    fn read(&self, offset: u64, buffer: &mut [u8]) {
        let inside = self.length.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (at, end) = (offset as usize, offset as usize + inside);
        let have = self.base.len().min(end).saturating_sub(at);
        if have > 0 {
            buffer[..have].copy_from_slice(&self.base[at..at + have]);
        }
        buffer[have..].fill(0);
        if inside == 0 {
            return;
        }
        let (first, last) = (offset / SECTOR, (end as u64 - 1) / SECTOR);
        for (sector, bytes) in self.sectors.range(first..=last) {
            let start = sector * SECTOR;
            let from = start.max(offset);
            let to = (start + SECTOR).min(end as u64);
            let source = &bytes[(from - start) as usize..(to - start) as usize];
            buffer[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.length = self.length.max(offset + bytes.len() as u64);
        let end = offset + bytes.len() as u64;
        let mut at = offset;
        while at < end {
            let sector = at / SECTOR;
            let to = end.min((sector + 1) * SECTOR);
            let mut whole = [0; SECTOR as usize];
            self.read(sector * SECTOR, &mut whole);
            let part = &bytes[(at - offset) as usize..(to - offset) as usize];
            whole[(at - sector * SECTOR) as usize..][..part.len()].copy_from_slice(part);
            self.sectors.insert(sector, whole.to_vec().into());
            at = to;
        }
    }

    fn set_length(&mut self, length: u64) {
        if length < self.length {
            // Bytes past the cut read as zeroes when the file grows again.
            let zeroes = vec![0; (self.length - length) as usize];
            let old = self.length;
            self.write(length, &zeroes);
            debug_assert_eq!(self.length, old);
        }
        self.length = length;
    }
}

impl Storage for Overlay {
    fn read(&self, _: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        let mut at = offset;
        for buffer in buffers {
            state.read(at, buffer);
            at += buffer.len() as u64;
        }
        Ok(())
    }

    fn write(&self, _: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let mut at = offset;
        for buffer in buffers {
            state.write(at, buffer);
            at += buffer.len() as u64;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().length)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.0.lock().unwrap().set_length(length);
        Ok(())
    }

    fn write_zeroes(&self, _: Purpose, offset: u64, length: u64) -> io::Result<()> {
        self.0.lock().unwrap().write(offset, &vec![0; length as usize]);
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let end = (offset + length).min(state.length);
        if offset < end {
            state.write(offset, &vec![0; (end - offset) as usize]);
        }
        Ok(())
    }

    fn preallocate(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn host_run(&self, _: u64) -> io::Result<HostRun> {
        Ok(HostRun { data: true, end: self.length()? })
    }

    fn traits(&self) -> Traits {
        Traits { alignment: 1, zero_past_end: true, discard_zeroes: true, read_only: false }
    }
}
