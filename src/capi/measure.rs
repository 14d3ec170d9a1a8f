//! Measure.

use super::edge::{enter, give, option_list, Guarded};
use super::types::*;
use crate::error::Error;
use crate::ops::measure::measure;
use crate::options::CreateOptions;
use std::ffi::{c_char, c_int};

/// How long an image file gets.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_measure_result {
    /// sizeof(qcow2_measure_result), set by the caller.
    pub struct_size: usize,
    /// Bytes of the new file with the data of the source.
    pub required_bytes: u64,
    /// Bytes once every cluster is allocated.
    pub fully_allocated_bytes: u64,
    /// Bytes that the source's dirty bitmaps would add, if all of their bits took room; UINT64_MAX: one of the images
    /// cannot have any, or those of the source are damaged.
    pub bitmaps_bytes: u64,
}

/// Computes how long the file of a new image gets: one of `size` bytes (`source` NULL), or one that takes the contents
/// of `source` (`size` is not looked at). `options` as for qcow2_create; the option "size" is not looked at. Snapshots
/// and compression are not counted. Nothing is written. Takes a look at the tables of the source, not at its data.
///
/// Returns 0 or -errno: EINVAL (options), EFBIG (an image with these options cannot be so large), and as qcow2_pread.
#[no_mangle]
pub unsafe extern "C" fn qcow2_measure(
    size: u64,
    options: *const *const c_char,
    source: *mut qcow2_image,
    result: *mut qcow2_measure_result,
) -> c_int {
    enter(|| {
        if result.is_null() {
            return Err(Error::invalid("result is NULL"));
        }
        let options = CreateOptions::parse(&unsafe { option_list(options) }?)?;
        // SAFETY: NULL, or a pointer from an open that has not been closed.
        let source = unsafe { source.cast::<Guarded>().as_ref() };
        source.map_or(Ok(()), Guarded::check)?;
        let disk = source.map(|s| s.handle.disk());
        let measured = measure(size, &options, disk)?;
        let value = qcow2_measure_result {
            struct_size: 0,
            required_bytes: measured.required_bytes,
            fully_allocated_bytes: measured.fully_allocated_bytes,
            bitmaps_bytes: measured.bitmaps_bytes.unwrap_or(u64::MAX),
        };
        // SAFETY: the caller's struct, checked for NULL.
        unsafe { give(value, result, "result") }.map(|()| 0)
    }) as c_int
}
