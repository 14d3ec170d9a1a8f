//! Whole-image work: open with its chain and repair, create, check, resize, snapshots, commit, checksum. Called by `capi`.

pub mod check;
pub mod checksum;
pub mod commit;
pub mod create;
pub mod handle;
pub mod open;
pub mod resize;
pub mod snapshot;
