//! Writers beside whoever hands a bitmap over: each write is in a part whose time it overlaps, in memory and as stored.

use qcow2::testing::ops::bitmaps;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::storage::Storage;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::Arc;
use testkit::bitmaps::bitmaps as stored_bitmaps;
use testkit::images::{new_image, open_over, write, WRITABLE};
use testkit::rng::{base_seed, cases, Rng};
use testkit::sweep::check_clean;

const WRITERS: u64 = 8;
const ROTATIONS: u64 = 10;
const DISK_BYTES: u64 = 1 << 20;
const GRANULARITY: u64 = 512;

/// A write that has returned, and the first and last part that it may be in.
struct Written {
    from: u64,
    to: u64,
    parts: (u64, u64),
}

#[derive(Default)]
struct Clock {
    /// Rotations that have begun, and those that have returned.
    begun: AtomicU64,
    done: AtomicU64,
    writes: AtomicU64,
    over: AtomicBool,
}

fn part_name(number: u64) -> String {
    match number {
        ROTATIONS => "live".into(),
        _ => format!("part {number}"),
    }
}

/// Writes until the rotations are over.
fn writer(handle: &Handle, clock: &Clock, mut rng: Rng) -> Vec<Written> {
    let mut all = Vec::new();
    while !clock.over.load(SeqCst) {
        let from = rng.below(DISK_BYTES / 512) * 512;
        let to = (from + (1 + rng.below(8)) * 512).min(DISK_BYTES);
        let first = clock.done.load(SeqCst);
        write(handle, from, &vec![7; (to - from) as usize]);
        all.push(Written { from, to, parts: (first, clock.begun.load(SeqCst)) });
        clock.writes.fetch_add(1, SeqCst);
    }
    all
}

/// Hands over, again and again, with some writes in between; now and then stores what there is.
fn rotate(handle: &Handle, clock: &Clock, rng: &mut Rng) {
    for number in 0..ROTATIONS {
        let enough = clock.writes.load(SeqCst) + rng.below(40);
        while clock.writes.load(SeqCst) < enough {
            std::thread::yield_now();
        }
        if rng.one_in(3) {
            bitmaps::sync(handle).unwrap();
        }
        clock.begun.fetch_add(1, SeqCst);
        bitmaps::rotate(handle, b"live", part_name(number).as_bytes()).unwrap();
        clock.done.fetch_add(1, SeqCst);
    }
}

/// The granules of each part, by what the handle says.
fn dirty_granules(handle: &Handle) -> Vec<Vec<bool>> {
    let of = |number| {
        let (name, mut dirty, mut at) =
            (part_name(number), vec![false; (DISK_BYTES / GRANULARITY) as usize], 0);
        while let Some((from, to)) = bitmaps::next_dirty(handle, name.as_bytes(), at).unwrap() {
            dirty[(from / GRANULARITY) as usize..(to / GRANULARITY) as usize].fill(true);
            at = to;
        }
        dirty
    };
    (0..=ROTATIONS).map(of).collect()
}

fn check_parts(parts: &[Vec<bool>], written: &[Written]) {
    for one in written {
        let (first, last) = one.parts;
        let granules = (one.from / GRANULARITY) as usize..(one.to / GRANULARITY) as usize;
        let in_one =
            (first..=last).any(|part| parts[part as usize][granules.clone()].iter().all(|dirty| *dirty));
        assert!(
            in_one,
            "the write of {:#x}..{:#x} is in none of the parts {first} to {last}",
            one.from, one.to
        );
    }
    let any =
        |granule: usize| written.iter().any(|w| (w.from..w.to).contains(&(granule as u64 * GRANULARITY)));
    let dirty = (0..parts[0].len()).filter(|granule| parts.iter().any(|part| part[*granule]));
    assert!(dirty.clone().count() > 0 && dirty.clone().all(any), "bits that no write has set");
}

#[test]
fn each_write_is_in_a_part_whose_time_it_overlaps() {
    for case in 0..cases(8) {
        let mut rng = Rng::new(base_seed().wrapping_mul(1000) + case);
        let lazy = format!("lazy_refcounts={}", rng.pick(&["on", "off"]));
        let memory = new_image(DISK_BYTES, &["cluster_size=4096", &lazy]);
        let storage: Arc<dyn Storage> = Arc::clone(&memory) as _;
        let handle = open_over(&storage, None, WRITABLE, &[]).unwrap();
        bitmaps::add(&handle, b"live", Some(GRANULARITY), true).unwrap();
        let clock = Clock::default();
        let written: Vec<Written> = std::thread::scope(|scope| {
            let (handle, clock) = (&handle, &clock);
            let rngs: Vec<Rng> = (0..WRITERS).map(|_| Rng::new(rng.next())).collect();
            let writers: Vec<_> =
                rngs.into_iter().map(|rng| scope.spawn(move || writer(handle, clock, rng))).collect();
            rotate(handle, clock, &mut rng);
            clock.over.store(true, SeqCst);
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
        });
        let parts = dirty_granules(&handle);
        check_parts(&parts, &written);
        handle.close().unwrap();
        let stored = stored_bitmaps(&memory.contents());
        for (number, part) in (0..).zip(&parts) {
            let bitmap = stored.iter().find(|bitmap| bitmap.name == part_name(number)).unwrap();
            assert!(!bitmap.in_use && bitmap.granules() == *part, "{} as stored", bitmap.name);
        }
        assert_eq!(check_clean(&*memory).unwrap(), 0);
    }
}
