//! Refuses what the engine does not run on, gives the shared library its SONAME, and with the feature `capi` makes the C
//! header, $OUT_DIR/qcow2.h; the symbol version is added where the C side links (meson.build).

use std::env::var;

#[cfg(feature = "capi")]
#[path = "include/generate.rs"]
mod header;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Some(why) = refusal() {
        println!("cargo::error={why}");
        return;
    }
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libqcow2.so.0");
    #[cfg(feature = "capi")]
    make_header();
}

#[cfg(feature = "capi")]
fn make_header() {
    for input in ["include/generate.rs", "cbindgen.toml", "src/capi"] {
        println!("cargo:rerun-if-changed={input}");
    }
    let folder = |what: &str| std::path::PathBuf::from(var(what).expect("set by cargo"));
    let text = header::generate(&folder("CARGO_MANIFEST_DIR"));
    std::fs::write(folder("OUT_DIR").join("qcow2.h"), text).expect("OUT_DIR");
}

/// Why the target is not served. A `compile_error!` in the library would stand among all that follows from the same
/// cause.
fn refusal() -> Option<&'static str> {
    let target = |what: &str| var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    let is_x32 = target("ARCH") == "x86_64" && target("POINTER_WIDTH") == "32";
    match () {
        () if target("OS") != "linux" => {
            Some("libqcow2 is for Linux: its locks, its zeroing and its holes are Linux's (src/storage/file/sys.rs)")
        }
        () if is_x32 => Some("libqcow2 does not know the system calls of x32"),
        () if !target("HAS_ATOMIC").split(',').any(|bits| bits == "64") => {
            Some("libqcow2 needs a processor with 64-bit atomics")
        }
        () => None,
    }
}
