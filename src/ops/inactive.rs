//! An image that changes hands, as a migration does: one side brings everything to the medium and lets go of it, the
//! other reads all of it anew.
//!
//! An inactive handle holds nothing of the image but the header, and the locks of one that reads whatever others do.
//! The chain goes along with the image. Files that the header still names the same way are used by the descriptors
//! that are open; any other is opened.

use super::backing;
use super::handle::{Handle, Manner};
use super::open::{shown_name, Messages, Opening, Origin, Resolver, Role, Seen};
use crate::error::{Error, Result};
use crate::format::extensions::DATA_FILE;
use crate::format::Header;
use crate::image::{validate, Core, CoreSettings, Disk, ExclusiveImage};
use crate::meta::read_header;
use crate::storage::file::FileStorage;
use crate::storage::Storage;
use std::sync::Arc;

/// Hands the image over: requests are refused until `invalidate`.
pub fn inactivate(handle: &Handle) -> Result<()> {
    let mut manner = handle.manner();
    if manner.flags.inactive {
        return Ok(());
    }
    // Held to the end: whoever comes in afterwards finds the chain inactive too.
    let (mut _image, mut _raw) = (None, None);
    match handle.disk() {
        Disk::Qcow2(image) => {
            let alone = _image.insert(image.exclusive());
            alone.settle()?;
            alone.deactivate();
        }
        Disk::Raw(raw) => {
            let alone = _raw.insert(raw.exclusive());
            alone.settle()?;
            alone.deactivate();
        }
    }
    manner.flags.inactive = true;
    let below = handle.below().map_or(Ok(()), |below| inactivate(&below));
    below.and(unlock(handle, &manner))
}

/// Takes an inactive image back as it is now. On failure it stays inactive.
pub fn invalidate<'a>(
    handle: &Handle,
    resolver: Option<Resolver<'a>>,
    messages: Option<Messages<'a>>,
) -> Result<()> {
    activate(handle, resolver, messages, &mut Vec::new())
}

fn activate<'a>(
    handle: &Handle,
    resolver: Option<Resolver<'a>>,
    messages: Option<Messages<'a>>,
    seen: &mut Seen,
) -> Result<()> {
    let mut manner = handle.manner();
    if !manner.flags.inactive {
        return Ok(());
    }
    manner.flags.inactive = false;
    let mut opening =
        Box::new(Opening { flags: manner.flags, options: manner.options.clone(), resolver, messages });
    let done = lock(handle, &manner, &opening).and_then(|()| load(handle, &mut manner, &mut opening, seen));
    if done.is_err() {
        manner.flags.inactive = true;
        let _ = unlock(handle, &manner);
    }
    done
}

/// An image that is being taken back, while those below it are. A chain is as deep as the calls that walk it: what they
/// keep is here and not on the stack.
struct Loading {
    storage: Arc<dyn Storage>,
    header: Header,
    settings: CoreSettings,
    below: Option<Arc<Handle>>,
}

fn load(handle: &Handle, manner: &mut Manner, opening: &mut Opening<'_>, seen: &mut Seen) -> Result<()> {
    let image = match handle.disk() {
        Disk::Qcow2(image) => image,
        Disk::Raw(raw) => return raw.exclusive().activate(),
    };
    let alone = image.exclusive();
    let mut loading = begin_load(handle, &alone.core(), image.is_chain_kept(), opening)?;
    seen.push(loading.storage.identity());
    match &loading.below {
        Some(below) => {
            let resolver = opening.resolver.as_mut().map(|r| &mut **r as Resolver<'_>);
            let messages = opening.messages.as_mut().map(|m| &mut **m as Messages<'_>);
            activate(below, resolver, messages, seen)?;
        }
        None => loading.below = opening.open_backing(&loading.header, handle.origin(), seen)?.map(Arc::new),
    }
    finish_load(handle, &alone, manner, opening, loading)
}

#[inline(never)]
fn begin_load(
    handle: &Handle,
    old: &Core,
    chain_kept: bool,
    opening: &mut Opening<'_>,
) -> Result<Box<Loading>> {
    let storage = Arc::clone(old.storage());
    let (header, _) = read_header(&*storage)?;
    let settings = CoreSettings {
        options: opening.options.clone(),
        read_only: opening.flags.read_only,
        metadata_only: opening.flags.metadata_only,
        backing: None,
        data_file: old.settings().data_file.clone(),
    };
    validate(&header, &settings)?;
    if opening.options.data_file.is_none() && header.extension(DATA_FILE) != old.header().extension(DATA_FILE)
    {
        return Err(Error::invalid("the image names another data file: open it anew"));
    }
    let same = chain_kept && backing::names(&header) == backing::names(&old.header());
    let below = handle.below().filter(|_| same && header.backing_file.is_some());
    Ok(Box::new(Loading { storage, header, settings, below }))
}

#[inline(never)]
fn finish_load(
    handle: &Handle,
    alone: &ExclusiveImage<'_>,
    manner: &mut Manner,
    opening: &mut Opening<'_>,
    loading: Box<Loading>,
) -> Result<()> {
    let Loading { storage, header, mut settings, below } = *loading;
    settings.backing = below.as_ref().map(|b| b.shared_disk());
    let loaded = opening.repair_if_dirty(&header, &*storage, handle.origin()).and_then(|repaired| {
        alone.activate(storage, settings)?;
        Ok(repaired)
    });
    match loaded {
        Ok(repaired) => {
            manner.repaired = repaired;
            handle.put_below(below);
            Ok(())
        }
        Err(e) => {
            let _ = below.map(|b| inactivate(&b));
            Err(e)
        }
    }
}

/// Takes the locks that the flags ask for.
#[inline(never)]
fn lock(handle: &Handle, manner: &Manner, opening: &Opening<'_>) -> Result<()> {
    change_lock(&manner.file, Some(handle.origin()), Role::Image, opening)?;
    change_lock(&manner.data_file, handle.data_origin.as_ref(), Role::DataFile, opening)
}

/// Leaves the locks of one who does not mind what others do.
#[inline(never)]
fn unlock(handle: &Handle, manner: &Manner) -> Result<()> {
    let (flags, options) = (manner.flags, manner.options.clone());
    lock(handle, manner, &Opening { flags, options, resolver: None, messages: None })
}

fn change_lock(
    file: &Option<Arc<FileStorage>>,
    origin: Option<&Origin>,
    role: Role,
    opening: &Opening<'_>,
) -> Result<()> {
    match (file, origin) {
        (Some(file), Some(origin)) => {
            file.change_lock(opening.access(opening.flags.read_only, role), &shown_name(origin))
        }
        _ => Ok(()),
    }
}
