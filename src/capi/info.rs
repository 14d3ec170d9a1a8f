//! What an image is: header fields, extensions, snapshots, bitmaps. Strings belong to the handle and live until the next
//! call that fills the same struct, or until close.

use super::edge::{give, with, Guarded};
use super::strings::keep;
use super::types::*;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::extensions;
use crate::format::features::*;
use crate::format::Header;
use crate::image::{Core, Image};
use crate::meta::bitmap_directory::load_bitmaps;
use crate::ops::handle::Handle;
use crate::ops::open::Origin;
use crate::sync::locked;
use std::ffi::{c_int, CString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

fn empty_info() -> qcow2_info {
    // Written out in full it would only repeat the declaration.
    // SAFETY: a C struct of integers and pointers, for which all-zero is valid.
    unsafe { std::mem::zeroed() }
}

fn fill_header(info: &mut qcow2_info, header: &Header) {
    info.version = header.version;
    info.cluster_bits = header.cluster_bits;
    info.refcount_bits = 1 << header.refcount_order;
    info.crypt_method = header.crypt_method;
    info.header_length = header.header_length;
    info.compression_type = u32::from(header.compression_type);
    info.backing_file_offset = header.backing_file_offset;
    info.backing_file_size = header.backing_file_bytes;
    info.l1_size = header.l1_size;
    info.l1_table_offset = header.l1_table_offset;
    info.refcount_table_offset = header.refcount_table_offset;
    info.refcount_table_clusters = header.refcount_table_clusters;
    info.snapshot_count = header.snapshot_count;
    info.snapshot_table_offset = header.snapshots_offset;
    info.incompatible_features = header.incompatible;
    info.compatible_features = header.compatible;
    info.autoclear_features = header.autoclear;
    info.dirty = u32::from(header.incompatible & INCOMPAT_DIRTY != 0);
    info.corrupt = u32::from(header.incompatible & INCOMPAT_CORRUPT != 0);
    info.extended_l2 = u32::from(header.incompatible & INCOMPAT_EXTENDED_L2 != 0);
    info.data_file_raw = u32::from(header.autoclear & AUTOCLEAR_RAW_DATA != 0);
    let bitmaps = header.extension(extensions::BITMAPS).and_then(|d| extensions::bitmaps(d).ok());
    info.bitmap_count = bitmaps.map_or(0, |b| b.count);
}

fn fill_image(info: &mut qcow2_info, list: &mut Vec<CString>, core: &Core) {
    let header = core.header();
    fill_header(info, &header);
    info.lazy_refcounts = u32::from(core.is_lazy());
    info.backing_file = keep(list, header.backing_file.as_deref());
    info.backing_format =
        keep(list, header.extension_text(extensions::BACKING_FORMAT).as_ref().map(|f| f.as_bytes()));
    info.data_file = keep(list, header.extension(extensions::DATA_FILE));
}

fn collect(handle: &Handle, list: &mut Vec<CString>) -> qcow2_info {
    list.clear();
    let mut info = empty_info();
    if let Ok(image) = image_of(handle.disk(), "header") {
        fill_image(&mut info, list, &image.core());
    }
    let storage = handle.disk().storage();
    if let Origin::Path(path) = handle.origin() {
        info.path = keep(list, Some(path.as_os_str().as_bytes()));
    }
    info.virtual_size = handle.disk().length();
    info.file_length = storage.length().unwrap_or(0);
    info.allocated_bytes = storage.allocated_bytes().unwrap_or(0);
    info.read_only = u32::from(handle.flags().read_only);
    if let Some(report) = handle.repaired() {
        info.open_repaired = 1;
        info.open_corruptions_fixed = report.corruptions_fixed;
        info.open_leaks_fixed = report.leaks_fixed;
    }
    info.backing_depth = handle.disk().backing_depth() as u32;
    info.descriptor = handle.descriptor().unwrap_or(-1);
    info
}

/// Fills `info`. Returns 0 or -errno.
#[no_mangle]
pub unsafe extern "C" fn qcow2_get_info(image: *mut qcow2_image, info: *mut qcow2_info) -> c_int {
    with(image, |guarded| {
        let mut strings = locked(guarded.strings.lock());
        // SAFETY: the caller's struct, checked for NULL.
        unsafe { give(collect(&guarded.handle, &mut strings.info), info, "info") }.map(|()| 0)
    }) as c_int
}

/// qcow2_get_info for a disk of the chain: depth 0 is `image` itself, 1 its backing file, and so on, as qcow2_extent
/// counts. The strings are valid until the next call of this function on the handle. Returns 0, -ENOENT below the last
/// disk, or another -errno.
#[no_mangle]
pub unsafe extern "C" fn qcow2_get_node_info(
    image: *mut qcow2_image,
    depth: u32,
    info: *mut qcow2_info,
) -> c_int {
    with(image, |guarded| {
        let mut strings = locked(guarded.strings.lock());
        let list = &mut strings.node;
        let found = match depth {
            0 => Some(collect(&guarded.handle, list)),
            _ => guarded.handle.node_below(depth).map(|node| collect(&node, list)),
        };
        let found = found
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no disk at depth {depth}")))?;
        // SAFETY: the caller's struct, checked for NULL.
        unsafe { give(found, info, "info") }.map(|()| 0)
    }) as c_int
}

/// The image that a disk is. One of another format has none of what is asked for.
fn image_of<'a>(disk: &'a Disk, what: &str) -> Result<&'a Image> {
    Image::of(disk, what).map_err(|e| Error::new(ErrorKind::NotFound, e.to_string()))
}

fn qcow2_core(guarded: &Guarded) -> Result<Arc<Core>> {
    Ok(image_of(guarded.handle.disk(), "header")?.core())
}

/// Header extension number `index`, counted from 0, in file order. Returns 0, -ENOENT past the last one, or
/// another -errno. `data` is valid until the next call of this function.
#[no_mangle]
pub unsafe extern "C" fn qcow2_get_header_extension(
    image: *mut qcow2_image,
    index: usize,
    extension: *mut qcow2_header_extension,
) -> c_int {
    with(image, |guarded| {
        let header = qcow2_core(guarded)?.header();
        let Some(found) = header.extensions.get(index) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no header extension number {index}"),
            ));
        };
        let mut strings = locked(guarded.strings.lock());
        strings.extension.clone_from(&found.data);
        let answer = qcow2_header_extension {
            struct_size: 0,
            r#type: found.kind,
            length: found.data.len() as u32,
            offset: found.offset,
            data: strings.extension.as_ptr().cast(),
        };
        // SAFETY: the caller's struct, checked for NULL.
        unsafe { give(answer, extension, "extension") }.map(|()| 0)
    }) as c_int
}

/// Internal snapshot number `index`, counted from 0, in table order. Returns 0, -ENOENT past the last one, or
/// another -errno (EIO: the table is damaged). The strings are valid until the next call of this function.
#[no_mangle]
pub unsafe extern "C" fn qcow2_get_snapshot(
    image: *mut qcow2_image,
    index: usize,
    snapshot: *mut qcow2_snapshot_info,
) -> c_int {
    with(image, |guarded| {
        let (core, all) = image_of(guarded.handle.disk(), "snapshots")?.snapshots()?;
        let Some(found) = all.get(index) else {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no snapshot number {index}")));
        };
        let mut strings = locked(guarded.strings.lock());
        let list = &mut strings.snapshots;
        list.clear();
        let answer = qcow2_snapshot_info {
            struct_size: 0,
            id: keep(list, Some(&found.id)),
            name: keep(list, Some(&found.name)),
            vm_state_size: found.vm_state_bytes,
            date_seconds: u64::from(found.date_seconds),
            date_nanoseconds: found.date_nanoseconds,
            l1_size: found.l1_size,
            vm_clock_nanoseconds: found.guest_clock_nanoseconds,
            icount: found.icount.unwrap_or(u64::MAX),
            disk_size: found.virtual_size.unwrap_or(core.header().virtual_size),
            l1_table_offset: found.l1_table_offset,
        };
        // SAFETY: the caller's struct, checked for NULL.
        unsafe { give(answer, snapshot, "snapshot") }.map(|()| 0)
    }) as c_int
}

/// Bitmap number `index`, counted from 0, in the order of their directory. There are none where a writer that knew no
/// bitmaps has changed the image: qcow2_info.bitmap_count counts those that the header names, valid or not. Returns 0,
/// -ENOENT past the last one, or another -errno (EINVAL, EIO: the directory is damaged). The name is valid until the
/// next call of this function.
#[no_mangle]
pub unsafe extern "C" fn qcow2_get_bitmap(
    image: *mut qcow2_image,
    index: usize,
    bitmap: *mut qcow2_bitmap_info,
) -> c_int {
    with(image, |guarded| {
        let core = qcow2_core(guarded)?;
        core.check_active()?;
        let all = load_bitmaps(&**core.storage(), &core.header())?;
        let Some(found) = all.get(index) else {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no bitmap number {index}")));
        };
        let mut strings = locked(guarded.strings.lock());
        strings.bitmaps.clear();
        let answer = qcow2_bitmap_info {
            struct_size: 0,
            name: keep(&mut strings.bitmaps, Some(&found.name)),
            granularity: 1 << found.granularity_bits,
            flags: found.flags & (QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO),
            reserved: 0,
            dirty_bytes: 0,
        };
        // SAFETY: the caller's struct, checked for NULL.
        unsafe { give(answer, bitmap, "bitmap") }.map(|()| 0)
    }) as c_int
}
