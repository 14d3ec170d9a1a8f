/* The drivers of nodes, but for those that have a file of their own.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "node.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

/* --- file, host_device, host_cdrom --- */

static const char *after(const char *filename, const char *prefix)
{
    size_t length = strlen(prefix);

    return strncmp(filename, prefix, length) == 0 && filename[length] == ':' ? filename + length + 1 : NULL;
}

static int parse_file(const char *filename, struct string_list *items, char **error)
{
    const char *path = after(filename, "file");
    char *name = path != NULL ? path_as_name(path) : text_copy(filename);

    (void)error;
    list_addf(items, "filename=%s", name);
    free(name);
    return 0;
}

static int parse_device(const char *filename, struct string_list *items, char **error)
{
    const char *path = after(filename, "host_device");

    (void)error;
    path = path != NULL ? path : after(filename, "host_cdrom");
    list_addf(items, "filename=%s", path != NULL ? path : filename);
    return 0;
}

static int open_file(struct node *node, struct string_list *items, char **error)
{
    struct stat status;

    (void)items;
    if (stat(node->filename, &status) != 0) {
        return 0;
    }
    if (S_ISDIR(status.st_mode) && node->cache.direct && node_is_read_only(node)) {
        return refuse(error, -EINVAL,
                      text_format("Could not open '%s': filesystem does not support O_DIRECT", node->filename));
    }
    if (S_ISCHR(status.st_mode)) {
        return refuse(error, -EINVAL, text_format("'file' driver requires '%s' to be a regular file", node->filename));
    }
    return 0;
}

static int open_device(struct node *node, struct string_list *items, char **error)
{
    struct stat status;

    (void)items;
    if (stat(node->filename, &status) == 0 && !S_ISBLK(status.st_mode) && !S_ISCHR(status.st_mode)) {
        return refuse(error, -EINVAL,
                      text_format("'%s' driver requires '%s' to be either a character or block device",
                                  node->driver->name, node->filename));
    }
    return 0;
}

static const struct node_driver file_driver = {
    .name = "file", .protocol = true, .needs_filename = true, .parse_filename = parse_file, .open = open_file};
static const struct node_driver device_driver = {.name = "host_device",
                                                 .protocol = true,
                                                 .needs_filename = true,
                                                 .parse_filename = parse_device,
                                                 .open = open_device};
static const struct node_driver cdrom_driver = {.name = "host_cdrom",
                                                .protocol = true,
                                                .needs_filename = true,
                                                .parse_filename = parse_device,
                                                .open = open_device};

bool node_is_file(const struct node *node)
{
    return node->driver->needs_filename;
}

/* --- null-co, null-aio --- */

struct null_state {
    uint64_t size, latency;
    bool zeroes;
};

static int parse_null(const char *filename, struct string_list *items, char **error)
{
    (void)items;
    if (strcmp(filename, "null-co://") == 0 || strcmp(filename, "null-aio://") == 0) {
        return 0;
    }
    return refuse(error, -EINVAL,
                  text_format("The only allowed filename for this driver is '%s://'",
                              strncmp(filename, "null-aio", 8) == 0 ? "null-aio" : "null-co"));
}

static int open_null(struct node *node, struct string_list *items, char **error)
{
    struct null_state *state = memory_or_exit(calloc(1, sizeof(*state)));

    node->state = state;
    state->size = UINT64_C(1) << 30;
    if (take_size(items, "size", &state->size, error) < 0 ||
        take_size(items, "latency-ns", &state->latency, error) < 0 ||
        take_flag(items, "read-zeroes", &state->zeroes, error) < 0) {
        return -EINVAL;
    }
    node->filename = text_format("%s://", node->driver->name);
    return 0;
}

static void free_state(struct node *node)
{
    free(node->state);
}

static int null_wait(struct node *node)
{
    const struct null_state *state = node->state;
    struct timespec pause = {(time_t)(state->latency / 1000000000), (long)(state->latency % 1000000000)};

    if (state->latency > 0) {
        nanosleep(&pause, NULL);
    }
    return 0;
}

static int null_read(struct node *node, void *buffer, size_t bytes, uint64_t offset)
{
    const struct null_state *state = node->state;

    (void)offset;
    if (state->zeroes) {
        memset(buffer, 0, bytes);
    }
    return null_wait(node);
}

static int null_write(struct node *node, const void *buffer, size_t bytes, uint64_t offset)
{
    (void)buffer, (void)bytes, (void)offset;
    return null_wait(node);
}

static int null_range(struct node *node, uint64_t bytes, uint64_t offset)
{
    (void)bytes, (void)offset;
    return null_wait(node);
}

static int64_t null_length(struct node *node)
{
    const struct null_state *state = node->state;

    return (int64_t)state->size;
}

/* Nobody has written there, whatever is read. */
static int null_status(struct node *node, uint64_t offset, uint64_t length, uint64_t *run, uint32_t *flags)
{
    (void)node, (void)offset;
    *run = length;
    *flags = QCOW2_EXTENT_ZERO;
    return 0;
}

#define NULL_DRIVER(text)                                                                                              \
    {                                                                                                                  \
        .name = text, .protocol = true, .parse_filename = parse_null, .open = open_null, .free_state = free_state,     \
        .read = null_read, .write = null_write, .zero = null_range, .flush = null_wait, .length = null_length,         \
        .status = null_status                                                                                          \
    }
static const struct node_driver null_co_driver = NULL_DRIVER("null-co"), null_aio_driver = NULL_DRIVER("null-aio");

/* --- raw: what is below, or a part of it --- */

struct window {
    uint64_t offset, size;
    bool has_size;
};

static int window_fits(uint64_t range_end, const struct window *window)
{
    return window->has_size && range_end > window->size ? -ENOSPC : 0;
}

/* How much of a range is inside; what is behind it shows zeroes. */
static uint64_t window_holds(const struct window *window, uint64_t bytes, uint64_t offset)
{
    if (!window->has_size || offset + bytes <= window->size) {
        return bytes;
    }
    return offset < window->size ? window->size - offset : 0;
}

static int window_read(struct node *node, void *buffer, size_t bytes, uint64_t offset)
{
    const struct window *window = node->state;
    size_t held = (size_t)window_holds(window, bytes, offset);

    memset((char *)buffer + held, 0, bytes - held);
    return held > 0 ? node_child_read(node, buffer, held, offset + window->offset) : 0;
}

static int window_write(struct node *node, const void *buffer, size_t bytes, uint64_t offset)
{
    const struct window *window = node->state;
    int ret = window_fits(offset + bytes, window);

    return ret < 0 ? ret : node_child_write(node, buffer, bytes, offset + window->offset);
}

static int window_zero(struct node *node, uint64_t bytes, uint64_t offset)
{
    const struct window *window = node->state;
    int ret = window_fits(offset + bytes, window);

    return ret < 0 ? ret : node_child_zero(node, bytes, offset + window->offset);
}

static int window_discard(struct node *node, uint64_t bytes, uint64_t offset)
{
    const struct window *window = node->state;
    int ret = window_fits(offset + bytes, window);

    return ret < 0 ? ret : node_child_discard(node, bytes, offset + window->offset);
}

static int64_t window_length(struct node *node)
{
    const struct window *window = node->state;
    int64_t length = node_child_length(node);

    if (length < 0) {
        return length;
    }
    length = length > (int64_t)window->offset ? length - (int64_t)window->offset : 0;
    return window->has_size ? (int64_t)window->size : length;
}

static int window_truncate(struct node *node, uint64_t length)
{
    const struct window *window = node->state;

    return window->has_size ? -ENOTSUP : node_child_truncate(node, length + window->offset);
}

static int window_status(struct node *node, uint64_t offset, uint64_t length, uint64_t *run, uint32_t *flags)
{
    const struct window *window = node->state;
    uint64_t held = window_holds(window, length, offset);

    if (held == 0) {
        *run = length;
        *flags = QCOW2_EXTENT_ZERO;
        return 0;
    }
    return node_child_status(node, offset + window->offset, held, run, flags);
}

static const struct node_driver window_driver = {
    .name = "raw",
    .free_state = free_state,
    .read = window_read,
    .write = window_write,
    .zero = window_zero,
    .discard = window_discard,
    .flush = node_child_flush,
    .length = window_length,
    .truncate = window_truncate,
    .status = window_status,
};

static int check_window(const struct window *window, uint64_t length, char **error)
{
    if (window->offset > length) {
        return refuse(error, -EINVAL,
                      text_format("Offset (%" PRIu64 ") cannot be greater than size of the containing file (%" PRIu64
                                  ")",
                                  window->offset, length));
    }
    if (window->has_size && window->size > length - window->offset) {
        return refuse(error, -EINVAL,
                      text_format("The sum of offset (%" PRIu64 ") and size (%" PRIu64
                                  ") has to be smaller or equal to the  actual size of the containing file (%" PRIu64
                                  ")",
                                  window->offset, window->size, length));
    }
    if (window->has_size && window->size % 512 != 0) {
        return refuse(error, -EINVAL, text_copy("Specified size is not multiple of 512"));
    }
    return 0;
}

static int open_raw(struct node *node, struct string_list *items, char **error)
{
    struct window window = {0, 0, list_value(items, "size") != NULL};
    bool whole = list_value(items, "offset") == NULL && !window.has_size;
    int64_t length;
    int ret;

    if (whole) {
        return 0;
    }
    if (take_size(items, "size", &window.size, error) < 0 || take_size(items, "offset", &window.offset, error) < 0) {
        return -EINVAL;
    }
    ret = node_open_child(node->children[0], error);
    if (ret < 0) {
        return ret;
    }
    length = node_child_length(node);
    ret = length < 0 ? (int)length : check_window(&window, (uint64_t)length, error);
    if (ret == 0) {
        struct window *kept = memory_or_exit(malloc(sizeof(*kept)));

        *kept = window;
        node->state = kept;
        node->driver = &window_driver;
    }
    return ret;
}

static const struct node_driver raw_driver = {.name = "raw", .open = open_raw};

/* --- qcow2 --- */

static int open_qcow2(struct node *node, struct string_list *items, char **error)
{
    struct node *data;
    int ret = node_build_child(node, items, "data-file", NULL, true, error);

    data = ret == 0 ? node_child(node, "data-file") : NULL;
    if (data != NULL && node_is_file(data)) {
        list_addf(&node->image_options, "data-file=%s", data->filename);
    } else if (data != NULL) {
        ret =
            refuse(error, -ENOTSUP, text_format("A data file by the driver '%s' is not supported", data->driver->name));
    }
    return ret;
}

static const struct node_driver qcow2_driver = {.name = "qcow2", .open = open_qcow2};

/* --- luks: a plain file of it --- */

static const struct node_driver luks_driver = {.name = "luks"};

/* --- filters over a format --- */

static const char *format_below(const struct node *node)
{
    return node->children[0]->driver->name;
}

static int compress_write(struct node *node, const void *buffer, size_t bytes, uint64_t offset)
{
    struct iovec part = {(void *)(uintptr_t)buffer, bytes};
    ssize_t ret = qcow2_pwritev2(node->children[0]->image, &part, 1, offset, QCOW2_REQ_COMPRESSED);

    return ret < 0 ? (int)ret : 0;
}

static int open_compress(struct node *node, struct string_list *items, char **error)
{
    qcow2_info info = {.struct_size = sizeof(info)};
    int ret;

    (void)items;
    if (strcmp(format_below(node), "qcow2") != 0) {
        return refuse(error, -ENOTSUP,
                      text_format("Compression is not supported for underlying format: %s", format_below(node)));
    }
    ret = node_open_child(node->children[0], error);
    if (ret == 0 && qcow2_get_info(node->children[0]->image, &info) == 0) {
        node->limits.align = UINT64_C(1) << info.cluster_bits;
    }
    return ret;
}

static const struct node_driver compress_driver = {
    .name = "compress",
    .open = open_compress,
    .read = node_child_read,
    .write = compress_write,
    .zero = node_child_zero,
    .discard = node_child_discard,
    .flush = node_child_flush,
    .length = node_child_length,
    .truncate = node_child_truncate,
    .status = node_child_status,
};

static int open_copy_on_read(struct node *node, struct string_list *items, char **error)
{
    struct node *child = node->children[0];
    int ret;

    (void)items;
    if (strcmp(format_below(node), "qcow2") == 0 && !node_is_read_only(node)) {
        list_add(&child->image_options, "copy-on-read=on");
    }
    child->copies_on_read = child->driver == &node_blkdebug;
    ret = node_open_child(child, error);
    if (ret == 0 && node_is_read_only(node)) {
        return refuse(error, -EPERM, text_copy("Block node is read-only"));
    }
    return ret;
}

static const struct node_driver copy_on_read_driver = {
    .name = "copy-on-read",
    .open = open_copy_on_read,
    .read = node_child_read,
    .write = node_child_write,
    .zero = node_child_zero,
    .discard = node_child_discard,
    .flush = node_child_flush,
    .length = node_child_length,
    .truncate = node_child_truncate,
    .status = node_child_status,
};

/* --- the table --- */

static const struct node_driver *const drivers[] = {
    &file_driver,    &device_driver,  &cdrom_driver,        &raw_driver,      &qcow2_driver,
    &luks_driver,    &null_co_driver, &null_aio_driver,     &compress_driver, &node_blkdebug,
    &node_blkverify, &node_quorum,    &copy_on_read_driver, &node_nbd,
};

const struct node_driver *node_find_driver(const char *name)
{
    for (size_t i = 0; i < sizeof(drivers) / sizeof(drivers[0]); i++) {
        if (strcmp(name, drivers[i]->name) == 0) {
            return drivers[i];
        }
    }
    return NULL;
}

const struct node_driver *node_find_protocol(const char *filename)
{
    static const struct {
        const char *prefix;
        const struct node_driver *driver;
    } named[] = {
        {"file", &file_driver},         {"host_device", &device_driver},
        {"host_cdrom", &cdrom_driver},  {"null-co", &null_co_driver},
        {"null-aio", &null_aio_driver}, {"blkdebug", &node_blkdebug},
        {"blkverify", &node_blkverify}, {"nbd", &node_nbd},
        {"nbd+tcp", &node_nbd},         {"nbd+unix", &node_nbd},
    };
    size_t length = strcspn(filename, ":");
    struct stat status;

    if (!has_protocol(filename)) {
        bool device = stat(filename, &status) == 0 && (S_ISBLK(status.st_mode) || S_ISCHR(status.st_mode));

        return device ? &device_driver : &file_driver;
    }
    for (size_t i = 0; i < sizeof(named) / sizeof(named[0]); i++) {
        if (strncmp(filename, named[i].prefix, length) == 0 && named[i].prefix[length] == '\0') {
            return named[i].driver;
        }
    }
    return NULL;
}
