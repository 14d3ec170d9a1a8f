/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Offsets, sizes and what changes them. */
#include <string.h>

#include "real.h"
#include "view-requests.h"

off_t view_offset_begin(int fd, struct view *view)
{
    pthread_mutex_lock(&view->lock);
    if (unlikely(atomic_load_explicit(&view->kernel_offset, memory_order_relaxed))) {
        atomic_store_explicit(&view->offset, REAL(lseek64)(fd, 0, SEEK_CUR), memory_order_relaxed);
    }
    return atomic_load_explicit(&view->offset, memory_order_relaxed);
}

void view_offset_end(int fd, struct view *view, off_t before, off_t offset)
{
    /* A signal handler's lseek comes after the request that it has interrupted. */
    if (__builtin_expect(atomic_compare_exchange_strong(&view->offset, &before, offset), 1) &&
        unlikely(atomic_load_explicit(&view->kernel_offset, memory_order_relaxed))) {
        REAL(lseek64)(fd, offset, SEEK_SET);
    }
    pthread_mutex_unlock(&view->lock);
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

/* -EINVAL: not a place in a file. */
static off_t seek_to(off_t base, off_t offset)
{
    off_t result;

    return __builtin_add_overflow(base, offset, &result) || result < 0 ? -EINVAL : result;
}

/* In a signal handler that has interrupted a request: from what is known, without a lock. */
static off_t seek_inside(int fd, struct view *view, off_t offset, int whence)
{
    bool kernel = atomic_load(&view->kernel_offset);
    off_t result, now = kernel ? REAL(lseek64)(fd, 0, SEEK_CUR) : atomic_load(&view->offset);

    switch (whence) {
    case SEEK_SET: result = seek_to(0, offset); break;
    case SEEK_CUR: result = seek_to(now, offset); break;
    case SEEK_END: result = seek_to((off_t)atomic_load(&view->shared->size), offset); break;
    default: return whence == SEEK_DATA || whence == SEEK_HOLE ? -EDEADLK : -EINVAL;
    }
    if (result >= 0) {
        atomic_store(&view->offset, result);
        if (kernel) {
            REAL(lseek64)(fd, result, SEEK_SET);
        }
    }
    return result;
}

off_t view_seek(int fd, struct view *view, off_t offset, int whence)
{
    struct shared *shared = view->shared;
    qcow2_image *image;
    off_t before, result;

    if (unlikely(view_interrupted())) {
        return seek_inside(fd, view, offset, whence);
    }
    /* A shell looks where it is in what another program has open. */
    if ((whence == SEEK_SET || whence == SEEK_CUR) && atomic_load(&view->kernel_offset)) {
        result = REAL(lseek64)(fd, offset, whence);
        return result < 0 ? -errno : result;
    }
    result = view_enter(view, &image);
    if (result < 0) {
        return result;
    }
    before = view_offset_begin(fd, view);
    switch (whence) {
    case SEEK_SET: result = seek_to(0, offset); break;
    case SEEK_CUR: result = seek_to(before, offset); break;
    case SEEK_END: result = seek_to((off_t)atomic_load(&shared->size), offset); break;
    case SEEK_DATA: result = find_extent(view, image, offset, false); break;
    case SEEK_HOLE: result = find_extent(view, image, offset, true); break;
    default: result = -EINVAL; break;
    }
    view_offset_end(fd, view, before, result < 0 ? before : result);
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
    result = view_enter(view, &image);
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
    result = view_enter(view, &image);
    if (result == 0) {
        result = zero_range(view, image, mode, (uint64_t)offset, (uint64_t)length);
        shared_leave(view->shared);
    }
    return result;
}

int view_flush(struct view *view)
{
    qcow2_image *image;
    int result = view_enter(view, &image);

    if (result == 0) {
        result = qcow2_flush(image);
        shared_leave(view->shared);
    }
    return result;
}

int64_t view_size(struct view *view)
{
    qcow2_image *image;
    int64_t size;

    if (unlikely(view_interrupted())) {
        return (int64_t)atomic_load(&view->shared->size);
    }
    size = shared_enter(view->shared, &image);
    if (size == 0) {
        size = (int64_t)atomic_load(&view->shared->size);
        shared_leave(view->shared);
    }
    return size;
}
