//! Creation on doubles: what a reader finds, what a power cut leaves, what a failing call does.

use super::*;
use crate::format::be64;
use crate::format::entries::OFFSET_MASK;
use crate::storage::memory::Memory;
use crate::storage::{HostRun, Traits};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

fn options(list: &[&str]) -> CreateOptions {
    CreateOptions::parse(list).unwrap()
}

/// Reads every table the slow way and compares the counts with the pointers.
fn check_image(bytes: &[u8], virtual_size: u64, options: &CreateOptions) {
    let header = Header::parse(&bytes[..bytes.len().min(1 << options.cluster_bits)]).unwrap();
    header.check_tables(false).unwrap();
    let g = header.geometry();
    assert_eq!(header.virtual_size, virtual_size.div_ceil(512) * 512);
    let cluster = |offset: u64| {
        let (from, to) = (offset as usize, (offset + g.cluster_bytes()) as usize);
        let mut content = bytes[from.min(bytes.len())..to.min(bytes.len())].to_vec();
        content.resize(g.cluster_bytes() as usize, 0);
        content
    };
    let mut owners = vec![0u64; g.clusters_ceil(bytes.len() as u64) as usize];
    let mut own = |offset: u64, length: u64| {
        for at in g.cluster_index(offset)..g.cluster_index(offset) + g.clusters_ceil(length) {
            owners[at as usize] += 1;
        }
    };
    own(0, 1);
    own(header.refcount_table_offset, u64::from(header.refcount_table_clusters) << g.cluster_bits);
    own(header.l1_table_offset, u64::from(header.l1_size) * 8);
    let mut guest_clusters = 0;
    for l1_index in 0..header.l1_size as usize {
        let at = header.l1_table_offset as usize + l1_index * 8;
        let l2_offset = be64(bytes, at) & OFFSET_MASK;
        if l2_offset == 0 {
            continue;
        }
        own(l2_offset, 1);
        for entry in cluster(l2_offset).chunks_exact(8).map(|e| be64(e, 0)).filter(|e| *e != 0) {
            assert_ne!(entry & COPIED, 0);
            own(entry & OFFSET_MASK, 1);
            assert!(
                cluster(entry & OFFSET_MASK).iter().all(|b| *b == 0),
                "a preallocated cluster is not zero"
            );
            guest_clusters += 1;
        }
    }
    if options.preallocation != Preallocation::Off {
        assert_eq!(guest_clusters, g.clusters_ceil(header.virtual_size));
    }
    let mut blocks = Vec::new();
    for index in 0..(u64::from(header.refcount_table_clusters) << g.cluster_bits) / 8 {
        let offset = be64(bytes, (header.refcount_table_offset + index * 8) as usize);
        if offset != 0 {
            own(offset, 1);
            blocks.push(cluster(offset));
        }
    }
    for (at, owned) in owners.iter().enumerate() {
        let block = &blocks[g.refcount_table_index(at as u64) as usize];
        let count = refcount::get(block, g.refcount_order, g.refcount_block_index(at as u64));
        assert_eq!((count, *owned), (1, 1), "cluster {at}");
    }
}

#[test]
fn every_geometry_on_memory() {
    for cluster_size in ["512", "1k", "4k", "8k", "64k", "2M"] {
        for refcount_bits in ["1", "2", "16", "64"] {
            for preallocation in ["off", "metadata", "falloc", "full"] {
                // The slow check looks at every byte: large clusters get fewer rounds.
                let sizes: &[u64] = if cluster_size == "2M" { &[1] } else { &[0, 1, 513, 1 << 20] };
                for &size in sizes {
                    let options = options(&[
                        &format!("cluster_size={cluster_size}"),
                        &format!("refcount_bits={refcount_bits}"),
                        &format!("preallocation={preallocation}"),
                    ]);
                    let storage = Memory::default();
                    create(&storage, size, &options).unwrap();
                    check_image(&storage.contents(), size, &options);
                }
            }
        }
    }
}

#[test]
fn the_refcount_table_grows_inside_create() {
    for (list, size) in [
        (&["cluster_size=512", "refcount_bits=64"][..], 20 << 30),
        (&["cluster_size=512", "refcount_bits=64", "preallocation=metadata"], 8 << 20),
        (&["cluster_size=512", "refcount_bits=64", "preallocation=full"], 8 << 20),
        (&["cluster_size=512", "refcount_bits=1", "preallocation=metadata"], 8 << 20),
    ] {
        let options = options(list);
        let storage = Memory::default();
        create(&storage, size, &options).unwrap();
        check_image(&storage.contents(), size, &options);
    }
}

#[test]
fn large_sizes_and_their_limits() {
    let default = CreateOptions::default();
    for size in [(2 << 40) - 1, 2 << 40, (2 << 40) + 1, 64 << 40, 2 << 50] {
        let storage = Memory::default();
        create(&storage, size, &default).unwrap();
        check_image(&storage.contents(), size, &default);
    }
    let refused = |size: u64, options: &CreateOptions| {
        let storage = Memory::new(b"untouched".to_vec());
        let error = create(&storage, size, options).unwrap_err();
        assert_eq!(storage.contents(), b"untouched");
        error.to_string()
    };
    let too_large = "The image size is too large for file format 'qcow2' (try using a larger cluster size)";
    assert_eq!(refused((2 << 50) + 1, &default), too_large);
    assert_eq!(refused((128 << 30) + 1, &options(&["cluster_size=512"])), too_large);
    assert_eq!(refused(4 << 60, &options(&["cluster_size=2M"])), too_large);
    let past = "Could not resize image: offset(9223372035781034496) exceeds maximum(9223372035781033984)";
    assert_eq!(refused(MAX_LENGTH_BYTES + 1, &default), past);
    let negative = "Could not resize image: Image size cannot be negative";
    for size in [i64::MAX as u64, 1 << 63, u64::MAX - 1] {
        assert_eq!(refused(size, &default), negative);
    }
    assert_eq!(refused(u64::MAX, &default), "Image creation needs a size parameter");
    assert!(refused(2 << 50, &options(&["preallocation=metadata"])).contains("too large for preallocation"));
}

#[test]
fn size_may_come_from_the_options() {
    let storage = Memory::default();
    create(&storage, SIZE_FROM_OPTIONS, &options(&["size=1M"])).unwrap();
    check_image(&storage.contents(), 1 << 20, &CreateOptions::default());
}

#[test]
fn names_that_do_not_fit_are_refused() {
    let long = |count: usize, cluster: &str| {
        let name = "a".repeat(count);
        let cluster = format!("cluster_size={cluster}");
        let file = format!("backing_file={name}");
        let storage = Memory::new(b"untouched".to_vec());
        let answer = create(&storage, 1 << 20, &options(&[&cluster, &file, "backing_fmt=raw"]));
        if answer.is_err() {
            assert_eq!(storage.contents(), b"untouched");
        }
        answer.map_err(|e| (e.errno(), e.to_string()))
    };
    assert!(long(1023, "64k").is_ok());
    let (errno, text) = long(1024, "64k").unwrap_err();
    assert_eq!(errno, libc::EINVAL);
    assert!(text.starts_with("Could not assign backing file 'aaa"), "{text}");
    assert!(text.ends_with("' with format 'raw': Invalid argument"), "{text}");
    let (errno, text) = long(1023, "512").unwrap_err();
    assert_eq!(errno, libc::ENOSPC);
    assert!(text.ends_with("' with format 'raw': No space left on device"), "{text}");
}

#[derive(Clone, Debug)]
enum Call {
    Write(u64, Vec<u8>),
    Length(u64),
    Sync,
}

/// Memory that remembers what changed it, and fails one call if asked to.
#[derive(Default)]
struct Double {
    memory: Memory,
    calls: Mutex<Vec<Call>>,
    count: AtomicUsize,
    fails_at: Option<usize>,
    /// Keeps its length and old bytes, and zeroes only by writing, as a block device does.
    is_device: bool,
}

impl Double {
    fn log(&self, call: Call) -> io::Result<()> {
        if Some(self.count.fetch_add(1, Ordering::SeqCst)) == self.fails_at {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.calls.lock().unwrap().push(call);
        Ok(())
    }
}

impl Storage for Double {
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.memory.read(purpose, offset, buffers)
    }
    fn write(&self, purpose: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.log(Call::Write(offset, buffers.iter().flat_map(|b| b.to_vec()).collect()))?;
        self.memory.write(purpose, offset, buffers)
    }
    fn sync(&self) -> io::Result<()> {
        self.log(Call::Sync)
    }
    fn length(&self) -> io::Result<u64> {
        self.memory.length()
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        if self.is_device {
            let fits = length <= self.memory.length()?;
            return if fits { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOSPC)) };
        }
        self.log(Call::Length(length))?;
        self.memory.set_length(length)
    }
    fn write_zeroes(&self, _: Purpose, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.memory.preallocate(offset, length)
    }
    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
        self.memory.host_run(offset)
    }
    fn traits(&self) -> Traits {
        Traits { zero_past_end: !self.is_device, ..self.memory.traits() }
    }
}

const MODES: [&str; 4] =
    ["preallocation=off", "preallocation=metadata", "preallocation=falloc", "preallocation=full"];

fn small(mode: &str) -> CreateOptions {
    options(&["cluster_size=512", "refcount_bits=64", mode])
}

/// An old image, then a new one over it; power fails after each call, with some of the unsynced calls done.
#[test]
fn a_power_cut_leaves_the_old_image_or_none_or_the_new_one() {
    let old = Memory::default();
    let recorded = ["cluster_size=1k", "backing_file=base.img", "backing_fmt=raw"];
    create(&old, 1 << 20, &options(&recorded)).unwrap();
    let old = old.contents();
    let mut overlay = options(&["cluster_size=1k", "backing_fmt=raw", "backing_file=x"]);
    overlay.backing_file = Some("b".repeat(600).into());
    for options in MODES.map(small).into_iter().chain([overlay]) {
        let double = Double { memory: Memory::new(old.clone()), ..Double::default() };
        create(&double, 300 * 512, &options).unwrap();
        let new = double.memory.contents();
        let calls = double.calls.into_inner().unwrap();
        let (mut unrecognised, mut cuts) = (0, 0);
        for cut in 0..=calls.len() {
            let synced = calls[..cut].iter().rposition(|c| matches!(c, Call::Sync)).map_or(0, |at| at + 1);
            let pending = cut - synced;
            let subsets = [0, u64::MAX, 1, 1 << pending.saturating_sub(1).min(63), 0x5555_5555_5555_5555];
            for subset in subsets {
                let medium = Memory::new(old.clone());
                let kept = |(at, _): &(usize, &Call)| *at < synced || subset >> ((at - synced) % 64) & 1 == 1;
                for (_, call) in calls[..cut].iter().enumerate().filter(kept) {
                    match call {
                        Call::Write(offset, bytes) => {
                            write_all(&medium, Purpose::Data, *offset, bytes).unwrap();
                        }
                        Call::Length(length) => medium.set_length(*length).unwrap(),
                        Call::Sync => {}
                    }
                }
                let found = medium.contents();
                cuts += 1;
                if Header::parse(&found[..found.len().min(1024)]).is_err() {
                    unrecognised += 1;
                    continue;
                }
                assert!(found == new || found == old, "cut at {cut} of {}, kept {subset:#x}", calls.len());
            }
        }
        assert!(unrecognised > 0 && unrecognised < cuts);
    }
}

#[test]
fn each_failing_call_is_reported_and_leaves_no_image() {
    for mode in MODES {
        let options = small(mode);
        let whole = Double { memory: Memory::new(vec![7; 1000]), ..Double::default() };
        create(&whole, 300 * 512, &options).unwrap();
        let calls = whole.count.load(Ordering::SeqCst);
        assert!(calls >= 7, "{calls}");
        for fails_at in 0..calls {
            let double =
                Double { memory: Memory::new(vec![7; 1000]), fails_at: Some(fails_at), ..Double::default() };
            let error = create(&double, 300 * 512, &options).unwrap_err();
            assert_eq!(error.errno(), libc::ENOSPC);
            let found = double.memory.contents();
            // The very last call is the sync that makes the finished image durable.
            let parsed = Header::parse(&found[..found.len().min(512)]);
            assert_eq!(parsed.is_ok(), fails_at + 1 == calls, "{fails_at}");
        }
    }
}

#[test]
fn a_device_with_old_bytes_gets_a_clean_image() {
    for mode in MODES {
        for cluster_size in ["512", "4k", "64k"] {
            let options = options(&[&format!("cluster_size={cluster_size}"), mode]);
            let device =
                Double { memory: Memory::new(vec![0xa5; 3 << 20]), is_device: true, ..Double::default() };
            create(&device, 1 << 20, &options).unwrap();
            let header = Header::parse(&device.memory.contents()[..65536]).unwrap();
            let plan = Plan::new(options.geometry(), 1 << 20, options.preallocation, 0).unwrap();
            assert_eq!(u64::from(header.l1_size), plan.l1_entries);
            let used = plan.geometry.cluster_offset(plan.end) as usize;
            check_image(&device.memory.contents()[..used], 1 << 20, &options);
        }
    }
    let device = Double { memory: Memory::new(vec![0xa5; 1 << 20]), is_device: true, ..Double::default() };
    let error = create(&device, 2 << 20, &options(&["preallocation=full"])).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC);
}
