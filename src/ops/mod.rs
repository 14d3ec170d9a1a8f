//! Whole-image work: open with its chain and repair, create, check, resize, snapshots, commit, convert, checksum. Called by `capi`.

pub mod check;
pub mod checksum;
pub mod commit;
pub mod convert;
pub mod create;
pub mod handle;
mod offload;
pub mod open;
mod pieces;
pub mod resize;
pub mod snapshot;
