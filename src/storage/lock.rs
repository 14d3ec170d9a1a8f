//! Who may have an image file open with whom: the byte ranges that QEMU locks, so that a running QEMU and
//! this library refuse each other, and a registry for opens that share one open file description.
//!
//! Permission `p` in use is a shared lock on byte 100+p; a permission that others may not have is a shared
//! lock on byte 200+p. A conflict is somebody else's lock on the opposite byte.

use super::access::{Access, Identity};
use super::file::sys::{forks, lock_byte_held, lock_byte_release, lock_byte_shared};
use crate::error::{Error, ErrorKind, Result};
use crate::planted::{planted, Plant};
use crate::sync::{locked, Mutex, MutexGuard};
use once_cell::race::OnceBox;
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

const IN_USE: u64 = 100;
const NOT_SHARED: u64 = 200;
const CONSISTENT_READ: u64 = 0;
const WRITE: u64 = 1;
const RESIZE: u64 = 3;
const NAMES: [&str; 4] = ["consistent read", "write", "write unchanged", "resize"];

impl Access {
    fn in_use(self) -> &'static [u64] {
        match self {
            Access::Read | Access::ReadShared | Access::ReadData => &[CONSISTENT_READ],
            Access::Write | Access::WriteData => &[CONSISTENT_READ, WRITE, RESIZE],
        }
    }

    /// The bytes to lock.
    fn bytes(self) -> impl Iterator<Item = u64> {
        let not_shared = self.not_shared().iter().map(|p| NOT_SHARED + p);
        self.in_use().iter().map(|p| IN_USE + p).chain(not_shared)
    }

    fn not_shared(self) -> &'static [u64] {
        match self {
            Access::ReadShared => &[],
            Access::Read | Access::Write => &[WRITE, RESIZE],
            Access::ReadData | Access::WriteData => &[RESIZE],
        }
    }
}

/// Opens of one file in this process.
#[derive(Default)]
struct Users {
    readers: usize,
    writers: usize,
}

impl Users {
    fn enter(&mut self, access: Access, shown: &str) -> Result<()> {
        match access {
            Access::Write | Access::WriteData if self.writers + self.readers > 0 => {
                Err(refused("\"write\"", HERE, shown))
            }
            Access::Read | Access::ReadData if self.writers > 0 => {
                Err(refused("shared \"write\"", HERE, shown))
            }
            _ => {
                self.count(access);
                Ok(())
            }
        }
    }

    fn count(&mut self, access: Access) {
        match access {
            Access::Write | Access::WriteData => self.writers += 1,
            Access::Read | Access::ReadData => self.readers += 1,
            Access::ReadShared => {}
        }
    }

    fn leave(&mut self, access: Access) {
        match access {
            Access::Write | Access::WriteData => self.writers -= 1,
            Access::Read | Access::ReadData => self.readers -= 1,
            Access::ReadShared => {}
        }
    }
}

/// The opens of one process. A forked child starts with an empty one: it holds none of its parent's handles,
/// and the parent's mutex may have been locked at the fork. Nothing waits on the way to it for the same reason.
struct Registry {
    forks: u64,
    /// Gives all its memory back when the last file leaves, so that leak checkers find nothing at exit.
    files: Mutex<BTreeMap<Identity, Users>>,
    /// See `opening_turn`.
    opening: std::sync::Mutex<()>,
    /// That of a child of this process.
    next: OnceBox<Registry>,
}

impl Registry {
    fn new(forks: u64) -> Self {
        Registry { forks, files: Mutex::default(), opening: Default::default(), next: OnceBox::new() }
    }

    /// The registry of this process.
    fn current() -> &'static Registry {
        static FIRST: OnceBox<Registry> = OnceBox::new();
        let mut of = &FIRST;
        loop {
            let registry = of.get_or_init(|| Box::new(Registry::new(forks())));
            if registry.forks == forks() {
                return registry;
            }
            of = &registry.next;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Identity, Users>> {
        locked(self.files.lock())
    }

    fn forget(&self, identity: Identity, access: Access) {
        let mut files = self.lock();
        let Some(users) = files.get_mut(&identity) else { return };
        users.leave(access);
        if users.readers == 0 && users.writers == 0 {
            files.remove(&identity);
        }
    }

    /// One user changes its access; the others decide whether it may. Nobody can come in between.
    fn change(&self, identity: Identity, from: Access, to: Access, shown: &str) -> Result<()> {
        if planted(Plant::AccessChangedInTwoSteps) {
            self.forget(identity, from);
            return self.register(identity, to, shown);
        }
        let mut files = self.lock();
        let users = files.entry(identity).or_default();
        users.leave(from);
        users.enter(to, shown).inspect_err(|_| users.count(from))
    }

    fn register(&self, identity: Identity, access: Access, shown: &str) -> Result<()> {
        self.lock().entry(identity).or_default().enter(access, shown)
    }
}

/// Held by an open that keeps others off descriptors.
pub(super) fn opening_turn() -> std::sync::MutexGuard<'static, ()> {
    locked(Registry::current().opening.lock())
}

/// A held lock; released when dropped.
pub struct FileLock {
    file: Arc<File>,
    access: Access,
    identity: Identity,
    registry: &'static Registry,
    /// Another lock has taken over: there is nothing to release.
    replaced: bool,
}

impl FileLock {
    /// Locks `file` or names the permission that somebody else withholds. `shown` is the name for messages.
    pub fn take(file: &Arc<File>, identity: Identity, access: Access, shown: &str) -> Result<FileLock> {
        let registry = Registry::current();
        registry.register(identity, access, shown)?;
        // From here on dropping the lock undoes what was done.
        let lock = FileLock { file: Arc::clone(file), access, identity, registry, replaced: false };
        lock.place_all(shown)?;
        lock.test_all(shown)?;
        Ok(lock)
    }

    /// Whether this descriptor has it.
    pub fn is_on(&self, file: &Arc<File>) -> bool {
        Arc::ptr_eq(&self.file, file)
    }

    /// Whether others must leave the file's length as it is.
    pub fn keeps_length(&self) -> bool {
        self.access.not_shared().contains(&RESIZE)
    }

    /// Changes the access. Bytes that stay are not let go of meanwhile; on failure the lock is as it was.
    pub fn change(&mut self, access: Access, shown: &str) -> Result<()> {
        let before = self.access;
        self.registry.change(self.identity, before, access, shown)?;
        self.access = access;
        // All our locks are shared ones, so placing them cannot fail for somebody else's.
        let done = self.place_all(shown).and_then(|()| self.test_all(shown));
        let (gone, kept) = if done.is_ok() { (before, access) } else { (access, before) };
        for byte in gone.bytes().filter(|b| !kept.bytes().any(|k| k == *b)) {
            let _ = lock_byte_release(&self.file, byte);
        }
        if done.is_err() {
            self.access = before;
            let _ = self.registry.change(self.identity, access, before, shown);
        }
        done
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
            registry: self.registry,
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
        self.access.bytes().try_for_each(|byte| self.place(byte, shown))
    }

    fn test_all(&self, shown: &str) -> Result<()> {
        for p in self.access.in_use() {
            self.test(NOT_SHARED + p, || refused(&format!("\"{}\"", NAMES[*p as usize]), ELSEWHERE, shown))?;
        }
        for p in self.access.not_shared() {
            self.test(IN_USE + p, || {
                refused(&format!("shared \"{}\"", NAMES[*p as usize]), ELSEWHERE, shown)
            })?;
        }
        Ok(())
    }

    fn release_all(&self) {
        for byte in self.access.bytes() {
            let _ = lock_byte_release(&self.file, byte);
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

/// Who is in the way.
const HERE: &str = "handle of this process";
const ELSEWHERE: &str = "process";

fn refused(which: &str, who: &str, shown: &str) -> Error {
    Error::new(ErrorKind::Locked, format!("Failed to get {which} lock"))
        .hint(format!("\nIs another {who} using the image [{shown}]?"))
        .about_file(shown)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// Runs `watch` over and over on another thread while `run` runs; how often that was.
    fn beside(watch: impl Fn() + Sync, run: impl FnOnce()) -> u64 {
        let (done, looks) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    watch();
                    looks.fetch_add(1, Ordering::SeqCst);
                }
            });
            while looks.load(Ordering::SeqCst) == 0 && !watcher.is_finished() {
                std::thread::yield_now();
            }
            run();
            done.store(true, Ordering::SeqCst);
        });
        looks.into_inner()
    }

    /// What another process would see: at no moment are the bytes that keep writers out free.
    #[test]
    fn an_exchange_leaves_no_moment_without_a_lock() {
        let place = tempfile::NamedTempFile::new().unwrap();
        let open = || Arc::new(File::options().read(true).write(true).open(place.path()).unwrap());
        let (files, other) = ([open(), open()], open());
        let id = Identity(u64::MAX, 1);
        let mut lock = Some(FileLock::take(&files[0], id, Access::Write, "x").unwrap());
        if !lock_byte_held(&other, NOT_SHARED + WRITE).unwrap() {
            eprintln!("skipped: no OFD locks here");
            return;
        }
        let watch = || {
            for byte in [WRITE, RESIZE].map(|p| NOT_SHARED + p) {
                assert!(lock_byte_held(&other, byte).unwrap(), "byte {byte} is free");
            }
        };
        let looks = beside(watch, || {
            for round in 0..5_000 {
                let access = if round % 2 == 0 { Access::Read } else { Access::Write };
                let old = lock.take().unwrap();
                let new = old.exchange(&files[(round + 1) % 2], access, "x");
                lock = Some(new.unwrap_or_else(|(_, e)| panic!("{e}")));
            }
        });
        assert!(looks > 10, "only {looks} looks");
    }
}

#[cfg(all(loom, test))]
mod loom {
    use super::*;

    #[test]
    fn nobody_comes_in_while_a_user_changes_its_access() {
        ::loom::model(|| {
            let registry = Arc::new(Registry::new(0));
            let id = Identity(1, 2);
            registry.register(id, Access::Write, "x").unwrap();
            let other = Arc::clone(&registry);
            let other = ::loom::thread::spawn(move || {
                assert!(other.register(id, Access::Write, "x").is_err(), "a second writer");
            });
            registry.change(id, Access::Write, Access::Read, "x").unwrap();
            registry.change(id, Access::Read, Access::Write, "x").unwrap();
            other.join().unwrap();
        });
    }
}
