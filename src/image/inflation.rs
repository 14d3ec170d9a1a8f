//! What compressed reads share: inflaters, and the last inflated clusters, so that small reads do not inflate a cluster
//! again and again.
//!
//! Kept clusters are found by where their stream is. That a stream is not taken for another one that was there
//! before follows from R4 and one step of `write_packed`: between reserving the host range and linking it, it
//! forgets what is kept of that range. Who has resolved an old stream there has left by then, or the range would
//! not be free, so nothing old is kept afterwards; and nobody resolves the new one before it is linked. Everything
//! else that moves streams (snapshots, resize, repair) loads the image, and with it this cache, anew.

use crate::codec::{Codec, Inflater};
use crate::error::{zeroed, Error, ErrorKind, Result};
use crate::format::entries::CompressedSpan;
use crate::format::{Geometry, HostOffset};
use crate::planted::{planted, Plant};
use crate::storage::pool::Pool;
use crate::sync::locked;
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes of inflated clusters that are kept; never fewer than two clusters.
const KEPT_BYTES: u64 = 1 << 20;
/// Most inflated clusters that are kept: each look-up passes over them.
const MOST_KEPT: u64 = 16;

/// What compressed reads of one image share.
pub(super) struct Inflation {
    codec: Codec,
    cluster_bytes: usize,
    kept_limit: usize,
    pub(super) idle: Pool<Worker>,
    /// Held to look, never across inflating or I/O.
    kept: Mutex<Kept>,
}

/// For one thread.
pub(super) struct Worker {
    pub(super) inflater: Inflater,
    /// Streams as they are stored; at most what is read at once.
    pub(super) stored: Vec<u8>,
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

    pub(super) fn find(&self, span: CompressedSpan) -> Option<Arc<Vec<u8>>> {
        let mut kept = self.kept();
        kept.clock += 1;
        let now = kept.clock;
        let found = kept.clusters.iter_mut().find(|c| c.span == span)?;
        found.used = now;
        Some(Arc::clone(&found.bytes))
    }

    /// Room for a cluster: that of the least used one, once as many are kept as may be.
    pub(super) fn make_room(&self) -> Result<Vec<u8>> {
        let mut kept = self.kept();
        let old = if kept.clusters.len() >= self.kept_limit { kept.evict() } else { None };
        drop(kept);
        old.map_or_else(|| zeroed("inflated cluster", self.cluster_bytes as u64), Ok)
    }

    /// Keeps a cluster. The caller's pin is from before it resolved `span`.
    pub(super) fn keep(&self, span: CompressedSpan, bytes: &Arc<Vec<u8>>) {
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

    pub(super) fn worker(&self) -> Result<Worker> {
        if let Some(worker) = self.idle.take() {
            return Ok(worker);
        }
        let inflater = self.codec.inflater();
        let inflater = inflater.ok_or_else(|| Error::new(ErrorKind::NoMemory, "inflater: no memory"))?;
        Ok(Worker { inflater, stored: Vec::new() })
    }
}
