//! A qcow2 image as a disk: read, write, copy-on-write, compressed clusters, zero, discard, flush, backing, stream, VM
//! state. Guest I/O comes through [`crate::disk::Disk`], structure changes from `ops`.
//!
//! An open image is a [`Core`] behind a gate: requests enter shared and use the core as it is; structure changes enter
//! alone, bring everything to the medium and put a new core, loaded afresh, in its place. They are in `ops`: to them an
//! [`ExclusiveImage`] and its core hand out their parts (`structure.rs`) and what guest I/O can do.

pub(crate) mod bitmaps;
mod buffers;
mod chain;
mod change;
mod cipher;
mod compressed;
mod copy;
mod core;
mod cut;
mod data_file;
mod encrypted;
mod format;
mod inflate;
mod inflation;
mod payload;
mod preallocate;
mod qcow2;
mod read;
mod session;
mod snapshot;
mod status;
mod stream;
mod structure;
mod unfinished;
mod unlock;
mod vm_state;
mod write;
mod zero;

pub(crate) use core::validate;
pub use core::{Core, CoreSettings, Io};
pub use qcow2::{ExclusiveImage, Image};
pub use snapshot::SnapshotRef;
pub(crate) use stream::no_layer;
pub use stream::StreamScope;
pub(crate) use structure::Parts;
pub(crate) use unlock::encryption_header;

use crate::disk::{check_range, inactive_error, total, Disk, PackedClusters, Status, UseHost, ZeroFlags};
