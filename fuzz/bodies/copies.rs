//! Whole copies of a disk, and another file below it.

use super::disk::{create, last_error, Disk};
use super::image::first_difference;
use super::medium::{Contents, Medium};
use qcow2::capi::*;

/// Largest disk that is copied, bytes: a broken image may say that it has any size.
const MAX_BYTES: u64 = 4 << 20;
/// How disks are copied.
const FLAGS: [u64; 4] = [0, QCOW2_CONVERT_COMPRESSED, QCOW2_CONVERT_TARGET_ZERO, QCOW2_CONVERT_ALLOCATE];

/// Copies the disk to a new image. `model`: what it holds, if that is known, and then the copy must be one.
pub fn convert(disk: &Disk, manner: u8, model: Option<&[u8]>) {
    let size = disk.length();
    if size > MAX_BYTES {
        return;
    }
    let medium = Medium::new(Contents::default());
    let cluster = if manner & 4 != 0 { "cluster_size=512" } else { "cluster_size=64k" };
    create(&medium, size, &[cluster]).expect("a target is made");
    let target = Disk::open::<&str>(&medium, 0, &[]).expect("a target opens");
    let copied = disk.convert(&target, FLAGS[usize::from(manner & 3)]);
    match model {
        Some(model) => {
            assert!(copied.is_ok(), "a consistent image cannot be copied: {}", last_error());
            let now = target.read(0, model.len()).expect("a copy can be read");
            assert!(now == model, "the copy differs at {:?}", first_difference(&now, model));
            assert_eq!(disk.is_same(&target), Ok(true), "a comparison with the copy");
        }
        None if copied.is_ok() => assert_ne!(disk.is_same(&target), Ok(false), "a comparison with the copy"),
        None => {}
    }
    let (result, found) = target.check(0).expect("a target can be checked");
    let counts = (result.corruptions, result.leaks, result.check_errors);
    assert_eq!(counts, (0, 0, 0), "the target:\n{}", found.join("\n"));
    target.close().expect("a target closes");
}

/// Gives a copy of the image another backing file, then none. `model`: what the disk holds, if that is known, and must go
/// on to show.
pub fn rebase(disk: &Disk, manner: u8, model: Option<&[u8]>) {
    if disk.flush().is_err() || disk.length() > MAX_BYTES {
        return;
    }
    let copy = Medium::new(disk.medium.contents().clone());
    let (empty, other) = (Medium::new(Contents::default()), Medium::new(below(disk, manner, model)));
    let flags = if manner & 1 != 0 { QCOW2_REBASE_COMPRESSED } else { 0 };
    let mut renamed = false;
    for (file, name) in [(Some(&other), Some(c"other")), (None, None)] {
        // What the image had below it all along reads as zeroes.
        let under = if renamed { &other } else { &empty };
        let Ok(disk) = Disk::open_over(&copy, under, 0) else { return assert!(model.is_none()) };
        let below = file.map(|f| Disk::open::<&str>(f, QCOW2_OPEN_RAW | QCOW2_OPEN_READ_ONLY, &[]));
        let below = below.transpose().expect("a raw file opens");
        let done = disk.rebase(below.as_ref(), name, flags);
        let closed = disk.close();
        if copy.contents().was_full {
            return;
        }
        let Some(model) = model else { continue };
        closed.expect("a consistent image closes");
        renamed = done.is_ok() && file.is_some() || done.is_err() && renamed;
        let under = if renamed { &other } else { &empty };
        let disk = Disk::open_over(&copy, under, 0).expect("an image opens after a rebase");
        let now = disk.read(0, model.len()).expect("an image can be read after a rebase");
        assert!(now == model, "after a rebase to {name:?}: {done:?}: {:?}", first_difference(&now, model));
        let (result, found) = disk.check(0).expect("an image can be checked after a rebase");
        assert_eq!(result.corruptions, 0, "after a rebase:\n{}", found.join("\n"));
    }
}

/// A raw file with pieces of what the disk shows, and others; longer or shorter.
fn below(disk: &Disk, manner: u8, model: Option<&[u8]>) -> Contents {
    let mut contents = Contents::default();
    let bytes = model.map_or_else(|| vec![7; disk.length() as usize], <[u8]>::to_vec);
    for (index, piece) in bytes.chunks(2048).enumerate() {
        let at = index as u64 * 2048;
        match (index + usize::from(manner)) % 3 {
            0 => contents.write(at, &vec![manner; piece.len()]),
            1 => contents.write(at, piece),
            _ => true,
        };
    }
    let length = bytes.len() as u64;
    let ends = [length, length / 2, length + 70_000, 0];
    contents.set_length(ends[usize::from(manner >> 1 & 3)] / 512 * 512);
    contents
}
