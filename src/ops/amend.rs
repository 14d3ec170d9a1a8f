//! Amend: other settings for an image that exists.
//!
//! What can be refused is refused before the first change, in the order of the reference implementation. Then one
//! setting after the other, each whole and durable before the next: a higher version first and a lower one last, so
//! that the image is valid between any two.

use super::handle::Handle;
use crate::error::{Error, ErrorKind, Result};
use crate::format::features::*;
use crate::format::{extensions, Header};
use crate::image::{Alone, Disk};
use crate::options::{AmendOptions, Preallocation};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Progress units of one step.
const STEP_UNITS: u64 = 1 << 20;

/// One setting that is going to change.
enum Step {
    Upgrade,
    RefcountOrder(u32),
    DataFile(OsString),
    ForgetRawDataFile,
    LazyRefcounts(bool),
    Size(u64),
    Downgrade,
}

/// Changes the settings of an open image. `progress(done, total)`: `false` cancels.
pub fn amend(
    handle: &Handle,
    options: &[impl AsRef<OsStr>],
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<()> {
    let Disk::Qcow2(image) = handle.disk() else {
        return Err(Error::unsupported("Format driver 'raw' does not support option amendment"));
    };
    let options = AmendOptions::parse(options)?;
    if image.core().is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly, "the image is open read-only"));
    }
    let alone = image.alone();
    alone.core().check_active()?;
    let steps = plan(&alone, &options)?;
    let total = steps.len() as u64 * STEP_UNITS;
    for (index, step) in steps.iter().enumerate() {
        let before = index as u64 * STEP_UNITS;
        let mut part = |done: u64, of: u64| {
            let units = u128::from(done) * u128::from(STEP_UNITS) / u128::from(of.max(1));
            progress(before + units as u64, total)
        };
        if !part(0, 1) {
            return Err(Error::new(ErrorKind::Cancelled, "amend: the caller asked to stop"));
        }
        step.carry_out(&alone, &mut part)?;
    }
    progress(total.max(1), total.max(1));
    Ok(())
}

impl Step {
    fn carry_out(&self, alone: &Alone<'_>, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<()> {
        match self {
            Step::Upgrade => alone.upgrade(),
            Step::RefcountOrder(order) => alone.set_refcount_order(*order, progress),
            Step::DataFile(name) => alone.set_data_file(name.as_bytes()),
            Step::ForgetRawDataFile => alone.forget_raw_data_file(),
            Step::LazyRefcounts(on) => alone.set_lazy_refcounts(*on),
            Step::Size(bytes) => alone.resize(*bytes, Preallocation::Off),
            Step::Downgrade => alone.downgrade(progress),
        }
    }
}

/// What is to be done, in order, or why it cannot be.
fn plan(alone: &Alone<'_>, options: &AmendOptions) -> Result<Vec<Step>> {
    let core = alone.core();
    let header = core.header();
    if options.encryption && header.crypt_method == 0 {
        return Err(Error::unsupported("Can't amend encryption options - encryption not present"));
    }
    if options.encryption {
        return Err(Error::unsupported("encryption options are not served yet"));
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
        alone.check_downgrade(size)?;
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
    let geometry = crate::format::Geometry { version: highest, ..header.geometry() };
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
