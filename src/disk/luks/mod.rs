//! A plain LUKS1 file as a disk: the header with its key slots at the start of the file, the encrypted data behind it.
//!
//! What a raw disk is over a file, this one is over the data of a LUKS file ([`storage::LuksData`]). What the file has
//! there when nothing has been written reads as anything: a new disk is not one of zeroes.

mod key;
mod storage;

pub(crate) use key::{master_key, work, wrong_secret};

use super::raw::{ExclusiveRaw, RawDisk};
use super::{
    Disk, Draft, Encryption, Files, Format, LuksHeader, Parts, Secret, Settings, Status, Stopped, Unlocking,
    ZeroFlags,
};
use crate::crypto::luks::{Header, HEADER_BYTES};
use crate::crypto::{wipe_stack, Sectors};
use crate::error::{Error, ErrorKind, Result};
use crate::options::Preallocation;
use crate::storage::access::Identity;
use crate::storage::{read_exact, Purpose, Storage};
use crate::sync::locked;
use std::any::Any;
use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex};
use storage::{Key, LuksData};

/// What a disk is between two looks at its header.
#[derive(Clone)]
struct Opened {
    file: Arc<dyn Storage>,
    header: Arc<Header>,
    key: Option<Arc<Key>>,
}

impl Opened {
    fn data(&self) -> Arc<dyn Storage> {
        Arc::new(LuksData {
            file: Arc::clone(&self.file),
            data_offset: self.header.data_offset(),
            key: self.key.clone(),
        })
    }

    /// Whether the key of this one opens what `header` says.
    fn fits(&self, header: &Header) -> bool {
        self.header.digest == header.digest
            && self.header.spec == header.spec
            && self.header.data_sector == header.data_sector
    }
}

/// A plain LUKS file.
pub struct LuksDisk {
    raw: RawDisk,
    now: Mutex<Opened>,
}

/// One whose requests wait outside.
pub struct ExclusiveLuks<'a> {
    disk: &'a LuksDisk,
    raw: ExclusiveRaw<'a>,
}

struct LuksDraft {
    opened: Opened,
    settings: Settings,
}

/// The header at the start of a file.
pub fn header_of(file: &dyn Storage) -> Result<Header> {
    let mut bytes = [0; HEADER_BYTES];
    read_exact(file, Purpose::Encryption, 0, &mut bytes)?;
    Header::parse(&bytes)
}

fn unlock(header: &Header, file: &dyn Storage, unlocking: &mut Unlocking<'_>) -> Result<Arc<Key>> {
    header.spec.check()?;
    let secret = Secret::ask(|room| (unlocking.ask)(Encryption::Luks, room))?;
    let secret = secret.ok_or_else(|| Secret::missing("key-secret"))?;
    let key = master_key(
        header,
        &secret,
        &mut |at, out| read_exact(file, Purpose::Encryption, at, out),
        unlocking,
    )?;
    let sectors = Sectors::new(&header.spec, &key[..header.spec.key_bytes])?;
    let key = Key::new(sectors).map_err(|e| Error::host("memory for a key", &e));
    wipe_stack();
    key.map(Arc::new)
}

impl Draft for LuksDraft {
    fn unlock(&mut self, unlocking: &mut Unlocking<'_>) -> Result<()> {
        let key = unlock(&self.opened.header, &*self.opened.file, unlocking);
        wipe_stack();
        self.opened.key = Some(key?);
        Ok(())
    }

    fn open(self: Box<Self>, parts: Parts) -> Result<Disk> {
        let LuksDraft { opened, settings } = *self;
        let raw = RawDisk::open(opened.data(), settings.read_only, settings.options.cache.sync_each_write());
        let raw = raw.map_err(|e| e.within("Could not refresh total sector count"))?;
        let disk = LuksDisk { raw, now: Mutex::new(opened) };
        if parts.inactive {
            disk.exclusive().deactivate();
        }
        Ok(Disk::new(disk))
    }
}

impl LuksDisk {
    /// What the format is called.
    pub const NAME: &str = "luks";

    /// Whether a file begins as one.
    pub fn begins_with(start: &[u8]) -> bool {
        Header::begins_with(start)
    }

    /// Looks at a file that is to be opened.
    pub fn draft(storage: Arc<dyn Storage>, settings: Settings) -> Result<Box<dyn Draft>> {
        let header = Arc::new(header_of(&*storage)?);
        Ok(Box::new(LuksDraft { opened: Opened { file: storage, header, key: None }, settings }))
    }

    /// Keeps every request out.
    pub fn exclusive(&self) -> ExclusiveLuks<'_> {
        ExclusiveLuks { disk: self, raw: self.raw.exclusive() }
    }

    fn now(&self) -> Opened {
        locked(self.now.lock()).clone()
    }

    /// Guest I/O needs the key.
    fn check_key(&self) -> Result<()> {
        match locked(self.now.lock()).key.is_some() {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::NotAllowed, "the disk is open for its metadata only")),
        }
    }
}

impl Format for LuksDisk {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn storage(&self) -> Arc<dyn Storage> {
        self.now().file
    }

    fn length(&self) -> u64 {
        self.raw.length()
    }

    fn read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.check_key()?;
        self.raw.read(offset, buffers)
    }

    fn status(&self, offset: u64, length: u64, top_only: bool) -> Result<Status> {
        // Nobody finds the guest's bytes in the file.
        Ok(Status { host: None, ..self.raw.status(offset, length, top_only)? })
    }

    fn data_identity(&self) -> Option<Identity> {
        None
    }

    fn is_read_only(&self) -> bool {
        self.raw.is_read_only()
    }

    fn settle_runs(&self) -> Result<()> {
        self.raw.settle_runs()
    }

    fn write(&self, offset: u64, buffers: &[IoSlice<'_>], fua: bool) -> Result<()> {
        self.check_key()?;
        self.raw.write(offset, buffers, fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags, fua: bool) -> Result<()> {
        self.check_key()?;
        self.raw.write_zeroes(offset, length, flags, fua)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.check_key()?;
        self.raw.discard(offset, length)
    }

    /// The host would copy what is not encrypted, or under another key.
    fn write_from(&self, _offset: u64, _length: u64, _source: &dyn Storage, _at: u64) -> Result<u64> {
        Ok(0)
    }

    fn flush(&self) -> Result<()> {
        self.raw.flush()
    }

    fn encryption(&self) -> Result<Option<(Encryption, Option<LuksHeader>)>> {
        let header = header_of(&*self.now().file)?;
        Ok(Some((Encryption::Luks, Some(LuksHeader { at: 0, header }))))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn stop(&self) -> Box<dyn Stopped + '_> {
        Box::new(self.exclusive())
    }
}

impl ExclusiveLuks<'_> {
    /// Changes the size to `size`, with room on the host as asked for. On failure it is as it was. What is added reads as
    /// anything, unless it is written.
    pub fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.disk.check_key()?;
        self.raw.resize(size, preallocation)
    }

    /// Runs a change of the header in its file, and has what the disk knows of it read anew.
    pub(crate) fn change_header(&self, change: impl FnOnce(&dyn Storage) -> Result<()>) -> Result<()> {
        self.raw.settle()?;
        let now = self.disk.now();
        change(&*now.file)?;
        let header = Arc::new(header_of(&*now.file)?);
        *locked(self.disk.now.lock()) = Opened { header, ..now };
        Ok(())
    }

    fn put(&self, opened: Opened, settings: Settings, data: Option<Arc<dyn Storage>>) -> Result<()> {
        let data = Files { image: data.unwrap_or_else(|| opened.data()), data: None };
        self.raw.reload(data, settings)?;
        *locked(self.disk.now.lock()) = opened;
        Ok(())
    }
}

impl Stopped for ExclusiveLuks<'_> {
    fn settle(&self) -> Result<()> {
        self.raw.settle()
    }

    fn reload(&self, files: Files, settings: Settings) -> Result<()> {
        let now = self.disk.now();
        if !now.fits(&header_of(&*files.image)?) {
            let text = "the disk is encrypted in another way than before: open it anew";
            return Err(Error::invalid(text));
        }
        self.put(Opened { file: files.image, ..now }, settings, None)
    }

    fn deactivate(&self) {
        self.raw.deactivate();
    }

    fn activate(
        &self,
        files: Files,
        settings: Settings,
        backing: Option<Disk>,
        unlocking: &mut Unlocking<'_>,
    ) -> Result<()> {
        let now = self.disk.now();
        let header = Arc::new(header_of(&*files.image)?);
        let key = match (now.fits(&header), settings.metadata_only) {
            (true, _) | (_, true) => now.key.clone(),
            (false, false) => Some(unlock(&header, &*files.image, unlocking)?),
        };
        let opened = Opened { file: files.image, header, key };
        let data = opened.data();
        self.put(opened, settings.clone(), Some(Arc::clone(&data)))?;
        self.raw.activate(Files { image: data, data: None }, settings, backing, unlocking)
    }
}
