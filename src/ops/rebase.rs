//! Rebase: another backing file, and the disk stays what it is.
//!
//! What the image has from its chain and the new backing file would show otherwise is written into the image
//! first, and is durable before the header has the new name. A power cut before leaves the old name over the same
//! contents. Internal snapshots share the backing file and are not looked at, as in the reference implementation.

use super::backing::{change_names, check_names, writable};
use super::handle::Handle;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::features::INCOMPAT_DATA_FILE;
use crate::format::GuestOffset;
use crate::image::ExclusiveImage;
use crate::storage::access::Identity;
use crate::storage::aligned::Aligned;
use std::io::IoSlice;

/// Least bytes that are compared at once.
const CHUNK_BYTES: u64 = 1 << 20;
/// Most guest bytes that are looked up at once: what is beyond a part that is copied is looked up again.
const LOOK_BYTES: u64 = 64 << 20;

/// Makes `backing` the backing file of `handle`, recorded as `name` and `format`; `None`: no backing file.
/// `progress(done, total)` in guest bytes; `false` cancels.
pub fn rebase(
    handle: &Handle,
    backing: Option<&Handle>,
    name: Option<&[u8]>,
    format: Option<&str>,
    compressed: bool,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<()> {
    let image = writable(handle)?;
    check_names(image, name, format)?;
    if backing.is_some() != name.is_some() {
        return Err(Error::invalid("a backing file needs a name, and a name a backing file"));
    }
    if compressed && image.core().header().incompatible & INCOMPAT_DATA_FILE != 0 {
        return Err(Error::unsupported("an image with an external data file has no compressed clusters"));
    }
    if backing.is_some_and(|b| b.disk().is_snapshot()) {
        return Err(Error::invalid("the new backing file is open as one of its snapshots"));
    }
    if backing.is_some_and(|b| in_chain(b.disk(), handle.disk())) {
        return Err(Error::new(ErrorKind::Loop, "the image is in the chain of its new backing file"));
    }
    let image = image.exclusive();
    let core = image.core();
    if core.header().backing_file.is_some() && core.backing().is_none() {
        return Err(Error::invalid(
            "the image was opened without its backing file: what it shows is not known",
        ));
    }
    let work = Work { image: &image, new: backing.map(|b| b.disk().clone()), compressed };
    work.run(progress)?;
    let stays = backing.is_none_or(|b| core.backing().is_some_and(|old| node(old, 0) == node(b.disk(), 0)));
    change_names(handle, &image, name, format)?;
    if !stays {
        image.leave_chain(true);
    }
    progress(core.length(), core.length());
    Ok(())
}

fn in_chain(chain: &Disk, image: &Disk) -> bool {
    let identity = image.identity();
    let mut depth = 0;
    let mut next = node(chain, depth);
    while let Some(found) = next {
        if identity.is_some() && found.identity == identity {
            return true;
        }
        depth += 1;
        next = node(chain, depth);
    }
    false
}

/// Which file decides about a guest range.
#[derive(PartialEq, Eq)]
pub(super) struct Node {
    pub identity: Option<Identity>,
    /// Of the file that has its data.
    pub data: Option<Identity>,
    format: &'static str,
}

impl Node {
    /// Whether it can be told from others.
    pub fn is_known(&self) -> bool {
        self.identity.is_some() && self.data.is_some()
    }
}

/// The disk at `depth` of a chain.
pub(super) fn node(disk: &Disk, depth: u32) -> Option<Node> {
    match depth {
        0 => {
            let (identity, data) = (disk.identity(), disk.data_identity());
            Some(Node { identity, data, format: disk.name() })
        }
        _ => node(&disk.backing()?, depth - 1),
    }
}

/// What the first bytes of a range are on one side.
struct Side {
    length: u64,
    zero: bool,
    from: Option<Node>,
}

fn look(side: Option<&Disk>, at: u64, length: u64) -> Result<Side> {
    let Some(disk) = side.filter(|d| at < d.length()) else {
        return Ok(Side { length, zero: true, from: None });
    };
    let status = disk.status(at, length.min(disk.length() - at), false)?;
    let from = if status.allocated { node(disk, status.depth) } else { None };
    Ok(Side { length: status.length, zero: status.zero, from: from.filter(Node::is_known) })
}

struct Work<'a, 'i> {
    image: &'a ExclusiveImage<'i>,
    new: Option<Disk>,
    compressed: bool,
}

impl Work<'_, '_> {
    fn run(&self, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<()> {
        let core = self.image.core();
        core.settle_runs()?;
        let length = core.length();
        let chunk_bytes = CHUNK_BYTES.max(core.geometry().cluster_bytes());
        let (mut old, mut new) = (Aligned::default(), Aligned::default());
        let mut at = 0;
        while at < length {
            if !progress(at, length) {
                return Err(Error::new(ErrorKind::Cancelled, "rebase: the caller asked to stop"));
            }
            let status = core.status(at, (length - at).min(LOOK_BYTES), true)?;
            if status.allocated {
                at += status.length;
                continue;
            }
            let was = look(core.backing(), at, status.length)?;
            let will = look(self.new.as_ref(), at, was.length)?;
            if was.zero && will.zero || was.from.is_some() && was.from == will.from {
                at += will.length;
                continue;
            }
            let bytes = will.length.min(chunk_bytes - at % chunk_bytes);
            let (old, new) = (old.first(bytes as usize), new.first(bytes as usize));
            fill(core.backing(), at, old)?;
            fill(self.new.as_ref(), at, new)?;
            self.hold_differences(at, old, new, core.geometry().cluster_bytes())?;
            at += bytes;
        }
        Ok(())
    }

    /// Writes the clusters of `old` that are different in `new`, neighbours of one kind at once.
    fn hold_differences(&self, at: u64, old: &[u8], new: &[u8], cluster_bytes: u64) -> Result<()> {
        let mut from = 0;
        while from < old.len() {
            let mut to = from;
            let kind = loop {
                let end = cluster_end(at, to, old.len(), cluster_bytes);
                let kind = Kind::of(&old[to..end], &new[to..end]);
                let follows = end < old.len() && {
                    let next = cluster_end(at, end, old.len(), cluster_bytes);
                    Kind::of(&old[end..next], &new[end..next]) == kind
                };
                to = end;
                if !follows {
                    break kind;
                }
            };
            match kind {
                Kind::Same => {}
                Kind::Zeroes => hold_zeroes(self.image, at + from as u64, &old[from..to])?,
                Kind::Data => hold_data(self.image, at + from as u64, &old[from..to], self.compressed)?,
            }
            from = to;
        }
        Ok(())
    }
}

/// Writes bytes; `compressed` where they are whole clusters.
fn hold_data(image: &ExclusiveImage<'_>, offset: u64, bytes: &[u8], compressed: bool) -> Result<()> {
    let core = image.core();
    let buffers = [IoSlice::new(bytes)];
    match compressed && core.check_clusters(GuestOffset(offset), bytes.len() as u64).is_ok() {
        true => core.write_compressed(GuestOffset(offset), &buffers),
        false => core.write(GuestOffset(offset), &buffers),
    }
}

/// Makes the image itself say that a range is zeroes, also where what is below reads as zeroes today.
fn hold_zeroes(image: &ExclusiveImage<'_>, offset: u64, bytes: &[u8]) -> Result<()> {
    let core = image.core();
    if core.geometry().version < 3 {
        // No zero flag: a hole shows what will be below.
        return core.write(GuestOffset(offset), &[IoSlice::new(bytes)]);
    }
    core.write_zeroes(GuestOffset(offset), bytes.len() as u64, Default::default())
}

/// What becomes of a cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Same,
    Zeroes,
    Data,
}

impl Kind {
    fn of(old: &[u8], new: &[u8]) -> Kind {
        match () {
            _ if old == new => Kind::Same,
            _ if old[0] == 0 && old[1..] == old[..old.len() - 1] => Kind::Zeroes,
            _ => Kind::Data,
        }
    }
}

/// Where the cluster ends that has byte `from` of a buffer for guest offset `at`.
fn cluster_end(at: u64, from: usize, length: usize, cluster_bytes: u64) -> usize {
    let guest = at + from as u64;
    let end = (guest / cluster_bytes + 1) * cluster_bytes - at;
    length.min(end as usize)
}

fn fill(side: Option<&Disk>, at: u64, buffer: &mut [u8]) -> Result<()> {
    match side.filter(|d| at < d.length()) {
        Some(disk) => disk.read_as_backing(at, buffer),
        None => {
            buffer.fill(0);
            Ok(())
        }
    }
}
