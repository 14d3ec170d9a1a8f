//! A valid image in which a few fields are broken: what the damage did not touch must stay.

use super::chains::Chains;
use super::container::{self, take};
use super::damage::{Damage, DAMAGE_BYTES};
use super::disk::{create, last_error, Disk};
use super::image::{first_difference, options, repair_all, use_repaired, Outcome};
use super::medium::{Contents, Medium};
use super::script::{Request, REQUEST_BYTES};
use qcow2::capi::*;
use std::ops::Range;
use testkit::oracle::Head;

/// Largest disk, bytes.
const MAX_DISK_BYTES: u64 = 1 << 20;

/// Images with what the library cannot make yet: snapshots, compressed clusters, subclusters, bitmaps.
const FOREIGN: [&[u8]; 9] = [
    include_bytes!("../corpus/image/snapshots"),
    include_bytes!("../corpus/image/snapshots-64"),
    include_bytes!("../corpus/image/snapshot-v2"),
    include_bytes!("../corpus/image/extended-16k"),
    include_bytes!("../corpus/image/extended-snapshot"),
    include_bytes!("../corpus/image/compressed-zlib-4k"),
    include_bytes!("../corpus/image/compressed-zstd-512"),
    include_bytes!("../corpus/image/compressed-snapshot"),
    include_bytes!("../corpus/image/bitmaps"),
];

/// What an input asks for.
struct Plan {
    manner: u8,
    image: Contents,
    damages: Vec<Damage>,
    later: Vec<Request>,
}

fn plan(mut input: &[u8]) -> Plan {
    let [kind, shape, size, fills, damages, manner, later, _] = take(&mut input);
    let requests = |count: u8, input: &mut &[u8]| -> Vec<Request> {
        (0..count).map(|_| Request::decode(take::<REQUEST_BYTES>(input))).collect()
    };
    let fills = requests(fills % 9, &mut input);
    let damages = (0..1 + damages % 4).map(|_| Damage::decode(take::<DAMAGE_BYTES>(&mut input))).collect();
    let later = requests(later % 9, &mut input);
    let start = match kind & 0x80 {
        0 => new_image(kind, shape, size),
        _ => container::decode(FOREIGN[usize::from(shape) % FOREIGN.len()]).contents,
    };
    let image = filled(start, &fills, manner);
    Plan { manner, image, damages, later }
}

fn new_image(kind: u8, shape: u8, size: u8) -> Contents {
    let cluster_bits = [9, 9, 9, 10, 11, 12, 9, 16][usize::from(kind & 7)];
    let order = shape & 7;
    let mut options = vec![format!("cluster_size={}", 1u32 << cluster_bits)];
    if shape & 0x10 != 0 {
        options.push("compat=0.10".into());
    } else {
        options.push(format!("refcount_bits={}", 1 << order.min(6)));
        options.push(format!("lazy_refcounts={}", if shape & 8 != 0 { "on" } else { "off" }));
    }
    if shape & 0x20 != 0 {
        options.push("preallocation=metadata".into());
    }
    if kind & 8 != 0 && shape & 0x10 == 0 {
        options.push("data_file=data".into());
        options.push(format!("data_file_raw={}", if shape & 0x40 != 0 { "on" } else { "off" }));
    }
    let unit = if kind & 0x10 != 0 { 1 << cluster_bits } else { 512 };
    let bytes = (u64::from(size) * unit).min(MAX_DISK_BYTES);
    let medium = Medium::new(Contents::default());
    create(&medium, bytes, &options).expect("an image with valid options is made");
    let contents = medium.contents().clone();
    contents
}

/// Uses the image a little, so that it has tables and data; answers it closed and consistent.
fn filled(start: Contents, fills: &[Request], manner: u8) -> Contents {
    let medium = Medium::new(start);
    let disk = Disk::open(&medium, QCOW2_OPEN_NO_BACKING, &options(manner)).or_else(|_| {
        // Not every option suits every image: lazy refcounts, version 2.
        Disk::open::<&str>(&medium, QCOW2_OPEN_NO_BACKING, &[])
    });
    let disk = disk.expect("a valid image opens");
    fills.iter().for_each(|request| request.issue_small(&disk));
    disk.close().expect("a valid image closes");
    let contents = medium.contents().clone();
    contents
}

pub fn run(input: &[u8]) -> Outcome {
    let Plan { manner, image, damages, later } = plan(input);
    let chains = Chains::follow(&image);
    let mut damaged = image.clone();
    damages.iter().for_each(|damage| damage.apply(&mut damaged, &chains));
    let untouched = chains.untouched(&image, &damaged);
    let before = read_all(&image).expect("a valid image can be read");
    if Head::fields(&image).has_raw_data_file() {
        let alone = image.clone().data_file().bytes(0, before.len());
        assert!(alone == before, "the raw data file differs at {:?}", first_difference(&alone, &before));
    }

    let opened = compare(&damaged, &untouched, &before, "damaged", &damages);
    let mut outcome = repaired(&damaged, manner, &untouched, &before, &damages);
    outcome.opened = opened;
    if let Some(contents) = &outcome.repaired {
        outcome.compared = use_repaired(contents, manner, &later);
    }
    use_damaged(damaged, manner, &later);
    outcome
}

fn read_all(contents: &Contents) -> Option<Vec<u8>> {
    let medium = Medium::new(contents.clone());
    let disk = Disk::open::<&str>(&medium, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_NO_BACKING, &[]).ok()?;
    let bytes = disk.length() as usize;
    disk.read(0, bytes).ok()
}

/// Compares what the damage did not touch; answers whether the image opened.
fn compare(now: &Contents, untouched: &[Range<u64>], before: &[u8], state: &str, damages: &[Damage]) -> bool {
    let medium = Medium::new(now.clone());
    let disk = Disk::open::<&str>(&medium, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_NO_BACKING, &[]);
    let Ok(disk) = disk else { return false };
    for range in untouched {
        let bytes = (range.end.min(disk.length()).saturating_sub(range.start)) as usize;
        let old = &before[range.start as usize..range.start as usize + bytes];
        let read = disk.read(range.start, bytes);
        let new = read.unwrap_or_else(|e| {
            panic!("{range:?} cannot be read: {e:?} {}\n{state}\n{damages:?}", last_error())
        });
        assert!(new == old, "{range:?} differs at {:?}\n{state}\n{damages:?}", first_difference(&new, old));
    }
    true
}

/// Repairs, by a check or by a writable open of a dirty image, and compares.
fn repaired(
    damaged: &Contents,
    manner: u8,
    untouched: &[Range<u64>],
    before: &[u8],
    damages: &[Damage],
) -> Outcome {
    let medium = Medium::new(damaged.clone());
    let flags = if manner & 0x80 != 0 { QCOW2_OPEN_NO_BACKING } else { QCOW2_OPEN_METADATA_ONLY };
    let Ok(disk) = Disk::open::<&str>(&medium, flags, &[]) else { return Outcome::default() };
    let clean = repair_all(&disk);
    let _ = disk.close();
    let contents = medium.contents().clone();
    if contents.was_full {
        return Outcome::default();
    }
    let (clean, said) = clean.unwrap_or_default();
    compare(&contents, untouched, before, &format!("the repair said:\n{said}"), damages);
    Outcome { repaired: clean.then_some(contents), ..Outcome::default() }
}

/// Goes on as if nothing were wrong. Only crashes are findings.
fn use_damaged(damaged: Contents, manner: u8, later: &[Request]) {
    let medium = Medium::new(damaged);
    let opened = Disk::open(&medium, QCOW2_OPEN_NO_BACKING, &options(manner));
    let Ok(disk) = opened else { return };
    later.iter().for_each(|request| request.issue(&disk));
    let _ = disk.close();
}
