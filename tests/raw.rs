//! Raw disks under what images are tried with (story C25): each call failing, requests parked at each call beside others,
//! and a host that knows nothing of what is still in a cache (story C28).

use qcow2::testing::disk::{Disk, ZeroFlags};
use qcow2::testing::error::{ErrorKind, Result};
use qcow2::testing::ops::checksum::checksum;
use qcow2::testing::ops::commit::commit;
use qcow2::testing::ops::compare::{compare, Verdict};
use qcow2::testing::ops::convert::{convert, ConvertOptions};
use qcow2::testing::ops::create::create;
use qcow2::testing::ops::formats::Driver;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::inactive::{inactivate, invalidate};
use qcow2::testing::ops::open::{OpenFlags, Opening, Origin, ResolveAnswer};
use qcow2::testing::ops::resize::resize;
use qcow2::testing::options::{CreateOptions, OpenOptions, Preallocation};
use qcow2::testing::storage::memory::Memory;
use qcow2::testing::storage::{HostRun, Purpose, Storage, Traits};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;
use testkit::recorder::{act_as, Fault, Kind, Recorder, What};

const SECTOR: u64 = 512;
const SIZE: u64 = 32 * SECTOR;

fn open_with(storage: Arc<dyn Storage>, flags: OpenFlags, base: Option<Arc<dyn Storage>>) -> Result<Handle> {
    let mut resolve = |_: &_| {
        let origin = Origin::Custom(base.clone().expect("a base"));
        Ok(ResolveAnswer { origin, format: None })
    };
    let mut opening = Opening {
        flags,
        options: OpenOptions::default(),
        resolver: Some(&mut resolve),
        messages: None,
        secrets: Default::default(),
    };
    Handle::open(&mut opening, &Origin::Custom(storage))
}

fn open_raw(storage: Arc<dyn Storage>) -> Handle {
    open_with(storage, OpenFlags { format: Driver::RAW, ..OpenFlags::default() }, None).unwrap()
}

fn recorder() -> Arc<Recorder> {
    let recorder = Recorder::new(vec![1; SIZE as usize]);
    recorder.leave_unjudged("a raw disk has no tables that the rules could be about");
    recorder
}

fn put(handle: &Handle, sector: u64, count: u64, value: u8, fua: bool) -> Result<()> {
    let bytes = vec![value; (count * SECTOR) as usize];
    handle.disk().write(sector * SECTOR, &[IoSlice::new(&bytes)], fua)
}

/// A request on sectors 4 to 7.
type Request = (&'static str, fn(&Handle) -> Result<()>);

const CHANGES: [Request; 6] = [
    ("write", |h| put(h, 4, 4, 7, false)),
    ("FUA write", |h| put(h, 4, 4, 7, true)),
    ("zero", |h| h.disk().write_zeroes(4 * SECTOR, 4 * SECTOR, ZeroFlags::default(), false)),
    ("FUA zero, unmap", |h| {
        let flags = ZeroFlags { unmap: true, no_fallback: false };
        h.disk().write_zeroes(4 * SECTOR, 4 * SECTOR, flags, true)
    }),
    ("discard", |h| h.disk().discard(4 * SECTOR, 4 * SECTOR)),
    ("flush", |h| h.disk().flush()),
];

/// These keep all others out.
const ALONE: [Request; 4] = [
    ("reopen read-only", |h| h.reopen(true, false, &[], None)),
    ("inactivate", inactivate),
    ("grow", |h| resize(h, SIZE + 8 * SECTOR, Preallocation::Off)),
    ("grow, full", |h| resize(h, SIZE + 8 * SECTOR, Preallocation::Full)),
];

#[test]
fn c25_a_failed_sync_is_final_and_a_failed_write_is_not() {
    let all = || CHANGES.iter().chain(&ALONE);
    let (mut writes, mut syncs) = (0, 0);
    for (name, request) in all() {
        for call in 0.. {
            let recorder = recorder();
            let handle = open_raw(recorder.clone());
            put(&handle, 20, 2, 5, false).unwrap();
            let fault = Fault { kind: None, call, errno: libc::EIO, forever: false, torn: false };
            let before = recorder.log_length();
            recorder.inject(Some(fault));
            let answer = request(&handle);
            if recorder.failed() == 0 {
                answer.unwrap();
                break;
            }
            let synced = recorder.log()[before..].iter().any(|e| matches!(e.what, What::Sync { .. }));
            recorder.inject(None);
            // Whether the call that has failed was a sync is seen by what is refused afterwards.
            let latched = matches!(put(&handle, 24, 1, 6, false), Err(e) if e.kind() == ErrorKind::Latched);
            let told = format!("{name}, call {call}: {answer:?}, latched: {latched}");
            match latched {
                true => {
                    syncs += 1;
                    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Host(libc::EIO), "{told}");
                    assert!(!synced, "{told}");
                    for (name, request) in all() {
                        let kind = request(&handle).unwrap_err().kind();
                        assert_eq!(kind, ErrorKind::Latched, "{told}; then {name}");
                    }
                    assert_eq!(handle.close().unwrap_err().kind(), ErrorKind::Latched, "{told}");
                    open_raw(recorder).disk().flush().unwrap();
                }
                false => {
                    writes += 1;
                    handle.disk().flush().unwrap();
                    assert_eq!(recorder.durable_contents().len() as u64, handle.disk().length(), "{told}");
                    handle.close().unwrap();
                }
            }
        }
    }
    assert!(writes >= 5 && syncs >= 6, "{writes} {syncs}");
}

#[test]
fn c25_of_two_flushes_neither_succeeds_when_one_fails() {
    let recorder = recorder();
    let handle = open_raw(recorder.clone());
    put(&handle, 4, 4, 7, false).unwrap();
    let hold = recorder.hold(Kind::Sync, None);
    let fault = Fault { kind: Some(Kind::Sync), call: 0, errno: libc::EIO, forever: false, torn: false };
    recorder.inject(Some(fault));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| handle.disk().flush());
        assert!(recorder.wait_parked(hold, Duration::from_secs(10)));
        let second = scope.spawn(|| handle.disk().flush());
        std::thread::sleep(Duration::from_millis(20));
        recorder.release(hold);
        assert_eq!(first.join().unwrap().unwrap_err().kind(), ErrorKind::Host(libc::EIO));
        assert_eq!(second.join().unwrap().unwrap_err().kind(), ErrorKind::Latched);
    });
}

/// Each change parked at each of its calls, with each other request beside it.
#[test]
fn c25_every_pair_with_the_first_one_parked() {
    let (mut waited, mut passed) = (0, 0);
    for (first, run_first) in CHANGES.iter().filter(|c| c.0 != "flush") {
        for (second, run_second) in CHANGES.iter().chain(&ALONE) {
            let alone = ALONE.iter().any(|a| a.0 == *second);
            for call in 0.. {
                let recorder = recorder();
                let handle = open_raw(recorder.clone());
                let hold = recorder.hold_call(1, None, call, false);
                let done = AtomicBool::new(false);
                let parked = std::thread::scope(|scope| {
                    let one = scope.spawn(|| {
                        act_as(1);
                        run_first(&handle)
                    });
                    while !recorder.is_parked(hold) && !one.is_finished() {
                        std::thread::sleep(Duration::from_micros(100));
                    }
                    let parked = recorder.is_parked(hold);
                    let two = scope.spawn(|| {
                        let answer = run_second(&handle);
                        done.store(true, Ordering::SeqCst);
                        answer
                    });
                    std::thread::sleep(Duration::from_millis(10));
                    let beside = done.load(Ordering::SeqCst);
                    let told = format!("{second} beside {first}, parked at call {call}");
                    assert!(!parked || !alone || !beside, "{told}: it did not wait");
                    recorder.release(hold);
                    let first_answer = one.join().unwrap();
                    two.join().unwrap().unwrap();
                    let refused = [ErrorKind::ReadOnly, ErrorKind::NotAllowed];
                    // Who came too late is told so.
                    assert!(first_answer
                        .as_ref()
                        .map_or_else(|e| refused.contains(&e.kind()) && !parked, |_| true));
                    if parked && alone {
                        // All that was under way is in what the second one has made durable.
                        assert_eq!(recorder.durable_contents(), recorder.contents(), "{told}");
                        waited += 1;
                    }
                    passed += u32::from(parked && beside);
                    parked
                });
                if !parked {
                    break;
                }
            }
        }
    }
    assert!(waited >= 20 && passed >= 20, "{waited} {passed}");
}

#[test]
fn c25_a_raw_disk_comes_back_as_the_other_side_left_it() {
    let recorder = recorder();
    let handle = open_raw(recorder.clone());
    inactivate(&handle).unwrap();
    assert_eq!(put(&handle, 0, 1, 3, false).unwrap_err().kind(), ErrorKind::NotAllowed);
    recorder.set_length(SIZE + SECTOR).unwrap();
    invalidate(&handle, None, None).unwrap();
    assert_eq!(handle.disk().length(), SIZE + SECTOR);
    put(&handle, 32, 1, 3, true).unwrap();
    handle.close().unwrap();
}

/// A storage that keeps its length, whatever it answers.
struct Fixed(Memory);

/// Its host answers by what has been synced.
struct HidesDirty {
    now: Memory,
    synced: Memory,
}

impl HidesDirty {
    fn new(bytes: Vec<u8>) -> Arc<HidesDirty> {
        Arc::new(HidesDirty { synced: Memory::new(vec![0; bytes.len()]), now: Memory::new(bytes) })
    }
}

macro_rules! as_memory {
    ($name:ident, $inner:tt, { $($more:item)* }) => {
        impl Storage for $name {
            fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
                self.$inner.read(purpose, offset, buffers)
            }
            fn write(&self, purpose: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
                self.$inner.write(purpose, offset, buffers)
            }
            fn length(&self) -> io::Result<u64> {
                self.$inner.length()
            }
            fn write_zeroes(&self, purpose: Purpose, offset: u64, length: u64) -> io::Result<()> {
                self.$inner.write_zeroes(purpose, offset, length)
            }
            fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
                self.$inner.discard(offset, length)
            }
            fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
                self.$inner.preallocate(offset, length)
            }
            fn traits(&self) -> Traits {
                self.$inner.traits()
            }
            $($more)*
        }
    };
}

as_memory!(Fixed, 0, {
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn set_length(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
        self.0.host_run(offset)
    }
});

as_memory!(HidesDirty, now, {
    fn sync(&self) -> io::Result<()> {
        let bytes = self.now.contents();
        self.synced.set_length(bytes.len() as u64)?;
        self.synced.write(Purpose::Data, 0, &[IoSlice::new(&bytes)])
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        self.now.set_length(length)
    }
    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
        const BLOCK: usize = 512;
        let length = self.now.length()?;
        let mut bytes = self.synced.contents();
        bytes.resize(length as usize, 0);
        let blocks: Vec<bool> = bytes.chunks(BLOCK).map(|b| b.iter().any(|x| *x != 0)).collect();
        let first = offset as usize / BLOCK;
        let Some(data) = blocks.get(first).copied() else { return Ok(HostRun { data: true, end: length }) };
        let end = (first..blocks.len()).find(|i| blocks[*i] != data).unwrap_or(blocks.len());
        Ok(HostRun { data, end: length.min((end * BLOCK) as u64) })
    }
});

#[test]
fn c21_a_storage_that_keeps_its_length_says_so() {
    let handle = open_raw(Arc::new(Fixed(Memory::new(vec![9; SIZE as usize]))));
    for size in [SIZE / 2, SIZE * 2] {
        let error = resize(&handle, size, Preallocation::Off).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert_eq!(handle.disk().length(), SIZE);
    }
    resize(&handle, SIZE, Preallocation::Off).unwrap();
    handle.close().unwrap();
}

/// A disk whose last write the host does not know of: raw, and of preallocated clusters.
fn disks_with_dirty_data() -> Vec<(&'static str, Arc<HidesDirty>, OpenFlags)> {
    let image = HidesDirty::new(Vec::new());
    let options =
        CreateOptions { cluster_bits: 9, preallocation: Preallocation::Metadata, ..CreateOptions::default() };
    create(&*image, SIZE, &options).unwrap();
    let raw = OpenFlags { format: Driver::RAW, ..OpenFlags::default() };
    vec![("raw", HidesDirty::new(vec![0; SIZE as usize]), raw), ("qcow2", image, OpenFlags::default())]
}

fn contents(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.length() as usize];
    disk.read(0, &mut [IoSliceMut::new(&mut bytes)]).unwrap();
    bytes
}

#[test]
fn c28_holes_are_not_believed_of_a_file_that_was_not_synced() {
    for (name, storage, flags) in disks_with_dirty_data() {
        for round in 0..3u8 {
            let handle = open_with(storage.clone(), flags, None).unwrap();
            for sector in [3, 9, 20] {
                put(&handle, sector + u64::from(round), 1, 40 + round, false).unwrap();
            }
            // The precondition: the host by itself would say that there is nothing.
            let hidden = (0..storage.length().unwrap()).step_by(512).any(|at| {
                let run = storage.host_run(at).unwrap();
                let mut bytes = [0; 512];
                storage.read(Purpose::Data, at, &mut [IoSliceMut::new(&mut bytes)]).unwrap();
                !run.data && bytes[0] == 40 + round
            });
            assert!(hidden, "{name}");
            let wanted = contents(handle.disk());
            let sum = crc32fast::hash(&wanted);
            match round {
                0 => assert_eq!(checksum(handle.disk(), 1, &mut |_, _| true).unwrap(), sum, "{name}"),
                1 => {
                    let zeroes = open_raw(Arc::new(Memory::new(vec![0; SIZE as usize])));
                    let found = compare(handle.disk(), zeroes.disk(), false, &mut |_, _| true).unwrap();
                    assert!(matches!(found, Verdict::Contents(_)), "{name}: {found:?}");
                }
                _ => {
                    let target = open_raw(Arc::new(Memory::new(vec![0; SIZE as usize])));
                    let options = ConvertOptions { target_zero: true, ..ConvertOptions::default() };
                    convert(handle.disk(), target.disk(), &options, &mut |_, _| true).unwrap();
                    assert!(contents(target.disk()) == wanted, "{name}: lost by convert");
                }
            }
            // Where nobody has settled it, status says data.
            put(&handle, 30, 1, 50, false).unwrap();
            let status = handle.disk().status(30 * SECTOR, SECTOR, false).unwrap();
            assert!(status.data && !status.zero, "{name}");
            handle.disk().settle_runs().unwrap();
            let status = handle.disk().status(30 * SECTOR, SECTOR, false).unwrap();
            assert!(status.data && !status.zero, "{name}");
            handle.close().unwrap();
        }
    }
}

#[test]
fn c28_holes_are_found_again_once_the_file_is_synced() {
    for (name, storage, flags) in disks_with_dirty_data() {
        let handle = open_with(storage, flags, None).unwrap();
        put(&handle, 3, 1, 4, false).unwrap();
        handle.disk().settle_runs().unwrap();
        let status = handle.disk().status(10 * SECTOR, SECTOR, false).unwrap();
        assert!(status.zero, "{name}: {status:?}");
        handle.close().unwrap();
    }
}

#[test]
fn c28_a_commit_keeps_what_the_host_does_not_know_of() {
    for (name, base, _) in disks_with_dirty_data() {
        let top = HidesDirty::new(Vec::new());
        let options = CreateOptions {
            cluster_bits: 9,
            extended_l2: false,
            preallocation: Preallocation::Off,
            backing_file: Some("base".into()),
            backing_format: Some(name.into()),
            ..CreateOptions::default()
        };
        create(&*top, SIZE, &options).unwrap();
        let handle = open_with(top.clone(), OpenFlags::default(), Some(base.clone())).unwrap();
        put(&handle, 5, 2, 8, false).unwrap();
        let wanted = contents(handle.disk());
        commit(&handle, false, None, &mut |_, _| true).unwrap();
        assert!(contents(handle.disk()) == wanted, "{name}");
        assert_eq!(checksum(handle.disk(), 1, &mut |_, _| true).unwrap(), crc32fast::hash(&wanted), "{name}");
        handle.close().unwrap();
    }
}
