//! Who may have an image file open with whom: the byte ranges that QEMU locks, so that a running QEMU and
//! this library refuse each other, and a registry for opens that share one open file description.
//!
//! Permission `p` in use is a shared lock on byte 100+p; a permission that others may not have is a shared
//! lock on byte 200+p. A conflict is somebody else's lock on the opposite byte.

use super::file::{forks, lock_byte_held, lock_byte_release, lock_byte_shared};
use crate::error::{Error, ErrorKind, Result};
use arc_swap::ArcSwap;
use once_cell::sync::Lazy;
use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard};

const IN_USE: u64 = 100;
const NOT_SHARED: u64 = 200;
const CONSISTENT_READ: u64 = 0;
const WRITE: u64 = 1;
const RESIZE: u64 = 3;
const NAMES: [&str; 4] = ["consistent read", "write", "write unchanged", "resize"];

/// What an open wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads; nobody may write.
    Read,
    /// Reads; others may do what they like.
    ReadShared,
    /// Reads and writes; nobody else may write.
    Write,
}

impl Access {
    fn in_use(self) -> &'static [u64] {
        match self {
            Access::Read | Access::ReadShared => &[CONSISTENT_READ],
            Access::Write => &[CONSISTENT_READ, WRITE, RESIZE],
        }
    }

    fn not_shared(self) -> &'static [u64] {
        match self {
            Access::ReadShared => &[],
            Access::Read | Access::Write => &[WRITE, RESIZE],
        }
    }
}

/// Opens of one file in this process.
#[derive(Default)]
struct Users {
    readers: usize,
    writers: usize,
}

/// The opens of one process. A forked child starts with an empty one: it holds none of its parent's handles,
/// and the parent's mutex may have been locked at the fork.
struct Registry {
    forks: u64,
    files: Mutex<HashMap<(u64, u64), Users>>,
}

impl Registry {
    fn new(forks: u64) -> Self {
        Registry { forks, files: Mutex::default() }
    }

    /// The registry of this process.
    fn current() -> Arc<Registry> {
        static CURRENT: Lazy<ArcSwap<Registry>> = Lazy::new(|| ArcSwap::from_pointee(Registry::new(forks())));
        let mut known = CURRENT.load_full();
        while known.forks != forks() {
            CURRENT.compare_and_swap(&known, Arc::new(Registry::new(forks())));
            known = CURRENT.load_full();
        }
        known
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(u64, u64), Users>> {
        self.files.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn forget(&self, identity: (u64, u64), access: Access) {
        let mut files = self.lock();
        let Some(users) = files.get_mut(&identity) else { return };
        match access {
            Access::Write => users.writers -= 1,
            Access::Read => users.readers -= 1,
            Access::ReadShared => {}
        }
        if users.readers == 0 && users.writers == 0 {
            files.remove(&identity);
        }
    }

    /// One user changes its access; the others decide whether it may.
    fn change(&self, identity: (u64, u64), from: Access, to: Access, shown: &str) -> Result<()> {
        self.forget(identity, from);
        self.register(identity, to, shown).inspect_err(|_| {
            let mut files = self.lock();
            let users = files.entry(identity).or_default();
            match from {
                Access::Write => users.writers += 1,
                Access::Read => users.readers += 1,
                Access::ReadShared => {}
            }
        })
    }

    fn register(&self, identity: (u64, u64), access: Access, shown: &str) -> Result<()> {
        let mut files = self.lock();
        let users = files.entry(identity).or_default();
        match access {
            Access::Write if users.writers + users.readers > 0 => Err(refused("\"write\"", shown)),
            Access::Read if users.writers > 0 => Err(refused("shared \"write\"", shown)),
            Access::Write => {
                users.writers += 1;
                Ok(())
            }
            Access::Read => {
                users.readers += 1;
                Ok(())
            }
            Access::ReadShared => Ok(()),
        }
    }
}

/// A held lock; released when dropped.
pub struct FileLock {
    file: Arc<File>,
    access: Access,
    identity: (u64, u64),
    registry: Arc<Registry>,
    /// Another lock has taken over: there is nothing to release.
    replaced: bool,
}

impl FileLock {
    /// Locks `file` or names the permission that somebody else withholds. `shown` is the name for messages.
    pub fn take(file: &Arc<File>, identity: (u64, u64), access: Access, shown: &str) -> Result<FileLock> {
        let registry = Registry::current();
        registry.register(identity, access, shown)?;
        // From here on dropping the lock undoes what was done.
        let lock = FileLock { file: Arc::clone(file), access, identity, registry, replaced: false };
        lock.place_all(shown)?;
        lock.test_all(shown)?;
        Ok(lock)
    }

    /// Goes over to another descriptor of the same file and another access, without a moment in which the
    /// file is not locked. On failure the old lock is handed back as it was.
    pub fn exchange(
        mut self,
        file: &Arc<File>,
        access: Access,
        shown: &str,
    ) -> std::result::Result<FileLock, (FileLock, Error)> {
        if let Err(e) = self.registry.change(self.identity, self.access, access, shown) {
            return Err((self, e));
        }
        // The registry has been told: dropping `next` takes the new access off it, as it should.
        let mut next = FileLock {
            file: Arc::clone(file),
            access,
            identity: self.identity,
            registry: Arc::clone(&self.registry),
            replaced: false,
        };
        // All our locks are shared ones, so placing them cannot fail for somebody else's.
        let placed = next.place_all(shown);
        self.release_all();
        match placed.and_then(|()| next.test_all(shown)) {
            Ok(()) => {
                self.replaced = true;
                Ok(next)
            }
            Err(e) => {
                let _ = self.place_all(shown);
                next.release_all();
                let _ = self.registry.change(self.identity, access, self.access, shown);
                next.replaced = true;
                Err((self, e))
            }
        }
    }

    fn place_all(&self, shown: &str) -> Result<()> {
        for p in self.access.in_use() {
            self.place(IN_USE + p, shown)?;
        }
        for p in self.access.not_shared() {
            self.place(NOT_SHARED + p, shown)?;
        }
        Ok(())
    }

    fn test_all(&self, shown: &str) -> Result<()> {
        for p in self.access.in_use() {
            self.test(NOT_SHARED + p, || refused(&format!("\"{}\"", NAMES[*p as usize]), shown))?;
        }
        for p in self.access.not_shared() {
            self.test(IN_USE + p, || refused(&format!("shared \"{}\"", NAMES[*p as usize]), shown))?;
        }
        Ok(())
    }

    fn release_all(&self) {
        for p in self.access.in_use() {
            let _ = lock_byte_release(&self.file, IN_USE + p);
        }
        for p in self.access.not_shared() {
            let _ = lock_byte_release(&self.file, NOT_SHARED + p);
        }
    }

    fn place(&self, byte: u64, shown: &str) -> Result<()> {
        match lock_byte_shared(&self.file, byte) {
            Ok(()) => Ok(()),
            // A file system without OFD locks: the registry still guards this process.
            Err(e) if super::is_not_supported(&e) || e.raw_os_error() == Some(libc::ENOLCK) => Ok(()),
            Err(e) => Err(Error::host(format_args!("locking byte {byte} of '{shown}'"), &e)),
        }
    }

    fn test(&self, byte: u64, refusal: impl FnOnce() -> Error) -> Result<()> {
        match lock_byte_held(&self.file, byte) {
            Ok(true) => Err(refusal()),
            _ => Ok(()),
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if !self.replaced {
            self.release_all();
            self.registry.forget(self.identity, self.access);
        }
    }
}

fn refused(which: &str, shown: &str) -> Error {
    Error::new(
        ErrorKind::Locked,
        format!("Failed to get {which} lock\nIs another process using the image [{shown}]?"),
    )
}
