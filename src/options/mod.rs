//! String-keyed options: a table for each scope says every name, type, default, help text and field, and drives parsing,
//! `-o help`, the manual and `qcow2_option_list()`.
//!
//! Keys, values and messages are those of the stock tools, so that a user's script and habits carry over.
//! An option is one string, `key=value`; values may hold commas. A bare `key` is `key=on` and a bare `nokey`
//! is `key=off`, as in the stock tools' short form. Of a key given twice, the last value counts. Names of files and of
//! snapshots are bytes, everything else is text.

mod amend;
mod cache;
mod create;
mod encryption;
mod list;
mod luks;
mod open;
mod parse;
mod table;
#[cfg(test)]
mod tests;
mod words;

pub use amend::AmendOptions;
pub use cache::{cache_sizes, CacheSizes};
pub use create::{CreateOptions, Preallocation};
pub use encryption::{NewEncryption, NewLuks, NewMethod, SlotChange};
pub use list::list;
pub use open::OpenOptions;
pub use table::{OptionInfo, Scope};
pub use words::{CacheMode, DetectZeroes, Discard};
