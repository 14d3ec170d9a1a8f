//! Guest bytes: the only door through which those of an open image go to a storage and come from one.
//!
//! Called by the verbs of this folder with a [`Place`]: what the guest calls the bytes, and where they are in the storage
//! of guest data. A cipher stands here: it needs the guest's offset of what it turns into the host's bytes, and nothing
//! else in the engine has to know of it but where a host's zero would not be the guest's
//! ([`Payload::zeroes_are_zero`]).
//!
//! Every write is checked against the metadata first, closes nothing when it fails, and gives what a pointer to it waits
//! for ([`Written`], R2). Streams of compressed clusters have no place of their own at the guest: they are stored as they
//! are.

use super::cipher::Cipher;
use crate::error::{Error, Result};
use crate::format::{GuestOffset, HostOffset};
use crate::meta::guard::Owner;
use crate::meta::OverlapGuard;
use crate::options::Preallocation;
use crate::storage::medium::{Medium, Written};
use crate::storage::{reserve_range, zero_range, HostRun, Purpose, Storage};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

/// Bytes of zeroes that are written at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// Where guest bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// What the guest calls the first one, bytes.
    pub(crate) guest: GuestOffset,
    /// Its offset in the storage of guest data, bytes.
    pub(crate) host: HostOffset,
}

impl Place {
    /// In a data file: at the same offset as for the guest.
    pub(crate) fn apart(guest: GuestOffset) -> Place {
        Place { guest, host: HostOffset(guest.0) }
    }

    /// The place `bytes` further on.
    pub(crate) fn after(self, bytes: u64) -> Place {
        Place { guest: self.guest + bytes, host: self.host + bytes }
    }
}

/// The guest bytes of one state of an image.
pub(crate) struct Payload {
    medium: Arc<Medium>,
    guard: Arc<OverlapGuard>,
    /// In a file of their own, where nothing else is.
    apart: bool,
    /// What they are encrypted with.
    cipher: Option<Arc<Cipher>>,
}

impl Payload {
    pub(super) fn new(
        medium: &Arc<Medium>,
        guard: &Arc<OverlapGuard>,
        apart: bool,
        cipher: Option<Arc<Cipher>>,
    ) -> Payload {
        Payload { medium: Arc::clone(medium), guard: Arc::clone(guard), apart, cipher }
    }

    /// Whether what the host has as zeroes reads as zeroes for the guest: clusters that were never written, holes, and
    /// ranges that the host zeroes or copies by itself.
    pub(crate) fn zeroes_are_zero(&self) -> bool {
        self.cipher.is_none()
    }

    /// Fills `buffers`.
    #[inline]
    pub(crate) fn read(&self, place: Place, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        match &self.cipher {
            None => self.medium.read_data(place.host, buffers),
            Some(cipher) => self.read_encrypted(cipher, place, buffers),
        }
    }

    /// As `read`, of bytes that are stored as they are.
    #[inline(always)]
    pub(super) fn read_plain(&self, place: Place, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        debug_assert!(self.cipher.is_none());
        self.medium.read_data(place.host, buffers)
    }

    /// Fills `buffers` with what is stored.
    pub(super) fn read_stored(&self, place: Place, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.medium.read_data(place.host, buffers)
    }

    /// Writes what is to be stored.
    pub(super) fn write_stored(&self, place: Place, bytes: &[u8]) -> Result<Written> {
        self.medium.write_data(place.host, &[IoSlice::new(bytes)])
    }

    /// For an entry that says zero, whatever its cluster holds; and before the first of several writes.
    pub(super) fn nothing_written(&self) -> Written {
        self.medium.written()
    }

    /// Writes `buffers`.
    #[inline]
    pub(crate) fn write(&self, place: Place, buffers: &[IoSlice<'_>]) -> Result<Written> {
        self.check(place.host, buffers.iter().map(|b| b.len() as u64).sum())?;
        match &self.cipher {
            None => self.medium.write_data(place.host, buffers),
            Some(cipher) => self.write_encrypted(cipher, place, buffers),
        }
    }

    /// Writes `bytes`, which are stored as they are, where a look tells that nothing else is there; `None`: it cannot, and
    /// nothing was done.
    #[inline(always)]
    pub(super) fn write_clear(&self, place: Place, bytes: &[u8]) -> Option<Result<Written>> {
        let clear = self.guard.is_clear(place.host, bytes.len() as u64);
        clear.then(|| self.medium.write_data(place.host, &[IoSlice::new(bytes)]))
    }

    /// Has the host copy `bytes` from another file. Bytes that are as the guest sees them, both here and there.
    pub(super) fn copy_from(
        &self,
        place: Place,
        source: &dyn Storage,
        source_offset: u64,
        bytes: u64,
    ) -> Result<Written> {
        self.check(place.host, bytes)?;
        self.medium.copy_data(place.host, source, source_offset, bytes)
    }

    /// The file and the offset in it where guest bytes are as the guest sees them.
    pub(super) fn in_file(&self, place: Place) -> Option<(&dyn Storage, HostOffset)> {
        self.zeroes_are_zero().then(|| (&**self.medium.data_storage(), place.host))
    }

    /// Makes `bytes` read as zeroes, which nothing points to yet.
    pub(crate) fn zero(&self, place: Place, bytes: u64) -> Result<Written> {
        if let Some(cipher) = &self.cipher {
            return self.zero_encrypted(cipher, place, bytes);
        }
        let zeroed = |storage: &dyn Storage| zero_range(storage, Purpose::Data, place.host.0, bytes);
        self.medium.reshape_data(zeroed)??;
        Ok(self.medium.written())
    }

    /// As `zero`, in clusters of which nobody says what the guest will call them: not possible where the host's zeroes are
    /// not the guest's.
    pub(crate) fn zero_unplaced(&self, host_offset: HostOffset, bytes: u64) -> Result<Written> {
        match self.zeroes_are_zero() {
            true => self.zero(Place { guest: GuestOffset(0), host: host_offset }, bytes),
            false => {
                Err(Error::unsupported("clusters of zeroes in an image whose data is not stored as it is"))
            }
        }
    }

    /// Fills `stream` with what was stored there.
    pub(super) fn read_stream(&self, host_offset: HostOffset, stream: &mut [u8]) -> Result<()> {
        self.medium.read_data(host_offset, &mut [IoSliceMut::new(stream)])
    }

    /// Stores streams, which nothing points to yet.
    pub(super) fn write_streams(&self, host_offset: HostOffset, streams: &[u8]) -> Result<Written> {
        self.guard.check(Owner(0), host_offset, streams.len() as u64)?;
        self.medium.write_data(host_offset, &[IoSlice::new(streams)])
    }

    /// Fails when a write would hit metadata.
    #[inline]
    fn check(&self, host_offset: HostOffset, bytes: u64) -> Result<()> {
        match self.apart {
            true => Ok(()),
            false => self.guard.check(Owner(0), host_offset, bytes),
        }
    }

    /// Has the host take room for bytes that nothing points to yet and that read as zeroes; `None`: as `how` says, it need
    /// not, and nothing was written.
    pub(crate) fn take_room(&self, place: Place, bytes: u64, how: Preallocation) -> Result<Option<Written>> {
        match how {
            Preallocation::Off | Preallocation::Metadata => return Ok(None),
            Preallocation::Falloc => {
                let reserve =
                    |storage: &dyn Storage| reserve_range(storage, Purpose::Data, place.host.0, bytes);
                let done = self.medium.reshape_data(reserve)?;
                done.map_err(|e| Error::host("preallocating host space", &e))?;
            }
            Preallocation::Full => {
                let zeroes = vec![0; bytes.min(CHUNK_BYTES) as usize];
                for at in (0..bytes).step_by(CHUNK_BYTES as usize) {
                    let part = &zeroes[..(bytes - at).min(CHUNK_BYTES) as usize];
                    self.medium.write_data(place.host + at, &[IoSlice::new(part)])?;
                }
            }
        }
        Ok(Some(self.medium.written()))
    }

    /// Gives a range back to the host; whether it reads as zeroes now. A courtesy: a host that cannot is no error.
    pub(crate) fn give_back(&self, host_offset: HostOffset, bytes: u64) -> Result<bool> {
        let given = self.medium.reshape_data(|storage| storage.discard(host_offset.0, bytes))?.is_ok();
        Ok(given && self.medium.data_storage().traits().discard_zeroes)
    }

    /// Makes bytes of a live range read as zeroes by giving them back to the host, where it does so; `None`: it does not.
    pub(super) fn punch(&self, host_offset: HostOffset, bytes: u64) -> Result<Option<Written>> {
        let zeroes = self.medium.data_storage().traits().discard_zeroes;
        Ok((zeroes && self.give_back(host_offset, bytes)?).then(|| self.medium.written()))
    }

    /// Makes bytes of a live range read as zeroes; `quick`: by the host's means, or not at all.
    pub(super) fn zero_in_place(&self, place: Place, bytes: u64, quick: bool) -> Result<Written> {
        self.medium.reshape_data(|storage| match quick {
            true => storage
                .write_zeroes(Purpose::Data, place.host.0, bytes)
                .map_err(|e| Error::host("zeroing the data file", &e)),
            false => zero_range(storage, Purpose::Data, place.host.0, bytes),
        })??;
        Ok(self.medium.written())
    }

    /// Frees what requests have kept for the next ones.
    pub(super) fn forget(&self) {
        if let Some(cipher) = &self.cipher {
            cipher.bounces.clear();
        }
    }

    /// Length of the storage of guest data, bytes.
    pub(super) fn length(&self) -> Result<u64> {
        self.medium.data_storage().length().map_err(|e| Error::host("length of the data file", &e))
    }

    /// Cuts or extends the data file; what the host said of it.
    pub(super) fn set_length(&self, length: u64) -> Result<io::Result<()>> {
        self.medium.reshape_data(|storage| storage.set_length(length))
    }

    /// What the host has at an offset; all data where it cannot tell now.
    pub(super) fn run(&self, host_offset: HostOffset) -> io::Result<HostRun> {
        self.medium.data_run(host_offset)
    }
}
