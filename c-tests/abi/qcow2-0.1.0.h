/* SPDX-License-Identifier: MIT OR Apache-2.0. The header of a release without its comments, for abi.sh. */
#ifndef QCOW2_H
#define QCOW2_H 
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>
#define QCOW2_VERSION "0.1.0"
#define QCOW2_VERSION_MAJOR 0
#define QCOW2_VERSION_MINOR 1
#define QCOW2_VERSION_PATCH 0
#define QCOW2_VERSION_CHECK(major,minor,patch) \
    (QCOW2_VERSION_MAJOR > (major) || \
     (QCOW2_VERSION_MAJOR == (major) && \
      (QCOW2_VERSION_MINOR > (minor) || (QCOW2_VERSION_MINOR == (minor) && QCOW2_VERSION_PATCH >= (patch)))))
#define QCOW2_OPEN_PARAMS_INIT \
    { sizeof(qcow2_open_params), NULL, -1, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL }
#define QCOW2_CREATE_PARAMS_INIT \
    { sizeof(qcow2_create_params), NULL, -1, NULL, NULL, UINT64_MAX, NULL, NULL, -1, NULL, NULL, 0 }
#define QCOW2_SNAPSHOT_OPTIONS_INIT \
    { sizeof(qcow2_snapshot_options), NULL, 0, 0, 0, 0, UINT64_MAX, 0 }
#define QCOW2_OPEN_READ_ONLY 1
#define QCOW2_OPEN_NO_REPAIR 2
#define QCOW2_OPEN_FORCE_SHARE 4
#define QCOW2_OPEN_ALLOW_RECORDED 8
#define QCOW2_OPEN_METADATA_ONLY 16
#define QCOW2_OPEN_NO_LOCK 32
#define QCOW2_OPEN_RAW 64
#define QCOW2_OPEN_NO_BACKING 128
#define QCOW2_OPEN_INACTIVE 256
#define QCOW2_OPEN_FD 512
#define QCOW2_CREATE_FD 1
#define QCOW2_CREATE_DATA_FD 2
#define QCOW2_REQ_FUA 1
#define QCOW2_REQ_UNMAP 2
#define QCOW2_REQ_NO_FALLBACK 4
#define QCOW2_REQ_COMPRESSED 8
#define QCOW2_EXTENT_DATA 1
#define QCOW2_EXTENT_ZERO 2
#define QCOW2_EXTENT_ALLOCATED 4
#define QCOW2_EXTENT_COMPRESSED 8
#define QCOW2_EXTENT_HOST_OFFSET 16
#define QCOW2_EXTENT_IN_DATA_FILE 32
#define QCOW2_INCOMPATIBLE_DIRTY 1
#define QCOW2_INCOMPATIBLE_CORRUPT 2
#define QCOW2_INCOMPATIBLE_DATA_FILE 4
#define QCOW2_INCOMPATIBLE_COMPRESSION 8
#define QCOW2_INCOMPATIBLE_EXTENDED_L2 16
#define QCOW2_COMPATIBLE_LAZY_REFCOUNTS 1
#define QCOW2_AUTOCLEAR_BITMAPS 1
#define QCOW2_AUTOCLEAR_RAW_DATA 2
#define QCOW2_STATUS_TOP_ONLY 1
#define QCOW2_CHECK_REPAIR_LEAKS 1
#define QCOW2_CHECK_REPAIR_ERRORS 2
#define QCOW2_COMMIT_KEEP 1
#define QCOW2_REBASE_COMPRESSED 1
#define QCOW2_CONVERT_COMPRESSED 1
#define QCOW2_CONVERT_TOP_ONLY 2
#define QCOW2_CONVERT_TARGET_ZERO 4
#define QCOW2_CONVERT_ALLOCATE 8
#define QCOW2_CONVERT_ANY_ORDER 16
#define QCOW2_COMPARE_STRICT 1
#define QCOW2_COMPARE_SAME 0
#define QCOW2_COMPARE_CONTENTS 1
#define QCOW2_COMPARE_SIZES 2
#define QCOW2_COMPARE_STATUS 3
#define QCOW2_PREALLOC_OFF 0
#define QCOW2_PREALLOC_METADATA 1
#define QCOW2_PREALLOC_FALLOC 2
#define QCOW2_PREALLOC_FULL 3
#define QCOW2_MSG_INFO 0
#define QCOW2_MSG_LEAK 1
#define QCOW2_MSG_ERROR 2
#define QCOW2_MSG_REPAIR 3
#define QCOW2_NODE_BACKING 1
#define QCOW2_NODE_DATA_FILE 2
#define QCOW2_BITMAP_IN_USE 1
#define QCOW2_BITMAP_AUTO 2
#define QCOW2_SCOPE_CREATE 1
#define QCOW2_SCOPE_OPEN 2
#define QCOW2_SCOPE_AMEND 4
#define QCOW2_ERROR_NONE 0
#define QCOW2_ERROR_INVALID 1
#define QCOW2_ERROR_UNSUPPORTED 2
#define QCOW2_ERROR_CORRUPT 3
#define QCOW2_ERROR_NOT_QCOW2 4
#define QCOW2_ERROR_PAST_END 5
#define QCOW2_ERROR_OCCUPIED 6
#define QCOW2_ERROR_READ_ONLY 7
#define QCOW2_ERROR_LOCKED 8
#define QCOW2_ERROR_DIRTY 9
#define QCOW2_ERROR_MARKED_CORRUPT 10
#define QCOW2_ERROR_LATCHED 11
#define QCOW2_ERROR_FORKED 12
#define QCOW2_ERROR_TOO_LARGE 13
#define QCOW2_ERROR_NO_MEMORY 14
#define QCOW2_ERROR_CANCELLED 15
#define QCOW2_ERROR_NOT_ALLOWED 16
#define QCOW2_ERROR_NOT_FOUND 17
#define QCOW2_ERROR_LOOP 18
#define QCOW2_ERROR_HOST 19
typedef struct qcow2_image qcow2_image;
typedef struct qcow2_error_detail {
    size_t struct_size;
    int32_t result;
    uint32_t kind;
    const char *summary;
    const char *hint;
    const char *detail;
    const char *file;
    const char *option;
    const char *cause;
    const char *structure;
    const char *index;
    const char *rule;
    uint64_t value;
} qcow2_error_detail;
typedef struct qcow2_io_ops {
    size_t struct_size;
    int (*preadv)(void *opaque, const struct iovec *iov, int iovcnt, uint64_t offset);
    int (*pwritev)(void *opaque, const struct iovec *iov, int iovcnt, uint64_t offset);
    int (*sync)(void *opaque);
    int64_t (*length)(void *opaque);
    int (*truncate)(void *opaque, uint64_t length);
    int (*discard)(void *opaque, uint64_t offset, uint64_t length);
    int (*write_zeroes)(void *opaque, uint64_t offset, uint64_t length);
    void (*close)(void *opaque);
} qcow2_io_ops;
typedef struct qcow2_resolve_request {
    size_t struct_size;
    int kind;
    int depth;
    const char *recorded_name;
    const char *resolved_path;
    const char *format;
} qcow2_resolve_request;
typedef struct qcow2_resolve_answer {
    size_t struct_size;
    const char *path;
    int fd;
    const qcow2_io_ops *io;
    void *io_opaque;
    const char *format;
} qcow2_resolve_answer;
typedef int (*qcow2_resolve_fn)(void *opaque,
                                const qcow2_resolve_request *request,
                                qcow2_resolve_answer *answer);
typedef void (*qcow2_message_fn)(void *opaque, int kind, const char *text);
typedef struct qcow2_open_params {
    size_t struct_size;
    const char *path;
    int fd;
    const qcow2_io_ops *io;
    void *io_opaque;
    uint64_t flags;
    const char *const *options;
    qcow2_resolve_fn resolve;
    void *resolve_opaque;
    qcow2_message_fn message;
    void *message_opaque;
} qcow2_open_params;
typedef struct qcow2_extent {
    size_t struct_size;
    uint64_t length;
    uint64_t host_offset;
    uint32_t flags;
    int32_t depth;
} qcow2_extent;
typedef struct qcow2_info {
    size_t struct_size;
    uint64_t virtual_size;
    uint64_t file_length;
    uint64_t allocated_bytes;
    uint32_t version;
    uint32_t cluster_bits;
    uint32_t refcount_bits;
    uint32_t crypt_method;
    uint32_t header_length;
    uint32_t compression_type;
    uint64_t backing_file_offset;
    uint32_t backing_file_size;
    uint32_t l1_size;
    uint64_t l1_table_offset;
    uint64_t refcount_table_offset;
    uint32_t refcount_table_clusters;
    uint32_t snapshot_count;
    uint64_t snapshot_table_offset;
    uint64_t incompatible_features;
    uint64_t compatible_features;
    uint64_t autoclear_features;
    const char *path;
    const char *backing_file;
    const char *backing_format;
    const char *data_file;
    uint32_t lazy_refcounts;
    uint32_t dirty;
    uint32_t corrupt;
    uint32_t extended_l2;
    uint32_t data_file_raw;
    uint32_t read_only;
    uint32_t open_repaired;
    uint32_t bitmap_count;
    uint64_t open_corruptions_fixed;
    uint64_t open_leaks_fixed;
    uint32_t backing_depth;
    int32_t descriptor;
} qcow2_info;
typedef struct qcow2_header_extension {
    size_t struct_size;
    uint32_t type;
    uint32_t length;
    uint64_t offset;
    const void *data;
} qcow2_header_extension;
typedef struct qcow2_snapshot_info {
    size_t struct_size;
    const char *id;
    const char *name;
    uint64_t vm_state_size;
    uint64_t date_seconds;
    uint32_t date_nanoseconds;
    uint32_t l1_size;
    uint64_t vm_clock_nanoseconds;
    uint64_t icount;
    uint64_t disk_size;
    uint64_t l1_table_offset;
} qcow2_snapshot_info;
typedef struct qcow2_bitmap_info {
    size_t struct_size;
    const char *name;
    uint64_t granularity;
    uint32_t flags;
    uint32_t reserved;
} qcow2_bitmap_info;
typedef struct qcow2_check_result {
    size_t struct_size;
    uint64_t corruptions;
    uint64_t leaks;
    uint64_t check_errors;
    uint64_t corruptions_fixed;
    uint64_t leaks_fixed;
    uint64_t total_clusters;
    uint64_t allocated_clusters;
    uint64_t fragmented_clusters;
    uint64_t compressed_clusters;
    uint64_t image_end_offset;
} qcow2_check_result;
typedef int (*qcow2_progress_fn)(void *opaque, uint64_t done, uint64_t total);
typedef struct qcow2_compare_result {
    size_t struct_size;
    uint32_t verdict;
    uint32_t failed_disk;
    uint64_t offset;
} qcow2_compare_result;
typedef struct qcow2_convert_params {
    size_t struct_size;
    uint64_t flags;
    uint64_t sparse_bytes;
    uint32_t workers;
    uint32_t reserved;
} qcow2_convert_params;
typedef struct qcow2_measure_result {
    size_t struct_size;
    uint64_t required_bytes;
    uint64_t fully_allocated_bytes;
    uint64_t bitmaps_bytes;
} qcow2_measure_result;
typedef struct qcow2_snapshot_options {
    size_t struct_size;
    const char *id;
    uint64_t date_seconds;
    uint32_t date_nanoseconds;
    uint32_t reserved;
    uint64_t vm_clock_nanoseconds;
    uint64_t icount;
    uint64_t vm_state_size;
} qcow2_snapshot_options;
typedef struct qcow2_create_params {
    size_t struct_size;
    const char *path;
    int fd;
    const qcow2_io_ops *io;
    void *io_opaque;
    uint64_t size;
    const char *const *options;
    const char *data_path;
    int data_fd;
    const qcow2_io_ops *data_io;
    void *data_io_opaque;
    uint64_t flags;
} qcow2_create_params;
typedef struct qcow2_option_info {
    size_t struct_size;
    const char *name;
    const char *type;
    const char *default_value;
    const char *help;
    uint32_t scope;
    uint32_t runtime;
} qcow2_option_info;
#ifdef __cplusplus
extern "C" {
#endif
const char *qcow2_last_error(void);
int qcow2_last_error_detail(qcow2_error_detail *detail);
const char *qcow2_version(void);
int qcow2_open(const char *path,
               uint64_t flags,
               const char *const *options,
               qcow2_image **image);
int qcow2_open_fd(int fd,
                  uint64_t flags,
                  const char *const *options,
                  qcow2_image **image);
int qcow2_probe(const char *path);
int qcow2_probe_fd(int fd);
int qcow2_open_with(const qcow2_open_params *params, qcow2_image **image);
int qcow2_close(qcow2_image *image);
int qcow2_reopen(qcow2_image *image, uint64_t flags, const char *const *options);
int qcow2_inactivate(qcow2_image *image);
int qcow2_invalidate(qcow2_image *image,
                     const qcow2_open_params *params);
int qcow2_clean_caches(qcow2_image *image);
int qcow2_check_open_option(const char *option);
ssize_t qcow2_pread(qcow2_image *image, void *buffer, size_t count, uint64_t offset);
ssize_t qcow2_pwrite(qcow2_image *image, const void *buffer, size_t count, uint64_t offset);
ssize_t qcow2_preadv(qcow2_image *image, const struct iovec *iov, int iovcnt, uint64_t offset);
ssize_t qcow2_pwritev(qcow2_image *image, const struct iovec *iov, int iovcnt, uint64_t offset);
ssize_t qcow2_pwritev2(qcow2_image *image,
                       const struct iovec *iov,
                       int iovcnt,
                       uint64_t offset,
                       uint64_t flags);
int qcow2_write_zeroes(qcow2_image *image, uint64_t offset, uint64_t length, uint64_t flags);
int qcow2_discard(qcow2_image *image, uint64_t offset, uint64_t length);
int qcow2_discard2(qcow2_image *image, uint64_t offset, uint64_t length, uint64_t flags);
int qcow2_flush(qcow2_image *image);
int qcow2_block_status(qcow2_image *image,
                       uint64_t offset,
                       uint64_t length,
                       uint64_t flags,
                       qcow2_extent *extent);
int64_t qcow2_length(qcow2_image *image);
int qcow2_truncate(qcow2_image *image,
                   uint64_t size,
                   int preallocation);
int qcow2_get_info(qcow2_image *image, qcow2_info *info);
int qcow2_get_node_info(qcow2_image *image,
                        uint32_t depth,
                        qcow2_info *info);
int qcow2_get_header_extension(qcow2_image *image,
                               size_t index,
                               qcow2_header_extension *extension);
int qcow2_get_snapshot(qcow2_image *image, size_t index, qcow2_snapshot_info *snapshot);
int qcow2_get_bitmap(qcow2_image *image,
                     size_t index,
                     qcow2_bitmap_info *bitmap);
int qcow2_check(qcow2_image *image,
                uint64_t flags,
                qcow2_check_result *result,
                qcow2_message_fn message,
                void *message_opaque,
                qcow2_progress_fn progress,
                void *progress_opaque);
int qcow2_commit(qcow2_image *image,
                 uint64_t flags,
                 qcow2_progress_fn progress,
                 void *progress_opaque);
int qcow2_checksum(qcow2_image *image,
                   uint32_t *crc,
                   qcow2_progress_fn progress,
                   void *progress_opaque);
int qcow2_amend(qcow2_image *image,
                const char *const *options,
                uint64_t flags,
                qcow2_progress_fn progress,
                void *progress_opaque);
int qcow2_change_backing_file(qcow2_image *image,
                              const char *name,
                              const char *format);
int qcow2_rebase(qcow2_image *image,
                 qcow2_image *backing,
                 const char *name,
                 const char *format,
                 uint64_t flags,
                 qcow2_progress_fn progress,
                 void *progress_opaque);
int qcow2_stream(qcow2_image *image,
                 uint64_t offset,
                 uint64_t length,
                 uint32_t base,
                 uint64_t flags,
                 qcow2_progress_fn progress,
                 void *progress_opaque);
int qcow2_make_empty(qcow2_image *image);
int qcow2_compare(qcow2_image *image,
                  qcow2_image *other,
                  uint64_t flags,
                  qcow2_compare_result *result,
                  qcow2_progress_fn progress,
                  void *progress_opaque);
int qcow2_convert(qcow2_image *source,
                  qcow2_image *target,
                  const qcow2_convert_params *params,
                  qcow2_progress_fn progress,
                  void *progress_opaque);
int qcow2_measure(uint64_t size,
                  const char *const *options,
                  qcow2_image *source,
                  qcow2_measure_result *result);
int qcow2_snapshot_create(qcow2_image *image,
                          const char *name,
                          const qcow2_snapshot_options *options);
int qcow2_snapshot_apply(qcow2_image *image, const char *id, const char *name);
int qcow2_snapshot_delete(qcow2_image *image,
                          const char *id,
                          const char *name);
ssize_t qcow2_vmstate_write(qcow2_image *image,
                            const void *buffer,
                            size_t count,
                            uint64_t offset);
ssize_t qcow2_vmstate_read(qcow2_image *image,
                           void *buffer,
                           size_t count,
                           uint64_t offset);
int qcow2_create(const char *path,
                 uint64_t size,
                 const char *const *options);
int qcow2_create_fd(int fd, uint64_t size, const char *const *options);
int qcow2_create_io(const qcow2_io_ops *io,
                    void *io_opaque,
                    uint64_t size,
                    const char *const *options);
int qcow2_create_with(const qcow2_create_params *params);
int qcow2_option_list(int scope, size_t index, qcow2_option_info *info);
#ifdef __cplusplus
}
#endif
#endif
