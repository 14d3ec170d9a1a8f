/* nbdkit-qcow2-plugin: a qcow2 disk over NBD.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "log.h"
#include "options.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* nbdkit takes no longer request. */
#define LONGEST_REQUEST (64u << 20)

/* The server's own: all connections share one engine, so that a flush on one of them covers what all have written. */
static struct open_options options = OPEN_OPTIONS_INIT;
static char *file;
static int directory = -1; /* where the server was started: what paths in options are relative to */
static qcow2_image *image;

/* Held while the image changes from read-only to writable, which the first connection that may write has done. */
static pthread_mutex_t mode_lock = PTHREAD_MUTEX_INITIALIZER;
static bool may_write; /* neither the options nor the file are against it */
static bool is_writable;

/* NBD has few errors of its own, and nbdkit makes EINVAL of the others, which would be the client's fault. */
static int nbd_errno(int result)
{
    switch (-result) {
    case EFBIG: return ENOSPC;
    case EAGAIN:
    case EUCLEAN:
    case EOWNERDEAD:
    case ENOTRECOVERABLE: return EIO;
    default: return -result;
    }
}

/* Says what a call of the library has failed with. nbdkit takes errno from here. */
static int fail(int result)
{
    nbdkit_error("%s", last_failure());
    errno = nbd_errno(result);
    return -1;
}

static int fail_with(int result, char *text)
{
    nbdkit_error("%s", text != NULL ? text : "out of memory");
    free(text);
    errno = -result;
    return -1;
}

static int qcow2_config(const char *key, const char *value)
{
    char *error;
    int ret;

    if (directory < 0) {
        directory = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    }
    if (strcmp(key, "file") == 0) {
        free(file);
        file = nbdkit_realpath(value);
        return file != NULL ? 0 : -1;
    }
    ret = open_options_set(&options, key, value, &error);
    return ret < 0 ? fail_with(ret, error) : 0;
}

static int qcow2_config_complete(void)
{
    if (file == NULL) {
        nbdkit_error("which image? nbdkit qcow2 [file=]FILENAME");
        return -1;
    }
    return 0;
}

static bool is_temporary(void)
{
    const char *value = open_options_value(&options, "snapshot");

    return value != NULL && strcmp(value, "on") == 0;
}

/*
 * Only a connection knows whether the server runs with -r. So the image is opened read-only, which keeps other writers
 * out, and becomes writable for the first connection that may write; a temporary overlay never writes to it.
 */
static int open_image(void)
{
    struct open_options now = options;
    int here = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    char *error;
    int ret;

    now.flags |= is_temporary() && !open_options_read_only(&options) ? 0 : QCOW2_OPEN_READ_ONLY;
    if (directory >= 0 && fchdir(directory) < 0) {
        nbdkit_debug("the directory of the start is gone: %m");
    }
    ret = open_options_open(&now, file, &image, &error);
    if (here >= 0) {
        if (fchdir(here) < 0) {
            nbdkit_debug("fchdir: %m");
        }
        close(here);
    }
    if (ret < 0) {
        return fail_with(ret, error);
    }
    is_writable = (now.flags & QCOW2_OPEN_READ_ONLY) == 0;
    may_write = !open_options_read_only(&options);
    return 0;
}

static void close_image(void)
{
    if (qcow2_close(image) < 0) {
        nbdkit_error("%s: %s", file, last_failure());
    }
    image = NULL;
}

/* What is wrong with the image is told while the server has the user's terminal. A handle does not outlive a fork. */
static int qcow2_get_ready(void)
{
    if (open_image() < 0) {
        return -1;
    }
    close_image();
    return 0;
}

static int qcow2_after_fork(void)
{
    return open_image();
}

static void qcow2_cleanup(void)
{
    close_image();
}

static void qcow2_unload(void)
{
    open_options_free(&options);
    free(file);
    if (directory >= 0) {
        close(directory);
    }
}

/* A file that this user may not write is served read-only, as nbdkit's file plugin does. */
static int make_writable(void)
{
    int ret = 0;

    pthread_mutex_lock(&mode_lock);
    if (may_write && !is_writable) {
        ret = qcow2_reopen(image, options.flags & QCOW2_OPEN_NO_REPAIR, NULL);
        is_writable = ret == 0;
        if (ret == -EACCES || ret == -EPERM || ret == -EROFS) {
            nbdkit_debug("served read-only: %s", last_failure());
            may_write = false;
            ret = 0;
        }
    }
    pthread_mutex_unlock(&mode_lock);
    return ret;
}

/* What a connection has: nbdkit asks some things of each, and nothing depends on which it is. */
static void *qcow2_open_connection(int readonly)
{
    int ret = readonly ? 0 : make_writable();

    if (ret < 0) {
        fail(ret);
        return NULL;
    }
    return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t qcow2_get_size(void *handle)
{
    int64_t length = qcow2_length(image);

    (void)handle;
    return length < 0 ? fail((int)length) : length;
}

static int qcow2_can_write(void *handle)
{
    int answer;

    (void)handle;
    pthread_mutex_lock(&mode_lock);
    answer = is_writable;
    pthread_mutex_unlock(&mode_lock);
    return answer;
}

static int yes(void *handle)
{
    (void)handle;
    return 1;
}

static int qcow2_can_fua(void *handle)
{
    (void)handle;
    return NBDKIT_FUA_NATIVE;
}

/* Reads into nothing: tables and host pages are in memory then, and with copy-on-read the data in the image. */
static int qcow2_can_cache(void *handle)
{
    (void)handle;
    return NBDKIT_CACHE_EMULATE;
}

static int qcow2_block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
    (void)handle;
    *minimum = 1;
    *preferred = 4096; /* a page of the host; clients take this for a sector, so that it is no cluster */
    *maximum = LONGEST_REQUEST;
    return 0;
}

static int qcow2_read(void *handle, void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
    ssize_t ret = qcow2_pread(image, buffer, count, offset);

    (void)handle;
    (void)flags;
    return ret < 0 ? fail((int)ret) : 0;
}

static uint64_t request_flags(uint32_t flags)
{
    return ((flags & NBDKIT_FLAG_FUA) != 0 ? QCOW2_REQ_FUA : 0) |
           ((flags & NBDKIT_FLAG_MAY_TRIM) != 0 ? QCOW2_REQ_UNMAP : 0) |
           ((flags & NBDKIT_FLAG_FAST_ZERO) != 0 ? QCOW2_REQ_NO_FALLBACK : 0);
}

static int qcow2_write(void *handle, const void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct iovec iov = {(void *)buffer, count};
    ssize_t ret = qcow2_pwritev2(image, &iov, 1, offset, request_flags(flags));

    (void)handle;
    return ret < 0 ? fail((int)ret) : 0;
}

static int qcow2_sync(void *handle, uint32_t flags)
{
    int ret = qcow2_flush(image);

    (void)handle;
    (void)flags;
    return ret < 0 ? fail(ret) : 0;
}

static int qcow2_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    int ret = qcow2_discard2(image, offset, count, request_flags(flags));

    (void)handle;
    return ret < 0 ? fail(ret) : 0;
}

/* ENOTSUP, the library's answer where zeroing is not fast, is nbdkit's too. */
static int qcow2_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    int ret = qcow2_write_zeroes(image, offset, count, request_flags(flags));

    (void)handle;
    if (ret == -ENOTSUP) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return ret < 0 ? fail(ret) : 0;
}

static int qcow2_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags, struct nbdkit_extents *extents)
{
    uint64_t end = offset + count;

    (void)handle;
    while (offset < end) {
        qcow2_extent extent = {.struct_size = sizeof(extent)};
        int ret = qcow2_block_status(image, offset, end - offset, 0, &extent);

        if (ret < 0) {
            return fail(ret);
        }
        if (nbdkit_add_extent(extents, offset, extent.length,
                              ((extent.flags & QCOW2_EXTENT_DATA) != 0 ? 0 : NBDKIT_EXTENT_HOLE) |
                                  ((extent.flags & QCOW2_EXTENT_ZERO) != 0 ? NBDKIT_EXTENT_ZERO : 0)) < 0) {
            return -1;
        }
        if ((flags & NBDKIT_FLAG_REQ_ONE) != 0) {
            break;
        }
        offset += extent.length;
    }
    return 0;
}

static void dump_option(void *opaque, const char *key, const char *type, const char *default_value, const char *help)
{
    (void)opaque;
    (void)default_value;
    (void)help;
    printf("qcow2_option_%s=%s\n", key, type);
}

static void qcow2_dump_plugin(void)
{
    printf("qcow2_library_version=%s\n", qcow2_version());
    open_options_list(dump_option, NULL);
}

static struct nbdkit_plugin plugin = {
    .name = "qcow2",
    .longname = "qcow2 disk images, by libqcow2",
    .description = "Serves a qcow2 image, its backing files and its snapshots.",
    .config = qcow2_config,
    .config_complete = qcow2_config_complete,
    .magic_config_key = "file",
    .dump_plugin = qcow2_dump_plugin,
    .get_ready = qcow2_get_ready,
    .after_fork = qcow2_after_fork,
    .cleanup = qcow2_cleanup,
    .unload = qcow2_unload,
    .open = qcow2_open_connection,
    .get_size = qcow2_get_size,
    .block_size = qcow2_block_size,
    .can_write = qcow2_can_write,
    .can_flush = yes,
    .can_trim = yes,
    .can_zero = yes,
    .can_fast_zero = yes,
    .can_extents = yes,
    .can_multi_conn = yes,
    .can_fua = qcow2_can_fua,
    .can_cache = qcow2_can_cache,
    .pread = qcow2_read,
    .pwrite = qcow2_write,
    .flush = qcow2_sync,
    .trim = qcow2_trim,
    .zero = qcow2_zero,
    .extents = qcow2_extents,
    .errno_is_preserved = 1,
};

/* The server copies the table when it has loaded the plugin; the help is the library's list of options. */
static char *help;

__attribute__((constructor)) static void make_help(void)
{
    char *list = open_options_help("    ");

    if (list != NULL && asprintf(&help,
                                 "[file=]<FILENAME>  (required) The image.\n"
                                 "Options of the image, as KEY=VALUE:\n%s",
                                 list) < 0) {
        help = NULL;
    }
    free(list);
    plugin.config_help = help;
    plugin.version = qcow2_version();
}

__attribute__((destructor)) static void free_help(void)
{
    free(help);
}

NBDKIT_REGISTER_PLUGIN(plugin)
