//! An image that changes hands, as a migration does: one side brings everything to the medium and lets go of it, the
//! other reads all of it anew.
//!
//! An inactive handle holds nothing of the image but the header, and the locks of one that reads whatever others do.
//! The chain goes along with the image. Files that the header still names the same way are used by the descriptors
//! that are open; any other is opened.

use super::check::Messages;
use super::handle::{Handle, HandleState};
use super::open::files::Role;
use super::open::origin::Origin;
use super::open::params::{Opening, Resolver, Seen};
use super::secrets::Secrets;
use crate::disk::{Draft, Files, Stopped};
use crate::error::{Error, Result};
use crate::storage::Storage;
use std::sync::Arc;

/// Hands the image over: requests are refused until `invalidate`.
pub fn inactivate(handle: &Handle) -> Result<()> {
    let mut state = handle.state();
    if state.flags.inactive {
        return Ok(());
    }
    // Held to the end: whoever comes in afterwards finds the chain inactive too.
    let stopped = handle.disk().stop();
    stopped.settle()?;
    stopped.deactivate();
    state.flags.inactive = true;
    let below = handle.below().map_or(Ok(()), |below| inactivate(&below));
    below.and(unlock(handle, &state))
}

/// Takes an inactive image back as it is now. On failure it stays inactive.
pub fn invalidate<'a>(
    handle: &Handle,
    resolver: Option<Resolver<'a>>,
    messages: Option<Messages<'a>>,
) -> Result<()> {
    invalidate_with(handle, resolver, messages, Secrets::default())
}

/// As `invalidate`; `secrets` has those of images that have come to be encrypted with another key.
pub fn invalidate_with<'a>(
    handle: &Handle,
    resolver: Option<Resolver<'a>>,
    messages: Option<Messages<'a>>,
    secrets: Secrets<'a>,
) -> Result<()> {
    activate(handle, resolver, messages, secrets, &mut Vec::new())
}

fn activate<'a>(
    handle: &Handle,
    resolver: Option<Resolver<'a>>,
    messages: Option<Messages<'a>>,
    secrets: Secrets<'a>,
    seen: &mut Seen,
) -> Result<()> {
    let mut state = handle.state();
    if !state.flags.inactive {
        return Ok(());
    }
    state.flags.inactive = false;
    let mut opening = opening_of(&state, resolver, messages, secrets);
    let done = lock(handle, &state, &opening).and_then(|()| load(handle, &mut state, &mut opening, seen));
    if done.is_err() {
        state.flags.inactive = true;
        let _ = unlock(handle, &state);
    }
    done
}

#[inline(never)]
fn opening_of<'a>(
    state: &HandleState,
    resolver: Option<Resolver<'a>>,
    messages: Option<Messages<'a>>,
    secrets: Secrets<'a>,
) -> Box<Opening<'a>> {
    Box::new(Opening { flags: state.flags, options: state.options.clone(), resolver, messages, secrets })
}

/// A disk that is being taken back, while those below it are. A chain is as deep as the calls that walk it: what they
/// keep on the stack is this and little else.
struct Loading {
    files: Files,
    draft: Box<dyn Draft>,
    below: Option<Arc<Handle>>,
}

fn load(handle: &Handle, state: &mut HandleState, opening: &mut Opening<'_>, seen: &mut Seen) -> Result<()> {
    let stopped = handle.disk().stop();
    let mut loading = begin_load(handle, &*stopped, state, opening)?;
    let depth = seen.len();
    seen.push(loading.files.image.identity());
    match &loading.below {
        Some(below) => {
            let resolver = opening.resolver.as_mut().map(|r| &mut **r as Resolver<'_>);
            let messages = opening.messages.as_mut().map(|m| &mut **m as Messages<'_>);
            activate(below, resolver, messages, opening.secrets.again(), seen)?;
        }
        None => open_below(opening, &mut loading, seen)?,
    }
    finish_load(handle, &*stopped, state, opening, &mut loading, depth)
}

#[inline(never)]
fn open_below(opening: &mut Opening<'_>, loading: &mut Loading, seen: &mut Seen) -> Result<()> {
    let opened = opening.open_backing(&*loading.draft, &*loading.files.image, seen)?;
    loading.below = opened.map(Arc::new);
    Ok(())
}

#[inline(never)]
fn begin_load(
    handle: &Handle,
    old: &dyn Stopped,
    state: &HandleState,
    opening: &Opening<'_>,
) -> Result<Box<Loading>> {
    let files = state.files.clone();
    let draft = (handle.format().draft)(Arc::clone(&files.image), opening.settings())?;
    let (names, old_names) = (draft.names(), old.names());
    if opening.options.data_file.is_none() && names.data_file != old_names.data_file {
        return Err(Error::invalid("the image names another data file: open it anew"));
    }
    let same = old.is_chain_kept() && names.have_same_backing(&old_names);
    let below = handle.below().filter(|_| same && names.backing.is_some());
    Ok(Box::new(Loading { files, draft, below }))
}

#[inline(never)]
#[allow(clippy::boxed_local)] // it is large, and the stack of a deep chain is small
fn finish_load(
    handle: &Handle,
    stopped: &dyn Stopped,
    state: &mut HandleState,
    opening: &mut Opening<'_>,
    loading: &mut Loading,
    depth: usize,
) -> Result<()> {
    let Loading { files, draft, below } = loading;
    let below = below.take();
    let backing = below.as_ref().map(|below| below.disk().clone());
    let repaired = opening.repair_if_dirty(&**draft, handle.format(), &*files.image, handle.origin());
    let loaded = repaired.and_then(|repaired| {
        let settings = opening.settings();
        opening.with_secret(handle.origin(), depth, |unlocking| {
            stopped.activate(files.clone(), settings, backing, unlocking)
        })?;
        Ok(repaired)
    });
    match loaded {
        Ok(repaired) => {
            state.repaired = repaired;
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
fn lock(handle: &Handle, state: &HandleState, opening: &Opening<'_>) -> Result<()> {
    change_lock(&*state.files.image, handle.origin(), Role::Image, opening)?;
    match (&state.files.data, &handle.data_origin) {
        (Some(data), Some(origin)) => change_lock(&**data, origin, Role::DataFile, opening),
        _ => Ok(()),
    }
}

/// Leaves the locks of one who does not mind what others do.
#[inline(never)]
fn unlock(handle: &Handle, state: &HandleState) -> Result<()> {
    lock(handle, state, &state.opening())
}

fn change_lock(storage: &dyn Storage, origin: &Origin, role: Role, opening: &Opening<'_>) -> Result<()> {
    storage.change_lock(opening.access(opening.flags.read_only, role), &origin.shown())
}
