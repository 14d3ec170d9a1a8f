//! A sparse file in memory, behind the callbacks of the header.

use qcow2::capi::qcow2_io_ops;
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::{Mutex, MutexGuard};

const PAGE_BYTES: u64 = 4096;
/// Most pages: an image that wants more gets ENOSPC.
const MAX_PAGES: usize = 8192;
/// Longest file, bytes: what a host's file system offers.
const MAX_LENGTH: u64 = 1 << 43;

/// Contents of a sparse file.
#[derive(Clone, Default)]
pub struct Contents {
    pages: HashMap<u64, Box<[u8; PAGE_BYTES as usize]>>,
    pub length: u64,
    /// A call was refused for room: errors that follow are no findings.
    pub was_full: bool,
    /// The external data file, which goes where the image goes; made by the first call that asks for it.
    data_file: Option<Box<Contents>>,
}

impl Contents {
    /// The external data file.
    pub fn data_file(&mut self) -> &mut Contents {
        self.data_file.get_or_insert_default()
    }

    /// Copies from `offset` on; past the end are zeroes.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        for (at, piece) in pieces(offset, out.len()) {
            let inside = (at % PAGE_BYTES) as usize;
            let to = &mut out[piece.clone()];
            match self.pages.get(&(at / PAGE_BYTES)) {
                Some(page) => to.copy_from_slice(&page[inside..inside + piece.len()]),
                None => to.fill(0),
            }
        }
    }

    /// A vector of `bytes` bytes from `offset` on.
    pub fn bytes(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        self.read(offset, &mut out);
        out
    }

    /// Stores bytes; false: no room.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let Some(end) = offset.checked_add(data.len() as u64).filter(|end| *end <= MAX_LENGTH) else {
            self.was_full = true;
            return false;
        };
        for (at, piece) in pieces(offset, data.len()) {
            let from = &data[piece];
            let index = at / PAGE_BYTES;
            if !self.pages.contains_key(&index) {
                if from.iter().all(|b| *b == 0) {
                    continue;
                }
                if self.pages.len() >= MAX_PAGES {
                    self.was_full = true;
                    return false;
                }
                self.pages.insert(index, Box::new([0; PAGE_BYTES as usize]));
            }
            if let Some(page) = self.pages.get_mut(&index) {
                let inside = (at % PAGE_BYTES) as usize;
                page[inside..inside + from.len()].copy_from_slice(from);
            }
        }
        self.length = self.length.max(end);
        true
    }

    fn clear(&mut self, offset: u64, length: u64) {
        let end = offset.saturating_add(length).min(self.length);
        for (index, page) in &mut self.pages {
            let start = index * PAGE_BYTES;
            let (from, to) = (offset.max(start), end.min(start + PAGE_BYTES));
            if from < to {
                page[(from - start) as usize..(to - start) as usize].fill(0);
            }
        }
    }

    pub fn set_length(&mut self, length: u64) -> bool {
        if length > MAX_LENGTH {
            self.was_full = true;
            return false;
        }
        self.clear(length, u64::MAX);
        self.pages.retain(|index, _| index * PAGE_BYTES < length);
        self.length = length;
        true
    }

    /// Offsets of the pages that hold something.
    pub fn stored(&self) -> Vec<u64> {
        let mut offsets: Vec<u64> = self.pages.keys().map(|i| i * PAGE_BYTES).collect();
        offsets.sort_unstable();
        offsets
    }
}

/// Cuts a range at page borders: file offset and range in the buffer.
fn pieces(offset: u64, bytes: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset.wrapping_add(done as u64);
        let count = (bytes - done).min((PAGE_BYTES - at % PAGE_BYTES) as usize);
        let range = done..done + count;
        done += count;
        (count > 0).then_some((at, range))
    })
}

/// A file that outlives the handles on it.
#[derive(Default)]
pub struct Medium {
    contents: Mutex<Contents>,
}

impl Medium {
    pub fn new(contents: Contents) -> Box<Medium> {
        Box::new(Medium { contents: Mutex::new(contents) })
    }

    pub fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The `opaque` of the callbacks. The medium must outlive the handle.
    pub fn opaque(&self) -> *mut c_void {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    /// Callbacks on the image, or on its data file.
    pub fn ops(writable: bool, of_data_file: bool) -> qcow2_io_ops {
        match of_data_file {
            true => Self::ops_of::<true>(writable),
            false => Self::ops_of::<false>(writable),
        }
    }

    fn ops_of<const DATA: bool>(writable: bool) -> qcow2_io_ops {
        qcow2_io_ops {
            struct_size: std::mem::size_of::<qcow2_io_ops>(),
            preadv: Some(preadv::<DATA>),
            pwritev: writable.then_some(pwritev::<DATA>),
            sync: Some(sync),
            length: Some(length::<DATA>),
            truncate: writable.then_some(truncate::<DATA>),
            discard: writable.then_some(discard::<DATA>),
            write_zeroes: writable.then_some(zeroes::<DATA>),
            close: None,
            event: None,
            block_status: None,
        }
    }
}

unsafe fn medium<'a>(opaque: *mut c_void) -> &'a Medium {
    // SAFETY: from `Medium::opaque`; the medium outlives the handle.
    unsafe { &*opaque.cast::<Medium>() }
}

/// The file that a callback is for.
fn part<const DATA: bool>(contents: &mut Contents) -> &mut Contents {
    if DATA {
        contents.data_file()
    } else {
        contents
    }
}

unsafe fn buffers<'a>(iov: *const libc::iovec, count: c_int) -> &'a [libc::iovec] {
    assert!((0..=1024).contains(&count), "the library passed {count} buffers");
    // SAFETY: the library passes as many as it says.
    unsafe { std::slice::from_raw_parts(iov, count as usize) }
}

unsafe extern "C" fn preadv<const DATA: bool>(
    opaque: *mut c_void,
    iov: *const libc::iovec,
    count: c_int,
    at: u64,
) -> c_int {
    // SAFETY: the contract of `qcow2_io_ops`.
    let (medium, buffers) = unsafe { (medium(opaque), buffers(iov, count)) };
    let mut contents = medium.contents();
    let contents = part::<DATA>(&mut contents);
    let mut at = at;
    for buffer in buffers {
        // SAFETY: as above.
        let out = unsafe { std::slice::from_raw_parts_mut(buffer.iov_base.cast::<u8>(), buffer.iov_len) };
        contents.read(at, out);
        at = at.saturating_add(out.len() as u64);
    }
    0
}

unsafe extern "C" fn pwritev<const DATA: bool>(
    opaque: *mut c_void,
    iov: *const libc::iovec,
    count: c_int,
    at: u64,
) -> c_int {
    // SAFETY: the contract of `qcow2_io_ops`.
    let (medium, buffers) = unsafe { (medium(opaque), buffers(iov, count)) };
    let mut contents = medium.contents();
    let contents = part::<DATA>(&mut contents);
    let mut at = at;
    for buffer in buffers {
        // SAFETY: as above.
        let data = unsafe { std::slice::from_raw_parts(buffer.iov_base.cast::<u8>(), buffer.iov_len) };
        if !contents.write(at, data) {
            return -libc::ENOSPC;
        }
        at += data.len() as u64;
    }
    0
}

unsafe extern "C" fn sync(_: *mut c_void) -> c_int {
    0
}

unsafe extern "C" fn length<const DATA: bool>(opaque: *mut c_void) -> i64 {
    // SAFETY: the contract of `qcow2_io_ops`.
    part::<DATA>(&mut unsafe { medium(opaque) }.contents()).length as i64
}

unsafe extern "C" fn truncate<const DATA: bool>(opaque: *mut c_void, length: u64) -> c_int {
    // SAFETY: the contract of `qcow2_io_ops`.
    match part::<DATA>(&mut unsafe { medium(opaque) }.contents()).set_length(length) {
        true => 0,
        false => -libc::EFBIG,
    }
}

unsafe extern "C" fn zeroes<const DATA: bool>(opaque: *mut c_void, offset: u64, length: u64) -> c_int {
    // SAFETY: the contract of `qcow2_io_ops`.
    let mut contents = unsafe { medium(opaque) }.contents();
    let contents = part::<DATA>(&mut contents);
    let Some(end) = offset.checked_add(length).filter(|end| *end <= MAX_LENGTH) else { return -libc::EINVAL };
    contents.clear(offset, length);
    contents.length = contents.length.max(end);
    0
}

unsafe extern "C" fn discard<const DATA: bool>(opaque: *mut c_void, offset: u64, length: u64) -> c_int {
    // SAFETY: the contract of `qcow2_io_ops`.
    part::<DATA>(&mut unsafe { medium(opaque) }.contents()).clear(offset, length);
    0
}
