/*
 * libqcow2: qcow2 disk images: create, read, write, check, repair.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * A qcow2 file holds a virtual disk and takes only the room that the disk's contents need. This library
 * serves such files to emulators and hypervisors: open, pread, pwrite, flush, close. Files are exchangeable
 * with QEMU's, and a running QEMU and this library refuse to write one file at once. Link with -lqcow2
 * (pkg-config qcow2). This file is generated: change src/capi and see cbindgen.toml.
 *
 * Results. A call returns 0 or a count when it has done what it says, and -errno otherwise; errno itself means
 * nothing after it. Reads and writes are all or error, never short. qcow2_last_error() then has a sentence for
 * the user; it belongs to the thread, and what a call that succeeds does to it is left open. Errors that every
 * call on a handle can return: EINVAL (NULL, an unknown flag, an argument out of range), EPERM (the handle is
 * inactive, or for metadata only), EOWNERDEAD (see fork), ENOTRECOVERABLE (an earlier sync
 * failed, and nothing more will be written: close the handle and open the image again). A write that the host refuses,
 * as when it is full (ENOSPC, EDQUOT, EIO), ends nothing: what earlier calls have answered for is kept in memory, each
 * flush tries to write it, and once the host takes it the handle goes on as if nothing had been.
 *
 * Threads. Any number of threads may call on one handle at once and need no lock of their own; reads do not
 * wait for each other. Only qcow2_close must be the last call. Requests of one moment that overlap are not
 * ordered. The library has no threads but those that a call is told to use (workers, check-threads,
 * compress-threads): these end with the call and take no signals. It installs no signal handlers, prints
 * nothing, and never ends the process.
 *
 * Stack. An open, and what loads an image anew (reopen, resize, snapshots), needs up to 64 KiB of the calling
 * thread's stack, whatever the length of the chain; a request 32 KiB. A request, close, inactivate and invalidate
 * need 1 KiB more for each backing file below, of which there are 200 at most. 256 KiB are enough for all of them,
 * without what the caller's own functions need. On s390x, where each frame has 160 bytes of the ABI's own, it is
 * 2 KiB for each backing file, and 512 KiB in all.
 *
 * Callbacks run on the thread that called, those of a storage also on the workers of qcow2_convert. They must
 * not call on the same handle, and must return. A message or progress function may be NULL. Progress is `done`
 * of `total`, in units of the call's own.
 *
 * Buffers and strings that a caller passes are touched only during the call; the caller owns and frees them.
 * Strings that the library returns belong to it, and the functions say for how long; until the next call
 * means a call on the same handle by whatever thread, so that threads which list must agree. A handle is freed
 * by qcow2_close and by nothing else. Names of files and of snapshots are bytes, all other options are ASCII
 * text. In what qcow2_last_error and messages say, bytes of a name that are not UTF-8 show as U+FFFD.
 *
 * fork. The child's copy of a handle is dead: every call answers EOWNERDEAD and touches nothing, and closing
 * it does not disturb the parent. pthread_cancel: a call is never interrupted half-way; a thread that is
 * cancelled meanwhile ends after it, at the caller's next cancellation point. Exit or death without
 * qcow2_close leaves an image that opens again: everything flushed is in it.
 *
 * Sized structs. The first field, struct_size, is set by the caller to sizeof of the struct. Fields are only
 * ever added at the end: a program built for an older library passes a smaller struct and gets what fits;
 * what a smaller input struct lacks counts as not given. An input struct with non-zero fields that this
 * library does not know is ENOTSUP; an output struct's unknown fields are left as they are. The structs
 * that carry functions are copied. Unknown bits in flags are EINVAL.
 *
 * Nothing is opened because an image names it (a backing file, a data file) unless the caller says so: by
 * QCOW2_OPEN_ALLOW_RECORDED for all of them, or by a resolver for each one.
 */

#ifndef QCOW2_H
#define QCOW2_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* The version of this header. The library has the same or a newer one, qcow2_version. */
#define QCOW2_VERSION "0.1.0"
#define QCOW2_VERSION_MAJOR 0
#define QCOW2_VERSION_MINOR 1
#define QCOW2_VERSION_PATCH 0

/* Whether this header has that version or a newer one. For #if, too. */
#define QCOW2_VERSION_CHECK(major, minor, patch) \
    (QCOW2_VERSION_MAJOR > (major) || \
     (QCOW2_VERSION_MAJOR == (major) && \
      (QCOW2_VERSION_MINOR > (minor) || (QCOW2_VERSION_MINOR == (minor) && QCOW2_VERSION_PATCH >= (patch)))))

/* For a variable of type qcow2_open_params: struct_size set, everything else "not given". */
#define QCOW2_OPEN_PARAMS_INIT \
    { sizeof(qcow2_open_params), NULL, -1, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL }

/* For a variable of type qcow2_create_params: struct_size set, the size by option, everything else "not given". */
#define QCOW2_CREATE_PARAMS_INIT \
    { sizeof(qcow2_create_params), NULL, -1, NULL, NULL, UINT64_MAX, NULL, NULL, -1, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL }

/* For a variable of type qcow2_amend_params: struct_size set, everything else "not given". */
#define QCOW2_AMEND_PARAMS_INIT { sizeof(qcow2_amend_params), NULL, 0, NULL, NULL, NULL, NULL }

/* For a variable of type qcow2_snapshot_options: struct_size set, now, the next free ID, no instruction count. */
#define QCOW2_SNAPSHOT_OPTIONS_INIT \
    { sizeof(qcow2_snapshot_options), NULL, 0, 0, 0, 0, UINT64_MAX, 0 }

/* Change nothing on disk. */
#define QCOW2_OPEN_READ_ONLY 1

/* A writable open of a dirty image fails with -EUCLEAN instead of repairing it. */
#define QCOW2_OPEN_NO_REPAIR 2

/* Read although another program writes. Needs QCOW2_OPEN_READ_ONLY; what is read may be torn. */
#define QCOW2_OPEN_FORCE_SHARE 4

/*
 * Open the backing files and data files that images name. Without it, and without a resolver, an image that
 * names one is not opened (-EPERM).
 */
#define QCOW2_OPEN_ALLOW_RECORDED 8

/*
 * For info, header dumps and checks: guest I/O is -EPERM, no other file is opened, a dirty image is
 * not repaired by the open, and images with features that guest I/O does not serve can be opened.
 */
#define QCOW2_OPEN_METADATA_ONLY 16

/* Take no lock. */
#define QCOW2_OPEN_NO_LOCK 32

/*
 * The file is a raw disk; every guest call works on it the same way. Formats are never guessed: without this flag a
 * file that does not begin with "QFI\xfb" is -EMEDIUMTYPE. Who guesses (qcow2_probe) lets a guest that writes a header into its raw disk
 * choose what is opened.
 */
#define QCOW2_OPEN_RAW 64

/*
 * Ignore a recorded backing file: holes read as zeroes. What such a handle makes a hole (by growing; in version 2 also
 * by zeroing and discarding) shows the backing file again to an open without this flag.
 */
#define QCOW2_OPEN_NO_BACKING 128

/*
 * Another program has the image, which will be taken over with qcow2_invalidate: until then the handle takes no lock
 * that keeps others out, repairs nothing, and refuses guest I/O (-EPERM), as after qcow2_inactivate.
 */
#define QCOW2_OPEN_INACTIVE 256

/* qcow2_open_with: `fd` is a descriptor also when it is 0, which otherwise counts as not given. */
#define QCOW2_OPEN_FD 512

/* qcow2_create_with: `fd` is a descriptor also when it is 0, which otherwise counts as not given. */
#define QCOW2_CREATE_FD 1

/* qcow2_create_with: `data_fd` is a descriptor also when it is 0, which otherwise counts as not given. */
#define QCOW2_CREATE_DATA_FD 2

/* The request is durable when the call returns. */
#define QCOW2_REQ_FUA 1

/* qcow2_write_zeroes: host clusters may be given back. */
#define QCOW2_REQ_UNMAP 2

/* qcow2_write_zeroes: -ENOTSUP rather than writing zero bytes. */
#define QCOW2_REQ_NO_FALLBACK 4

/* qcow2_pwritev2: write compressed clusters. */
#define QCOW2_REQ_COMPRESSED 8

/* The extent holds data. */
#define QCOW2_EXTENT_DATA 1

/* The extent reads as zeroes. */
#define QCOW2_EXTENT_ZERO 2

/* The layer at `depth` has the extent; without it no layer has. */
#define QCOW2_EXTENT_ALLOCATED 4

/* The extent is in compressed clusters. */
#define QCOW2_EXTENT_COMPRESSED 8

/* `host_offset` is valid. */
#define QCOW2_EXTENT_HOST_OFFSET 16

/* `host_offset` is in the external data file of that layer. */
#define QCOW2_EXTENT_IN_DATA_FILE 32

/* Incompatible feature bit: refcounts may be wrong, the writer has not closed the image. */
#define QCOW2_INCOMPATIBLE_DIRTY 1

/* Incompatible feature bit: a structure is known to be corrupt; the image must not be written. */
#define QCOW2_INCOMPATIBLE_CORRUPT 2

/* Incompatible feature bit: guest data is in an external data file. */
#define QCOW2_INCOMPATIBLE_DATA_FILE 4

/* Incompatible feature bit: the header has a compression type other than zlib. */
#define QCOW2_INCOMPATIBLE_COMPRESSION 8

/* Incompatible feature bit: L2 entries have subclusters. */
#define QCOW2_INCOMPATIBLE_EXTENDED_L2 16

/* Compatible feature bit: refcount updates may be postponed. */
#define QCOW2_COMPATIBLE_LAZY_REFCOUNTS 1

/* Autoclear feature bit: the bitmaps are consistent with the disk. */
#define QCOW2_AUTOCLEAR_BITMAPS 1

/* Autoclear feature bit: the external data file is a valid raw image. */
#define QCOW2_AUTOCLEAR_RAW_DATA 2

/* qcow2_block_status: do not look into backing files. */
#define QCOW2_STATUS_TOP_ONLY 1

/* qcow2_check: free clusters that are counted and not referred to. */
#define QCOW2_CHECK_REPAIR_LEAKS 1

/* qcow2_check: mend everything that can be mended. */
#define QCOW2_CHECK_REPAIR_ERRORS 2

/* qcow2_commit: do not empty the image afterwards. */
#define QCOW2_COMMIT_KEEP 1

/* qcow2_rebase: whole clusters that have to be written are written compressed. */
#define QCOW2_REBASE_COMPRESSED 1

/* qcow2_convert: data becomes compressed clusters. */
#define QCOW2_CONVERT_COMPRESSED 1

/* qcow2_convert: what the source does not hold itself is left to the target's backing file. */
#define QCOW2_CONVERT_TOP_ONLY 2

/* qcow2_convert: what is not written reads as zeroes in the target already, as in a new image. */
#define QCOW2_CONVERT_TARGET_ZERO 4

/* qcow2_convert: zeroes are written as data, so that the target is fully allocated. */
#define QCOW2_CONVERT_ALLOCATE 8

/* qcow2_convert: workers write as they come, not in the order of the disk. */
#define QCOW2_CONVERT_ANY_ORDER 16

/* qcow2_convert: sectors of the source that cannot be read become zeroes. */
#define QCOW2_CONVERT_SALVAGE 32

/* qcow2_compare: sizes must be equal, and each range allocated and zero in the same way. */
#define QCOW2_COMPARE_STRICT 1

/* The disks show the same. */
#define QCOW2_COMPARE_SAME 0

/* The contents differ. */
#define QCOW2_COMPARE_CONTENTS 1

/* Strict: the sizes differ. */
#define QCOW2_COMPARE_SIZES 2

/* Strict: the status of a range differs. */
#define QCOW2_COMPARE_STATUS 3

/* Only metadata that is needed now. */
#define QCOW2_PREALLOC_OFF 0

/* All tables. */
#define QCOW2_PREALLOC_METADATA 1

/* All tables, and host space reserved. */
#define QCOW2_PREALLOC_FALLOC 2

/* All tables, and zeroes written. */
#define QCOW2_PREALLOC_FULL 3

/* A message about the state of a check. */
#define QCOW2_MSG_INFO 0

/* A cluster that is counted and not referred to. */
#define QCOW2_MSG_LEAK 1

/* Something that is wrong. */
#define QCOW2_MSG_ERROR 2

/* Something that has been mended. */
#define QCOW2_MSG_REPAIR 3

/* qcow2_resolve_request: a backing file. */
#define QCOW2_NODE_BACKING 1

/* qcow2_resolve_request: an external data file. */
#define QCOW2_NODE_DATA_FILE 2

/* qcow2_secret_request: AES with the secret as its key, crypt_method 1. */
#define QCOW2_ENCRYPTION_AES 1

/* qcow2_secret_request: a LUKS header, one of whose key slots the secret opens; crypt_method 2. */
#define QCOW2_ENCRYPTION_LUKS 2

/* qcow2_secret_request: what opens the image as it is. */
#define QCOW2_SECRET_CURRENT 0

/* qcow2_secret_request: what is to open the image from now on; of a create, and of an amend that fills a key slot. */
#define QCOW2_SECRET_NEW 1

/* qcow2_secret_request: an amend erases the key slots that this opens. */
#define QCOW2_SECRET_OLD 2

/* qcow2_amend: erase and overwrite key slots even if nothing opens the image afterwards. */
#define QCOW2_AMEND_FORCE 1

/* qcow2_bitmap_add: the bitmap tracks no changes yet. */
#define QCOW2_BITMAP_DISABLED 1

/* qcow2_bitmap_info: the bitmap was not saved and may be wrong. */
#define QCOW2_BITMAP_IN_USE 1

/* qcow2_bitmap_info: the bitmap tracks every write. */
#define QCOW2_BITMAP_AUTO 2

/* Options of qcow2_create. */
#define QCOW2_SCOPE_CREATE 1

/* Options of qcow2_open. */
#define QCOW2_SCOPE_OPEN 2

/* Options of qcow2_amend. */
#define QCOW2_SCOPE_AMEND 4

/* Options of qcow2_create_with for the format "luks". */
#define QCOW2_SCOPE_CREATE_LUKS 8

/* Options of qcow2_amend for a disk of the format "luks". */
#define QCOW2_SCOPE_AMEND_LUKS 16

/* A refcount that is not the number of references. place: host cluster; value: refcount; count: references. */
#define QCOW2_FINDING_REFCOUNT 1

/* A refcount that cannot be read. place: host cluster. */
#define QCOW2_FINDING_REFCOUNT_UNREADABLE 2

/* Why refcounts cannot be read. place: index of the refcount block; value: its host offset. */
#define QCOW2_FINDING_REFCOUNT_BLOCK_UNUSABLE 3

/* A refcount table entry with reserved bits set. place: index; value: the entry. */
#define QCOW2_FINDING_REFCOUNT_TABLE_RESERVED 4

/* A refcount block that begins inside a cluster. place: index; value: its host offset. */
#define QCOW2_FINDING_REFCOUNT_BLOCK_UNALIGNED 5

/* A refcount block whose cluster has another use, too. place: index; value: host offset; count: references. */
#define QCOW2_FINDING_REFCOUNT_BLOCK_SHARED 6

/* A refcount block past the end of the file. place: index; value: its host offset. */
#define QCOW2_FINDING_REFCOUNT_BLOCK_OUTSIDE 7

/* The file does not grow over such a block. place: the end that it was to have. */
#define QCOW2_FINDING_NOT_GROWN 8

/* The refcounts can be mended by a rebuild only. */
#define QCOW2_FINDING_REBUILD_NEEDED 9

/* All refcount structures are built anew. */
#define QCOW2_FINDING_REBUILD 10

/* Something reaches past the end of the file. place: host offset; value: bytes. */
#define QCOW2_FINDING_REGION_OUTSIDE 11

/* More references than a refcount of this width holds. place: host offset. */
#define QCOW2_FINDING_OVERFLOW 12

/* An L1 entry with reserved bits set. place: host offset of the entry; value: the entry. */
#define QCOW2_FINDING_L1_RESERVED 13

/* An L2 table that begins inside a cluster. place: host offset of its L1 entry; value: of the table. */
#define QCOW2_FINDING_L2_TABLE_UNALIGNED 14

/* A wrong COPIED flag of an L1 entry. place: index; value: the entry; count: the table's refcount. */
#define QCOW2_FINDING_L1_COPIED 15

/* A wrong COPIED flag of an L2 entry. place: host offset of the entry; value: the entry; count: refcount. */
#define QCOW2_FINDING_L2_COPIED 16

/* An L2 entry with reserved bits set. place: host offset of the entry; value: the entry. */
#define QCOW2_FINDING_L2_RESERVED 17

/* Data that begins inside a cluster. place: host offset of the L2 entry; value: of the data. */
#define QCOW2_FINDING_DATA_UNALIGNED 18

/* The same of a cluster without data. */
#define QCOW2_FINDING_PREALLOCATED_UNALIGNED 19

/* Subclusters that are allocated in no cluster. place: host offset of the L2 entry; value: bitmap. */
#define QCOW2_FINDING_SUBCLUSTERS_WITHOUT 20

/* Subclusters that are allocated and zero. place: as above; value: host offset of the data; count: bitmap. */
#define QCOW2_FINDING_SUBCLUSTERS_TWICE 21

/* A compressed cluster with a COPIED flag. place: host offset of the L2 entry; value: of the data. */
#define QCOW2_FINDING_COMPRESSED_COPIED 22

/* A compressed cluster in an image with a data file. place: as above; value: the entry; count: its index. */
#define QCOW2_FINDING_COMPRESSED_IN_DATA_FILE 23

/* A compressed cluster with subclusters. place: as above; value: the entry; count: its index. */
#define QCOW2_FINDING_COMPRESSED_SUBCLUSTERS 24

/* Snapshots in an image with a data file. count: how many. */
#define QCOW2_FINDING_SNAPSHOTS_WITH_DATA_FILE 25

/* An L1 table of a snapshot that begins inside a cluster. place: index of the snapshot; value: host offset. */
#define QCOW2_FINDING_SNAPSHOT_L1_UNALIGNED 26

/* An L1 table of a snapshot that is too large. place: index of the snapshot; value: entries. */
#define QCOW2_FINDING_SNAPSHOT_L1_TOO_LARGE 27

/* A snapshot without the data that version 3 asks for. place: index of the snapshot. */
#define QCOW2_FINDING_SNAPSHOT_INCOMPLETE 28

/* More snapshots than there may be. count: how many are too many. */
#define QCOW2_FINDING_SNAPSHOTS_TOO_MANY 29

/* A snapshot table with more bytes than it may have. count: snapshots past that. */
#define QCOW2_FINDING_SNAPSHOT_TABLE_TOO_BIG 30

/* A snapshot with too much extra data. place: index of the snapshot; value: bytes; count: the most. */
#define QCOW2_FINDING_SNAPSHOT_EXTRA 31

/* No finding, but what helps: other refcounts. */
#define QCOW2_FINDING_HINT_AMEND 32

/* No finding, but what helps: a repair that drops snapshots. count: how many. */
#define QCOW2_FINDING_HINT_SNAPSHOTS 33

/* No finding, but what helps: a repair that drops extra data of snapshots. */
#define QCOW2_FINDING_HINT_EXTRA 34

/*
 * An entry of a dirty bitmap's table whose cluster has another use, too: the bitmap is not to be believed. place: index
 * of the entry; value: the entry; count: references. Its wrong refcount is a finding of its own, which is counted.
 */
#define QCOW2_FINDING_BITMAP_SHARED 35

/*
 * The table of a dirty bitmap has a cluster with another use, too: a writable open refuses the bitmaps, unless that one is
 * not believed. place: offset of that cluster; value: offset of the table; count: references. A refcount that is too low
 * is a finding of its own, which is counted; otherwise this one is. No repair mends it: the bitmap is to be removed, or all are to be dropped.
 */
#define QCOW2_FINDING_BITMAP_TABLE_SHARED 36

/* As QCOW2_FINDING_BITMAP_TABLE_SHARED, of the bitmap directory. value: its offset. */
#define QCOW2_FINDING_BITMAP_DIRECTORY_SHARED 37

/* Nothing has failed on this thread. */
#define QCOW2_ERROR_NONE 0

/* An argument or option is out of range: EINVAL. */
#define QCOW2_ERROR_INVALID 1

/* The image or the host cannot do this: ENOTSUP. */
#define QCOW2_ERROR_UNSUPPORTED 2

/* The image breaks a rule of the format: EIO. */
#define QCOW2_ERROR_CORRUPT 3

/* The file is not a qcow2 image: EMEDIUMTYPE. */
#define QCOW2_ERROR_NOT_QCOW2 4

/* A guest range ends past the virtual disk: EIO. */
#define QCOW2_ERROR_PAST_END 5

/* A compressed write would overwrite a cluster: EIO. */
#define QCOW2_ERROR_OCCUPIED 6

/* The handle is read-only: EROFS. */
#define QCOW2_ERROR_READ_ONLY 7

/* Somebody else holds the image: EAGAIN. */
#define QCOW2_ERROR_LOCKED 8

/* The image is dirty and must not be repaired: EUCLEAN. */
#define QCOW2_ERROR_DIRTY 9

/* The image is marked corrupt, or has just been; writes are refused: EIO. */
#define QCOW2_ERROR_MARKED_CORRUPT 10

/* An earlier sync failed, or the library did; only reopening helps: ENOTRECOVERABLE. */
#define QCOW2_ERROR_LATCHED 11

/* The handle belongs to the parent process: EOWNERDEAD. */
#define QCOW2_ERROR_FORKED 12

/* A size or a table is over its limit: EFBIG. */
#define QCOW2_ERROR_TOO_LARGE 13

/* No memory: ENOMEM. */
#define QCOW2_ERROR_NO_MEMORY 14

/* A callback asked to stop: ECANCELED. */
#define QCOW2_ERROR_CANCELLED 15

/* The caller did not allow it: EPERM. */
#define QCOW2_ERROR_NOT_ALLOWED 16

/* There is no such item: ENOENT. */
#define QCOW2_ERROR_NOT_FOUND 17

/* A loop of backing files, or too many of them: ELOOP. */
#define QCOW2_ERROR_LOOP 18

/* The host, or a callback, answered with this errno. */
#define QCOW2_ERROR_HOST 19

/* The image is encrypted, and no secret was given: ENOKEY. */
#define QCOW2_ERROR_NO_SECRET 20

/* The secret opens no key slot of the image: EKEYREJECTED. */
#define QCOW2_ERROR_WRONG_SECRET 21

/* An open disk. Opaque. Any number of threads may use one handle at once. */
typedef struct qcow2_image qcow2_image;

/*
 * The parts of what qcow2_last_error says, which is `summary`, `hint` and, if there is a `detail`, " [", `detail` and
 * "]". No string is NULL; a part that the failure does not have is "".
 */
typedef struct qcow2_error_detail {
    /* sizeof(qcow2_error_detail), set by the caller. */
    size_t struct_size;
    /* What the call returned: -errno; 0 if nothing has failed on this thread. */
    int32_t result;
    /* QCOW2_ERROR_*: finer than errno. Kinds may be added. */
    uint32_t kind;
    /* What went wrong, in the words of the stock tools where they have some. */
    const char *summary;
    /*
     * What may help. It follows `summary` at once and begins with what stands between them: a line break, or a space
     * and a parenthesis.
     */
    const char *hint;
    /* What the stock tools do not say: fields, values, limits, and last the file, as "in 'file'". */
    const char *detail;
    /* The file that the failure is about, of a chain the one that has it, where it is known. */
    const char *file;
    /* The key of the option that was refused. */
    const char *option;
    /* What the host said, or the sentence of the error that this one was made from. */
    const char *cause;
    /* Of a broken rule of the format: which structure of the image. */
    const char *structure;
    /* Of a broken rule: where in the structure. */
    const char *index;
    /* Of a broken rule: what the rule is. */
    const char *rule;
    /* Of a broken rule: what the image has there; otherwise 0. */
    uint64_t value;
} qcow2_error_detail;

/*
 * A caller's storage. The functions return 0 or -errno and move whole ranges; a read past the end fills
 * zeroes. They are called from every thread that calls the library, several at once. Optional ones may be
 * NULL. The table is copied by the call that takes it.
 */
typedef struct qcow2_io_ops {
    /* sizeof(qcow2_io_ops), set by the caller. */
    size_t struct_size;
    /* Fills the buffers from `offset`. */
    int (*preadv)(void *opaque, const struct iovec *iov, int iovcnt, uint64_t offset);
    /* Writes the buffers at `offset`. NULL: the storage is read-only. */
    int (*pwritev)(void *opaque, const struct iovec *iov, int iovcnt, uint64_t offset);
    /* Makes every completed write durable. NULL: they are at once. */
    int (*sync)(void *opaque);
    /* Length in bytes, or -errno. */
    int64_t (*length)(void *opaque);
    /* Cuts, or extends with zeroes. Optional: without it storage grows by writes, and never shrinks. */
    int (*truncate)(void *opaque, uint64_t length);
    /* The range is not needed any more. Optional. */
    int (*discard)(void *opaque, uint64_t offset, uint64_t length);
    /* Makes the range read as zeroes. Optional. */
    int (*write_zeroes)(void *opaque, uint64_t offset, uint64_t length);
    /*
     * Called once, when the library is done with the storage, also when the call that was given it fails: it is the
     * library's from the moment of that call. Not where nothing was handed over: the struct that names it, or this one,
     * is refused for its `struct_size` or for fields that this version does not know. Optional.
     */
    void (*close)(void *opaque);
    /*
     * For tests against faults: told what the engine is about to do here, by the names of the stock tools' driver for
     * faults: read_aio, write_aio (guest data), l1_update, l2_load, l2_update, reftable_load, reftable_update,
     * refblock_load, refblock_update_part (just before that read or write); l1_grow_alloc_table, l1_grow_write_table,
     * l1_grow_activate_table, l2_alloc_write, cluster_alloc, cluster_alloc_bytes, cluster_free, reftable_grow,
     * refblock_alloc, refblock_alloc_write, refblock_alloc_hookup, refblock_alloc_write_blocks, refblock_alloc_write_table,
     * refblock_alloc_switch_table, empty_image_prepare, read_compressed, write_compressed, flush_to_os,
     * flush_to_disk (as a flush begins), vmstate_load, vmstate_save. More may come. `name` is static. It
     * may wait: the request stands still there, with what it holds. Optional, and costs nothing where it is not given.
     */
    void (*event)(void *opaque, const char *name);
    /*
     * What the storage knows about a range: `*flags` becomes QCOW2_EXTENT_ZERO where it reads as zeroes, else
     * QCOW2_EXTENT_DATA, and `*run` for how many bytes from `offset` on this holds, at least 1. Asked only about what a
     * sync has covered. Optional: without it all of it is data.
     */
    int (*block_status)(void *opaque, uint64_t offset, uint64_t length, uint64_t *run, uint32_t *flags);
} qcow2_io_ops;

/* What an image asks for when it names another file. */
typedef struct qcow2_resolve_request {
    /* Set by the library. */
    size_t struct_size;
    /* QCOW2_NODE_*. */
    int kind;
    /*
     * Of a backing file, its own: 1 for the top image's. Of a data file, that of the image that names it: 0 for the top
     * image.
     */
    int depth;
    /* As stored in the image. */
    const char *recorded_name;
    /*
     * A backing file's relative name joined to the image's directory; what follows "file:", and a data file's name, as it
     * is, for these are relative to the working directory. NULL when that is not known or not a file name
     * ("nbd://host/x", "json:{...}", "C:\\x"): every image can say so.
     */
    const char *resolved_path;
    /* Recorded format, or NULL; "raw" for a data file. */
    const char *format;
} qcow2_resolve_request;

/* What a resolver gives: exactly one of path, fd, io. The library presets all of them to "none". */
typedef struct qcow2_resolve_answer {
    /* Set by the library. */
    size_t struct_size;
    /* Open this path; must stay valid until the call that asks returns. */
    const char *path;
    /* Duplicate this descriptor; -1: none; so does 0 mean beside a path or io. */
    int fd;
    /* Use this storage. */
    const qcow2_io_ops *io;
    /* Handed to its functions. */
    void *io_opaque;
    /* "qcow2" or "raw", valid as `path` is; NULL: the recorded one. */
    const char *format;
} qcow2_resolve_answer;

/*
 * Decides about a file that an image names: 0 with `answer` filled, or -errno to refuse. With 0 the storage of `io` is
 * the library's, which calls its `close` whatever becomes of the open; with -errno nothing is handed over. A descriptor
 * and the texts stay the caller's in any case.
 */
typedef int (*qcow2_resolve_fn)(void *opaque,
                                const qcow2_resolve_request *request,
                                qcow2_resolve_answer *answer);

/* Takes a message: QCOW2_MSG_* and a text without a newline, valid during the call. */
typedef void (*qcow2_message_fn)(void *opaque, int kind, const char *text);

/* What an encrypted image asks for when it is opened, made or amended. */
typedef struct qcow2_secret_request {
    /* Set by the library. */
    size_t struct_size;
    /* QCOW2_ENCRYPTION_*: what the secret is for. */
    int encryption;
    /* How far below the top image it is, whose depth is 0. */
    int depth;
    /* Where the image was opened, or is made, for messages. */
    const char *file;
    /* QCOW2_SECRET_*: what for. */
    int kind;
    /*
     * What the option says that asks for it ("encrypt.key-secret=s": "s"): a name by which the caller knows the secret,
     * never the secret. NULL: no option does.
     */
    const char *name;
} qcow2_secret_request;

/*
 * Puts the secret of an image into `buffer`, which holds `buffer_bytes` bytes (64 KiB), and returns how many it has put
 * there. The buffer is in memory that no core dump and no forked child has, and is wiped after use. -ENOKEY: there is
 * none; another -errno is the error of the call. Called by the thread that calls, inside its call.
 */
typedef int64_t (*qcow2_secret_fn)(void *opaque,
                                   const qcow2_secret_request *request,
                                   void *buffer,
                                   size_t buffer_bytes);

/* Takes the progress of a long call. A non-zero answer cancels it: the call then fails with -ECANCELED. */
typedef int (*qcow2_progress_fn)(void *opaque, uint64_t done, uint64_t total);

/* Everything that an open can be given; begin with QCOW2_OPEN_PARAMS_INIT, or with zeroes and `struct_size`. */
typedef struct qcow2_open_params {
    /* sizeof(qcow2_open_params), set by the caller. */
    size_t struct_size;
    /* One of path, fd, io. */
    const char *path;
    /* Duplicated; the caller keeps its own. -1: none; so does 0 mean without QCOW2_OPEN_FD. */
    int fd;
    /* Copied. */
    const qcow2_io_ops *io;
    /* Handed to the functions of `io`. */
    void *io_opaque;
    /* QCOW2_OPEN_*; unknown bits are -EINVAL. */
    uint64_t flags;
    /* "key=value" strings, NULL at the end; may be NULL. See qcow2_option_list. */
    const char *const *options;
    /* Decides about files that images name; wins over QCOW2_OPEN_ALLOW_RECORDED. May be NULL. */
    qcow2_resolve_fn resolve;
    /* Handed to `resolve`. */
    void *resolve_opaque;
    /* Takes what a repair at open says, and a corruption that qcow2_close finds. May be NULL. */
    qcow2_message_fn message;
    /* Handed to `message`. Both are kept: qcow2_close calls them, too, so what this points to must live until then. */
    void *message_opaque;
    /*
     * Has the secrets of encrypted images. May be NULL: then an open of one fails (-ENOKEY), but with
     * QCOW2_OPEN_METADATA_ONLY, which needs none.
     */
    qcow2_secret_fn secret;
    /* Handed to `secret`. */
    void *secret_opaque;
    /* Takes the progress of deriving keys, whose cost the image chooses: up to hours. May be NULL. */
    qcow2_progress_fn progress;
    /* Handed to `progress`. */
    void *progress_opaque;
    /* "qcow2", "raw" or "luks" (a plain LUKS1 file); NULL: "qcow2", or "raw" with QCOW2_OPEN_RAW. Never probed. */
    const char *format;
} qcow2_open_params;

/* Where the bytes of a guest range come from. See qcow2_block_status. */
typedef struct qcow2_extent {
    /* sizeof(qcow2_extent), set by the caller. */
    size_t struct_size;
    /* Bytes from the offset asked for that are alike. */
    uint64_t length;
    /*
     * Offset in the file of the layer at `depth`, with QCOW2_EXTENT_HOST_OFFSET; with QCOW2_EXTENT_IN_DATA_FILE in its
     * external data file.
     */
    uint64_t host_offset;
    /* QCOW2_EXTENT_*. */
    uint32_t flags;
    /* 0: this image; 1: its backing file; and so on. */
    int32_t depth;
} qcow2_extent;

/*
 * What an image is. Strings belong to the handle and are valid until the next qcow2_get_info, qcow2_reopen
 * or qcow2_close on it; NULL where there is none.
 */
typedef struct qcow2_info {
    /* sizeof(qcow2_info), set by the caller. */
    size_t struct_size;
    /* Bytes. */
    uint64_t virtual_size;
    /* Bytes of the image file. */
    uint64_t file_length;
    /* Bytes that the host has allocated for it; 0 if unknown. */
    uint64_t allocated_bytes;
    /* 2 or 3; 0 for a raw disk, whose other format fields are 0 too. */
    uint32_t version;
    /* log2 of the cluster size in bytes. */
    uint32_t cluster_bits;
    /* Width of a refcount in bits. */
    uint32_t refcount_bits;
    /* 0 none, 1 AES, 2 LUKS. */
    uint32_t crypt_method;
    /* Bytes of the fixed header. */
    uint32_t header_length;
    /* 0 zlib, 1 zstd. */
    uint32_t compression_type;
    /* Where the backing file's name is stored. */
    uint64_t backing_file_offset;
    /* Its length in bytes. */
    uint32_t backing_file_size;
    /* Entries of the active L1 table. */
    uint32_t l1_size;
    /* Its host offset. */
    uint64_t l1_table_offset;
    /* Host offset of the refcount table. */
    uint64_t refcount_table_offset;
    /* Its clusters. */
    uint32_t refcount_table_clusters;
    /* Internal snapshots. */
    uint32_t snapshot_count;
    /* Host offset of the snapshot table. */
    uint64_t snapshot_table_offset;
    /* Feature bits. */
    uint64_t incompatible_features;
    /* Feature bits. */
    uint64_t compatible_features;
    /* Feature bits. */
    uint64_t autoclear_features;
    /* As opened; NULL for a descriptor or callbacks. */
    const char *path;
    /* As recorded in the image. */
    const char *backing_file;
    /* As recorded in the image. */
    const char *backing_format;
    /* As recorded in the image. */
    const char *data_file;
    /* 1: refcounts are lazy in this session. */
    uint32_t lazy_refcounts;
    /* 1: the dirty bit is set. */
    uint32_t dirty;
    /* 1: the corrupt bit is set. */
    uint32_t corrupt;
    /* 1: L2 entries are extended. */
    uint32_t extended_l2;
    /* 1: the external data file is a valid raw image. */
    uint32_t data_file_raw;
    /* 1: opened read-only. */
    uint32_t read_only;
    /* 1: the image was dirty at the last writable open, which repaired it. */
    uint32_t open_repaired;
    /* Bitmaps in the image. */
    uint32_t bitmap_count;
    /* Corruptions that this repair mended. */
    uint64_t open_corruptions_fixed;
    /* Leaks that this repair mended. */
    uint64_t open_leaks_fixed;
    /* Opened files below this one. */
    uint32_t backing_depth;
    /*
     * The host's descriptor of the image file, for polling or placement; -1 where there is none. Do not
     * read, write or close it.
     */
    int32_t descriptor;
} qcow2_info;

/* A header extension as it is stored. See qcow2_get_header_extension. */
typedef struct qcow2_header_extension {
    /* sizeof(qcow2_header_extension), set by the caller. */
    size_t struct_size;
    /* The magic number. */
    uint32_t type;
    /* Bytes of `data`. */
    uint32_t length;
    /* Where `data` is stored in the file. */
    uint64_t offset;
    /* The payload. */
    const void *data;
} qcow2_header_extension;

/* An internal snapshot. See qcow2_get_snapshot. */
typedef struct qcow2_snapshot_info {
    /* sizeof(qcow2_snapshot_info), set by the caller. */
    size_t struct_size;
    /* Unique. */
    const char *id;
    /* Not necessarily unique. */
    const char *name;
    /* Bytes of VM state. */
    uint64_t vm_state_size;
    /* Seconds since 1970. */
    uint64_t date_seconds;
    /* And nanoseconds. */
    uint32_t date_nanoseconds;
    /* Entries of its L1 table. */
    uint32_t l1_size;
    /* Time of the VM's clock. */
    uint64_t vm_clock_nanoseconds;
    /* Instruction count; UINT64_MAX: none. */
    uint64_t icount;
    /* Virtual size when it was taken, bytes. */
    uint64_t disk_size;
    /* Host offset of its L1 table. */
    uint64_t l1_table_offset;
} qcow2_snapshot_info;

/* One bitmap: which parts of the disk have been written since some point in time. */
typedef struct qcow2_bitmap_info {
    /* sizeof(qcow2_bitmap_info), set by the caller. */
    size_t struct_size;
    /* Its name. */
    const char *name;
    /* Guest bytes that one bit stands for. */
    uint64_t granularity;
    /* QCOW2_BITMAP_IN_USE, QCOW2_BITMAP_AUTO. */
    uint32_t flags;
    /* 0. */
    uint32_t reserved;
    /* Bytes of the disk that have changed; counted by qcow2_bitmap_list, 0 from qcow2_get_bitmap. */
    uint64_t dirty_bytes;
} qcow2_bitmap_info;

/* A key slot of a LUKS header. */
typedef struct qcow2_key_slot {
    /* Whether a secret opens it: 1 or 0. */
    uint32_t active;
    /* Iterations of its key derivation; 0 of one that is not active. */
    uint32_t iterations;
    /* Where its material is, bytes from the LUKS header's start. */
    uint64_t material_offset;
    /* Stripes of its material. */
    uint32_t stripes;
    /* 0. */
    uint32_t reserved;
} qcow2_key_slot;

/* How an image is encrypted. Without a LUKS header only `encryption` means something. */
typedef struct qcow2_encryption_info {
    /* sizeof(qcow2_encryption_info), set by the caller. */
    size_t struct_size;
    /* QCOW2_ENCRYPTION_*; 0: it is not. */
    int encryption;
    /* Iterations of the digest of the master key. */
    uint32_t digest_iterations;
    /* "aes-256". */
    const char *cipher;
    /* "xts". */
    const char *mode;
    /* "plain64". */
    const char *iv_generator;
    /* "sha256"; NULL: the IV generator uses none. */
    const char *iv_hash;
    /* Hash of key derivation. */
    const char *hash;
    /* As text. */
    const char *uuid;
    /* Where the LUKS header is in the file, bytes. */
    uint64_t header_offset;
    /* Where material ends and a plain LUKS file has its data, bytes from the LUKS header's start. */
    uint64_t payload_offset;
    /* The key slots. */
    qcow2_key_slot slots[8];
} qcow2_encryption_info;

/* What a check found and did. */
typedef struct qcow2_check_result {
    /* sizeof(qcow2_check_result), set by the caller. */
    size_t struct_size;
    /* Errors that can cost data. */
    uint64_t corruptions;
    /* Clusters that are counted more often than referred to. */
    uint64_t leaks;
    /* Things that could not be checked. */
    uint64_t check_errors;
    /* Corruptions that have been mended. */
    uint64_t corruptions_fixed;
    /* Leaks that have been mended. */
    uint64_t leaks_fixed;
    /* Guest clusters of the disk. */
    uint64_t total_clusters;
    /* Guest clusters with data in this image. */
    uint64_t allocated_clusters;
    /* Allocated clusters that do not follow their predecessor in the file. */
    uint64_t fragmented_clusters;
    /* Compressed clusters. */
    uint64_t compressed_clusters;
    /* Bytes of the file up to the end of the last cluster in use. */
    uint64_t image_end_offset;
} qcow2_check_result;

/* Something that a check has found. Numbers that its kind does not name are 0. */
typedef struct qcow2_finding {
    /* Set by the library. */
    size_t struct_size;
    /* QCOW2_FINDING_*; there may be more in later versions. */
    int kind;
    /* What becomes of it: QCOW2_MSG_*. */
    int message_kind;
    /* Where it is. */
    uint64_t place;
    /* What stands there. */
    uint64_t value;
    /* How much there is of it, or should be. */
    uint64_t count;
} qcow2_finding;

/* Takes a finding, valid during the call. */
typedef void (*qcow2_finding_fn)(void *opaque, const qcow2_finding *finding);

/* Everything that an amend can be given; begin with QCOW2_AMEND_PARAMS_INIT, or with zeroes and `struct_size`. */
typedef struct qcow2_amend_params {
    /* sizeof(qcow2_amend_params), set by the caller. */
    size_t struct_size;
    /* "key=value" strings, NULL at the end; may be NULL. See qcow2_option_list. */
    const char *const *options;
    /* QCOW2_AMEND_*; unknown bits are -EINVAL. */
    uint64_t flags;
    /* Takes the progress: of deriving keys first, then of the changes. May be NULL. */
    qcow2_progress_fn progress;
    /* Handed to `progress`. */
    void *progress_opaque;
    /* Has the secrets for changes of key slots, of each QCOW2_SECRET_* that is needed. May be NULL. */
    qcow2_secret_fn secret;
    /* Handed to `secret`. */
    void *secret_opaque;
} qcow2_amend_params;

/* What qcow2_compare has found. */
typedef struct qcow2_compare_result {
    /* sizeof(qcow2_compare_result), set by the caller. */
    size_t struct_size;
    /* QCOW2_COMPARE_SAME, _CONTENTS, _SIZES or _STATUS. After a failure: what could not be read, _CONTENTS or _STATUS. */
    uint32_t verdict;
    /* After a failure: 1 for the first disk, 2 for the second, 0 for neither. */
    uint32_t failed_disk;
    /* Guest offset of the first sector that differs, or where the failure was. */
    uint64_t offset;
} qcow2_compare_result;

/* How qcow2_convert copies. */
typedef struct qcow2_convert_params {
    /* sizeof(qcow2_convert_params), set by the caller. */
    size_t struct_size;
    /* QCOW2_CONVERT_*. */
    uint64_t flags;
    /*
     * Aligned parts of so many bytes that are zero become holes: a multiple of 512 up to 16 MiB; 0: the data is not
     * looked at. With QCOW2_CONVERT_COMPRESSED the parts are clusters, whatever the number. Where the host copies, one
     * part in five is looked at after 64 MiB of data, until one is zero.
     */
    uint64_t sparse_bytes;
    /* Threads, the caller's among them: 1 to 64. Memory is about 1 MiB for each, or two clusters. */
    uint32_t workers;
    /* 0. */
    uint32_t reserved;
    /* Where in the target the source begins, a multiple of 512: several disks one after another make one. */
    uint64_t target_offset;
    /* With QCOW2_CONVERT_SALVAGE: told each sector that became zeroes, as QCOW2_MSG_ERROR. May be NULL. */
    qcow2_message_fn message;
    /* Passed to `message`. */
    void *message_opaque;
} qcow2_convert_params;

/* How long an image file gets. */
typedef struct qcow2_measure_result {
    /* sizeof(qcow2_measure_result), set by the caller. */
    size_t struct_size;
    /* Bytes of the new file with the data of the source. */
    uint64_t required_bytes;
    /* Bytes once every cluster is allocated. */
    uint64_t fully_allocated_bytes;
    /*
     * Bytes that the source's dirty bitmaps would add, if all of their bits took room; UINT64_MAX: one of the images
     * cannot have any, or those of the source are damaged.
     */
    uint64_t bitmaps_bytes;
} qcow2_measure_result;

/* What qcow2_snapshot_create is told beside the name; begin with QCOW2_SNAPSHOT_OPTIONS_INIT. */
typedef struct qcow2_snapshot_options {
    /* sizeof(qcow2_snapshot_options), set by the caller. */
    size_t struct_size;
    /* The ID, unique in the image; NULL: the next free number. */
    const char *id;
    /* When it was taken: seconds since 1970, 32 bits at most; 0, and no nanoseconds: now. */
    uint64_t date_seconds;
    /* And nanoseconds. */
    uint32_t date_nanoseconds;
    /* 0. */
    uint32_t reserved;
    /* Time of the VM's clock. */
    uint64_t vm_clock_nanoseconds;
    /* Instruction count of record and replay; UINT64_MAX: none. */
    uint64_t icount;
    /* Bytes of VM state, written before with qcow2_vmstate_write; 0: not told, and what there is stays in the image, too. */
    uint64_t vm_state_size;
} qcow2_snapshot_options;

/* Everything that a create can be given; begin with QCOW2_CREATE_PARAMS_INIT, or with zeroes, `struct_size` and `size`. */
typedef struct qcow2_create_params {
    /* sizeof(qcow2_create_params), set by the caller. */
    size_t struct_size;
    /* One of path, fd, io. */
    const char *path;
    /* Duplicated; the caller keeps its own. -1: none; so does 0 mean without QCOW2_CREATE_FD. */
    int fd;
    /* Copied; its `close` is called before the call returns. */
    const qcow2_io_ops *io;
    /* Handed to the functions of `io`. */
    void *io_opaque;
    /* Bytes, rounded up to 512; UINT64_MAX: the option "size" says, or else the backing file. */
    uint64_t size;
    /* "key=value" strings, NULL at the end; may be NULL. See qcow2_option_list. */
    const char *const *options;
    /*
     * With the option data_file, at most one of data_path, data_fd, data_io says where that file is; none: at the name
     * that is recorded.
     */
    const char *data_path;
    /* As `fd`; -1: none; so does 0 mean without QCOW2_CREATE_DATA_FD. */
    int data_fd;
    /* As `io`. */
    const qcow2_io_ops *data_io;
    /* Handed to the functions of `data_io`. */
    void *data_io_opaque;
    /* QCOW2_CREATE_*; unknown bits are -EINVAL. */
    uint64_t flags;
    /* "qcow2" or "luks"; NULL: "qcow2". A LUKS file has options of its own: QCOW2_SCOPE_CREATE_LUKS. */
    const char *format;
    /*
     * Has the secret of an encrypted image. It is asked for before anything is made. May be NULL: then an encrypted image
     * is -ENOKEY.
     */
    qcow2_secret_fn secret;
    /* Handed to `secret`. */
    void *secret_opaque;
    /* Takes the progress of deriving keys, which lasts as long as the option encrypt.iter-time says. May be NULL. */
    qcow2_progress_fn progress;
    /* Handed to `progress`. */
    void *progress_opaque;
} qcow2_create_params;

/* One option of the table that drives parsing, help texts and the manual. */
typedef struct qcow2_option_info {
    /* sizeof(qcow2_option_info), set by the caller. */
    size_t struct_size;
    /* The key. Static, like every string of this struct. */
    const char *name;
    /* "size", "bool (on/off)", "str" or "num". */
    const char *type;
    /* NULL where there is none. */
    const char *default_value;
    /* One line. */
    const char *help;
    /* QCOW2_SCOPE_*. */
    uint32_t scope;
    /* 1: qcow2_reopen may change it. */
    uint32_t runtime;
} qcow2_option_info;

#ifdef __cplusplus
extern "C" {
#endif /* __cplusplus */

/*
 * The text of the last failure on this thread: structure, index, value and rule, or what the host said. ""
 * if none. The words are those of the stock tools where they have some; details follow in brackets. A text
 * may have two lines (a refused lock). Valid until the next failure on this thread; never NULL.
 */
const char *qcow2_last_error(void);

/*
 * The last failure on this thread in parts, so that nobody need take the text of qcow2_last_error apart. Set
 * `detail->struct_size` first. The strings belong to the library and are valid until the next failure on this thread;
 * all together they have 4096 bytes, and what is longer is cut off at its end.
 *
 * Returns 0, also when nothing has failed yet, or -EINVAL (NULL, `struct_size`), which is not a failure that this
 * function or qcow2_last_error tells of. May be called at any time, in a forked child too.
 */
int qcow2_last_error_detail(qcow2_error_detail *detail);

/* The version of the library that is loaded, as QCOW2_VERSION is that of the header. Static. */
const char *qcow2_version(void);

/*
 * Opens an image file.
 *
 * A writable open of a dirty image (its writer died, lazy refcounts) repairs it before it returns.
 * A refused or read-only open changes no byte. Requests on the handle make few kinds of system calls: docs/features.md,
 * "System calls after open", lists them. `options` as in qcow2_open_params. On success `*image`
 * must be given to qcow2_close; on failure it is NULL.
 *
 * Returns 0 or -errno: EINVAL (arguments, options, a header field out of its range), EMEDIUMTYPE (not a qcow2 image at
 * all), ENOTSUP (version or feature, named), EFBIG (a table over its limit), EIO (corrupt, or the host), EAGAIN (in use by another program
 * or handle), EUCLEAN (dirty, with QCOW2_OPEN_NO_REPAIR), ENOKEY (encrypted, and no secret was given: qcow2_open_with
 * takes one), EKEYREJECTED (the secret opens no key slot), ECANCELED (`progress` returned non-zero), EPERM (names a backing file or a data file, not allowed),
 * ELOOP, ENOENT and what else the host says.
 */
int qcow2_open(const char *path,
               uint64_t flags,
               const char *const *options,
               qcow2_image **image);

/*
 * Opens an image by descriptor. The descriptor is duplicated; the caller keeps its own and may close it.
 * Relative backing file names need a resolver, for a descriptor has no directory. One that appends (O_APPEND) is
 * EINVAL for a writable open. Its file offset is neither used nor moved; holes of the file are not asked for, which would
 * move it. On a machine of 32 bits, one that was opened without O_LARGEFILE ends at 2 GiB: EFBIG. Otherwise as
 * qcow2_open.
 */
int qcow2_open_fd(int fd,
                  uint64_t flags,
                  const char *const *options,
                  qcow2_image **image);

/*
 * Whether the file at `path` begins as a qcow2 image of version 2 or later does: 1 or 0; -errno: what the host says.
 * Nothing is locked. A guest can write such a beginning into its raw disk, and the image that it makes up names files of
 * the host: what is found this way is no reason to give QCOW2_OPEN_ALLOW_RECORDED.
 */
int qcow2_probe(const char *path);

/* qcow2_probe by descriptor, whose offset does not move. */
int qcow2_probe_fd(int fd);

/*
 * The general form of open: by path, descriptor or callbacks, with a resolver for backing files and a
 * receiver of repair messages, and a source of secrets for encrypted images. Otherwise as qcow2_open.
 */
int qcow2_open_with(const qcow2_open_params *params, qcow2_image **image);

/*
 * Flushes, leaves the image clean, and frees the handle, whatever it returns: the first error that kept
 * something from the disk, or 0. A corruption that is found here is an error, and a message to the `message` that the
 * open was given. NULL is fine. No other call on the handle may be under way. In a forked
 * child it does nothing and returns -EOWNERDEAD.
 */
int qcow2_close(qcow2_image *image);

/*
 * Changes read-only to read-write and back, and run-time options; what `options` does not name stays.
 * `flags`: QCOW2_OPEN_READ_ONLY and QCOW2_OPEN_NO_REPAIR. Requests of other threads wait. Everything is
 * flushed first. On failure the handle stays as it was. Errors as qcow2_open.
 */
int qcow2_reopen(qcow2_image *image, uint64_t flags, const char *const *options);

/*
 * Hands the image to another program, as the source of a migration does: waits for requests under way, brings
 * everything to the medium, leaves the image clean, drops all caches, and gives the locks back that keep others out;
 * the files of its chain go with it. From then on reads, writes, flushes and every change are refused (-EPERM) until
 * qcow2_invalidate, and what is told about the image is what it was. On a raw disk no request may be under way. On
 * an inactive handle it does nothing. The other side must see the same bytes: over a network file system with a cache
 * of its own, use cache=none on both sides.
 *
 * Returns 0 or -errno; after a failed write or sync the handle stays what it is, and takes no more writes.
 */
int qcow2_inactivate(qcow2_image *image);

/*
 * Takes an image over that is inactive (qcow2_inactivate, QCOW2_OPEN_INACTIVE), as the target of a migration does:
 * takes the locks, reads header and tables anew (its size, its snapshots and its backing file may be others), and
 * repairs a dirty image as a writable open does. A backing file with the same recorded name is used by the descriptor
 * that is open; for another one, the flags of the open or the resolver in `params` decide. Of `params`, which may be
 * NULL, only the callbacks and their opaque values are used; the secret is asked for where the image has come to be
 * encrypted with another key. On a handle that is not inactive it does nothing.
 *
 * Returns 0 or -errno as qcow2_open; EAGAIN: the other side still has it. After a failure the handle is inactive.
 */
int qcow2_invalidate(qcow2_image *image,
                     const qcow2_open_params *params);

/*
 * Drops cached tables that no request has used since the last call, and what is kept of compressed clusters (1 MiB
 * inflated at most, or two clusters, and a codec for each thread that was at it). Calls every `cache-clean-interval`
 * seconds bound the memory of an idle image; the library has no thread of its own for it. 0 or -errno.
 */
int qcow2_clean_caches(qcow2_image *image);

/*
 * Whether an option string is one that qcow2_open would take; 0 or -EINVAL with the reason in
 * qcow2_last_error. For programs that check a command line before they have a file.
 */
int qcow2_check_open_option(const char *option);

/*
 * Reads `count` bytes at `offset`: all of them or an error. Any length and alignment. Buffers are touched
 * only during the call. Concurrent calls on one handle do not wait for each other.
 *
 * Returns `count`, or -errno: EIO (past the end of the disk, corrupt entry, host error), EINVAL, EPERM
 * (metadata-only handle), EOWNERDEAD (forked child), ENOTRECOVERABLE.
 */
ssize_t qcow2_pread(qcow2_image *image, void *buffer, size_t count, uint64_t offset);

/*
 * Writes `count` bytes at `offset`: all of them or an error. After an error the range may hold old and new
 * bytes; nothing else has changed. Durable after the next qcow2_flush, or at once as the cache mode says.
 *
 * Returns `count`, or -errno: EIO (past the end of the disk, corrupt entry, metadata would be overwritten,
 * host error), EROFS, ENOSPC, EINVAL, EPERM, EOWNERDEAD, ENOTRECOVERABLE (an earlier sync
 * failed: reopen).
 */
ssize_t qcow2_pwrite(qcow2_image *image, const void *buffer, size_t count, uint64_t offset);

/* qcow2_pread into several buffers, at most 1024. */
ssize_t qcow2_preadv(qcow2_image *image, const struct iovec *iov, int iovcnt, uint64_t offset);

/* qcow2_pwrite from several buffers, at most 1024. */
ssize_t qcow2_pwritev(qcow2_image *image, const struct iovec *iov, int iovcnt, uint64_t offset);

/*
 * qcow2_pwritev with flags: QCOW2_REQ_FUA, QCOW2_REQ_COMPRESSED.
 *
 * A compressed write is whole clusters (the disk's last one may be shorter) that the image itself does not hold
 * yet; a cluster that does not get smaller is written as it is. The option compress-threads has one request
 * compressed by several threads, which end with the call. Beside the errors of qcow2_pwrite: EINVAL (not whole
 * clusters), EIO (a cluster is allocated), ENOTSUP (a raw disk, an external data file).
 * Specification: "Compressed Clusters Descriptor".
 */
ssize_t qcow2_pwritev2(qcow2_image *image,
                       const struct iovec *iov,
                       int iovcnt,
                       uint64_t offset,
                       uint64_t flags);

/*
 * Makes a range read as zeroes, without writing them where the format allows. `flags`: QCOW2_REQ_UNMAP
 * (host clusters may be given back), QCOW2_REQ_NO_FALLBACK, QCOW2_REQ_FUA. Returns 0 or -errno as
 * qcow2_pwrite, and ENOTSUP with QCOW2_REQ_NO_FALLBACK.
 */
int qcow2_write_zeroes(qcow2_image *image, uint64_t offset, uint64_t length, uint64_t flags);

/*
 * Says that the guest does not need a range any more. With the open option discard=ignore nothing happens.
 * Otherwise whole clusters inside it read as zeroes afterwards;
 * where the format cannot say so (version 2 with a backing file) and at the unaligned ends nothing changes.
 * A backing file never shows through. Returns 0 or -errno as qcow2_pwrite.
 */
int qcow2_discard(qcow2_image *image, uint64_t offset, uint64_t length);

/* qcow2_discard with flags: QCOW2_REQ_FUA. */
int qcow2_discard2(qcow2_image *image, uint64_t offset, uint64_t length, uint64_t flags);

/*
 * Makes everything durable that completed before the call. Flushes of several threads share their work.
 * Returns 0 or -errno: what the host says. A host that is full (ENOSPC, EDQUOT) or refuses a write has lost nothing:
 * call again when it has room. After a failed sync the handle takes no more writes (ENOTRECOVERABLE), for what the host
 * has dropped cannot be written again.
 */
int qcow2_flush(qcow2_image *image);

/*
 * Tells where the bytes of a range come from: the first extent of `[offset, offset + length)`, through the
 * chain of backing files unless `flags` has QCOW2_STATUS_TOP_ONLY. A caller walks a disk by adding
 * `extent->length`. What this handle has written since the last call is synced first, for some hosts take it for holes
 * until then; what is written meanwhile counts as data. Returns 0 or -errno: EIO past the end, EINVAL for an empty range.
 */
int qcow2_block_status(qcow2_image *image,
                       uint64_t offset,
                       uint64_t length,
                       uint64_t flags,
                       qcow2_extent *extent);

/* Virtual size in bytes, or -errno. */
int64_t qcow2_length(qcow2_image *image);

/*
 * Changes the virtual size, a multiple of 512. `preallocation` (QCOW2_PREALLOC_*) is for what is added.
 * Another size drops VM state that no snapshot has. Requests of other threads wait. Returns 0 or -errno: EINVAL, EFBIG
 * (no L1 table within the limit maps it), ENOTSUP (snapshots in version 2; a raw disk on a block device, or on a storage that
 * keeps its length), EROFS, ENOSPC and as qcow2_pwrite.
 */
int qcow2_truncate(qcow2_image *image,
                   uint64_t size,
                   int preallocation);

/* Fills `info`. Returns 0 or -errno. */
int qcow2_get_info(qcow2_image *image, qcow2_info *info);

/*
 * qcow2_get_info for a disk of the chain: depth 0 is `image` itself, 1 its backing file, and so on, as qcow2_extent
 * counts. The strings are valid until the next call of this function on the handle. Returns 0, -ENOENT below the last
 * disk, or another -errno.
 */
int qcow2_get_node_info(qcow2_image *image,
                        uint32_t depth,
                        qcow2_info *info);

/*
 * Header extension number `index`, counted from 0, in file order. Returns 0, -ENOENT past the last one, or
 * another -errno. `data` is valid until the next call of this function.
 */
int qcow2_get_header_extension(qcow2_image *image,
                               size_t index,
                               qcow2_header_extension *extension);

/*
 * Internal snapshot number `index`, counted from 0, in table order. Returns 0, -ENOENT past the last one, or
 * another -errno (EIO: the table is damaged). The strings are valid until the next call of this function.
 */
int qcow2_get_snapshot(qcow2_image *image, size_t index, qcow2_snapshot_info *snapshot);

/*
 * Bitmap number `index`, counted from 0, in the order of their directory. There are none where a writer that knew no
 * bitmaps has changed the image: qcow2_info.bitmap_count counts those that the header names, valid or not. Returns 0,
 * -ENOENT past the last one, or another -errno (EINVAL, EIO: the directory is damaged). The name is valid until the
 * next call of this function.
 */
int qcow2_get_bitmap(qcow2_image *image,
                     size_t index,
                     qcow2_bitmap_info *bitmap);

/*
 * How a disk of the chain is encrypted, as its file says now: depth 0 is `image` itself, 1 its backing file, and so on.
 * No secret is needed. The strings are valid until the next call of this function on the handle. Returns 0, -ENOENT below
 * the last disk, or another -errno (EINVAL, ENOTSUP, EIO: a LUKS header that is damaged or not known).
 */
int qcow2_get_encryption_info(qcow2_image *image,
                              uint32_t depth,
                              qcow2_encryption_info *info);

/*
 * Decrypts a secret that has been kept under another one, as QEMU's secret objects with `keyid` and `iv` are: AES-256 in
 * CBC mode, the last block filled up with bytes that say how many they are. `key` has `key_bytes` bytes, which must be
 * 32, `iv` has `iv_bytes`, which must be 16; `data` is decrypted in place, and is left as it is where the lengths do not
 * fit, and wiped where the filling does not. Returns the length of the secret, or -EINVAL (a length, or the filling).
 * Keeps no copy of any of them.
 */
int64_t qcow2_decrypt_secret(const void *key,
                             size_t key_bytes,
                             const void *iv,
                             size_t iv_bytes,
                             void *data,
                             size_t data_bytes);

/*
 * Compares every reference in the image with the refcounts. `flags`: QCOW2_CHECK_REPAIR_LEAKS,
 * QCOW2_CHECK_REPAIR_ERRORS (needs a writable handle). Each finding goes to `message`. One call is one pass;
 * after a repair a second call without flags shows that nothing is left. Requests of other threads wait. With the
 * open option check-threads, more threads read tables, which end with the call.
 *
 * Returns 0 when the check ran, whatever it found, or -errno: ECANCELED, EROFS, ENOTSUP (a raw disk), EIO
 * and what the host says. `result` is filled on success.
 */
int qcow2_check(qcow2_image *image,
                uint64_t flags,
                qcow2_check_result *result,
                qcow2_message_fn message,
                void *message_opaque,
                qcow2_progress_fn progress,
                void *progress_opaque);

/*
 * As qcow2_check, for programs that count or sort what is found: `find` gets each finding as numbers, and no text is
 * made. NULL: none is told.
 */
int qcow2_check_findings(qcow2_image *image,
                         uint64_t flags,
                         qcow2_check_result *result,
                         qcow2_finding_fn find,
                         void *find_opaque,
                         qcow2_progress_fn progress,
                         void *progress_opaque);

/*
 * Writes what the image holds into its backing file, then empties the image unless `flags` has
 * QCOW2_COMMIT_KEEP. The backing file is opened writable for the time of the call, repaired when it is
 * dirty, grown when it is shorter, and durable before the image changes.
 *
 * Returns 0 or -errno: ENOTSUP (no backing file), EROFS, EAGAIN (the backing file is in use), ECANCELED and
 * as qcow2_pwrite.
 */
int qcow2_commit(qcow2_image *image,
                 uint64_t flags,
                 qcow2_progress_fn progress,
                 void *progress_opaque);

/*
 * As qcow2_commit, into the layer `depth` below the image (1: its backing file): what the image and all layers above
 * that one show is written there. With a depth above 1 nothing is emptied: the image and the layers in between stay
 * as they are, and show what they showed as long as the layer is not written otherwise.
 *
 * Returns 0 or -errno: EINVAL (depth is 0, or the chain ends before), and as qcow2_commit.
 */
int qcow2_commit_to(qcow2_image *image,
                    uint32_t depth,
                    uint64_t flags,
                    qcow2_progress_fn progress,
                    void *progress_opaque);

/*
 * The CRC-32 (IEEE) of all guest bytes, in time proportional to what is allocated. Equal before and after a
 * copy, a repair or a crash recovery that changed nothing. With the open option check-threads, more threads read, which
 * end with the call; `progress` is called on the caller's. Returns 0 or -errno as qcow2_pread, ECANCELED.
 */
int qcow2_checksum(qcow2_image *image,
                   uint32_t *crc,
                   qcow2_progress_fn progress,
                   void *progress_opaque);

/*
 * Changes settings of an open image: "key=value" strings, NULL at the end, of qcow2_option_list(QCOW2_SCOPE_AMEND).
 *
 * compat: "1.1" (version 3) or "0.10" (version 2). Version 2 has no zero clusters: they become holes where no backing
 * file is recorded, else clusters of zeroes, in snapshots too; lazy_refcounts goes off. Refused (ENOTSUP) with other
 * than 16 refcount bits, extended L2 entries, an external data file, bitmaps, compressed zstd clusters, and snapshots
 * of a disk of another size.
 *
 * refcount_bits: 1, 2, 4, ... 64; EINVAL where a count does not fit. New tables are built beside the old ones.
 *
 * lazy_refcounts: what the image says; this session follows, if qcow2_open was not told otherwise.
 *
 * size: the virtual size in bytes; a smaller one drops what lies beyond.
 *
 * data_file: the name of the external data file to record, "": none; this session goes on with the file that it has
 * open. data_file_raw: "off" only.
 *
 * backing_file, backing_fmt: accepted where nothing changes, otherwise ENOTSUP; see qcow2_rebase.
 *
 * encrypt.*: see qcow2_amend_with. `flags`: QCOW2_AMEND_*. Requests of other threads wait. What cannot be is refused before anything changes, but for counts that
 * do not fit. Then the settings change one after another: data file, version 3, refcount_bits, lazy_refcounts, size,
 * version 2; each is durable before the next one begins. Guest contents stay. A failure, a non-zero answer of
 * `progress` (may be NULL; ECANCELED) or a power cut leaves each setting old or new, and clusters leaked at most.
 *
 * Returns 0 or -errno: EINVAL, ENOTSUP, EFBIG (size), EROFS, ECANCELED, ENOSPC, EIO. Specification: "Header",
 * "Refcounts", "Cluster mapping".
 */
int qcow2_amend(qcow2_image *image,
                const char *const *options,
                uint64_t flags,
                qcow2_progress_fn progress,
                void *progress_opaque);

/*
 * The general form of amend, for the key slots of a LUKS header, too. Otherwise as qcow2_amend.
 *
 * encrypt.state: "active" fills a slot, "inactive" erases. encrypt.keyslot: which, 0 to 7; a fill takes the first free
 * one otherwise. encrypt.new-secret: needed to fill; `secret` is asked for QCOW2_SECRET_CURRENT, which opens the image,
 * then for QCOW2_SECRET_NEW. encrypt.iter-time: milliseconds that opening by the new one is to take here, 2000 if not
 * said. encrypt.old-secret: erases the slots that QCOW2_SECRET_OLD opens. The values of new-secret and old-secret are
 * names that `secret` gets to know them by, never secrets. What is overwritten, or would leave no secret that opens the
 * image, needs QCOW2_AMEND_FORCE. A failure or a power cut leaves the secrets that opened the image before, or those
 * that open it afterwards; an erased slot's contents are overwritten with random bytes. Where all 8 slots are in use and
 * one is overwritten, there is a moment in which neither its old secret nor its new one opens the image, but the others
 * do. To erase a slot no secret is asked for but the one that encrypt.old-secret names.
 * Requests of other threads go on while secrets are asked for and keys derived, and wait while the header is written.
 * The session goes on with the key that it has.
 *
 * Returns 0 or -errno as qcow2_amend, and ENOKEY (a secret that is needed is not given), EKEYREJECTED (the current one
 * opens no slot), EAGAIN (the LUKS header has changed while secrets were asked for), EIO (something else in the image
 * leads to the clusters of a slot; or, without QCOW2_AMEND_FORCE, the image is too damaged to tell). Specification: "Full disk encryption header pointer".
 */
int qcow2_amend_with(qcow2_image *image,
                     const qcow2_amend_params *params);

/*
 * Records another backing file, whatever it holds: the contents of the disk change where that file differs. `name` (at
 * most 1023 bytes, relative names: to the image's directory) is neither opened nor looked for; NULL or "": no backing
 * file, and what the image does not hold reads as zeroes from now on. `format` is required with a name, and NULL
 * without one; names of QEMU's other formats are recorded too, which no open here serves. With another name or format
 * the handle goes on with the chain that it has open, and zeroing, discarding and growing are refused (EINVAL): open
 * the image again to use the new one (QCOW2_OPEN_NO_BACKING opens an image whose backing file is gone). Other header
 * extensions stay byte for byte. Requests of other threads wait.
 *
 * Durable when it returns; a power cut before leaves the old name or the new one. ENOSPC also where a cluster of 1
 * or 2 KiB cannot hold the old names beside the new ones, which that takes.
 *
 * Returns 0 or -errno: EINVAL (name, format), ENOSPC (no space left in the header cluster), EROFS, ENOTSUP (a raw
 * disk), EIO. Specification: "Header extensions", "Backing file name".
 */
int qcow2_change_backing_file(qcow2_image *image,
                              const char *name,
                              const char *format);

/*
 * Gives the image another backing file without changing what the disk shows: what the image has from its chain and
 * `backing` would show otherwise is written into the image, and durable before the header changes as by
 * qcow2_change_backing_file. `backing` is open already, NULL: none, and is recorded as `name` and `format`. Where
 * both chains have a range from the same file nothing is read. Internal snapshots are not looked at: what they have
 * from the backing file becomes what the new one has. Requests of other threads on `image` wait; `backing` must not
 * change. With another name or format the handle goes on with the chain that it has open, which shows the same;
 * zeroing, discarding and growing are refused (EINVAL) until the image is opened anew. `flags`:
 * QCOW2_REBASE_COMPRESSED. `progress` may be NULL. After a failure or a power cut the image has its old backing
 * file, or the new one if the header's change had begun, and shows the same.
 *
 * Returns 0 or -errno: EINVAL (parameters; `backing` is the image itself, or open as one of its snapshots; the image
 * was opened with QCOW2_OPEN_NO_BACKING), ELOOP (`backing` has the image in its chain), ECANCELED (`progress` returned
 * non-zero), and as qcow2_change_backing_file, qcow2_pread of both chains and qcow2_pwrite.
 */
int qcow2_rebase(qcow2_image *image,
                 qcow2_image *backing,
                 const char *name,
                 const char *format,
                 uint64_t flags,
                 qcow2_progress_fn progress,
                 void *progress_opaque);

/*
 * Copies what a range shows of the disks below into the image; the disk shows the same before, meanwhile and
 * afterwards. What the image holds itself stays; zeroes are not written as data (but in version 2). `base` is the
 * depth of the layer to stop at, as in qcow2_extent: what it and those below it hold is not copied; 0: everything
 * is. Requests of other threads go on, and a write of the guest's wins. `flags`: 0. `progress` may be NULL.
 *
 * After a stream of the whole disk with `base` 0 the image needs no backing file: qcow2_change_backing_file with NULL
 * lets go of it. After one with a base, its name can be recorded instead. Both make the copies durable first. Where
 * all of it is zeroes a hole may stay, so that no other file may follow. Internal snapshots are not looked at.
 *
 * Returns 0 or -errno: EINVAL (flags; no layer at `base`; opened with QCOW2_OPEN_NO_BACKING, or the backing file has
 * been changed), ECANCELED (`progress` returned non-zero), ENOTSUP (a raw disk), and as qcow2_pwrite. What has been
 * copied by then stays.
 */
int qcow2_stream(qcow2_image *image,
                 uint64_t offset,
                 uint64_t length,
                 uint32_t base,
                 uint64_t flags,
                 qcow2_progress_fn progress,
                 void *progress_opaque);

/*
 * Lets go of everything that the image holds itself: afterwards the disk shows its backing file, or zeroes, and the
 * file is as short as it gets. Internal snapshots stay, VM state that none of them has goes. Requests of other
 * threads wait. A power cut leaves each part of the disk as it was or as below.
 *
 * Returns 0 or -errno: EROFS, ENOTSUP (a raw disk), EIO.
 */
int qcow2_make_empty(qcow2_image *image);

/*
 * Compares what two open disks show, qcow2 or raw, up to the first difference. What one is longer counts as zeroes
 * on the other. `flags`: QCOW2_COMPARE_STRICT. What both have from the same place of the same file, and what both
 * know to be zeroes, is not read. Nobody should write to either meanwhile. `progress` may be NULL.
 *
 * Returns 0 when the comparison has an answer, whatever it is, or -errno: EINVAL, ECANCELED (`progress` returned
 * non-zero), and as qcow2_pread. `result` is filled on success and after a failure to read.
 */
int qcow2_compare(qcow2_image *image,
                  qcow2_image *other,
                  uint64_t flags,
                  qcow2_compare_result *result,
                  qcow2_progress_fn progress,
                  void *progress_opaque);

/*
 * Copies what `source` shows to the start of `target`, or to the place in it that `params` name: another open disk, qcow2
 * or raw, that is at least as long; what is outside the copied range stays. Each guest byte of the range is read and written
 * once, in time proportional to what is allocated; other requests on the handles go on meanwhile, and a target that somebody
 * else writes holds a mixture. `params` may be NULL: no flags, holes of 4096 bytes, one worker. `progress` is called on the
 * caller's thread; the functions of a caller's storage on those of the workers, too. Nothing is durable before a qcow2_flush or
 * qcow2_close of `target`.
 *
 * Returns 0 or -errno: EINVAL (parameters, the same disk twice, a target that is too short), EROFS, ENOTSUP (a raw
 * disk has no compressed clusters), ECANCELED (`progress` returned non-zero), EIO (QCOW2_CONVERT_COMPRESSED over
 * allocated clusters), ENOMEM, and as qcow2_pread and qcow2_pwrite; qcow2_last_error names the place. What was
 * copied before a failure stays.
 */
int qcow2_convert(qcow2_image *source,
                  qcow2_image *target,
                  const qcow2_convert_params *params,
                  qcow2_progress_fn progress,
                  void *progress_opaque);

/*
 * Computes how long the file of a new image gets: one of `size` bytes (`source` NULL), or one that takes the contents
 * of `source` (`size` is not looked at). `options` as for qcow2_create; the option "size" is not looked at. Snapshots
 * and compression are not counted. Nothing is written. Takes a look at the tables of the source, not at its data.
 *
 * Returns 0 or -errno: EINVAL (options), EFBIG (an image with these options cannot be so large), and as qcow2_pread.
 */
int qcow2_measure(uint64_t size,
                  const char *const *options,
                  qcow2_image *source,
                  qcow2_measure_result *result);

/*
 * qcow2_measure for a new file of another format: "luks", or "qcow2"; NULL is "qcow2". `options` as for
 * qcow2_create_with.
 */
int qcow2_measure_format(const char *format,
                         uint64_t size,
                         const char *const *options,
                         qcow2_image *source,
                         qcow2_measure_result *result);

/*
 * Takes an internal snapshot of the disk as it is. Requests of other threads wait meanwhile. `name` need not be
 * unique. `options` may be NULL: now, the next free number as ID. The snapshot is durable when the call returns; a
 * crash before leaves the image without it. VM state that was written before belongs to it; where vm_state_size
 * says how much that is, it has gone from the image then.
 *
 * Returns 0 or -errno: EINVAL (a count would not fit into refcount_bits; the ID is in use; the name or the ID is longer
 * than 65,535 bytes; there is no room for so much VM state, so that it cannot have been written), EFBIG (65,536
 * snapshots, or a table over 64 MiB), EROFS, ENOTSUP (a raw disk, an external data file), ENOSPC, EIO.
 * Specification: "Snapshots".
 */
int qcow2_snapshot_create(qcow2_image *image,
                          const char *name,
                          const qcow2_snapshot_options *options);

/*
 * Makes the disk what it was when the snapshot was taken, its size too; what was written since is lost. The
 * snapshot stays. The first one with this `id` and this `name` is meant; either may be NULL, then only the
 * other counts. Requests of other threads wait meanwhile. A crash leaves the old disk or the new one.
 *
 * Returns 0 or -errno: ENOENT (no such snapshot), EINVAL (neither given, or a count would not fit), EROFS,
 * ENOTSUP (a raw disk, an external data file), ENOSPC, EIO. Specification: "Snapshots".
 */
int qcow2_snapshot_apply(qcow2_image *image, const char *id, const char *name);

/*
 * Deletes an internal snapshot; which one, as for qcow2_snapshot_apply. Clusters that only it referred to become
 * free. Requests of other threads wait meanwhile. A crash leaves the image with the snapshot or without it.
 *
 * Returns 0 or -errno as qcow2_snapshot_apply. Specification: "Snapshots".
 */
int qcow2_snapshot_delete(qcow2_image *image,
                          const char *id,
                          const char *name);

/*
 * Adds a dirty bitmap: from now on, each change of the disk sets the bits of what it touches. No bit is set yet.
 * `granularity` is the number of guest bytes that one bit stands for, a power of two from 512 to 2^31; 0: a cluster,
 * but from 4 KiB to 64 KiB. `flags`: 0 or QCOW2_BITMAP_DISABLED. `name` has 1 to 1023 bytes.
 *
 * Bitmaps are stored in the image by qcow2_close, qcow2_inactivate, qcow2_reopen and qcow2_bitmap_sync. A writer that is
 * killed leaves the enabled ones inconsistent, if it had written anything since they were stored: they are good for
 * qcow2_bitmap_remove and qcow2_bitmap_recover only. Writes, zeroes, discards and compressed writes set bits, also those
 * that fail; snapshots, VM state and qcow2_stream do not. A disk that gets another size keeps its bitmaps. While an image
 * has bitmaps no snapshot of it can be applied.
 *
 * The functions of bitmaps let requests of other threads wait; each is durable when it returns, and a crash before
 * leaves all bitmaps as they were before, or as after it. They may be called from any thread.
 *
 * Returns 0 or -errno: EINVAL (name, granularity, a disk of 0 bytes), EEXIST, EFBIG (the bitmap would take more than 512
 * MiB, or there are 65,535 bitmaps), EROFS, ENOTSUP (a raw disk, an image of version 2), ENOSPC, EIO.
 * Specification: "Bitmaps".
 */
int qcow2_bitmap_add(qcow2_image *image,
                     const char *name,
                     uint64_t granularity,
                     uint64_t flags);

/*
 * Removes a dirty bitmap; an inconsistent one, too. Returns 0 or -errno: ENOENT, EROFS, ENOTSUP, ENOSPC, EIO.
 * Specification: "Bitmaps".
 */
int qcow2_bitmap_remove(qcow2_image *image, const char *name);

/*
 * Clears all bits of a dirty bitmap. Returns 0 or -errno: ENOENT, EINVAL (it is inconsistent), EROFS, ENOTSUP, ENOSPC,
 * EIO. Specification: "Bitmaps".
 */
int qcow2_bitmap_clear(qcow2_image *image,
                       const char *name);

/*
 * Has a dirty bitmap track changes from now on; what changed while it was disabled is not in it. Returns 0 or -errno as
 * qcow2_bitmap_clear. Specification: "Bitmaps", flag "auto".
 */
int qcow2_bitmap_enable(qcow2_image *image,
                        const char *name);

/*
 * Has a dirty bitmap track no more changes; its bits stay. Returns 0 or -errno as qcow2_bitmap_clear.
 * Specification: "Bitmaps", flag "auto".
 */
int qcow2_bitmap_disable(qcow2_image *image, const char *name);

/*
 * Sets in the dirty bitmap `target` all that is set in `source_name`: a bitmap of `source`, another open image with a
 * disk of the same size, or, where `source` is NULL, of `image` itself. The granularities may differ. `source` may be
 * open read-only; what somebody writes to it meanwhile may be missing.
 *
 * Returns 0 or -errno: ENOENT, EINVAL (one of them is inconsistent; the sizes of the disks differ), EROFS, ENOTSUP,
 * ENOMEM, ENOSPC, EIO. Specification: "Bitmaps".
 */
int qcow2_bitmap_merge(qcow2_image *image,
                       const char *target,
                       qcow2_image *source,
                       const char *source_name);

/*
 * Adds a dirty bitmap that is what the bitmap `name` of `source` is, another open image with a disk of the same size: as
 * large granules, the same bits, and it tracks changes if that one does. What is written to `source` meanwhile may be
 * missing; whoever fills `image` with what `source` has does so before.
 *
 * Returns 0 or -errno: ENOENT, EEXIST, EINVAL (it is inconsistent; the sizes of the disks differ; both are one image),
 * EFBIG, EROFS, ENOTSUP, ENOMEM, ENOSPC, EIO. Specification: "Bitmaps".
 */
int qcow2_bitmap_copy(qcow2_image *image,
                      qcow2_image *source,
                      const char *name);

/*
 * Hands over from one dirty bitmap to the next, for an incremental backup: the bits of `name` go to a new bitmap
 * `frozen`, which is disabled, and `name` tracks on with no bit set. Requests wait meanwhile, so each write is in one of
 * the two: what `frozen` says, copied from now on, is a backup as of any time after this call. When the backup is
 * complete `frozen` is removed; when it has failed qcow2_bitmap_merge puts it back into `name`.
 *
 * Returns 0 or -errno: ENOENT, EEXIST (`frozen`), EINVAL (`name` is inconsistent or disabled; the name `frozen`), EFBIG,
 * EROFS, ENOTSUP, ENOSPC, EIO. Specification: "Bitmaps".
 */
int qcow2_bitmap_rotate(qcow2_image *image,
                        const char *name,
                        const char *frozen);

/*
 * Makes an inconsistent dirty bitmap usable again: all of the disk counts as changed. A backup then copies everything
 * once, and goes on with increments. Returns 0 or -errno: ENOENT, EINVAL (it is consistent), EROFS, ENOTSUP, ENOSPC, EIO.
 * Specification: "Bitmaps", flag "in_use".
 */
int qcow2_bitmap_recover(qcow2_image *image,
                         const char *name);

/*
 * Stores all dirty bitmaps durably, with everything else that is not yet on the medium, as qcow2_close does: a crash
 * before the next change of the disk leaves them consistent. Returns 0 or -errno: EROFS, ENOTSUP (a raw disk), ENOSPC,
 * EIO. Specification: "Bitmaps".
 */
int qcow2_bitmap_sync(qcow2_image *image);

/*
 * Dirty bitmap number `index`, counted from 0, as this handle has it, with what has been written through it: so
 * QCOW2_BITMAP_IN_USE is set of an inconsistent bitmap only, where qcow2_get_bitmap shows what the file says.
 * `dirty_bytes` is counted; of an inconsistent one it is the size of the disk. The name is valid until the next call of
 * this function or of qcow2_get_bitmap on the handle.
 *
 * A handle that is open read-only loads them when it is asked first and answers from that, whatever another program
 * stores meanwhile: for what is new, open again. Bitmaps are about the disk as it is now, also where the handle shows a
 * snapshot: what has changed up to a snapshot is in the bitmap that was frozen (qcow2_bitmap_rotate) when it was taken.
 *
 * Returns 0, -ENOENT past the last one, or another -errno: EINVAL, EIO (the bitmaps are damaged), EFBIG (they are too
 * large to be looked at), ENOTSUP (a raw disk), ENOMEM. Specification: "Bitmaps".
 */
int qcow2_bitmap_list(qcow2_image *image,
                      size_t index,
                      qcow2_bitmap_info *bitmap);

/*
 * The first range that is dirty in a bitmap, at or after `offset`: its first byte to `start`, its length to `length`, as
 * long as it is dirty without a gap. A range that begins before `offset` is cut there.
 *
 * Returns 1, 0 where nothing more is dirty, or -errno: ENOENT, EINVAL (it is inconsistent), ENOTSUP (a raw disk), EIO,
 * ENOMEM. Specification: "Bitmaps".
 */
int qcow2_bitmap_next_dirty(qcow2_image *image,
                            const char *name,
                            uint64_t offset,
                            uint64_t *start,
                            uint64_t *length);

/*
 * Writes `count` bytes at `offset` of the VM state: what a machine has beside its disk, stored in the image past the
 * end of the disk, where the guest cannot see it. All of them or an error. It belongs to the image as it is, as after
 * qcow2_snapshot_apply, and to each snapshot that is taken. A new snapshot that says how long it is (vm_state_size)
 * takes it out of the image; with an external data file, which snapshots do not go with, it is stored there, past the
 * end of the disk. qcow2_truncate to another size and qcow2_make_empty drop it.
 * Requests of other threads go on; they wait where the L1 table must grow. Durable after the next qcow2_flush or
 * with the snapshot.
 *
 * Returns `count`, or -errno: EFBIG (past what an L1 table can map), ENOTSUP (a raw disk) and
 * as qcow2_pwrite.
 * Specification: "Snapshots", size of the VM state.
 */
ssize_t qcow2_vmstate_write(qcow2_image *image,
                            const void *buffer,
                            size_t count,
                            uint64_t offset);

/*
 * Reads `count` bytes at `offset` of the VM state: that of the snapshot on a handle that was opened with the option
 * snapshot.id or snapshot.name, else that of the image as it is, as qcow2_snapshot_apply has left it. What nobody has
 * written reads as zeroes, past the end too: vm_state_size of qcow2_get_snapshot tells how long it is.
 *
 * Returns `count`, or -errno: EFBIG (past what an L1 table can map), ENOTSUP (a raw disk) and
 * as qcow2_pread.
 * Specification: "Snapshots", size of the VM state.
 */
ssize_t qcow2_vmstate_read(qcow2_image *image,
                           void *buffer,
                           size_t count,
                           uint64_t offset);

/*
 * Creates an image file, or replaces what is in it, with a disk of `size` bytes, rounded up to 512 (UINT64_MAX: the
 * option "size" says, or else the backing file, which is opened for nothing but that). The same options to qemu-img
 * create give the same header and extensions. A backing file is recorded, not opened; a data file (option data_file, a name relative to the working directory) is made too, and
 * what it held is lost. `options`: "key=value" strings, NULL at the end; may be NULL; see
 * qcow2_option_list(QCOW2_SCOPE_CREATE). The image is durable when the call returns; a crash before leaves nothing
 * that opens. A call that fails removes the file if it was made by it, and nothing that somebody else has put there.
 *
 * Returns 0 or -errno: EINVAL, ENOTSUP (a cipher that this build lacks, a combination of options), ENOKEY (an encrypted
 * image, whose secret qcow2_create_with takes), EFBIG (size), EAGAIN (the file is in use), ENOSPC and what else the host says.
 */
int qcow2_create(const char *path,
                 uint64_t size,
                 const char *const *options);

/* qcow2_create in an open file; the descriptor stays the caller's. */
int qcow2_create_fd(int fd, uint64_t size, const char *const *options);

/* qcow2_create over a caller's storage; `close` of `io` is called before it returns. */
int qcow2_create_io(const qcow2_io_ops *io,
                    void *io_opaque,
                    uint64_t size,
                    const char *const *options);

/*
 * The general form of create: the image, and its external data file, by path, descriptor or callbacks; encrypted ones,
 * too. Their key is random; the options encrypt.* say what it is for, and the secret, which is not among the options,
 * opens it. Otherwise as qcow2_create. ENOKEY: `secret` has none; ECANCELED: `progress` returned non-zero. In both cases
 * nothing has been made. Specification: "External data file name", "Full disk encryption header pointer".
 */
int qcow2_create_with(const qcow2_create_params *params);

/*
 * Option number `index` of a scope (QCOW2_SCOPE_*), counted from 0. As in QEMU, words of a create or amend
 * option are joined by '_' (lazy_refcounts) and words of an open option by '-' (lazy-refcounts). Returns 0,
 * -ENOENT past the last one, or -EINVAL.
 */
int qcow2_option_list(int scope, size_t index, qcow2_option_info *info);

#ifdef __cplusplus
}  /* extern "C" */
#endif  /* __cplusplus */

#endif  /* QCOW2_H */
