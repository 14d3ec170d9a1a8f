//! What still breaks a rule of the tree. Lists get shorter only.

/// Circles of files.
pub const CIRCLES: &[&str] = &[];

/// Files that ask which format a disk has.
pub const FORMATS: &[&str] = &[];

/// Files that touch guest bytes past the door: a raw disk has no other; what the host is to copy is looked at for zeroes;
/// a new image that nobody has open is preallocated.
pub const GUEST_BYTES: &[&str] = &["disk/raw.rs", "ops/convert/offload.rs", "ops/create.rs"];

/// Files that link what waits for nothing.
pub const LINKS: &[&str] = &[];

/// Files and functions that are too long.
pub const LONG: &[&str] = &[];
