//! Block status: where the bytes of a range come from, through the chain.

use super::{Core, Disk, Status};
use crate::error::{Error, Result};
use crate::format::{GuestOffset, HostOffset};
use crate::map::{Extent, Source};

impl Core {
    /// Makes the host see what was written, so that status can tell what it has not. Where the image is open for
    /// reading that is done once, when it is first asked for.
    pub(crate) fn settle_runs(&self) -> Result<()> {
        match self.is_read_only() || self.io.is_none() {
            true => Ok(()),
            false => self.shared.medium.settle_runs(),
        }
    }

    /// The first extent of a range inside the disk.
    pub(crate) fn status(&self, offset: u64, length: u64, top_only: bool) -> Result<Status> {
        if length == 0 {
            return Err(Error::invalid("block status of an empty range"));
        }
        let mut status = self.status_once(offset, length, top_only)?;
        while status.length < length {
            // A broken entry is the next request's error, not this one's.
            match self.status_once(offset + status.length, length - status.length, top_only) {
                Ok(next) if status.continues(&next) => status.length += next.length,
                _ => break,
            }
        }
        Ok(status)
    }

    fn status_once(&self, offset: u64, length: u64, top_only: bool) -> Result<Status> {
        let extent = self.io()?.map.resolve(GuestOffset(offset), length)?;
        let own = Status {
            length: extent.length,
            data: false,
            zero: true,
            allocated: true,
            compressed: false,
            // Where bytes are that are not as the guest sees them helps nobody.
            host: extent.host.map(|host| host.0).filter(|_| self.payload.zeroes_are_zero()),
            in_data_file: self.geometry.external_data && extent.host.is_some(),
            depth: 0,
        };
        match extent.source {
            Source::Data => self.status_of_data(&extent, own),
            Source::Zero => Ok(own),
            Source::Compressed(_) => Ok(Status { data: true, zero: false, compressed: true, ..own }),
            Source::Hole => {
                // A subcluster that is a hole has a place in its cluster all the same.
                let hole = Status { allocated: false, ..own };
                match &self.settings.backing {
                    Some(_) if top_only => Ok(Status { zero: false, ..hole }),
                    Some(backing) => status_below(backing, offset, hole),
                    None => Ok(hole),
                }
            }
        }
    }

    /// A mapped cluster of which the host has nothing reads as zeroes (preallocation). Only whole clusters
    /// count: a part of a cluster that was never written is no preallocation.
    fn status_of_data(&self, extent: &Extent, own: Status) -> Result<Status> {
        let data = Status { data: true, zero: false, ..own };
        if !self.payload.zeroes_are_zero() {
            return Ok(data);
        }
        let Some(host) = extent.host else { return Ok(data) };
        let end = host + extent.length;
        if let Some(hole_end) = self.host_hole(host, end) {
            return Ok(Status { length: hole_end - host, zero: true, ..data });
        }
        let mut at = self.next_cluster(host);
        while at < end && self.host_hole(at, end).is_none() {
            at = match self.payload.run(at) {
                Ok(run) if run.data && run.end > at.0 => self.next_cluster(HostOffset(run.end - 1)),
                _ => self.next_cluster(at),
            };
        }
        Ok(Status { length: at.min(end) - host, ..data })
    }

    /// Where the whole clusters without host data end that begin with the cluster of `at`, at most `end`;
    /// `None` when that cluster has some, or the host cannot tell.
    fn host_hole(&self, at: HostOffset, end: HostOffset) -> Option<HostOffset> {
        let start = self.geometry.cluster_floor(at);
        let run = self.payload.run(start).ok()?;
        if run.data || run.end <= start.0 {
            return None;
        }
        let to_file_end = self.payload.length().is_ok_and(|length| run.end >= length);
        let hole_end =
            if to_file_end { end } else { self.geometry.cluster_floor(HostOffset(run.end)).min(end) };
        (hole_end > at).then_some(hole_end)
    }

    fn next_cluster(&self, offset: HostOffset) -> HostOffset {
        self.geometry.cluster_floor(offset) + self.geometry.cluster_bytes()
    }
}

/// The status of a hole of a disk on `backing`.
fn status_below(backing: &Disk, offset: u64, hole: Status) -> Result<Status> {
    let disk = backing.length();
    if offset >= disk {
        return Ok(hole);
    }
    let below = backing.status(offset, hole.length.min(disk - offset), false)?;
    Ok(Status { depth: below.depth + 1, ..below })
}
