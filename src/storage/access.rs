//! Who a storage is, and what an open of it wants.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// Which file or device a storage is. Two opens of one have the same; what is inside is nobody's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity(pub(super) u64, pub(super) u64);

impl Identity {
    /// That of a file: its device and inode. Of a device its number, for it may have several nodes.
    pub fn of(metadata: &Metadata) -> Identity {
        match metadata.file_type().is_block_device() {
            // No file system has this number.
            true => Identity(u64::MAX, metadata.rdev()),
            false => Identity(metadata.dev(), metadata.ino()),
        }
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOptions {
    /// Opened for writing too.
    pub writable: bool,
    /// Created when missing. Never truncated here.
    pub create: bool,
    /// Bypass the page cache (O_DIRECT).
    pub direct: bool,
    /// `sync` does nothing (cache=unsafe).
    pub no_sync: bool,
}

/// What an open wants of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads; nobody may write.
    Read,
    /// Reads; others may do what they like.
    ReadShared,
    /// Reads and writes; nobody else may write.
    Write,
    /// As `Read`, of an external data file: the image's lock says who may write.
    ReadData,
    /// As `Write`, of an external data file.
    WriteData,
}
