/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The length of an image as a raw file would have it: where it is kept, how it changes. */
#include "length.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

enum {
    SECTOR = 512,
    AHEAD_LEAST = 1 << 20,
    AHEAD_MOST = 256 << 20,
    /* Past a length that counts only the rest of the last cluster has data, which may have 2 MiB. */
    READ_MOST = 2 << 20,
};

static uint64_t round_up(uint64_t size)
{
    return (size + SECTOR - 1) / SECTOR * SECTOR;
}

uint64_t shared_length(const char *value, ssize_t value_length, uint64_t virtual_size)
{
    char text[SHARED_LENGTH_BYTES] = "", *end;
    uint64_t length, size, next;

    if (value_length <= 0 || (size_t)value_length >= sizeof text) {
        return virtual_size;
    }
    memcpy(text, value, (size_t)value_length);
    length = strtoull(text, &end, 10);
    size = strtoull(end, &end, 10);
    next = strtoull(end, &end, 10);
    return (size == virtual_size || next == virtual_size) && length <= virtual_size ? length : virtual_size;
}

/* A part that has been looked up, of up to READ_MOST bytes in all. */
static bool reads_as_zeroes(qcow2_image *image, uint64_t offset, uint64_t length)
{
    static const char zeroes[4096];
    char bytes[sizeof zeroes];

    while (length > 0) {
        size_t part = length < sizeof bytes ? (size_t)length : sizeof bytes;

        if (qcow2_pread(image, bytes, part, offset) != (ssize_t)part || memcmp(bytes, zeroes, part) != 0) {
            return false;
        }
        offset += part;
        length -= part;
    }
    return true;
}

bool shared_tail_is_zero(qcow2_image *image, uint64_t length, uint64_t virtual_size)
{
    uint64_t to_read = READ_MOST;

    while (length < virtual_size) {
        qcow2_extent extent = {.struct_size = sizeof extent};

        if (qcow2_block_status(image, length, virtual_size - length, 0, &extent) < 0 || extent.length == 0) {
            return false;
        }
        if ((extent.flags & QCOW2_EXTENT_DATA) != 0 && (extent.flags & QCOW2_EXTENT_ZERO) == 0) {
            if (extent.length > to_read || !reads_as_zeroes(image, length, extent.length)) {
                return false;
            }
            to_read -= extent.length;
        }
        length += extent.length;
    }
    return true;
}

void length_read(struct shared *shared, qcow2_image *image, uint64_t virtual_size)
{
    char value[SHARED_LENGTH_BYTES];
    ssize_t value_length = getxattr(shared->link, SHARED_LENGTH, value, sizeof value);
    uint64_t length = shared_length(value, value_length, virtual_size);

    shared->virtual_size = virtual_size;
    shared->has_length = value_length > 0;
    length = shared_tail_is_zero(image, length, virtual_size) ? length : virtual_size;
    atomic_store(&shared->size, length);
    atomic_store(&shared->reached, length);
}

/* `next`: what the virtual size is about to become. Whether the file keeps it. */
static bool write_length(struct shared *shared, uint64_t next)
{
    char value[SHARED_LENGTH_BYTES];

    snprintf(value, sizeof value, "%" PRIu64 " %" PRIu64 " %" PRIu64, (uint64_t)atomic_load(&shared->size),
             shared->virtual_size, next);
    if (!shared->no_length && setxattr(shared->link, SHARED_LENGTH, value, strlen(value), 0) == 0) {
        shared->has_length = true;
    } else {
        shared->no_length = true;
    }
    return !shared->no_length;
}

static void forget_length(struct shared *shared)
{
    if (shared->has_length) {
        removexattr(shared->link, SHARED_LENGTH);
        shared->has_length = false;
    }
}

static int set_virtual_size(struct shared *shared, qcow2_image *image, uint64_t size)
{
    int result = 0;

    if (shared->virtual_size != size) {
        result = qcow2_truncate(image, size, QCOW2_PREALLOC_OFF);
        if (result == 0) {
            shared->virtual_size = size;
        }
    }
    return result;
}

bool length_is_ahead(const struct shared *shared)
{
    return shared->virtual_size != round_up(atomic_load(&shared->size));
}

void length_settle(struct shared *shared, qcow2_image *image)
{
    uint64_t size = atomic_load(&shared->size);

    if (shared->writable && shared->virtual_size != round_up(size)) {
        write_length(shared, round_up(size));
    }
    if (shared->writable && (shared->has_length || shared->virtual_size != size) &&
        set_virtual_size(shared, image, round_up(size)) == 0) {
        if (size % SECTOR != 0) {
            write_length(shared, shared->virtual_size);
        } else {
            forget_length(shared);
        }
    }
}

/* How long the virtual size becomes for a file of `end` bytes. */
static uint64_t ahead_of(uint64_t end)
{
    uint64_t ahead = end / 4 < AHEAD_LEAST ? AHEAD_LEAST : end / 4 > AHEAD_MOST ? AHEAD_MOST : end / 4;

    return end < INT64_MAX / 2 ? round_up(end + ahead) : round_up(end);
}

/* With `resizing` held, `end` past the size. */
static int grow(struct shared *shared, qcow2_image *image, uint64_t end)
{
    int result = 0;

    if (end > INT64_MAX - SECTOR) {
        return -EFBIG;
    }
    if (end > shared->virtual_size) {
        if (write_length(shared, ahead_of(end))) {
            result = set_virtual_size(shared, image, ahead_of(end));
        }
        if (result < 0 || shared->no_length) {
            result = set_virtual_size(shared, image, round_up(end));
        }
    }
    if (result == 0) {
        atomic_store(&shared->size, end);
        /* Before the write, which a kill may then leave as zeroes, but never cut off. */
        if (shared->virtual_size != end || shared->has_length) {
            write_length(shared, shared->virtual_size);
        }
    }
    return result;
}

int shared_grow(struct shared *shared, qcow2_image *image, uint64_t end, uint64_t *before)
{
    uint64_t size;
    int result = 0;

    pthread_mutex_lock(&shared->resizing);
    size = atomic_load(&shared->size);
    if (end > size) {
        result = grow(shared, image, end);
        *before = result == 0 ? size : *before;
    }
    pthread_mutex_unlock(&shared->resizing);
    return result;
}

int64_t shared_append(struct shared *shared, qcow2_image *image, uint64_t length)
{
    int64_t result;
    uint64_t size;

    pthread_mutex_lock(&shared->resizing);
    size = atomic_load(&shared->size);
    result = size + length < size ? -EFBIG : grow(shared, image, size + length);
    pthread_mutex_unlock(&shared->resizing);
    return result < 0 ? result : (int64_t)size;
}

/* With `resizing` held; `before` is the size so far. */
static int resize(struct shared *shared, qcow2_image *image, uint64_t size, uint64_t before)
{
    int result;

    forget_length(shared);
    result = set_virtual_size(shared, image, round_up(size));
    /* What lies past the end reads as zeroes when the end moves over it again. */
    if (result == 0 && size < before && size % SECTOR != 0) {
        result = qcow2_write_zeroes(image, size, round_up(size) - size, 0);
    }
    if (result < 0) {
        size = before < shared->virtual_size ? before : shared->virtual_size;
    }
    atomic_store(&shared->size, size);
    if (size != shared->virtual_size) {
        write_length(shared, shared->virtual_size);
    }
    return result;
}

int shared_resize(struct shared *shared, qcow2_image *image, uint64_t size)
{
    int result;

    if (size > INT64_MAX - SECTOR) {
        return -EFBIG;
    }
    pthread_mutex_lock(&shared->resizing);
    result = resize(shared, image, size, atomic_load(&shared->size));
    if (result == 0 && atomic_load(&shared->reached) > size) {
        atomic_store(&shared->reached, size);
    }
    pthread_mutex_unlock(&shared->resizing);
    return result;
}

void shared_take_back(struct shared *shared, qcow2_image *image, uint64_t before, uint64_t end)
{
    uint64_t reached;

    pthread_mutex_lock(&shared->resizing);
    /* Otherwise another write lies past it. */
    if (atomic_load(&shared->size) == end) {
        reached = atomic_load(&shared->reached);
        before = reached > before ? reached : before;
        /* From now on whoever writes past it makes the file longer, and waits for that. */
        atomic_store(&shared->size, before);
        reached = atomic_load(&shared->reached);
        resize(shared, image, reached > before ? reached : before, end);
    }
    pthread_mutex_unlock(&shared->resizing);
}
