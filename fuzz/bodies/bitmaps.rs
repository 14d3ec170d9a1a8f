//! An image with dirty bitmaps whose directory, tables, names or bits are broken: whatever opens is used, and no granule
//! that has changed is called clean.

use super::container::take;
use super::disk::{create, judge, Answer, Disk, Errno};
use super::image::Outcome;
use super::medium::{Contents, Medium};
use qcow2::capi::*;
use std::ffi::{CStr, CString};
use testkit::bitmaps::{bitmaps, directory};
use testkit::oracle::Head;

const SECTOR: u64 = 512;
/// Calls that look at ranges of one bitmap.
const MAX_RANGES: usize = 4096;

struct Seen {
    name: CString,
    flags: u32,
    dirty_bytes: u64,
}

fn text(number: u8) -> CString {
    let name = match number & 7 {
        5 => "a name with spaces, and more than sixty bytes, so that an entry has two lines".into(),
        6 => "n".repeat(1023),
        other => format!("b{other}"),
    };
    CString::new(name).expect("a name without a NUL")
}

fn call(
    disk: &Disk,
    function: unsafe extern "C" fn(*mut qcow2_image, *const std::ffi::c_char) -> i32,
    name: &CStr,
) -> Answer<()> {
    // SAFETY: an open handle and a name that lives across the call, here and below.
    judge(i64::from(unsafe { function(disk.handle(), name.as_ptr()) })).map(drop)
}

fn add(disk: &Disk, name: &CStr, granularity: u64, flags: u64) -> Answer<()> {
    // SAFETY: as above.
    judge(i64::from(unsafe { qcow2_bitmap_add(disk.handle(), name.as_ptr(), granularity, flags) })).map(drop)
}

fn sync(disk: &Disk) -> Answer<()> {
    // SAFETY: as above.
    judge(i64::from(unsafe { qcow2_bitmap_sync(disk.handle()) })).map(drop)
}

fn listed(disk: &Disk) -> Vec<Seen> {
    let mut all = Vec::new();
    loop {
        // SAFETY: numbers and a pointer that may be NULL.
        let mut info: qcow2_bitmap_info = unsafe { std::mem::zeroed() };
        info.struct_size = std::mem::size_of::<qcow2_bitmap_info>();
        // SAFETY: the struct lives across the call.
        if judge(i64::from(unsafe { qcow2_bitmap_list(disk.handle(), all.len(), &mut info) })).is_err() {
            return all;
        }
        // SAFETY: valid until the next call of the function.
        let name = unsafe { CStr::from_ptr(info.name) }.to_owned();
        all.push(Seen { name, flags: info.flags, dirty_bytes: info.dirty_bytes });
    }
}

/// The dirty ranges of a bitmap, as far as they are asked for; the bytes of all of them agree with the list.
fn ranges(disk: &Disk, seen: &Seen) -> Answer<Vec<(u64, u64)>> {
    let (mut all, mut at) = (Vec::new(), 0);
    while all.len() < MAX_RANGES {
        let (mut start, mut length) = (0, 0);
        // SAFETY: the variables live across the call.
        let found = judge(i64::from(unsafe {
            qcow2_bitmap_next_dirty(disk.handle(), seen.name.as_ptr(), at, &mut start, &mut length)
        }))?;
        if found == 0 {
            let bytes: u64 = all.iter().map(|(from, to)| to - from).sum();
            assert_eq!(bytes, seen.dirty_bytes, "{:?}: {all:?}", seen.name);
            return Ok(all);
        }
        assert!(
            start >= at && length > 0 && start + length <= disk.length(),
            "{start} and {length} from {at}"
        );
        all.push((start, start + length));
        at = start + length;
    }
    Ok(all)
}

/// Whatever is enabled and believed calls a range dirty.
fn assert_dirty(disk: &Disk, from: u64, to: u64) {
    for seen in listed(disk) {
        if seen.flags != QCOW2_BITMAP_AUTO || from >= to {
            continue;
        }
        let Ok(all) = ranges(disk, &seen) else { continue };
        let covered = all.iter().any(|(start, end)| *start <= from && *end >= to);
        assert!(covered || all.len() == MAX_RANGES, "{:?} calls {from}..{to} clean: {all:?}", seen.name);
    }
}

fn granularity(byte: u8) -> u64 {
    SECTOR << (byte & 7)
}

/// A valid image with bitmaps, some of them in use if it is left by a writer that died.
fn start(input: &mut &[u8]) -> Contents {
    let [shape, size, count, died] = take(input);
    let cluster = 512u64 << [0, 0, 1, 3, 7, 2, 0, 0][usize::from(shape & 7)];
    let options = [
        format!("cluster_size={cluster}"),
        format!("lazy_refcounts={}", if shape & 8 != 0 { "on" } else { "off" }),
    ];
    let medium = Medium::new(Contents::default());
    create(&medium, (1 + u64::from(size)) * SECTOR, &options).expect("an image with valid options is made");
    let disk = Disk::open::<&str>(&medium, 0, &[]).expect("a valid image opens");
    for number in 0..1 + count % 4 {
        let [kind, at] = take(input);
        let flags = if kind & 0x40 != 0 { QCOW2_BITMAP_DISABLED } else { 0 };
        let _ = add(&disk, &text(kind >> 3 & 7), granularity(kind ^ number), flags);
        let at = u64::from(at) * SECTOR % disk.length();
        disk.write(&[number + 1; 512], at / SECTOR * SECTOR, false).expect("a write to a valid image");
    }
    if died & 1 != 0 {
        let _ = disk.flush();
        let left = medium.contents().clone();
        disk.close().expect("a valid image closes");
        return left;
    }
    disk.close().expect("a valid image closes");
    let left = medium.contents().clone();
    left
}

/// Breaks one field.
fn damage(c: &mut Contents, bytes: [u8; 8]) {
    let [kind, which, low, high, v0, v1, v2, v3] = bytes;
    let place = u64::from(u16::from_le_bytes([low, high]));
    let value = u64::from(u32::from_le_bytes([v0, v1, v2, v3]));
    let Some((offset, length, _)) = directory(c) else { return };
    let all = bitmaps(c);
    let cluster = Head::fields(c).cluster_bytes();
    let Some(bitmap) = all.get(usize::from(which) % all.len().max(1)) else { return };
    let entry = bitmap.table.0.wrapping_add(place % bitmap.table.1.max(1) * 8);
    match kind % 8 {
        0 => c.write(offset + place % length.max(1), &[v0]),
        // Its fixed part.
        1 => c.write(offset + place % 24, &(value as u32).to_be_bytes()),
        2 => c.write(entry, &(value << (v0 & 31)).to_be_bytes()),
        // A cluster that is there.
        3 => c.write(entry, &(value % (c.length / cluster).max(1) * cluster).to_be_bytes()),
        4 => match bitmap.entries.iter().find(|entry| **entry > 1) {
            Some(bits) => c.write(bits + place % cluster, &value.to_le_bytes()),
            None => true,
        },
        // The header: the extension, or the bit that says that they are in force.
        5 => c.write(104 + place % 64, &[v0]),
        6 => c.write(88, &value.to_be_bytes()),
        _ => c.set_length(value % (c.length + cluster)),
    };
}

fn look(contents: &Contents) -> (bool, bool) {
    let medium = Medium::new(contents.clone());
    let Ok(disk) = Disk::open::<&str>(&medium, QCOW2_OPEN_READ_ONLY, &[]) else { return (false, false) };
    // In C a name ends at its first zero byte, and no bitmap is found by what is before it.
    let cut = bitmaps(contents).iter().any(|bitmap| bitmap.name.contains('\0'));
    for seen in listed(&disk) {
        let told = ranges(&disk, &seen);
        let refused = told == Err(Errno(libc::EINVAL)) || cut && told == Err(Errno(libc::ENOENT));
        assert!(seen.flags & QCOW2_BITMAP_IN_USE == 0 || refused, "{told:?}");
    }
    (true, disk.check(0).is_ok_and(|(result, _)| result.corruptions == 0))
}

fn request(disk: &Disk, bytes: [u8; 4]) {
    let [kind, at, length, more] = bytes;
    let from = u64::from(at) * SECTOR % disk.length().max(1);
    let to = (from + (1 + u64::from(length % 64)) * 256).min(disk.length());
    let (name, other) = (text(more), text(more >> 3));
    let changed = match kind % 16 {
        0..=2 => disk.write(&vec![kind; (to - from) as usize], from, more & 1 != 0),
        3 => disk.write_zeroes(from, to - from, u64::from(more & 1) * QCOW2_REQ_UNMAP),
        4 => disk.discard(from, to - from),
        5 => disk.write_compressed(&vec![kind; (to - from) as usize], from),
        other_kind => {
            let _ = match other_kind {
                6 => add(disk, &name, granularity(at), u64::from(length & 1) * QCOW2_BITMAP_DISABLED),
                7 => call(disk, qcow2_bitmap_remove, &name),
                8 => call(disk, qcow2_bitmap_clear, &name),
                9 => call(
                    disk,
                    if length & 1 != 0 { qcow2_bitmap_enable } else { qcow2_bitmap_disable },
                    &name,
                ),
                10 => call(disk, qcow2_bitmap_recover, &name),
                11 => sync(disk),
                12 => disk.hand_over(),
                13 => disk.reopen(true).and_then(|()| disk.reopen(false)),
                // SAFETY: as above.
                14 => judge(i64::from(unsafe {
                    qcow2_bitmap_merge(disk.handle(), name.as_ptr(), std::ptr::null_mut(), other.as_ptr())
                }))
                .map(drop),
                // SAFETY: as above.
                _ => judge(i64::from(unsafe {
                    qcow2_bitmap_rotate(disk.handle(), name.as_ptr(), other.as_ptr())
                }))
                .map(drop),
            };
            return;
        }
    };
    if changed.is_ok() {
        assert_dirty(disk, from, to);
    }
}

/// What has been stored is what the handle said last.
fn assert_stored(contents: &Contents, said: &[(Seen, Vec<(u64, u64)>)]) {
    let stored = bitmaps(contents);
    for (seen, ranges) in said.iter().filter(|(seen, _)| seen.flags & QCOW2_BITMAP_IN_USE == 0) {
        let name = seen.name.to_string_lossy();
        let bitmap = stored.iter().find(|b| b.name == name).unwrap_or_else(|| panic!("{name} is gone"));
        assert!(!bitmap.in_use, "{name} is in use after a close");
        for (number, dirty) in bitmap.granules().iter().enumerate() {
            let at = (number as u64) << bitmap.granularity_bits;
            let wanted = ranges.iter().any(|(from, to)| (*from..*to).contains(&at));
            assert_eq!(*dirty, wanted, "{name}, granule {number}");
        }
    }
}

pub fn run(mut input: &[u8]) -> Outcome {
    let mut contents = start(&mut input);
    let [damages, requests] = take(&mut input);
    for _ in 0..damages % 4 {
        damage(&mut contents, take(&mut input));
    }
    let (opened, sound) = look(&contents);
    let mut outcome = Outcome { opened, ..Outcome::default() };
    let medium = Medium::new(contents);
    let drops = requests & 0x80 != 0;
    let options = if drops { &["drop-damaged-bitmaps=on"][..] } else { &[] };
    let Ok(disk) = Disk::open(&medium, 0, options) else { return outcome };
    for _ in 0..requests % 32 {
        request(&disk, take(&mut input));
    }
    let said: Vec<_> = listed(&disk)
        .into_iter()
        .filter_map(|seen| ranges(&disk, &seen).ok().map(|ranges| (seen, ranges)))
        .filter(|(_, ranges)| ranges.len() < MAX_RANGES)
        .collect();
    let closed = disk.close().is_ok();
    let contents = medium.contents().clone();
    if sound && closed && !contents.was_full {
        assert_stored(&contents, &said);
        outcome.compared = true;
    }
    look(&contents);
    outcome
}
