//! Every route of guest bytes, in chains whose files have keys of their own; and what the guest wrote is in none of the
//! files, whatever was done to them.

use super::{read, step, CANARY, SIZE};
use qcow2::testing::ops::checksum::checksum;
use qcow2::testing::ops::commit::commit;
use qcow2::testing::ops::compare::{compare, Verdict};
use qcow2::testing::ops::convert::{convert, ConvertOptions};
use qcow2::testing::ops::create::create_with_data_file;
use qcow2::testing::ops::formats::Driver;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::open::{OpenFlags, Opening, Origin, Secrets};
use qcow2::testing::ops::rebase::rebase;
use qcow2::testing::ops::resize::resize;
use qcow2::testing::ops::snapshot::{self, SnapshotRef};
use qcow2::testing::ops::stream::stream;
use qcow2::testing::ops::vm_state;
use qcow2::testing::options::{CreateOptions, OpenOptions, Preallocation};
use qcow2::testing::storage::memory::Memory;
use qcow2::testing::storage::Storage;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use testkit::encrypted::{encrypt, secrets_from, Encrypted};
use testkit::images::new_image;
use testkit::rng::{base_seed, cases, Rng};
use testkit::setup::snapshot_named;

/// Files of a chain, the top one first: the file at depth `d` has the secret of that depth.
struct Chain {
    folder: tempfile::TempDir,
    model: Vec<u8>,
    rng: Rng,
    what: String,
}

const NAMES: [&str; 3] = ["top", "middle", "base"];

impl Chain {
    fn new(seed: u64) -> Chain {
        let folder = tempfile::tempdir().unwrap();
        let mut chain = Chain {
            folder,
            model: vec![0; SIZE as usize],
            rng: Rng::new(seed),
            what: format!("seed {seed}"),
        };
        for depth in [2, 1, 0] {
            let below = NAMES.get(depth + 1).map(|name| format!("backing_file={name}"));
            let how = chain.make(NAMES[depth], depth, below.as_deref());
            chain.what += &format!(", {} {how:?}", NAMES[depth]);
            let handle = chain.open(NAMES[depth], depth, &[]);
            (0..12).for_each(|_| step(&mut chain.rng, handle.disk(), &mut chain.model));
            chain.same(&handle, "when it is made");
            handle.close().unwrap();
        }
        chain
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A new image with the secret of `depth`; no two of a chain are alike.
    fn make(&mut self, name: &str, depth: usize, below: Option<&str>) -> (Encrypted, u64) {
        let rng = &mut self.rng;
        let how = match (depth + rng.below(2) as usize) % 3 {
            0 => Encrypted::Aes,
            _ => Encrypted::any_luks(rng),
        };
        // Version 2, which is 1, has no data files.
        let kind = if name == "apart" { 2 + rng.below(4) } else { rng.below(6) };
        let mut options = match kind {
            0 => vec!["cluster_size=512"],
            1 => vec!["compat=0.10"],
            2 => vec!["extended_l2=on", "cluster_size=16k"],
            3 => vec!["cluster_size=4k", "lazy_refcounts=on"],
            4 => vec!["cluster_size=8k", "refcount_bits=64"],
            _ => vec![],
        };
        options.extend(below);
        options.extend(below.map(|_| "backing_fmt=qcow2"));
        // Snapshots, which the top one is to take, do not go with it.
        let apart = kind != 1 && (name == "apart" || name != "top" && rng.one_in(4));
        let data_file = format!("data_file={name}.data");
        options.extend(apart.then_some(&*data_file));
        let (image, data) = (Memory::default(), Memory::default());
        let data_file = apart.then_some(&data as &dyn Storage);
        create_with_data_file(&image, data_file, SIZE, &CreateOptions::parse(&options).unwrap()).unwrap();
        if apart {
            std::fs::write(self.path(&format!("{name}.data")), data.contents()).unwrap();
        }
        let mut bytes = image.contents();
        encrypt(&mut bytes, how, depth);
        std::fs::write(self.path(name), bytes).unwrap();
        (how, kind)
    }

    fn open(&self, name: &str, depth: usize, options: &[&str]) -> Handle {
        self.open_as(name, depth, options, false)
    }

    fn open_as(&self, name: &str, depth: usize, options: &[&str], read_only: bool) -> Handle {
        let mut secrets = secrets_from(depth);
        Opening {
            flags: OpenFlags { allow_recorded: true, read_only, ..OpenFlags::default() },
            options: OpenOptions::parse(options).unwrap(),
            resolver: None,
            messages: None,
            secrets: Secrets { source: Some(&mut secrets), progress: None },
        }
        .open(&Origin::Path(self.path(name)))
        .unwrap_or_else(|e| panic!("{name}: {e}: {}", self.what))
    }

    fn same(&self, handle: &Handle, when: &str) {
        let length = self.model.len();
        assert_eq!(handle.disk().length(), length as u64, "{when}: {}", self.what);
        let shown = read(handle.disk(), 0, length);
        let odd = shown.iter().zip(&self.model).position(|(one, other)| one != other);
        assert_eq!(odd, None, "{when}: {}", self.what);
    }

    /// The end of an operation: the disk is what it was, and no file has what the guest wrote.
    fn judge(&self, handle: Handle, when: &str) {
        self.same(&handle, when);
        handle.close().unwrap();
        self.same(&self.open("top", 0, &[]), when);
        self.scan(when);
    }

    fn scan(&self, when: &str) {
        for entry in std::fs::read_dir(self.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            assert!(!has_canary(&path), "{when}: what the guest wrote is in {path:?}: {}", self.what);
        }
    }

    fn steps(&mut self, handle: &Handle, count: usize) {
        for _ in 0..count {
            step(&mut self.rng, handle.disk(), &mut self.model);
        }
    }

    /// A disk without a key that shows the same.
    fn plain(&self) -> Handle {
        let storage = Arc::new(Memory::new(self.model.clone()));
        Opening {
            flags: OpenFlags { format: Driver::RAW, ..OpenFlags::default() },
            options: OpenOptions::default(),
            resolver: None,
            messages: None,
            secrets: Secrets::default(),
        }
        .open(&Origin::Custom(storage))
        .unwrap()
    }
}

/// Half of the canary is enough, wherever it begins.
fn has_canary(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap();
    let (part, first) = (&CANARY[16..48], CANARY[16]);
    let mut starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == first);
    starts.any(|(at, _)| bytes[at..].starts_with(part))
}

fn go_on(_: u64, _: u64) -> bool {
    true
}

fn chains() -> impl Iterator<Item = Chain> {
    let seed = base_seed();
    testkit::tell!("chains of encrypted images: QCOW2_TEST_SEED={seed}");
    (0..cases(4)).map(move |case| Chain::new(seed.wrapping_add(case)))
}

#[test]
fn the_search_for_the_canary_finds_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plain");
    let storage = new_image(SIZE, &[]);
    std::fs::write(&path, storage.contents()).unwrap();
    assert!(!has_canary(&path));
    let mut bytes = vec![CANARY[16]; 700];
    bytes.extend(CANARY);
    std::fs::write(&path, bytes).unwrap();
    assert!(has_canary(&path));
}

#[test]
fn commit_stream_rebase_and_copy_on_read() {
    for mut chain in chains() {
        let handle = chain.open("top", 0, &["copy-on-read=on"]);
        chain.steps(&handle, 10);
        chain.judge(handle, "copy on read");
        let handle = chain.open("top", 0, &[]);
        stream(&handle, 4096, SIZE / 2, 0, &mut go_on).unwrap();
        chain.steps(&handle, 5);
        chain.judge(handle, "stream");
        // The middle one goes: what it had is the top one's now.
        let handle = chain.open("top", 0, &[]);
        let base = chain.open_as("base", 2, &[], true);
        rebase(&handle, Some(&base), Some(b"base"), Some("qcow2"), false, &mut go_on).unwrap();
        base.close().unwrap();
        chain.same(&handle, "rebase, the same handle");
        rebase(&handle, None, None, None, false, &mut go_on).unwrap();
        chain.steps(&handle, 5);
        chain.judge(handle, "rebase to nothing");
    }
}

#[test]
fn commits_into_another_key() {
    for mut chain in chains() {
        let handle = chain.open("top", 0, &[]);
        chain.steps(&handle, 10);
        commit(&handle, false, None, &mut go_on).unwrap();
        chain.judge(handle, "commit");
        let middle = chain.open("middle", 1, &[]);
        chain.same(&middle, "what was committed");
        commit(&middle, true, None, &mut go_on).unwrap();
        chain.judge(middle, "commit of the middle one");
        chain.same(&chain.open("base", 2, &[]), "what was committed to the base");
    }
}

#[test]
fn convert_compare_and_checksum() {
    for mut chain in chains() {
        let handle = chain.open("top", 0, &[]);
        let plain = chain.plain();
        let sum = checksum(plain.disk(), 1, &mut go_on).unwrap();
        for workers in [1, 2] {
            assert_eq!(checksum(handle.disk(), workers, &mut go_on).unwrap(), sum, "{}", chain.what);
            let how = chain.make("copy", 5, None);
            let copy = chain.open("copy", 5, &[]);
            let options =
                ConvertOptions { workers, any_order: workers > 1, target_zero: true, ..Default::default() };
            convert(handle.disk(), copy.disk(), &options, &mut go_on).unwrap();
            chain.same(&copy, &format!("a copy, {how:?}"));
            for other in [&handle, &plain] {
                let verdict = compare(copy.disk(), other.disk(), false, &mut go_on);
                assert!(matches!(verdict, Ok(Verdict::Same)), "{}", chain.what);
            }
            // The same file under one key, at other places.
            let options =
                ConvertOptions { target_offset: 512, target_zero: false, ..ConvertOptions::default() };
            resize(&copy, SIZE + 512, Preallocation::Off).unwrap();
            convert(handle.disk(), copy.disk(), &options, &mut go_on).unwrap();
            assert!(read(copy.disk(), 512, SIZE as usize) == chain.model, "moved: {}", chain.what);
            copy.close().unwrap();
        }
        chain.judge(handle, "convert");
    }
}

#[test]
fn resize_with_preallocation_detected_zeroes_and_status() {
    for mut chain in chains() {
        let mut handle = chain.open("top", 0, &["detect-zeroes=unmap"]);
        let is_old = std::fs::read(chain.path("top")).unwrap()[7] == 2;
        for how in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full, Preallocation::Off] {
            let size = chain.model.len() as u64 + 200_000 / 512 * 512;
            match resize(&handle, size, how) {
                Err(e) if is_old && how != Preallocation::Off => {
                    assert_eq!(e.to_string(), "preallocation of an encrypted image needs version 3");
                    continue;
                }
                done => done.unwrap(),
            }
            let old = chain.model.len();
            chain.model.resize(size as usize, 0);
            chain.same(&handle, &format!("{how:?}"));
            // Parts of what was prepared.
            for (at, byte) in [(old + 1000, 1), (old + 70_000, 2), (size as usize - 5000, 3)] {
                handle.disk().write(at as u64, &[IoSlice::new(&[byte; 1500])], false).unwrap();
                chain.model[at..at + 1500].fill(byte);
            }
            chain.same(&handle, &format!("{how:?}, written to"));
        }
        let zeroes = vec![0; 300_000];
        handle.disk().write(65536, &[IoSlice::new(&zeroes)], false).unwrap();
        chain.model[65536..][..zeroes.len()].fill(0);
        let status = handle.disk().status(65536, 65536, false).unwrap();
        assert!(status.zero, "zeroes that were written: {}", chain.what);
        let mut at = 0;
        while at < chain.model.len() as u64 {
            let status = handle.disk().status(at, chain.model.len() as u64 - at, false).unwrap();
            let range = &chain.model[at as usize..(at + status.length) as usize];
            assert!(!status.zero || range.iter().all(|b| *b == 0), "at {at}: {}", chain.what);
            assert_eq!(status.host, None, "a place of what is encrypted: {}", chain.what);
            at += status.length;
        }
        handle.close().unwrap();
        handle = chain.open("top", 0, &[]);
        chain.judge(handle, "resize");
    }
}

#[test]
fn an_external_data_file() {
    for mut chain in chains() {
        let how = chain.make("apart", 0, Some("backing_file=middle"));
        // Until now it shows what the middle one does.
        let middle = chain.open("middle", 1, &[]);
        chain.model = read(middle.disk(), 0, SIZE as usize);
        middle.close().unwrap();
        for round in 0..3 {
            let handle = chain.open("apart", 0, &[]);
            chain.same(&handle, &format!("{how:?}, round {round}"));
            chain.steps(&handle, 20);
            let size = chain.model.len() + 70_144;
            resize(&handle, size as u64, Preallocation::Off).unwrap();
            chain.model.resize(size, 0);
            chain.same(&handle, &format!("{how:?}, resized, round {round}"));
            handle.close().unwrap();
        }
        chain.scan("a data file");
    }
}

#[test]
fn snapshots_and_vm_state() {
    for mut chain in chains() {
        let handle = chain.open("top", 0, &[]);
        let state: Vec<u8> = CANARY.iter().copied().cycle().take(100_001).collect();
        // Any bytes at any place, as an emulator's stream has them.
        for (at, part) in (0..).zip(state.chunks(7777)) {
            vm_state::write(&handle, at * 7777, part).unwrap();
        }
        let new = snapshot::NewSnapshot { vm_state_bytes: state.len() as u64, ..snapshot_named(b"s") };
        snapshot::create(&handle, &new).unwrap();
        let kept = chain.model.clone();
        chain.steps(&handle, 15);
        chain.judge(handle, "a snapshot");
        let handle = chain.open("top", 0, &[]);
        chain.model = kept;
        snapshot::apply(&handle, SnapshotRef { id: None, name: Some(b"s") }).unwrap();
        let mut found = vec![0; state.len()];
        handle.disk().read_vm_state(0, &mut found).unwrap();
        assert!(found == state, "VM state: {}", chain.what);
        chain.judge(handle, "a snapshot applied");
        let handle = chain.open("top", 0, &[]);
        snapshot::delete(&handle, SnapshotRef { id: None, name: Some(b"s") }).unwrap();
        chain.steps(&handle, 10);
        chain.judge(handle, "a snapshot deleted");
    }
}
