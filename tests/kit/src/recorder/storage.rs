//! The double as the engine sees it.

use super::{Kind, Recorder, What};
use qcow2::testing::storage::{HostRun, Purpose, Storage, Traits};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

impl Storage for Recorder {
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let state = self.enter(Kind::Read, Some(purpose)).map_err(|(e, _)| Self::refused(e))?;
        let mut at = offset as usize;
        for buffer in buffers {
            let have = state.bytes.len().saturating_sub(at).min(buffer.len());
            buffer[..have].copy_from_slice(&state.bytes[at.min(state.bytes.len())..][..have]);
            buffer[have..].fill(0);
            at += buffer.len();
        }
        self.leave(state, Kind::Read, Some(purpose));
        Ok(())
    }

    fn write(&self, purpose: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes: Vec<u8> = buffers.iter().flat_map(|b| b.iter().copied()).collect();
        match self.enter(Kind::Write, Some(purpose)) {
            Ok(mut state) => {
                if let Err((taken, errno)) = Self::takes(&mut state, offset, bytes.len() as u64) {
                    if taken > 0 {
                        state.write(purpose, offset, bytes[..taken as usize].to_vec());
                    }
                    return Err(Self::refused(errno));
                }
                state.write(purpose, offset, bytes);
                self.leave(state, Kind::Write, Some(purpose));
            }
            Err((errno, torn)) => {
                let half = bytes.len() / 1024 * 512;
                if torn && half > 0 {
                    self.lock().write(purpose, offset, bytes[..half].to_vec());
                }
                return Err(Self::refused(errno));
            }
        }
        Ok(())
    }

    fn copy_from(
        &self,
        purpose: Purpose,
        offset: u64,
        source: &dyn Storage,
        source_offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let mut bytes = vec![0; length as usize];
        source.read(purpose, source_offset, &mut [IoSliceMut::new(&mut bytes)])?;
        self.write(purpose, offset, &[IoSlice::new(&bytes)])
    }

    fn sync(&self) -> io::Result<()> {
        let covers = self.lock().log.len();
        let mut state = self.enter(Kind::Sync, None).map_err(|(e, _)| Self::refused(e))?;
        state.note(What::Sync { covers }, Purpose::Data, 0, 0, Arc::new([]));
        self.leave(state, Kind::Sync, None);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.lock().bytes.len() as u64)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let mut state = self.enter(Kind::SetLength, None).map_err(|(e, _)| Self::refused(e))?;
        if state.refusals.set_length {
            return Err(Self::refused(libc::ENOTSUP));
        }
        state.bytes.resize(length as usize, 0);
        state.held.retain(|s| s * crate::SECTOR < length);
        state.note(What::SetLength, Purpose::Data, length, 0, Arc::new([]));
        self.leave(state, Kind::SetLength, None);
        Ok(())
    }

    fn write_zeroes(&self, purpose: Purpose, offset: u64, length: u64) -> io::Result<()> {
        let mut state = self.enter(Kind::Zeroes, Some(purpose)).map_err(|(e, _)| Self::refused(e))?;
        if state.refusals.write_zeroes {
            return Err(Self::refused(libc::ENOTSUP));
        }
        if let Err((_, errno)) = Self::takes(&mut state, offset, length) {
            return Err(Self::refused(errno));
        }
        let zeroes = vec![0; length as usize];
        state.put(offset, &zeroes);
        state.note(What::Zeroes, purpose, offset, length, zeroes.into());
        self.leave(state, Kind::Zeroes, Some(purpose));
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut state = self.enter(Kind::Discard, None).map_err(|(e, _)| Self::refused(e))?;
        if state.refusals.discard {
            return Err(Self::refused(libc::ENOTSUP));
        }
        if state.refusals.discard_keeps {
            return Ok(());
        }
        let end = (state.bytes.len() as u64).min(offset + length);
        if offset < end {
            let zeroes = vec![0; (end - offset) as usize];
            state.put(offset, &zeroes);
            let whole = offset.div_ceil(crate::SECTOR)..end / crate::SECTOR;
            state.held.retain(|s| !whole.contains(s));
            state.note(What::Discard, Purpose::Data, offset, end - offset, zeroes.into());
        }
        self.leave(state, Kind::Discard, None);
        Ok(())
    }

    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut state = self.enter(Kind::Preallocate, None).map_err(|(e, _)| Self::refused(e))?;
        if let Err((_, errno)) = Self::takes(&mut state, offset, length) {
            return Err(Self::refused(errno));
        }
        state.held.extend(offset / crate::SECTOR..(offset + length).div_ceil(crate::SECTOR));
        let end = (offset + length) as usize;
        if end > state.bytes.len() {
            state.bytes.resize(end, 0);
            state.note(What::SetLength, Purpose::Data, end as u64, 0, Arc::new([]));
        }
        self.leave(state, Kind::Preallocate, None);
        Ok(())
    }

    fn host_run(&self, _: u64) -> io::Result<HostRun> {
        Ok(HostRun { data: true, end: self.lock().bytes.len() as u64 })
    }

    fn traits(&self) -> Traits {
        let discard_zeroes = !self.lock().refusals.discard_keeps;
        Traits { alignment: 1, zero_past_end: true, discard_zeroes, read_only: false }
    }
}
