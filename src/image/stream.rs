//! What an image shows of the disks below it becomes its own: a range of it when somebody asks for that (stream), or
//! what is read (copy on read). The disk shows the same before, meanwhile and afterwards.
//!
//! Each step claims guest clusters and looks again: where somebody has written by then there is no hole any more, and
//! who writes later waits for the claim and finds the data in its place. Power cut: as for any allocating write, with
//! contents that are durable before the entry is, for a hole shows no zeroes (R2).

use super::buffers::Gather;
use super::{check_range, Core, Disk, Image, Io};
use crate::alloc::Allocator;
use crate::codec::is_zero;
use crate::error::{zeroed, Error, ErrorKind, Result};
use crate::format::entries::{L2Entry, Mapping};
use crate::format::GuestOffset;
use crate::map::{Claim, NewEntry, Source};
use std::io::IoSlice;

/// Most bytes of one step, unless a cluster has more.
const STEP_BYTES: u64 = 1 << 20;

/// What is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamScope {
    /// What is read: all that is a hole, as the stock driver does.
    Read,
    /// What layers of the chain hold. Zeroes may stay holes: once nothing is below they are zeroes too.
    All,
    /// What the layers above the one at this depth hold; that one will be the backing file.
    Above(u32),
}

/// What is below the first bytes of a hole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Below {
    /// Nothing to take over.
    Nothing,
    Zeroes,
    Data,
}

impl Image {
    /// Takes over what is below a range. `progress(done, total)` in bytes; `false` cancels.
    pub fn stream(
        &self,
        offset: u64,
        length: u64,
        scope: StreamScope,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<()> {
        check_range(self.length(), offset, length)?;
        let end = offset + length;
        let mut at = offset;
        while at < end {
            if !progress(at - offset, length) {
                return Err(Error::new(ErrorKind::Cancelled, "stream: the caller asked to stop"));
            }
            let core = self.enter();
            // Somebody may have made the disk smaller.
            let here = end.min(core.virtual_size);
            if at >= here {
                break;
            }
            self.session.check_chain()?;
            at += core.take_over(GuestOffset(at), GuestOffset(here), scope)?;
        }
        progress(length, length);
        Ok(())
    }
}

impl Core {
    /// Takes over what is below a range that is about to be read.
    #[cold]
    pub(super) fn copy_on_read(&self, offset: GuestOffset, bytes: u64) -> Result<()> {
        check_range(self.virtual_size, offset.0, bytes)?;
        let mut at = offset;
        while at < offset + bytes {
            at += self.take_over(at, offset + bytes, StreamScope::Read)?;
        }
        Ok(())
    }

    /// One step from `at` towards `end`, inside the disk: how far it went, at least one byte.
    fn take_over(&self, at: GuestOffset, end: GuestOffset, scope: StreamScope) -> Result<u64> {
        // The disk's contents stay, and with them bitmaps that say what has changed.
        let (io, alloc) = (self.io()?, self.structure_writer()?.alloc);
        let unit = self.geometry.subcluster_bytes();
        let ceil = |offset: GuestOffset| offset.ceil_to(unit).min(self.disk_end());
        let from = at.floor_to(unit);
        let extent = io.map.resolve(from, ceil(end) - from)?;
        if extent.source != Source::Hole {
            return Ok(from + extent.length - at);
        }
        let (length, mut below) = self.look_below(from, extent.length, scope)?;
        let mut to = from + length;
        if to < self.disk_end() && to.0 % unit != 0 {
            // What lies in one unit with something else is copied with it.
            let whole = to.floor_to(unit);
            (to, below) = if whole > from { (whole, below) } else { (ceil(to), Below::Data) };
        }
        let most = STEP_BYTES.max(self.geometry.cluster_bytes());
        let to = match below {
            Below::Nothing => to,
            _ => {
                self.relieve(io, alloc)?;
                from + self.hold(io, alloc, from, to.min(from.floor_to(most) + most), below)?
            }
        };
        Ok(to - at)
    }

    /// Makes the start of `[from, to)`, whole units, the image's own; how much was looked at.
    fn hold(
        &self,
        io: &Io,
        alloc: &Allocator,
        from: GuestOffset,
        to: GuestOffset,
        below: Below,
    ) -> Result<u64> {
        let geometry = &self.geometry;
        let table_bytes = geometry.l2_table_guest_bytes();
        let to = to.min(from.floor_to(table_bytes) + table_bytes);
        let claim = io.map.claim(geometry.cluster_index(from), geometry.cluster_after(to));
        let now = io.map.resolve(from, to - from)?;
        if now.source != Source::Hole {
            return Ok(now.length);
        }
        let to = from + now.length;
        let mut bytes = zeroed("copy of guest data", now.length)?;
        if let (Below::Data, Some(backing)) = (below, &self.settings.backing) {
            backing.read_as_backing(from.0, &mut bytes)?;
        }
        if is_zero(&bytes) && geometry.version >= 3 {
            self.hold_zeroes(io, &claim, from, to)?;
            return Ok(to - from);
        }
        let buffers = [IoSlice::new(&bytes)];
        self.write_claimed(io, alloc, &claim, from, to, &Gather::new(&buffers))
    }

    /// Says of claimed holes that they are zeroes.
    fn hold_zeroes(&self, io: &Io, claim: &Claim<'_>, from: GuestOffset, to: GuestOffset) -> Result<()> {
        let geometry = &self.geometry;
        io.map.own_table(claim, geometry.cluster_index(from))?;
        for cluster in geometry.cluster_index(from).to(geometry.cluster_after(to)) {
            let start = geometry.cluster_offset(cluster);
            let bits = geometry
                .subclusters_touched(from.max(start) - start, (to - start).min(geometry.cluster_bytes()));
            let L2Entry::Plain(old) = io.map.entry(claim, cluster)? else { continue };
            let new = Mapping { zero: old.zero | bits & !old.alloc, ..old };
            io.map.unmap(claim, cluster, NewEntry { new: new.into(), dropped: None }, None)?;
        }
        Ok(())
    }

    /// What is below the first bytes of a hole.
    fn look_below(&self, at: GuestOffset, length: u64, scope: StreamScope) -> Result<(u64, Below)> {
        let limit = match scope {
            StreamScope::Above(depth) => {
                let Some(backing) = &self.settings.backing else { return Ok((length, Below::Nothing)) };
                return look_above(backing, at, length, depth);
            }
            // A hole whose zeroes come from no layer at all is not worth an entry.
            StreamScope::All => Below::Nothing,
            StreamScope::Read => Below::Zeroes,
        };
        let Some(backing) = &self.settings.backing else {
            // A version 2 entry cannot say zero, and nothing is there that it would hide.
            return Ok((length, if self.geometry.version < 3 { Below::Nothing } else { limit }));
        };
        if at.0 >= backing.length() {
            return Ok((length, limit));
        }
        let status = backing.status(at.0, length.min(backing.length() - at.0), false)?;
        Ok((status.length, if status.zero { limit } else { Below::Data }))
    }
}

/// What the layers from `first` down to the one above `depth` hold; `first` is at depth 1.
fn look_above(first: &Disk, at: GuestOffset, mut length: u64, depth: u32) -> Result<(u64, Below)> {
    let mut layer = first.clone();
    for here in 1..depth {
        if at.0 >= layer.length() {
            // It ends here, and hides what is below it.
            return Ok((length, Below::Zeroes));
        }
        let status = layer.status(at.0, length.min(layer.length() - at.0), true)?;
        length = status.length;
        if status.allocated {
            return Ok((length, if status.zero { Below::Zeroes } else { Below::Data }));
        }
        if here + 1 < depth {
            layer = layer.backing().ok_or_else(|| no_layer(depth))?;
        }
    }
    Ok((length, Below::Nothing))
}

/// Why there is no layer to stop at.
pub(crate) fn no_layer(depth: u32) -> Error {
    Error::invalid(format!("stream: the chain has no layer at depth {depth}"))
}
