/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The length of an image as a raw file would have it, and how it changes. */
#include "growth.h"

#include <errno.h>
#include <string.h>
#include <sys/xattr.h>

#include "length.h"
#include "report.h"

enum {
    AHEAD_LEAST = 1 << 20,
    AHEAD_MOST = 256 << 20,
};

void growth_read(struct shared *shared, qcow2_image *image, uint64_t virtual_size)
{
    char value[LENGTH_VALUE_BYTES];
    ssize_t value_length = getxattr(shared->link, LENGTH_ATTRIBUTE, value, sizeof value);
    uint64_t length = length_of_value(value, value_length, virtual_size);

    shared->virtual_size = virtual_size;
    shared->has_length = value_length > 0;
    length = length_tail_is_zero(image, length, virtual_size) ? length : virtual_size;
    atomic_store(&shared->size, length);
    atomic_store(&shared->reached, length);
}

/* `next`: what is about to be. Whether the file keeps it. */
static bool write_lengths(struct shared *shared, struct file_length next)
{
    struct file_length now = {atomic_load(&shared->size), shared->virtual_size};
    char value[LENGTH_VALUE_BYTES];
    size_t bytes = length_value(value, now, next);
    static atomic_bool reported;

    if (!shared->no_length && setxattr(shared->link, LENGTH_ATTRIBUTE, value, bytes, 0) == 0) {
        shared->has_length = true;
    } else {
        if (!shared->no_length && !atomic_exchange(&reported, true)) {
            report_line("the file system keeps no attributes (%s): lengths are those of whole sectors of %d bytes",
                        strerrorname_np(errno), (int)LENGTH_SECTOR);
        }
        shared->no_length = true;
    }
    return !shared->no_length;
}

/* `next`: what the virtual size is about to become. */
static bool write_length(struct shared *shared, uint64_t next)
{
    return write_lengths(shared, (struct file_length){atomic_load(&shared->size), next});
}

static void forget_length(struct shared *shared)
{
    if (shared->has_length) {
        removexattr(shared->link, LENGTH_ATTRIBUTE);
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

bool growth_is_ahead(const struct shared *shared)
{
    return shared->virtual_size != length_round_up(atomic_load(&shared->size));
}

void growth_settle(struct shared *shared, qcow2_image *image)
{
    uint64_t size = atomic_load(&shared->size);

    if (shared->writable && shared->virtual_size != length_round_up(size)) {
        write_length(shared, length_round_up(size));
    }
    if (shared->writable && (shared->has_length || shared->virtual_size != size) &&
        set_virtual_size(shared, image, length_round_up(size)) == 0) {
        if (size % LENGTH_SECTOR != 0) {
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

    return end < INT64_MAX / 2 ? length_round_up(end + ahead) : length_round_up(end);
}

/* With `resizing` held, `end` past the size. */
static int grow(struct shared *shared, qcow2_image *image, uint64_t end)
{
    int result = 0;

    if (end > INT64_MAX - LENGTH_SECTOR) {
        return -EFBIG;
    }
    if (end > shared->virtual_size) {
        if (write_length(shared, ahead_of(end))) {
            result = set_virtual_size(shared, image, ahead_of(end));
        }
        if (result < 0 || shared->no_length) {
            result = set_virtual_size(shared, image, length_round_up(end));
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
    uint64_t disk = length_round_up(size);
    int result, zeroed = 0;

    /* What lies past the end reads as zeroes when the end moves over it again. */
    if (size < before && size < disk) {
        zeroed = qcow2_write_zeroes(image, size, disk - size, 0);
        size = zeroed == 0 ? size : before < disk ? before : disk;
    }
    /* A kill leaves one of both lengths. */
    if (disk != shared->virtual_size && (shared->has_length || size != disk)) {
        write_lengths(shared, (struct file_length){size, disk});
    }
    result = set_virtual_size(shared, image, disk);
    if (result < 0) {
        size = before < shared->virtual_size ? before : shared->virtual_size;
    }
    atomic_store(&shared->size, size);
    if (size != shared->virtual_size) {
        write_length(shared, shared->virtual_size);
    } else {
        forget_length(shared);
    }
    return result < 0 ? result : zeroed;
}

int shared_resize(struct shared *shared, qcow2_image *image, uint64_t size)
{
    int result;

    if (size > INT64_MAX - LENGTH_SECTOR) {
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
