//! What amending does, one setting at a time. Each of these leaves everything durable and the image loaded anew; a power
//! cut before leaves the old setting, and leaks at most.

use super::expand::{expand_zeroes, look_at_tables};
use crate::error::{Error, ErrorKind, Result};
use crate::format::features::*;
use crate::format::Header;
use crate::image::{validate, ExclusiveImage};
use crate::ops::snapshot::table::{self, complete_entries};

/// Sets or clears the compatible feature bit of lazy refcounts.
pub(super) fn set_lazy_refcounts(image: &ExclusiveImage<'_>, on: bool) -> Result<()> {
    change_fields(image, |h| match on {
        true => h.compatible |= COMPAT_LAZY_REFCOUNTS,
        false => h.compatible &= !COMPAT_LAZY_REFCOUNTS,
    })
}

/// Clears the autoclear feature bit of a raw data file.
pub(super) fn forget_raw_data_file(image: &ExclusiveImage<'_>) -> Result<()> {
    change_fields(image, |h| h.autoclear &= !AUTOCLEAR_RAW_DATA)
}

fn change_fields(image: &ExclusiveImage<'_>, edit: impl Fn(&mut Header)) -> Result<()> {
    let core = image.core();
    let parts = core.structure_writer()?;
    let mut next = core.header();
    edit(&mut next);
    validate(&next, core.settings())?;
    image.settle()?;
    parts.header.change(edit)?;
    image.reload()
}

/// Records another data file, "" for none.
pub(super) fn set_data_file(image: &ExclusiveImage<'_>, name: &[u8]) -> Result<()> {
    let core = image.core();
    let parts = core.structure_writer()?;
    image.settle()?;
    parts.header.change_data_file(Some(name).filter(|n| !n.is_empty()))?;
    image.reload()
}

/// Gives every refcount 2^`order` bits.
pub(super) fn set_refcount_order(
    image: &ExclusiveImage<'_>,
    order: u32,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<()> {
    let core = image.core();
    let alloc = core.structure_writer()?.alloc;
    image.settle()?;
    alloc.change_width(order, progress)?;
    image.reload()
}

/// Makes a version 3 image of a version 2 image.
pub(super) fn upgrade(image: &ExclusiveImage<'_>) -> Result<()> {
    let core = image.core();
    let parts = core.structure_writer()?;
    image.settle()?;
    if look_at_tables(&core, &parts)?.zero_flag {
        return Err(Error::new(
            ErrorKind::Corrupt,
            "an L2 entry of this version 2 image has bit 0 set, which would become a zero flag",
        ));
    }
    complete_entries(image)?;
    parts.header.change_version(3)?;
    image.reload()
}

/// Fails where `downgrade` would, for an image of `virtual_size` bytes.
pub(super) fn check_downgrade(image: &ExclusiveImage<'_>, virtual_size: u64) -> Result<()> {
    let core = image.core();
    let header = core.header();
    if header.incompatible & INCOMPAT_DATA_FILE != 0 {
        return Err(Error::unsupported("Cannot downgrade an image with a data file"));
    }
    let others = header.incompatible & !(INCOMPAT_DIRTY | INCOMPAT_CORRUPT | INCOMPAT_COMPRESSION);
    if others != 0 {
        let text = format!("Cannot downgrade an image with incompatible features {others:#x} set");
        return Err(Error::unsupported(text));
    }
    let snapshots = table::load(&core)?;
    let fits = |size: Option<u64>, state: u64| {
        size.unwrap_or(virtual_size) == virtual_size && state <= u64::from(u32::MAX)
    };
    if !snapshots.iter().all(|s| fits(s.virtual_size, s.vm_state_bytes)) {
        return Err(Error::unsupported("Internal snapshots prevent downgrade of image"));
    }
    if header.autoclear & AUTOCLEAR_BITMAPS != 0 {
        return Err(Error::unsupported("Cannot downgrade an image with bitmaps"));
    }
    if header.crypt_method != 0 {
        // Version 2 has no flag for them, and zeroes of the host are not what a guest reads as zeroes.
        image.settle()?;
        // A backing file that ends behind the old size is hidden by such clusters when the image grows.
        let (old, backing) = (header.virtual_size, core.backing());
        let hides = virtual_size > old && backing.is_some_and(|backing| backing.length() > old);
        if hides || look_at_tables(&core, &core.parts()?)?.zero_flag {
            return Err(Error::unsupported("Cannot downgrade an encrypted image with clusters of zeroes"));
        }
    }
    let fields = Header { version: 2, incompatible: 0, compatible: 0, refcount_order: 4, ..header.clone() };
    validate(&fields, core.settings())?;
    if header.compression_type != 0 {
        image.settle()?;
        if look_at_tables(&core, &core.parts()?)?.compressed {
            let text =
                "Cannot downgrade an image with zstd compression type and existing compressed clusters";
            return Err(Error::unsupported(text));
        }
    }
    Ok(())
}

/// Makes a version 2 image of a version 3 image that `check_downgrade` has accepted.
pub(super) fn downgrade(
    image: &ExclusiveImage<'_>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<()> {
    expand_zeroes(image, progress)?;
    let core = image.core();
    let parts = core.structure_writer()?;
    image.settle()?;
    parts.header.change_version(2)?;
    image.reload()
}
