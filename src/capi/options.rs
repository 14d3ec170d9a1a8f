//! The table of options.

use super::edge::{enter, give};
use super::types::*;
use crate::error::{Error, ErrorKind, Result};
use crate::options::{self, OptionInfo, Scope};
use once_cell::sync::Lazy;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, CString};

/// C copies of the table's strings, made once. (A hash map is reached by a pointer into its middle alone: to a leak
/// checker it is lost.)
static C_STRINGS: Lazy<BTreeMap<&'static str, CString>> = Lazy::new(|| {
    let all = Scope::ALL.into_iter().flat_map(options::list);
    let texts = all.flat_map(|o| [Some(o.name), o.default, Some(o.help), Some(o.kind.name())]);
    texts.flatten().map(|t| (t, CString::new(t).unwrap_or_default())).collect()
});

fn c_string(text: Option<&'static str>) -> *const c_char {
    text.and_then(|t| C_STRINGS.get(t)).map_or(std::ptr::null(), |c| c.as_ptr())
}

fn scope_of(scope: c_int) -> Result<Scope> {
    match scope {
        QCOW2_SCOPE_CREATE => Ok(Scope::Create),
        QCOW2_SCOPE_OPEN => Ok(Scope::Open),
        QCOW2_SCOPE_AMEND => Ok(Scope::Amend),
        QCOW2_SCOPE_CREATE_LUKS => Ok(Scope::CreateLuks),
        QCOW2_SCOPE_AMEND_LUKS => Ok(Scope::AmendLuks),
        other => Err(Error::invalid(format!("unknown scope {other}"))),
    }
}

fn describe(option: &OptionInfo, scope: c_int) -> qcow2_option_info {
    qcow2_option_info {
        struct_size: 0,
        name: c_string(Some(option.name)),
        r#type: c_string(Some(option.kind.name())),
        default_value: c_string(option.default),
        help: c_string(Some(option.help)),
        scope: scope as u32,
        runtime: u32::from(option.runtime),
    }
}

/// Option number `index` of a scope (QCOW2_SCOPE_*), counted from 0. As in QEMU, words of a create or amend
/// option are joined by '_' (lazy_refcounts) and words of an open option by '-' (lazy-refcounts). Returns 0,
/// -ENOENT past the last one, or -EINVAL.
#[no_mangle]
pub unsafe extern "C" fn qcow2_option_list(
    scope: c_int,
    index: usize,
    info: *mut qcow2_option_info,
) -> c_int {
    enter(|| {
        let Some(option) = options::list(scope_of(scope)?).get(index).copied() else {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no option number {index}")));
        };
        // SAFETY: the caller's struct, checked for NULL.
        unsafe { give(describe(option, scope), info, "info") }.map(|()| 0)
    }) as c_int
}
