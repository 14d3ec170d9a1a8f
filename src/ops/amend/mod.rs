//! Amend: other settings for an image that exists.
//!
//! What can be refused is refused before the first change, in the order of the reference implementation. Then one
//! setting after the other, each whole and durable before the next: a higher version first and a lower one last, so
//! that the image is valid between any two.

mod expand;
mod plan;
mod settings;
mod slots;

use super::handle::Handle;
use super::secrets::Secrets;
use crate::disk::luks::LuksDisk;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{ExclusiveImage, Image};
use crate::ops::resize::image::resize_image;
use crate::options::{AmendOptions, Preallocation};
use slots::SlotsOfImage;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Progress units of one step.
const STEP_UNITS: u64 = 1 << 20;

/// One setting that is going to change.
enum Step {
    KeySlots(Box<SlotsOfImage>),
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
    amend_with(handle, options, false, &mut Secrets::default(), progress)
}

/// As `amend`, of key slots too; what is derived for them counts as the progress of `secrets`. `force`: what makes the
/// image unreadable as well.
pub fn amend_with(
    handle: &Handle,
    options: &[impl AsRef<OsStr>],
    force: bool,
    secrets: &mut Secrets<'_>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<()> {
    if let Some(disk) = handle.disk().find::<LuksDisk>() {
        return slots::amend_luks(disk, handle, options, force, secrets, progress);
    }
    let image = Image::of(handle.disk(), "options to amend").map_err(|_| {
        let name = handle.format().name;
        Error::unsupported(format!("Format driver '{name}' does not support option amendment"))
    })?;
    let options = AmendOptions::parse(options)?;
    if image.core().is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly, "the image is open read-only"));
    }
    // Two changes of key slots would each be made for a header without the other.
    let _turn = options.names_slots().then(|| handle.turn_with_slots());
    let slots = slots_to_change(image, &options, handle, force, secrets)?;
    let image = image.exclusive();
    image.core().check_active()?;
    let mut steps = plan::plan(&image, &options)?;
    // Carried out first, for it changes one sector.
    if let Some(slots) = slots {
        slots.check(&image)?;
        steps.insert(0, Step::KeySlots(Box::new(slots)));
    }
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
        step.carry_out(&image, &mut part)?;
    }
    progress(total.max(1), total.max(1));
    Ok(())
}

/// What is asked of the key slots, ready to be written. Found out while requests go on, for it asks for secrets and takes
/// seconds; what can be refused without a secret is refused before.
fn slots_to_change(
    image: &Image,
    options: &AmendOptions,
    handle: &Handle,
    force: bool,
    secrets: &mut Secrets<'_>,
) -> Result<Option<SlotsOfImage>> {
    if !options.names_slots() {
        return Ok(None);
    }
    let alone = image.exclusive();
    alone.core().check_active()?;
    plan::plan(&alone, options)?;
    let Some(wanted) = slots::look(&alone, options)? else { return Ok(None) };
    drop(alone);
    wanted.prepare(handle, force, secrets).map(Some)
}

impl Step {
    fn carry_out(
        &self,
        image: &ExclusiveImage<'_>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<()> {
        match self {
            Step::KeySlots(slots) => slots.carry_out(image),
            Step::Upgrade => settings::upgrade(image),
            Step::RefcountOrder(order) => settings::set_refcount_order(image, *order, progress),
            Step::DataFile(name) => settings::set_data_file(image, name.as_bytes()),
            Step::ForgetRawDataFile => settings::forget_raw_data_file(image),
            Step::LazyRefcounts(on) => settings::set_lazy_refcounts(image, *on),
            Step::Size(bytes) => resize_image(image, *bytes, Preallocation::Off),
            Step::Downgrade => settings::downgrade(image, progress),
        }
    }
}
