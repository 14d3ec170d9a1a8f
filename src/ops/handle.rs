//! A disk with what its later life needs: how it was opened, so that it can be reopened, checked and closed.

use super::check::{in_words, CheckOptions, CheckReport, Findings, Messages};
use super::formats::Driver;
use super::open::files::Role;
use super::open::origin::Origin;
use super::open::params::{OpenFlags, Opening};
use super::secrets::Secrets;
use crate::disk::{inactive_error, Disk, Files, Stopped};
use crate::error::{Error, Result};
use crate::options::OpenOptions;
use crate::sync::locked;
use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard};

/// What changes when a handle is reopened.
pub(super) struct HandleState {
    pub(super) flags: OpenFlags,
    pub(super) options: OpenOptions,
    pub(super) files: Files,
    pub(super) repaired: Option<CheckReport>,
}

impl HandleState {
    pub(super) fn new(flags: OpenFlags, options: OpenOptions, files: Files) -> Self {
        HandleState { flags, options, files, repaired: None }
    }

    /// As an open that asks for what is in force.
    pub(super) fn opening(&self) -> Opening<'static> {
        Opening {
            flags: self.flags,
            options: self.options.clone(),
            resolver: None,
            messages: None,
            secrets: Secrets::default(),
        }
    }
}

/// An open disk.
pub struct Handle {
    disk: Disk,
    format: Driver,
    origin: Origin,
    state: Mutex<HandleState>,
    /// The backing file's handle; its disk is the one that holes of this disk read from.
    below: Mutex<Option<Arc<Handle>>>,
    /// Where the data file was opened.
    pub(super) data_origin: Option<Origin>,
    /// Held by whoever changes key slots, across secrets and keys.
    slots: Mutex<()>,
}

impl Handle {
    pub(super) fn new(
        disk: Disk,
        origin: Origin,
        state: HandleState,
        below: Option<Handle>,
        data_origin: Option<Origin>,
    ) -> Handle {
        let (format, below) = (state.flags.format, below.map(Arc::new));
        Handle {
            disk,
            format,
            origin,
            state: Mutex::new(state),
            below: Mutex::new(below),
            data_origin,
            slots: Mutex::default(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, HandleState> {
        locked(self.state.lock())
    }

    /// The turn of one change of key slots.
    pub(super) fn turn_with_slots(&self) -> MutexGuard<'_, ()> {
        locked(self.slots.lock())
    }

    /// The disk.
    #[inline]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Its format.
    pub fn format(&self) -> Driver {
        self.format
    }

    /// The backing file's handle.
    pub fn below(&self) -> Option<Arc<Handle>> {
        locked(self.below.lock()).clone()
    }

    /// The handle `depth` disks below this one, 1 at least.
    pub fn node_below(&self, depth: u32) -> Option<Arc<Handle>> {
        let mut node = self.below()?;
        for _ in 1..depth {
            node = node.below()?;
        }
        Some(node)
    }

    /// Another backing file's handle.
    pub(super) fn put_below(&self, below: Option<Arc<Handle>>) {
        let old = std::mem::replace(&mut *locked(self.below.lock()), below);
        // Outside of the lock: the last one closes the file.
        drop(old);
    }

    /// Whether this disk or one below it is on a caller's storage.
    pub fn uses_callbacks(&self) -> bool {
        self.origin.is_custom()
            || self.data_origin.as_ref().is_some_and(Origin::is_custom)
            || self.below().is_some_and(|b| b.uses_callbacks())
    }

    /// Where it was opened.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The flags in force.
    pub fn flags(&self) -> OpenFlags {
        self.state().flags
    }

    /// The options in force.
    pub fn options(&self) -> OpenOptions {
        self.state().options.clone()
    }

    /// What the repair at the last writable open did.
    pub fn repaired(&self) -> Option<CheckReport> {
        self.state().repaired
    }

    /// The host's descriptor of the file, where there is one.
    pub fn descriptor(&self) -> Option<i32> {
        self.state().files.image.descriptor()
    }

    /// Changes flags and run-time options. Everything is on the medium before the change; on failure the
    /// handle goes on as it was, or, when even that fails, refuses everything.
    pub fn reopen(
        &self,
        read_only: bool,
        no_repair: bool,
        changes: &[&OsStr],
        messages: Option<Messages<'_>>,
    ) -> Result<()> {
        let mut state = self.state();
        if state.flags.inactive {
            return Err(inactive_error());
        }
        let mut options = state.options.clone();
        options.update(changes)?;
        let flags = OpenFlags { read_only, no_repair, ..state.flags };
        let stopped = self.disk.stop();
        stopped.settle()?;
        let mut opening = Opening { flags, options, resolver: None, messages, secrets: Secrets::default() };
        stopped.check(&opening.settings())?;
        let files = self.reopen_files(&state, &opening)?;
        match self.reload(&*stopped, &files, &mut opening) {
            Ok(repaired) => {
                let repaired = repaired.or(state.repaired);
                *state = HandleState { flags: opening.flags, options: opening.options, files, repaired };
                Ok(())
            }
            Err(e) => {
                self.take_back(&state, &files)?;
                stopped.reload(state.files.clone(), state.opening().settings())?;
                Err(e)
            }
        }
    }

    /// Goes on with other files or settings. Somebody may have changed the file where the handle had no lock to prevent
    /// it.
    fn reload(
        &self,
        stopped: &dyn Stopped,
        files: &Files,
        opening: &mut Opening<'_>,
    ) -> Result<Option<CheckReport>> {
        let draft = (self.format.draft)(Arc::clone(&files.image), opening.settings())?;
        if draft.names() != stopped.names() {
            return Err(Error::invalid("the image names another data file or backing file: open it anew"));
        }
        let repaired = opening.repair_if_dirty(&*draft, self.format, &*files.image, &self.origin)?;
        stopped.reload(files.clone(), opening.settings())?;
        Ok(repaired)
    }

    /// The handle's files with the access that `opening` asks for.
    fn reopen_files(&self, state: &HandleState, opening: &Opening<'_>) -> Result<Files> {
        let image = opening.reopen_storage(&state.files.image, &self.origin, Role::Image)?;
        let mut files = Files { image, data: state.files.data.clone() };
        let (Some(old), Some(origin)) = (&state.files.data, &self.data_origin) else { return Ok(files) };
        match opening.reopen_storage(old, origin, Role::DataFile) {
            Ok(data) => files.data = Some(data),
            Err(e) => {
                self.take_back(state, &files)?;
                return Err(e);
            }
        }
        Ok(files)
    }

    /// Undoes `reopen_files`.
    fn take_back(&self, state: &HandleState, files: &Files) -> Result<()> {
        let (back, old) = (state.opening(), &state.files);
        back.take_back(&files.image, &old.image, &self.origin, Role::Image)?;
        match (&files.data, &old.data, &self.data_origin) {
            (Some(new), Some(old), Some(origin)) => back.take_back(new, old, origin, Role::DataFile),
            _ => Ok(()),
        }
    }

    /// Threads that a check or a checksum of this image may use. A caller's storage is called on the caller's thread only.
    pub fn check_workers(&self) -> u32 {
        match self.uses_callbacks() {
            true => 1,
            false => self.state().options.check_threads,
        }
    }

    /// Checks the image, and repairs it when asked; findings are put into words. Requests wait; caches are dropped.
    pub fn check(
        &self,
        options: CheckOptions,
        messages: Option<Messages<'_>>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<CheckReport> {
        match messages {
            Some(messages) => self.find(options, Some(&mut in_words(messages)), progress),
            None => self.find(options, None, progress),
        }
    }

    /// As `check`; no words are made.
    pub fn find(
        &self,
        options: CheckOptions,
        findings: Option<Findings<'_>>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<CheckReport> {
        let refused = || Error::unsupported("This image format does not support checks");
        (self.format.check.ok_or_else(refused)?)(&self.disk, options, findings, progress)
    }

    /// Brings everything to the medium, reports the first failure, and lets go of the file.
    pub fn close(self) -> Result<()> {
        match self.flags().inactive {
            true => Ok(()),
            false => self.disk.stop().close(),
        }
    }
}
