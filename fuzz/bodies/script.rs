//! Guest requests that an input asks for, with or without a model of the disk.

use super::copies;
use super::disk::Disk;
use std::ffi::CStr;

pub const REQUEST_BYTES: usize = 6;
/// Longest request, bytes.
const MAX_BYTES: u64 = 1 << 18;

/// Names of snapshots that scripts take.
const NAMES: [&CStr; 2] = [c"script-0", c"script-1"];

/// Settings that scripts change.
const AMENDS: [&str; 8] = [
    "compat=0.10",
    "compat=1.1",
    "refcount_bits=1",
    "refcount_bits=4",
    "refcount_bits=16",
    "refcount_bits=64",
    "lazy_refcounts=on",
    "lazy_refcounts=off",
];

/// What a consistent disk holds, and held when snapshots were taken.
pub struct Model {
    pub bytes: Vec<u8>,
    snapshots: Vec<(&'static CStr, Vec<u8>)>,
}

impl Model {
    /// A model of what `disk` reads as now; `None` when it cannot be read or has snapshots of a script's names.
    pub fn new(disk: &Disk) -> Option<Model> {
        let taken = disk.snapshots(64).iter().any(|name| NAMES.contains(&name.as_c_str()));
        let bytes = disk.read(0, disk.length() as usize).ok()?;
        (!taken).then_some(Model { bytes, snapshots: Vec::new() })
    }

    fn find(&self, name: &CStr) -> Option<usize> {
        self.snapshots.iter().position(|s| s.0 == name)
    }
}

/// One guest request.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    kind: u8,
    /// In sectors, from the start, or from the end.
    at: u16,
    /// In the unit that `shape` names.
    length: u8,
    shape: u8,
    fill: u8,
}

impl Request {
    pub fn decode(bytes: [u8; REQUEST_BYTES]) -> Request {
        let [kind, low, high, length, shape, fill] = bytes;
        Request { kind, at: u16::from_le_bytes([low, high]), length, shape, fill }
    }

    /// Offset and length on a disk of `size` bytes; sometimes past its end.
    fn range(&self, size: u64) -> (u64, u64) {
        let unit = [512, 4096, 65536, 1][usize::from(self.shape & 3)];
        let bytes = (u64::from(self.length) * unit).min(MAX_BYTES);
        let at = u64::from(self.at) * 512 + u64::from(self.shape >> 2 & 3) * 100;
        let at = if self.shape & 0x80 != 0 { size.saturating_sub(at) } else { at };
        (at, bytes)
    }

    /// Bytes to write: never all zeroes, unless asked for.
    fn data(&self, bytes: u64) -> Vec<u8> {
        (0..bytes).map(|i| if self.fill == 0 { 0 } else { self.fill ^ (i / 512) as u8 | 1 }).collect()
    }

    /// Issues the request and ignores how it ends.
    pub fn issue(&self, disk: &Disk) {
        let (at, bytes) = self.range(disk.length());
        match self.kind % 14 {
            0..=2 => drop(disk.write(&self.data(bytes), at, self.shape & 0x40 != 0)),
            3 => drop(disk.write_zeroes(at, bytes, u64::from(self.fill & 7))),
            4 => drop(disk.discard(at, bytes)),
            5 => drop(disk.flush()),
            6 => drop(disk.truncate(disk.length().saturating_add(at & !511).min(1 << 40), self.fill)),
            7 => drop(disk.truncate((at & !511).min(disk.length()), 0)),
            8 => drop(disk.reopen(self.fill & 1 != 0)),
            9 => match self.fill & 7 {
                0 | 4 => drop(disk.stream(at, bytes)),
                1 | 5 => drop(disk.hand_over()),
                2 | 6 => self.change(disk, None),
                3 => drop(disk.clean_caches()),
                _ => self.copy(disk, None),
            },
            10 => {
                let (at, bytes) = self.whole_clusters(disk);
                let _ = disk.write_compressed(&self.data(bytes), at);
            }
            11 => {
                let state = self.vm_state();
                if disk.write_vm_state(&state, 0).is_ok() {
                    let _ = disk.create_snapshot(self.name(), state.len() as u64);
                }
            }
            12 => drop(disk.apply_snapshot(self.name())),
            _ => drop(disk.delete_snapshot(self.name())),
        }
    }

    /// Another setting, no backing file any more, or nothing in the image.
    fn change(&self, disk: &Disk, model: Option<&mut Vec<u8>>) {
        match (usize::from(self.length) % (AMENDS.len() + 2)).checked_sub(AMENDS.len()) {
            None => drop(disk.amend(AMENDS[usize::from(self.length) % (AMENDS.len() + 2)])),
            Some(0) => drop(disk.drop_backing_file()),
            Some(_) if disk.make_empty().is_ok() => {
                if let Some(model) = model {
                    model.fill(0);
                }
            }
            Some(_) => {}
        }
    }

    /// A copy of the disk, or of the image with another file below.
    fn copy(&self, disk: &Disk, model: Option<&[u8]>) {
        match self.length & 1 {
            0 => copies::convert(disk, self.length >> 1, model),
            _ => copies::rebase(disk, self.length >> 1, model),
        }
    }

    fn name(&self) -> &'static CStr {
        NAMES[usize::from(self.fill & 1)]
    }

    /// One to four clusters inside the disk, or none.
    fn whole_clusters(&self, disk: &Disk) -> (u64, u64) {
        let cluster = 1u64 << disk.info().cluster_bits;
        let at = (u64::from(self.at) * 512).min(disk.length()) / cluster * cluster;
        let wanted = (u64::from(self.length & 3) + 1) * cluster;
        (at, wanted.min(disk.length().saturating_sub(at)))
    }

    /// Issues the request, unless it is one that changes the disk's size; ignores how it ends.
    pub fn issue_small(&self, disk: &Disk) {
        if !matches!(self.kind % 14, 6..=8) {
            self.issue(disk);
        }
    }

    /// Issues the request on a consistent image, and on `model`, which holds the whole disk. Answers whether
    /// it was done; a request that the library refused must have changed nothing.
    pub fn issue_with_model(&self, disk: &Disk, model: &mut Model) {
        if self.kind % 14 > 10 {
            return self.snapshot_with_model(disk, model);
        }
        let model = &mut model.bytes;
        let size = model.len() as u64;
        let (at, bytes) = self.range(size);
        let (from, to) = (at.min(size) as usize, (at + bytes).min(size) as usize);
        match self.kind % 14 {
            0..=2 => {
                let data = self.data(bytes);
                if disk.write(&data, at, self.shape & 0x40 != 0).is_ok() {
                    model[from..to].copy_from_slice(&data);
                }
            }
            3 => {
                if disk.write_zeroes(at, bytes, u64::from(self.fill & 7)).is_ok() {
                    model[from..to].fill(0);
                }
            }
            4 => {
                // What a discard leaves at its ends is the geometry's business: only its outside is asked.
                if disk.discard(at, bytes).is_ok() && to > from {
                    let now = disk.read(at, to - from).expect("what was discarded can be read");
                    let kept_or_zero = |(new, old): (&u8, &u8)| *new == 0 || new == old;
                    assert!(now.iter().zip(&model[from..to]).all(kept_or_zero), "a discard made bytes up");
                    model[from..to].copy_from_slice(&now);
                }
            }
            5 => drop(disk.flush()),
            6 => {
                let new = (size + (at & !511)).min(size.max(1 << 20));
                if disk.truncate(new, self.fill).is_ok() {
                    model.resize(new as usize, 0);
                }
            }
            7 => {
                let new = (at & !511).min(size);
                if disk.truncate(new, 0).is_ok() {
                    model.truncate(new as usize);
                }
            }
            8 => disk.reopen(false).expect("a consistent image reopens"),
            9 => match self.fill & 7 {
                0 | 4 => drop(disk.stream(at, bytes)),
                1 | 5 => disk.hand_over().expect("a consistent image changes hands"),
                2 | 6 => self.change(disk, Some(model)),
                3 => disk.clean_caches().expect("caches of a consistent image can be dropped"),
                _ => self.copy(disk, Some(model)),
            },
            _ => {
                let (at, bytes) = self.whole_clusters(disk);
                let data = self.data(bytes);
                if disk.write_compressed(&data, at).is_ok() {
                    model[at as usize..(at + bytes) as usize].copy_from_slice(&data);
                }
            }
        }
    }

    /// The VM state of snapshots of this name; one of the names has none.
    fn vm_state(&self) -> Vec<u8> {
        match self.name() == NAMES[1] {
            true => b"a state".repeat(100),
            false => Vec::new(),
        }
    }

    fn snapshot_with_model(&self, disk: &Disk, model: &mut Model) {
        let (name, known) = (self.name(), model.find(self.name()));
        match self.kind % 14 {
            11 => {
                let state = self.vm_state();
                assert!(disk.write_vm_state(&state, 0).is_ok(), "a consistent image takes VM state");
                if disk.create_snapshot(name, state.len() as u64).is_ok() {
                    model.snapshots.push((name, model.bytes.clone()));
                }
            }
            12 => {
                let done = disk.apply_snapshot(name);
                assert!(done.is_err() || known.is_some(), "a snapshot that nobody took was applied");
                if let (Ok(()), Some(index)) = (done, known) {
                    model.bytes.clone_from(&model.snapshots[index].1);
                    let state = self.vm_state();
                    assert_eq!(disk.read_vm_state(0, state.len()), Ok(state), "the VM state of a snapshot");
                }
            }
            _ => {
                let done = disk.delete_snapshot(name);
                assert_eq!(done.is_ok(), known.is_some(), "deleting {name:?}: {done:?}");
                known.map(|index| model.snapshots.remove(index));
            }
        }
    }
}
