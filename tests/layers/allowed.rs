//! What still breaks a rule of the tree. Lists get shorter only.

/// Circles of files.
pub const CIRCLES: &[&str] = &[
    "capi/callbacks.rs capi/edge.rs",
    "capi/edge.rs capi/info.rs",
    "image/chain.rs image/core.rs",
    "image/core.rs image/inflate.rs",
    "image/core.rs image/session.rs",
    "image/qcow2.rs image/unfinished.rs",
];

/// Files that ask which format a disk has.
pub const FORMATS: &[&str] = &[];

/// Files that touch guest bytes past the door.
pub const GUEST_BYTES: &[&str] =
    &["disk/raw.rs", "image/status.rs", "ops/convert/offload.rs", "ops/create.rs", "ops/create_at.rs"];

/// Files that link what waits for nothing.
pub const LINKS: &[&str] = &[];

/// Files and functions that are too long.
pub const LONG: &[&str] = &["src/image/core.rs load"];
