//! Whole-image work: the table of formats, open with its chain, data file and repair, create, check, resize, snapshots,
//! amend, commit, rebase, stream, convert, compare, checksum, measure, probe, VM state that needs a longer L1 table,
//! bitmaps, inactivate and invalidate. Called by `capi`.
//!
//! What changes the structure of an image holds it alone ([`crate::image::ExclusiveImage`]) and works on its tables as
//! the medium has them (`tree`, `l1_table`, `bitmaps`); the image is loaded anew at the end (`last_steps`).

pub mod amend;
pub mod backing;
pub mod bitmaps;
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
pub mod keys;
mod l1_table;
mod last_steps;
pub mod measure;
pub mod open;
mod owners;
pub mod probe;
pub mod rebase;
mod repair;
pub mod resize;
pub mod secrets;
mod slots;
pub mod snapshot;
pub mod stream;
mod tree;
pub mod vm_state;
