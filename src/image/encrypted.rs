//! Guest bytes of an encrypted image, between the verbs and the storage.
//!
//! Sectors of 512 bytes are encrypted whole. Reads decrypt where the bytes were read to; what a read that fails has left
//! there is wiped. Writes encrypt in a buffer of their own, a megabyte at a time. A write of a part of a sector reads the
//! sector first, and is alone with it meanwhile.

use super::buffers::Gather;
use super::cipher::Cipher;
use super::payload::{Payload, Place};
use crate::error::{zeroed, Result};
use crate::format::geometry::SECTOR_BYTES;
use crate::storage::medium::Written;
use crate::sync::locked;
use std::io::{IoSlice, IoSliceMut};

/// Most bytes that are encrypted before they are written.
const BOUNCE_BYTES: u64 = 1 << 20;

/// Bytes before `place` in its sector.
fn before(place: Place) -> u64 {
    place.guest.0 % SECTOR_BYTES
}

/// The place of the sector that `place` is in.
fn sector_of(place: Place) -> Place {
    let before = before(place);
    Place {
        guest: place.guest.floor_to(SECTOR_BYTES),
        host: crate::format::HostOffset(place.host.0 - before),
    }
}

impl Payload {
    /// Fills `buffers` with decrypted bytes.
    #[cold]
    pub(super) fn read_encrypted(
        &self,
        cipher: &Cipher,
        place: Place,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<()> {
        let whole = before(place) == 0 && buffers.iter().all(|b| b.len() as u64 % SECTOR_BYTES == 0);
        let done = match whole {
            true => self.read_sectors(cipher, place, buffers),
            false => self.read_parts(cipher, place, buffers),
        };
        if done.is_err() {
            buffers.iter_mut().for_each(|buffer| buffer.fill(0));
        }
        done
    }

    fn read_sectors(&self, cipher: &Cipher, place: Place, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.read_stored(place, buffers)?;
        let mut at = place;
        for buffer in buffers {
            cipher.decrypt(at.guest, at.host, buffer);
            at = at.after(buffer.len() as u64);
        }
        Ok(())
    }

    fn read_parts(&self, cipher: &Cipher, place: Place, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let mut at = place;
        for buffer in buffers {
            let mut rest: &mut [u8] = buffer;
            while !rest.is_empty() {
                let skip = before(at);
                let length = (rest.len() as u64).min(BOUNCE_BYTES - skip);
                let mut sectors =
                    zeroed("sectors of guest data", (skip + length).next_multiple_of(SECTOR_BYTES))?;
                self.read_sectors(cipher, sector_of(at), &mut [IoSliceMut::new(&mut sectors)])?;
                let (part, later) = rest.split_at_mut(length as usize);
                part.copy_from_slice(&sectors[skip as usize..][..length as usize]);
                zeroize::Zeroize::zeroize(&mut sectors);
                (rest, at) = (later, at.after(length));
            }
        }
        Ok(())
    }

    /// Encrypts `buffers` and writes them.
    #[cold]
    pub(super) fn write_encrypted(
        &self,
        cipher: &Cipher,
        place: Place,
        buffers: &[IoSlice<'_>],
    ) -> Result<Written> {
        let bytes: u64 = buffers.iter().map(|b| b.len() as u64).sum();
        let whole = before(place) == 0 && bytes % SECTOR_BYTES == 0;
        let (_shared, _alone) = match whole {
            true => (Some(locked(cipher.sectors.read())), None),
            false => (None, Some(locked(cipher.sectors.write()))),
        };
        let mut source = Gather::new(buffers);
        self.write_bounced(cipher, place, bytes, |_, part| {
            let mut at = 0;
            let mut parts = Vec::with_capacity(4);
            source.peek_into(part.len() as u64, &mut parts);
            for from in &parts {
                part[at..at + from.len()].copy_from_slice(from);
                at += from.len();
            }
            source.advance(part.len() as u64);
        })
    }

    /// Writes `bytes` encrypted zero bytes of whole sectors.
    pub(super) fn zero_encrypted(&self, cipher: &Cipher, place: Place, bytes: u64) -> Result<Written> {
        let _shared = locked(cipher.sectors.read());
        self.write_bounced(cipher, place, bytes, |_, part| part.fill(0))
    }

    /// Writes what `fill` puts into each part, encrypted.
    fn write_bounced(
        &self,
        cipher: &Cipher,
        place: Place,
        bytes: u64,
        mut fill: impl FnMut(u64, &mut [u8]),
    ) -> Result<Written> {
        let first = before(place);
        let most = (first + bytes).next_multiple_of(SECTOR_BYTES).min(BOUNCE_BYTES);
        let mut bounce = zeroed("sectors to encrypt", most)?;
        let mut written = self.nothing_written();
        let mut done = 0;
        while done < bytes {
            let at = place.after(done);
            let skip = before(at);
            let length = (bytes - done).min(BOUNCE_BYTES - skip);
            let sectors = &mut bounce[..(skip + length).next_multiple_of(SECTOR_BYTES) as usize];
            let start = sector_of(at);
            self.keep_beside(cipher, start, skip, skip + length, sectors)?;
            fill(done, &mut sectors[skip as usize..(skip + length) as usize]);
            cipher.encrypt(start.guest, start.host, sectors);
            written = self.write_stored(start, sectors)?;
            done += length;
        }
        Ok(written)
    }

    /// Reads the first and the last of some sectors where bytes `[from, to)` of them leave a part as it is.
    fn keep_beside(
        &self,
        cipher: &Cipher,
        start: Place,
        from: u64,
        to: u64,
        sectors: &mut [u8],
    ) -> Result<()> {
        let end = sectors.len() as u64;
        let first = (from > 0).then_some(0);
        let last = (to < end).then_some(end - SECTOR_BYTES).filter(|last| first != Some(*last));
        for at in [first, last].into_iter().flatten() {
            let sector = &mut sectors[at as usize..(at + SECTOR_BYTES) as usize];
            self.read_sectors(cipher, start.after(at), &mut [IoSliceMut::new(sector)])?;
        }
        Ok(())
    }
}
