//! The storage of the models: a few words, and what syncs have made durable of them.

use crate::storage::{HostRun, Purpose, Storage, Traits};
use crate::sync::atomic::{AtomicU64, Ordering};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

/// See the module. Word `n` is bytes `8 n` to `8 n + 7`, big-endian.
pub struct Disk {
    words: Vec<AtomicU64>,
    durable: Vec<AtomicU64>,
    /// Writes that still are to fail.
    failing: AtomicU64,
}

impl Disk {
    /// Words that count from 0 on.
    pub fn new(words: u64) -> Arc<Disk> {
        let fill = || (0..words).map(AtomicU64::new).collect();
        Arc::new(Disk { words: fill(), durable: fill(), failing: AtomicU64::new(0) })
    }

    /// A word is nothing yet, in the file and for good.
    pub fn clear(&self, index: usize) {
        self.set(index, 0);
        self.durable[index].store(0, Ordering::Relaxed);
    }

    /// The next write fails.
    pub fn fail_once(&self) {
        self.failing.store(1, Ordering::Relaxed);
    }

    /// What a reader of the file sees.
    pub fn word(&self, index: usize) -> u64 {
        self.words[index].load(Ordering::Relaxed)
    }

    pub fn set(&self, index: usize, value: u64) {
        self.words[index].store(value, Ordering::Relaxed);
    }

    /// What a power cut leaves at least. Words of a model only rise.
    pub fn durable(&self, index: usize) -> u64 {
        self.durable[index].load(Ordering::Relaxed)
    }
}

fn no<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl Storage for Disk {
    fn read(&self, _: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let mut index = offset as usize / 8;
        for chunk in buffers.iter_mut().flat_map(|b| b.chunks_exact_mut(8)) {
            chunk.copy_from_slice(&self.word(index).to_be_bytes());
            index += 1;
        }
        Ok(())
    }

    fn write(&self, _: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        if self.failing.compare_exchange(1, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut index = offset as usize / 8;
        for chunk in buffers.iter().flat_map(|b| b.chunks_exact(8)) {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            self.set(index, u64::from_be_bytes(word));
            index += 1;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        for (word, durable) in self.words.iter().zip(&self.durable) {
            durable.fetch_max(word.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(8 * self.words.len() as u64)
    }

    fn set_length(&self, _: u64) -> io::Result<()> {
        no()
    }

    fn write_zeroes(&self, _: Purpose, _: u64, _: u64) -> io::Result<()> {
        no()
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        no()
    }

    fn preallocate(&self, _: u64, _: u64) -> io::Result<()> {
        no()
    }

    fn host_run(&self, _: u64) -> io::Result<HostRun> {
        no()
    }

    fn traits(&self) -> Traits {
        Traits { alignment: 1, zero_past_end: true, discard_zeroes: true, read_only: false }
    }
}
