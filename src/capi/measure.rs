//! Measure.

use super::edge::{enter, give, option_list, Guarded};
use super::types::*;
use crate::error::{Error, Result};
use crate::ops::formats::Driver;
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
    enter(|| measure_format(Driver::QCOW2, size, options, source, result)) as c_int
}

/// qcow2_measure for a new file of another format: "luks", or "qcow2"; NULL is "qcow2". `options` as for
/// qcow2_create_with.
#[no_mangle]
pub unsafe extern "C" fn qcow2_measure_format(
    format: *const c_char,
    size: u64,
    options: *const *const c_char,
    source: *mut qcow2_image,
    result: *mut qcow2_measure_result,
) -> c_int {
    enter(|| {
        // SAFETY: the caller's string.
        let name = unsafe { super::text::optional_text(format, "format") }?;
        measure_format(Driver::by_name(name.unwrap_or("qcow2"))?, size, options, source, result)
    }) as c_int
}

fn measure_format(
    format: Driver,
    size: u64,
    options: *const *const c_char,
    source: *mut qcow2_image,
    result: *mut qcow2_measure_result,
) -> Result<i64> {
    if result.is_null() {
        return Err(Error::invalid("result is NULL"));
    }
    // SAFETY: the caller's list.
    let options = (format.create_options)(&unsafe { option_list(options) }?)?;
    // SAFETY: NULL, or a pointer from an open that has not been closed.
    let source = unsafe { source.cast::<Guarded>().as_ref() };
    source.map_or(Ok(()), Guarded::check)?;
    let disk = source.map(|s| s.handle.disk());
    let refused = || {
        let text = format!("Format driver '{}' does not support image creation", format.name);
        Error::unsupported(text)
    };
    let measured = (format.measure.ok_or_else(refused)?)(size, &options, disk)?;
    let value = qcow2_measure_result {
        struct_size: 0,
        required_bytes: measured.required_bytes,
        fully_allocated_bytes: measured.fully_allocated_bytes,
        bitmaps_bytes: measured.bitmaps_bytes.unwrap_or(u64::MAX),
    };
    // SAFETY: the caller's struct, checked for NULL.
    unsafe { give(value, result, "result") }.map(|()| 0)
}
