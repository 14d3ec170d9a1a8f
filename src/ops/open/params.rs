//! What an open is given, for the whole chain.

use super::origin::Origin;
use crate::disk::Settings;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::check::Messages;
use crate::ops::formats::Driver;
use crate::ops::secrets::Secrets;
use crate::options::OpenOptions;
use crate::storage::access::Identity;
use crate::storage::names;
use std::ffi::OsString;
use std::path::PathBuf;

/// What an open is allowed and asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// Change nothing.
    pub read_only: bool,
    /// A dirty image is an error rather than repaired.
    pub no_repair: bool,
    /// Read although somebody else writes.
    pub force_share: bool,
    /// Open the files that the image names.
    pub allow_recorded: bool,
    /// No guest I/O; no other file is opened.
    pub metadata_only: bool,
    /// Take no lock.
    pub no_lock: bool,
    /// What the file is.
    pub format: Driver,
    /// Ignore a recorded backing file.
    pub no_backing: bool,
    /// Another program has the image: no guest I/O and no repair until it is invalidated.
    pub inactive: bool,
}

/// A file that an image names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// Its backing file.
    Backing,
    /// Its external data file.
    DataFile,
}

impl Named {
    fn words(self) -> &'static str {
        match self {
            Named::Backing => "backing file",
            Named::DataFile => "data file",
        }
    }
}

/// An image asks for a file that it names.
#[derive(Debug)]
pub struct ResolveRequest {
    /// Which one.
    pub named: Named,
    /// Of a backing file, its own: 1 for the top image's. Of a data file, that of the image that names it.
    pub depth: usize,
    /// As stored.
    pub recorded_name: OsString,
    /// Of a backing file, joined to the image's directory, when that is known.
    pub resolved_path: Option<PathBuf>,
    /// Recorded format.
    pub format: Option<String>,
}

impl ResolveRequest {
    /// Where the recorded name leads.
    fn origin(&self) -> Result<Origin> {
        match (&self.resolved_path, self.named) {
            (Some(path), _) => Ok(Origin::Path(path.clone())),
            (None, Named::Backing) if names::is_remote(&self.recorded_name) => {
                Ok(Origin::Uri(self.recorded_name.clone()))
            }
            (None, _) => Err(Error::unsupported(format!(
                "{} name '{}' is not a file name, or is relative to an image without a path",
                self.named.words(),
                self.recorded_name.to_string_lossy()
            ))),
        }
    }
}

/// What the caller gives for it.
pub struct ResolveAnswer {
    /// Where it is.
    pub origin: Origin,
    /// Its format; `None`: the recorded one.
    pub format: Option<Driver>,
}

/// The nodes above, top first; a caller's storage has no identity and still counts as a link.
pub(in crate::ops) type Seen = Vec<Option<Identity>>;
/// Decides about each file that an image names.
pub type Resolver<'a> = &'a mut dyn FnMut(&ResolveRequest) -> Result<ResolveAnswer>;

/// Parameters that hold for the whole chain.
pub struct Opening<'a> {
    /// Flags of the top node.
    pub flags: OpenFlags,
    /// Options of the top node.
    pub options: OpenOptions,
    /// Decides about recorded names; wins over `allow_recorded`.
    pub resolver: Option<Resolver<'a>>,
    /// Takes the messages of a repair.
    pub messages: Option<Messages<'a>>,
    /// What opens encrypted disks.
    pub secrets: Secrets<'a>,
}

impl Opening<'_> {
    /// How a node is used that is opened with these flags and options.
    pub(in crate::ops) fn settings(&self) -> Settings {
        Settings {
            options: self.options.clone(),
            read_only: self.flags.read_only,
            metadata_only: self.flags.metadata_only,
        }
    }

    pub(super) fn resolve(&mut self, request: &ResolveRequest) -> Result<ResolveAnswer> {
        if let Some(resolver) = &mut self.resolver {
            return resolver(request);
        }
        if !self.flags.allow_recorded {
            return Err(Error::new(
                ErrorKind::NotAllowed,
                format!(
                    "the image records {} '{}', which needs QCOW2_OPEN_ALLOW_RECORDED or a resolver to be opened",
                    request.named.words(),
                    request.recorded_name.to_string_lossy()
                ),
            ));
        }
        Ok(ResolveAnswer { origin: request.origin()?, format: None })
    }
}
