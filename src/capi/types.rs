//! Handles, flags and result structs.

use crate::format::features::*;
use std::ffi::c_char;

/// An open disk. Opaque. Any number of threads may use one handle at once.
pub struct qcow2_image {
    _opaque: [u8; 0],
}

/// Change nothing on disk.
pub const QCOW2_OPEN_READ_ONLY: u64 = 0x1;
/// A writable open of a dirty image fails with -EUCLEAN instead of repairing it.
pub const QCOW2_OPEN_NO_REPAIR: u64 = 0x2;
/// Read although another program writes. Needs QCOW2_OPEN_READ_ONLY; what is read may be torn.
pub const QCOW2_OPEN_FORCE_SHARE: u64 = 0x4;
/// Open the backing files and data files that images name. Without it, and without a resolver, an image that
/// names one is not opened (-EPERM).
pub const QCOW2_OPEN_ALLOW_RECORDED: u64 = 0x8;
/// For info, header dumps and checks: guest I/O is -EPERM, no other file is opened, a dirty image is
/// not repaired by the open, and images with features that guest I/O does not serve can be opened.
pub const QCOW2_OPEN_METADATA_ONLY: u64 = 0x10;
/// Take no lock.
pub const QCOW2_OPEN_NO_LOCK: u64 = 0x20;
/// The file is a raw disk; every guest call works on it the same way. Formats are never guessed: without this flag a
/// file that does not begin with "QFI\xfb" is -EMEDIUMTYPE. Who guesses (qcow2_probe) lets a guest that writes a header into its raw disk
/// choose what is opened.
pub const QCOW2_OPEN_RAW: u64 = 0x40;
/// Ignore a recorded backing file: holes read as zeroes. What such a handle makes a hole (by growing; in version 2 also
/// by zeroing and discarding) shows the backing file again to an open without this flag.
pub const QCOW2_OPEN_NO_BACKING: u64 = 0x80;

/// Another program has the image, which will be taken over with qcow2_invalidate: until then the handle takes no lock
/// that keeps others out, repairs nothing, and refuses guest I/O (-EPERM), as after qcow2_inactivate.
pub const QCOW2_OPEN_INACTIVE: u64 = 0x100;

/// qcow2_open_with: `fd` is a descriptor also when it is 0, which otherwise counts as not given.
pub const QCOW2_OPEN_FD: u64 = 0x200;

/// qcow2_create_with: `fd` is a descriptor also when it is 0, which otherwise counts as not given.
pub const QCOW2_CREATE_FD: u64 = 0x1;
/// qcow2_create_with: `data_fd` is a descriptor also when it is 0, which otherwise counts as not given.
pub const QCOW2_CREATE_DATA_FD: u64 = 0x2;

/// The request is durable when the call returns.
pub const QCOW2_REQ_FUA: u64 = 0x1;
/// qcow2_write_zeroes: host clusters may be given back.
pub const QCOW2_REQ_UNMAP: u64 = 0x2;
/// qcow2_write_zeroes: -ENOTSUP rather than writing zero bytes.
pub const QCOW2_REQ_NO_FALLBACK: u64 = 0x4;

/// qcow2_pwritev2: write compressed clusters.
pub const QCOW2_REQ_COMPRESSED: u64 = 0x8;

/// The extent holds data.
pub const QCOW2_EXTENT_DATA: u32 = 0x1;
/// The extent reads as zeroes.
pub const QCOW2_EXTENT_ZERO: u32 = 0x2;
/// The layer at `depth` has the extent; without it no layer has.
pub const QCOW2_EXTENT_ALLOCATED: u32 = 0x4;
/// The extent is in compressed clusters.
pub const QCOW2_EXTENT_COMPRESSED: u32 = 0x8;
/// `host_offset` is valid.
pub const QCOW2_EXTENT_HOST_OFFSET: u32 = 0x10;
/// `host_offset` is in the external data file of that layer.
pub const QCOW2_EXTENT_IN_DATA_FILE: u32 = 0x20;

/// Incompatible feature bit: refcounts may be wrong, the writer has not closed the image.
pub const QCOW2_INCOMPATIBLE_DIRTY: u64 = 0x1;
/// Incompatible feature bit: a structure is known to be corrupt; the image must not be written.
pub const QCOW2_INCOMPATIBLE_CORRUPT: u64 = 0x2;
/// Incompatible feature bit: guest data is in an external data file.
pub const QCOW2_INCOMPATIBLE_DATA_FILE: u64 = 0x4;
/// Incompatible feature bit: the header has a compression type other than zlib.
pub const QCOW2_INCOMPATIBLE_COMPRESSION: u64 = 0x8;
/// Incompatible feature bit: L2 entries have subclusters.
pub const QCOW2_INCOMPATIBLE_EXTENDED_L2: u64 = 0x10;
/// Compatible feature bit: refcount updates may be postponed.
pub const QCOW2_COMPATIBLE_LAZY_REFCOUNTS: u64 = 0x1;
/// Autoclear feature bit: the bitmaps are consistent with the disk.
pub const QCOW2_AUTOCLEAR_BITMAPS: u64 = 0x1;
/// Autoclear feature bit: the external data file is a valid raw image.
pub const QCOW2_AUTOCLEAR_RAW_DATA: u64 = 0x2;

const _: () = assert!(
    QCOW2_INCOMPATIBLE_DIRTY == INCOMPAT_DIRTY
        && QCOW2_INCOMPATIBLE_CORRUPT == INCOMPAT_CORRUPT
        && QCOW2_INCOMPATIBLE_DATA_FILE == INCOMPAT_DATA_FILE
        && QCOW2_INCOMPATIBLE_COMPRESSION == INCOMPAT_COMPRESSION
        && QCOW2_INCOMPATIBLE_EXTENDED_L2 == INCOMPAT_EXTENDED_L2
        && QCOW2_COMPATIBLE_LAZY_REFCOUNTS == COMPAT_LAZY_REFCOUNTS
        && QCOW2_AUTOCLEAR_BITMAPS == AUTOCLEAR_BITMAPS
        && QCOW2_AUTOCLEAR_RAW_DATA == AUTOCLEAR_RAW_DATA
);

/// qcow2_block_status: do not look into backing files.
pub const QCOW2_STATUS_TOP_ONLY: u64 = 0x1;

/// qcow2_check: free clusters that are counted and not referred to.
pub const QCOW2_CHECK_REPAIR_LEAKS: u64 = 0x1;
/// qcow2_check: mend everything that can be mended.
pub const QCOW2_CHECK_REPAIR_ERRORS: u64 = 0x2;

/// qcow2_commit: do not empty the image afterwards.
pub const QCOW2_COMMIT_KEEP: u64 = 0x1;

/// qcow2_rebase: whole clusters that have to be written are written compressed.
pub const QCOW2_REBASE_COMPRESSED: u64 = 0x1;

/// qcow2_convert: data becomes compressed clusters.
pub const QCOW2_CONVERT_COMPRESSED: u64 = 0x1;
/// qcow2_convert: what the source does not hold itself is left to the target's backing file.
pub const QCOW2_CONVERT_TOP_ONLY: u64 = 0x2;
/// qcow2_convert: what is not written reads as zeroes in the target already, as in a new image.
pub const QCOW2_CONVERT_TARGET_ZERO: u64 = 0x4;
/// qcow2_convert: zeroes are written as data, so that the target is fully allocated.
pub const QCOW2_CONVERT_ALLOCATE: u64 = 0x8;
/// qcow2_convert: workers write as they come, not in the order of the disk.
pub const QCOW2_CONVERT_ANY_ORDER: u64 = 0x10;
/// qcow2_convert: sectors of the source that cannot be read become zeroes.
pub const QCOW2_CONVERT_SALVAGE: u64 = 0x20;

/// qcow2_compare: sizes must be equal, and each range allocated and zero in the same way.
pub const QCOW2_COMPARE_STRICT: u64 = 0x1;
/// The disks show the same.
pub const QCOW2_COMPARE_SAME: u32 = 0;
/// The contents differ.
pub const QCOW2_COMPARE_CONTENTS: u32 = 1;
/// Strict: the sizes differ.
pub const QCOW2_COMPARE_SIZES: u32 = 2;
/// Strict: the status of a range differs.
pub const QCOW2_COMPARE_STATUS: u32 = 3;

/// Only metadata that is needed now.
pub const QCOW2_PREALLOC_OFF: i32 = 0;
/// All tables.
pub const QCOW2_PREALLOC_METADATA: i32 = 1;
/// All tables, and host space reserved.
pub const QCOW2_PREALLOC_FALLOC: i32 = 2;
/// All tables, and zeroes written.
pub const QCOW2_PREALLOC_FULL: i32 = 3;

/// A message about the state of a check.
pub const QCOW2_MSG_INFO: i32 = 0;
/// A cluster that is counted and not referred to.
pub const QCOW2_MSG_LEAK: i32 = 1;
/// Something that is wrong.
pub const QCOW2_MSG_ERROR: i32 = 2;
/// Something that has been mended.
pub const QCOW2_MSG_REPAIR: i32 = 3;

/// qcow2_resolve_request: a backing file.
pub const QCOW2_NODE_BACKING: i32 = 1;
/// qcow2_resolve_request: an external data file.
pub const QCOW2_NODE_DATA_FILE: i32 = 2;

/// qcow2_secret_request: AES with the secret as its key, crypt_method 1.
pub const QCOW2_ENCRYPTION_AES: i32 = 1;
/// qcow2_secret_request: a LUKS header, one of whose key slots the secret opens; crypt_method 2.
pub const QCOW2_ENCRYPTION_LUKS: i32 = 2;

/// qcow2_secret_request: what opens the image as it is.
pub const QCOW2_SECRET_CURRENT: i32 = 0;
/// qcow2_secret_request: what is to open the image from now on; of a create, and of an amend that fills a key slot.
pub const QCOW2_SECRET_NEW: i32 = 1;
/// qcow2_secret_request: an amend erases the key slots that this opens.
pub const QCOW2_SECRET_OLD: i32 = 2;

/// qcow2_amend: erase and overwrite key slots even if nothing opens the image afterwards.
pub const QCOW2_AMEND_FORCE: u64 = 0x1;

/// qcow2_bitmap_add: the bitmap tracks no changes yet.
pub const QCOW2_BITMAP_DISABLED: u64 = 0x1;
/// qcow2_bitmap_info: the bitmap was not saved and may be wrong.
pub const QCOW2_BITMAP_IN_USE: u32 = 0x1;
/// qcow2_bitmap_info: the bitmap tracks every write.
pub const QCOW2_BITMAP_AUTO: u32 = 0x2;

/// Options of qcow2_create.
pub const QCOW2_SCOPE_CREATE: i32 = 1;
/// Options of qcow2_open.
pub const QCOW2_SCOPE_OPEN: i32 = 2;
/// Options of qcow2_amend.
pub const QCOW2_SCOPE_AMEND: i32 = 4;
/// Options of qcow2_create_with for the format "luks".
pub const QCOW2_SCOPE_CREATE_LUKS: i32 = 8;
/// Options of qcow2_amend for a disk of the format "luks".
pub const QCOW2_SCOPE_AMEND_LUKS: i32 = 16;

/// Where the bytes of a guest range come from. See qcow2_block_status.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_extent {
    /// sizeof(qcow2_extent), set by the caller.
    pub struct_size: usize,
    /// Bytes from the offset asked for that are alike.
    pub length: u64,
    /// Offset in the file of the layer at `depth`, with QCOW2_EXTENT_HOST_OFFSET; with QCOW2_EXTENT_IN_DATA_FILE in its
    /// external data file.
    pub host_offset: u64,
    /// QCOW2_EXTENT_*.
    pub flags: u32,
    /// 0: this image; 1: its backing file; and so on.
    pub depth: i32,
}

/// What a check found and did.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_check_result {
    /// sizeof(qcow2_check_result), set by the caller.
    pub struct_size: usize,
    /// Errors that can cost data.
    pub corruptions: u64,
    /// Clusters that are counted more often than referred to.
    pub leaks: u64,
    /// Things that could not be checked.
    pub check_errors: u64,
    /// Corruptions that have been mended.
    pub corruptions_fixed: u64,
    /// Leaks that have been mended.
    pub leaks_fixed: u64,
    /// Guest clusters of the disk.
    pub total_clusters: u64,
    /// Guest clusters with data in this image.
    pub allocated_clusters: u64,
    /// Allocated clusters that do not follow their predecessor in the file.
    pub fragmented_clusters: u64,
    /// Compressed clusters.
    pub compressed_clusters: u64,
    /// Bytes of the file up to the end of the last cluster in use.
    pub image_end_offset: u64,
}

/// One option of the table that drives parsing, help texts and the manual.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_option_info {
    /// sizeof(qcow2_option_info), set by the caller.
    pub struct_size: usize,
    /// The key. Static, like every string of this struct.
    pub name: *const c_char,
    /// "size", "bool (on/off)", "str" or "num".
    pub r#type: *const c_char,
    /// NULL where there is none.
    pub default_value: *const c_char,
    /// One line.
    pub help: *const c_char,
    /// QCOW2_SCOPE_*.
    pub scope: u32,
    /// 1: qcow2_reopen may change it.
    pub runtime: u32,
}

/// What an image is. Strings belong to the handle and are valid until the next qcow2_get_info, qcow2_reopen
/// or qcow2_close on it; NULL where there is none.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_info {
    /// sizeof(qcow2_info), set by the caller.
    pub struct_size: usize,
    /// Bytes.
    pub virtual_size: u64,
    /// Bytes of the image file.
    pub file_length: u64,
    /// Bytes that the host has allocated for it; 0 if unknown.
    pub allocated_bytes: u64,
    /// 2 or 3; 0 for a raw disk, whose other format fields are 0 too.
    pub version: u32,
    /// log2 of the cluster size in bytes.
    pub cluster_bits: u32,
    /// Width of a refcount in bits.
    pub refcount_bits: u32,
    /// 0 none, 1 AES, 2 LUKS.
    pub crypt_method: u32,
    /// Bytes of the fixed header.
    pub header_length: u32,
    /// 0 zlib, 1 zstd.
    pub compression_type: u32,
    /// Where the backing file's name is stored.
    pub backing_file_offset: u64,
    /// Its length in bytes.
    pub backing_file_size: u32,
    /// Entries of the active L1 table.
    pub l1_size: u32,
    /// Its host offset.
    pub l1_table_offset: u64,
    /// Host offset of the refcount table.
    pub refcount_table_offset: u64,
    /// Its clusters.
    pub refcount_table_clusters: u32,
    /// Internal snapshots.
    pub snapshot_count: u32,
    /// Host offset of the snapshot table.
    pub snapshot_table_offset: u64,
    /// Feature bits.
    pub incompatible_features: u64,
    /// Feature bits.
    pub compatible_features: u64,
    /// Feature bits.
    pub autoclear_features: u64,
    /// As opened; NULL for a descriptor or callbacks.
    pub path: *const c_char,
    /// As recorded in the image.
    pub backing_file: *const c_char,
    /// As recorded in the image.
    pub backing_format: *const c_char,
    /// As recorded in the image.
    pub data_file: *const c_char,
    /// 1: refcounts are lazy in this session.
    pub lazy_refcounts: u32,
    /// 1: the dirty bit is set.
    pub dirty: u32,
    /// 1: the corrupt bit is set.
    pub corrupt: u32,
    /// 1: L2 entries are extended.
    pub extended_l2: u32,
    /// 1: the external data file is a valid raw image.
    pub data_file_raw: u32,
    /// 1: opened read-only.
    pub read_only: u32,
    /// 1: the image was dirty at the last writable open, which repaired it.
    pub open_repaired: u32,
    /// Bitmaps in the image.
    pub bitmap_count: u32,
    /// Corruptions that this repair mended.
    pub open_corruptions_fixed: u64,
    /// Leaks that this repair mended.
    pub open_leaks_fixed: u64,
    /// Opened files below this one.
    pub backing_depth: u32,
    /// The host's descriptor of the image file, for polling or placement; -1 where there is none. Do not
    /// read, write or close it.
    pub descriptor: i32,
}

/// A header extension as it is stored. See qcow2_get_header_extension.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_header_extension {
    /// sizeof(qcow2_header_extension), set by the caller.
    pub struct_size: usize,
    /// The magic number.
    pub r#type: u32,
    /// Bytes of `data`.
    pub length: u32,
    /// Where `data` is stored in the file.
    pub offset: u64,
    /// The payload.
    pub data: *const std::ffi::c_void,
}

/// One bitmap: which parts of the disk have been written since some point in time.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_bitmap_info {
    /// sizeof(qcow2_bitmap_info), set by the caller.
    pub struct_size: usize,
    /// Its name.
    pub name: *const c_char,
    /// Guest bytes that one bit stands for.
    pub granularity: u64,
    /// QCOW2_BITMAP_IN_USE, QCOW2_BITMAP_AUTO.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
    /// Bytes of the disk that have changed; counted by qcow2_bitmap_list, 0 from qcow2_get_bitmap.
    pub dirty_bytes: u64,
}

/// An internal snapshot. See qcow2_get_snapshot.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_snapshot_info {
    /// sizeof(qcow2_snapshot_info), set by the caller.
    pub struct_size: usize,
    /// Unique.
    pub id: *const c_char,
    /// Not necessarily unique.
    pub name: *const c_char,
    /// Bytes of VM state.
    pub vm_state_size: u64,
    /// Seconds since 1970.
    pub date_seconds: u64,
    /// And nanoseconds.
    pub date_nanoseconds: u32,
    /// Entries of its L1 table.
    pub l1_size: u32,
    /// Time of the VM's clock.
    pub vm_clock_nanoseconds: u64,
    /// Instruction count; UINT64_MAX: none.
    pub icount: u64,
    /// Virtual size when it was taken, bytes.
    pub disk_size: u64,
    /// Host offset of its L1 table.
    pub l1_table_offset: u64,
}

/// What qcow2_snapshot_create is told beside the name; begin with QCOW2_SNAPSHOT_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_snapshot_options {
    /// sizeof(qcow2_snapshot_options), set by the caller.
    pub struct_size: usize,
    /// The ID, unique in the image; NULL: the next free number.
    pub id: *const c_char,
    /// When it was taken: seconds since 1970, 32 bits at most; 0, and no nanoseconds: now.
    pub date_seconds: u64,
    /// And nanoseconds.
    pub date_nanoseconds: u32,
    /// 0.
    pub reserved: u32,
    /// Time of the VM's clock.
    pub vm_clock_nanoseconds: u64,
    /// Instruction count of record and replay; UINT64_MAX: none.
    pub icount: u64,
    /// Bytes of VM state, written before with qcow2_vmstate_write; 0: not told, and what there is stays in the image, too.
    pub vm_state_size: u64,
}
