//! The stock tools, for tests that compare.

use std::process::Command;

/// Whether they are installed; says so where they are not.
pub fn is_there() -> bool {
    let there = Command::new("qemu-img").arg("--version").output().is_ok();
    if !there {
        println!("skip: qemu-img is missing");
    }
    there
}

/// Whether a command of theirs succeeds, and all that it says.
pub fn stock(words: &[&str]) -> (bool, String) {
    let done = Command::new(words[0]).args(&words[1..]).output().expect("the stock tool runs");
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    (done.status.success(), said.into_owned())
}

/// What a command of theirs says that has to succeed.
pub fn qemu(words: &[&str]) -> String {
    let (fine, said) = stock(words);
    assert!(fine, "{words:?}: {said}");
    said
}
