//! An image to test on: its geometry, how it is opened, what is below it; and sectors that name themselves.

use crate::bitmaps::add_bitmaps;
use crate::encrypted::{encrypt, secrets_from, Encrypted};
use crate::recorder::{as_request, Recorder};
use crate::SECTOR;
use qcow2::testing::error::Result;
use qcow2::testing::ops::create::create_with_data_file;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::open::{Named, OpenFlags, Opening, Origin, ResolveAnswer, ResolveRequest, Secrets};
use qcow2::testing::ops::snapshot::NewSnapshot;
use qcow2::testing::options::{CreateOptions, OpenOptions};
use qcow2::testing::storage::memory::Memory;
use qcow2::testing::storage::Storage;
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex};

/// The tag of every sector of a backing disk.
pub const BACKING_TAG: u32 = 0x00ba_c000;
/// A sector that no write and no backing disk has produced.
pub const BAD_TAG: u32 = u32::MAX;
/// The tag of what was there before the recording.
pub const PREFILL_TAG: u32 = 0x00f1_1000;
/// Sectors that are read with one call: a large disk costs no memory of its size.
const MOST_AT_ONCE: u64 = 4096;

/// Cache modes that differ in what is durable when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Writeback,
    Writethrough,
    MetadataWritethrough,
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub version: u32,
    pub cluster_bits: u32,
    pub refcount_order: u32,
    pub lazy: bool,
    pub mode: Mode,
    /// Virtual size in sectors.
    pub sectors: u64,
    /// Size of a raw backing disk in sectors.
    pub backing: Option<u64>,
    /// L2 and refcount caches as small as they can be.
    pub tiny_cache: bool,
    /// Sectors written (with `PREFILL_TAG`) before the recording starts.
    pub prefill: u64,
    /// Entries with 32 subclusters; needs clusters of 16 KiB.
    pub extended: bool,
    /// An eager image raises counts ahead from the first flush on.
    pub ahead: bool,
    /// Random lists take, apply and delete snapshots.
    pub snapshots: bool,
    /// Random lists change settings.
    pub amends: bool,
    /// Guest data is in an external data file; `true`: a raw one.
    pub data_file: Option<bool>,
    /// The image begins with bitmaps; random lists work on them.
    pub bitmaps: bool,
    /// How guest data is encrypted.
    pub encrypted: Option<Encrypted>,
    /// The backing disk is an encrypted image, not a raw disk.
    pub encrypted_backing: bool,
    /// How deep in a chain the image is, which says what its secret is.
    pub depth: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            version: 3,
            cluster_bits: 9,
            refcount_order: 4,
            lazy: false,
            mode: Mode::Writeback,
            sectors: 200,
            backing: None,
            tiny_cache: false,
            prefill: 0,
            extended: false,
            ahead: false,
            snapshots: false,
            amends: false,
            data_file: None,
            bitmaps: false,
            encrypted: None,
            encrypted_backing: false,
            depth: 0,
        }
    }
}

impl Setup {
    /// The bytes of a new image, with its prefill.
    pub fn create(&self) -> Vec<u8> {
        self.create_files().0
    }

    /// The bytes of a new image and of its data file.
    pub fn create_files(&self) -> (Vec<u8>, Vec<u8>) {
        let options = CreateOptions {
            version: self.version,
            cluster_bits: self.cluster_bits,
            refcount_order: self.refcount_order,
            lazy_refcounts: self.lazy,
            extended_l2: self.extended,
            backing_file: self.backing.map(|_| "base".into()),
            backing_format: self.backing.map(|_| if self.encrypted_backing { "qcow2" } else { "raw" }.into()),
            data_file: self.data_file.map(|_| "data".into()),
            data_file_raw: self.data_file == Some(true),
            ..CreateOptions::default()
        };
        let (storage, data) = (Arc::new(Memory::default()), Arc::new(Memory::default()));
        let data_file = self.data_file.map(|_| &*data as &dyn Storage);
        create_with_data_file(&*storage, data_file, self.sectors * SECTOR, &options).expect("create");
        let storage = match self.encrypted {
            None => storage,
            Some(how) => {
                let mut image = storage.contents();
                encrypt(&mut image, how, self.depth);
                Arc::new(Memory::new(image))
            }
        };
        if self.prefill > 0 || self.bitmaps {
            let handle = self.open_split(storage.clone(), data.clone()).expect("open for the prefill");
            if self.prefill > 0 {
                write(&handle, 0, self.prefill, PREFILL_TAG, false).expect("prefill");
            }
            add_bitmaps(self, &handle).expect("bitmaps");
            handle.close().expect("close after the prefill");
        }
        (storage.contents(), data.contents())
    }

    /// A recorder that holds a new image.
    pub fn recorder(&self) -> Arc<Recorder> {
        let (image, data) = self.create_files();
        let recorder = Recorder::new(image);
        recorder.set_backing(self.backing.unwrap_or(0) * SECTOR);
        if self.data_file.is_some() {
            recorder.set_data_file(Recorder::new(data));
        }
        recorder
    }

    pub fn options(&self) -> OpenOptions {
        let mut list = match self.mode {
            Mode::Writeback => vec![],
            Mode::Writethrough => vec!["cache=writethrough"],
            Mode::MetadataWritethrough => vec!["metadata-writethrough=on"],
        };
        if self.tiny_cache {
            list.extend(["l2-cache-size=0", "refcount-cache-size=0", "l2-cache-entry-size=512"]);
        }
        if self.ahead {
            list.push("refcounts-ahead=on");
        }
        OpenOptions::parse(&list).expect("options")
    }

    /// Opens the image on `storage`, repairing it if it is dirty.
    pub fn open(&self, storage: Arc<dyn Storage>) -> Result<Handle> {
        self.open_files(storage, self.backing_storage(), None)
    }

    /// Opens the image on a recorder, with its data file.
    pub fn open_recorded(&self, recorder: &Arc<Recorder>) -> Result<Handle> {
        match recorder.data_file() {
            Some(data) => self.open_split(recorder.clone(), data),
            None => self.open(recorder.clone()),
        }
    }

    /// Opens the image with its guest data on `data`.
    pub fn open_split(&self, storage: Arc<dyn Storage>, data: Arc<dyn Storage>) -> Result<Handle> {
        self.open_files(storage, self.backing_storage(), Some(data))
    }

    /// The same over a backing disk of the caller's, with or without a data file.
    pub fn open_files(
        &self,
        storage: Arc<dyn Storage>,
        backing: Arc<dyn Storage>,
        data: Option<Arc<dyn Storage>>,
    ) -> Result<Handle> {
        let mut resolver = |request: &ResolveRequest| {
            let data = data.as_ref().filter(|_| request.named == Named::DataFile);
            let file = data.unwrap_or(&backing);
            Ok(ResolveAnswer { origin: Origin::Custom(Arc::clone(file)), format: None })
        };
        let mut secrets = secrets_from(self.depth);
        let mut opening = Opening {
            flags: OpenFlags::default(),
            options: self.options(),
            resolver: Some(&mut resolver),
            messages: None,
            secrets: Secrets { source: Some(&mut secrets), progress: None },
        };
        opening.open(&Origin::Custom(storage))
    }

    /// Opens a snapshot of the image, to read it.
    pub fn open_snapshot(&self, storage: Arc<dyn Storage>, name: &str) -> Result<Handle> {
        let base = self.backing_storage();
        let mut resolver = |_: &_| Ok(ResolveAnswer { origin: Origin::Custom(base.clone()), format: None });
        let mut secrets = secrets_from(self.depth);
        let mut opening = Opening {
            flags: OpenFlags { read_only: true, ..OpenFlags::default() },
            options: OpenOptions::parse(&[&format!("snapshot.name={name}")])?,
            resolver: Some(&mut resolver),
            messages: None,
            secrets: Secrets { source: Some(&mut secrets), progress: None },
        };
        opening.open(&Origin::Custom(storage))
    }

    /// The bytes of the backing file; none without one.
    pub fn backing_file(&self) -> Vec<u8> {
        match self.backing {
            Some(sectors) if self.encrypted_backing => encrypted_backing(sectors, self.depth + 1),
            Some(sectors) => backing_bytes(sectors),
            None => Vec::new(),
        }
    }

    fn backing_storage(&self) -> Arc<dyn Storage> {
        Arc::new(Memory::new(self.backing_file()))
    }

    /// The tag that a hole at `sector` shows.
    pub fn below(&self, sector: u64) -> u32 {
        match self.backing {
            Some(length) if sector < length => BACKING_TAG,
            _ => 0,
        }
    }

    /// What every sector holds when the recording starts.
    pub fn initial(&self) -> Vec<u32> {
        (0..self.sectors).map(|s| if s < self.prefill { PREFILL_TAG } else { self.below(s) }).collect()
    }
}

/// A raw backing disk.
pub fn backing_bytes(sectors: u64) -> Vec<u8> {
    let mut bytes = vec![0; (sectors * SECTOR) as usize];
    fill(&mut bytes, 0, BACKING_TAG);
    bytes
}

/// A backing disk that is an encrypted image. Made once: lists open it for each of their states.
fn encrypted_backing(sectors: u64, depth: usize) -> Vec<u8> {
    static MADE: Mutex<BTreeMap<(u64, usize), Vec<u8>>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap();
    let make = || {
        let setup = Setup { sectors, depth, encrypted: Some(Encrypted::Aes), ..Setup::default() };
        let storage = Arc::new(Memory::new(setup.create()));
        let handle = setup.open(storage.clone()).expect("open the backing file");
        write(&handle, 0, sectors, BACKING_TAG, false).expect("fill the backing file");
        handle.close().expect("close the backing file");
        storage.contents()
    };
    made.entry((sectors, depth)).or_insert_with(make).clone()
}

/// Fills sectors from guest sector `first` on with bytes that name tag and place. Tag 0 is zeroes.
pub fn fill(bytes: &mut [u8], first: u64, tag: u32) {
    for (index, sector) in bytes.chunks_exact_mut(SECTOR as usize).enumerate() {
        let word = word_of(first + index as u64, tag);
        sector.chunks_exact_mut(8).for_each(|w| w.copy_from_slice(&word.to_le_bytes()));
    }
}

fn word_of(sector: u64, tag: u32) -> u64 {
    match tag {
        0 => 0,
        _ => u64::from(tag) << 32 | sector,
    }
}

/// The tag of guest sector `sector`.
pub fn tag_of(bytes: &[u8], sector: u64) -> u32 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[..8]);
    let first = u64::from_le_bytes(word);
    let tag = (first >> 32) as u32;
    let whole = bytes.chunks_exact(8).all(|w| w == word);
    if whole && first == word_of(sector, tag) {
        tag
    } else {
        BAD_TAG
    }
}

/// Writes `count` sectors with `tag`.
pub fn write(handle: &Handle, sector: u64, count: u64, tag: u32, fua: bool) -> Result<()> {
    let mut bytes = vec![0; (count * SECTOR) as usize];
    fill(&mut bytes, sector, tag);
    as_request(Some((sector * SECTOR, (sector + count) * SECTOR)), || {
        handle.disk().write(sector * SECTOR, &[IoSlice::new(&bytes)], fua)
    })
}

/// The same as compressed clusters.
pub fn write_compressed(handle: &Handle, sector: u64, count: u64, tag: u32) -> Result<()> {
    let mut bytes = vec![0; (count * SECTOR) as usize];
    fill(&mut bytes, sector, tag);
    as_request(Some((sector * SECTOR, (sector + count) * SECTOR)), || {
        handle.disk().write_compressed(sector * SECTOR, &[IoSlice::new(&bytes)], false)
    })
}

/// The tags of `count` sectors.
pub fn read(handle: &Handle, sector: u64, count: u64) -> Result<Vec<u32>> {
    let mut bytes = vec![0; (count.min(MOST_AT_ONCE) * SECTOR) as usize];
    let mut tags = Vec::with_capacity(count as usize);
    for first in (sector..sector + count).step_by(MOST_AT_ONCE as usize) {
        let part = (sector + count - first).min(MOST_AT_ONCE);
        let bytes = &mut bytes[..(part * SECTOR) as usize];
        handle.disk().read(first * SECTOR, &mut [IoSliceMut::new(bytes)])?;
        let sectors = bytes.chunks_exact(SECTOR as usize).zip(first..);
        tags.extend(sectors.map(|(bytes, sector)| tag_of(bytes, sector)));
    }
    Ok(tags)
}

/// The tags of all sectors.
pub fn read_all(handle: &Handle) -> Result<Vec<u32>> {
    read(handle, 0, handle.disk().length() / SECTOR)
}

/// The VM state that the snapshot `name` has: of those of an operation list every other one has some.
pub fn vm_state_of(name: &str) -> Vec<u8> {
    let tag: u32 = name.trim_start_matches('s').parse().unwrap_or(0);
    let sectors = if tag % 2 == 0 { 0 } else { 1 + tag % 4 };
    let mut bytes = vec![0; sectors as usize * SECTOR as usize];
    fill(&mut bytes, 0, tag);
    bytes
}

/// A new snapshot of this name.
pub fn snapshot_named(name: &[u8]) -> NewSnapshot {
    NewSnapshot {
        id: None,
        name: name.to_vec(),
        date_seconds: 0,
        date_nanoseconds: 0,
        guest_clock_nanoseconds: 0,
        icount: u64::MAX,
        vm_state_bytes: 0,
    }
}
