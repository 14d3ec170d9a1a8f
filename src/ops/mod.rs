//! Whole-image work: open with its chain, data file and repair, create, check, resize, snapshots, commit, rebase, convert, checksum, measure. Called by `capi`.

pub mod amend;
pub mod backing;
mod below;
pub mod check;
pub mod checksum;
pub mod commit;
pub mod compare;
pub mod convert;
pub mod create;
pub mod create_at;
pub mod data_file;
pub mod handle;
pub mod inactive;
pub mod measure;
pub mod open;
pub mod overlay;
pub mod probe;
pub mod rebase;
pub mod resize;
pub mod snapshot;
pub mod stream;
