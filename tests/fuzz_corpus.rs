//! Replays the corpora of the fuzz targets, without libFuzzer: seeds made by QEMU's tools, and every input that
//! has been a finding. Then asks QEMU about the repaired images.
//!
//! `QCOW2_FUZZ_CORPUS=folder` replays `folder/<target>` of a longer run instead.
#![allow(unsafe_code)]

#[allow(dead_code)]
#[path = "../fuzz/bodies/mod.rs"]
mod bodies;

use bodies::disk::{create, Disk};
use bodies::image::Outcome;
use bodies::medium::{Contents, Medium};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::oracle::Head;

fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let committed = || Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let folder = std::env::var_os("QCOW2_FUZZ_CORPUS").map_or_else(committed, PathBuf::from).join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("a corpus file").path()).collect();
    paths.sort();
    paths.into_iter().map(|p| (p.clone(), std::fs::read(&p).expect("a corpus file"))).collect()
}

/// Runs all inputs of a target; a finding names its file.
fn replay(target: &str, run: fn(&[u8]) -> Outcome) -> Vec<(PathBuf, Outcome)> {
    let replayed = inputs(target).into_iter().map(|(path, input)| {
        let outcome = std::panic::catch_unwind(|| run(&input));
        (path.clone(), outcome.unwrap_or_else(|_| panic!("finding: {}", path.display())))
    });
    let replayed: Vec<(PathBuf, Outcome)> = replayed.collect();
    let count = |what: fn(&Outcome) -> bool| replayed.iter().filter(|(_, o)| what(o)).count();
    let (opened, repaired) = (count(|o| o.opened), count(|o| o.repaired.is_some()));
    let compared = count(|o| o.compared);
    println!("{target}: {} inputs, {opened} opened, {repaired} clean, {compared} compared", replayed.len());
    replayed
}

/// Replays are worth something when most of them reach the engine.
fn assert_reaches(replayed: &[(PathBuf, Outcome)], what: &str, reached: fn(&Outcome) -> bool, least: usize) {
    let count = replayed.iter().filter(|(_, o)| reached(o)).count();
    assert!(count >= least, "only {count} of {} inputs {what}", replayed.len());
}

#[test]
fn headers() {
    let replayed = replay("header", bodies::header::run);
    assert_reaches(&replayed, "opened", |o| o.opened, 10);
}

#[test]
fn bitmaps() {
    let replayed = replay("bitmaps", bodies::bitmaps::run);
    assert_reaches(&replayed, "opened", |o| o.opened, 40);
    assert_reaches(&replayed, "were compared", |o| o.compared, 20);
}

#[test]
fn luks_headers() {
    let replayed = replay("luks", bodies::luks::run);
    assert_reaches(&replayed, "opened", |o| o.opened, 3);
}

#[test]
fn images() {
    let replayed = replay("image", bodies::image::run);
    assert_reaches(&replayed, "opened", |o| o.opened, 25);
    assert_reaches(&replayed, "were repaired or clean", |o| o.repaired.is_some(), 25);
    assert_reaches(&replayed, "were compared", |o| o.compared, 15);
    if std::env::var_os("QCOW2_FUZZ_CORPUS").is_none() {
        let copied = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("copies-"));
        let count = replayed.iter().filter(|(path, o)| copied(path) && o.compared).count();
        assert!(count >= 6, "only {count} seeds with whole copies were compared");
    }
    ask_qemu(&replayed);
}

#[test]
fn structures() {
    let replayed = replay("structure", bodies::structure::run);
    assert_reaches(&replayed, "opened", |o| o.opened, 15);
    assert_reaches(&replayed, "were repaired or clean", |o| o.repaired.is_some(), 15);
    assert_reaches(&replayed, "were compared", |o| o.compared, 10);
    ask_qemu(&replayed);
}

/// Found by fuzzing: without a refcount block for the header's cluster, and without overlap checks, the first
/// allocation put a new block over the header, and looked for a place for it for ever.
#[test]
fn a_header_without_a_count_is_not_overwritten() {
    let medium = Medium::new(Contents::default());
    create(&medium, 64 << 10, &["cluster_size=512"]).expect("an image");
    let table = Head::fields(&*medium.contents()).table_offset;
    assert!(medium.contents().write(table, &[0; 8]));
    let header = medium.contents().bytes(0, 72);
    for check in ["overlap-check=none", "overlap-check=cached"] {
        let disk = Disk::open(&medium, 0, &[check]).expect("the image opens");
        assert!(disk.write(&[1; 512], 0, true).is_err(), "{check}");
        drop(disk);
        assert_eq!(medium.contents().bytes(0, 72), header, "{check}");
        medium.contents().write(72, &[0; 8]);
    }
}

/// Found by fuzzing: a preallocation that the storage cannot do failed, and the disk had grown all the same.
#[test]
fn a_resize_that_fails_has_not_happened() {
    for flags in [0, qcow2::capi::QCOW2_OPEN_RAW] {
        let medium = Medium::new(Contents::default());
        create(&medium, 64 << 10, &["cluster_size=512"]).expect("an image");
        let disk = Disk::open::<&str>(&medium, flags, &[]).expect("the image opens");
        let before = disk.length();
        // The storage of this test has no room for so many tables, or for a file of such a length.
        let (more, how) = match flags {
            0 => (4 << 30, qcow2::capi::QCOW2_PREALLOC_METADATA),
            _ => (1 << 44, qcow2::capi::QCOW2_PREALLOC_FALLOC),
        };
        assert!(disk.truncate(before + more, how as u8).is_err());
        assert_eq!(disk.length(), before);
        assert!(disk.read(before, 512).is_err());
        disk.close().expect("the image closes");
    }
}

/// Found by fuzzing: a write by somebody else makes bitmaps out of date, a repair then frees their clusters, and the next image
/// that used the directory's cluster for data was marked corrupt: "overlaps with bitmap directory".
#[test]
fn a_directory_of_bitmaps_that_are_out_of_date_protects_nothing() {
    let seed = include_bytes!("../fuzz/corpus/image/bitmaps");
    let medium = Medium::new(bodies::container::decode(seed).contents);
    assert!(Head::fields(&*medium.contents()).has_bitmaps());
    // Whoever has written last knew nothing of bitmaps: no autoclear bit is set.
    medium.contents().write(88, &[0; 8]);
    assert!(!Head::fields(&*medium.contents()).has_bitmaps());
    let disk = Disk::open::<&str>(&medium, 0, &[]).expect("the image opens");
    disk.write(&[1; 512], 0, true).expect("a write");
    let (report, _) = disk.check(qcow2::capi::QCOW2_CHECK_REPAIR_LEAKS).expect("a repair");
    assert!(report.leaks_fixed > 0, "the bitmaps' clusters were not freed");
    disk.write(&vec![2; disk.length() as usize], 0, true).expect("a write into the freed clusters");
    disk.close().expect("the image closes");
}

/// What our check calls consistent, the stock tool must too.
fn ask_qemu(replayed: &[(PathBuf, Outcome)]) {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        println!("skip: qemu-img is missing; repaired images were not checked by it");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("repaired");
    let mut asked = 0;
    for (input, outcome) in replayed {
        let Some(contents) = &outcome.repaired else { continue };
        write_sparse(contents, &path);
        // Without a shell, and without what the image names: a data file or a backing file is not there.
        let answer = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&path).output();
        let answer = answer.expect("qemu-img runs");
        let said = String::from_utf8_lossy(&answer.stdout) + String::from_utf8_lossy(&answer.stderr);
        if cannot_open(&said) {
            continue;
        }
        assert!(answer.status.success(), "qemu-img check after {}:\n{said}", input.display());
        asked += 1;
    }
    println!("{asked} repaired images passed qemu-img check");
    assert!(asked > 0);
}

/// The stock tool refuses to open what needs another file or a key.
fn cannot_open(said: &str) -> bool {
    ["Could not open", "encryption", "Parameter 'encrypt"].iter().any(|text| said.contains(text))
}

fn write_sparse(contents: &Contents, path: &Path) {
    let file = std::fs::File::create(path).expect("an image file");
    file.set_len(contents.length).expect("a sparse file");
    for at in contents.stored() {
        let bytes = contents.length.saturating_sub(at).min(4096) as usize;
        file.write_all_at(&contents.bytes(at, bytes), at).expect("an image file");
    }
}
