//! Races made exact: one request is parked in the middle of its I/O, another one runs on the same clusters,
//! then the first goes on. The result is that of one order or the other, and the image is clean (story C1).

mod testkit;

use qcow2::error::ErrorKind;
use qcow2::image::ZeroFlags;
use qcow2::ops::check::CheckOptions;
use qcow2::ops::handle::Handle;
use qcow2::ops::resize::resize;
use qcow2::options::Preallocation;
use qcow2::storage::Purpose;
use std::time::Duration;
use testkit::overlay::Overlay;
use testkit::recorder::Kind;
use testkit::setup::{self, Setup};
use testkit::sweep::{check_clean, recover};
use testkit::{oracle, SECTOR};

/// How long a request is given to reach the point at which it is parked, or to finish beside a parked one.
const PATIENCE: Duration = Duration::from_millis(40);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Writes clusters that have data.
    InPlace,
    /// Writes clusters that have none.
    Allocate,
    Zero,
    ZeroUnmap,
    Discard,
    Flush,
    Grow,
    Shrink,
    Check,
    Reopen,
    Read,
}

use Act::*;

const ACTS: [Act; 11] =
    [InPlace, Allocate, Zero, ZeroUnmap, Discard, Flush, Grow, Shrink, Check, Reopen, Read];

/// Sectors of the disk at first, and after a shrink: the contested ones are past it.
const SIZE: u64 = 96;
const SHRUNK: u64 = 32;

/// Contested sectors: some with data, some without.
fn range(act: Act) -> Option<(u64, u64)> {
    match act {
        InPlace => Some((40, 12)),
        Allocate => Some((50, 12)),
        Zero | ZeroUnmap | Discard => Some((40, 24)),
        _ => None,
    }
}

fn run(handle: &Handle, act: Act, tag: u32) -> Result<(), String> {
    let disk = handle.disk();
    let (sector, count) = range(act).unwrap_or((0, 0));
    let done = match act {
        InPlace | Allocate => setup::write(handle, sector, count, tag, false),
        Zero | ZeroUnmap => {
            let flags = ZeroFlags { unmap: act == ZeroUnmap, no_fallback: false };
            disk.write_zeroes(sector * SECTOR, count * SECTOR, flags, false)
        }
        Discard => disk.discard(sector * SECTOR, count * SECTOR),
        Flush => disk.flush(),
        Grow => resize(handle, 4 * SIZE * SECTOR, Preallocation::Off),
        Shrink => resize(handle, SHRUNK * SECTOR, Preallocation::Off),
        Reopen => handle.reopen(false, false, &[], None),
        Read => setup::read(handle, 36, 30).map(drop),
        Check => {
            let report = handle.check(CheckOptions::default(), &mut |_, _| {}, &mut |_, _| true);
            match report {
                Ok(r) if r.corruptions + r.check_errors > 0 => return Err(format!("{r:?}")),
                other => other.map(drop),
            }
        }
    };
    match done {
        Err(e) if e.kind() == ErrorKind::PastEnd => Ok(()),
        other => other.map_err(|e| e.to_string()),
    }
}

/// What sector `s` may hold after both, given what it held.
fn allowed(s: u64, before: u32, acts: [(Act, u32); 2]) -> Vec<u32> {
    let mut orders = Vec::new();
    for order in [[0, 1], [1, 0]] {
        let mut values = vec![before];
        for i in order {
            let (act, tag) = acts[i];
            if !range(act).is_some_and(|(first, count)| (first..first + count).contains(&s)) {
                continue;
            }
            match act {
                InPlace | Allocate => values = vec![tag],
                Zero | ZeroUnmap => values = vec![0],
                _ => values.push(0),
            }
        }
        orders.extend(values);
    }
    orders
}

/// Runs `first` parked at `kind`, `second` beside it. True if `first` was parked.
fn race(
    setup: &Setup,
    first: Act,
    second: Act,
    kind: Kind,
    purpose: Option<Purpose>,
) -> Result<bool, String> {
    let recorder = setup.recorder();
    let handle = setup.open(recorder.clone()).map_err(|e| e.to_string())?;
    // Something is on its way to the medium, so that a flush has work.
    setup::write(&handle, 41, 2, 9, false).map_err(|e| e.to_string())?;
    let before = setup::read_all(&handle).map_err(|e| e.to_string())?;
    let hold = recorder.hold(kind, purpose);
    let mut parked = false;
    let mut results = [Ok(()), Ok(())];
    std::thread::scope(|scope| {
        let one = scope.spawn(|| run(&handle, first, 1));
        let started = std::time::Instant::now();
        while !parked && !one.is_finished() && started.elapsed() < PATIENCE {
            parked = recorder.wait_parked(hold, Duration::from_millis(1));
        }
        if !parked {
            recorder.release(hold);
        }
        let two = scope.spawn(|| run(&handle, second, 2));
        let started = std::time::Instant::now();
        while parked && !two.is_finished() && started.elapsed() < PATIENCE / 8 {
            std::thread::sleep(Duration::from_micros(200));
        }
        recorder.release(hold);
        results = [one.join().expect("no panic"), two.join().expect("no panic")];
    });
    for result in results {
        result?;
    }
    judge(setup, &recorder, handle, &before, [(first, 1), (second, 2)])?;
    Ok(parked)
}

fn judge(
    setup: &Setup,
    recorder: &std::sync::Arc<testkit::recorder::Recorder>,
    handle: Handle,
    before: &[u32],
    acts: [(Act, u32); 2],
) -> Result<(), String> {
    let tags = setup::read_all(&handle).map_err(|e| e.to_string())?;
    for (s, tag) in tags.iter().enumerate() {
        let old = before.get(s).copied().unwrap_or(0);
        let may = allowed(s as u64, old, acts);
        let cut = acts.iter().any(|(a, _)| *a == Shrink);
        if !(may.contains(tag) || cut && *tag == 0 && s as u64 >= SHRUNK) {
            return Err(format!("sector {s} reads {tag:#x}, may be {may:x?}"));
        }
    }
    // The process dies: what is in the file must be whole, with whatever values were on their way.
    let bytes = recorder.contents();
    let (dirty, length) = (oracle::is_dirty(&bytes), bytes.len() as u64);
    recover(setup, &Overlay::new(bytes.into(), Default::default(), length), dirty)?;
    handle.close().map_err(|e| format!("close: {e}"))?;
    let leaks = check_clean(&**recorder)?;
    let handle = setup.open(recorder.clone()).map_err(|e| e.to_string())?;
    let again = setup::read_all(&handle).map_err(|e| e.to_string())?;
    match (again == tags, leaks) {
        (true, 0) => Ok(()),
        (false, _) => Err("closing has changed what is read".into()),
        (_, leaks) => Err(format!("{leaks} leaks")),
    }
}

#[test]
fn every_pair_with_the_first_one_parked() {
    let points = [
        (Kind::Write, Some(Purpose::Data)),
        (Kind::Write, Some(Purpose::L2)),
        (Kind::Write, Some(Purpose::L1)),
        (Kind::Write, Some(Purpose::Header)),
        (Kind::Write, Some(Purpose::RefcountBlock)),
        (Kind::Read, Some(Purpose::Data)),
        (Kind::Sync, None),
        (Kind::SetLength, None),
    ];
    let jobs: Vec<_> = [(9, false, None), (9, true, None), (10, false, Some(80)), (12, true, Some(80))]
        .into_iter()
        .flat_map(|(cluster_bits, lazy, backing)| {
            let setup = Setup { cluster_bits, lazy, backing, sectors: SIZE, prefill: 52, ..Setup::default() };
            points.into_iter().flat_map(move |point| {
                ACTS.into_iter().flat_map(move |a| ACTS.into_iter().map(move |b| (setup, point, a, b)))
            })
        })
        .collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let parked = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        // Mostly they wait.
        for _ in 0..8 {
            scope.spawn(|| loop {
                let number = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let Some((setup, (kind, purpose), a, b)) = jobs.get(number) else { return };
                match race(setup, *a, *b, *kind, *purpose) {
                    Ok(true) => {
                        parked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    }
                    Ok(false) => {}
                    Err(e) => panic!("{a:?} parked at {kind:?} {purpose:?}, beside it {b:?}: {e}\n{setup:?}"),
                }
            });
        }
    });
    let parked = parked.into_inner();
    testkit::tell!("{} pairs, in {parked} of them the first request was parked", jobs.len());
    assert!(parked > jobs.len() / 6, "the requests were not caught in the middle");
}

/// A request that is inside keeps the clusters that it has looked up, whoever lets go of them (R4).
fn a_parked_request_keeps_its_clusters(kind: Kind) {
    let setup = Setup { sectors: SIZE, prefill: 52, ..Setup::default() };
    let recorder = setup.recorder();
    let handle = setup.open(recorder.clone()).unwrap();
    let owners = oracle::Owners::of(&recorder.contents());
    let is_ours = |u: &oracle::Use| matches!(u, oracle::Use::Data { guest_cluster: 40..=43 });
    let ours: Vec<u64> = owners.0.iter().filter(|(_, u)| u.iter().any(is_ours)).map(|(c, _)| *c).collect();
    assert_eq!(ours.len(), 4);
    let reused = |from: usize| {
        let log = recorder.log();
        let hits = |e: &&testkit::recorder::Event| {
            e.purpose == Purpose::Data
                && e.what == testkit::recorder::What::Write
                && e.guest.is_some()
                && ours.iter().any(|c| c * SECTOR < e.offset + e.length && e.offset < (c + 1) * SECTOR)
        };
        log[from..].iter().filter(hits).count()
    };
    let write = |sector: u64, tag: u32| {
        let range = Some((sector * SECTOR, (sector + 8) * SECTOR));
        recorder.request(range, None, || setup::write(&handle, sector, 8, tag, false)).unwrap();
        handle.disk().flush().unwrap();
        handle.disk().flush().unwrap();
    };
    let hold = recorder.hold(kind, Some(Purpose::Data));
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| match kind {
            Kind::Read => setup::read(&handle, 40, 4).unwrap(),
            _ => setup::write(&handle, 40, 4, 5, false).map(|()| vec![0]).unwrap(),
        });
        assert!(recorder.wait_parked(hold, Duration::from_secs(10)));
        handle.disk().discard(40 * SECTOR, 4 * SECTOR).unwrap();
        handle.disk().flush().unwrap();
        handle.disk().flush().unwrap();
        let from = recorder.log_length();
        write(60, 7);
        let early = reused(from);
        recorder.release(hold);
        assert_eq!(early, 0, "a cluster is reused under a request that has looked it up");
        let saw = inside.join().unwrap();
        assert!(saw.iter().all(|t| *t == 0 || *t == setup::PREFILL_TAG), "{saw:x?}");
    });
    let from = recorder.log_length();
    write(70, 8);
    assert!(reused(from) > 0, "the clusters are free once the request has left");
    assert_eq!(setup::read(&handle, 60, 8).unwrap(), [7; 8]);
    handle.close().unwrap();
    assert_eq!(check_clean(&*recorder), Ok(0));
}

#[test]
fn a_parked_reader_keeps_its_clusters() {
    a_parked_request_keeps_its_clusters(Kind::Read);
}

#[test]
fn a_parked_writer_keeps_its_clusters() {
    a_parked_request_keeps_its_clusters(Kind::Write);
}
