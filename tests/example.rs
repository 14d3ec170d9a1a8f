//! The Rust example runs, and QEMU's tools, where they are, find nothing wrong with what it leaves.

// Its main is for people.
#[allow(dead_code)]
#[path = "../examples/disk.rs"]
mod disk;

#[test]
fn the_example_runs() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("disk.qcow2");
    disk::run(&path).expect("the example");
    if let Ok(check) = std::process::Command::new("qemu-img").arg("check").arg(&path).output() {
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    }
}
