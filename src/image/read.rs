//! Reads. No lock is held while data is read; the caller's pin keeps the clusters from being reused.

use super::buffers::Scatter;
use super::payload::{Payload, Place};
use super::{check_range, total, Core};
use crate::error::{Error, Result};
use crate::format::{GuestOffset, HostOffset};
use crate::map::{Extent, Look, Source};
use std::io::IoSliceMut;

impl Core {
    /// Fills `buffer` from `offset`, if looks alone can tell where that is; `false`: nothing has been done.
    #[inline(always)]
    pub(super) fn read_short(&self, offset: GuestOffset, buffer: &mut [u8]) -> Result<bool> {
        let bytes = buffer.len() as u64;
        if !self.reads_are_plain || bytes > self.virtual_size || offset.0 > self.virtual_size - bytes {
            return Ok(false);
        }
        let Some((payload, host)) = self.find_data(offset, bytes) else { return Ok(false) };
        payload.read_plain(Place { guest: offset, host }, &mut [IoSliceMut::new(buffer)])?;
        Ok(true)
    }

    /// Fills `buffers` from `offset`.
    pub(crate) fn read(&self, offset: GuestOffset, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        if let [one] = buffers {
            if self.read_short(offset, one)? {
                return Ok(());
            }
            check_range(self.virtual_size, offset.0, one.len() as u64)?;
            return self.read_range(offset, one);
        }
        let Some(bytes) = total(buffers.iter().map(|b| b.len())) else {
            return Err(Error::invalid("the buffers are longer than 2^63 bytes together"));
        };
        check_range(self.virtual_size, offset.0, bytes)?;
        self.read_scattered(offset, bytes, buffers)
    }

    /// Where in the chain the data of a range inside one cluster is, when looks alone can tell.
    #[inline(always)]
    fn find_data(&self, offset: GuestOffset, bytes: u64) -> Option<(&Payload, HostOffset)> {
        match self.io.as_ref()?.map.look(offset, bytes) {
            Look::Data(host, _) => Some((&self.payload, host)),
            Look::Hole => self.chain.as_ref()?.find(offset, bytes),
            Look::Unknown => None,
        }
    }

    /// Fills `buffer` from `offset`; the range is inside the disk.
    pub(super) fn read_range(&self, offset: GuestOffset, buffer: &mut [u8]) -> Result<()> {
        let map = &self.io()?.map;
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let extent = map.resolve_long(at, (buffer.len() - done) as u64)?;
            if let Source::Compressed(span) = extent.source {
                done += self.read_compressed(map, span, at, &mut buffer[done..])?;
                continue;
            }
            let end = done + extent.length as usize;
            self.read_extent(&extent, at, &mut buffer[done..end])?;
            done = end;
        }
        Ok(())
    }

    fn read_extent(&self, extent: &Extent, guest_offset: GuestOffset, part: &mut [u8]) -> Result<()> {
        match (extent.source, extent.host) {
            (Source::Data, Some(host)) => {
                self.payload.read(Place { guest: guest_offset, host }, &mut [IoSliceMut::new(part)])
            }
            _ => self.fill(extent, guest_offset, part),
        }
    }

    /// Bytes that are not in the data file.
    fn fill(&self, extent: &Extent, guest_offset: GuestOffset, part: &mut [u8]) -> Result<()> {
        match extent.source {
            // Past the end of the disk is VM state, which has nothing below it.
            Source::Hole => match &self.settings.backing {
                Some(backing) if guest_offset.0 < self.virtual_size => {
                    return backing.read_as_backing(guest_offset.0, part)
                }
                _ => part.fill(0),
            },
            Source::Compressed(span) => return self.read_part(span, guest_offset, part),
            Source::Zero | Source::Data => part.fill(0),
        }
        Ok(())
    }

    fn read_scattered(&self, offset: GuestOffset, bytes: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let map = &self.io()?.map;
        let mut scatter = Scatter::new(buffers);
        let mut done = 0;
        while done < bytes {
            let at = offset + done;
            let extent = map.resolve_long(at, bytes - done)?;
            let mut parts = scatter.take(extent.length);
            match (extent.source, extent.host) {
                (Source::Data, Some(host)) => self.payload.read(Place { guest: at, host }, &mut parts)?,
                _ => {
                    let mut part_at = at;
                    for part in &mut parts {
                        self.fill(&extent, part_at, part)?;
                        part_at += part.len() as u64;
                    }
                }
            }
            done += extent.length;
        }
        Ok(())
    }

    /// Whether `[offset, offset + length)`, inside the disk, certainly reads as zeroes without reading data.
    pub(crate) fn reads_zero(&self, offset: GuestOffset, length: u64) -> Result<bool> {
        let map = &self.io()?.map;
        let mut done = 0;
        while done < length {
            let at = offset + done;
            let extent = map.resolve(at, length - done)?;
            let zero = match extent.source {
                Source::Zero => true,
                Source::Hole => self.backing_reads_zero(at, extent.length)?,
                Source::Data | Source::Compressed(_) => false,
            };
            if !zero {
                return Ok(false);
            }
            done += extent.length;
        }
        Ok(true)
    }

    fn backing_reads_zero(&self, offset: GuestOffset, length: u64) -> Result<bool> {
        let Some(backing) = &self.settings.backing else { return Ok(true) };
        let end = (offset.0 + length).min(backing.length()).min(self.virtual_size);
        match offset.0 < end {
            true => backing.reads_zero(offset.0, end - offset.0),
            false => Ok(true),
        }
    }
}
