//! What is remembered of the host's holes: how often it is asked, how far it walks, and when it is not believed any more.

use super::*;
use crate::storage::{Purpose, Traits};
use std::io::{IoSlice, IoSliceMut};

/// A host whose file has data and holes by turns, and that counts what its answers cost.
struct Host {
    run_bytes: u64,
    length: u64,
    data_first: bool,
    questions: AtomicU64,
    walked: AtomicU64,
}

impl Host {
    fn new(run_bytes: u64, length: u64) -> Host {
        let (questions, walked) = (AtomicU64::new(0), AtomicU64::new(0));
        Host { run_bytes, length, data_first: true, questions, walked }
    }
    fn cost(&self) -> (u64, u64) {
        (self.questions.load(Ordering::SeqCst), self.walked.load(Ordering::SeqCst))
    }
}

impl Storage for Host {
    fn read(&self, _: Purpose, _: u64, _: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        Ok(())
    }
    fn write(&self, _: Purpose, _: u64, _: &[IoSlice<'_>]) -> io::Result<()> {
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn length(&self) -> io::Result<u64> {
        Ok(self.length)
    }
    fn set_length(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, _: Purpose, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn preallocate(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
        let number = offset / self.run_bytes;
        let end = ((number + 1) * self.run_bytes).min(self.length);
        self.questions.fetch_add(1, Ordering::SeqCst);
        self.walked.fetch_add(end - offset, Ordering::SeqCst);
        Ok(HostRun { data: (number % 2 == 0) == self.data_first, end })
    }
    fn traits(&self) -> Traits {
        Traits { alignment: 1, zero_past_end: true, discard_zeroes: true, read_only: true }
    }
}

const CLUSTER: u64 = 64 << 10;

/// The clusters of a file in an order: as they lie, the other way round, and all over it.
fn orders(clusters: u64) -> [Vec<u64>; 3] {
    let forth: Vec<u64> = (0..clusters).collect();
    let back = forth.iter().rev().copied().collect();
    let scattered = forth.iter().map(|c| c * 40_503 % clusters).collect();
    [forth, back, scattered]
}

#[test]
fn questions_in_any_order_cost_one_walk() {
    for clusters in [4096, 16384] {
        let length = clusters * CLUSTER;
        for run_clusters in [1, 16, clusters] {
            for order in orders(clusters) {
                let (host, holes) = (Host::new(run_clusters * CLUSTER, length), Holes::default());
                for cluster in order {
                    let run = holes.run(&host, cluster * CLUSTER).unwrap();
                    assert_eq!(run.data, cluster / run_clusters % 2 == 0, "cluster {cluster}");
                    assert_eq!(run.end, ((cluster / run_clusters + 1) * run_clusters * CLUSTER).min(length));
                }
                let (questions, walked) = host.cost();
                let runs = clusters.div_ceil(run_clusters);
                assert!(questions <= 2 * runs + 32, "{questions} questions about {runs} runs");
                assert!(walked <= 16 * length, "{} times the file", walked / length);
            }
        }
    }
}

#[test]
fn a_change_makes_holes_unknown_and_leaves_data() {
    let (host, holes) = (Host::new(CLUSTER, 8 * CLUSTER), Holes::default());
    assert!(holes.run(&host, 0).unwrap().data);
    assert!(!holes.run(&host, CLUSTER).unwrap().data);
    assert!(holes.is_hole(&host, CLUSTER, CLUSTER).unwrap());
    assert!(!holes.is_hole(&host, CLUSTER, CLUSTER + 1).unwrap());
    let (asked, _) = host.cost();
    holes.note_change();
    assert_eq!(holes.known(CLUSTER), None);
    assert!(holes.known(0).unwrap().data);
    // A file that is open for reading is settled again when it is asked for.
    assert!(!holes.run(&host, CLUSTER).unwrap().data);
    assert!(host.cost().0 > asked);
    holes.forget();
    assert_eq!(holes.known(0), None);
}

#[test]
fn whoever_asked_before_a_change_teaches_no_hole() {
    let holes = Holes::default();
    let host = Host::new(CLUSTER, 8 * CLUSTER);
    holes.settle(&host).unwrap();
    let asked_at = holes.changes.load(Ordering::SeqCst);
    holes.note_change();
    holes.settle(&host).unwrap();
    locked(holes.memory.lock()).learn(CLUSTER, HostRun { data: false, end: 2 * CLUSTER }, asked_at);
    assert_eq!(holes.known(CLUSTER), None);
}

#[test]
fn memory_is_bounded() {
    let clusters = 3 * MAX_RUNS as u64;
    let (host, holes) = (Host::new(CLUSTER, clusters * CLUSTER), Holes::default());
    for cluster in 0..clusters {
        holes.run(&host, cluster * CLUSTER).unwrap();
    }
    assert!(locked(holes.memory.lock()).runs.len() <= MAX_RUNS);
    assert!(host.cost().0 <= 2 * clusters);
}

/// Found by an image whose clusters had 4 KiB of data each: every question walked from far before it, and what it had
/// learned was gone by the next.
#[test]
fn more_runs_than_are_remembered_cost_a_few_steps_each() {
    const RUN: u64 = 4096;
    for runs in [50_000u64, 200_000] {
        for order in orders(runs) {
            let (host, holes) = (Host::new(RUN, runs * RUN), Holes::default());
            for number in order {
                holes.run(&host, number * RUN + 1).unwrap();
            }
            let (questions, _) = host.cost();
            assert!(questions <= 24 * runs, "{questions} questions about {runs} runs");
        }
    }
}
