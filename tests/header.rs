//! The committed include/qcow2.h is what cbindgen makes of src/capi.
//!
//! `QCOW2_UPDATE_HEADER=1 cargo test --test header` writes it anew.

use qcow2::testing::options;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The files of the C edge in the order in which a reader of the header meets them.
const SOURCES: [&str; 19] = [
    "types",
    "messages",
    "callbacks",
    "findings",
    "custom_io",
    "error",
    "open",
    "io",
    "info",
    "check",
    "amend",
    "backing",
    "compare",
    "convert",
    "measure",
    "snapshot",
    "vm_state",
    "create",
    "options",
];

fn generate() -> String {
    let root = root();
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for name in SOURCES {
        builder = builder.with_src(root.join("src/capi").join(name).with_extension("rs"));
    }
    let mut bytes = Vec::new();
    builder.generate().expect("cbindgen").write(&mut bytes);
    tidy(&String::from_utf8(bytes).expect("the header is UTF-8"))
}

/// What cbindgen has no setting for: comments in the usual C form, no `struct` before names that are
/// typedefs, one empty line at a time.
fn tidy(generated: &str) -> String {
    let mut text = String::new();
    let mut comment: Option<(&str, Vec<&str>)> = None;
    let mut empty_before = false;
    for line in generated.lines().map(str::trim_end) {
        let indent = &line[..line.len() - line.trim_start().len()];
        match (&mut comment, line.trim()) {
            (None, "/*") => comment = Some((indent, Vec::new())),
            (Some((indent, lines)), "*/") => {
                text.push_str(&c_comment(indent, lines));
                comment = None;
            }
            (Some((_, lines)), inside) => lines.push(inside),
            (None, "") if empty_before => {}
            (None, _) => {
                let line = plain_names(line).replace("// __cplusplus", "/* __cplusplus */");
                let _ = writeln!(text, "{line}");
            }
        }
        empty_before = line.is_empty();
    }
    text.replace("// extern \"C\"", "/* extern \"C\" */")
}

/// `struct qcow2_x` as `qcow2_x`, except where it is being declared.
fn plain_names(line: &str) -> String {
    match line.starts_with("typedef struct ") {
        true => line.to_owned(),
        false => line.replace("struct qcow2_", "qcow2_"),
    }
}

fn c_comment(indent: &str, lines: &[&str]) -> String {
    if let [line] = lines {
        return format!("{indent}/* {line} */\n");
    }
    let mut text = format!("{indent}/*\n");
    for line in lines {
        let line = line.strip_prefix("* ").or_else(|| line.strip_prefix('*')).unwrap_or(line);
        let _ = writeln!(text, "{}", format!("{indent} * {line}").trim_end());
    }
    let _ = writeln!(text, "{indent} */");
    text
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
