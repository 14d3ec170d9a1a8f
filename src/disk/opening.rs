//! How a disk comes to be and goes on: what its file says before the files that it names are open, and what is done
//! with it while its requests wait.

use super::Disk;
use crate::error::Result;
use crate::options::OpenOptions;
use crate::storage::Storage;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// How a disk is used, below paths and locks.
#[derive(Clone)]
pub struct Settings {
    /// Caches, cache mode, checks.
    pub options: OpenOptions,
    /// No write is made.
    pub read_only: bool,
    /// No guest I/O: for looks at the header and for checks.
    pub metadata_only: bool,
}

/// The storages of one disk.
#[derive(Clone)]
pub struct Files {
    /// The one that makes it a disk.
    pub image: Arc<dyn Storage>,
    /// Where guest data is, if in one of its own.
    pub data: Option<Arc<dyn Storage>>,
}

/// The other files that a disk's file records, byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Its backing file.
    pub backing: Option<Vec<u8>>,
    /// The backing file's format.
    pub backing_format: Option<Vec<u8>>,
    /// Its external data file.
    pub data_file: Option<Vec<u8>>,
}

/// A name ends where it does for a C program.
fn c_name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes.split(|b| *b == 0).next().unwrap_or_default())
}

impl Names {
    /// The backing file's name.
    pub fn backing_name(&self) -> Option<&OsStr> {
        self.backing.as_deref().map(OsStr::from_bytes)
    }

    /// The backing file's format; none is none given.
    pub fn backing_format_text(&self) -> Option<String> {
        let text = c_name(self.backing_format.as_deref()?).to_string_lossy().into_owned();
        Some(text).filter(|t| !t.is_empty())
    }

    /// The data file's name.
    pub fn data_file_name(&self) -> Option<&OsStr> {
        self.data_file.as_deref().map(c_name)
    }

    /// Whether both record the same backing file.
    pub fn have_same_backing(&self, other: &Names) -> bool {
        (&self.backing, &self.backing_format) == (&other.backing, &other.backing_format)
    }
}

/// What is opened for a disk beside its own file.
#[derive(Default)]
pub struct Parts {
    /// What holes read from.
    pub backing: Option<Disk>,
    /// Where guest data is, if not in its own file.
    pub data_file: Option<Arc<dyn Storage>>,
    /// Another program has the image: nothing but its header is used until it is activated.
    pub inactive: bool,
}

/// How guest data is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// By the key of a LUKS header.
    Luks,
    /// By the older AES: the secret is the key.
    Aes,
}

/// Puts a secret into the buffer, whose pages are made for it, and says how long it is; `None`: there is none.
pub type AskSecret<'a> = dyn FnMut(Encryption, &mut [u8]) -> Result<Option<usize>> + 'a;

/// What opens an encrypted disk.
pub struct Unlocking<'a> {
    /// Has the secret.
    pub ask: &'a mut AskSecret<'a>,
    /// Told how much of the derivation of keys is done, of how much; `false` stops it.
    pub progress: &'a mut dyn FnMut(u64, u64) -> bool,
}

/// A file that has been found to be a disk of its format, and fit for its settings. Nothing has been written.
pub trait Draft {
    /// The files that it records.
    fn names(&self) -> Names {
        Names::default()
    }
    /// Whether guest data is in another file, named or not.
    fn has_data_file(&self) -> bool {
        false
    }
    /// Whether it must be repaired before its first write.
    fn is_dirty(&self) -> bool {
        false
    }
    /// Before guest I/O: asks for the secret of a disk that has one, and finds the key. Nothing is written.
    fn unlock(&mut self, _unlocking: &mut Unlocking<'_>) -> Result<()> {
        Ok(())
    }
    /// The disk, once what it needs is open.
    fn open(self: Box<Self>, parts: Parts) -> Result<Disk>;
}

/// A disk whose requests wait outside.
pub trait Stopped {
    /// Brings everything to the medium and leaves the disk clean.
    fn settle(&self) -> Result<()>;
    /// Settles a disk that nobody will use any more.
    fn close(&self) -> Result<()> {
        self.settle()
    }
    /// The files that the disk records, as they are in force.
    fn names(&self) -> Names {
        Names::default()
    }
    /// Whether the chain that is open is the one that the file means.
    fn is_chain_kept(&self) -> bool {
        true
    }
    /// Fails where the disk cannot be used so.
    fn check(&self, _settings: &Settings) -> Result<()> {
        Ok(())
    }
    /// Goes on with these files of the same disk and in this manner. Everything is on the medium.
    fn reload(&self, files: Files, settings: Settings) -> Result<()>;
    /// Refuses requests from now on, for somebody else may change the disk. Everything is on the medium.
    fn deactivate(&self);
    /// Reads an inactive disk as it is now; one that is encrypted with another key than before is unlocked. On failure it
    /// stays inactive.
    fn activate(
        &self,
        files: Files,
        settings: Settings,
        backing: Option<Disk>,
        unlocking: &mut Unlocking<'_>,
    ) -> Result<()>;
}
