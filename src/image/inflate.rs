//! Compressed reads. A whole cluster is inflated into the caller's buffer, and the streams of neighbours are read
//! in one go. A part of one comes from the last inflated clusters ([`super::inflation`]).

use super::inflation::Worker;
use super::Core;
use crate::error::{Error, ErrorKind, Result};
use crate::format::entries::CompressedSpan;
use crate::format::{GuestOffset, HostOffset};
use crate::map::{Map, Source};
use crate::storage::event::Event;
use std::sync::Arc;

/// Most stored bytes that are read at once, unless one cluster has more.
const STORED_BYTES: u64 = 256 << 10;

impl Core {
    /// Fills the start of `buffer` from guest `offset`, which is in the compressed cluster `span`; returns how much.
    pub(super) fn read_compressed(
        &self,
        map: &Map,
        span: CompressedSpan,
        offset: GuestOffset,
        buffer: &mut [u8],
    ) -> Result<usize> {
        let cluster_bytes = self.geometry.cluster_bytes() as usize;
        let from = self.geometry.in_cluster(offset) as usize;
        if from != 0 || buffer.len() < cluster_bytes {
            let length = buffer.len().min(cluster_bytes - from);
            self.read_part(span, offset, &mut buffer[..length])?;
            return Ok(length);
        }
        let mut spans = vec![span];
        let mut end = span.host_offset + span.bytes;
        for at in 1..buffer.len() / cluster_bytes {
            // A broken entry is the next request's error, not this one's.
            let next = map.resolve(offset + (at * cluster_bytes) as u64, cluster_bytes as u64);
            let Ok(Source::Compressed(next)) = next.map(|e| e.source) else { break };
            let next_end = next.host_offset + next.bytes;
            let follows = (spans[at - 1].host_offset..=end).contains(&next.host_offset) && next_end >= end;
            if !follows || next_end - span.host_offset > STORED_BYTES {
                break;
            }
            end = next_end;
            spans.push(next);
        }
        let length = spans.len() * cluster_bytes;
        self.inflate_all(&spans, end, offset, &mut buffer[..length])?;
        Ok(length)
    }

    /// Inflates streams that lie before `host_end` one behind the other to the whole clusters from `offset` on.
    fn inflate_all(
        &self,
        spans: &[CompressedSpan],
        host_end: HostOffset,
        offset: GuestOffset,
        clusters: &mut [u8],
    ) -> Result<()> {
        let mut worker = self.inflation.worker()?;
        let host_start = spans[0].host_offset;
        self.read_stored(&mut worker, host_start, host_end - host_start)?;
        let parts = clusters.chunks_exact_mut(self.geometry.cluster_bytes() as usize);
        for ((span, part), index) in spans.iter().zip(parts).zip(self.geometry.cluster_index(offset).0..) {
            if let Some(kept) = self.inflation.find(*span) {
                part.copy_from_slice(&kept);
                continue;
            }
            let from = (span.host_offset - host_start) as usize;
            let stored = &worker.stored[from..from + span.bytes as usize];
            let done = worker.inflater.inflate(stored, part);
            done.map_err(|rule| broken_stream(index, span, rule))?;
        }
        self.inflation.idle.put(worker);
        Ok(())
    }

    /// Fills `part` from guest `offset` on, inside the compressed cluster `span`.
    pub(super) fn read_part(&self, span: CompressedSpan, offset: GuestOffset, part: &mut [u8]) -> Result<()> {
        let from = self.geometry.in_cluster(offset) as usize;
        let kept = match self.inflation.find(span) {
            Some(kept) => kept,
            None => self.inflate_kept(span, self.geometry.cluster_index(offset).0)?,
        };
        part.copy_from_slice(&kept[from..from + part.len()]);
        Ok(())
    }

    fn inflate_kept(&self, span: CompressedSpan, index: u64) -> Result<Arc<Vec<u8>>> {
        let mut worker = self.inflation.worker()?;
        self.read_stored(&mut worker, span.host_offset, span.bytes)?;
        let mut cluster = self.inflation.make_room()?;
        let done = worker.inflater.inflate(&worker.stored[..span.bytes as usize], &mut cluster);
        self.inflation.idle.put(worker);
        done.map_err(|rule| broken_stream(index, &span, rule))?;
        let cluster = Arc::new(cluster);
        self.inflation.keep(span, &cluster);
        Ok(cluster)
    }

    fn read_stored(&self, worker: &mut Worker, host_offset: HostOffset, bytes: u64) -> Result<()> {
        let bytes = bytes as usize;
        if worker.stored.len() < bytes {
            let more = worker.stored.try_reserve_exact(bytes - worker.stored.len());
            more.map_err(|_| Error::new(ErrorKind::NoMemory, "compressed cluster: no memory"))?;
            worker.stored.resize(bytes, 0);
        }
        self.storage().event(Event::ReadCompressed);
        self.payload.read_stream(host_offset, &mut worker.stored[..bytes])
    }
}

fn broken_stream(cluster: u64, span: &CompressedSpan, rule: &'static str) -> Error {
    Error::corrupt("compressed data of guest cluster", cluster, span.host_offset.0, rule)
}
