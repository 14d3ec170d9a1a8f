//! The data of a LUKS file as a storage: what is read is decrypted, what is written is encrypted.
//!
//! Sectors of 512 bytes, numbered from where the data starts. A write of a part of a sector reads the sector first, and is
//! alone with it meanwhile ([`crate::storage::turns`]). Zeroes of the host are none here: there are no holes, and nothing
//! that zeroes without writing.

use crate::crypto::{Sectors, SECTOR_BYTES};
use crate::format::HostOffset;
use crate::storage::access::Identity;
use crate::storage::aligned::Aligned;
use crate::storage::file::KeyPages;
use crate::storage::pool::Pool;
use crate::storage::turns::Turns;
use crate::storage::{HostRun, Purpose, Storage, Traits};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;
use zeroize::Zeroize;

const SECTOR: u64 = SECTOR_BYTES as u64;
/// Most bytes that are encrypted before they are written.
const BOUNCE_BYTES: u64 = 1 << 20;

/// The key of a disk, and whose turn it is with its sectors. It has no `Debug`.
pub(super) struct Key {
    sectors: KeyPages<Sectors<u64>>,
    turns: Turns,
    /// Buffers for what is encrypted before it is written, and for parts of sectors.
    bounces: Pool<Aligned>,
}

impl Key {
    pub(super) fn new(sectors: Sectors<u64>) -> io::Result<Key> {
        Ok(Key { sectors: KeyPages::new(sectors)?, turns: Turns::default(), bounces: Pool::default() })
    }
}

/// The data of a LUKS file; without a key it has a length and nothing else.
pub(super) struct LuksData {
    pub(super) file: Arc<dyn Storage>,
    /// Where data starts in the file.
    pub(super) data_offset: u64,
    pub(super) key: Option<Arc<Key>>,
}

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl LuksData {
    fn key(&self) -> io::Result<&Key> {
        self.key.as_deref().ok_or_else(|| error(libc::EPERM))
    }

    fn at(&self, offset: u64) -> io::Result<u64> {
        self.data_offset.checked_add(offset).ok_or_else(|| error(libc::EFBIG))
    }

    /// Fills whole sectors, as they are while nobody writes a part of one.
    fn read_sectors(
        &self,
        key: &Key,
        purpose: Purpose,
        offset: u64,
        buffers: &mut [IoSliceMut<'_>],
    ) -> io::Result<()> {
        let seen = key.turns.look();
        if seen.is_some() {
            self.file.read(purpose, self.at(offset)?, buffers)?;
        }
        if !seen.is_some_and(|seen| key.turns.is_as_seen(seen)) {
            let bytes = buffers.iter().map(|b| b.len() as u64).sum();
            let _turn = key.turns.read(HostOffset(offset), bytes);
            self.file.read(purpose, self.at(offset)?, buffers)?;
        }
        let mut at = offset;
        for buffer in buffers {
            key.sectors.decrypt(at, buffer);
            at += buffer.len() as u64;
        }
        Ok(())
    }

    fn read_parts(
        &self,
        key: &Key,
        purpose: Purpose,
        offset: u64,
        buffers: &mut [IoSliceMut<'_>],
        room: &mut [u8],
    ) -> io::Result<()> {
        let mut at = offset;
        for buffer in buffers {
            let mut rest: &mut [u8] = buffer;
            while !rest.is_empty() {
                let skip = at % SECTOR;
                let length = (rest.len() as u64).min(room.len() as u64 - skip);
                let (part, later) = rest.split_at_mut(length as usize);
                let sectors = &mut room[..(skip + length).next_multiple_of(SECTOR) as usize];
                self.read_sectors(key, purpose, at - skip, &mut [IoSliceMut::new(sectors)])?;
                part.copy_from_slice(&sectors[skip as usize..][..length as usize]);
                (rest, at) = (later, at + length);
            }
        }
        Ok(())
    }

    fn read_any(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let key = self.key()?;
        if offset % SECTOR == 0 && buffers.iter().all(|b| b.len() as u64 % SECTOR == 0) {
            return self.read_sectors(key, purpose, offset, buffers);
        }
        let bytes = buffers.iter().map(|b| b.len() as u64).sum::<u64>();
        with_room(key, (offset % SECTOR + bytes).next_multiple_of(SECTOR), |room| {
            let done = self.read_parts(key, purpose, offset, buffers, room);
            room.zeroize();
            done
        })
    }

    /// Writes what `fill` puts into each part, from its first byte on.
    fn write_parts(
        &self,
        purpose: Purpose,
        offset: u64,
        bytes: u64,
        mut fill: impl FnMut(&mut [u8]),
    ) -> io::Result<()> {
        let key = self.key()?;
        if bytes == 0 {
            return Ok(());
        }
        let _turn = key.turns.write(HostOffset(offset), bytes);
        with_room(key, (offset % SECTOR + bytes).next_multiple_of(SECTOR), |room| {
            let done = self.write_in_steps(key, purpose, offset, bytes, room, &mut fill);
            if done.is_err() {
                // It may hold the guest's bytes.
                room.zeroize();
            }
            done
        })
    }

    fn write_in_steps(
        &self,
        key: &Key,
        purpose: Purpose,
        offset: u64,
        bytes: u64,
        room: &mut [u8],
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> io::Result<()> {
        let mut done = 0;
        while done < bytes {
            let at = offset + done;
            let skip = at % SECTOR;
            let length = (bytes - done).min(room.len() as u64 - skip);
            let (start, end) = (at - skip, skip + length);
            let sectors = &mut room[..end.next_multiple_of(SECTOR) as usize];
            let last = sectors.len() as u64 - SECTOR;
            // Whoever is at a part of a sector is alone there.
            let keep = |at: u64, sector: &mut [u8]| -> io::Result<()> {
                self.file.read(purpose, self.at(at)?, &mut [IoSliceMut::new(sector)])?;
                key.sectors.decrypt(at, sector);
                Ok(())
            };
            if skip > 0 {
                keep(start, &mut sectors[..SECTOR_BYTES])?;
            }
            if end % SECTOR > 0 && (last > 0 || skip == 0) {
                keep(start + last, &mut sectors[last as usize..])?;
            }
            fill(&mut sectors[skip as usize..end as usize]);
            key.sectors.encrypt(start, sectors);
            self.file.write(purpose, self.at(start)?, &[IoSlice::new(sectors)])?;
            done += length;
        }
        Ok(())
    }
}

/// Runs `work` with a buffer of so many bytes, or of as many as are encrypted at once.
fn with_room<T>(key: &Key, bytes: u64, work: impl FnOnce(&mut [u8]) -> io::Result<T>) -> io::Result<T> {
    let mut bounce = key.bounces.take().unwrap_or_default();
    let room = bounce.room("sectors of a LUKS file", bytes.min(BOUNCE_BYTES) as usize);
    let done = work(room.map_err(|_| error(libc::ENOMEM))?);
    key.bounces.put(bounce);
    done
}

impl Storage for LuksData {
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let done = self.read_any(purpose, offset, buffers);
        if done.is_err() {
            buffers.iter_mut().for_each(|buffer| buffer.fill(0));
        }
        done
    }

    fn write(&self, purpose: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes = buffers.iter().map(|b| b.len() as u64).sum();
        let mut source = buffers.iter().flat_map(|buffer| buffer.chunks(SECTOR_BYTES));
        let mut left: &[u8] = &[];
        self.write_parts(purpose, offset, bytes, |mut part| {
            while !part.is_empty() {
                if left.is_empty() {
                    left = source.next().unwrap_or_default();
                    continue;
                }
                let length = left.len().min(part.len());
                let (now, later) = std::mem::take(&mut part).split_at_mut(length);
                now.copy_from_slice(&left[..length]);
                (part, left) = (later, &left[length..]);
            }
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn length(&self) -> io::Result<u64> {
        let length = self.file.length()?;
        // As the stock tools refuse a file that ends before its data starts.
        length.checked_sub(self.data_offset).ok_or_else(|| error(libc::EIO))
    }

    fn size_limit(&self) -> u64 {
        self.file.size_limit().saturating_sub(self.data_offset)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_length(self.at(length)?)
    }

    fn grow(&self, length: u64) -> io::Result<u64> {
        let now = self.file.grow(self.at(length)?)?;
        Ok(now.saturating_sub(self.data_offset))
    }

    fn write_zeroes(&self, _: Purpose, _: u64, _: u64) -> io::Result<()> {
        Err(error(libc::EOPNOTSUPP))
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(error(libc::EOPNOTSUPP))
    }

    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.file.preallocate(self.at(offset)?, length)
    }

    fn host_run(&self, _offset: u64) -> io::Result<HostRun> {
        Ok(HostRun { data: true, end: self.length()? })
    }

    fn settle_runs(&self) -> io::Result<()> {
        Ok(())
    }

    fn traits(&self) -> Traits {
        let file = self.file.traits();
        let alignment = file.alignment.max(SECTOR);
        Traits { alignment, zero_past_end: false, discard_zeroes: false, read_only: file.read_only }
    }

    fn is_device(&self) -> bool {
        self.file.is_device()
    }

    fn identity(&self) -> Option<Identity> {
        self.file.identity()
    }
}
