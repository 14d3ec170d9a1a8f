//! Commit: what an image holds is written into its backing file, then the image is emptied; or what it and the layers
//! above a base show is written into that base.
//!
//! The base is durable before the first entry of the image goes; a power cut in between leaves both complete. The base is
//! reopened writable for the time of the commit, and repaired first when it is dirty.

use super::check::Messages;
use super::handle::Handle;
use super::l1_table::make_empty;
use super::resize::resize;
use crate::disk::{Disk, ZeroFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::format::GuestOffset;
use crate::image::{Core, Image};
use crate::options::Preallocation;
use crate::storage::aligned::Aligned;
use std::io::{IoSlice, IoSliceMut};

/// Bytes that are copied at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// Commits `handle` into its backing file. `keep`: the image is not emptied. `progress(done, total)` in
/// guest bytes; `false` cancels.
pub fn commit(
    handle: &Handle,
    keep: bool,
    messages: Option<Messages<'_>>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<()> {
    commit_to(handle, 1, keep, messages, progress)
}

/// As `commit`, into the layer `depth` below the image: what all layers above that one show is written there. The
/// layers in between stay as they are; so does the image, unless `depth` is 1.
pub fn commit_to(
    handle: &Handle,
    depth: u32,
    keep: bool,
    messages: Option<Messages<'_>>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<()> {
    let image = Image::of(handle.disk(), "backing file to commit to")?;
    if depth == 0 {
        return Err(Error::invalid("commit: depth is 0: 1 is the backing file"));
    }
    let keep = keep || depth > 1;
    let Some(base) = handle.node_below(depth) else {
        return Err(match depth {
            1 => Error::unsupported("Image does not have a backing file"),
            _ => Error::invalid(format!("commit: depth is {depth}: the chain ends before")),
        });
    };
    if !keep && image.core().is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly, "the image is open read-only and cannot be emptied"));
    }
    // Alone from the first byte copied to the last entry dropped: a write in between would be dropped with
    // what has been copied.
    let alone = image.exclusive();
    // A change of the backing file may have come before: what is open below is not what the image belongs to then.
    if alone.core().backing().is_none() {
        return Err(Error::unsupported("Image does not have a backing file"));
    }
    if !image.is_chain_kept() {
        return Err(Error::invalid("the backing file has been changed: open the image anew first"));
    }
    base.reopen(false, false, &[], messages)?;
    let copied = grow_base(&base, handle.disk().length())
        .and_then(|()| copy_down(&alone.core(), base.disk(), depth, progress));
    let back = base.reopen(true, false, &[], None);
    copied.and(back)?;
    if !keep {
        make_empty(&alone)?;
    }
    drop(alone);
    handle.disk().flush()?;
    progress(handle.disk().length(), handle.disk().length());
    Ok(())
}

fn grow_base(base: &Handle, length: u64) -> Result<()> {
    if base.disk().length() >= length {
        return Ok(());
    }
    resize(base, length, Preallocation::Off)
}

/// What becomes of an extent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Data,
    Zeroes,
    /// The base shows it, or what is below the base.
    Below,
}

/// The extent at `at` as the layers above the base have it, and its length.
fn part_at(top: &Core, at: u64, length: u64, depth: u32) -> Result<(Part, u64)> {
    let status = top.status(at, length, depth == 1)?;
    let above = if depth == 1 { status.allocated } else { status.depth < depth };
    let part = match (above, status.zero || !status.data) {
        (false, _) => Part::Below,
        (true, true) => Part::Zeroes,
        (true, false) => Part::Data,
    };
    Ok((part, status.length))
}

/// Copies everything that the layers above the base hold into `base` and makes it durable there.
fn copy_down(top: &Core, base: &Disk, depth: u32, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<()> {
    top.settle_runs()?;
    let length = top.length();
    let mut buffer = Aligned::default();
    let (mut at, mut end) = (0, 0);
    while at < length {
        if !progress(at, length) {
            return Err(Error::new(ErrorKind::Cancelled, "commit: the caller asked to stop"));
        }
        // Up to `end` is data; a long extent is looked up once, not once for each part.
        if at == end {
            let (part, bytes) = part_at(top, at, length - at, depth)?;
            if part != Part::Data {
                if part == Part::Zeroes {
                    // What the base has there goes.
                    let flags = ZeroFlags { unmap: true, no_fallback: false };
                    base.write_zeroes(at, bytes, flags, false)?;
                }
                at += bytes;
                end = at;
                continue;
            }
            end = at + bytes;
        }
        let bytes = (end - at).min(CHUNK_BYTES);
        let part = buffer.first(bytes as usize);
        top.read(GuestOffset(at), &mut [IoSliceMut::new(part)])?;
        base.write(at, &[IoSlice::new(part)], false)?;
        at += bytes;
    }
    base.flush()
}
