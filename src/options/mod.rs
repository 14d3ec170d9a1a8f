//! String-keyed options: one table says every name, type, default and help text, and drives parsing,
//! `-o help`, the manual and `qcow2_option_list()`.
//!
//! Keys, values and messages are those of the stock tools, so that a user's script and habits carry over.
//! An option is one string, `key=value`; values may hold commas. A bare `key` is `key=on` and a bare `nokey`
//! is `key=off`, as in the stock tools' short form. Of a key given twice, the last value counts. Names of files and of
//! snapshots are bytes, everything else is text.

mod amend;
mod cache;
mod create;
mod open;
mod parse;
mod words;

pub use amend::AmendOptions;
pub use cache::{cache_sizes, l2_bytes_for, CacheSizes};
pub use create::{CreateOptions, Preallocation};
pub use open::OpenOptions;
pub use parse::parse_size;
pub use words::{CacheMode, DetectZeroes, Discard, OverlapSet, OverlapTemplate, RefcountsAhead};

use crate::error::{Error, Result};
use parse::Value;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Where an option is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Creating an image.
    Create,
    /// Opening one; with `runtime` also while it is open.
    Open,
    /// Amending one that is open.
    Amend,
}

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes, with suffixes.
    Size,
    /// on or off.
    Bool,
    /// Text, or one word of a list.
    Text,
    /// The name of a file or of a snapshot: any bytes.
    Name,
    /// A whole number.
    Number,
}

impl Kind {
    /// The name that `-o help` prints.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Size => "size",
            Kind::Bool => "bool (on/off)",
            Kind::Text | Kind::Name => "str",
            Kind::Number => "num",
        }
    }
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct OptionInfo {
    /// The key.
    pub name: &'static str,
    /// What its value looks like.
    pub kind: Kind,
    /// The value in force when it is not given; `None` when that depends on the image or on other options.
    pub default: Option<&'static str>,
    /// One line for a user.
    pub help: &'static str,
    /// Where it is valid.
    pub scope: Scope,
    /// It may change while the image is open.
    pub runtime: bool,
}

const fn create(
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    help: &'static str,
) -> OptionInfo {
    OptionInfo { name, kind, default, help, scope: Scope::Create, runtime: false }
}

const fn open(
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    help: &'static str,
) -> OptionInfo {
    OptionInfo { name, kind, default, help, scope: Scope::Open, runtime: true }
}

/// An option that an open has once and for all.
const fn fixed(name: &'static str, kind: Kind, help: &'static str) -> OptionInfo {
    OptionInfo { name, kind, default: None, help, scope: Scope::Open, runtime: false }
}

const fn amend(name: &'static str, kind: Kind, help: &'static str) -> OptionInfo {
    OptionInfo { name, kind, default: None, help, scope: Scope::Amend, runtime: true }
}

/// Every option, per scope in the order of `-o help`.
#[rustfmt::skip]
pub const TABLE: &[OptionInfo] = &[
    create("backing_file", Kind::Name, None, "File name of a base image"),
    create("backing_fmt", Kind::Text, None, "Image format of the base image"),
    create("cluster_size", Kind::Size, Some("65536"), "qcow2 cluster size"),
    create("compat", Kind::Text, Some("1.1"), "Compatibility level (v2 [0.10] or v3 [1.1])"),
    create("compression_type", Kind::Text, Some("zlib"), "Compression method used for image cluster compression"),
    create("data_file", Kind::Name, None, "File name of an external data file"),
    create("data_file_raw", Kind::Bool, Some("off"), "The external data file must stay valid as a raw image"),
    create("encrypt.cipher-alg", Kind::Text, None, "Name of encryption cipher algorithm"),
    create("encrypt.cipher-mode", Kind::Text, None, "Name of encryption cipher mode"),
    create("encrypt.format", Kind::Text, None, "Encrypt the image, format choices: 'aes', 'luks'"),
    create("encrypt.hash-alg", Kind::Text, None, "Name of encryption hash algorithm"),
    create("encrypt.iter-time", Kind::Number, None, "Time to spend in PBKDF in milliseconds"),
    create("encrypt.ivgen-alg", Kind::Text, None, "Name of IV generator algorithm"),
    create("encrypt.ivgen-hash-alg", Kind::Text, None, "Name of IV generator hash algorithm"),
    create("encrypt.key-secret", Kind::Text, None, "ID of secret providing qcow AES key or LUKS passphrase"),
    create("encryption", Kind::Bool, Some("off"), "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"),
    create("extended_l2", Kind::Bool, Some("off"), "Extended L2 tables"),
    create("lazy_refcounts", Kind::Bool, Some("off"), "Postpone refcount updates"),
    create("preallocation", Kind::Text, Some("off"), "Preallocation mode (allowed values: off, metadata, falloc, full)"),
    create("refcount_bits", Kind::Number, Some("16"), "Width of a reference count entry in bits"),
    create("size", Kind::Size, None, "Virtual disk size"),

    open("cache", Kind::Text, Some("writeback"), "Host cache mode (allowed values: writeback, writethrough, none, directsync, unsafe)"),
    open("cache-clean-interval", Kind::Number, Some("600"), "Seconds after which unused cache entries are dropped, by the next request or qcow2_clean_caches; 0 never"),
    open("cache-size", Kind::Size, None, "Most memory for L2 and refcount cache together"),
    open("check-threads", Kind::Number, Some("1"), "Threads that a check or repair reads L2 tables with (1 to 64; with callbacks 1)"),
    open("compress-threads", Kind::Number, Some("1"), "Threads that compress one request for compressed clusters (1 to 64)"),
    open("copy-on-read", Kind::Bool, Some("off"), "Write what is read where the image has holes to the image"),
    fixed("data-file", Kind::Name, "Path of the external data file, instead of the one that the image names"),
    open("detect-zeroes", Kind::Text, Some("off"), "Turn writes of zeroes into zero clusters (allowed values: off, on, unmap)"),
    open("discard", Kind::Text, Some("unmap"), "What a discard request does (allowed values: unmap, ignore)"),
    open("discard-no-unref", Kind::Bool, Some("off"), "Keep the host clusters of discarded guest clusters"),
    open("l2-cache-entry-size", Kind::Size, None, "Size of one entry of the L2 cache; default: 4 KiB, or a cluster where the cache holds the whole disk"),
    open("l2-cache-size", Kind::Size, None, "Most memory for the L2 cache; default: what the whole disk needs, at most 32 MiB"),
    open("lazy-refcounts", Kind::Bool, None, "Postpone refcount updates; default: as the image says"),
    open("metadata-writethrough", Kind::Bool, Some("off"), "A write returns once its metadata is in the file too, so that no flush is needed to survive the end of the process"),
    open("overlap-check", Kind::Text, Some("cached"), "Structures that writes are checked against (allowed values: none, constant, cached, all)"),
    open("overlap-check.active-l1", Kind::Bool, None, "Check writes against the active L1 table"),
    open("overlap-check.active-l2", Kind::Bool, None, "Check writes against the active L2 tables"),
    open("overlap-check.bitmap-directory", Kind::Bool, None, "Check writes against the bitmap directory"),
    open("overlap-check.inactive-l1", Kind::Bool, None, "Check writes against the L1 tables of snapshots"),
    open("overlap-check.inactive-l2", Kind::Bool, None, "Check writes against the L2 tables of snapshots"),
    open("overlap-check.main-header", Kind::Bool, None, "Check writes against the header"),
    open("overlap-check.refcount-block", Kind::Bool, None, "Check writes against the refcount blocks"),
    open("overlap-check.refcount-table", Kind::Bool, None, "Check writes against the refcount table"),
    open("overlap-check.snapshot-table", Kind::Bool, None, "Check writes against the snapshot table"),
    open("overlap-check.template", Kind::Text, Some("cached"), "The same as overlap-check, which the single checks adjust"),
    open("pass-discard-other", Kind::Bool, Some("off"), "Give clusters back to the host when anything else frees them"),
    open("pass-discard-request", Kind::Bool, None, "Give clusters back to the host when the guest discards them; default: with discard=unmap"),
    open("pass-discard-snapshot", Kind::Bool, Some("on"), "Give clusters back to the host when a snapshot operation frees them"),
    open("refcount-cache-size", Kind::Size, None, "Most memory for the refcount cache; default: a few clusters"),
    open("refcounts-ahead", Kind::Text, Some("auto"), "Raise refcounts before they are needed, so that an eager image writes and syncs less; a killed handle leaks them (allowed values: off, on, auto)"),
    OptionInfo {
        default: Some("off"),
        ..fixed("snapshot", Kind::Bool, "Open the image read-only; writes go to a temporary file (in TMPDIR, or /var/tmp) that is gone at close")
    },
    open("snapshot.id", Kind::Name, None, "Read the internal snapshot with this ID instead of the disk (read-only)"),
    open("snapshot.name", Kind::Name, None, "Read the internal snapshot with this name instead of the disk (read-only)"),

    amend("backing_file", Kind::Name, "File name of a base image"),
    amend("backing_fmt", Kind::Text, "Image format of the base image"),
    amend("compat", Kind::Text, "Compatibility level (v2 [0.10] or v3 [1.1])"),
    amend("data_file", Kind::Name, "File name of an external data file"),
    amend("data_file_raw", Kind::Bool, "The external data file must stay valid as a raw image"),
    amend("encrypt.iter-time", Kind::Number, "Time to spend in PBKDF in milliseconds"),
    amend("encrypt.keyslot", Kind::Number, "Select a single keyslot to modify explicitly"),
    amend("encrypt.new-secret", Kind::Text, "New secret to set in the matching keyslots. Empty string to erase"),
    amend("encrypt.old-secret", Kind::Text, "Select all keyslots that match this password"),
    amend("encrypt.state", Kind::Text, "Select new state of affected keyslots (active/inactive)"),
    amend("lazy_refcounts", Kind::Bool, "Postpone refcount updates"),
    amend("refcount_bits", Kind::Number, "Width of a reference count entry in bits"),
    amend("size", Kind::Size, "Virtual disk size"),
];

/// The options of one scope, in the order of `-o help`.
pub fn list(scope: Scope) -> impl Iterator<Item = &'static OptionInfo> {
    TABLE.iter().filter(move |o| o.scope == scope)
}

/// The option called `name`.
pub fn find(scope: Scope, name: &str) -> Option<&'static OptionInfo> {
    list(scope).find(|o| o.name == name)
}

/// The lines of `-o help`, one option each.
pub fn help_text(scope: Scope) -> String {
    list(scope)
        .map(|o| format!("  {:<22} - {}\n", format!("{}=<{}>", o.name, o.kind.name()), o.help))
        .collect()
}

/// Splits one option string and checks its value's type. An unknown key is answered with `unknown(key)`.
fn parse_one<'a>(
    scope: Scope,
    option: &'a OsStr,
    unknown: impl Fn(&str) -> Error,
) -> Result<(&'static OptionInfo, Value<'a>)> {
    let mut parts = option.as_bytes().splitn(2, |b| *b == b'=');
    let key = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let (key, value) = match (parts.next(), key.strip_prefix("no")) {
        (Some(value), _) => (&*key, value),
        (None, Some(rest)) if find(scope, &key).is_none() && find(scope, rest).is_some() => {
            (rest, &b"off"[..])
        }
        (None, _) => (&*key, &b"on"[..]),
    };
    let info = find(scope, key).ok_or_else(|| with_hint(scope, key, unknown(key)))?;
    Ok((info, Value::parse(info, value)?))
}

/// Create and amend spell with underscores, open with dashes: who meant the other one is told.
fn with_hint(scope: Scope, key: &str, error: Error) -> Error {
    let plain = |name: &str| name.replace('_', "-");
    match list(scope).find(|o| plain(o.name) == plain(key)) {
        Some(meant) => Error::new(error.kind(), format!("{error} [here it is spelled '{}']", meant.name)),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_is_the_stock_tools_help() {
        let text = help_text(Scope::Create);
        assert!(text.starts_with("  backing_file=<str>     - File name of a base image\n"));
        assert!(text.contains("  data_file_raw=<bool (on/off)> - The external data file must stay valid"));
        assert!(text.ends_with("  size=<size>            - Virtual disk size\n"));
    }

    #[test]
    fn names_are_unique_and_sorted() {
        for scope in [Scope::Create, Scope::Open, Scope::Amend] {
            let names: Vec<_> = list(scope).map(|o| o.name).collect();
            assert!(names.windows(2).all(|w| w[0] < w[1]), "{names:?}");
        }
    }

    /// The value a table entry says is the default must be what an empty list of options gives.
    #[test]
    fn defaults_in_the_table_are_the_defaults() {
        for option in list(Scope::Create).filter(|o| o.default.is_some()) {
            let text = format!("{}={}", option.name, option.default.unwrap());
            assert_eq!(CreateOptions::parse(&[&text]).unwrap(), CreateOptions::default(), "{text}");
        }
        for option in list(Scope::Open).filter(|o| o.default.is_some()) {
            let text = format!("{}={}", option.name, option.default.unwrap());
            let parsed = OpenOptions::parse(&[&text]).unwrap();
            // An explicit template is remembered, to find conflicts.
            let plain = OpenOptions {
                overlap_check: parsed.overlap_check,
                overlap_check_template: parsed.overlap_check_template,
                ..OpenOptions::default()
            };
            assert_eq!(parsed, plain, "{text}");
            assert_eq!(parsed.overlap_checks(), OpenOptions::default().overlap_checks(), "{text}");
        }
    }

    #[test]
    fn names_are_bytes_and_the_rest_is_text() {
        let odd = |key: &str| [key.as_bytes(), b"=a\xff=b"].concat();
        let parsed = CreateOptions::parse(&[OsStr::from_bytes(&odd("data_file"))]).unwrap();
        assert_eq!(parsed.data_file.unwrap().as_bytes(), b"a\xff=b");
        let parsed = OpenOptions::parse(&[OsStr::from_bytes(&odd("snapshot.name"))]).unwrap();
        assert_eq!(parsed.snapshot_name.unwrap().as_bytes(), b"a\xff=b");
        for (key, rule) in
            [("cache", "Parameter 'cache' is not text"), ("k\u{e9}", "does not support the option")]
        {
            let e = OpenOptions::parse(&[OsStr::from_bytes(&odd(key))]).unwrap_err().to_string();
            assert!(e.contains(rule), "{e}");
        }
    }

    #[test]
    fn a_key_with_the_other_dash_is_answered_with_the_right_one() {
        for option in TABLE {
            let other = match option.scope {
                Scope::Open => option.name.replace('-', "_"),
                _ => option.name.replace('_', "-"),
            };
            if other == option.name {
                continue;
            }
            let text = format!("{other}=on");
            let refused = match option.scope {
                Scope::Create => vec![CreateOptions::parse(&[&text]).map(drop)],
                Scope::Open => {
                    let mut open = OpenOptions::default();
                    vec![OpenOptions::parse(&[&text]).map(drop), open.update(&[&text])]
                }
                Scope::Amend => vec![AmendOptions::parse(&[&text]).map(drop)],
            };
            for answer in refused {
                let said = answer.unwrap_err().to_string();
                assert!(said.ends_with(&format!(" [here it is spelled '{}']", option.name)), "{said}");
            }
        }
        let said = OpenOptions::parse(&["lazy-refcount=on"]).unwrap_err().to_string();
        assert!(said.ends_with("'lazy-refcount'"), "{said}");
    }

    #[test]
    fn every_option_is_known_to_the_parser() {
        for option in TABLE {
            let value = match option.kind {
                Kind::Size | Kind::Number => "64",
                Kind::Bool => "on",
                Kind::Text | Kind::Name => "none",
            };
            let text = format!("{}={value}", option.name);
            let _ = match option.scope {
                Scope::Create => CreateOptions::parse(&[&text]).map(drop),
                Scope::Open => OpenOptions::parse(&[&text]).map(drop),
                Scope::Amend => AmendOptions::parse(&[&text]).map(drop),
            };
        }
    }
}
