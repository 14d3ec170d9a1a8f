//! Makes qcow2.h from src/capi: a part of build.rs.

use std::fmt::Write as _;
use std::path::Path;

/// The files of the C edge in the order in which a reader of the header meets them.
const SOURCES: [&str; 22] = [
    "types",
    "messages",
    "callbacks",
    "findings",
    "custom_io",
    "error",
    "open",
    "io",
    "info",
    "encryption",
    "secret",
    "check",
    "amend",
    "backing",
    "compare",
    "convert",
    "measure",
    "snapshot",
    "bitmaps",
    "vm_state",
    "create",
    "options",
];

/// The header of the package in `root`, whose version is the one that Cargo.toml has.
pub fn generate(root: &Path) -> String {
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for name in SOURCES {
        builder = builder.with_src(root.join("src/capi").join(name).with_extension("rs"));
    }
    let mut bytes = Vec::new();
    builder.generate().expect("cbindgen").write(&mut bytes);
    tidy(&with_version(String::from_utf8(bytes).expect("the header is UTF-8")))
}

fn with_version(header: String) -> String {
    let of_package = |name: &str| std::env::var(format!("CARGO_PKG_{name}")).expect("set by cargo");
    ["VERSION_MAJOR", "VERSION_MINOR", "VERSION_PATCH", "VERSION"]
        .iter()
        .fold(header, |text, name| text.replace(&format!("@{name}@"), &of_package(name)))
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
