//! The committed include/qcow2.h is what cbindgen makes of src/capi.
//!
//! `QCOW2_UPDATE_HEADER=1 cargo test --test header` writes it anew.

use qcow2::testing::options;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// What the build has made of src/capi (build.rs, include/generate.rs).
fn generate() -> String {
    fs::read_to_string(Path::new(env!("OUT_DIR")).join("qcow2.h")).expect("the header that the build makes")
}

/// Exported functions in the sources of the C edge.
fn exported(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).expect("src/capi") {
        let text = fs::read_to_string(entry.expect("src/capi").path()).expect("src/capi");
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if line.trim() == "#[no_mangle]" {
                let head = lines.next().unwrap_or_default();
                let name = head.split("fn ").nth(1).and_then(|rest| rest.split('(').next());
                names.push(name.expect("a function after #[no_mangle]").to_owned());
            }
        }
    }
    names.sort();
    names
}

#[test]
fn the_committed_header_is_current() {
    let path = root().join("include/qcow2.h");
    let fresh = generate();
    if std::env::var_os("QCOW2_UPDATE_HEADER").is_some() {
        fs::write(&path, &fresh).expect("include/qcow2.h");
    }
    let committed = fs::read_to_string(&path).expect("include/qcow2.h");
    let differs = fresh.lines().zip(committed.lines()).position(|(f, c)| f != c);
    if fresh != committed {
        let line = differs.unwrap_or_else(|| fresh.lines().count().min(committed.lines().count()));
        panic!(
            "include/qcow2.h differs from src/capi at line {}:\n  committed: {}\n  generated: {}\n\
             QCOW2_UPDATE_HEADER=1 cargo test --test header writes it anew",
            line + 1,
            committed.lines().nth(line).unwrap_or("(end)"),
            fresh.lines().nth(line).unwrap_or("(end)"),
        );
    }
}

#[test]
fn every_exported_function_is_declared_once_and_is_in_the_abi_list() {
    let header = generate();
    let outside_comments: Vec<&str> =
        header.lines().filter(|line| !line.trim_start().starts_with(['*', '/'])).collect();
    let header = outside_comments.join("\n");
    let listed = fs::read_to_string(root().join("c-tests/abi.txt")).expect("c-tests/abi.txt");
    let listed: Vec<&str> = listed.lines().filter(|l| !l.starts_with('#')).collect();
    let exported = exported(&root().join("src/capi"));
    assert!(exported.len() > 20, "the list of functions was not found: {exported:?}");
    assert_eq!(exported, listed, "c-tests/abi.txt");
    for name in &exported {
        let declared = header.matches(&format!("{name}(")).count();
        assert!(name.starts_with("qcow2_"), "{name} is not in the library's name space");
        assert_eq!(declared, 1, "{name} is declared {declared} times");
    }
}

#[test]
fn nothing_internal_leaks() {
    let header = generate();
    for word in ["usize", "Guarded", "SAFETY", "MAX_OPTIONS", "MAX_IOVCNT", "ALL_OPEN_FLAGS", "PTHREAD"] {
        assert!(!header.contains(word), "{word} is in the header");
    }
    for line in header.lines().filter(|l| l.starts_with("#define ")) {
        assert!(line.starts_with("#define QCOW2_"), "{line}");
    }
}

/// The rows of the page that tells C programmers what an open can be given.
#[test]
fn the_page_of_features_has_every_open_option() {
    let page = fs::read_to_string(root().join("docs/features.md")).expect("docs/features.md");
    let section = page.split("\n## ").find(|s| s.starts_with("Open options\n")).expect("the section");
    let listed: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
    let open = || options::list(options::Scope::Open).into_iter();
    let row = |o: &options::OptionInfo| {
        format!("| `{}` | {} | {} | {} |", o.name, o.kind.name(), o.default.unwrap_or(""), o.help)
    };
    let rows: Vec<String> = open().map(row).collect();
    assert!(listed == rows, "docs/features.md, \"Open options\": the rows should be\n{}", rows.join("\n"));
    let fixed: Vec<&str> = open().filter(|o| !o.runtime).map(|o| o.name).collect();
    assert_eq!(fixed, ["data-file", "snapshot"], "the section says which options stay");
}

fn output_of(program: &str, arguments: &[&str], library: &Path) -> Option<String> {
    let output = std::process::Command::new(program).args(arguments).arg(library).output().ok()?;
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The shared library as plain cargo makes it. (The installed one is linked, and tested, by meson.)
#[test]
fn cargo_s_shared_library_has_the_soname_and_exports_the_list() {
    let program = std::env::current_exe().expect("this program");
    let library = program.with_file_name("libqcow2.so");
    if !library.exists() {
        return; // built with other crate types only
    }
    let Some(dynamic) = output_of("readelf", &["-d"], &library) else { return };
    assert!(dynamic.contains("soname: [libqcow2.so.0]"), "{dynamic}");
    let Some(symbols) = output_of("nm", &["-D", "--defined-only"], &library) else { return };
    let mut names: Vec<&str> = symbols.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    names.sort_unstable();
    assert_eq!(names, exported(&root().join("src/capi")));
}
