//! Options of an image that exists: what amending it may change.

use super::create::{is_create_option, keep, refcount_order};
use super::encryption::{SlotChange, SlotWords};
use super::table::{assign, Row, Scope, Set, Set::*, Table};
use crate::error::{Error, Result};
use std::ffi::{OsStr, OsString};

/// What shall become of an image; `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AmendOptions {
    /// Compatibility level as given.
    compat: Option<String>,
    /// Width of a refcount in bits as given.
    refcount_bits: Option<u64>,
    /// The compatible feature bit.
    pub lazy_refcounts: Option<bool>,
    /// Virtual size in bytes.
    pub size: Option<u64>,
    /// Accepted where it is the recorded one.
    pub backing_file: Option<OsString>,
    /// Accepted where it is the recorded one.
    pub backing_format: Option<String>,
    /// Name of the external data file; "" for none recorded.
    pub data_file: Option<OsString>,
    /// The autoclear feature bit.
    pub data_file_raw: Option<bool>,
    /// Key slots as given.
    slots: SlotWords,
}

const fn row(name: &'static str, set: Set<AmendOptions>, help: &'static str) -> Row<AmendOptions> {
    Row::new(Scope::Amend, name, set, None, help)
}

#[rustfmt::skip]
impl Table for AmendOptions {
    const ROWS: &'static [Row<Self>] = &[
        row("backing_file", Name(|o, file| o.backing_file = Some(file.into())), "File name of a base image"),
        row("backing_fmt", Text(|o, word| keep(&mut o.backing_format, word)), "Image format of the base image"),
        row("compat", Text(|o, word| keep(&mut o.compat, word)), "Compatibility level (v2 [0.10] or v3 [1.1])"),
        row("data_file", Name(|o, file| o.data_file = Some(file.into())), "File name of an external data file"),
        row("data_file_raw", Bool(|o, on| o.data_file_raw = Some(on)), "The external data file must stay valid as a raw image"),
        row("encrypt.iter-time", Number(|o, value| keep(&mut o.slots.iter_time, value)), "Time to spend in PBKDF in milliseconds"),
        row("encrypt.keyslot", Number(|o, value| keep(&mut o.slots.keyslot, value)), "Select a single keyslot to modify explicitly"),
        row("encrypt.new-secret", Text(|o, value| keep(&mut o.slots.new_secret, value)), "New secret to set in the matching keyslots. Empty string to erase"),
        row("encrypt.old-secret", Text(|o, value| keep(&mut o.slots.old_secret, value)), "Select all keyslots that match this password"),
        row("encrypt.state", Text(|o, value| keep(&mut o.slots.state, value)), "Select new state of affected keyslots (active/inactive)"),
        row("lazy_refcounts", Bool(|o, on| o.lazy_refcounts = Some(on)), "Postpone refcount updates"),
        row("refcount_bits", Number(|o, bits| keep(&mut o.refcount_bits, bits)), "Width of a reference count entry in bits"),
        row("size", Size(|o, bytes| o.size = Some(bytes)), "Virtual disk size"),
    ];
}

/// Why an option is not one of an amend; `is_known`: it is one of a create.
pub(super) fn only_for_creation(key: &str, is_known: bool) -> Error {
    let hint = if is_known { "\nThis option is only supported for image creation" } else { "" };
    Error::invalid(format!("Invalid parameter '{key}'")).hint(hint)
}

impl AmendOptions {
    /// Options from `key=value` strings, each checked for its type.
    pub fn parse<O: AsRef<OsStr>>(options: &[O]) -> Result<AmendOptions> {
        let mut parsed = AmendOptions::default();
        for option in options {
            let unknown = |key: &str| only_for_creation(key, is_create_option(key));
            assign(&mut parsed, option.as_ref(), unknown)?;
        }
        Ok(parsed)
    }

    /// Whether anything is said about key slots.
    pub fn names_slots(&self) -> bool {
        self.slots.are_given()
    }

    /// What is to become of key slots.
    pub fn slot_change(&self) -> Result<Option<SlotChange>> {
        self.slots.read()
    }

    /// Header version, 2 or 3.
    pub fn version(&self) -> Result<Option<u32>> {
        match self.compat.as_deref() {
            None => Ok(None),
            Some("0.10" | "v2") => Ok(Some(2)),
            Some("1.1" | "v3") => Ok(Some(3)),
            Some(word) => Err(Error::invalid(format!("Unknown compatibility level {word}"))),
        }
    }

    /// log2 of the refcount width.
    pub fn refcount_order(&self) -> Result<Option<u32>> {
        self.refcount_bits.map(refcount_order).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_in_the_words_of_the_stock_tool() {
        let only = "\nThis option is only supported for image creation";
        for key in ["cluster_size", "preallocation", "compression_type", "extended_l2", "encrypt.format"] {
            let error = AmendOptions::parse(&[&format!("{key}=4")]).unwrap_err().to_string();
            assert_eq!(error, format!("Invalid parameter '{key}'{only}"));
        }
        let error = AmendOptions::parse(&["foo=1"]).unwrap_err().to_string();
        assert_eq!(error, "Invalid parameter 'foo'");
        let options = AmendOptions::parse(&["compat=0.9", "refcount_bits=3"]).unwrap();
        assert_eq!(options.version().unwrap_err().to_string(), "Unknown compatibility level 0.9");
        assert!(options.refcount_order().is_err());
    }

    #[test]
    fn values() {
        let options = AmendOptions::parse(&["compat=v2", "nolazy_refcounts", "size=1k"]).unwrap();
        assert_eq!(
            (options.version().unwrap(), options.lazy_refcounts, options.size),
            (Some(2), Some(false), Some(1024))
        );
        assert_eq!(AmendOptions::parse(&["refcount_bits=64"]).unwrap().refcount_order().unwrap(), Some(6));
        let refused =
            |words: &[&str]| AmendOptions::parse(words).unwrap().slot_change().unwrap_err().to_string();
        assert_eq!(refused(&["encrypt.keyslot=1"]), "Parameter 'state' is missing");
        assert_eq!(refused(&["encrypt.state=on"]), "Parameter 'state' does not accept value 'on'");
    }
}
