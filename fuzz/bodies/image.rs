//! Whole images, of arbitrary bytes or nearly right: open, read, write, check, repair.

use super::container::{self, Container};
use super::disk::{last_error, Answer, CheckResult, Disk, Errno};
use super::layout;
use super::medium::{Contents, Medium};
use super::script::{Model, Request};
use qcow2::capi::*;
use testkit::oracle::Head;

/// Read from each end of a disk, bytes.
const READ_BYTES: u64 = 256 << 10;
/// Largest disk that is compared as a whole, bytes.
const MODEL_BYTES: u64 = 1 << 20;
/// Largest disk that is compared after each request, bytes.
const SMALL_BYTES: usize = 128 << 10;
/// Extents looked at in a walk.
const MAX_EXTENTS: usize = 256;

/// What became of an input, for tests of the tests and for the stock tool.
#[derive(Default)]
pub struct Outcome {
    /// The image opened for reading.
    pub opened: bool,
    /// The image as repaired, when the library calls it consistent now.
    pub repaired: Option<Contents>,
    /// It was used as an array of bytes and was one.
    pub compared: bool,
}

pub fn run(input: &[u8]) -> Outcome {
    let Container { manner, requests, contents } = container::decode(input);
    look_at_metadata(&contents);
    let opened = read_everything(&contents);
    use_as_it_is(&contents, manner, &requests);
    let mut outcome = repair(&contents, manner);
    outcome.opened = opened;
    if let Some(repaired) = &outcome.repaired {
        outcome.compared = use_repaired(repaired, manner, &requests);
    }
    outcome
}

/// The open options that a byte stands for.
pub fn options(manner: u8) -> Vec<&'static str> {
    let mut options = Vec::new();
    let choices: [(u8, &[&str]); 5] = [
        (1, &["lazy-refcounts=on"]),
        (2, &["l2-cache-size=1k", "refcount-cache-size=1k"]),
        (4, &["discard-no-unref=on"]),
        (8, &["detect-zeroes=unmap"]),
        (16, &["pass-discard-other=on"]),
    ];
    for (bit, given) in choices {
        if manner & bit != 0 {
            options.extend(given);
        }
    }
    if manner & 0x60 == 0x60 {
        options.push("overlap-check=none");
    } else if manner & 0x60 == 0x40 {
        options.push("overlap-check=all");
    }
    options
}

const ANY_BACKING: u64 = QCOW2_OPEN_NO_BACKING;

/// Looks at everything that needs no guest I/O. Nothing may be written.
pub fn look_at_metadata(contents: &Contents) -> bool {
    let medium = Medium::new(contents.clone());
    let Ok(disk) = Disk::open::<&str>(&medium, QCOW2_OPEN_METADATA_ONLY | QCOW2_OPEN_READ_ONLY, &[]) else {
        return false;
    };
    let info = disk.info();
    assert_eq!(info.virtual_size, disk.length());
    disk.extensions();
    disk.snapshots(16);
    assert!(disk.read(0, 1).is_err(), "guest I/O on a handle for metadata");
    let _ = disk.check(0);
    assert!(disk.check(QCOW2_CHECK_REPAIR_LEAKS).is_err(), "a repair on a read-only handle");
    disk.close().expect("a read-only handle closes");
    true
}

fn read_everything(contents: &Contents) -> bool {
    let medium = Medium::new(contents.clone());
    let Ok(disk) = Disk::open::<&str>(&medium, QCOW2_OPEN_READ_ONLY | ANY_BACKING, &[]) else { return false };
    let size = disk.length();
    walk(&disk, 0);
    let tail = size.saturating_sub(READ_BYTES);
    walk(&disk, tail);
    for start in [0, tail] {
        let end = size.min(start + READ_BYTES);
        let mut at = start;
        while at < end {
            // An odd length, so that requests cross clusters.
            let bytes = (end - at).min(51_000);
            let _ = disk.read(at, bytes as usize);
            at += bytes;
        }
    }
    assert!(disk.read(size, 1).is_err(), "a read past the end");
    let _ = disk.checksum();
    assert!(disk.write(&[1], 0, false).is_err(), "a write to a read-only handle");
    disk.commit_is_refused();
    disk.close().expect("a read-only handle closes");
    true
}

fn walk(disk: &Disk, from: u64) {
    let size = disk.length();
    let mut at = from;
    for _ in 0..MAX_EXTENTS {
        if at >= size {
            return;
        }
        match disk.status(at, size - at) {
            Ok(extent) => at += extent.length,
            Err(_) => at += 65536,
        }
    }
}

/// Writes to the image without a repair, as a guest would that knows nothing. Only crashes are findings.
fn use_as_it_is(contents: &Contents, manner: u8, requests: &[Request]) {
    let medium = Medium::new(contents.clone());
    let Ok(disk) = Disk::open(&medium, ANY_BACKING, &options(manner)) else { return };
    for request in requests {
        request.issue(&disk);
    }
    let _ = disk.check(0);
    let _ = disk.close();
    let again = Disk::open::<&str>(&medium, QCOW2_OPEN_READ_ONLY | ANY_BACKING, &[]);
    if let Ok(disk) = again {
        let _ = disk.read(0, disk.length().min(READ_BYTES) as usize);
    }
}

fn is_clean(result: &CheckResult) -> bool {
    (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0)
}

/// Repairs leaks, then everything. What the library then calls consistent must be so at the next look.
fn repair(contents: &Contents, manner: u8) -> Outcome {
    let medium = Medium::new(contents.clone());
    let Ok(disk) = Disk::open::<&str>(&medium, QCOW2_OPEN_METADATA_ONLY, &[]) else {
        return Outcome::default();
    };
    if manner & 0x80 != 0 {
        let _ = disk.check(QCOW2_CHECK_REPAIR_LEAKS);
    }
    let repaired = repair_all(&disk);
    disk.close().expect("a handle for metadata closes");
    let was_full = medium.contents().was_full;
    let clean = repaired.is_ok_and(|(clean, _)| clean) && !was_full;
    let contents = medium.contents().clone();
    Outcome { repaired: clean.then_some(contents), ..Outcome::default() }
}

/// Answers whether the image is consistent now, and what the repair said.
pub fn repair_all(disk: &Disk) -> Answer<(bool, String)> {
    let (first, said) = disk.check(QCOW2_CHECK_REPAIR_LEAKS | QCOW2_CHECK_REPAIR_ERRORS)?;
    let said = said.join("\n");
    if first.corruptions != 0 || first.check_errors != 0 {
        return Ok((false, said));
    }
    let (next, found) = disk.check(0)?;
    let found = found.join("\n");
    assert!(is_clean(&next), "after a repair that left nothing:\n{found}\nthe repair said:\n{said}");
    Ok((true, said))
}

/// Uses a consistent image as an array of bytes; answers whether it could be compared.
pub fn use_repaired(contents: &Contents, manner: u8, requests: &[Request]) -> bool {
    if !layout::is_plain(contents) {
        return false;
    }
    let medium = Medium::new(contents.clone());
    let Ok(disk) = Disk::open(&medium, ANY_BACKING, &options(manner)) else { return false };
    if disk.length() > MODEL_BYTES {
        return false;
    }
    // A compressed cluster may be nonsense in a consistent image.
    let Some(mut model) = Model::new(&disk) else { return false };
    for request in requests {
        request.issue_with_model(&disk, &mut model);
        if medium.contents().was_full {
            return false;
        }
        if model.bytes.len() > SMALL_BYTES {
            continue;
        }
        let now = disk.read(0, model.bytes.len()).expect("a consistent image can be read");
        assert!(
            now == model.bytes,
            "after {request:?} the disk differs at {:?}",
            first_difference(&now, &model.bytes)
        );
    }
    let closed = disk.close();
    assert!(closed.is_ok(), "a consistent image does not close after {requests:?}: {}", last_error());
    let head = Head::fields(&*medium.contents());
    let disk = Disk::open::<&str>(&medium, ANY_BACKING, &[]).expect("a consistent image opens again");
    let now = disk.read(0, model.bytes.len()).expect("a consistent image can be read");
    assert!(
        now == model.bytes,
        "after the close the disk differs at {:?}",
        first_difference(&now, &model.bytes)
    );
    let (result, found) = disk.check(0).expect("a consistent image can be checked");
    let leaks_may_be = head.has_bitmaps() || layout::counts_past_end(contents);
    // Two guest clusters in one host cluster: a write to one leaves the other alone with it, and without COPIED,
    // as with the stock tool.
    let copied_may_be_missing = layout::shares_clusters(contents);
    let told = |f: &&String| copied_may_be_missing && f.starts_with("ERROR OFLAG_COPIED");
    let known = CheckResult {
        leaks: if leaks_may_be { 0 } else { result.leaks },
        corruptions: result.corruptions - found.iter().filter(told).count() as u64,
        ..result
    };
    assert!(is_clean(&known), "after {requests:?} with {:?}:\n{}", options(manner), found.join("\n"));
    true
}

pub fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| a != b)
}

/// The errno of an answer.
pub fn errno<T>(answer: Answer<T>) -> Option<i32> {
    answer.err().map(|Errno(e)| e)
}
