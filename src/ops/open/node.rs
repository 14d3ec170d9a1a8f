//! One disk of a chain: what is done of it before the ones below it are open, and the rest.

use super::data_file::DataFile;
use super::origin::Origin;
use super::params::{Opening, Seen};
use crate::disk::{Draft, Files, Parts, Unlocking};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::check::{in_words, CheckOptions, CheckReport};
use crate::ops::formats::Driver;
use crate::ops::handle::{Handle, HandleState};
use crate::ops::secrets::{SecretKind, SecretRequest, Secrets};
use crate::storage::Storage;
use std::sync::Arc;

/// A node whose file is open, and whose backing file is not yet.
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) draft: Box<dyn Draft>,
    state: HandleState,
    data_origin: Option<Origin>,
}

impl Node {
    pub(super) fn storage(&self) -> &dyn Storage {
        &*self.state.files.image
    }
}

impl Opening<'_> {
    /// What is done of a node before the ones below it are opened.
    pub(super) fn begin_node(
        &mut self,
        origin: &Origin,
        image: Arc<dyn Storage>,
        seen: &mut Seen,
    ) -> Result<Box<Node>> {
        let mut draft = (self.flags.format.draft)(Arc::clone(&image), self.settings())?;
        if !self.flags.metadata_only {
            self.unlock(&mut *draft, origin, seen.len())?;
        }
        seen.push(image.identity());
        let (data, data_origin) = match self.open_data_file(&*draft, seen)? {
            Some(DataFile { storage, origin }) => (Some(storage), Some(origin)),
            None => (None, None),
        };
        let state = HandleState::new(self.flags, self.options.clone(), Files { image, data });
        Ok(Box::new(Node { origin: origin.clone(), draft, state, data_origin }))
    }

    fn unlock(&mut self, draft: &mut dyn Draft, origin: &Origin, depth: usize) -> Result<()> {
        self.with_secret(origin, depth, |unlocking| draft.unlock(unlocking))
    }

    /// Runs `run` with what asks for the current secret of a disk.
    pub(in crate::ops) fn with_secret<T>(
        &mut self,
        origin: &Origin,
        depth: usize,
        run: impl FnOnce(&mut Unlocking<'_>) -> T,
    ) -> T {
        let Secrets { source, progress } = &mut self.secrets;
        let file = origin.shown().to_string();
        let mut ask = |encryption, room: &mut [u8]| match source {
            Some(source) => {
                let (kind, file) = (SecretKind::Current, file.clone());
                source(&SecretRequest { kind, encryption, depth, file, name: None }, room)
            }
            None => Ok(None),
        };
        let mut told = |done, total| progress.as_mut().is_none_or(|progress| progress(done, total));
        run(&mut Unlocking { ask: &mut ask, progress: &mut told })
    }

    /// The rest: `below` is open.
    pub(super) fn finish_node(&mut self, node: Box<Node>, below: Option<Handle>) -> Result<Handle> {
        let Node { origin, draft, mut state, data_origin } = *node;
        state.repaired = self.repair_if_dirty(&*draft, state.flags.format, &*state.files.image, &origin)?;
        let parts = Parts {
            backing: below.as_ref().map(|below| below.disk().clone()),
            data_file: state.files.data.clone(),
            inactive: self.flags.inactive,
        };
        Ok(Handle::new(draft.open(parts)?, origin, state, below, data_origin))
    }

    /// Repairs a dirty disk before its first request.
    pub(in crate::ops) fn repair_if_dirty(
        &mut self,
        draft: &dyn Draft,
        format: Driver,
        storage: &dyn Storage,
        origin: &Origin,
    ) -> Result<Option<CheckReport>> {
        let flags = self.flags;
        let untouched = flags.read_only || flags.metadata_only || flags.inactive;
        let Some(repair) = format.repair.filter(|_| draft.is_dirty() && !untouched) else { return Ok(None) };
        if flags.no_repair {
            let text = "the image was not closed properly (dirty bit, incompatible feature bit 0) and QCOW2_OPEN_NO_REPAIR forbids its repair";
            return Err(Error::new(ErrorKind::Dirty, text));
        }
        let workers = if origin.is_custom() { 1 } else { self.options.check_threads };
        let options = CheckOptions { repair_leaks: true, repair_errors: true, workers };
        match &mut self.messages {
            Some(messages) => repair(storage, options, Some(&mut in_words(&mut **messages))).map(Some),
            None => repair(storage, options, None).map(Some),
        }
    }
}
