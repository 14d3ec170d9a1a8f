//! Block status: where the bytes of a range come from, through the chain.

use super::{Core, Disk};
use crate::error::{Error, Result};
use crate::map::{Extent, Source};
use std::sync::Arc;

/// The first extent of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Bytes from the start of the range that are alike.
    pub length: u64,
    /// Stored somewhere.
    pub data: bool,
    /// Reads as zeroes.
    pub zero: bool,
    /// The layer at `depth` decides; otherwise no layer has the range.
    pub allocated: bool,
    /// Inside compressed clusters.
    pub compressed: bool,
    /// Offset in the file of that layer.
    pub host: Option<u64>,
    /// 0 this disk, 1 its backing disk, ...
    pub depth: u32,
}

impl Status {
    fn continues(&self, next: &Status) -> bool {
        let alike = (self.data, self.zero, self.allocated, self.compressed, self.depth)
            == (next.data, next.zero, next.allocated, next.compressed, next.depth);
        let host = self.host.map(|h| h + self.length);
        alike && host == next.host
    }
}

impl Core {
    /// The first extent of a range inside the disk.
    pub(crate) fn status(&self, offset: u64, length: u64, top_only: bool) -> Result<Status> {
        if length == 0 {
            return Err(Error::invalid("block status of an empty range"));
        }
        let mut status = self.status_once(offset, length, top_only)?;
        while status.length < length {
            let next = self.status_once(offset + status.length, length - status.length, top_only)?;
            if !status.continues(&next) {
                break;
            }
            status.length += next.length;
        }
        Ok(status)
    }

    fn status_once(&self, offset: u64, length: u64, top_only: bool) -> Result<Status> {
        let extent = self.io()?.map.resolve(offset, length)?;
        let own = Status {
            length: extent.length,
            data: false,
            zero: true,
            allocated: true,
            compressed: false,
            host: extent.host,
            depth: 0,
        };
        match extent.source {
            Source::Data => self.status_of_data(&extent, own),
            Source::Zero => Ok(own),
            Source::Compressed(_) => Ok(Status { data: true, zero: false, compressed: true, ..own }),
            Source::Hole => {
                let hole = Status { allocated: false, host: None, ..own };
                match &self.settings.backing {
                    Some(_) if top_only => Ok(Status { zero: false, ..hole }),
                    Some(backing) => status_below(backing, offset, hole),
                    None => Ok(hole),
                }
            }
        }
    }

    /// A preallocated cluster of which the host has nothing reads as zeroes although it is mapped.
    fn status_of_data(&self, extent: &Extent, own: Status) -> Result<Status> {
        let data = Status { data: true, zero: false, ..own };
        let Some(host) = extent.host else { return Ok(data) };
        let storage = self.shared.medium.storage();
        let Ok(run) = storage.host_run(host) else { return Ok(data) };
        let start = self.geometry.cluster_floor(host);
        let end = host + extent.length;
        if !run.data && (host == start || storage.host_run(start).is_ok_and(|r| !r.data && r.end > host)) {
            // Whole clusters only: parts of a cluster that were never written are not preallocation.
            let stop = if run.end >= end { end } else { self.geometry.cluster_floor(run.end).min(end) };
            let whole = self.geometry.in_cluster(end) == 0
                || run.end >= self.geometry.cluster_ceil(end).unwrap_or(end);
            if stop > host && (stop < end || whole) {
                return Ok(Status { length: stop - host, zero: true, ..data });
            }
        }
        let mut length = extent.length;
        // Up to the next cluster boundary from which on the host may have nothing.
        let next = self.geometry.cluster_ceil(host + 1).unwrap_or(end);
        if next < end {
            let mut at = next;
            while at < end {
                match storage.host_run(at) {
                    Ok(r) if r.data && r.end > at => {
                        let hole_cluster = self.geometry.cluster_ceil(r.end).unwrap_or(end);
                        at = hole_cluster;
                    }
                    Ok(r) if !r.data && r.end >= (at + self.geometry.cluster_bytes()).min(end) => break,
                    Ok(r) if !r.data => at = self.geometry.cluster_ceil(r.end.max(at + 1)).unwrap_or(end),
                    _ => at = end,
                }
            }
            length = at.min(end) - host;
        }
        Ok(Status { length, ..data })
    }
}

/// The status of a hole of a disk on `backing`.
fn status_below(backing: &Arc<Disk>, offset: u64, hole: Status) -> Result<Status> {
    let disk = backing.length();
    if offset >= disk {
        return Ok(hole);
    }
    let below = backing.status(offset, hole.length.min(disk - offset), false)?;
    Ok(Status { depth: below.depth + 1, ..below })
}
