/* Disks that an NBD server has, over libnbd.  SPDX-License-Identifier: MIT OR Apache-2.0

   Options: path, or host and port; export; open-timeout in seconds. There are no locks: nobody is kept from the disk. */
#include "../plugin.h"

#include <errno.h>
#include <libnbd.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ALLOCATION "base:allocation"
#define MOST_BYTES (UINT64_C(32) << 20)

struct disk {
    struct nbd_handle *nbd;
    bool has_status;
};

static int failed(void)
{
    int code = nbd_get_errno();

    /* A server answers in numbers of its own; what it does not name is an error of the medium. */
    return code > 0 ? -code : -EIO;
}

/* libnbd takes one request of a thread at a time; those of several threads wait for each other in it. */
static int disk_preadv(void *opaque, const struct iovec *iov, int count, uint64_t offset)
{
    struct disk *disk = opaque;

    for (int i = 0; i < count; i++) {
        if (iov[i].iov_len > 0 && nbd_pread(disk->nbd, iov[i].iov_base, iov[i].iov_len, offset, 0) < 0) {
            return failed();
        }
        offset += iov[i].iov_len;
    }
    return 0;
}

static int disk_pwritev(void *opaque, const struct iovec *iov, int count, uint64_t offset)
{
    struct disk *disk = opaque;

    for (int i = 0; i < count; i++) {
        if (iov[i].iov_len > 0 && nbd_pwrite(disk->nbd, iov[i].iov_base, iov[i].iov_len, offset, 0) < 0) {
            return failed();
        }
        offset += iov[i].iov_len;
    }
    return 0;
}

static int disk_sync(void *opaque)
{
    struct disk *disk = opaque;

    if (nbd_can_flush(disk->nbd) <= 0) {
        return 0;
    }
    return nbd_flush(disk->nbd, 0) < 0 ? failed() : 0;
}

static int64_t disk_length(void *opaque)
{
    struct disk *disk = opaque;
    int64_t length = nbd_get_size(disk->nbd);

    return length < 0 ? failed() : length;
}

static int disk_discard(void *opaque, uint64_t offset, uint64_t length)
{
    struct disk *disk = opaque;

    if (nbd_can_trim(disk->nbd) <= 0) {
        return -ENOTSUP;
    }
    return nbd_trim(disk->nbd, length, offset, 0) < 0 ? failed() : 0;
}

static int disk_write_zeroes(void *opaque, uint64_t offset, uint64_t length)
{
    struct disk *disk = opaque;

    if (nbd_can_zero(disk->nbd) <= 0) {
        return -ENOTSUP;
    }
    return nbd_zero(disk->nbd, length, offset, 0) < 0 ? failed() : 0;
}

struct run {
    uint64_t offset, length;
    uint32_t flags;
    bool found;
};

static int take_extents(void *opaque, const char *context, uint64_t offset, uint32_t *entries, size_t count, int *error)
{
    struct run *run = opaque;

    (void)error;
    if (strcmp(context, ALLOCATION) == 0 && !run->found && count >= 2 && offset <= run->offset) {
        run->found = true;
        run->length = entries[0];
        run->flags = entries[1];
        for (size_t i = 2; i + 1 < count && entries[i + 1] == run->flags; i += 2) {
            run->length += entries[i];
        }
    }
    return 0;
}

static int disk_status(void *opaque, uint64_t offset, uint64_t length, uint64_t *run_length, uint32_t *flags)
{
    struct disk *disk = opaque;
    struct run run = {.offset = offset, .length = length};
    nbd_extent_callback callback = {.callback = take_extents, .user_data = &run};

    *flags = QCOW2_EXTENT_DATA;
    *run_length = length;
    if (!disk->has_status) {
        return 0;
    }
    length = length < MOST_BYTES ? length : MOST_BYTES;
    if (nbd_block_status(disk->nbd, length, offset, callback, 0) < 0) {
        return failed();
    }
    if (run.found && run.length > 0) {
        *run_length = run.length < length ? run.length : length;
        *flags = (run.flags & LIBNBD_STATE_ZERO) != 0 ? QCOW2_EXTENT_ZERO : QCOW2_EXTENT_DATA;
    }
    return 0;
}

static void disk_close(void *opaque)
{
    struct disk *disk = opaque;

    nbd_shutdown(disk->nbd, 0);
    nbd_close(disk->nbd);
    free(disk);
}

/* --- opening --- */

static const char *option(const char *const *options, const char *key)
{
    size_t length = strlen(key);

    for (; *options != NULL; options++) {
        if (strncmp(*options, key, length) == 0 && (*options)[length] == '=') {
            return *options + length + 1;
        }
    }
    return NULL;
}

static int refuse(char **message, int code, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    if (vasprintf(message, format, arguments) < 0) {
        *message = NULL;
    }
    va_end(arguments);
    return code;
}

static int connect_once(struct nbd_handle *nbd, const char *const *options)
{
    const char *path = option(options, "path");

    return path != NULL ? nbd_connect_unix(nbd, path)
                        : nbd_connect_tcp(nbd, option(options, "host"), option(options, "port"));
}

static struct nbd_handle *make_handle(const char *export)
{
    struct nbd_handle *nbd = nbd_create();

    if (nbd != NULL && (nbd_set_opt_mode(nbd, true) < 0 || nbd_set_export_name(nbd, export) < 0 ||
                        nbd_add_meta_context(nbd, ALLOCATION) < 0)) {
        nbd_close(nbd);
        nbd = NULL;
    }
    return nbd;
}

static int connect_disk(struct disk *disk, const char *const *options, const char *export, char **message)
{
    const char *path = option(options, "path"), *patience = option(options, "open-timeout");
    unsigned long tries = patience != NULL ? strtoul(patience, NULL, 10) * 10 : 0;
    int code;

    for (;;) {
        disk->nbd = make_handle(export);
        if (disk->nbd == NULL) {
            return refuse(message, -ENOMEM, "%s", nbd_get_error());
        }
        if (connect_once(disk->nbd, options) == 0) {
            return 0;
        }
        code = failed();
        if (tries-- == 0) {
            break;
        }
        nbd_close(disk->nbd);
        usleep(100000);
    }
    if (path != NULL) {
        refuse(message, code, "Failed to connect to '%s': %s", path, strerror(-code));
    } else {
        refuse(message, code, "Failed to connect to '%s:%s': %s", option(options, "host"), option(options, "port"),
               strerror(-code));
    }
    nbd_close(disk->nbd);
    return code;
}

static int negotiate(struct disk *disk, const char *export, int read_only, char **message)
{
    if (nbd_aio_is_negotiating(disk->nbd) > 0 && nbd_opt_go(disk->nbd) < 0) {
        return nbd_get_errno() == ENOENT
                   ? refuse(message, -EINVAL,
                            "Requested export not available\nserver reported: export '%s' not present", export)
                   : refuse(message, failed(), "%s", nbd_get_error());
    }
    if (!read_only && nbd_is_read_only(disk->nbd) > 0) {
        return refuse(message, -EACCES, "Could not open image: %s", strerror(EACCES));
    }
    disk->has_status = nbd_can_meta_context(disk->nbd, ALLOCATION) > 0;
    return 0;
}

static int open_disk(const char *const *options, int read_only, qcow2_io_ops *ops, void **opaque,
                     struct qcow2_storage_limits *limits, char **message)
{
    struct disk *disk = calloc(1, sizeof(*disk));
    const char *export = option(options, "export");
    int ret;

    *message = NULL;
    if (disk == NULL) {
        return -ENOMEM;
    }
    export = export != NULL ? export : "";
    ret = connect_disk(disk, options, export, message);
    if (ret < 0) {
        free(disk);
        return ret;
    }
    ret = negotiate(disk, export, read_only, message);
    if (ret < 0) {
        disk_close(disk);
        return ret;
    }
    *ops = (qcow2_io_ops){
        .struct_size = sizeof(*ops),
        .preadv = disk_preadv,
        .pwritev = nbd_is_read_only(disk->nbd) > 0 ? NULL : disk_pwritev,
        .sync = disk_sync,
        .length = disk_length,
        .discard = disk_discard,
        .write_zeroes = disk_write_zeroes,
        .close = disk_close,
        .block_status = disk_status,
    };
    *opaque = disk;
    limits->align = nbd_get_block_size(disk->nbd, LIBNBD_SIZE_MINIMUM) > 1
                        ? (uint64_t)nbd_get_block_size(disk->nbd, LIBNBD_SIZE_MINIMUM)
                        : 1;
    limits->max_transfer = MOST_BYTES;
    return 0;
}

static const struct qcow2_storage_driver driver = {.name = "nbd", .open = open_disk};

__attribute__((visibility("default"))) const struct qcow2_storage_driver *qcow2_storage_driver_1(void);

const struct qcow2_storage_driver *qcow2_storage_driver_1(void)
{
    return &driver;
}
