//! The rules of the tree that the compiler does not know: who may use whom, where `unsafe` may be, and how
//! long files and functions get.

use std::fs;
use std::path::{Path, PathBuf};

/// What each top-level module may use besides itself. Later ones are higher.
const MAY_USE: [(&str, &[&str]); 13] = [
    ("error", &[]),
    ("sync", &[]),
    ("format", &["error"]),
    ("codec", &["error", "format"]),
    ("options", &["error", "format"]),
    ("storage", &["error", "sync", "format", "codec"]),
    ("meta", &["error", "sync", "format", "codec", "options", "storage"]),
    ("alloc", &["error", "sync", "format", "codec", "options", "storage", "meta"]),
    ("map", &["error", "sync", "format", "codec", "options", "storage", "meta", "alloc"]),
    ("image", &["error", "sync", "format", "codec", "options", "storage", "meta", "alloc", "map"]),
    ("ops", &["error", "sync", "format", "codec", "options", "storage", "meta", "alloc", "map", "image"]),
    (
        "capi",
        &["error", "sync", "format", "codec", "options", "storage", "meta", "alloc", "map", "image", "ops"],
    ),
    ("loom", &["error", "sync", "format", "storage", "meta", "map", "image"]),
];

const MAX_FILE_LINES: usize = 700;
const MAX_FUNCTION_LINES: usize = 80;

struct Source {
    /// From `src`, as "map/resolve.rs".
    name: String,
    /// With comments, strings and characters blanked out; lines stay where they are.
    code: String,
}

impl Source {
    /// The top-level module that the file belongs to.
    fn module(&self) -> &str {
        let first = self.name.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// Depth of the file's module: 0 for the crate itself, 1 for `map/mod.rs`, 2 for `map/resolve.rs`.
    fn depth(&self) -> usize {
        let parts = self.name.split('/').count();
        match self.name.rsplit('/').next() {
            Some("lib.rs") => 0,
            Some("mod.rs") => parts - 1,
            _ => parts,
        }
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("src") {
        let path = entry.expect("src").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    assert!(files.len() > 40, "the sources were not found: {files:?}");
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).expect("a source file");
        let name = path.strip_prefix(&root).expect("below src").to_string_lossy().into_owned();
        Source { name, code: blank(&text) }
    };
    files.iter().map(read).collect()
}

/// Replaces comments and literals by spaces.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = skip(bytes, at);
        if end == at {
            out.push(bytes[at]);
            at += 1;
        } else {
            out.extend(bytes[at..end].iter().map(|b| if *b == b'\n' { b'\n' } else { b' ' }));
            at = end;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The end of the comment or literal that begins at `at`; `at` if none does.
fn skip(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let find = |from: usize, what: &[u8]| {
        (from..bytes.len()).find(|i| bytes[*i..].starts_with(what)).unwrap_or(bytes.len())
    };
    match rest {
        [b'/', b'/', ..] => find(at, b"\n"),
        [b'/', b'*', ..] => (find(at + 2, b"*/") + 2).min(bytes.len()),
        [b'r', b'"' | b'#', ..] if at == 0 || !is_word(bytes[at - 1]) || bytes[at - 1] == b'b' => {
            let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
            if rest.get(1 + hashes) != Some(&b'"') {
                return at; // a raw identifier
            }
            let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            (find(at + hashes + 2, &close) + close.len()).min(bytes.len())
        }
        [b'"', ..] => {
            let mut end = at + 1;
            while end < bytes.len() && bytes[end] != b'"' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            (end + 1).min(bytes.len())
        }
        [b'\'', b'\\', _, ..] => (find(at + 3, b"'") + 1).min(bytes.len()),
        // A character; otherwise a lifetime.
        [b'\'', first, ..] if *first >= 0x80 => (find(at + 1, b"'") + 1).min(bytes.len()),
        [b'\'', _, b'\'', ..] => at + 3,
        _ => at,
    }
}

/// Words after each `prefix` in the code, with their line numbers; "a::b" yields "a".
fn words_after<'a>(code: &'a str, prefix: &'a str) -> impl Iterator<Item = (usize, String)> + 'a {
    code.lines().enumerate().flat_map(move |(number, line)| {
        line.match_indices(prefix).filter_map(move |(at, _)| {
            let before = line[..at].bytes().last();
            let word: String =
                line[at + prefix.len()..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let whole = before.is_none_or(|b| !is_word(b));
            whole.then_some((number + 1, word))
        })
    })
}

fn report(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_file_uses_lower_layers_only() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|s| s.name != "lib.rs") {
        let module = source.module();
        if module == "planted" {
            assert!(!source.code.contains("crate::"), "src/planted.rs is for every layer and uses none");
            continue;
        }
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            faults.push(format!("src/{}: {module} is not a known layer", source.name));
            continue;
        };
        for (line, used) in words_after(&source.code, "crate::") {
            if used != module
                && used != "planted"
                && !allowed.contains(&used.as_str())
                && MAY_USE.iter().any(|m| m.0 == used)
            {
                faults.push(format!("src/{}:{line}: {module} must not use {used}", source.name));
            }
            if used.is_empty() {
                faults.push(format!("src/{}:{line}: one `use` per module of the crate", source.name));
            }
        }
        // The other way out of a layer. Nested modules (tests) have one `super` of their own.
        for (number, line) in source.code.lines().enumerate() {
            let ups = line.matches("super::").count();
            let nested = usize::from(line.starts_with(' '));
            if line.contains("super::super::") && ups >= source.depth() + nested {
                faults.push(format!("src/{}:{}: leaves the layer by super", source.name, number + 1));
            }
        }
    }
    report(&faults);
}

#[test]
fn unsafe_is_in_the_c_edge_and_at_the_system_calls_only() {
    let mut faults = Vec::new();
    for source in sources() {
        if source.module() == "capi" || source.name.starts_with("storage/file") {
            continue;
        }
        for (number, line) in source.code.lines().enumerate() {
            let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if words.clone().any(|word| word == "unsafe") {
                faults.push(format!("src/{}:{}: unsafe", source.name, number + 1));
            }
            if words.clone().any(|word| word == "unsafe_code") && !line.contains("deny") {
                faults.push(format!("src/{}:{}: allows unsafe", source.name, number + 1));
            }
        }
    }
    report(&faults);
}

/// Name, first line and number of lines of every function.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    for (first, name) in words_after(code, "fn ") {
        if name.is_empty() {
            continue; // a function pointer type
        }
        let (mut depth, mut begun) = (0usize, false);
        for (number, line) in code.lines().enumerate().skip(first - 1) {
            let from = if number == first - 1 { line.find("fn ").unwrap_or(0) } else { 0 };
            for byte in line[from..].bytes() {
                match byte {
                    b'{' => (depth, begun) = (depth + 1, true),
                    b'}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
            let declared_only = !begun && line.trim_end().ends_with(';');
            if declared_only {
                break;
            }
            if begun && depth == 0 {
                found.push((name.clone(), first, number + 2 - first));
                break;
            }
        }
    }
    found
}

#[test]
fn files_and_functions_stay_short() {
    let mut faults = Vec::new();
    let mut seen = 0;
    for source in sources() {
        let lines = source.code.lines().count();
        if lines > MAX_FILE_LINES {
            faults.push(format!("src/{}: {lines} lines, more than {MAX_FILE_LINES}", source.name));
        }
        for (name, first, lines) in functions(&source.code) {
            seen += 1;
            if lines > MAX_FUNCTION_LINES {
                let place = format!("src/{}:{first}", source.name);
                faults.push(format!("{place}: {name} has {lines} lines, more than {MAX_FUNCTION_LINES}"));
            }
        }
    }
    assert!(seen > 300, "only {seen} functions were found");
    report(&faults);
}

#[test]
fn the_tests_of_this_file_see_what_they_should() {
    let code =
        blank("use crate::map; // crate::ops\n/* unsafe */ let a = \"unsafe\"; 'x'; let b: &'static str;\n");
    assert_eq!(words_after(&code, "crate::").collect::<Vec<_>>(), [(1, "map".to_owned())]);
    assert!(!code.contains("unsafe") && !code.contains("'x'") && code.contains("'static"));
    let code = blank(
        "fn long(\n    a: u8,\n) {\n    let c = '{';\n    let r = r#\"}\"#;\n}\ntrait T { fn only(); }\n",
    );
    assert_eq!(functions(&code), [("long".to_owned(), 1, 6)]);
}
