//! The clock of syncs, and the flushes that share one.

use super::disk::Disk;
use super::explore;
use crate::storage::flusher::Flusher;
use crate::storage::medium::Medium;
use ::loom::thread;
use std::sync::Arc;

fn parts() -> (Arc<Disk>, Arc<Medium>) {
    let disk = Disk::new(1);
    (Arc::clone(&disk), Arc::new(Medium::new(disk)))
}

/// A ticket taken after a write is past only when a sync that covers the write has completed.
#[test]
fn what_a_past_ticket_stands_for_is_durable() {
    explore("clock", 3, || {
        let (disk, medium) = parts();
        let syncers: Vec<_> = (0..2)
            .map(|_| {
                let medium = Arc::clone(&medium);
                thread::spawn(move || {
                    let started = medium.begin_sync();
                    medium.finish_sync(started).unwrap();
                })
            })
            .collect();
        disk.set(0, 1);
        let ticket = medium.ticket();
        for _ in 0..2 {
            if medium.is_past(ticket) {
                assert_eq!(disk.durable(0), 1, "a ticket is past before its write is durable");
            }
        }
        syncers.into_iter().for_each(|s| s.join().unwrap());
        let started = medium.begin_sync();
        medium.finish_sync(started).unwrap();
        assert!(medium.is_past(ticket));
        assert_eq!(disk.durable(0), 1);
    });
}

/// Whoever joins a flush joins one that starts after its own write.
#[test]
fn a_shared_flush_covers_all_who_wait_for_it() {
    explore("flush", 3, || {
        let disk = Disk::new(2);
        let (medium, flusher) = (Arc::new(Medium::new(disk.clone())), Arc::new(Flusher::default()));
        let run = move |index: usize| {
            disk.set(index, 7);
            flusher.join(|| medium.finish_sync(medium.begin_sync())).unwrap();
            assert_eq!(disk.durable(index), 7, "a flush returned before what it was to cover is durable");
        };
        let other = thread::spawn({
            let run = run.clone();
            move || run(1)
        });
        run(0);
        other.join().unwrap();
    });
}
