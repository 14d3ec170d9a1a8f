//! What amending does to an image, one setting at a time. Each of these leaves everything durable and the image loaded
//! anew; a power cut before leaves the old setting, and leaks at most.

use super::core::validate;
use super::qcow2::Alone;
use super::snapshots::load_snapshots;
use crate::error::{Error, ErrorKind, Result};
use crate::format::features::*;
use crate::format::Header;

impl Alone<'_> {
    /// Sets or clears the compatible feature bit of lazy refcounts.
    pub fn set_lazy_refcounts(&self, on: bool) -> Result<()> {
        self.change_fields(|h| match on {
            true => h.compatible |= COMPAT_LAZY_REFCOUNTS,
            false => h.compatible &= !COMPAT_LAZY_REFCOUNTS,
        })
    }

    /// Clears the autoclear feature bit of a raw data file.
    pub fn forget_raw_data_file(&self) -> Result<()> {
        self.change_fields(|h| h.autoclear &= !AUTOCLEAR_RAW_DATA)
    }

    fn change_fields(&self, edit: impl Fn(&mut Header)) -> Result<()> {
        let core = self.core();
        core.structure_writer()?;
        let mut next = core.header();
        edit(&mut next);
        validate(&next, &core.settings)?;
        self.settle()?;
        core.shared.header.change(edit)?;
        self.reload()
    }

    /// Records another data file, "" for none.
    pub fn set_data_file(&self, name: &[u8]) -> Result<()> {
        let core = self.core();
        core.structure_writer()?;
        self.settle()?;
        core.shared.header.change_data_file(Some(name).filter(|n| !n.is_empty()))?;
        self.reload()
    }

    /// Gives every refcount 2^`order` bits.
    pub fn set_refcount_order(&self, order: u32, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<()> {
        let core = self.core();
        let alloc = core.structure_writer()?;
        self.settle()?;
        alloc.change_width(order, progress)?;
        self.reload()
    }

    /// Makes a version 3 image of a version 2 image.
    pub fn upgrade(&self) -> Result<()> {
        let core = self.core();
        core.structure_writer()?;
        self.settle()?;
        if core.look_at_tables()?.zero_flag {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "an L2 entry of this version 2 image has bit 0 set, which would become a zero flag",
            ));
        }
        self.complete_snapshots()?;
        core.shared.header.change_version(3)?;
        self.reload()
    }

    /// Fails where `downgrade` would, for an image of `virtual_size` bytes.
    pub fn check_downgrade(&self, virtual_size: u64) -> Result<()> {
        let core = self.core();
        let header = core.header();
        if header.incompatible & INCOMPAT_DATA_FILE != 0 {
            return Err(Error::unsupported("Cannot downgrade an image with a data file"));
        }
        let others = header.incompatible & !(INCOMPAT_DIRTY | INCOMPAT_CORRUPT | INCOMPAT_COMPRESSION);
        if others != 0 {
            let text = format!("Cannot downgrade an image with incompatible features {others:#x} set");
            return Err(Error::unsupported(text));
        }
        let (snapshots, _) = load_snapshots(&**core.storage(), &header)?;
        let fits = |size: Option<u64>, state: u64| {
            size.unwrap_or(virtual_size) == virtual_size && state <= u64::from(u32::MAX)
        };
        if !snapshots.iter().all(|s| fits(s.virtual_size, s.vm_state_bytes)) {
            return Err(Error::unsupported("Internal snapshots prevent downgrade of image"));
        }
        if header.autoclear & AUTOCLEAR_BITMAPS != 0 {
            return Err(Error::unsupported("Cannot downgrade an image with bitmaps"));
        }
        let fields =
            Header { version: 2, incompatible: 0, compatible: 0, refcount_order: 4, ..header.clone() };
        validate(&fields, &core.settings)?;
        if header.compression_type != 0 {
            self.settle()?;
            if core.look_at_tables()?.compressed {
                let text =
                    "Cannot downgrade an image with zstd compression type and existing compressed clusters";
                return Err(Error::unsupported(text));
            }
        }
        Ok(())
    }

    /// Makes a version 2 image of a version 3 image that `check_downgrade` has accepted.
    pub fn downgrade(&self, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<()> {
        self.expand_zeroes(progress)?;
        let core = self.core();
        core.structure_writer()?;
        self.settle()?;
        core.shared.header.change_version(2)?;
        self.reload()
    }
}
