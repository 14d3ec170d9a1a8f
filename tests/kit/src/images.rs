//! What the stories share: images in files and in memory, the stock tools, and the fields of a header.

use crate::oracle::{self, be64, OFFSET};
use qcow2::testing::error::Result;
use qcow2::testing::ops::check::{check, in_words, CheckOptions, CheckReport};
use qcow2::testing::ops::create::create;
use qcow2::testing::ops::formats::Driver;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::open::{OpenFlags, Opening, Origin, ResolveAnswer};
use qcow2::testing::options::{CreateOptions, OpenOptions};
use qcow2::testing::storage::memory::Memory;
use qcow2::testing::storage::{HostRun, Purpose, Storage, Traits};
use std::io::{self, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const TIB: u64 = 1 << 40;

pub const READ_ONLY: OpenFlags = OpenFlags { read_only: true, ..WRITABLE };
pub const WRITABLE: OpenFlags = OpenFlags {
    read_only: false,
    no_repair: false,
    force_share: false,
    allow_recorded: false,
    metadata_only: false,
    no_lock: false,
    format: Driver::QCOW2,
    no_backing: false,
    inactive: false,
};

/// A directory with images, and the stock tools on them.
pub struct Bench(tempfile::TempDir);

impl Bench {
    pub fn new() -> Bench {
        Bench(tempfile::tempdir().unwrap())
    }

    /// `None`, with a line that says so, where the stock tools are missing.
    pub fn with_stock_tools(story: &str) -> Option<Bench> {
        let found =
            |tool: &str| Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success());
        if found("qemu-img") && found("qemu-io") {
            return Some(Bench::new());
        }
        crate::tell!("{story}: skipped, qemu-img or qemu-io is missing");
        None
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a tool in the directory; whether it succeeded, and all that it said.
    pub fn try_run(&self, tool: &str, words: &[&str]) -> (bool, String) {
        let output = Command::new(tool).args(words).current_dir(self.0.path()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    pub fn img(&self, words: &[&str]) -> String {
        let (good, said) = self.try_run("qemu-img", words);
        assert!(good, "qemu-img {words:?}: {said}");
        said
    }

    pub fn io(&self, image: &str, commands: &[&str]) {
        let mut words = vec!["-f", "qcow2"];
        commands.iter().for_each(|c| words.extend(["-c", c]));
        words.push(image);
        let (good, said) = self.try_run("qemu-io", &words);
        assert!(good, "qemu-io {words:?}: {said}");
    }

    /// Writes with the stock tool, which then dies without closing.
    pub fn io_and_die(&self, image: &str, commands: &[&str]) {
        let mut words = vec!["-f", "qcow2"];
        commands.iter().for_each(|c| words.extend(["-c", c]));
        words.extend(["-c", "abort", image]);
        let (good, said) = self.try_run("qemu-io", &words);
        assert!(!good, "qemu-io {words:?} has not died: {said}");
    }

    /// The stock check finds nothing at all.
    pub fn assert_clean(&self, image: &str) {
        let (good, said) = self.try_run("qemu-img", &["check", "-f", "qcow2", image]);
        assert!(good, "qemu-img check {image}: {said}");
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }
}

/// Opens a file.
pub fn open_file(path: &Path, flags: OpenFlags, options: &[&str]) -> Result<Handle> {
    open_origin(&Origin::Path(path.to_owned()), flags, options)
}

pub fn open_origin(origin: &Origin, flags: OpenFlags, options: &[&str]) -> Result<Handle> {
    let options = OpenOptions::parse(options)?;
    Opening { flags, options, resolver: None, messages: None, secrets: Default::default() }.open(origin)
}

/// Opens a storage, with the backing disk that it asks for.
pub fn open_over(
    storage: &Arc<dyn Storage>,
    base: Option<&Arc<dyn Storage>>,
    flags: OpenFlags,
    options: &[&str],
) -> Result<Handle> {
    let options = OpenOptions::parse(options)?;
    let mut resolver = |_: &_| {
        let base = Arc::clone(base.expect("no backing disk was expected"));
        Ok(ResolveAnswer { origin: Origin::Custom(base), format: None })
    };
    Opening { flags, options, resolver: Some(&mut resolver), messages: None, secrets: Default::default() }
        .open(&Origin::Custom(Arc::clone(storage)))
}

/// A new image in memory.
pub fn new_image(size: u64, options: &[&str]) -> Arc<Memory> {
    let memory = Arc::new(Memory::default());
    create(&*memory, size, &CreateOptions::parse(options).unwrap()).unwrap();
    memory
}

pub fn memory(bytes: Vec<u8>) -> Arc<dyn Storage> {
    Arc::new(Memory::new(bytes))
}

/// A host with little room: a hostile image may point anywhere.
struct SmallHost(Memory);

const ROOM_BYTES: u64 = 64 * MIB;

impl SmallHost {
    fn room(end: Option<u64>) -> io::Result<()> {
        match end {
            Some(end) if end <= ROOM_BYTES => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        }
    }
}

pub fn small_host(bytes: Vec<u8>) -> Arc<dyn Storage> {
    Arc::new(SmallHost(Memory::new(bytes)))
}

impl Storage for SmallHost {
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.0.read(purpose, offset, buffers)
    }

    fn write(&self, purpose: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes: usize = buffers.iter().map(|b| b.len()).sum();
        Self::room(offset.checked_add(bytes as u64))?;
        self.0.write(purpose, offset, buffers)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        Self::room(Some(length))?;
        self.0.set_length(length)
    }

    fn write_zeroes(&self, purpose: Purpose, offset: u64, length: u64) -> io::Result<()> {
        Self::room(offset.checked_add(length))?;
        self.0.write_zeroes(purpose, offset, length)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        Self::room(offset.checked_add(length))?;
        self.0.discard(offset, length)
    }

    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        Self::room(offset.checked_add(length))?;
        self.0.preallocate(offset, length)
    }

    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
        self.0.host_run(offset)
    }

    fn traits(&self) -> Traits {
        self.0.traits()
    }
}

pub fn write(handle: &Handle, offset: u64, bytes: &[u8]) {
    handle.disk().write(offset, &[IoSlice::new(bytes)], false).unwrap();
}

pub fn try_read(handle: &Handle, offset: u64, length: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0xee; length as usize];
    handle.disk().read(offset, &mut [IoSliceMut::new(&mut bytes)])?;
    Ok(bytes)
}

pub fn read(handle: &Handle, offset: u64, length: u64) -> Vec<u8> {
    try_read(handle, offset, length).unwrap()
}

pub fn read_all(handle: &Handle) -> Vec<u8> {
    read(handle, 0, handle.disk().length())
}

/// One pass over a storage, with its messages.
pub fn checked(storage: &dyn Storage, options: CheckOptions) -> (CheckReport, Vec<String>) {
    let mut texts = Vec::new();
    let mut take = |_, text: &str| texts.push(text.into());
    let report = check(storage, options, Some(&mut in_words(&mut take)), &mut |_, _| true);
    (report.unwrap(), texts)
}

pub const LOOK: CheckOptions = CheckOptions { repair_leaks: false, repair_errors: false, workers: 1 };
pub const REPAIR: CheckOptions = CheckOptions { repair_leaks: true, repair_errors: true, workers: 1 };

pub fn assert_sound(storage: &dyn Storage) {
    let (report, texts) = checked(storage, LOOK);
    assert_eq!((report.corruptions, report.check_errors, report.leaks), (0, 0, 0), "{texts:?}");
}

/// Bytes that name their place, so that none can be taken for another.
pub fn pattern(length: u64, seed: u64) -> Vec<u8> {
    let mut rng = crate::rng::Rng::new(seed);
    (0..length / 8).flat_map(|_| rng.next().to_le_bytes()).collect()
}

/// Positions of the L2 entries of the active L1 table that are not zero, with their first words.
pub fn l2_entries(image: &[u8]) -> Vec<(usize, u64)> {
    let head = oracle::Head::fields(image);
    let mut found = Vec::new();
    for index in 0..head.l1_size {
        let table = (be64(image, (head.l1_offset + index * 8) as usize) & OFFSET) as usize;
        if table != 0 {
            let places = (table..table + head.cluster_bytes() as usize).step_by(head.entry_bytes as usize);
            found.extend(places.map(|at| (at, be64(image, at))).filter(|(_, word)| *word != 0));
        }
    }
    found
}

/// Overwrites the counts of all clusters in the file with what `value` gives for each byte. How many blocks.
pub fn scramble_counts(image: &mut [u8], mut value: impl FnMut() -> u8) -> usize {
    let head = oracle::Head::parse(image).unwrap();
    let clusters = image.len() as u64 / head.cluster_bytes();
    let mut blocks = 0;
    for first in (0..clusters).step_by(head.block_entries() as usize) {
        let index = first / head.block_entries();
        let block = (be64(image, (head.table_offset + index * 8) as usize) & OFFSET) as usize;
        let counts = (clusters - first).min(head.block_entries());
        let bytes = (counts << head.refcount_order) as usize / 8;
        image[block..block + bytes].iter_mut().for_each(|b| *b = value());
        blocks += 1;
    }
    blocks
}

pub fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Sets the dirty bit.
pub fn make_dirty(image: &mut [u8]) {
    image[79] |= 1;
}

/// Runs the calling test once more, alone in a process with 256 MiB of address space; true in that process.
pub fn in_bounded_process(test: &str) -> bool {
    const MARK: &str = "QCOW2_LESSON_BOUNDED";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    // An emulator needs an address space of its own, and is not told apart from it.
    if std::env::var_os("QCOW2_TEST_RUNNER").is_some_and(|runner| !runner.is_empty()) {
        eprintln!("skipped: not with an emulator");
        return false;
    }
    let output = Command::new("sh")
        .args(["-c", "ulimit -v 262144 && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(MARK, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "the test was not found: {said}");
    false
}
