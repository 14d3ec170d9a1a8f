//! An open handle: the C ABI as a caller uses it, with the judgement that each answer is one that may be.

use super::medium::Medium;
use qcow2::capi::*;
use std::ffi::{c_char, c_int, c_void, CStr, CString};

/// A negative answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

pub type Answer<T> = Result<T, Errno>;

/// What the library says when it has caught a panic, now or earlier.
const CAUGHT: [&str; 2] = ["internal error in libqcow2", "failed inside the library"];

pub fn last_error() -> String {
    // SAFETY: the text is never NULL and valid until the next failure on this thread.
    unsafe { CStr::from_ptr(qcow2_last_error()) }.to_string_lossy().into_owned()
}

/// Judges an answer. A caught panic is a finding; so are errors without a text and numbers that are no errno.
pub fn judge(value: i64) -> Answer<u64> {
    if let Ok(value) = u64::try_from(value) {
        return Ok(value);
    }
    let text = last_error();
    // The number, too: a fuzzer that reads the text in this program puts it into the names of options.
    let caught = value == -i64::from(libc::ENOTRECOVERABLE) && CAUGHT.iter().any(|c| text.contains(c));
    assert!(!caught, "a panic was caught: {text}");
    assert!((-4095..0).contains(&value), "{value} is no errno: {text}");
    assert!(!text.is_empty(), "an error without a text: {value}");
    Err(Errno(-value as i32))
}

fn judge_int(value: c_int) -> Answer<()> {
    judge(i64::from(value)).map(drop)
}

/// NULL-terminated option strings.
pub struct OptionList {
    _texts: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl OptionList {
    /// Strings with a NUL inside are left out.
    pub fn new<T: AsRef<[u8]>>(options: &[T]) -> OptionList {
        let texts: Vec<CString> = options.iter().filter_map(|o| CString::new(o.as_ref()).ok()).collect();
        let mut pointers: Vec<*const c_char> = texts.iter().map(|t| t.as_ptr()).collect();
        pointers.push(std::ptr::null());
        OptionList { _texts: texts, pointers }
    }

    pub fn pointer(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

/// Creates an image on `medium`.
pub fn create<T: AsRef<[u8]>>(medium: &Medium, size: u64, options: &[T]) -> Answer<()> {
    let names_data_file = options.iter().any(|o| o.as_ref().starts_with(b"data_file="));
    let options = OptionList::new(options);
    let (ops, data_ops) = (Medium::ops(true, false), Medium::ops(true, true));
    let params = qcow2_create_params {
        struct_size: std::mem::size_of::<qcow2_create_params>(),
        path: std::ptr::null(),
        fd: -1,
        io: &ops,
        io_opaque: medium.opaque(),
        size,
        options: options.pointer(),
        data_path: std::ptr::null(),
        data_fd: -1,
        data_io: if names_data_file { &data_ops } else { std::ptr::null() },
        data_io_opaque: medium.opaque(),
        flags: 0,
        format: std::ptr::null(),
        secret: Some(give_secret),
        secret_opaque: std::ptr::null_mut(),
        progress: Some(give_up),
        progress_opaque: std::ptr::null_mut(),
    };
    // SAFETY: everything lives across the call.
    judge_int(unsafe { qcow2_create_with(&params) })
}

/// Counts of one check pass.
pub type CheckResult = qcow2_check_result;

/// An open image on a medium.
pub struct Disk<'a> {
    image: *mut qcow2_image,
    pub medium: &'a Medium,
}

unsafe extern "C" fn say(opaque: *mut c_void, kind: c_int, text: *const c_char) {
    assert!((0..=3).contains(&kind), "message kind {kind}");
    // SAFETY: `opaque` is the caller's list; the text is valid during the call.
    let (list, text) = unsafe { (&mut *opaque.cast::<Vec<String>>(), CStr::from_ptr(text)) };
    if list.len() < 200 {
        list.push(text.to_string_lossy().into_owned());
    }
}

/// What an open and a close say, as long as the handle lives.
unsafe extern "C" fn hear(_: *mut c_void, kind: c_int, text: *const c_char) {
    assert!((0..=3).contains(&kind), "message kind {kind}");
    // SAFETY: the text is valid during the call.
    assert!(!unsafe { CStr::from_ptr(text) }.is_empty(), "a message without a text");
}

/// A file that an image gets, whatever it is called.
struct File {
    ops: qcow2_io_ops,
    opaque: *mut c_void,
}

/// The files that an image may name.
struct Files {
    data: File,
    /// A raw disk.
    below: Option<File>,
}

/// A secret of three bytes.
unsafe extern "C" fn give_secret(
    _: *mut c_void,
    _: *const qcow2_secret_request,
    room: *mut c_void,
    bytes: usize,
) -> i64 {
    assert!(bytes >= 3);
    // SAFETY: the library gives a buffer of that length.
    unsafe { room.cast::<[u8; 3]>().write(*b"abc") };
    3
}

/// Iteration counts are the input's; nobody waits for them.
unsafe extern "C" fn give_up(_: *mut c_void, done: u64, _: u64) -> i32 {
    i32::from(done > 0)
}

/// Nothing else that an image names is there.
unsafe extern "C" fn give_file(
    opaque: *mut c_void,
    request: *const qcow2_resolve_request,
    answer: *mut qcow2_resolve_answer,
) -> c_int {
    // SAFETY: `opaque` is the caller's `Files`; both structs live across the call.
    let (files, request, answer) = unsafe { (&*opaque.cast::<Files>(), &*request, &mut *answer) };
    let file = match (request.kind, &files.below) {
        (QCOW2_NODE_DATA_FILE, _) => &files.data,
        (_, Some(below)) => {
            answer.format = c"raw".as_ptr();
            below
        }
        _ => return -libc::EPERM,
    };
    (answer.io, answer.io_opaque) = (&file.ops, file.opaque);
    0
}

/// Cancels a walk after so many reports.
unsafe extern "C" fn patience(opaque: *mut c_void, done: u64, total: u64) -> c_int {
    assert!(done <= total, "progress says {done} of {total}");
    // SAFETY: `opaque` is the caller's counter.
    let left = unsafe { &mut *opaque.cast::<u32>() };
    *left = left.saturating_sub(1);
    c_int::from(*left == 0)
}

impl<'a> Disk<'a> {
    pub fn open<T: AsRef<[u8]>>(medium: &'a Medium, flags: u64, options: &[T]) -> Answer<Disk<'a>> {
        Self::open_files(medium, None, flags, &OptionList::new(options))
    }

    /// Opens the image over a raw disk, if it has a backing file.
    pub fn open_over(medium: &'a Medium, below: &'a Medium, flags: u64) -> Answer<Disk<'a>> {
        Self::open_files(medium, Some(below), flags, &OptionList::new::<&str>(&[]))
    }

    fn open_files(
        medium: &'a Medium,
        below: Option<&'a Medium>,
        flags: u64,
        options: &OptionList,
    ) -> Answer<Disk<'a>> {
        let writable = flags & QCOW2_OPEN_READ_ONLY == 0;
        let ops = Medium::ops(writable, false);
        let below = below.map(|b| File { ops: Medium::ops(false, false), opaque: b.opaque() });
        let data = File { ops: Medium::ops(writable, true), opaque: medium.opaque() };
        let mut files = Files { data, below };
        let params = qcow2_open_params {
            struct_size: std::mem::size_of::<qcow2_open_params>(),
            path: std::ptr::null(),
            fd: -1,
            io: &ops,
            io_opaque: medium.opaque(),
            flags,
            options: options.pointer(),
            resolve: Some(give_file),
            resolve_opaque: (&raw mut files).cast(),
            message: Some(hear),
            message_opaque: std::ptr::null_mut(),
            secret: Some(give_secret),
            secret_opaque: std::ptr::null_mut(),
            progress: Some(give_up),
            progress_opaque: std::ptr::null_mut(),
            format: std::ptr::null(),
        };
        let mut image = std::ptr::null_mut();
        // SAFETY: everything lives across the call; the medium outlives the handle.
        let opened = judge_int(unsafe { qcow2_open_with(&params, &mut image) });
        assert_eq!(opened.is_ok(), !image.is_null(), "an open has a handle or an error");
        opened.map(|()| Disk { image, medium })
    }

    /// For what has no function here.
    pub fn handle(&self) -> *mut qcow2_image {
        self.image
    }

    pub fn close(self) -> Answer<()> {
        let image = self.image;
        std::mem::forget(self);
        // SAFETY: the handle came from an open; this is its last use.
        judge_int(unsafe { qcow2_close(image) })
    }

    pub fn length(&self) -> u64 {
        // SAFETY: an open handle, here and below.
        judge(unsafe { qcow2_length(self.image) }).expect("the length of an open disk")
    }

    pub fn read(&self, at: u64, bytes: usize) -> Answer<Vec<u8>> {
        let mut out = vec![0xa5; bytes];
        // SAFETY: the buffer lives across the call.
        let count = judge(unsafe { qcow2_pread(self.image, out.as_mut_ptr().cast(), bytes, at) } as i64)?;
        assert_eq!(count, bytes as u64, "a short read");
        Ok(out)
    }

    pub fn write(&self, data: &[u8], at: u64, fua: bool) -> Answer<()> {
        let iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        let flags = if fua { QCOW2_REQ_FUA } else { 0 };
        // SAFETY: the buffer lives across the call and is only read.
        let count = judge(unsafe { qcow2_pwritev2(self.image, &iov, 1, at, flags) } as i64)?;
        assert_eq!(count, data.len() as u64, "a short write");
        Ok(())
    }

    pub fn write_compressed(&self, data: &[u8], at: u64) -> Answer<()> {
        let iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        // SAFETY: as in `write`.
        judge(unsafe { qcow2_pwritev2(self.image, &iov, 1, at, QCOW2_REQ_COMPRESSED) } as i64).map(drop)
    }

    pub fn write_vm_state(&self, data: &[u8], at: u64) -> Answer<()> {
        // SAFETY: the buffer lives across the call, here and below.
        judge(unsafe { qcow2_vmstate_write(self.image, data.as_ptr().cast(), data.len(), at) } as i64)
            .map(drop)
    }

    pub fn read_vm_state(&self, at: u64, bytes: usize) -> Answer<Vec<u8>> {
        let mut out = vec![0xa5; bytes];
        // SAFETY: as above.
        judge(unsafe { qcow2_vmstate_read(self.image, out.as_mut_ptr().cast(), bytes, at) } as i64)?;
        Ok(out)
    }

    pub fn create_snapshot(&self, name: &CStr, vm_state_size: u64) -> Answer<()> {
        let options = qcow2_snapshot_options {
            struct_size: std::mem::size_of::<qcow2_snapshot_options>(),
            id: std::ptr::null(),
            // A fixed time: an input must do the same each time.
            date_seconds: 1_000_000_000,
            date_nanoseconds: 7,
            reserved: 0,
            vm_clock_nanoseconds: 9,
            icount: u64::MAX,
            vm_state_size,
        };
        // SAFETY: everything lives across the call, here and below.
        judge_int(unsafe { qcow2_snapshot_create(self.image, name.as_ptr(), &options) })
    }

    pub fn apply_snapshot(&self, name: &CStr) -> Answer<()> {
        // SAFETY: as above.
        judge_int(unsafe { qcow2_snapshot_apply(self.image, std::ptr::null(), name.as_ptr()) })
    }

    pub fn delete_snapshot(&self, name: &CStr) -> Answer<()> {
        // SAFETY: as above.
        judge_int(unsafe { qcow2_snapshot_delete(self.image, std::ptr::null(), name.as_ptr()) })
    }

    pub fn write_zeroes(&self, at: u64, bytes: u64, flags: u64) -> Answer<()> {
        // SAFETY: an open handle.
        judge_int(unsafe { qcow2_write_zeroes(self.image, at, bytes, flags) })
    }

    pub fn discard(&self, at: u64, bytes: u64) -> Answer<()> {
        // SAFETY: an open handle.
        judge_int(unsafe { qcow2_discard(self.image, at, bytes) })
    }

    pub fn flush(&self) -> Answer<()> {
        // SAFETY: an open handle.
        judge_int(unsafe { qcow2_flush(self.image) })
    }

    pub fn truncate(&self, size: u64, preallocation: u8) -> Answer<()> {
        // SAFETY: an open handle.
        judge_int(unsafe { qcow2_truncate(self.image, size, c_int::from(preallocation & 3)) })
    }

    pub fn reopen(&self, read_only: bool) -> Answer<()> {
        let flags = if read_only { QCOW2_OPEN_READ_ONLY } else { 0 };
        // SAFETY: an open handle.
        judge_int(unsafe { qcow2_reopen(self.image, flags, std::ptr::null()) })
    }

    pub fn stream(&self, at: u64, bytes: u64) -> Answer<()> {
        // SAFETY: an open handle.
        judge_int(unsafe { qcow2_stream(self.image, at, bytes, 0, 0, None, std::ptr::null_mut()) })
    }

    /// Given away and taken back.
    pub fn hand_over(&self) -> Answer<()> {
        // SAFETY: an open handle.
        judge_int(unsafe { qcow2_inactivate(self.image) })?;
        // SAFETY: an open handle.
        judge_int(unsafe { qcow2_invalidate(self.image, std::ptr::null()) })
    }

    pub fn amend(&self, option: &str) -> Answer<()> {
        let options = OptionList::new(&[option]);
        // SAFETY: the list lives across the call.
        judge_int(unsafe { qcow2_amend(self.image, options.pointer(), 0, None, std::ptr::null_mut()) })
    }

    pub fn make_empty(&self) -> Answer<()> {
        // SAFETY: an open handle.
        judge_int(unsafe { qcow2_make_empty(self.image) })
    }

    /// Another file below, or none.
    pub fn rebase(&self, below: Option<&Disk>, name: Option<&CStr>, flags: u64) -> Answer<()> {
        let image = below.map_or(std::ptr::null_mut(), |b| b.image);
        let format = name.map_or(std::ptr::null(), |_| c"raw".as_ptr());
        let name = name.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: open handles; the texts live across the call.
        judge_int(unsafe { qcow2_rebase(self.image, image, name, format, flags, None, std::ptr::null_mut()) })
    }

    /// Copies the disk, by one thread: an input must do the same each time.
    pub fn convert(&self, target: &Disk, flags: u64) -> Answer<()> {
        let params = qcow2_convert_params {
            struct_size: std::mem::size_of::<qcow2_convert_params>(),
            flags,
            sparse_bytes: 512,
            workers: 1,
            reserved: 0,
            target_offset: 0,
            message: None,
            message_opaque: std::ptr::null_mut(),
        };
        let mut left = u32::MAX;
        // SAFETY: open handles; everything else lives across the call.
        judge_int(unsafe {
            qcow2_convert(self.image, target.image, &params, Some(patience), (&raw mut left).cast())
        })
    }

    /// Whether both disks show the same.
    pub fn is_same(&self, other: &Disk) -> Answer<bool> {
        // SAFETY: numbers only.
        let mut result: qcow2_compare_result = unsafe { std::mem::zeroed() };
        result.struct_size = std::mem::size_of::<qcow2_compare_result>();
        let mut left = u32::MAX;
        // SAFETY: open handles; everything else lives across the call.
        judge_int(unsafe {
            qcow2_compare(self.image, other.image, 0, &mut result, Some(patience), (&raw mut left).cast())
        })?;
        Ok(result.verdict == QCOW2_COMPARE_SAME)
    }

    /// Records that nothing is below.
    pub fn drop_backing_file(&self) -> Answer<()> {
        // SAFETY: an open handle; NULL is a value of both.
        judge_int(unsafe { qcow2_change_backing_file(self.image, std::ptr::null(), std::ptr::null()) })
    }

    pub fn clean_caches(&self) -> Answer<()> {
        // SAFETY: an open handle.
        judge_int(unsafe { qcow2_clean_caches(self.image) })
    }

    pub fn status(&self, at: u64, bytes: u64) -> Answer<qcow2_extent> {
        let mut extent = qcow2_extent {
            struct_size: std::mem::size_of::<qcow2_extent>(),
            length: 0,
            host_offset: 0,
            flags: 0,
            depth: 0,
        };
        // SAFETY: the struct lives across the call.
        judge_int(unsafe { qcow2_block_status(self.image, at, bytes, 0, &mut extent) })?;
        assert!((1..=bytes).contains(&extent.length), "an extent of {} of {bytes}", extent.length);
        Ok(extent)
    }

    pub fn info(&self) -> qcow2_info {
        // SAFETY: numbers and nullable pointers, for which zeroes are values.
        let mut info: qcow2_info = unsafe { std::mem::zeroed() };
        info.struct_size = std::mem::size_of::<qcow2_info>();
        // SAFETY: the struct lives across the call.
        judge_int(unsafe { qcow2_get_info(self.image, &mut info) }).expect("info of an open disk");
        for text in [info.backing_file, info.backing_format, info.data_file] {
            if !text.is_null() {
                // SAFETY: valid until the next call on the handle.
                assert!(unsafe { CStr::from_ptr(text) }.to_bytes().len() < 1 << 21);
            }
        }
        info
    }

    /// Kind and payload of each header extension.
    pub fn extensions(&self) -> Vec<(u32, Vec<u8>)> {
        let mut all = Vec::new();
        loop {
            // SAFETY: as for info.
            let mut extension: qcow2_header_extension = unsafe { std::mem::zeroed() };
            extension.struct_size = std::mem::size_of::<qcow2_header_extension>();
            // SAFETY: the struct lives across the call.
            match judge_int(unsafe { qcow2_get_header_extension(self.image, all.len(), &mut extension) }) {
                Ok(()) => {}
                Err(errno) => {
                    assert_eq!(errno, Errno(libc::ENOENT));
                    return all;
                }
            }
            let bytes = extension.length as usize;
            // SAFETY: the library says how long its data is; an empty one may point anywhere.
            let data = if bytes == 0 {
                &[][..]
            } else {
                unsafe { std::slice::from_raw_parts(extension.data.cast(), bytes) }
            };
            all.push((extension.r#type, data.to_vec()));
        }
    }

    /// Looks at the snapshots, at most `limit`; answers the names of those that could be told.
    pub fn snapshots(&self, limit: usize) -> Vec<CString> {
        let mut names = Vec::new();
        for index in 0..limit {
            // SAFETY: as for info.
            let mut snapshot: qcow2_snapshot_info = unsafe { std::mem::zeroed() };
            snapshot.struct_size = std::mem::size_of::<qcow2_snapshot_info>();
            // SAFETY: the struct lives across the call.
            if judge_int(unsafe { qcow2_get_snapshot(self.image, index, &mut snapshot) }).is_err() {
                break;
            }
            for text in [snapshot.id, snapshot.name] {
                // SAFETY: valid until the next call of the function; never NULL for a snapshot that is there.
                let told = text.is_null() || unsafe { CStr::from_ptr(text) }.to_bytes().len() <= 0xffff;
                assert!(told, "a name longer than its field can say");
            }
            if !snapshot.name.is_null() {
                // SAFETY: as above.
                names.push(unsafe { CStr::from_ptr(snapshot.name) }.to_owned());
            }
        }
        names
    }

    /// One check pass, and what it said.
    pub fn check(&self, flags: u64) -> Answer<(CheckResult, Vec<String>)> {
        // SAFETY: numbers only.
        let mut result: CheckResult = unsafe { std::mem::zeroed() };
        result.struct_size = std::mem::size_of::<CheckResult>();
        let mut messages: Vec<String> = Vec::new();
        let mut left = u32::MAX;
        // SAFETY: everything lives across the call.
        judge_int(unsafe {
            qcow2_check(
                self.image,
                flags,
                &mut result,
                Some(say),
                (&raw mut messages).cast(),
                Some(patience),
                (&raw mut left).cast(),
            )
        })?;
        Ok((result, messages))
    }

    /// The checksum, given up after some reports of progress.
    pub fn checksum(&self) -> Answer<u32> {
        let (mut crc, mut left) = (0, 64u32);
        // SAFETY: everything lives across the call.
        judge_int(unsafe { qcow2_checksum(self.image, &mut crc, Some(patience), (&raw mut left).cast()) })?;
        Ok(crc)
    }

    /// Asks for a commit, which an image without backing file must refuse.
    pub fn commit_is_refused(&self) {
        // SAFETY: an open handle.
        let answer = judge_int(unsafe { qcow2_commit(self.image, 0, None, std::ptr::null_mut()) });
        assert!(answer.is_err(), "a commit without a backing file");
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        // SAFETY: as in `close`.
        let _ = judge_int(unsafe { qcow2_close(self.image) });
    }
}
