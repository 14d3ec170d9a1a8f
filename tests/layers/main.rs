//! The rules of the tree that the compiler does not know: who may use whom, who needs whom, where `unsafe` and guest bytes
//! may be, and how long files and functions get.

mod circles;
mod source;

use circles::{circles, Files};
use source::{blank, c_functions, calls, functions, inherent_impl, words_after, Source};
use std::collections::{BTreeMap, HashSet};

/// What each top-level module may use besides itself. Later ones are higher.
const MAY_USE: [(&str, &[&str]); 16] = [
    ("error", &[]),
    ("sync", &[]),
    ("format", &["error"]),
    ("codec", &["error", "format"]),
    ("crypto", &["error", "format"]),
    ("options", &["error", "format", "crypto"]),
    ("storage", &["error", "sync", "format", "codec"]),
    ("disk", &["error", "sync", "format", "crypto", "options", "storage"]),
    ("meta", &["error", "sync", "format", "codec", "options", "storage"]),
    ("alloc", &["error", "sync", "format", "codec", "options", "storage", "meta"]),
    ("map", &["error", "sync", "format", "codec", "options", "storage", "meta", "alloc"]),
    (
        "image",
        &["error", "sync", "format", "codec", "crypto", "options", "storage", "disk", "meta", "alloc", "map"],
    ),
    (
        "ops",
        &[
            "error", "sync", "format", "codec", "crypto", "options", "storage", "disk", "meta", "alloc",
            "map", "image",
        ],
    ),
    (
        "capi",
        &[
            "error", "sync", "format", "codec", "crypto", "options", "storage", "disk", "meta", "alloc",
            "map", "image", "ops",
        ],
    ),
    ("testing", &["error", "format", "crypto", "options", "storage", "disk", "image", "ops"]),
    ("loom", &["error", "sync", "format", "storage", "meta", "map", "image"]),
];

const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 60;

/// What still breaks a rule. Each list only shrinks: an entry that is no longer needed is a fault too.
mod allowed;

/// The engine.
fn sources() -> Vec<Source> {
    source::read("src", &["rs"])
}

fn report(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Reports faults, by what they are about, except those that are allowed, and what is allowed in vain.
fn report_except(faults: &BTreeMap<String, String>, allowed: &[&str]) {
    let new = faults.iter().filter(|(about, _)| !allowed.contains(&about.as_str())).map(|(_, f)| f.clone());
    let old = allowed.iter().filter(|a| !faults.contains_key(**a));
    let old = old.map(|a| format!("{a}: good now, to be taken off the list in tests/layers/allowed.rs"));
    report(&new.chain(old).collect::<Vec<_>>());
}

#[test]
fn every_file_uses_lower_layers_only() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|s| s.module() != "lib") {
        let module = source.module();
        if module == "planted" {
            assert!(!source.code.contains("crate::"), "src/planted.rs is for every layer and uses none");
            continue;
        }
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            faults.push(format!("{}: {module} is not a known layer", source.name));
            continue;
        };
        for (line, used) in words_after(&source.code, "crate::") {
            if used != module
                && used != "planted"
                && !allowed.contains(&used.as_str())
                && MAY_USE.iter().any(|m| m.0 == used)
            {
                faults.push(format!("{}:{line}: {module} must not use {used}", source.name));
            }
            if used.is_empty() {
                faults.push(format!("{}:{line}: one `use` per module of the crate", source.name));
            }
        }
        // The other way out of a layer. Nested modules (tests) have one `super` of their own.
        for (number, line) in source.code.lines().enumerate() {
            let ups = line.matches("super::").count();
            let nested = usize::from(line.starts_with(' '));
            if line.contains("super::super::") && ups >= source.path().len() + nested {
                faults.push(format!("{}:{}: leaves the layer by super", source.name, number + 1));
            }
        }
    }
    report(&faults);
}

/// A method in a higher layer would be called below it without a `use` that says so.
#[test]
fn every_method_is_in_the_layer_of_its_type() {
    let sources = sources();
    let mut declared = HashSet::new();
    for source in &sources {
        for kind in ["struct ", "enum ", "union "] {
            declared.extend(words_after(&source.code, kind).map(|(_, name)| (source.module(), name)));
        }
    }
    let mut faults = Vec::new();
    let mut seen = 0;
    for source in &sources {
        for (number, line) in source.code.lines().enumerate() {
            let Some(name) = inherent_impl(line) else { continue };
            seen += 1;
            // `dyn Trait` and types of a macro have no declaration anywhere.
            let is_ours = declared.iter().any(|(_, known)| *known == name);
            if is_ours && !declared.contains(&(source.module(), name.clone())) {
                faults.push(format!("{}:{}: methods of {name}", source.name, number + 1));
            }
        }
    }
    assert!(seen > 100, "only {seen} blocks of methods were found");
    report(&faults);
}

#[test]
fn unsafe_is_in_the_c_edge_and_at_the_system_calls_only() {
    let mut faults = Vec::new();
    for source in sources() {
        if source.module() == "capi" || source.name == "src/storage/file/sys.rs" {
            continue;
        }
        for (number, line) in source.code.lines().enumerate() {
            let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if words.clone().any(|word| word == "unsafe") {
                faults.push(format!("{}:{}: unsafe", source.name, number + 1));
            }
            if words.clone().any(|word| word == "unsafe_code") && !line.contains("deny") {
                faults.push(format!("{}:{}: allows unsafe", source.name, number + 1));
            }
        }
    }
    report(&faults);
}

#[test]
fn no_file_needs_one_that_needs_it() {
    let sources = sources();
    let files = Files::of(&sources);
    let needs = files.needs();
    let known: usize = needs.values().map(|n| n.len()).sum();
    assert!(known > 300, "only {known} needs were found");
    let circle = |files: Vec<&str>| {
        let about = files.join(" ");
        (about.clone(), format!("in a circle: {about}"))
    };
    report_except(&circles(&needs).into_iter().map(circle).collect(), allowed::CIRCLES);
}

/// Faults where a file outside `home` has one of these words.
fn strangers(home: &[&str], words: &[&str], what: &str) -> BTreeMap<String, String> {
    let mut faults = BTreeMap::new();
    for source in sources().iter().filter(|s| !s.is_test()) {
        let name = source.in_src().expect("a file of src");
        if home.iter().any(|h| name.starts_with(h)) {
            continue;
        }
        let lines: Vec<_> = words.iter().flat_map(|word| source.lines_with(word)).collect();
        if !lines.is_empty() {
            faults.insert(name.to_owned(), format!("{}:{lines:?}: {what}", source.name));
        }
    }
    faults
}

#[test]
fn nobody_asks_for_the_format_of_a_disk() {
    let faults =
        strangers(&["disk/", "image/"], &["Image::find", "downcast_ref"], "asks which format a disk has");
    report_except(&faults, allowed::FORMATS);
}

#[test]
fn guest_bytes_have_one_door() {
    let home = ["image/payload.rs", "storage/"];
    let words = ["Purpose::Data", "read_data", "write_data", "copy_data", "data_storage"];
    report_except(&strangers(&home, &words, "touches guest bytes"), allowed::GUEST_BYTES);
}

/// A link that waits for nothing needs a reason, and reasons are the map's.
#[test]
fn only_the_map_links_what_waits_for_nothing() {
    let mut faults = BTreeMap::new();
    for source in sources().iter().filter(|s| !s.is_test() && s.module() != "map") {
        let links = calls(&source.code, "link").any(|call| call.contains("Ticket::PAST"));
        if links {
            let fault = format!("{}: links what waits for nothing", source.name);
            faults.insert(source.name.trim_start_matches("src/").to_owned(), fault);
        }
    }
    report_except(&faults, allowed::LINKS);
}

#[test]
fn files_and_functions_stay_short() {
    let mut faults = BTreeMap::new();
    let mut seen = 0;
    let tests = source::read("tests", &["rs"]);
    let mut tools = source::read("tools", &["c", "h"]);
    tools.extend(source::read("clients", &["c", "h"]));
    for source in sources().iter().chain(&tests).chain(&tools) {
        let lines = source.code.lines().count();
        if lines > MAX_FILE_LINES {
            let fault = format!("{}: {lines} lines, more than {MAX_FILE_LINES}", source.name);
            faults.insert(source.name.clone(), fault);
        }
        let found =
            if source.name.ends_with(".rs") { functions(&source.code) } else { c_functions(&source.code) };
        for (name, first, lines) in found {
            seen += 1;
            if lines > MAX_FUNCTION_LINES {
                let place = format!("{}:{first}", source.name);
                let fault = format!("{place}: {name} has {lines} lines, more than {MAX_FUNCTION_LINES}");
                faults.insert(format!("{} {name}", source.name), fault);
            }
        }
    }
    assert!(seen > 1500, "only {seen} functions were found");
    report_except(&faults, allowed::LONG);
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
    assert_eq!(inherent_impl("impl<'a, T: Into<u8>> Core<'a> {"), Some("Core".to_owned()));
    assert_eq!(inherent_impl("impl Drop for Core {"), None);
    let code = "static const char *of(int a,\n    int b)\n{\n    return 0;\n}\nstruct s {\n    int a;\n};\n";
    assert_eq!(c_functions(code), [("of".to_owned(), 1, 5)]);
}

fn file(name: &str, code: &str) -> Source {
    Source { name: format!("src/{name}"), code: blank(code) }
}

#[test]
fn needs_are_followed_to_the_file_that_defines() {
    let sources = [
        file("lib.rs", "mod low;\nmod high;\n"),
        file(
            "low/mod.rs",
            "mod a;\nmod b;\npub use a::{make, A};\npub(crate) use b::B as Bee;\npub struct Own;\n",
        ),
        file(
            "low/a.rs",
            "use super::{Bee, Own};\nuse std::fs;\npub struct A(Bee, Own);\npub const fn make() {}\n",
        ),
        file("low/b.rs", "pub struct B;\n#[cfg(test)]\nmod tests {\n    use super::super::A;\n}\n"),
        file("high.rs", "use crate::low;\nuse crate::low::*;\nfn f() -> Own {\n    low::make()\n}\n"),
        file("tests.rs", "use crate::high::f;\n"),
    ];
    let files = Files::of(&sources);
    let shown = |name: &str| files.needs()[name].iter().copied().collect::<Vec<_>>();
    assert_eq!(shown("low/a.rs"), ["low/b.rs"]);
    assert_eq!(shown("high.rs"), ["low/a.rs", "low/mod.rs"]);
    assert!(shown("low/mod.rs").is_empty() && shown("low/b.rs").is_empty());
    assert!(circles(&files.needs()).is_empty());

    let mut needs = BTreeMap::from([("a", ["b"].into()), ("b", ["c"].into()), ("c", ["a", "d"].into())]);
    needs.insert("d", ["c"].into());
    let found: Vec<_> = circles(&needs).into_iter().collect();
    assert_eq!(found, [vec!["a", "b", "c"], vec!["c", "d"]]);
}
