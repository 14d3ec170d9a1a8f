//! LUKS1: the header, its key slots, and what stands between a passphrase and the key of the data.
//!
//! ```text
//! 0x000   header (592 bytes): names of cipher, mode and hash, digest of the master key, 8 key slots
//! 0x1000  key material of slot 0: the master key, split into 4000 stripes and encrypted with the passphrase's key
//!         ... of slot 1 to 7, at a multiple of 4 KiB each
//!         data of a plain LUKS file; of a qcow2 image the data is elsewhere
//! ```
//!
//! What is read is anybody's: lengths are bounded before memory is taken, and an iteration count, which may be 2^32, is
//! worked off in steps that can be stopped.

mod cost;
mod header;
mod slots;
mod split;
#[cfg(test)]
mod tests;

pub use super::hash::iterations_of;
pub use cost::{iterations_for, speed};
pub use header::{parse_mode, Header, DIGEST_BYTES, HEADER_BYTES, SLOTS, STRIPES};
pub use slots::{check_key, new_header, new_header_bytes, seal, unlock, unlock_slot, Work, WORK_BYTES};
pub use split::{merge, split};
