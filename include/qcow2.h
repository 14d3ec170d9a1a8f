/* libqcow2: qcow2 disk images behind a C ABI.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef QCOW2_H
#define QCOW2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* open flags (64 bits; unknown ones are -EINVAL) */
#define QCOW2_OPEN_READ_ONLY      0x1   /* change nothing on disk */
#define QCOW2_OPEN_NO_REPAIR      0x2   /* writable open of a dirty image: -EUCLEAN instead of a repair */
#define QCOW2_OPEN_FORCE_SHARE    0x4   /* read-only open although somebody writes (qemu -U); needs READ_ONLY */
#define QCOW2_OPEN_ALLOW_RECORDED 0x8   /* open the backing and data files that the image names */
#define QCOW2_OPEN_METADATA_ONLY  0x10  /* for check, info, header dumps: guest I/O is -EPERM; no other file is opened;
                                           images whose features have no guest I/O yet can be opened too. A dirty image is
                                           NOT repaired at open with this flag (qcow2_check does it) */
#define QCOW2_OPEN_NO_LOCK        0x20  /* take no locks */
#define QCOW2_OPEN_RAW            0x40  /* the file is a raw disk; every guest call works on it the same way */
#define QCOW2_OPEN_NO_BACKING     0x80  /* ignore a recorded backing file: holes read as zeroes */

/* request flags */
#define QCOW2_REQ_FUA             0x1   /* durable when the call returns */
#define QCOW2_REQ_UNMAP           0x2   /* write_zeroes: may give the host clusters back */
#define QCOW2_REQ_NO_FALLBACK     0x4   /* write_zeroes: -ENOTSUP rather than writing zero bytes */

/* extent flags */
#define QCOW2_EXTENT_DATA         0x1   /* holds data */
#define QCOW2_EXTENT_ZERO         0x2   /* reads as zeroes */
#define QCOW2_EXTENT_ALLOCATED    0x4   /* this layer (depth 0) or one of its backing files decides, see depth */
#define QCOW2_EXTENT_COMPRESSED   0x8
#define QCOW2_EXTENT_HOST_OFFSET  0x10  /* host_offset is valid */

/* repair flags of qcow2_check */
#define QCOW2_CHECK_REPAIR_LEAKS  0x1
#define QCOW2_CHECK_REPAIR_ERRORS 0x2   /* "-r all" is both bits */

typedef struct qcow2_image qcow2_image;

/* how a message came to be: what qemu prints to stderr on its own */
#define QCOW2_MSG_INFO    0
#define QCOW2_MSG_LEAK    1
#define QCOW2_MSG_ERROR   2
#define QCOW2_MSG_REPAIR  3
typedef void (*qcow2_message_fn)(void *opaque, int kind, const char *text);
/* non-zero return cancels: the call then fails with -ECANCELED */
typedef int (*qcow2_progress_fn)(void *opaque, uint64_t done, uint64_t total);

/* A caller's storage. All return 0 or -errno, read/write whole ranges; read past the end fills zeroes.
   Optional ones may be NULL. Calls come from any thread that calls the library, several at once. */
typedef struct qcow2_io_ops {
    size_t struct_size;
    int (*preadv)(void *opaque, const struct iovec *iov, int iovcnt, uint64_t offset);
    int (*pwritev)(void *opaque, const struct iovec *iov, int iovcnt, uint64_t offset); /* NULL: read-only */
    int (*sync)(void *opaque);                        /* NULL: nothing to do */
    int64_t (*length)(void *opaque);
    int (*truncate)(void *opaque, uint64_t length);   /* optional */
    int (*discard)(void *opaque, uint64_t offset, uint64_t length); /* optional */
    int (*write_zeroes)(void *opaque, uint64_t offset, uint64_t length); /* optional */
    void (*close)(void *opaque);                      /* optional; called once, also when open fails */
} qcow2_io_ops;

/* What an image asks for when it names another file. */
#define QCOW2_NODE_BACKING   1
#define QCOW2_NODE_DATA_FILE 2
typedef struct qcow2_resolve_request {
    size_t struct_size;
    int kind;                   /* QCOW2_NODE_* */
    int depth;                  /* 1 for the top image's backing file */
    const char *recorded_name;  /* as stored in the image */
    const char *resolved_path;  /* relative names joined to the image's directory */
    const char *format;         /* recorded format or NULL */
} qcow2_resolve_request;
typedef struct qcow2_resolve_answer {
    size_t struct_size;
    const char *path;           /* open this path (must stay valid until the open call returns), or */
    int fd;                     /* duplicate this descriptor (-1: none), or */
    const qcow2_io_ops *io;     /* use this storage */
    void *io_opaque;
    const char *format;         /* "qcow2" or "raw"; NULL: the recorded one */
} qcow2_resolve_answer;
/* 0: answer filled; -errno: refuse with that error */
typedef int (*qcow2_resolve_fn)(void *opaque, const qcow2_resolve_request *request, qcow2_resolve_answer *answer);

typedef struct qcow2_open_params {
    size_t struct_size;             /* sizeof(qcow2_open_params) */
    const char *path;               /* one of path, fd, io */
    int fd;                         /* duplicated; -1: none */
    const qcow2_io_ops *io;
    void *io_opaque;
    uint64_t flags;                 /* QCOW2_OPEN_* */
    const char *const *options;     /* "key=value" strings, NULL at the end; may be NULL.
                                       keys: cache (writeback, writethrough, none, directsync, unsafe), lazy-refcounts,
                                       l2-cache-size, l2-cache-entry-size, refcount-cache-size, cache-size,
                                       cache-clean-interval, overlap-check, overlap-check.template, overlap-check.<structure>,
                                       metadata-writethrough, discard (unmap|ignore), detect-zeroes,
                                       pass-discard-request/-snapshot/-other, discard-no-unref */
    qcow2_resolve_fn resolve;
    void *resolve_opaque;
    qcow2_message_fn message;       /* what a repair at open says */
    void *message_opaque;
} qcow2_open_params;

const char *qcow2_version(void);
/* Text of the last failure on this thread; "" if none. Valid until the next call on this thread. */
const char *qcow2_last_error(void);

int qcow2_open(const char *path, uint64_t flags, const char *const *options, qcow2_image **image);
int qcow2_open_fd(int fd, uint64_t flags, const char *const *options, qcow2_image **image);
int qcow2_open_with(const qcow2_open_params *params, qcow2_image **image);
/* Flushes, reports, always frees. NULL is fine. */
int qcow2_close(qcow2_image *image);
/* Read-only <-> read-write and options at run time; flags: READ_ONLY, NO_REPAIR. Other options keep their values. */
int qcow2_reopen(qcow2_image *image, uint64_t flags, const char *const *options);

/* count on success, all or error */
ssize_t qcow2_pread(qcow2_image *image, void *buffer, size_t count, uint64_t offset);
ssize_t qcow2_pwrite(qcow2_image *image, const void *buffer, size_t count, uint64_t offset);
ssize_t qcow2_preadv(qcow2_image *image, const struct iovec *iov, int iovcnt, uint64_t offset);
ssize_t qcow2_pwritev(qcow2_image *image, const struct iovec *iov, int iovcnt, uint64_t offset);
ssize_t qcow2_pwritev2(qcow2_image *image, const struct iovec *iov, int iovcnt, uint64_t offset, uint64_t flags);
int qcow2_write_zeroes(qcow2_image *image, uint64_t offset, uint64_t length, uint64_t flags);
int qcow2_discard(qcow2_image *image, uint64_t offset, uint64_t length);
int qcow2_flush(qcow2_image *image);

typedef struct qcow2_extent {
    size_t struct_size;
    uint64_t length;        /* bytes from the offset asked for; merged as far as flags, depth and host run go on */
    uint64_t host_offset;
    uint32_t flags;         /* QCOW2_EXTENT_* */
    int32_t depth;          /* 0: this image; 1: its backing file; ... ; 
                               an extent no layer has: depth = the deepest layer asked, no ALLOCATED flag */
} qcow2_extent;
#define QCOW2_STATUS_TOP_ONLY 0x1  /* do not look into backing files */
int qcow2_block_status(qcow2_image *image, uint64_t offset, uint64_t length, uint64_t flags, qcow2_extent *extent);

/* Virtual size in bytes, or -errno. */
int64_t qcow2_length(qcow2_image *image);
#define QCOW2_PREALLOC_OFF      0
#define QCOW2_PREALLOC_METADATA 1
#define QCOW2_PREALLOC_FALLOC   2
#define QCOW2_PREALLOC_FULL     3
int qcow2_truncate(qcow2_image *image, uint64_t size, int preallocation);

typedef struct qcow2_check_result {
    size_t struct_size;
    uint64_t corruptions, leaks, check_errors;
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;
    uint64_t image_end_offset;
} qcow2_check_result;
/* One pass, as one run of qemu-img's check: the counters of this pass; a caller that wants "double checking" calls again. */
int qcow2_check(qcow2_image *image, uint64_t flags, qcow2_check_result *result,
                qcow2_message_fn message, void *message_opaque, qcow2_progress_fn progress, void *progress_opaque);

/* options: size (if size argument is UINT64_MAX), compat, cluster_size, refcount_bits, lazy_refcounts, preallocation,
   backing_file, backing_fmt, (later: compression_type, extended_l2, data_file, data_file_raw).
   The file is created or truncated, as qemu-img does. backing files are recorded, never opened. */
int qcow2_create(const char *path, uint64_t size, const char *const *options);
int qcow2_create_fd(int fd, uint64_t size, const char *const *options);
int qcow2_create_io(const qcow2_io_ops *io, void *io_opaque, uint64_t size, const char *const *options);

/* Writes what the image holds into its backing file, as qemu-img commit does (also empties the image, flag KEEP: not). */
#define QCOW2_COMMIT_KEEP 0x1
int qcow2_commit(qcow2_image *image, uint64_t flags, qcow2_progress_fn progress, void *progress_opaque);

/* crc32 (IEEE) of the guest-visible contents; time by allocated data */
int qcow2_checksum(qcow2_image *image, uint32_t *crc, qcow2_progress_fn progress, void *progress_opaque);

/* One option of the table that drives parsing, "-o help" and the manual. */
#define QCOW2_SCOPE_CREATE 1
#define QCOW2_SCOPE_OPEN   2
typedef struct qcow2_option_info {
    size_t struct_size;
    const char *name;           /* static */
    const char *type;           /* "size", "bool (on/off)", "str", "num": as qemu-img -o help prints it */
    const char *default_value;  /* static or NULL */
    const char *help;
    uint32_t scope;             /* QCOW2_SCOPE_* it is valid in */
    uint32_t runtime;           /* 1: may change in qcow2_reopen */
} qcow2_option_info;
/* 0, or -ENOENT past the last one */
int qcow2_option_list(int scope, size_t index, qcow2_option_info *info);

/* What info and dump-header show. Strings belong to the handle, valid until close or reopen; NULL where absent. */
typedef struct qcow2_info {
    size_t struct_size;
    uint64_t virtual_size;
    uint64_t file_length;            /* of the container */
    uint64_t allocated_bytes;        /* of the container on the host (st_blocks * 512), 0 if unknown */
    uint32_t version;                /* 2 or 3; 0 for raw */
    uint32_t cluster_bits;
    uint32_t refcount_bits;
    uint32_t crypt_method;           /* 0 none, 1 AES, 2 LUKS */
    uint32_t header_length;
    uint32_t compression_type;       /* 0 zlib, 1 zstd */
    uint64_t backing_file_offset;
    uint32_t backing_file_size;
    uint32_t l1_size;
    uint64_t l1_table_offset;
    uint64_t refcount_table_offset;
    uint32_t refcount_table_clusters;
    uint32_t snapshot_count;
    uint64_t snapshot_table_offset;
    uint64_t incompatible_features, compatible_features, autoclear_features;
    const char *path;                /* as opened, NULL for fd and io */
    const char *backing_file;
    const char *backing_format;
    const char *data_file;
    uint32_t lazy_refcounts;         /* in force at run time */
    uint32_t dirty, corrupt, extended_l2, data_file_raw;
    uint32_t read_only;
    /* what a repair at the last writable open did */
    uint32_t open_repaired;          /* 1: the image was dirty and has been repaired */
    uint64_t open_corruptions_fixed, open_leaks_fixed;
    uint32_t bitmap_count;
    uint32_t backing_depth;          /* opened files below this one */
} qcow2_info;
int qcow2_get_info(qcow2_image *image, qcow2_info *info);
/* index: 0 the first extension; -ENOENT past the last. data belongs to the handle. */
typedef struct qcow2_header_extension { size_t struct_size; uint32_t type; uint32_t length; uint64_t offset; const void *data; } qcow2_header_extension;
int qcow2_get_header_extension(qcow2_image *image, size_t index, qcow2_header_extension *extension);
typedef struct qcow2_snapshot_info {
    size_t struct_size;
    const char *id; const char *name;
    uint64_t vm_state_size; uint64_t date_seconds; uint32_t date_nanoseconds;
    uint64_t vm_clock_nanoseconds; uint64_t icount; /* UINT64_MAX: none */
    uint64_t disk_size; uint64_t l1_table_offset; uint32_t l1_size;
} qcow2_snapshot_info;
int qcow2_get_snapshot(qcow2_image *image, size_t index, qcow2_snapshot_info *snapshot);

#endif
