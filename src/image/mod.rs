//! A qcow2 image as a disk: read, write, copy-on-write, zero, discard, flush, backing. Called by `ops` and `capi`.
//!
//! An open image
//! is a [`Core`] behind a gate: requests enter shared and use the core as it is; structure changes enter
//! alone, bring everything to the medium and put a new core, loaded afresh, in its place.

mod amend;
mod bitmaps;
mod buffers;
mod chain;
mod compressed;
mod copy;
mod core;
mod data_file;
mod flush;
mod format;
mod inflate;
mod payload;
mod pool;
mod qcow2;
mod read;
mod rebase;
mod resize;
mod session;
mod snapshots;
mod status;
mod stream;
mod unfinished;
mod vm_state;
mod write;
mod zero;

pub(crate) use bitmaps::load_bitmaps;
pub(crate) use core::read_header;
pub use core::{Core, CoreSettings, Io};
pub use qcow2::{Alone, Image};
pub use snapshots::{NewSnapshot, Wanted};
pub(crate) use stream::no_layer;
pub use stream::Takes;

use crate::disk::{check_range, inactive_error, total, Disk, PackedClusters, Status, UseHost, ZeroFlags};
