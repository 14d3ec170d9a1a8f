//! A storage in memory, for images that need no file and for tests.

use super::{HostRun, Purpose, Storage, Traits};
use crate::format::index_in_memory;
use crate::sync::locked;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::RwLock;

/// A growable array of bytes.
#[derive(Debug, Default)]
pub struct Memory(RwLock<Vec<u8>>);

impl Memory {
    /// A storage that holds `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Memory(RwLock::new(bytes))
    }

    /// A copy of what it holds.
    pub fn contents(&self) -> Vec<u8> {
        self.read_guard().clone()
    }

    /// What it holds, which is gone from it.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.write_guard())
    }

    fn read_guard(&self) -> std::sync::RwLockReadGuard<'_, Vec<u8>> {
        locked(self.0.read())
    }

    fn write_guard(&self) -> std::sync::RwLockWriteGuard<'_, Vec<u8>> {
        locked(self.0.write())
    }
}

fn too_big() -> io::Error {
    io::Error::from_raw_os_error(libc::EFBIG)
}

impl Storage for Memory {
    fn read(&self, _: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let bytes = self.read_guard();
        // Past what memory can hold, too, there are zeroes.
        let mut at = index_in_memory(offset);
        for buffer in buffers {
            let have = bytes.len().saturating_sub(at).min(buffer.len());
            if have > 0 {
                buffer[..have].copy_from_slice(&bytes[at..at + have]);
            }
            buffer[have..].fill(0);
            at = at.saturating_add(buffer.len());
        }
        Ok(())
    }

    fn write(&self, _: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let mut bytes = self.write_guard();
        let mut at = usize::try_from(offset).map_err(|_| too_big())?;
        for buffer in buffers {
            let end = at.checked_add(buffer.len()).ok_or_else(too_big)?;
            if end > bytes.len() {
                bytes.resize(end, 0);
            }
            bytes[at..end].copy_from_slice(buffer);
            at = end;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.read_guard().len() as u64)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.write_guard().resize(usize::try_from(length).map_err(|_| too_big())?, 0);
        Ok(())
    }

    fn write_zeroes(&self, _: Purpose, offset: u64, length: u64) -> io::Result<()> {
        let mut bytes = self.write_guard();
        let end = usize::try_from(offset + length).map_err(|_| too_big())?;
        if end > bytes.len() {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].fill(0);
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut bytes = self.write_guard();
        let end = bytes.len().min(index_in_memory(offset + length));
        if offset < end as u64 {
            bytes[offset as usize..end].fill(0);
        }
        Ok(())
    }

    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = usize::try_from(offset + length).map_err(|_| too_big())?;
        let mut bytes = self.write_guard();
        if end > bytes.len() {
            bytes.resize(end, 0);
        }
        Ok(())
    }

    fn host_run(&self, _: u64) -> io::Result<HostRun> {
        Ok(HostRun { data: true, end: self.read_guard().len() as u64 })
    }

    fn settle_runs(&self) -> io::Result<()> {
        Ok(())
    }

    fn traits(&self) -> Traits {
        Traits { alignment: 1, zero_past_end: true, discard_zeroes: true, read_only: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of 32 bits has no memory there, and takes no other place for it.
    #[test]
    fn far_past_the_end_there_are_zeroes() {
        let memory = Memory::new(vec![7; 4096]);
        let far = 1 << 32;
        let mut bytes = [1; 512];
        memory.read(Purpose::Data, far, &mut [IoSliceMut::new(&mut bytes)]).unwrap();
        assert_eq!(bytes, [0; 512]);
        memory.discard(far, 512).unwrap();
        assert_eq!(memory.contents(), vec![7; 4096]);
    }
}
