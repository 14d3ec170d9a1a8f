//! Rust, by the crate: the functions of the C interface behind a type that closes itself.
//!
//! Cargo.toml: `qcow2 = { version = "0.1", default-features = false }`. SPDX-License-Identifier: MIT OR Apache-2.0
#![allow(unsafe_code)] // the calls into a C interface, each in one line

use qcow2::capi;
use std::ffi::{CStr, CString};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// An open disk. Threads may share it: no call needs a lock.
struct Image(*mut capi::qcow2_image);

// SAFETY: "Any number of threads may use one handle at once."
unsafe impl Send for Image {}
unsafe impl Sync for Image {}

/// A result of the library: its kind by the errno, with the library's sentence.
fn check(result: i64) -> Result<u64> {
    u64::try_from(result).map_err(|_| {
        // SAFETY: never NULL, and valid until the next failure on this thread.
        let text = unsafe { CStr::from_ptr(capi::qcow2_last_error()) };
        Error::new(Error::from_raw_os_error(-result as i32).kind(), text.to_string_lossy())
    })
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| ErrorKind::InvalidInput.into())
}

impl Image {
    fn create(path: &Path, size: u64) -> Result<()> {
        let path = c_path(path)?;
        // SAFETY: a string; no options.
        check(unsafe { capi::qcow2_create(path.as_ptr(), size, std::ptr::null()) }.into()).map(drop)
    }

    fn open(path: &Path, flags: u64) -> Result<Image> {
        let path = c_path(path)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a string, no options, and a place for the handle.
        check(unsafe { capi::qcow2_open(path.as_ptr(), flags, std::ptr::null(), &mut handle) }.into())?;
        Ok(Image(handle))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        // SAFETY: an open handle, and a buffer of that length; so in the calls below.
        check(unsafe { capi::qcow2_pread(self.0, buffer.as_mut_ptr().cast(), buffer.len(), offset) } as i64)
            .map(drop)
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> Result<()> {
        check(unsafe { capi::qcow2_pwrite(self.0, buffer.as_ptr().cast(), buffer.len(), offset) } as i64)
            .map(drop)
    }

    fn flush(&self) -> Result<()> {
        check(unsafe { capi::qcow2_flush(self.0) }.into()).map(drop)
    }

    /// What drop cannot say: whether everything has reached the disk.
    fn close(self) -> Result<()> {
        let this = std::mem::ManuallyDrop::new(self);
        check(unsafe { capi::qcow2_close(this.0) }.into()).map(drop)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        unsafe { capi::qcow2_close(self.0) };
    }
}

/// Four threads write a part each, and all of it is there afterwards.
pub fn run(path: &Path) -> Result<()> {
    Image::create(path, 1 << 30)?;
    let disk = Image::open(path, 0)?;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..=4u8)
            .map(|n| {
                let disk = &disk;
                scope.spawn(move || disk.write_at(&[n; 4096], u64::from(n) * 1_000_000))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a panic of a worker"))
    })?;
    disk.flush()?;
    for n in 1..=4u8 {
        let mut back = [0; 4096];
        disk.read_at(&mut back, u64::from(n) * 1_000_000)?;
        assert_eq!(back, [n; 4096]);
    }
    let missing = Image::open(&path.with_extension("missing"), 0).err().expect("an image that is not there");
    println!("equal; and then: {missing}");
    disk.close()
}

fn main() -> Result<()> {
    run(&PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "disk.qcow2".into())))
}
