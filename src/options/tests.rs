//! What holds for every row of the tables.

use super::create::Given;
use super::table::{assign, Row, Table};
use super::*;
use crate::error::Error;
use crate::format::Structure;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::os::unix::ffi::OsStrExt;

#[test]
fn names_are_unique_and_sorted() {
    for scope in Scope::ALL {
        let names: Vec<_> = list(scope).into_iter().map(|o| o.name).collect();
        assert!(names.windows(2).all(|w| w[0] < w[1]), "{names:?}");
    }
}

/// The value a table entry says is the default must be what an empty list of options gives.
#[test]
fn defaults_in_the_table_are_the_defaults() {
    for option in list(Scope::Create).into_iter().filter(|o| o.default.is_some()) {
        let text = format!("{}={}", option.name, option.default.unwrap());
        assert_eq!(CreateOptions::parse(&[&text]).unwrap(), CreateOptions::default(), "{text}");
    }
    for option in list(Scope::Open).into_iter().filter(|o| o.default.is_some()) {
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
    for option in Scope::ALL.into_iter().flat_map(list) {
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
            Scope::CreateLuks => vec![CreateOptions::parse_luks(&[&text]).map(drop)],
            Scope::AmendLuks => vec![SlotChange::parse_luks(&[&text]).map(drop)],
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

/// Values of every type; each option takes one of them that is not its default.
const VALUES: [&str; 9] = ["on", "off", "4096", "64", "none", "all", "unmap", "v2", "zstd"];

fn unknown(key: &str) -> Error {
    Error::invalid(format!("unknown: {key}"))
}

/// The fields of a struct with their values.
fn fields_of(options: &impl Debug) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut last = String::new();
    for line in format!("{options:#?}").lines().skip(1) {
        if let Some((name, value)) = line.strip_prefix("    ").and_then(|l| l.split_once(": ")) {
            if !name.starts_with(' ') {
                last = name.to_owned();
                fields.insert(last.clone(), value.to_owned());
                continue;
            }
        }
        fields.entry(last.clone()).or_default().push_str(line);
    }
    fields
}

/// The option strings that give this option another value than its default.
fn changing<T: Table + Default + PartialEq>(row: &Row<T>) -> Vec<String> {
    let texts = VALUES.iter().map(|value| format!("{}={value}", row.info.name));
    texts
        .filter(|text| {
            let mut options = T::default();
            assign(&mut options, OsStr::new(text), unknown).is_ok() && options != T::default()
        })
        .collect()
}

/// The field that an option of this name has.
fn field_of(name: &str) -> String {
    let single = name.strip_prefix("overlap-check.").is_some_and(|structure| structure != "template");
    match name {
        _ if single => "overlap_structures".into(),
        _ if name.starts_with("encrypt") => "encryption".into(),
        "backing_fmt" => "backing_format".into(),
        "cache-clean-interval" => "cache_clean_interval_seconds".into(),
        _ => name.replace(['-', '.'], "_"),
    }
}

fn each_row_alone<T: Table + Default + PartialEq + Debug>() {
    let before = fields_of(&T::default());
    for row in T::ROWS {
        let name = row.info.name;
        let texts = changing(row);
        assert!(!texts.is_empty(), "{name}: no value changes anything");
        for text in texts {
            let mut options = T::default();
            assign(&mut options, OsStr::new(&text), unknown).unwrap();
            let after = fields_of(&options);
            let changed: Vec<_> = after.iter().filter(|(field, value)| before[*field] != **value).collect();
            assert_eq!(changed.len(), 1, "{text}: {changed:?}");
            assert_eq!(*changed[0].0, field_of(name), "{text}");
        }
    }
}

#[test]
fn each_row_changes_its_own_field_and_no_other() {
    each_row_alone::<Given>();
    each_row_alone::<OpenOptions>();
    each_row_alone::<AmendOptions>();
}

/// The word in `overlap-check.<word>`.
fn option_word(structure: Structure) -> &'static str {
    match structure {
        Structure::Header => "main-header",
        Structure::ActiveL1 => "active-l1",
        Structure::ActiveL2 => "active-l2",
        Structure::RefcountBlock => "refcount-block",
        Structure::RefcountTable => "refcount-table",
        Structure::SnapshotTable => "snapshot-table",
        Structure::InactiveL1 => "inactive-l1",
        Structure::InactiveL2 => "inactive-l2",
        Structure::BitmapDirectory => "bitmap-directory",
    }
}

/// The single overlap checks share a field: an array.
#[test]
fn each_overlap_check_is_for_its_own_structure() {
    for structure in Structure::ALL {
        let one = format!("overlap-check.{}=on", option_word(structure));
        let checks = OpenOptions::parse(&["overlap-check=none", &one]).unwrap().overlap_checks();
        for other in Structure::ALL {
            assert_eq!(checks.contains(other), other == structure, "{one}: {other:?}");
        }
    }
}

/// What names the value's rule names the option, too.
#[test]
fn numbers_of_threads_have_their_limits() {
    for name in ["check-threads", "compress-threads"] {
        assert!(OpenOptions::parse(&[format!("{name}=64")]).is_ok());
        for number in ["0", "65", "4294967297"] {
            let said = OpenOptions::parse(&[format!("{name}={number}")]).unwrap_err().to_string();
            assert_eq!(said, format!("{name} is {number}: 1 to 64"));
        }
    }
}
