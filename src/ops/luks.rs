//! LUKS headers of disks that are open.

use super::handle::Handle;
use crate::crypto::luks::Header;
use crate::disk::luks::{header_of, LuksDisk};
use crate::disk::{Encryption, Format};
use crate::error::Result;
use crate::image::{encryption, encryption_header, Image};

/// A LUKS header, and where in its file it is.
pub struct LuksHeader {
    /// Bytes from the file's start.
    pub at: u64,
    /// As it is there now.
    pub header: Header,
}

/// How a disk is encrypted; `None`: it is not.
pub fn encryption_of(handle: &Handle) -> Result<Option<(Encryption, Option<LuksHeader>)>> {
    if let Some(disk) = handle.disk().find::<LuksDisk>() {
        let header = header_of(&*disk.storage())?;
        return Ok(Some((Encryption::Luks, Some(LuksHeader { at: 0, header }))));
    }
    let Some(image) = Image::find(handle.disk()) else { return Ok(None) };
    let core = image.core();
    let Some(method) = encryption(&core.header())? else { return Ok(None) };
    let luks = encryption_header(&core.header(), &**core.storage())?;
    Ok(Some((method, luks.map(|(at, header)| LuksHeader { at, header }))))
}
