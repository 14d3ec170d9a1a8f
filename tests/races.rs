//! Races made exact: one request is parked in the middle of its I/O, another one runs on the same clusters,
//! then the first goes on. The result is that of one order or the other, and the image is clean (story C1).
//! The operations are the rows of `tests/kit/src/rows.rs`.

use qcow2::testing::error::Result;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::storage::Purpose;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Mutex;
use std::time::Duration;
use testkit::encrypted::Encrypted;
use testkit::race::{at_each_call, describe, must_pass, Device, Part, Played, Point, Scene};
use testkit::recorder::Kind;
use testkit::rng::{base_seed, effort, hash_bytes, most_cases, share, Rng};
use testkit::rows::{named, Gives, Row, ROWS};
use testkit::setup::{self, Mode, Setup};
use testkit::sweep::check_clean;
use testkit::{oracle, SECTOR};

/// After so many nothing more is tried.
const MOST_FAILURES: usize = 8;

/// Runs `work` for every job on threads that mostly wait.
fn on_threads<J: Sync>(jobs: &[J], work: impl Fn(&J) -> std::result::Result<(), String> + Sync) {
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| loop {
                let number = next.fetch_add(1, Ordering::SeqCst);
                let Some(job) = jobs.get(number) else { return };
                if let Err(e) = work(job) {
                    failures.lock().unwrap().push((number, e));
                }
                if failures.lock().unwrap().len() >= MOST_FAILURES {
                    return;
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    if let Some((first, _)) = failures.first() {
        let texts: Vec<&str> = failures.iter().map(|(_, text)| text.as_str()).collect();
        panic!("case {first}: at least {} jobs have failed\n{}", texts.len(), texts.join("\n\n"));
    }
}

/// A share of all, and of these the first ones only where a test of the kit says so.
fn some_of<J>(jobs: Vec<J>) -> Vec<J> {
    let mut jobs = share(jobs);
    jobs.truncate(most_cases());
    jobs
}

/// What races have covered.
#[derive(Default)]
struct Covered {
    races: AtomicU64,
    parked: AtomicU64,
    beside: AtomicU64,
}

impl Covered {
    fn play(&self, scene: &Scene, parts: &[Part], release: &[usize]) -> std::result::Result<Played, String> {
        let played = scene.play(parts, release);
        let played = played.map_err(|e| format!("{}: {e}\n{:?}", describe(parts), scene.setup))?;
        self.races.fetch_add(1, Ordering::SeqCst);
        self.parked.fetch_add(u64::from(played.parked != 0), Ordering::SeqCst);
        self.beside.fetch_add(u64::from(played.beside != 0), Ordering::SeqCst);
        Ok(played)
    }
}

/// Cache modes, eager and lazy, with and without a backing disk, a snapshot and a data file, large and small caches
/// and clusters.
fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for mode in [Mode::Writeback, Mode::MetadataWritethrough] {
        for lazy in [false, true] {
            for backing in [None, Some(80)] {
                let tiny_cache = lazy == backing.is_some();
                let cluster_bits = if backing.is_some() && mode == Mode::Writeback { 10 } else { 9 };
                let ahead = !lazy;
                let setup =
                    Setup { cluster_bits, lazy, mode, backing, tiny_cache, ahead, ..Setup::default() };
                // Entries that are shared with a snapshot: every write is an allocating one, and tables are copied.
                let snapshot = lazy == (mode == Mode::Writeback) && backing.is_none();
                scenes.push(Scene::new(setup, snapshot));
            }
        }
    }
    let plain = Setup {
        mode: Mode::MetadataWritethrough,
        backing: Some(80),
        data_file: Some(false),
        ..Setup::default()
    };
    let raw = Setup { tiny_cache: true, ahead: true, data_file: Some(true), ..Setup::default() };
    scenes.extend([plain, raw].map(|setup| Scene::new(setup, false)));
    // Sectors of either numbering, clusters of several of them; a base with a key of its own.
    let below = Setup {
        cluster_bits: 10,
        encrypted: Some(Encrypted::Luks(1)),
        backing: Some(80),
        encrypted_backing: true,
        ..Setup::default()
    };
    let lazy = Setup { lazy: true, tiny_cache: true, encrypted: Some(Encrypted::Aes), ..Setup::default() };
    scenes.extend([(below, false), (lazy, true)].map(|(setup, snapshot)| Scene::new(setup, snapshot)));
    scenes
}

#[test]
fn every_pair_with_the_first_one_parked() {
    let scenes = scenes();
    let mut jobs: Vec<(&Scene, &'static Row, &'static Row)> = Vec::new();
    for scene in &scenes {
        let fitting = || ROWS.iter().filter(|r| (r.fits)(scene));
        let pairs = fitting().flat_map(|a| fitting().map(move |b| (scene, a, b)));
        // A name that is recorded when the chain is gone is for the next one who opens the image; nobody knows any more
        // that what it names is no raw disk.
        let lets_go =
            |a: &Row| a.gives == Gives::Unbacked || a.name == "rebase" && scene.setup.encrypted_backing;
        jobs.extend(pairs.filter(|(_, a, b)| !(lets_go(a) && b.name == "change backing file")));
    }
    let jobs = some_of(jobs);
    let covered = Covered::default();
    let seed = base_seed();
    on_threads(&jobs, |(scene, first, second)| {
        let mut rng = Rng::new(seed ^ hash_bytes(format!("{} {}", first.name, second.name).as_bytes()));
        // Whoever comes to a request that is alone waits at the gate, wherever it is parked: two kinds of
        // requests try it at every call, the others at some.
        let some = effort() <= 1.0 && first.alone && !["read", "allocating write"].contains(&second.name);
        for device in scene.devices() {
            at_each_call(device, None, |point| {
                if some && !rng.one_in(10) {
                    return Ok(true);
                }
                let parts = [Part { row: first, point: Some(point) }, Part { row: second, point: None }];
                let played = covered.play(scene, &parts, &[0])?;
                let (parked, passed) = (played.parked & 1 != 0, played.beside & 2 != 0);
                // A commit ends with a flush beside others, and who is past a new end need not wait to hear it.
                let must_wait = first.alone && first.name != "commit" && played.refused & 2 == 0;
                match parked && (must_pass(&parts, 1) && !passed || must_wait && passed) {
                    true => Err(format!("passed: {passed}: {}\n{:?}", describe(&parts), scene.setup)),
                    false => Ok(parked),
                }
            })?;
        }
        Ok(())
    });
    let (parked, beside) = (covered.parked.into_inner(), covered.beside.into_inner());
    testkit::tell!(
        "{} pairs, seed {seed}; in {parked} races the first request was parked, in {beside} the second one passed it",
        jobs.len()
    );
    let pairs = jobs.len() as u64;
    let few = most_cases() < usize::MAX;
    assert!(few || parked > 5 * pairs && beside > pairs, "the requests were not caught");
}

/// On a busy machine any thread sleeps for a moment, which is no waiting for somebody else: neither the first one's way to its
/// call nor a read beside it ends there.
#[test]
fn a_moment_of_sleep_is_no_waiting() {
    fn drowsy(row: &Row, run: fn(&Handle, &Row, u32) -> Result<()>) -> &'static Row {
        Box::leak(Box::new(Row { run, ..*row }))
    }
    fn doze() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let write = drowsy(named("write in place"), |handle, row, tag| {
        doze();
        (named("write in place").run)(handle, row, tag)
    });
    let read = drowsy(named("read"), |_, _, _| {
        doze();
        Ok(())
    });
    let scene = Scene::new(Setup::default(), false);
    let point = Some(Point { device: Device::Image, purpose: None, call: 0, after: false });
    let played = scene.play(&[Part { row: write, point }, Part { row: read, point: None }], &[0]).unwrap();
    assert_eq!((played.parked, played.beside), (1, 2), "a thread that sleeps was taken for one that waits");
}

/// Three threads and one table page: the first has it between memory and the file, the second changes it or
/// wants it durable and is parked at each of its own calls, the third makes the cache let go of it or flushes.
/// Nobody may return before what it promised is in the file or durable, read an old page, or lose an entry.
#[test]
fn a_page_in_hand_is_waited_for() {
    let in_hand = ["flush", "allocating write", "FUA zero", "write afar", "read afar"].map(named);
    let changing = ["allocating write", "FUA write", "zero and unmap", "discard", "flush"].map(named);
    let third = ["read afar", "write afar", "flush", "FUA zero", "read"].map(named);
    let mut jobs = Vec::new();
    let scene = |mode, lazy| Scene::new(Setup { mode, lazy, tiny_cache: true, ..Setup::default() }, false);
    let scenes = [Mode::Writeback, Mode::MetadataWritethrough].map(|m| [false, true].map(|l| scene(m, l)));
    for scene in scenes.iter().flatten() {
        for first in in_hand {
            jobs.extend(changing.iter().flat_map(|b| third.iter().map(move |c| (scene, first, *b, *c))));
        }
    }
    let jobs = some_of(jobs);
    let covered = Covered::default();
    let both = AtomicU64::new(0);
    on_threads(&jobs, |(scene, first, second, third)| {
        at_each_call(Device::Image, Some(Purpose::L2), |one| {
            let mut parked = true;
            at_each_call(Device::Image, None, |two| {
                let part = |row, point: Option<Point>| Part { row, point };
                let parts = [part(first, Some(one)), part(second, Some(two)), part(third, None)];
                for release in [[0, 1], [1, 0]] {
                    let played = covered.play(scene, &parts, &release)?;
                    parked = played.parked & 1 != 0;
                    both.fetch_add(u64::from(played.parked == 3), Ordering::SeqCst);
                    if played.parked != 3 {
                        return Ok(false);
                    }
                }
                Ok(true)
            })?;
            Ok(parked)
        })
        .map(drop)
    });
    let (races, both) = (covered.races.into_inner(), both.into_inner());
    testkit::tell!(
        "{races} races of three; in {both} the page was in hand and the second request was parked"
    );
    assert!(both > races / 2, "the page was not caught in hand");
}

/// A request that is inside keeps the clusters that it has looked up, whoever lets go of them (R4).
fn a_parked_request_keeps_its_clusters(kind: Kind) {
    let setup = Setup { sectors: 96, prefill: 52, ..Setup::default() };
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
                && e.request.is_some()
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

/// The L2 entry of a guest cluster, as it is in the file.
fn entry_of(recorder: &testkit::recorder::Recorder, cluster: u64) -> u64 {
    let bytes = recorder.contents();
    let head = oracle::Head::parse(&bytes).unwrap();
    let per_table = head.cluster_bytes() / 8;
    let table = oracle::be64(&bytes, (head.l1_offset + cluster / per_table * 8) as usize) & oracle::OFFSET;
    oracle::be64(&bytes, (table + cluster % per_table * 8) as usize)
}

/// Inflated clusters are kept and found by where their stream is. A reader that came for a stream keeps what it has
/// inflated after the stream is gone; then another stream gets the same place, sector for sector.
#[test]
fn a_reused_place_shows_its_new_stream() {
    let setup = Setup { cluster_bits: 10, sectors: 96, ..Setup::default() };
    let recorder = setup.recorder();
    let handle = setup.open(recorder.clone()).unwrap();
    let pack = |cluster: u64, tag: u32| {
        setup::write_compressed(&handle, cluster * 2, 2, tag).unwrap();
        handle.disk().flush().unwrap();
        entry_of(&recorder, cluster)
    };
    let let_go = |cluster: u64| {
        handle.disk().discard(cluster * 2 * SECTOR, 2 * SECTOR).unwrap();
        handle.disk().flush().unwrap();
        handle.disk().flush().unwrap();
    };
    let old = pack(20, 5);
    assert_ne!(old & oracle::COMPRESSED, 0, "a stream, not a plain cluster");
    let hold = recorder.hold(Kind::Read, Some(Purpose::Data));
    std::thread::scope(|scope| {
        // A part of a cluster: what is inflated is kept.
        let inside = scope.spawn(|| setup::read(&handle, 40, 1).unwrap());
        assert!(recorder.wait_parked(hold, Duration::from_secs(10)));
        let_go(20);
        assert_ne!(pack(21, 6), old, "a place is reused under a reader that has looked it up");
        recorder.release(hold);
        assert_eq!(inside.join().unwrap(), [5]);
    });
    let_go(21);
    for (cluster, tag) in [(22, 7), (20, 8), (22, 9)] {
        assert_eq!(pack(cluster, tag), old, "the place is free once the reader has left");
        let sector = cluster * 2;
        assert_eq!(setup::read(&handle, sector, 1).unwrap(), [tag]);
        assert_eq!(setup::read(&handle, sector, 2).unwrap(), [tag; 2]);
        assert_eq!(setup::read(&handle, sector + 1, 1).unwrap(), [tag]);
        let_go(cluster);
    }
    handle.close().unwrap();
    assert_eq!(check_clean(&*recorder), Ok(0));
}
