//! What still breaks a rule of the tree. Lists get shorter only.

/// Circles of files.
pub const CIRCLES: &[&str] = &[
    "alloc/ahead.rs alloc/ledger.rs",
    "capi/callbacks.rs capi/edge.rs",
    "capi/edge.rs capi/info.rs",
    "image/chain.rs image/core.rs",
    "image/core.rs image/inflate.rs",
    "image/core.rs image/session.rs",
    "image/core.rs image/snapshots/mod.rs image/snapshots/walk.rs",
    "image/core.rs image/unfinished.rs",
    "image/qcow2.rs image/unfinished.rs",
    "ops/below.rs ops/open.rs",
    "ops/check/chunk.rs ops/check/counts.rs",
    "ops/check/compare.rs ops/check/pass.rs",
    "ops/check/guard.rs ops/check/pass.rs",
    "ops/check/pass.rs ops/check/snapshots.rs",
    "ops/check/pass.rs ops/check/tables.rs",
    "ops/convert.rs ops/pieces.rs",
    "ops/data_file.rs ops/open.rs",
    "ops/handle.rs ops/open.rs",
    "ops/open.rs ops/overlay.rs",
    "storage/device.rs storage/file/mod.rs",
];

/// Files that ask which format a disk has.
pub const FORMATS: &[&str] = &[
    "capi/info.rs",
    "capi/open.rs",
    "image/chain.rs",
    "image/copy.rs",
    "image/mod.rs",
    "image/stream.rs",
    "ops/amend.rs",
    "ops/backing.rs",
    "ops/commit.rs",
    "ops/convert.rs",
    "ops/handle.rs",
    "ops/inactive.rs",
    "ops/measure.rs",
    "ops/open.rs",
    "ops/overlay.rs",
    "ops/rebase.rs",
    "ops/resize.rs",
    "ops/snapshot.rs",
];

/// Files that touch guest bytes past the door.
pub const GUEST_BYTES: &[&str] = &[
    "image/mod.rs",
    "image/raw.rs",
    "image/snapshots/expand.rs",
    "image/status.rs",
    "ops/create.rs",
    "ops/create_at.rs",
    "ops/offload.rs",
];

/// Files that link what waits for nothing.
pub const LINKS: &[&str] = &[];

/// Files and functions that are too long.
pub const LONG: &[&str] = &["src/image/core.rs load"];
