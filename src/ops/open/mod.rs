//! Opening: file, lock, header, chain, repair of a dirty image, in the order in which a refusal changes nothing.
//!
//! No file is opened because an image names it unless the caller allowed it: by flag for all recorded
//! files, or by a resolver for each. A missing backing format is never probed.

mod below;
mod data_file;
pub(super) mod files;
mod node;
pub(super) mod origin;
pub(super) mod params;
mod temporary;

pub use super::check::Messages;
pub use super::secrets::{SecretKind, SecretRequest, Secrets};
pub use origin::Origin;
pub use params::{Named, OpenFlags, Opening, ResolveAnswer, ResolveRequest, Resolver};

use super::handle::Handle;
use crate::error::{Error, Result};
use files::Role;
use origin::located;

impl Handle {
    /// Opens `origin` with its chain.
    pub fn open(opening: &mut Opening<'_>, origin: &Origin) -> Result<Handle> {
        opening.open(origin)
    }
}

impl Opening<'_> {
    /// Opens the node at `origin` with its chain.
    pub fn open(&mut self, origin: &Origin) -> Result<Handle> {
        if self.options.snapshot && !self.flags.read_only {
            return self.open_on_temporary(origin);
        }
        if self.flags.force_share && !self.flags.read_only {
            return Err(Error::invalid("QCOW2_OPEN_FORCE_SHARE needs QCOW2_OPEN_READ_ONLY"));
        }
        let storage = self.open_storage(origin, self.flags.read_only, Role::Image)?;
        let open = || {
            let mut seen = Vec::new();
            let node = self.begin_node(origin, storage, &mut seen)?;
            let below = self.open_backing(&*node.draft, node.storage(), &mut seen)?;
            self.finish_node(node, below)
        };
        open().map_err(|e| located(e, origin))
    }
}
