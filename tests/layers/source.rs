//! The sources as the rules look at them: comments and literals blanked out, with functions and words to find.

use std::fs;
use std::path::{Path, PathBuf};

pub struct Source {
    /// From the top of the tree, as "src/map/resolve.rs".
    pub name: String,
    /// With comments, strings and characters blanked out; lines stay where they are.
    pub code: String,
}

impl Source {
    /// The name from `src` on, if it is there.
    pub fn in_src(&self) -> Option<&str> {
        self.name.strip_prefix("src/")
    }

    /// The top-level module that a file of `src` belongs to.
    pub fn module(&self) -> &str {
        let first = self.in_src().unwrap_or_default().split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// The module of a file of `src`: nothing for `lib.rs`, ["map", "resolve"] for `map/resolve.rs`.
    pub fn path(&self) -> Vec<&str> {
        let name = self.in_src().unwrap_or_default();
        let mut path: Vec<&str> = name.trim_end_matches(".rs").split('/').collect();
        if matches!(path.last(), Some(&"lib" | &"mod")) {
            path.pop();
        }
        path
    }

    /// Whether it is compiled for tests only.
    pub fn is_test(&self) -> bool {
        self.path().iter().any(|p| *p == "tests" || *p == "loom")
    }

    /// Lines with a word, by number.
    pub fn lines_with<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        let has = move |line: &str| {
            let whole = |at: usize| {
                let beside = [line[..at].bytes().last(), line[at + word.len()..].bytes().next()];
                !beside.into_iter().flatten().any(is_word)
            };
            line.match_indices(word).any(|(at, _)| whole(at))
        };
        self.code.lines().enumerate().filter(move |(_, line)| has(line)).map(|(number, _)| number + 1)
    }
}

fn collect(folder: &Path, endings: &[&str], files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the tree") {
        let path = entry.expect("a file of the tree").path();
        if path.is_dir() {
            collect(&path, endings, files);
        } else if path.extension().is_some_and(|e| endings.iter().any(|ending| e == *ending)) {
            files.push(path);
        }
    }
}

/// The files of a folder whose names end so, sorted.
pub fn read(folder: &str, endings: &[&str]) -> Vec<Source> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&top.join(folder), endings, &mut files);
    files.sort();
    assert!(files.len() > 10, "the sources were not found: {files:?}");
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).expect("a source file");
        let name = path.strip_prefix(top).expect("below the top").to_string_lossy().into_owned();
        Source { name, code: blank(&text) }
    };
    files.iter().map(read).collect()
}

/// Replaces comments and literals by spaces.
pub fn blank(text: &str) -> String {
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

pub fn is_word(byte: u8) -> bool {
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
pub fn words_after<'a>(code: &'a str, prefix: &'a str) -> impl Iterator<Item = (usize, String)> + 'a {
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

/// Name, first line and number of lines of every function.
pub fn functions(code: &str) -> Vec<(String, usize, usize)> {
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

/// The same of C, whose functions end with a brace that is not indented.
pub fn c_functions(code: &str) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    let mut head = (String::new(), 0);
    for (number, line) in code.lines().enumerate().map(|(n, line)| (n + 1, line)) {
        let starts = line.bytes().next().is_some_and(is_word);
        let name = line.split('(').next().unwrap_or_default();
        if starts && line.contains('(') && !name.contains('=') {
            let name = name.rsplit(|c: char| !is_word(c as u8)).next().unwrap_or_default();
            head = (name.to_owned(), number);
        }
        if line.ends_with(';') && !line.starts_with(' ') || line.starts_with("struct") && line.ends_with('{')
        {
            head.0.clear();
        }
        if line == "}" && !head.0.is_empty() {
            found.push((std::mem::take(&mut head.0), head.1, number + 1 - head.1));
        }
    }
    found
}

/// What stands in the parentheses of calls of functions whose names have `part` in them.
pub fn calls<'a>(code: &'a str, part: &'a str) -> impl Iterator<Item = &'a str> {
    code.match_indices(part).filter_map(move |(at, _)| {
        let rest = &code[at..];
        let open = rest.find(|c: char| !is_word(c as u8)).filter(|open| rest[*open..].starts_with('('))?;
        let mut depth = 0;
        let end = rest.bytes().enumerate().skip(open).find_map(|(index, byte)| {
            depth += i32::from(byte == b'(') - i32::from(byte == b')');
            (depth == 0).then_some(index)
        });
        Some(&rest[open..end?])
    })
}

/// The type of an inherent `impl` that begins in this line.
pub fn inherent_impl(line: &str) -> Option<String> {
    let rest = line.strip_prefix("impl")?;
    let rest = match rest.strip_prefix('<') {
        Some(generics) => {
            let mut depth = 1;
            let end = generics.find(|c| {
                depth += i32::from(c == '<') - i32::from(c == '>');
                depth == 0
            })?;
            &generics[end + 1..]
        }
        None => rest,
    };
    let name: String = rest.strip_prefix(' ')?.chars().take_while(|c| c.is_alphanumeric()).collect();
    (!name.is_empty() && !line.contains(" for ")).then_some(name)
}
