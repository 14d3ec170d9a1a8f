//! What still breaks a rule of the tree. Lists get shorter only.

/// Circles of files.
pub const CIRCLES: &[&str] = &[
    "capi/callbacks.rs capi/edge.rs",
    "capi/edge.rs capi/info.rs",
    "image/chain.rs image/core.rs",
    "image/core.rs image/inflate.rs",
    "image/core.rs image/session.rs",
    "image/qcow2.rs image/unfinished.rs",
    "ops/backing.rs ops/handle.rs",
    "ops/below.rs ops/open.rs",
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
    "ops/amend/mod.rs",
    "ops/backing.rs",
    "ops/commit.rs",
    "ops/convert/mod.rs",
    "ops/handle.rs",
    "ops/inactive.rs",
    "ops/measure.rs",
    "ops/open.rs",
    "ops/overlay.rs",
    "ops/rebase.rs",
    "ops/resize/mod.rs",
    "ops/snapshot/mod.rs",
    "ops/vm_state.rs",
];

/// Files that touch guest bytes past the door.
pub const GUEST_BYTES: &[&str] = &[
    "image/mod.rs",
    "image/raw.rs",
    "image/status.rs",
    "ops/amend/expand.rs",
    "ops/convert/offload.rs",
    "ops/create.rs",
    "ops/create_at.rs",
];

/// Files that link what waits for nothing.
pub const LINKS: &[&str] = &[];

/// Files and functions that are too long.
pub const LONG: &[&str] = &["src/image/core.rs load"];
