/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "views.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include "real.h"

/* As much as the kernel moves in one call. */
static const size_t REQUEST_MAX = 0x7ffff000;

static size_t iov_length(const struct iovec *iov, int count)
{
    size_t total = 0;

    for (int i = 0; i < count; i++) {
        total += iov[i].iov_len;
    }
    return total;
}

static int iov_check(const struct iovec *iov, int count)
{
    size_t total = 0;

    if (count < 0 || count > IOV_MAX) {
        return -EINVAL;
    }
    for (int i = 0; i < count; i++) {
        total += iov[i].iov_len;
        if (iov[i].iov_len > SSIZE_MAX || total > SSIZE_MAX) {
            return -EINVAL;
        }
    }
    return 0;
}

/* The first `length` bytes of a list; how many entries. */
static int iov_cut(struct iovec *to, const struct iovec *from, int count, size_t length)
{
    int used = 0;

    for (; used < count && length > 0; used++) {
        to[used] = from[used];
        if (to[used].iov_len > length) {
            to[used].iov_len = length;
        }
        length -= to[used].iov_len;
    }
    return used;
}

static bool may_read(struct view *view)
{
    return (atomic_load_explicit(&view->flags, memory_order_relaxed) & O_ACCMODE) != O_WRONLY;
}

static bool may_write(struct view *view)
{
    return (atomic_load_explicit(&view->flags, memory_order_relaxed) & O_ACCMODE) != O_RDONLY;
}

static ssize_t read_at(struct view *view, qcow2_image *image, const struct iovec *iov, int count, off_t offset)
{
    uint64_t size = atomic_load_explicit(&view->shared->size, memory_order_acquire);
    size_t length = iov_length(iov, count), left;
    struct iovec cut[IOV_MAX];

    if ((uint64_t)offset >= size || length == 0) {
        return 0;
    }
    left = size - (uint64_t)offset < REQUEST_MAX ? (size_t)(size - (uint64_t)offset) : REQUEST_MAX;
    if (__builtin_expect(count == 1, 1)) {
        return qcow2_pread(image, iov->iov_base, length < left ? length : left, (uint64_t)offset);
    }
    if (length <= left) {
        return qcow2_preadv(image, iov, count, (uint64_t)offset);
    }
    return qcow2_preadv(image, cut, iov_cut(cut, iov, count, left), (uint64_t)offset);
}

/* The size has not been changed for a write. */
static const uint64_t SAME_SIZE = UINT64_MAX;

/* Where a write goes: `offset`, or the end, made longer so that no other write begins there. */
static off_t target(struct view *view, qcow2_image *image, const struct iovec *iov, int count, off_t offset,
                    uint64_t *before)
{
    size_t length;

    if (__builtin_expect((atomic_load_explicit(&view->flags, memory_order_relaxed) & O_APPEND) == 0, 1)) {
        return offset;
    }
    length = iov_length(iov, count);
    if (view->rule->device || length == 0) {
        return (off_t)atomic_load(&view->shared->size);
    }
    offset = shared_append(view->shared, image, length < REQUEST_MAX ? length : REQUEST_MAX);
    if (offset >= 0) {
        *before = (uint64_t)offset;
    }
    return offset;
}

/* A device does not grow: what fits is written. */
static ssize_t room_for(struct view *view, qcow2_image *image, size_t length, uint64_t offset, uint64_t *before)
{
    uint64_t size = atomic_load_explicit(&view->shared->size, memory_order_acquire);
    int result;

    if (__builtin_expect(offset + length <= size, 1)) {
        return (ssize_t)length;
    }
    if (view->rule->device) {
        return offset < size ? (ssize_t)(size - offset) : -ENOSPC;
    }
    result = shared_grow(view->shared, image, offset + length, before);
    return result < 0 ? result : (ssize_t)length;
}

static ssize_t write_room(struct view *view, qcow2_image *image, const struct iovec *iov, int count, off_t offset,
                          bool durable)
{
    if (durable || (atomic_load_explicit(&view->flags, memory_order_relaxed) & O_DSYNC) != 0) {
        return qcow2_pwritev2(image, iov, count, (uint64_t)offset, QCOW2_REQ_FUA);
    }
    return count == 1 ? qcow2_pwrite(image, iov->iov_base, iov->iov_len, (uint64_t)offset)
                      : qcow2_pwritev(image, iov, count, (uint64_t)offset);
}

/* `before`: what the size was if it has been raised for this write, SAME_SIZE otherwise. */
static ssize_t write_at(struct view *view, qcow2_image *image, const struct iovec *iov, int count, off_t offset,
                        bool durable, uint64_t before)
{
    size_t length = iov_length(iov, count);
    struct iovec cut[IOV_MAX];
    ssize_t room, result;

    if (length == 0) {
        return 0;
    }
    if (unlikely(atomic_load_explicit(&view->shared->has_times, memory_order_relaxed))) {
        atomic_store(&view->shared->has_times, false);
    }
    room = room_for(view, image, length < REQUEST_MAX ? length : REQUEST_MAX, (uint64_t)offset, &before);
    if (room < 0) {
        return room;
    }
    if ((size_t)room < length) {
        count = iov_cut(cut, iov, count, (size_t)room);
        iov = cut;
    }
    result = write_room(view, image, iov, count, offset, durable);
    if (unlikely(result < 0) && before != SAME_SIZE) {
        shared_take_back(view->shared, image, before, (uint64_t)offset + (uint64_t)room);
    }
    return result;
}

ssize_t view_preadv(struct view *view, const struct iovec *iov, int count, off_t offset)
{
    qcow2_image *image;
    ssize_t result;

    if (!may_read(view)) {
        return -EBADF;
    }
    if (offset < 0 || iov_check(iov, count) < 0) {
        return -EINVAL;
    }
    result = shared_enter(view->shared, &image);
    if (result == 0) {
        result = read_at(view, image, iov, count, offset);
        shared_leave(view->shared);
    }
    return result;
}

ssize_t view_pwritev(struct view *view, const struct iovec *iov, int count, off_t offset, bool durable)
{
    uint64_t size_before = SAME_SIZE;
    qcow2_image *image;
    ssize_t result;

    if (!may_write(view)) {
        return -EBADF;
    }
    if (offset < 0 || iov_check(iov, count) < 0) {
        return -EINVAL;
    }
    result = shared_enter(view->shared, &image);
    if (result == 0) {
        offset = target(view, image, iov, count, offset, &size_before);
        result = offset < 0 ? offset : write_at(view, image, iov, count, offset, durable, size_before);
        shared_leave(view->shared);
    }
    return result;
}

ssize_t view_pread(struct view *view, void *buffer, size_t count, off_t offset)
{
    uint64_t size, end;
    qcow2_image *image;
    ssize_t result;

    if (!may_read(view)) {
        return -EBADF;
    }
    if (offset < 0) {
        return -EINVAL;
    }
    if (count > REQUEST_MAX) {
        count = REQUEST_MAX;
    }
    result = shared_enter(view->shared, &image);
    if (result < 0) {
        return result;
    }
    size = atomic_load_explicit(&view->shared->size, memory_order_acquire);
    end = (uint64_t)offset + count;
    if (unlikely(end > size)) {
        count = (uint64_t)offset < size ? (size_t)(size - (uint64_t)offset) : 0;
    }
    if (count > 0) {
        result = qcow2_pread(image, buffer, count, (uint64_t)offset);
    }
    shared_leave(view->shared);
    return result;
}

/* Nothing but a write of bytes that are there already. */
static bool is_plain(struct view *view, size_t count, off_t offset)
{
    int flags = atomic_load_explicit(&view->flags, memory_order_relaxed);

    return (flags & O_ACCMODE) != O_RDONLY && (flags & (O_APPEND | O_DSYNC)) == 0 && offset >= 0 && count > 0 &&
           count <= REQUEST_MAX && !atomic_load_explicit(&view->shared->has_times, memory_order_relaxed);
}

ssize_t view_pwrite(struct view *view, const void *buffer, size_t count, off_t offset)
{
    struct iovec iov = {__extension__(void *) buffer, count};
    qcow2_image *image;
    ssize_t result;

    if (is_plain(view, count, offset)) {
        result = shared_enter(view->shared, &image);
        if (result < 0) {
            return result;
        }
        if ((uint64_t)offset + count <= atomic_load_explicit(&view->shared->size, memory_order_acquire)) {
            result = qcow2_pwrite(image, buffer, count, (uint64_t)offset);
            shared_leave(view->shared);
            return result;
        }
        shared_leave(view->shared);
    }
    return view_pwritev(view, &iov, 1, offset, false);
}

/* Takes the lock and gives the offset. */
static off_t offset_begin(int fd, struct view *view)
{
    pthread_mutex_lock(&view->lock);
    if (unlikely(atomic_load_explicit(&view->kernel_offset, memory_order_relaxed))) {
        view->offset = REAL(lseek64)(fd, 0, SEEK_CUR);
    }
    return view->offset;
}

static void offset_end(int fd, struct view *view, off_t offset)
{
    view->offset = offset;
    if (unlikely(atomic_load_explicit(&view->kernel_offset, memory_order_relaxed))) {
        REAL(lseek64)(fd, offset, SEEK_SET);
    }
    pthread_mutex_unlock(&view->lock);
}

ssize_t view_read(int fd, struct view *view, const struct iovec *iov, int count)
{
    qcow2_image *image;
    ssize_t result;
    off_t offset;

    if (!may_read(view)) {
        return -EBADF;
    }
    if (iov_check(iov, count) < 0) {
        return -EINVAL;
    }
    result = shared_enter(view->shared, &image);
    if (result < 0) {
        return result;
    }
    offset = offset_begin(fd, view);
    result = read_at(view, image, iov, count, offset);
    offset_end(fd, view, result > 0 ? offset + result : offset);
    shared_leave(view->shared);
    return result;
}

ssize_t view_write(int fd, struct view *view, const struct iovec *iov, int count, bool durable)
{
    uint64_t size_before = SAME_SIZE;
    qcow2_image *image;
    ssize_t result;
    off_t before, offset;

    if (!may_write(view)) {
        return -EBADF;
    }
    if (iov_check(iov, count) < 0) {
        return -EINVAL;
    }
    result = shared_enter(view->shared, &image);
    if (result < 0) {
        return result;
    }
    before = offset_begin(fd, view);
    offset = target(view, image, iov, count, before, &size_before);
    result = offset < 0 ? offset : write_at(view, image, iov, count, offset, durable, size_before);
    offset_end(fd, view, result > 0 ? offset + result : before);
    shared_leave(view->shared);
    return result;
}

/* The first data, or the first hole, at or after an offset. */
static off_t find_extent(struct view *view, qcow2_image *image, off_t offset, bool hole)
{
    uint64_t size = atomic_load(&view->shared->size), at = (uint64_t)offset;
    uint64_t virtual_size = (uint64_t)qcow2_length(image);

    if (offset < 0 || at >= size) {
        return -ENXIO;
    }
    while (at < size) {
        qcow2_extent extent = {.struct_size = sizeof extent};
        int result = qcow2_block_status(image, at, virtual_size - at, 0, &extent);
        bool is_hole;

        if (result < 0) {
            return result;
        }
        is_hole = (extent.flags & QCOW2_EXTENT_DATA) == 0 || (extent.flags & QCOW2_EXTENT_ZERO) != 0;
        if (is_hole == hole) {
            return (off_t)at;
        }
        at += extent.length;
    }
    return hole ? (off_t)size : -ENXIO;
}

off_t view_seek(int fd, struct view *view, off_t offset, int whence)
{
    struct shared *shared = view->shared;
    qcow2_image *image;
    off_t before, result;

    /* A shell looks where it is in what another program has open. */
    if ((whence == SEEK_SET || whence == SEEK_CUR) && atomic_load(&view->kernel_offset)) {
        result = REAL(lseek64)(fd, offset, whence);
        return result < 0 ? -errno : result;
    }
    result = shared_enter(shared, &image);
    if (result < 0) {
        return result;
    }
    before = offset_begin(fd, view);
    switch (whence) {
    case SEEK_SET: result = offset; break;
    case SEEK_CUR: result = before + offset; break;
    case SEEK_END: result = (off_t)atomic_load(&shared->size) + offset; break;
    case SEEK_DATA: result = find_extent(view, image, offset, false); break;
    case SEEK_HOLE: result = find_extent(view, image, offset, true); break;
    default: result = -EINVAL; break;
    }
    if (result < 0 && whence != SEEK_DATA && whence != SEEK_HOLE) {
        result = -EINVAL;
    }
    offset_end(fd, view, result < 0 ? before : result);
    shared_leave(shared);
    return result;
}

int view_truncate(struct view *view, off_t size)
{
    qcow2_image *image;
    int result;

    if (!may_write(view) || size < 0 || view->rule->device) {
        return -EINVAL;
    }
    result = shared_enter(view->shared, &image);
    if (result == 0) {
        result = shared_resize(view->shared, image, (uint64_t)size);
        shared_leave(view->shared);
    }
    return result;
}

static int zero_range(struct view *view, qcow2_image *image, int mode, uint64_t offset, uint64_t length)
{
    uint64_t size = atomic_load(&view->shared->size), end = offset + length, before = SAME_SIZE;
    int result;

    if (end > size && (mode & FALLOC_FL_KEEP_SIZE) == 0) {
        result = shared_grow(view->shared, image, end, &before);
        if (result < 0) {
            return result;
        }
        size = end;
    }
    if ((mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) == 0 || offset >= size) {
        return 0;
    }
    if (end >= size) {
        /* To the end of the last sector, so that whole clusters can go. */
        end = (uint64_t)qcow2_length(image);
    }
    result = qcow2_write_zeroes(image, offset, end - offset, (mode & FALLOC_FL_PUNCH_HOLE) != 0 ? QCOW2_REQ_UNMAP : 0);
    if (result < 0 && before != SAME_SIZE) {
        shared_take_back(view->shared, image, before, size);
    }
    return result;
}

int view_allocate(struct view *view, int mode, off_t offset, off_t length)
{
    qcow2_image *image;
    int result;

    if (!may_write(view)) {
        return -EBADF;
    }
    if (offset < 0 || length <= 0) {
        return -EINVAL;
    }
    if (length > INT64_MAX - offset) {
        return -EFBIG;
    }
    if (mode != 0 && mode != FALLOC_FL_KEEP_SIZE && mode != (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) &&
        (mode & ~FALLOC_FL_KEEP_SIZE) != FALLOC_FL_ZERO_RANGE) {
        return -EOPNOTSUPP;
    }
    result = shared_enter(view->shared, &image);
    if (result == 0) {
        result = zero_range(view, image, mode, (uint64_t)offset, (uint64_t)length);
        shared_leave(view->shared);
    }
    return result;
}

int view_flush(struct view *view)
{
    qcow2_image *image;
    int result = shared_enter(view->shared, &image);

    if (result == 0) {
        result = qcow2_flush(image);
        shared_leave(view->shared);
    }
    return result;
}

int64_t view_size(struct view *view)
{
    qcow2_image *image;
    int64_t size = shared_enter(view->shared, &image);

    if (size == 0) {
        size = (int64_t)atomic_load(&view->shared->size);
        shared_leave(view->shared);
    }
    return size;
}
