//! The temporary image of `snapshot=on`. Above a disk that is encrypted it is, too: by a secret of its own, which is nowhere
//! but in the memory of this call.

use super::origin::Origin;
use super::params::Opening;
use crate::disk::{Encryption, Files, Parts, Secret, Unlocking};
use crate::error::{Error, Result};
use crate::format::header::MAX_BACKING_NAME_BYTES;
use crate::ops::formats::Driver;
use crate::ops::handle::{Handle, HandleState};
use crate::ops::keys::{random, NewKeys};
use crate::ops::secrets::{SecretRequest, Secrets};
use crate::options::{CacheMode, CreateOptions, OpenOptions};
use crate::storage::file::{FileOptions, FileStorage};
use crate::storage::Storage;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

/// As many as the key has.
const SECRET_BYTES: usize = 64;

impl Opening<'_> {
    /// Opens `origin` read-only, and on top of it an image in a file without a name.
    pub(super) fn open_on_temporary(&mut self, origin: &Origin) -> Result<Handle> {
        if self.flags.inactive {
            return Err(Error::invalid("snapshot=on cannot be given with QCOW2_OPEN_INACTIVE"));
        }
        // What such a handle can change is the image's own metadata, which a temporary image on top does not have.
        if self.flags.metadata_only {
            return Err(Error::invalid(
                "snapshot=on cannot be given with QCOW2_OPEN_METADATA_ONLY, unless read-only",
            ));
        }
        let below = self.open_below_temporary(origin)?;
        let image: Arc<dyn Storage> = Arc::new(temporary_storage()?);
        let format = Driver::QCOW2;
        let mut options = description(origin, &below);
        let secret = is_encrypted(&below)?.then(random_secret).transpose()?;
        let keys = secret.as_deref().map(|secret| new_keys(&mut options, secret)).transpose()?;
        format.create(&*image, None, below.disk().length(), &options, keys.as_ref())?;
        let (flags, options) = (self.flags, self.options.clone());
        // Nothing of it outlives the handle, so nothing of it need be durable.
        self.flags.format = format;
        self.options = OpenOptions {
            cache: CacheMode::Unsafe,
            data_file: None,
            snapshot_id: None,
            snapshot_name: None,
            ..options.clone()
        };
        let draft = (format.draft)(Arc::clone(&image), self.settings());
        let state = HandleState::new(self.flags, self.options.clone(), Files { image, data: None });
        (self.flags, self.options) = (flags, options);
        let parts = Parts { backing: Some(below.disk().clone()), ..Parts::default() };
        let mut draft = draft?;
        if let Some(secret) = &secret {
            let mut ask = |_: Encryption, room: &mut [u8]| Ok(Some(put(secret, room)));
            draft.unlock(&mut Unlocking { ask: &mut ask, progress: &mut |_, _| true })?;
        }
        Ok(Handle::new(draft.open(parts)?, origin.clone(), state, Some(below), None))
    }

    fn open_below_temporary(&mut self, origin: &Origin) -> Result<Handle> {
        let below = OpenOptions {
            cache: self.options.cache,
            data_file: self.options.data_file.clone(),
            snapshot_id: self.options.snapshot_id.clone(),
            snapshot_name: self.options.snapshot_name.clone(),
            ..OpenOptions::default()
        };
        let flags = self.flags;
        self.flags.read_only = true;
        let options = std::mem::replace(&mut self.options, below);
        let opened = self.open(origin);
        (self.flags, self.options) = (flags, options);
        opened
    }
}

/// Whether any disk of a chain is.
fn is_encrypted(top: &Handle) -> Result<bool> {
    let mut below = (1..).map_while(|depth| top.node_below(depth));
    Ok(top.disk().encryption()?.is_some()
        || below.try_fold(false, |any, node| Ok::<_, Error>(any || node.disk().encryption()?.is_some()))?)
}

fn random_secret() -> Result<Secret> {
    let made = Secret::ask(|room| {
        random(&mut room[..SECRET_BYTES])?;
        Ok(Some(SECRET_BYTES))
    })?;
    made.ok_or_else(|| Error::invalid("a secret of no bytes"))
}

/// Puts a secret at the start of `room`, and says how long it is.
fn put(secret: &[u8], room: &mut [u8]) -> usize {
    room[..secret.len()].copy_from_slice(secret);
    secret.len()
}

/// Has the options make an image that the secret opens. Nobody guesses a random secret: few iterations will do.
fn new_keys(options: &mut CreateOptions, secret: &[u8]) -> Result<NewKeys> {
    let how = ["encrypt.format=luks", "encrypt.iter-time=0", "encrypt.key-secret=temporary"];
    let made = CreateOptions::parse(&how)?.encryption;
    let encryption = options.encryption.insert(made.expect("the options say so"));
    let mut source = |_: &SecretRequest, room: &mut [u8]| Ok(Some(put(secret, room)));
    NewKeys::make(encryption, "temporary", &mut Secrets { source: Some(&mut source), progress: None })
}

/// The name that the temporary image records tells a reader of its header what it stands on; nobody opens it.
fn description(origin: &Origin, below: &Handle) -> CreateOptions {
    let name = match origin {
        Origin::Path(path) if path.as_os_str().len() <= MAX_BACKING_NAME_BYTES as usize => {
            path.as_os_str().to_owned()
        }
        Origin::Path(_) => OsStr::new("(a long name)").to_owned(),
        _ => origin.shown().into(),
    };
    CreateOptions {
        backing_file: Some(name),
        backing_format: Some(below.disk().name().into()),
        ..CreateOptions::default()
    }
}

fn temporary_storage() -> Result<FileStorage> {
    let folder = match std::env::var_os("TMPDIR") {
        Some(named) if !named.is_empty() => PathBuf::from(named),
        // Where /tmp is in memory, a disk's contents do not belong there.
        _ => PathBuf::from("/var/tmp"),
    };
    let options = FileOptions { writable: true, no_sync: true, ..FileOptions::default() };
    FileStorage::nameless(&folder, options).map_err(|e| {
        let what = format!("Could not create temporary overlay: a file in '{}'", folder.display());
        Error::host(what, &e)
    })
}
