//! Refuses what the engine does not run on, and gives the shared library its SONAME; the symbol version is added where
//! the C side links (meson.build).

use std::env::var;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Some(why) = refusal() {
        println!("cargo::error={why}");
        return;
    }
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libqcow2.so.0");
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
