//! What an image is among disks of other formats.

use super::cipher::Cipher;
use super::core::validate;
use super::unlock::{check_header, encryption, encryption_header, unlock, unlock_again};
use super::{CoreSettings, ExclusiveImage, Image};
use crate::crypto::wipe_stack;
use crate::disk::{
    Disk, Draft, Encryption, Files, Format, LuksHeader, Names, PackedClusters, Parts, Settings, Status,
    Stopped, Unlocking, UseHost, ZeroFlags,
};
use crate::error::{Error, Result};
use crate::format::bitmap::stored_bytes;
use crate::format::extensions::{BACKING_FORMAT, DATA_FILE};
use crate::format::features::{INCOMPAT_DATA_FILE, INCOMPAT_DIRTY};
use crate::format::Header;
use crate::meta::bitmap_directory::load_bitmaps;
use crate::meta::read_header;
use crate::storage::access::Identity;
use crate::storage::Storage;
use std::any::Any;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

impl Image {
    /// What the format is called.
    pub const NAME: &str = "qcow2";
    /// How many bytes at the start of a file tell whether it is an image.
    pub const MAGIC_BYTES: usize = 8;

    /// Whether a file that begins so is an image: "QFI\xfb", and a version that is not one of the older format of that
    /// name.
    pub fn begins_with(start: &[u8]) -> bool {
        start.len() >= Self::MAGIC_BYTES && start.starts_with(b"QFI\xfb") && start[4..8] > [0, 0, 0, 1][..]
    }

    /// The image that a disk is; `None`: it has another format.
    #[inline]
    pub fn find(disk: &Disk) -> Option<&Image> {
        disk.find()
    }

    /// The image that a disk is, for somebody who wants `what`, which only images have.
    pub fn of<'a>(disk: &'a Disk, what: &str) -> Result<&'a Image> {
        disk.need(what)
    }

    /// Looks at a file that is to be opened.
    pub fn draft(storage: Arc<dyn Storage>, settings: Settings) -> Result<Box<dyn Draft>> {
        let (header, _) = read_header(&*storage)?;
        validate(&header, &core_settings(settings.clone()))?;
        check_header(&header, &*storage)?;
        let draft = ImageDraft { storage, header, settings, cipher: None };
        if draft.settings.options.data_file.is_some() && !draft.has_data_file() {
            return Err(Error::invalid("'data-file' can only be set for images with an external data file"));
        }
        Ok(Box::new(draft))
    }
}

fn core_settings(settings: Settings) -> CoreSettings {
    let Settings { options, read_only, metadata_only } = settings;
    CoreSettings { options, read_only, metadata_only, backing: None, data_file: None, cipher: None }
}

fn names(header: &Header) -> Names {
    let extension = |kind| header.extension(kind).map(<[u8]>::to_vec);
    Names {
        backing: header.backing_file.clone(),
        backing_format: extension(BACKING_FORMAT),
        data_file: extension(DATA_FILE),
    }
}

/// A file whose header is an image's.
struct ImageDraft {
    storage: Arc<dyn Storage>,
    header: Header,
    settings: Settings,
    cipher: Option<Arc<Cipher>>,
}

impl Draft for ImageDraft {
    fn names(&self) -> Names {
        names(&self.header)
    }

    fn has_data_file(&self) -> bool {
        self.header.incompatible & INCOMPAT_DATA_FILE != 0
    }

    fn is_dirty(&self) -> bool {
        self.header.incompatible & INCOMPAT_DIRTY != 0
    }

    fn unlock(&mut self, unlocking: &mut Unlocking<'_>) -> Result<()> {
        let cipher = unlock(&self.header, &*self.storage, unlocking);
        // Of what that call itself has left there.
        wipe_stack();
        self.cipher = cipher?;
        Ok(())
    }

    fn open(self: Box<Self>, parts: Parts) -> Result<Disk> {
        let mut settings = core_settings(self.settings);
        settings.metadata_only |= parts.inactive;
        (settings.backing, settings.data_file) = (parts.backing, parts.data_file);
        settings.cipher = self.cipher;
        let image = Image::open(self.storage, settings)?;
        if parts.inactive {
            image.exclusive().deactivate();
        }
        Ok(Disk::new(image))
    }
}

impl Format for Image {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn storage(&self) -> Arc<dyn Storage> {
        Arc::clone(self.core().storage())
    }

    fn data_identity(&self) -> Option<Identity> {
        self.core().shared.medium.data_identity()
    }

    fn length(&self) -> u64 {
        self.length()
    }

    #[inline]
    fn read_short(&self, offset: u64, buffer: &mut [u8]) -> Result<bool> {
        self.read_short(offset, buffer)
    }

    fn read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.read(offset, buffers)
    }

    fn status(&self, offset: u64, length: u64, top_only: bool) -> Result<Status> {
        self.status(offset, length, top_only)
    }

    fn reads_zero(&self, offset: u64, length: u64) -> Result<bool> {
        self.reads_zero(offset, length)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn stop(&self) -> Box<dyn Stopped + '_> {
        Box::new(self.exclusive())
    }

    fn backing(&self) -> Option<Disk> {
        self.core().backing().cloned()
    }

    fn is_read_only(&self) -> bool {
        self.core().is_read_only()
    }

    fn is_snapshot(&self) -> bool {
        self.core().is_snapshot()
    }

    fn settle_runs(&self) -> Result<()> {
        self.settle_runs()
    }

    fn with_host_bytes(&self, offset: u64, length: u64, use_host: UseHost<'_>) -> Result<u64> {
        self.with_host_bytes(offset, length, use_host)
    }

    fn clean_caches(&self) -> Result<()> {
        self.clean_caches()
    }

    #[inline]
    fn overwrite(&self, offset: u64, bytes: &[u8]) -> Result<bool> {
        self.overwrite(offset, bytes)
    }

    fn write(&self, offset: u64, buffers: &[IoSlice<'_>], fua: bool) -> Result<()> {
        self.write(offset, buffers, fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags, fua: bool) -> Result<()> {
        self.write_zeroes(offset, length, flags, fua)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.discard(offset, length)
    }

    fn write_from(&self, offset: u64, length: u64, source: &dyn Storage, at: u64) -> Result<u64> {
        self.write_from(offset, length, source, at)
    }

    fn flush(&self) -> Result<()> {
        self.flush()
    }

    fn compressed_unit(&self) -> Option<u64> {
        Some(self.core().geometry().cluster_bytes())
    }

    fn write_compressed(&self, offset: u64, buffers: &[IoSlice<'_>], fua: bool) -> Result<()> {
        self.write_compressed(offset, buffers, fua)
    }

    fn pack(&self, offset: u64, data: &[u8]) -> Result<PackedClusters> {
        self.pack(offset, data)
    }

    fn write_packed(&self, packed: &PackedClusters, offset: u64, data: &[u8]) -> Result<()> {
        self.write_packed(packed, offset, data)
    }

    fn bitmaps_bytes(&self, cluster_bytes: u64) -> Option<u64> {
        let core = self.core();
        let header = core.header();
        let list = load_bitmaps(&**core.storage(), &header).ok().filter(|_| header.version >= 3)?;
        Some(stored_bytes(&list, header.virtual_size, cluster_bytes))
    }

    fn encryption(&self) -> Result<Option<(Encryption, Option<LuksHeader>)>> {
        let core = self.core();
        let Some(method) = encryption(&core.header())? else { return Ok(None) };
        let luks = encryption_header(&core.header(), &**core.storage())?;
        Ok(Some((method, luks.map(|(pointer, header)| LuksHeader { at: pointer.offset, header }))))
    }

    fn read_vm_state(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.read_vm_state(offset, buffer)
    }
}

impl ExclusiveImage<'_> {
    /// The settings in force, but for these.
    fn with_settings(&self, files: &Files, settings: Settings) -> CoreSettings {
        let old = self.core().settings().clone();
        let Settings { options, read_only, metadata_only } = settings;
        CoreSettings { options, read_only, metadata_only, data_file: files.data.clone(), ..old }
    }
}

impl Stopped for ExclusiveImage<'_> {
    fn settle(&self) -> Result<()> {
        self.settle_with_bitmaps()
    }

    fn close(&self) -> Result<()> {
        match self.core().is_read_only() {
            true => Ok(()),
            false => self.settle_with_bitmaps(),
        }
    }

    fn names(&self) -> Names {
        names(&self.core().header())
    }

    fn is_chain_kept(&self) -> bool {
        self.image().is_chain_kept()
    }

    fn check(&self, settings: &Settings) -> Result<()> {
        validate(&self.core().header(), &core_settings(settings.clone()))
    }

    fn reload(&self, files: Files, settings: Settings) -> Result<()> {
        let settings = self.with_settings(&files, settings);
        self.forget_bitmaps();
        self.reload_from(files.image, settings)
    }

    fn deactivate(&self) {
        self.deactivate()
    }

    fn activate(
        &self,
        files: Files,
        settings: Settings,
        backing: Option<Disk>,
        unlocking: &mut Unlocking<'_>,
    ) -> Result<()> {
        let mut settings = CoreSettings { backing, ..self.with_settings(&files, settings) };
        if !settings.metadata_only {
            settings.cipher = unlock_again(settings.cipher.take(), &*files.image, unlocking)?;
        }
        self.activate(files.image, settings)
    }
}
