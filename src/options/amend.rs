//! Options of an image that exists: what amending it may change.

use super::create::refcount_order;
use super::parse::Value;
use super::{find, parse_one, Scope};
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
    /// The same.
    pub backing_format: Option<String>,
    /// Name of the external data file; "" for none recorded.
    pub data_file: Option<OsString>,
    /// The autoclear feature bit.
    pub data_file_raw: Option<bool>,
    /// Something about the encryption.
    pub encryption: bool,
}

impl AmendOptions {
    /// Options from `key=value` strings, each checked for its type.
    pub fn parse<O: AsRef<OsStr>>(options: &[O]) -> Result<AmendOptions> {
        let mut parsed = AmendOptions::default();
        for option in options {
            let unknown = |key: &str| {
                let create = find(Scope::Create, key).is_some();
                let hint = if create { "\nThis option is only supported for image creation" } else { "" };
                Error::invalid(format!("Invalid parameter '{key}'{hint}"))
            };
            let (info, value) = parse_one(Scope::Amend, option.as_ref(), unknown)?;
            parsed.assign(info.name, value);
        }
        Ok(parsed)
    }

    fn assign(&mut self, name: &str, value: Value<'_>) {
        match (name, value) {
            ("backing_file", Value::Name(name)) => self.backing_file = Some(name.into()),
            ("backing_fmt", Value::Text(name)) => self.backing_format = Some(name.into()),
            ("compat", Value::Text(word)) => self.compat = Some(word.into()),
            ("data_file", Value::Name(name)) => self.data_file = Some(name.into()),
            ("data_file_raw", Value::Bool(on)) => self.data_file_raw = Some(on),
            ("lazy_refcounts", Value::Bool(on)) => self.lazy_refcounts = Some(on),
            ("refcount_bits", Value::Number(bits)) => self.refcount_bits = Some(bits),
            ("size", Value::Size(bytes)) => self.size = Some(bytes),
            _ => self.encryption = true,
        }
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
        assert!(AmendOptions::parse(&["encrypt.keyslot=1"]).unwrap().encryption);
    }
}
