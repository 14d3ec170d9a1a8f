//! Compressed reads. A whole cluster is inflated into the caller's buffer, and the streams of neighbours are read
//! in one go. A part of one comes from the last inflated clusters, so that small reads do not inflate a cluster
//! again and again.
//!
//! Kept clusters are found by where their stream is. That a stream is not taken for another one that was there
//! before follows from R4 and one step of `write_packed`: between reserving the host range and linking it, it
//! forgets what is kept of that range. Who has resolved an old stream there has left by then, or the range would
//! not be free, so nothing old is kept afterwards; and nobody resolves the new one before it is linked. Everything
//! else that moves streams (snapshots, resize, repair) loads the image, and with it this cache, anew.

use super::pool::Pool;
use super::Core;
use crate::codec::{Codec, Inflater};
use crate::error::{zeroed, Error, ErrorKind, Result};
use crate::format::entries::CompressedSpan;
use crate::format::{Geometry, GuestOffset, HostOffset};
use crate::map::{Map, Source};
use crate::planted::{planted, Plant};
use crate::sync::locked;
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes of inflated clusters that are kept; never fewer than two clusters.
const KEPT_BYTES: u64 = 1 << 20;
/// Most inflated clusters that are kept: each look-up passes over them.
const MOST_KEPT: u64 = 16;
/// Most stored bytes that are read at once, unless one cluster has more.
const STORED_BYTES: u64 = 256 << 10;

/// What compressed reads of one image share.
pub(super) struct Inflation {
    codec: Codec,
    cluster_bytes: usize,
    kept_limit: usize,
    idle: Pool<Worker>,
    /// Held to look, never across inflating or I/O.
    kept: Mutex<Kept>,
}

/// For one thread.
struct Worker {
    inflater: Inflater,
    /// Streams as they are stored; at most the larger of `STORED_BYTES` and one stream.
    stored: Vec<u8>,
}

#[derive(Default)]
struct Kept {
    clusters: Vec<KeptCluster>,
    /// Counts uses.
    clock: u64,
}

struct KeptCluster {
    span: CompressedSpan,
    bytes: Arc<Vec<u8>>,
    used: u64,
}

impl Kept {
    /// Takes the one out that was not used for longest; its memory, unless somebody still copies from it.
    fn evict(&mut self) -> Option<Vec<u8>> {
        let oldest = (0..self.clusters.len()).min_by_key(|i| self.clusters[*i].used)?;
        Arc::try_unwrap(self.clusters.swap_remove(oldest).bytes).ok()
    }
}

impl Inflation {
    pub(super) fn new(codec: Codec, geometry: &Geometry) -> Self {
        let kept_limit = (KEPT_BYTES / geometry.cluster_bytes()).clamp(2, MOST_KEPT) as usize;
        let cluster_bytes = geometry.cluster_bytes() as usize;
        Inflation { codec, cluster_bytes, kept_limit, idle: Pool::default(), kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        locked(self.kept.lock())
    }

    fn find(&self, span: CompressedSpan) -> Option<Arc<Vec<u8>>> {
        let mut kept = self.kept();
        kept.clock += 1;
        let now = kept.clock;
        let found = kept.clusters.iter_mut().find(|c| c.span == span)?;
        found.used = now;
        Some(Arc::clone(&found.bytes))
    }

    /// Room for a cluster: that of the least used one, once as many are kept as may be.
    fn make_room(&self) -> Result<Vec<u8>> {
        let mut kept = self.kept();
        let old = if kept.clusters.len() >= self.kept_limit { kept.evict() } else { None };
        drop(kept);
        old.map_or_else(|| zeroed("inflated cluster", self.cluster_bytes as u64), Ok)
    }

    /// Keeps a cluster. The caller's pin is from before it resolved `span`.
    fn keep(&self, span: CompressedSpan, bytes: &Arc<Vec<u8>>) {
        let mut kept = self.kept();
        kept.clock += 1;
        let used = kept.clock;
        if kept.clusters.iter().any(|c| c.span == span) {
            return;
        }
        if kept.clusters.len() >= self.kept_limit {
            kept.evict();
        }
        kept.clusters.push(KeptCluster { span, bytes: Arc::clone(bytes), used });
    }

    /// Forgets what is kept of a host range that gets a new stream; see the module.
    pub(super) fn forget(&self, host_offset: HostOffset, length: u64) {
        let apart = |s: &CompressedSpan| {
            s.host_offset >= host_offset + length || s.host_offset + s.bytes <= host_offset
        };
        if !planted(Plant::StaleStreamKept) {
            self.kept().clusters.retain(|c| apart(&c.span));
        }
    }

    /// Frees what is kept.
    pub(super) fn clear(&self) {
        let old = std::mem::take(&mut self.kept().clusters);
        drop(old);
        self.idle.clear();
    }

    fn worker(&self) -> Result<Worker> {
        if let Some(worker) = self.idle.take() {
            return Ok(worker);
        }
        let inflater = self.codec.inflater();
        let inflater = inflater.ok_or_else(|| Error::new(ErrorKind::NoMemory, "inflater: no memory"))?;
        Ok(Worker { inflater, stored: Vec::new() })
    }
}

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
        self.payload.read_stream(host_offset, &mut worker.stored[..bytes])
    }
}

fn broken_stream(cluster: u64, span: &CompressedSpan, rule: &'static str) -> Error {
    Error::corrupt("compressed data of guest cluster", cluster, span.host_offset.0, rule)
}
