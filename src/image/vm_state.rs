//! VM state: bytes that belong to a running machine and not to its disk, stored like guest data from the first L1
//! entry on that maps nothing of the disk. The active table has what is being saved or was just restored; a
//! snapshot has what it was taken with.

use super::Core;
use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::MAX_L1_BYTES;
use crate::format::GuestOffset;
use crate::storage::event::Event;
use std::io::IoSlice;

impl Core {
    /// Where the VM state begins, as a guest offset.
    fn vm_state_start(&self) -> u64 {
        self.geometry.l1_entries_for(self.virtual_size) << self.geometry.l1_shift()
    }

    /// One past the last guest byte of what the byte at `offset` is part of: the disk, or the VM state.
    pub(super) fn area_end(&self, offset: GuestOffset) -> GuestOffset {
        match offset < self.disk_end() {
            true => self.disk_end(),
            false => GuestOffset(u64::MAX),
        }
    }

    /// The guest range of `bytes` at `offset` of the VM state; `(first, end)`.
    fn vm_state_range(&self, offset: u64, bytes: u64) -> Result<(u64, u64)> {
        let limit = (MAX_L1_BYTES / 8).saturating_mul(self.geometry.l2_table_guest_bytes());
        let start = self.vm_state_start();
        let end = offset.checked_add(bytes).and_then(|end| start.checked_add(end));
        match end {
            Some(end) if end <= limit => Ok((start + offset, end)),
            _ => Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "VM state: {bytes} bytes at {offset} need an L1 table over its limit of {MAX_L1_BYTES} bytes"
                ),
            )),
        }
    }

    /// One past the last guest byte of `bytes` of VM state.
    pub(crate) fn vm_state_end(&self, bytes: u64) -> Result<u64> {
        self.vm_state_range(0, bytes).map(|(_, end)| end)
    }

    /// Fails when the L1 table does not map `bytes` of VM state.
    pub(crate) fn check_vm_state_room(&self, bytes: u64) -> Result<()> {
        let room = self.io()?.map.room().saturating_sub(self.vm_state_start());
        if bytes > room {
            return Err(Error::invalid(format!(
                "vm_state_size {bytes}: the L1 table has room for {room} bytes of VM state; write it first"
            )));
        }
        Ok(())
    }

    pub(super) fn read_vm_state(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let (from, _) = self.vm_state_range(offset, buffer.len() as u64)?;
        self.storage().event(Event::VmStateLoad);
        self.read_range(GuestOffset(from), buffer)
    }

    /// Writes where the L1 table has room; `false`: it has none, and nothing has been done.
    pub(super) fn write_vm_state(&self, offset: u64, bytes: &[u8]) -> Result<bool> {
        let (from, end) = self.vm_state_range(offset, bytes.len() as u64)?;
        // The disk's contents stay, and with them bitmaps that say what has changed.
        let alloc = self.structure_writer()?.alloc;
        self.storage().event(Event::VmStateSave);
        let io = self.io()?;
        if end > io.map.room() {
            return Ok(false);
        }
        let buffers = [IoSlice::new(bytes)];
        self.write_at(io, alloc, GuestOffset(from), bytes.len() as u64, &buffers).map(|()| true)
    }
}
