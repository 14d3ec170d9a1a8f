//! Gives the shared library its SONAME; the symbol version is added where the C side links (meson.build).

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libqcow2.so.0");
}
