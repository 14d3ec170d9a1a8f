//! The chain below an image: opened behind the caller's permission, read-only, each file once.

use super::files::Role;
use super::node::Node;
use super::origin::located;
use super::params::{Named, OpenFlags, Opening, ResolveAnswer, ResolveRequest, Seen};
use crate::disk::Draft;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::formats::Driver;
use crate::ops::handle::Handle;
use crate::options::OpenOptions;
use crate::storage::Storage;

const FAILED: &str = "Could not open backing file";

/// Most disks below an image.
pub const MAX_CHAIN: usize = 200;

impl Opening<'_> {
    /// Opens the chain below an image. Nodes are begun from the nearest to the last one and finished the other way, one
    /// after the other: the stack that it takes does not grow with the chain.
    pub(in crate::ops) fn open_backing(
        &mut self,
        draft: &dyn Draft,
        storage: &dyn Storage,
        seen: &mut Seen,
    ) -> Result<Option<Handle>> {
        if self.flags.metadata_only || self.flags.no_backing {
            return Ok(None);
        }
        let Some(request) = request_below(draft, storage, seen)? else { return Ok(None) };
        let answer = self.resolve(&request)?;
        let below = OpenFlags { read_only: true, no_repair: false, ..self.flags };
        let below_options = OpenOptions { cache: self.options.cache, ..OpenOptions::default() };
        let top = std::mem::replace(&mut self.flags, below);
        let top_options = std::mem::replace(&mut self.options, below_options);
        let opened = self.open_chain(request, answer, seen);
        self.flags = top;
        self.options = top_options;
        opened.map_err(|e| e.within(FAILED))
    }

    fn open_chain(
        &mut self,
        mut request: ResolveRequest,
        mut answer: ResolveAnswer,
        seen: &mut Seen,
    ) -> Result<Option<Handle>> {
        let mut nodes: Vec<Box<Node>> = Vec::new();
        loop {
            let node = self
                .begin_below(&request, answer, seen)
                .map_err(|e| nested(said_by(&nodes, e), nodes.len()))?;
            let next = request_below(&*node.draft, node.storage(), seen);
            let next = next.map_err(|e| nested(located(e, &node.origin), nodes.len()))?;
            nodes.push(node);
            let Some(next) = next else { break };
            request = next;
            answer = self.resolve(&request).map_err(|e| nested(said_by(&nodes, e), nodes.len()))?;
        }
        let mut below = None;
        while let Some(node) = nodes.pop() {
            let origin = node.origin.clone();
            let finished = self.finish_node(node, below);
            below = Some(finished.map_err(|e| nested(located(e, &origin), nodes.len()))?);
        }
        Ok(below)
    }

    fn begin_below(
        &mut self,
        request: &ResolveRequest,
        answer: ResolveAnswer,
        seen: &mut Seen,
    ) -> Result<Box<Node>> {
        let format = match (answer.format, &request.format) {
            (Some(format), _) => format,
            (None, Some(recorded)) => Driver::by_name(recorded)?,
            (None, None) => {
                return Err(Error::invalid(format!(
                    "backing file '{}': no format is recorded, and formats are not probed",
                    request.recorded_name.to_string_lossy()
                )))
            }
        };
        // Before the lock, which a file that is open further up would refuse for another reason.
        let file = answer.origin.identity();
        if file.is_some() && seen.contains(&file) {
            return Err(in_chain_already(request));
        }
        self.flags.format = format;
        let storage = self.open_storage(&answer.origin, true, Role::Image)?;
        if storage.identity().is_some() && seen.contains(&storage.identity()) {
            return Err(in_chain_already(request));
        }
        self.begin_node(&answer.origin, storage, seen).map_err(|e| located(e, &answer.origin))
    }
}

/// What an image asks for below it, if anything.
fn request_below(draft: &dyn Draft, storage: &dyn Storage, seen: &Seen) -> Result<Option<ResolveRequest>> {
    let names = draft.names();
    let Some(recorded_name) = names.backing_name() else { return Ok(None) };
    let depth = seen.len();
    if depth > MAX_CHAIN {
        let name = recorded_name.to_string_lossy();
        let text = format!("backing file '{name}': the chain is longer than {MAX_CHAIN} files");
        return Err(Error::new(ErrorKind::Loop, text));
    }
    Ok(Some(ResolveRequest {
        named: Named::Backing,
        depth,
        resolved_path: storage.resolve(recorded_name),
        format: names.backing_format_text(),
        recorded_name: recorded_name.to_owned(),
    }))
}

/// As the image on top tells it: each of the `between` says that it could not open the one below.
fn nested(error: Error, between: usize) -> Error {
    match error.kind() {
        ErrorKind::Loop => error,
        _ => (0..between).fold(error, |error, _| error.within(FAILED)),
    }
}

/// An error about what a node asks for says which file asks, when it is not the top.
fn said_by(nodes: &[Box<Node>], error: Error) -> Error {
    match nodes.last() {
        Some(node) => located(error, &node.origin),
        None => error,
    }
}

fn in_chain_already(request: &ResolveRequest) -> Error {
    Error::new(
        ErrorKind::Loop,
        format!("'{}' is already in the chain", request.recorded_name.to_string_lossy()),
    )
}
