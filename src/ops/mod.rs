//! Whole-image work: open with its chain, data file and repair, create, check, resize, snapshots, commit, rebase, convert, checksum, measure. Called by `capi`.

pub mod amend;
pub mod backing;
pub mod check;
pub mod checksum;
pub mod commit;
pub mod compare;
pub mod convert;
pub mod create;
pub mod create_at;
pub mod formats;
pub mod handle;
pub mod inactive;
pub mod measure;
mod offload;
pub mod open;
mod pieces;
pub mod probe;
pub mod rebase;
mod repair;
pub mod resize;
pub mod snapshot;
pub mod stream;
