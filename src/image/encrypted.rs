//! Guest bytes of an encrypted image, between the verbs and the storage.
//!
//! Sectors of 512 bytes are encrypted whole. Reads decrypt where the bytes were read to; what a read that fails has left
//! there is wiped. Writes encrypt in a buffer of their own, a megabyte at a time. A write of a part of a sector reads the
//! sector first, and nobody else is at it meanwhile ([`crate::storage::turns`]).

use super::buffers::Gather;
use super::cipher::Cipher;
use super::payload::{Payload, Place};
use crate::error::Result;
use crate::format::geometry::SECTOR_BYTES;
use crate::storage::medium::Written;
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
        let seen = cipher.turns.look();
        if seen.is_some() {
            self.read_stored(place, buffers)?;
        }
        if !seen.is_some_and(|seen| cipher.turns.is_as_seen(seen)) {
            let bytes = buffers.iter().map(|b| b.len() as u64).sum();
            let _turn = cipher.turns.read(place.host, bytes);
            self.read_stored(place, buffers)?;
        }
        self.decrypt(cipher, place, buffers);
        Ok(())
    }

    fn decrypt(&self, cipher: &Cipher, place: Place, buffers: &mut [IoSliceMut<'_>]) {
        let mut at = place;
        for buffer in buffers {
            cipher.decrypt(at.guest, at.host, buffer);
            at = at.after(buffer.len() as u64);
        }
    }

    fn read_parts(&self, cipher: &Cipher, place: Place, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let bytes = buffers.iter().map(|b| b.len() as u64).sum::<u64>();
        let most = (before(place) + bytes + 2 * SECTOR_BYTES).min(BOUNCE_BYTES) / SECTOR_BYTES * SECTOR_BYTES;
        let mut bounce = cipher.bounces.take().unwrap_or_default();
        let room = bounce.room("sectors of guest data", most as usize)?;
        let done = self.read_in_steps(cipher, place, buffers, room);
        zeroize::Zeroize::zeroize(room);
        cipher.bounces.put(bounce);
        done
    }

    fn read_in_steps(
        &self,
        cipher: &Cipher,
        place: Place,
        buffers: &mut [IoSliceMut<'_>],
        room: &mut [u8],
    ) -> Result<()> {
        let mut at = place;
        for buffer in buffers {
            let mut rest: &mut [u8] = buffer;
            while !rest.is_empty() {
                let skip = before(at);
                let length = (rest.len() as u64).min(room.len() as u64 - skip);
                let sectors = &mut room[..(skip + length).next_multiple_of(SECTOR_BYTES) as usize];
                self.read_sectors(cipher, sector_of(at), &mut [IoSliceMut::new(sectors)])?;
                let (part, later) = rest.split_at_mut(length as usize);
                part.copy_from_slice(&sectors[skip as usize..][..length as usize]);
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
        let mut source = Gather::new(buffers);
        self.write_bounced(cipher, place, bytes, |part| {
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
        self.write_bounced(cipher, place, bytes, |part| part.fill(0))
    }

    /// Writes what `fill` puts into each part, encrypted.
    fn write_bounced(
        &self,
        cipher: &Cipher,
        place: Place,
        bytes: u64,
        mut fill: impl FnMut(&mut [u8]),
    ) -> Result<Written> {
        if bytes == 0 {
            return Ok(self.nothing_written());
        }
        let _turn = cipher.turns.write(place.host, bytes);
        let most = (before(place) + bytes).next_multiple_of(SECTOR_BYTES).min(BOUNCE_BYTES);
        let mut bounce = cipher.bounces.take().unwrap_or_default();
        let sectors = bounce.room("sectors to encrypt", most as usize)?;
        let done = self.write_in_steps(cipher, place, bytes, sectors, &mut fill);
        if done.is_err() {
            // It may hold the guest's bytes.
            zeroize::Zeroize::zeroize(sectors);
        }
        cipher.bounces.put(bounce);
        done
    }

    fn write_in_steps(
        &self,
        cipher: &Cipher,
        place: Place,
        bytes: u64,
        bounce: &mut [u8],
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Written> {
        let mut written = self.nothing_written();
        let mut done = 0;
        while done < bytes {
            let at = place.after(done);
            let skip = before(at);
            let length = (bytes - done).min(BOUNCE_BYTES - skip);
            let sectors = &mut bounce[..(skip + length).next_multiple_of(SECTOR_BYTES) as usize];
            let start = sector_of(at);
            self.keep_beside(cipher, start, skip, skip + length, sectors)?;
            fill(&mut sectors[skip as usize..(skip + length) as usize]);
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
            // Nobody else writes there in this turn.
            let (place, sector) = (start.after(at), &mut [IoSliceMut::new(sector)]);
            self.read_stored(place, sector)?;
            self.decrypt(cipher, place, sector);
        }
        Ok(())
    }
}
