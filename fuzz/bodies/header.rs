//! Headers, extensions and option strings.
//!
//! Byte 0 of the input says what the rest is: the first bytes of a file, or the options of a new image.

use super::disk::{create, judge, Answer, Disk};
use super::image::{look_at_metadata, Outcome};
use super::medium::{Contents, Medium};
use qcow2::capi::*;
use std::ffi::CString;
use testkit::oracle::Head;

/// Longest header that is looked at, bytes.
const MAX_BYTES: usize = 16 << 10;
/// Largest new image, bytes: its tables are written.
const MAX_SIZE: u64 = 16 << 20;

pub fn run(input: &[u8]) -> Outcome {
    let Some((manner, rest)) = input.split_first() else { return Outcome::default() };
    if manner & 1 != 0 {
        return options(rest);
    }
    let mut contents = Contents::default();
    contents.write(0, &rest[..rest.len().min(MAX_BYTES)]);
    if manner & 2 != 0 {
        // Tables that the header names are in the file then.
        contents.set_length(contents.length + (1 << (10 + u32::from(manner >> 4))));
    }
    let opened = look_at_metadata(&contents);
    if opened {
        rewrite(&contents);
    }
    Outcome { opened, ..Outcome::default() }
}

/// Extensions and numbers of a header.
type Told = (Vec<(u32, Vec<u8>)>, [u64; 5]);

/// What a header says besides the fields that a repair or a writable open changes.
fn told(medium: &Medium) -> Option<Told> {
    let flags = QCOW2_OPEN_METADATA_ONLY | QCOW2_OPEN_READ_ONLY;
    let disk = Disk::open::<&str>(medium, flags, &[]).ok()?;
    let info = disk.info();
    let numbers = [
        info.virtual_size,
        u64::from(info.version),
        u64::from(info.cluster_bits),
        u64::from(info.refcount_bits),
        u64::from(info.backing_file_size),
    ];
    Some((disk.extensions(), numbers))
}

/// Opens the image for writing and grows it by nothing: what is not understood must stay as it is.
fn rewrite(contents: &Contents) {
    let medium = Medium::new(contents.clone());
    let before = told(&medium);
    let flags = QCOW2_OPEN_NO_BACKING | QCOW2_OPEN_NO_REPAIR;
    let Ok(disk) = Disk::open::<&str>(&medium, flags, &[]) else {
        assert!(told(&medium) == before, "a refused open changed the image");
        return;
    };
    let _ = disk.write(&[7; 512], 0, true);
    let written = disk.close();
    // A header that names itself as a table may change by that; the guard refuses most of it.
    let head = Head::fields(contents);
    let inside = head.cluster_bytes();
    let names_itself = [head.l1_offset, head.table_offset, head.snapshots_offset].iter().any(|o| *o < inside);
    if written.is_ok() && !names_itself {
        assert!(told(&medium) == before, "a write changed what the header says");
    }
}

/// Options separated by newlines; the first byte chooses a size. An image that is made opens and is what was
/// asked for.
fn options(input: &[u8]) -> Outcome {
    let (bits, text) = input.split_first().unwrap_or((&0, &[]));
    let list: Vec<&[u8]> = text.split(|b| *b == b'\n').take(16).collect();
    for option in &list {
        let Ok(option) = CString::new(*option) else { continue };
        // SAFETY: a string that lives across the call.
        let _: Answer<u64> = judge(i64::from(unsafe { qcow2_check_open_option(option.as_ptr()) }));
    }
    let size = ((1u64 << (bits % 25)) + u64::from(bits >> 6) * 512).min(MAX_SIZE);
    let medium = Medium::new(Contents::default());
    if list.iter().any(|o| o.starts_with(b"size")) || create(&medium, size, &list).is_err() {
        return Outcome::default();
    }
    opens_as_made(&medium, size);
    Outcome { opened: true, ..Outcome::default() }
}

fn opens_as_made(medium: &Medium, size: u64) {
    let disk = Disk::open::<&str>(medium, QCOW2_OPEN_NO_BACKING, &[]).expect("a new image opens");
    assert_eq!(disk.length(), size.div_ceil(512) * 512);
    let (result, found) = disk.check(0).expect("a new image can be checked");
    let counts = (result.corruptions, result.leaks, result.check_errors);
    assert_eq!(counts, (0, 0, 0), "a new image:\n{}", found.join("\n"));
    if size > 0 {
        let last = disk.length() - 512;
        let zero = disk.read(last, 512).expect("a new image can be read");
        assert!(zero.iter().all(|b| *b == 0));
    }
    disk.close().expect("a new image closes");
}
