//! The data of a LUKS file as a storage: what is read is decrypted, what is written is encrypted.
//!
//! Sectors of 512 bytes, numbered from where the data starts. A write of a part of a sector reads the sector first, and is
//! alone with it meanwhile. Zeroes of the host are none here: there are no holes, and nothing that zeroes without writing.

use crate::crypto::{Sectors, SECTOR_BYTES};
use crate::storage::access::Identity;
use crate::storage::file::KeyPages;
use crate::storage::{HostRun, Purpose, Storage, Traits};
use crate::sync::locked;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, RwLock};
use zeroize::{Zeroize, Zeroizing};

const SECTOR: u64 = SECTOR_BYTES as u64;
/// Most bytes that are encrypted before they are written.
const BOUNCE_BYTES: u64 = 1 << 20;

/// The key of a disk, and whose turn it is to change a part of a sector. It has no `Debug`.
pub(super) struct Key {
    sectors: KeyPages<Sectors<u64>>,
    parts: RwLock<()>,
}

impl Key {
    pub(super) fn new(sectors: Sectors<u64>) -> io::Result<Key> {
        Ok(Key { sectors: KeyPages::new(sectors)?, parts: RwLock::default() })
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

    /// Fills whole sectors.
    fn read_sectors(&self, key: &Key, purpose: Purpose, offset: u64, sectors: &mut [u8]) -> io::Result<()> {
        self.file.read(purpose, self.at(offset)?, &mut [IoSliceMut::new(sectors)])?;
        key.sectors.decrypt(offset, sectors);
        Ok(())
    }

    fn read_parts(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let key = self.key()?;
        let mut at = offset;
        for buffer in buffers {
            let mut rest: &mut [u8] = buffer;
            while !rest.is_empty() {
                let skip = at % SECTOR;
                let length = (rest.len() as u64).min(BOUNCE_BYTES - skip);
                let (part, later) = rest.split_at_mut(length as usize);
                if skip == 0 && length % SECTOR == 0 {
                    self.read_sectors(key, purpose, at, part)?;
                } else {
                    let mut sectors = room((skip + length).next_multiple_of(SECTOR))?;
                    let done = self.read_sectors(key, purpose, at - skip, &mut sectors);
                    part.copy_from_slice(&sectors[skip as usize..][..length as usize]);
                    sectors.zeroize();
                    done?;
                }
                (rest, at) = (later, at + length);
            }
        }
        Ok(())
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
        let whole = offset % SECTOR == 0 && bytes % SECTOR == 0;
        let (_shared, _alone) = match whole {
            true => (Some(locked(key.parts.read())), None),
            false => (None, Some(locked(key.parts.write()))),
        };
        // It may hold the guest's bytes when this fails.
        let mut bounce =
            Zeroizing::new(room((offset % SECTOR + bytes).next_multiple_of(SECTOR).min(BOUNCE_BYTES))?);
        let mut done = 0;
        while done < bytes {
            let at = offset + done;
            let skip = at % SECTOR;
            let length = (bytes - done).min(BOUNCE_BYTES - skip);
            let (start, end) = (at - skip, skip + length);
            let sectors = &mut bounce[..end.next_multiple_of(SECTOR) as usize];
            let last = sectors.len() as u64 - SECTOR;
            if skip > 0 {
                self.read_sectors(key, purpose, start, &mut sectors[..SECTOR_BYTES])?;
            }
            if end % SECTOR > 0 && (last > 0 || skip == 0) {
                self.read_sectors(key, purpose, start + last, &mut sectors[last as usize..])?;
            }
            fill(&mut sectors[skip as usize..end as usize]);
            key.sectors.encrypt(start, sectors);
            self.file.write(purpose, self.at(start)?, &[IoSlice::new(sectors)])?;
            done += length;
        }
        Ok(())
    }
}

fn room(bytes: u64) -> io::Result<Vec<u8>> {
    crate::error::zeroed("sectors of a LUKS file", bytes).map_err(|_| error(libc::ENOMEM))
}

impl Storage for LuksData {
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        // A sector of which a part is being written decrypts to what nobody wrote.
        let part_written = self.key.as_deref().map(|key| locked(key.parts.read()));
        let done = self.read_parts(purpose, offset, buffers);
        drop(part_written);
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
