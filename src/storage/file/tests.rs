//! A file's requests against the host.

use super::{sys, FileOptions, FileStorage};
use crate::storage::{is_not_supported, Purpose, Storage};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// A host that takes half of a write and refuses the rest: the caller hears of it.
#[test]
fn a_short_write_is_not_taken_for_a_whole_one() {
    let host_page = 4096;
    let file = sys::sealed_memory(2 * host_page);
    let data = vec![7; 3 * host_page as usize];
    // The precondition: the host writes what fits and says how much.
    assert_eq!(file.write_at(&data, 0).unwrap() as u64, 2 * host_page);
    let storage =
        FileStorage::from_fd(file.as_raw_fd(), FileOptions { writable: true, ..FileOptions::default() })
            .unwrap();
    let (one, two) = (IoSlice::new(&data), [IoSlice::new(&data[..512]), IoSlice::new(&data[512..])]);
    for buffers in [&[one][..], &two[..]] {
        let error = storage.write(Purpose::Data, 0, buffers).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
    storage.write(Purpose::Data, 0, &[IoSlice::new(&data[..2 * host_page as usize])]).unwrap();
}

/// Whoever decides about the length has whatever moves the end in view.
#[test]
fn nothing_moves_the_end_beside_a_change_of_the_length() {
    let (source, place) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let options = FileOptions { writable: true, ..FileOptions::default() };
    let source = FileStorage::open(source.path(), options).unwrap();
    let one = [7; 4096];
    source.write(Purpose::Data, 0, &[IoSlice::new(&one)]).unwrap();
    let storage = FileStorage::open(place.path(), options).unwrap();
    let moves: [&(dyn Fn(u64) -> io::Result<()> + Sync); 4] = [
        &|at| storage.write(Purpose::Data, at, &[IoSlice::new(&one)]),
        &|at| storage.copy_from(Purpose::Data, at, &source, 0, one.len() as u64),
        &|at| storage.write_zeroes(Purpose::Data, at, one.len() as u64),
        &|at| storage.preallocate(at, one.len() as u64),
    ];
    for (index, move_end) in moves.iter().enumerate() {
        let at = 8192 * (index as u64 + 1);
        std::thread::scope(|scope| {
            let alone = storage.end.alone();
            let other = scope.spawn(move || move_end(at));
            std::thread::sleep(std::time::Duration::from_millis(50));
            let length = storage.length().unwrap();
            storage.set_length_alone(&alone, length).unwrap();
            assert!(!other.is_finished(), "number {index} has not waited");
            drop(alone);
            match other.join().unwrap() {
                Err(e) if is_not_supported(&e) => {}
                done => {
                    done.unwrap();
                    assert_eq!(storage.length().unwrap(), at + one.len() as u64);
                }
            }
        });
    }
}
