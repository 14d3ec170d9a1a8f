//! Which file needs which: who names an item that another file defines. Names are followed through `use` and `pub use` to
//! the file that defines them: a module that only declares and shows its children needs none of them, and a child that
//! takes a type of a sibling through its parent needs the sibling. A child is a part of its parents: what it takes from
//! them is not a need.

use super::source::{is_word, Source};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// `use` of one name; "*" for all of them.
struct Use {
    public: bool,
    name: String,
    path: Vec<String>,
}

struct File {
    name: String,
    path: Vec<String>,
    /// Without what is compiled for tests only, and without `use`.
    body: String,
    words: HashSet<String>,
    items: HashSet<String>,
    uses: Vec<Use>,
}

pub struct Files {
    files: Vec<File>,
    modules: HashMap<Vec<String>, usize>,
}

/// What a path names.
#[derive(Clone, Copy)]
enum Named {
    Module(usize),
    /// Something that this file defines.
    ItemOf(usize),
}

/// `use` of a `use` of a `use`: there are no more than this.
const STEPS: u32 = 12;

impl Files {
    pub fn of(sources: &[Source]) -> Files {
        let files: Vec<File> = sources.iter().filter(|s| !s.is_test()).map(File::of).collect();
        let modules = files.iter().enumerate().map(|(index, f)| (f.path.clone(), index)).collect();
        Files { files, modules }
    }

    /// For each file, by name, those that it needs.
    pub fn needs(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let name = |index: usize| self.files[index].name.as_str();
        let needs = |index: usize| self.needs_of(index).into_iter().map(name).collect();
        (0..self.files.len()).map(|index| (name(index), needs(index))).collect()
    }

    fn needs_of(&self, index: usize) -> BTreeSet<usize> {
        let file = &self.files[index];
        let mut found = BTreeSet::new();
        let mut add = |path: &[String]| {
            if let Some(Named::ItemOf(other)) = self.resolve(index, path, STEPS) {
                if !file.path.starts_with(&self.files[other].path) {
                    found.insert(other);
                }
            }
        };
        for used in &file.uses {
            if used.name == "*" {
                if let Some(Named::Module(shown)) = self.resolve(index, &used.path, STEPS) {
                    let names = self.files[shown].names().filter(|n| file.words.contains(*n));
                    names.for_each(|n| add(&[used.path.clone(), vec![n.to_owned()]].concat()));
                }
            } else if !used.public || file.words.contains(&used.name) {
                add(&used.path);
            }
        }
        paths(&file.body).iter().for_each(|path| add(path));
        found
    }

    fn resolve(&self, from: usize, path: &[String], steps: u32) -> Option<Named> {
        let steps = steps.checked_sub(1)?;
        let mut module = self.files[from].path.as_slice();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => (module, rest) = (&[], &rest[1..]),
            "self" => rest = &rest[1..],
            _ => {
                while rest.first().is_some_and(|s| s == "super") {
                    (module, rest) = (module.split_last()?.1, &rest[1..]);
                }
            }
        }
        self.resolve_in(*self.modules.get(module)?, rest, steps)
    }

    fn resolve_in(&self, module: usize, path: &[String], steps: u32) -> Option<Named> {
        let steps = steps.checked_sub(1)?;
        let Some((first, rest)) = path.split_first() else { return Some(Named::Module(module)) };
        let file = &self.files[module];
        let child = [&file.path[..], std::slice::from_ref(first)].concat();
        if let Some(child) = self.modules.get(&child) {
            return self.resolve_in(*child, rest, steps);
        }
        if file.items.contains(first) {
            return Some(Named::ItemOf(module));
        }
        if let Some(used) = file.uses.iter().find(|u| u.name == *first) {
            return match self.resolve(module, &used.path, steps)? {
                Named::Module(other) => self.resolve_in(other, rest, steps),
                item => Some(item),
            };
        }
        let globs = file.uses.iter().filter(|u| u.name == "*");
        globs.filter_map(|u| self.resolve(module, &[&u.path[..], path].concat(), steps)).next()
    }
}

/// The shortest circles of files, each of which needs another one; none has a shorter one in it.
pub fn circles<'a>(needs: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<Vec<&'a str>> {
    let mut found = BTreeSet::new();
    for (start, firsts) in needs {
        for first in firsts {
            // The shortest way back, if there is one.
            let mut from: BTreeMap<&str, &str> = BTreeMap::from([(*first, *start)]);
            let mut open = vec![*first];
            while !open.is_empty() && !from.contains_key(start) {
                let mut next = Vec::new();
                for file in open {
                    for other in needs.get(file).into_iter().flatten() {
                        if !from.contains_key(other) {
                            from.insert(other, file);
                            next.push(*other);
                        }
                    }
                }
                open = next;
            }
            let Some(mut at) = from.get(start).copied() else { continue };
            let mut circle = vec![*start];
            while at != *start {
                circle.push(at);
                at = from[at];
            }
            circle.sort_unstable();
            found.insert(circle);
        }
    }
    let inside = |small: &Vec<&str>, large: &Vec<&str>| {
        small.len() < large.len() && small.iter().all(|f| large.contains(f))
    };
    let shortest = |circle: &&Vec<&str>| !found.iter().any(|other| inside(other, circle));
    found.iter().filter(shortest).cloned().collect()
}

impl File {
    fn of(source: &Source) -> File {
        let (body, uses) = take_uses(&without_tests(&source.code));
        File {
            name: source.in_src().unwrap_or(&source.name).to_owned(),
            path: source.path().into_iter().map(str::to_owned).collect(),
            words: body.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned).collect(),
            items: body.lines().filter_map(item).collect(),
            body,
            uses,
        }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.items.iter().map(String::as_str).chain(self.uses.iter().map(|u| u.name.as_str()))
    }
}

/// The name of what a line that is not indented defines.
fn item(line: &str) -> Option<String> {
    let mut words = line.split_whitespace().peekable();
    if line.starts_with(' ') {
        return None;
    }
    while let Some(word) = words.next() {
        let kind = ["fn", "struct", "enum", "trait", "type", "const", "static", "union", "macro_rules!"];
        if kind.contains(&word) && words.peek() != Some(&"fn") {
            let name = words.next()?.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
            return Some(name.to_owned());
        }
        let before = word.starts_with("pub") || ["unsafe", "extern", "const", "async"].contains(&word);
        if !before && word != "crate)" && !word.ends_with(')') {
            return None;
        }
    }
    None
}

/// Modules that are compiled for tests only are blanked out.
fn without_tests(code: &str) -> String {
    let (mut out, mut inside, mut before) = (String::new(), false, "");
    for line in code.lines() {
        let test = before.starts_with("#[cfg(") && before.contains("test");
        inside |= test && line.contains("mod ") && line.ends_with('{');
        if !inside {
            out.push_str(line);
        }
        out.push('\n');
        inside &= line != "}";
        before = line;
    }
    out
}

/// The code without its `use` statements, and these.
fn take_uses(code: &str) -> (String, Vec<Use>) {
    let (mut body, mut uses) = (String::new(), Vec::new());
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let start = line.trim_start();
        let (public, statement) = match start.split_once("use ") {
            Some((before, rest)) if before.is_empty() || before.starts_with("pub") && before.len() < 20 => {
                (!before.is_empty(), rest)
            }
            _ => {
                body.push_str(line);
                body.push('\n');
                continue;
            }
        };
        let mut statement = statement.to_owned();
        while !statement.contains(';') {
            statement.push_str(lines.next().unwrap_or(";"));
        }
        let tree: String = statement.replace(" as ", "@").split_whitespace().collect();
        expand(&[], tree.split(';').next().unwrap_or_default(), public, &mut uses);
    }
    (body, uses)
}

/// The names of a tree such as "a::{self,b::C}", below `above`.
fn expand(above: &[String], tree: &str, public: bool, uses: &mut Vec<Use>) {
    let mut path = above.to_vec();
    let (before, group) = tree.split_once('{').map_or((tree, None), |(b, g)| (b, Some(g)));
    path.extend(before.split("::").filter(|s| !s.is_empty()).map(str::to_owned));
    if let Some(group) = group {
        let group = group.strip_suffix('}').unwrap_or(group);
        let (mut depth, mut from) = (0, 0);
        for (at, byte) in group.bytes().enumerate().chain([(group.len(), b',')]) {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                b',' if depth == 0 => {
                    if from < at {
                        expand(&path, &group[from..at], public, uses);
                    }
                    from = at + 1;
                }
                _ => {}
            }
        }
        return;
    }
    let Some(last) = path.pop() else { return };
    let (name, shown) = last.split_once('@').unwrap_or((&last, &last));
    if name == "*" {
        uses.push(Use { public, name: "*".into(), path });
        return;
    }
    if name != "self" || path.is_empty() {
        path.push(name.to_owned());
    }
    let shown = if shown == "self" { path[path.len() - 1].clone() } else { shown.to_owned() };
    uses.push(Use { public, name: shown, path });
}

/// Every path of two or more names.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for piece in code.split(|c: char| !is_word(c as u8) && c != ':' || !c.is_ascii()) {
        let names: Vec<String> = piece.split("::").map(|n| n.trim_matches(':').to_owned()).collect();
        let names: Vec<String> = names.into_iter().take_while(|n| !n.is_empty()).collect();
        if names.len() > 1 {
            found.push(names);
        }
    }
    found
}
