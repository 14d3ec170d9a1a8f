// SPDX-License-Identifier: MIT OR Apache-2.0
//! imago and qcow2-rs as the driver of the benchmark calls them: open, read, write, flush, close.
//! 0 is success, -1 a failure, which is told on standard error.

use std::ffi::{c_char, c_int, c_void, CStr};
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::storage::StorageOpenOptions;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use qcow2_rs::dev::{Qcow2Dev, Qcow2DevParams};
use qcow2_rs::sync_io::Qcow2IoSync;
use qcow2_rs::utils::qcow2_setup_dev_sync;

const WRITABLE: c_int = 1;
const DIRECT: c_int = 2;

type Imago = FormatAccess<File>;
type Qcow2Rs = Qcow2Dev<Qcow2IoSync>;

/// The path, the buffer or the handle that C has passed.
unsafe fn path<'a>(name: *const c_char) -> &'a Path {
    Path::new(CStr::from_ptr(name).to_str().unwrap_or_default())
}

fn status<T, E: std::fmt::Debug>(result: Result<T, E>) -> c_int {
    match result {
        Ok(_) => 0,
        Err(error) => {
            eprintln!("{error:?}");
            -1
        }
    }
}

fn handle<T, E: std::fmt::Debug>(result: Result<T, E>) -> *mut c_void {
    match result {
        Ok(value) => Box::into_raw(Box::new(value)).cast(),
        Err(error) => {
            eprintln!("{error:?}");
            std::ptr::null_mut()
        }
    }
}

/// Blocking I/O finishes at the first poll; another thread's lock may take some more.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::yield_now(),
        }
    }
}

#[no_mangle]
pub unsafe extern "C" fn imago_open(name: *const c_char, flags: c_int) -> *mut c_void {
    let options = StorageOpenOptions::new().direct(flags & DIRECT != 0);
    let image = Qcow2::<File>::builder_path(path(name))
        .write(flags & WRITABLE != 0)
        .storage_open_options(options)
        .open(PermissiveImplicitOpenGate::default());
    handle(image.map(Imago::new))
}

#[no_mangle]
pub unsafe extern "C" fn imago_read(image: *mut c_void, buffer: *mut u8, count: usize, at: u64) -> c_int {
    let image = &*image.cast::<Imago>();
    status(image.read(std::slice::from_raw_parts_mut(buffer, count), at))
}

#[no_mangle]
pub unsafe extern "C" fn imago_write(image: *mut c_void, buffer: *const u8, count: usize, at: u64) -> c_int {
    let image = &*image.cast::<Imago>();
    status(image.write(std::slice::from_raw_parts(buffer, count), at))
}

#[no_mangle]
pub unsafe extern "C" fn imago_flush(image: *mut c_void) -> c_int {
    let image = &*image.cast::<Imago>();
    status(image.flush().and_then(|()| image.sync()))
}

#[no_mangle]
pub unsafe extern "C" fn imago_close(image: *mut c_void) {
    drop(Box::from_raw(image.cast::<Imago>()));
}

#[no_mangle]
pub unsafe extern "C" fn qcow2rs_open(name: *const c_char, flags: c_int) -> *mut c_void {
    let params = Qcow2DevParams::new(9, None, None, flags & WRITABLE == 0, flags & DIRECT != 0);
    let image = qcow2_setup_dev_sync(path(name), &params);
    handle(image.and_then(|image| block_on(image.qcow2_prep_io()).map(|()| image)))
}

#[no_mangle]
pub unsafe extern "C" fn qcow2rs_read(image: *mut c_void, buffer: *mut u8, count: usize, at: u64) -> c_int {
    let image = &*image.cast::<Qcow2Rs>();
    status(block_on(image.read_at(std::slice::from_raw_parts_mut(buffer, count), at)))
}

#[no_mangle]
pub unsafe extern "C" fn qcow2rs_write(
    image: *mut c_void,
    buffer: *const u8,
    count: usize,
    at: u64,
) -> c_int {
    let image = &*image.cast::<Qcow2Rs>();
    status(block_on(image.write_at(std::slice::from_raw_parts(buffer, count), at)))
}

#[no_mangle]
pub unsafe extern "C" fn qcow2rs_flush(image: *mut c_void) -> c_int {
    let image = &*image.cast::<Qcow2Rs>();
    status(block_on(async {
        image.flush_meta().await?;
        image.fsync_range(0, usize::MAX).await
    }))
}

#[no_mangle]
pub unsafe extern "C" fn qcow2rs_close(image: *mut c_void) {
    // It asserts that nothing is left to be written.
    let _ = block_on((*image.cast::<Qcow2Rs>()).flush_meta());
    drop(Box::from_raw(image.cast::<Qcow2Rs>()));
}
