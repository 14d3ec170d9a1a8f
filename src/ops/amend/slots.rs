//! Key slots of an image's LUKS header, and of a plain LUKS file's.

use crate::disk::luks::{header_of, LuksDisk};
use crate::disk::Format;
use crate::error::{Error, ErrorKind, Result};
use crate::format::extensions::EncryptionPointer;
use crate::image::{encryption_header, Core, ExclusiveImage};
use crate::ops::handle::Handle;
use crate::ops::secrets::Secrets;
use crate::ops::slots::{self, Asking, Prepared, Store};
use crate::options::{AmendOptions, SlotChange};
use crate::storage::{read_exact, write_all, Purpose, Storage};
use std::ffi::OsStr;
use std::sync::Arc;

/// The header in the image that has it.
struct InImage {
    core: Arc<Core>,
    at: u64,
    length: u64,
}

impl InImage {
    fn new(core: Arc<Core>, pointer: &EncryptionPointer) -> InImage {
        InImage { core, at: pointer.offset, length: pointer.bytes }
    }
}

impl Store for InImage {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let done = self.core.medium().read_table(Purpose::Encryption, self.at + offset, out);
        done.map_err(|e| e.within("encryption header"))
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.core.medium().write_live(Purpose::Encryption, self.at + offset, bytes)
    }

    fn sync(&self) -> Result<()> {
        self.core.medium().sync_step()
    }

    fn length(&self) -> u64 {
        self.length
    }
}

/// What the options ask of the key slots, ready to be written; `None`: nothing.
pub(super) fn prepare(
    image: &ExclusiveImage<'_>,
    options: &AmendOptions,
    handle: &Handle,
    force: bool,
    secrets: &mut Secrets<'_>,
) -> Result<Option<Prepared>> {
    let core = image.core();
    if options.names_slots() && core.header().crypt_method != 2 {
        return Err(Error::unsupported("Only LUKS encryption options can be amended"));
    }
    let Some(change) = options.slot_change()? else { return Ok(None) };
    let Some((pointer, header)) = encryption_header(&core.header(), &**core.storage())? else {
        return Ok(None);
    };
    let file = handle.origin().shown();
    let mut asking = Asking { secrets, file, key_option: "encrypt.key-secret", force };
    slots::prepare(&header, &InImage::new(core, &pointer), &change, &mut asking).map(Some)
}

/// Writes what has been prepared.
pub(super) fn carry_out(image: &ExclusiveImage<'_>, prepared: &Prepared) -> Result<()> {
    let core = image.core();
    core.structure_writer()?;
    let Some((pointer, _)) = encryption_header(&core.header(), &**core.storage())? else { return Ok(()) };
    prepared.carry_out(&InImage::new(core, &pointer))
}

/// The header at the start of a plain LUKS file.
struct InFile<'a>(&'a dyn Storage);

impl Store for InFile<'_> {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        read_exact(self.0, Purpose::Encryption, offset, out)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        write_all(self.0, Purpose::Encryption, offset, bytes)
    }

    fn sync(&self) -> Result<()> {
        self.0.sync().map_err(|e| Error::host("sync of the LUKS file", &e))
    }

    /// As far as the header says.
    fn length(&self) -> u64 {
        u64::MAX
    }
}

/// Changes key slots of a plain LUKS file.
pub(super) fn amend_luks(
    disk: &LuksDisk,
    handle: &Handle,
    options: &[impl AsRef<OsStr>],
    force: bool,
    secrets: &mut Secrets<'_>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<()> {
    let change = SlotChange::parse_luks(options)?;
    if disk.is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly, "the disk is open read-only"));
    }
    let alone = disk.exclusive();
    alone.change_header(|file| {
        let Some(change) = &change else { return Ok(()) };
        let mut asking = Asking { secrets, file: handle.origin().shown(), key_option: "key-secret", force };
        let store = InFile(file);
        slots::prepare(&header_of(file)?, &store, change, &mut asking)?.carry_out(&store)
    })?;
    progress(1, 1);
    Ok(())
}
