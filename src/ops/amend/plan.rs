//! What an amend is to do, and whether it can.

use super::{settings, Step};
use crate::error::{Error, ErrorKind, Result};
use crate::format::features::*;
use crate::format::{extensions, Geometry, Header};
use crate::image::ExclusiveImage;
use crate::options::AmendOptions;

/// What is to be done, in order, or why it cannot be.
pub(super) fn plan(image: &ExclusiveImage<'_>, options: &AmendOptions) -> Result<Vec<Step>> {
    let core = image.core();
    let header = core.header();
    if options.names_slots() && header.crypt_method == 0 {
        return Err(Error::unsupported("Can't amend encryption options - encryption not present"));
    }
    let version = options.version()?.unwrap_or(header.version);
    // First, for the header may have no room for the name.
    let mut steps = plan_data_file(&header, options)?;
    if version > header.version {
        steps.push(Step::Upgrade);
    }
    let highest = version.max(header.version);
    let order = plan_refcounts(&header, options, version, &mut steps)?;
    check_backing(&header, options)?;
    let lazy = header.compatible & COMPAT_LAZY_REFCOUNTS != 0;
    if let Some(on) = options.lazy_refcounts.filter(|on| *on != lazy) {
        if on && version < 3 {
            return Err(needs_v3("Lazy refcounts only supported with compatibility level 1.1 and above"));
        }
        steps.push(Step::LazyRefcounts(on));
    }
    let size = plan_size(&header, options, highest, &mut steps)?;
    if version < header.version {
        if order != 4 {
            return Err(Error::unsupported("compat=0.10 requires refcount_bits=16"));
        }
        settings::check_downgrade(image, size)?;
        steps.push(Step::Downgrade);
    }
    Ok(steps)
}

fn plan_data_file(header: &Header, options: &AmendOptions) -> Result<Vec<Step>> {
    let external = header.incompatible & INCOMPAT_DATA_FILE != 0;
    let raw = header.autoclear & AUTOCLEAR_RAW_DATA != 0;
    let mut steps = Vec::new();
    if let Some(name) = &options.data_file {
        if !external {
            return Err(Error::invalid(
                "data-file can only be set for images that use an external data file",
            ));
        }
        if header.extension_name(extensions::DATA_FILE).unwrap_or_default() != name {
            steps.push(Step::DataFile(name.clone()));
        }
    }
    match options.data_file_raw {
        Some(true) if !raw => Err(Error::invalid("data-file-raw cannot be set on existing images")),
        Some(false) if raw => {
            steps.push(Step::ForgetRawDataFile);
            Ok(steps)
        }
        _ => Ok(steps),
    }
}

/// Answers the width that the image will have.
fn plan_refcounts(
    header: &Header,
    options: &AmendOptions,
    version: u32,
    steps: &mut Vec<Step>,
) -> Result<u32> {
    let order = options.refcount_order()?.unwrap_or(header.refcount_order);
    if order == header.refcount_order {
        return Ok(order);
    }
    if version < 3 && order != 4 {
        return Err(needs_v3("Refcount widths other than 16 bits require compatibility level 1.1 or above"));
    }
    steps.push(Step::RefcountOrder(order));
    Ok(order)
}

fn needs_v3(summary: &str) -> Error {
    Error::invalid(summary).hint(" (use compat=1.1 or greater)").about_option("compat")
}

/// Rebase changes the backing file; here it can be named as it is only.
fn check_backing(header: &Header, options: &AmendOptions) -> Result<()> {
    if options.backing_file.is_none() && options.backing_format.is_none() {
        return Ok(());
    }
    let same = options.backing_file.as_deref() == header.backing_name()
        && options.backing_format == header.extension_text(extensions::BACKING_FORMAT);
    match same {
        true => Ok(()),
        false => Err(Error::unsupported("Cannot amend the backing file")
            .detail("a rebase can")
            .about_option("backing_file")),
    }
}

/// Answers the size that the image will have. `highest`: the version while it is resized.
fn plan_size(header: &Header, options: &AmendOptions, highest: u32, steps: &mut Vec<Step>) -> Result<u64> {
    // 0 means "as it is", as in the reference implementation.
    let Some(size) = options.size.filter(|size| *size > 0) else { return Ok(header.virtual_size) };
    if size % 512 != 0 {
        return Err(Error::invalid("The new size must be a multiple of 512"));
    }
    let geometry = Geometry { version: highest, ..header.geometry() };
    geometry.check_virtual_size(size).map_err(|e| {
        Error::new(ErrorKind::TooLarge, "Failed to grow the L1 table: File too large").because(e)
    })?;
    if header.snapshot_count > 0 && highest < 3 {
        return Err(Error::unsupported("Can't resize a v2 image which has snapshots"));
    }
    if size != header.virtual_size {
        steps.push(Step::Size(size));
    }
    Ok(size)
}
