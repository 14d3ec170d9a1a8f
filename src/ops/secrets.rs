//! What an encrypted disk asks for, and who is asked.

use crate::disk::Encryption;
use crate::error::Result;

/// What a secret is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretKind {
    /// It opens the disk as it is.
    Current,
    /// It is to open the disk from now on.
    New,
    /// The slots that it opens are erased.
    Old,
}

/// An encrypted disk asks for its secret.
#[derive(Debug)]
pub struct SecretRequest {
    /// What for.
    pub kind: SecretKind,
    /// The disk's method.
    pub encryption: Encryption,
    /// How far below the top disk it is.
    pub depth: usize,
    /// Where it was opened, or is made.
    pub file: String,
    /// What the option says that asks for it, such as `encrypt.key-secret`.
    pub name: Option<String>,
}

/// Puts the secret of a disk into a buffer that is made for it, and says how long it is; `None`: there is none.
pub type SecretSource<'a> = &'a mut dyn FnMut(&SecretRequest, &mut [u8]) -> Result<Option<usize>>;

/// What opens encrypted disks.
#[derive(Default)]
pub struct Secrets<'a> {
    /// Has the secrets.
    pub source: Option<SecretSource<'a>>,
    /// Told how much of the derivation of a key is done, of how much; `false` stops it.
    pub progress: Option<&'a mut dyn FnMut(u64, u64) -> bool>,
}

impl Secrets<'_> {
    /// The same, for a call that is made meanwhile.
    pub(in crate::ops) fn again(&mut self) -> Secrets<'_> {
        Secrets {
            source: self.source.as_mut().map(|source| &mut **source as SecretSource<'_>),
            progress: match &mut self.progress {
                Some(progress) => Some(&mut **progress),
                None => None,
            },
        }
    }

    /// Fills `room` with a secret, and says how long it is; `None`: there is none.
    pub(in crate::ops) fn ask(&mut self, request: &SecretRequest, room: &mut [u8]) -> Result<Option<usize>> {
        match &mut self.source {
            Some(source) => source(request, room),
            None => Ok(None),
        }
    }

    /// Tells how far a derivation is; `false`: it is to stop.
    pub(in crate::ops) fn tell(&mut self, done: u64, total: u64) -> bool {
        self.progress.as_mut().is_none_or(|progress| progress(done, total))
    }
}
