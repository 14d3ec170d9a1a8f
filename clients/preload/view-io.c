/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <string.h>

#include "real.h"
#include "view-requests.h"

/* As much as the kernel moves in one call. */
static const size_t REQUEST_MAX = 0x7ffff000;
/* Programs map nothing so low (vm.mmap_min_addr). */
enum { NOWHERE_BYTES = 65536 };

static size_t iov_length(const struct iovec *iov, int count)
{
    size_t total = 0;

    for (int i = 0; i < count; i++) {
        total += iov[i].iov_len;
    }
    return total;
}

/*
 * Pages that nobody maps: a system call says EFAULT, and the engine, where it copies or zeroes bytes itself, would be
 * killed. Others that are not mapped it cannot know of without a system call more.
 */
static inline bool is_nowhere(const void *buffer, size_t length)
{
    uintptr_t first = (uintptr_t)buffer, last = first + length - 1;
    struct iovec here = {&(char){0}, 1}, there = {__extension__(void *) buffer, 1};

    if (__builtin_expect(first >= NOWHERE_BYTES && (intptr_t)first >= 0 && (intptr_t)last >= 0, 1) || length == 0) {
        return false;
    }
    return first >= NOWHERE_BYTES || process_vm_readv(getpid(), &here, 1, &there, 1, 0) != 1;
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
    for (int i = 0; i < count; i++) {
        if (is_nowhere(iov[i].iov_base, iov[i].iov_len)) {
            return -EFAULT;
        }
    }
    return 0;
}

/* A request that ends where no file can. */
static bool is_beyond(const struct iovec *iov, int count, off_t offset)
{
    return offset < 0 || (uint64_t)offset + iov_length(iov, count) > INT64_MAX;
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
    /* An append has made the file longer already. While a write is waited for that fails, another may make it longer. */
    while (*before == SAME_SIZE && unlikely(!shared_holds(view->shared, offset + length))) {
        int result;

        if (view->rule->device) {
            uint64_t size = atomic_load(&view->shared->size);

            return offset < size ? (ssize_t)(size - offset) : -ENOSPC;
        }
        result = shared_grow(view->shared, image, offset + length, before);
        if (result < 0) {
            return result;
        }
    }
    return (ssize_t)length;
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
    result = iov_check(iov, count);
    if (result == 0 && is_beyond(iov, count, offset)) {
        result = -EINVAL;
    }
    if (result < 0) {
        return result;
    }
    result = view_enter(view, &image);
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
    result = iov_check(iov, count);
    if (result == 0 && is_beyond(iov, count, offset)) {
        result = -EINVAL;
    }
    if (result < 0) {
        return result;
    }
    result = view_enter(view, &image);
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
    if (unlikely(is_nowhere(buffer, count))) {
        return -EFAULT;
    }
    result = view_enter(view, &image);
    if (result < 0) {
        return result;
    }
    size = atomic_load_explicit(&view->shared->size, memory_order_acquire);
    end = (uint64_t)offset + count;
    if (unlikely(end > INT64_MAX)) {
        result = -EINVAL;
        count = 0;
    } else if (unlikely(end > size)) {
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

    if (is_plain(view, count, offset) && !is_nowhere(buffer, count)) {
        result = view_enter(view, &image);
        if (result < 0) {
            return result;
        }
        if (shared_holds(view->shared, (uint64_t)offset + count)) {
            result = qcow2_pwrite(image, buffer, count, (uint64_t)offset);
            shared_leave(view->shared);
            return result;
        }
        shared_leave(view->shared);
    }
    return view_pwritev(view, &iov, 1, offset, false);
}

ssize_t view_read(int fd, struct view *view, const struct iovec *iov, int count)
{
    qcow2_image *image;
    ssize_t result;
    off_t offset;

    if (!may_read(view)) {
        return -EBADF;
    }
    result = iov_check(iov, count);
    if (result < 0) {
        return result;
    }
    result = view_enter(view, &image);
    if (result < 0) {
        return result;
    }
    offset = view_offset_begin(fd, view);
    result = read_at(view, image, iov, count, offset);
    view_offset_end(fd, view, offset, result > 0 ? offset + result : offset);
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
    result = iov_check(iov, count);
    if (result < 0) {
        return result;
    }
    result = view_enter(view, &image);
    if (result < 0) {
        return result;
    }
    before = view_offset_begin(fd, view);
    offset = target(view, image, iov, count, before, &size_before);
    result = offset < 0 ? offset : write_at(view, image, iov, count, offset, durable, size_before);
    view_offset_end(fd, view, before, result > 0 ? offset + result : before);
    shared_leave(view->shared);
    return result;
}
