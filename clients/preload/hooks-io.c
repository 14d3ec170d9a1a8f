/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Reads, writes, offsets, sizes, durability. */
#include "hooks.h"

/* A call on an image: `request` is a count or -errno, with `view` at hand. */
#define ON_VIEW(call, fd, request)                                                                                     \
    do {                                                                                                               \
        struct view *view = view_get(fd);                                                                              \
        long result_ = -EBADF;                                                                                         \
                                                                                                                       \
        HIT(call);                                                                                                     \
        if (view != NULL) {                                                                                            \
            result_ = (request);                                                                                       \
            view_release(view);                                                                                        \
        }                                                                                                              \
        return answer(result_);                                                                                        \
    } while (0)

static ssize_t image_read(int fd, void *buffer, size_t count)
{
    struct iovec iov = {buffer, count};

    ON_VIEW("read", fd, view_read(fd, view, &iov, 1));
}

static ssize_t image_write(int fd, const void *buffer, size_t count)
{
    struct iovec iov = {__extension__(void *) buffer, count};

    ON_VIEW("write", fd, view_write(fd, view, &iov, 1, false));
}

static ssize_t image_pread(int fd, void *buffer, size_t count, off_t offset)
{
    ON_VIEW("pread", fd, view_pread(view, buffer, count, offset));
}

static ssize_t image_pwrite(int fd, const void *buffer, size_t count, off_t offset)
{
    ON_VIEW("pwrite", fd, view_pwrite(view, buffer, count, offset));
}

static ssize_t image_readv(int fd, const struct iovec *iov, int count)
{
    ON_VIEW("readv", fd, view_read(fd, view, iov, count));
}

static ssize_t image_writev(int fd, const struct iovec *iov, int count)
{
    ON_VIEW("writev", fd, view_write(fd, view, iov, count, false));
}

static ssize_t image_preadv(int fd, const struct iovec *iov, int count, off_t offset)
{
    ON_VIEW("preadv", fd, view_preadv(view, iov, count, offset));
}

static ssize_t image_pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    ON_VIEW("pwritev", fd, view_pwritev(view, iov, count, offset, false));
}

enum { KNOWN_FLAGS = RWF_HIPRI | RWF_DSYNC | RWF_SYNC };

static ssize_t image_preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    if ((flags & ~KNOWN_FLAGS) != 0) {
        NOT_SERVED("preadv2", "its flags");
        return answer(-EOPNOTSUPP);
    }
    ON_VIEW("preadv2", fd, offset == -1 ? view_read(fd, view, iov, count) : view_preadv(view, iov, count, offset));
}

static ssize_t image_pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    bool durable = (flags & (RWF_DSYNC | RWF_SYNC)) != 0;

    if ((flags & ~KNOWN_FLAGS) != 0) {
        NOT_SERVED("pwritev2", "its flags");
        return answer(-EOPNOTSUPP);
    }
    ON_VIEW("pwritev2", fd,
            offset == -1 ? view_write(fd, view, iov, count, durable) : view_pwritev(view, iov, count, offset, durable));
}

HOOK ssize_t read(int fd, void *buffer, size_t count)
{
    return is_view(fd) ? image_read(fd, buffer, count) : REAL(read)(fd, buffer, count);
}

HOOK ssize_t write(int fd, const void *buffer, size_t count)
{
    return is_view(fd) ? image_write(fd, buffer, count) : REAL(write)(fd, buffer, count);
}

HOOK ssize_t __read_chk(int fd, void *buffer, size_t count, size_t room)
{
    return is_view(fd) && count <= room ? image_read(fd, buffer, count) : REAL(__read_chk)(fd, buffer, count, room);
}

HOOK ssize_t __pread64_chk(int fd, void *buffer, size_t count, off_t offset, size_t room)
{
    return is_view(fd) && count <= room ? image_pread(fd, buffer, count, offset)
                                        : REAL(__pread64_chk)(fd, buffer, count, offset, room);
}

HOOK ssize_t __pread_chk(int fd, void *buffer, size_t count, off_t offset, size_t room)
{
    return is_view(fd) && count <= room ? image_pread(fd, buffer, count, offset)
                                        : REAL(__pread64_chk)(fd, buffer, count, offset, room);
}

/* Each of these under the two names that it has where off_t has 64 bits. */
#define BOTH(type, name, parameters, call, ...)                                                                        \
    HOOK type name parameters                                                                                          \
    {                                                                                                                  \
        return is_view(fd) ? call(__VA_ARGS__) : REAL(name##64)(__VA_ARGS__);                                          \
    }                                                                                                                  \
    HOOK type name##64 parameters                                                                                      \
    {                                                                                                                  \
        return is_view(fd) ? call(__VA_ARGS__) : REAL(name##64)(__VA_ARGS__);                                          \
    }

BOTH(ssize_t, pread, (int fd, void *buffer, size_t count, off_t offset), image_pread, fd, buffer, count, offset)
BOTH(ssize_t, pwrite, (int fd, const void *buffer, size_t count, off_t offset), image_pwrite, fd, buffer, count, offset)
BOTH(ssize_t, preadv, (int fd, const struct iovec *iov, int count, off_t offset), image_preadv, fd, iov, count, offset)
BOTH(ssize_t, pwritev, (int fd, const struct iovec *iov, int count, off_t offset), image_pwritev, fd, iov, count,
     offset)

HOOK ssize_t readv(int fd, const struct iovec *iov, int count)
{
    return is_view(fd) ? image_readv(fd, iov, count) : REAL(readv)(fd, iov, count);
}

HOOK ssize_t writev(int fd, const struct iovec *iov, int count)
{
    return is_view(fd) ? image_writev(fd, iov, count) : REAL(writev)(fd, iov, count);
}

HOOK ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    return is_view(fd) ? image_preadv2(fd, iov, count, offset, flags) : REAL(preadv64v2)(fd, iov, count, offset, flags);
}

HOOK ssize_t preadv64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    return is_view(fd) ? image_preadv2(fd, iov, count, offset, flags) : REAL(preadv64v2)(fd, iov, count, offset, flags);
}

HOOK ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    return is_view(fd) ? image_pwritev2(fd, iov, count, offset, flags)
                       : REAL(pwritev64v2)(fd, iov, count, offset, flags);
}

HOOK ssize_t pwritev64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    return is_view(fd) ? image_pwritev2(fd, iov, count, offset, flags)
                       : REAL(pwritev64v2)(fd, iov, count, offset, flags);
}

static off_t image_lseek(int fd, off_t offset, int whence)
{
    ON_VIEW("lseek", fd, view_seek(fd, view, offset, whence));
}

static int image_ftruncate(int fd, off_t size)
{
    ON_VIEW("ftruncate", fd, view_truncate(view, size));
}

static int image_fallocate(int fd, int mode, off_t offset, off_t length)
{
    ON_VIEW("fallocate", fd, view_allocate(view, mode, offset, length));
}

BOTH(off_t, lseek, (int fd, off_t offset, int whence), image_lseek, fd, offset, whence)
BOTH(int, ftruncate, (int fd, off_t size), image_ftruncate, fd, size)
BOTH(int, fallocate, (int fd, int mode, off_t offset, off_t length), image_fallocate, fd, mode, offset, length)

static int image_posix_fallocate(int fd, off_t offset, off_t length)
{
    struct view *view = view_get(fd);
    int result = -EBADF;

    HIT("posix_fallocate");
    if (view != NULL) {
        result = view_allocate(view, 0, offset, length);
        view_release(view);
    }
    return -result;
}

static int image_fadvise(int fd, off_t offset, off_t length, int advice)
{
    HIT("posix_fadvise");
    (void)offset;
    if (view_at(fd) == VIEW_ENGINE) {
        return EBADF;
    }
    return length < 0 || advice < 0 || advice > POSIX_FADV_NOREUSE ? EINVAL : 0;
}

BOTH(int, posix_fallocate, (int fd, off_t offset, off_t length), image_posix_fallocate, fd, offset, length)
BOTH(int, posix_fadvise, (int fd, off_t offset, off_t length, int advice), image_fadvise, fd, offset, length, advice)

static int image_flush(int fd)
{
    ON_VIEW("fsync", fd, view_flush(view));
}

HOOK int fsync(int fd)
{
    return is_view(fd) ? image_flush(fd) : REAL(fsync)(fd);
}

HOOK int fdatasync(int fd)
{
    return is_view(fd) ? image_flush(fd) : REAL(fdatasync)(fd);
}

HOOK int syncfs(int fd)
{
    return is_view(fd) ? image_flush(fd) : REAL(syncfs)(fd);
}

/* No promise of durability: what a write has returned for is in the file. */
static int image_sync_file_range(int fd, off_t offset, off_t length)
{
    ON_VIEW("sync_file_range", fd, offset < 0 || length < 0 ? -EINVAL : view->shared == NULL ? -EBADF : 0);
}

HOOK int sync_file_range(int fd, off_t offset, off_t length, unsigned flags)
{
    return is_view(fd) ? image_sync_file_range(fd, offset, length) : REAL(sync_file_range)(fd, offset, length, flags);
}

HOOK ssize_t readahead(int fd, off_t offset, size_t count)
{
    return is_view(fd) ? image_sync_file_range(fd, offset, 0) : REAL(readahead)(fd, offset, count);
}
