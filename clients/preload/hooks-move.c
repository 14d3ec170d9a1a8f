/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Bytes that move without a buffer of the program's: mmap, sendfile, splice; and ioctl. */
#include "hooks.h"

#include <linux/fs.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>

/* A private mapping is a copy that is made at once. */
static const size_t MAP_LIMIT = (size_t)1 << 30;
enum { CHUNK = 256 * 1024 };

static long map_copy(struct view *view, void *address, size_t length, int protection, int flags, off_t offset)
{
    char *memory;
    size_t done = 0;
    ssize_t part;

    if (length > MAP_LIMIT) {
        NOT_SERVED("mmap", "more than 1 GiB");
        return -ENODEV;
    }
    memory = REAL(mmap64)(address, length, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)), -1, 0);
    if (memory == MAP_FAILED) {
        return -errno;
    }
    while (done < length && (part = view_pread(view, memory + done, length - done, offset + (off_t)done)) != 0) {
        if (part < 0) {
            munmap(memory, length);
            return part;
        }
        done += (size_t)part;
    }
    if (mprotect(memory, length, protection) != 0) {
        munmap(memory, length);
        return -EACCES;
    }
    return (long)(intptr_t)memory;
}

static void *image_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    struct view *view = view_get(fd);
    int kind = flags & MAP_TYPE;
    long result = -EBADF;

    HIT("mmap");
    if (view != NULL) {
        /* What nobody can write, here or elsewhere, may be shared as a copy. */
        if (kind != MAP_PRIVATE && ((protection & PROT_WRITE) != 0 || view->shared->writable)) {
            NOT_SERVED("mmap", "a shared mapping of an image that is open for writing");
            result = -ENODEV;
        } else if (length == 0 || offset < 0 || offset % sysconf(_SC_PAGESIZE) != 0) {
            result = -EINVAL;
        } else {
            result = map_copy(view, address, length, protection, flags, offset);
        }
        view_release(view);
    }
    /* Addresses of the upper half are the kernel's, so that errors are told from them. */
    return result < 0 && result > -4096 ? (answer(result), MAP_FAILED) : (void *)(intptr_t)result;
}

HOOK void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return (flags & MAP_ANONYMOUS) == 0 && is_view(fd) ? image_mmap(address, length, protection, flags, fd, offset)
                                                       : REAL(mmap64)(address, length, protection, flags, fd, offset);
}

HOOK void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return mmap(address, length, protection, flags, fd, offset);
}

/* By way of a buffer. A count, or -1 with errno. */
static ssize_t carry(int out, int in, off_t *offset, size_t count)
{
    char *buffer = malloc(CHUNK);
    ssize_t total = 0, got = 0, put = 0;

    if (buffer == NULL) {
        return answer(-ENOMEM);
    }
    while ((size_t)total < count) {
        size_t part = count - (size_t)total < CHUNK ? count - (size_t)total : CHUNK;

        got = offset != NULL ? pread(in, buffer, part, *offset) : read(in, buffer, part);
        if (got <= 0) {
            break;
        }
        put = write(out, buffer, (size_t)got);
        if (put < got && offset == NULL) {
            lseek(in, (put < 0 ? 0 : put) - got, SEEK_CUR);
        }
        if (put < 0) {
            break;
        }
        total += put;
        if (offset != NULL) {
            *offset += put;
        }
        if (put < got) {
            break;
        }
    }
    free(buffer);
    return total > 0 ? total : got < 0 || put < 0 ? -1 : 0;
}

static ssize_t sendfile_any(int out, int in, off_t *offset, size_t count)
{
    if (!is_view(in) && !is_view(out)) {
        return REAL(sendfile64)(out, in, offset, count);
    }
    HIT("sendfile");
    return carry(out, in, offset, count);
}

HOOK ssize_t sendfile(int out, int in, off_t *offset, size_t count)
{
    return sendfile_any(out, in, offset, count);
}

HOOK ssize_t sendfile64(int out, int in, off_t *offset, size_t count)
{
    return sendfile_any(out, in, offset, count);
}

HOOK ssize_t splice(int in, off_t *in_offset, int out, off_t *out_offset, size_t count, unsigned flags)
{
    if (!is_view(in) && !is_view(out)) {
        return REAL(splice)(in, in_offset, out, out_offset, count, flags);
    }
    NOT_SERVED("splice", "answered with EINVAL");
    return answer(-EINVAL);
}

HOOK ssize_t copy_file_range(int in, off_t *in_offset, int out, off_t *out_offset, size_t count, unsigned flags)
{
    if (!is_view(in) && !is_view(out)) {
        return REAL(copy_file_range)(in, in_offset, out, out_offset, count, flags);
    }
    NOT_SERVED("copy_file_range", "answered with EXDEV");
    return answer(-EXDEV);
}

/* What block devices are asked. */
static int device_ioctl(struct view *view, unsigned long request, void *argument)
{
    uint64_t *range = argument;
    int64_t size = view_size(view);

    if (size < 0) {
        return (int)size;
    }
    switch (request) {
    case BLKGETSIZE64: *(uint64_t *)argument = (uint64_t)size; return 0;
    case BLKGETSIZE: *(unsigned long *)argument = (unsigned long)size / 512; return 0;
    case BLKSSZGET: *(int *)argument = 512; return 0;
    case BLKPBSZGET: *(unsigned *)argument = 4096; return 0;
    case BLKIOMIN:
    case BLKIOOPT: *(unsigned *)argument = 4096; return 0;
    case BLKROGET: *(int *)argument = view->rule->read_only; return 0;
    case BLKROTATIONAL:
    case BLKDISCARDZEROES: *(unsigned short *)argument = 0; return 0;
    case BLKFLSBUF: return view_flush(view);
    case BLKRRPART: return 0;
    case BLKDISCARD:
    case BLKZEROOUT:
        if (range[1] > (uint64_t)size || range[0] > (uint64_t)size - range[1]) {
            return -EINVAL;
        }
        return view_allocate(view,
                             request == BLKDISCARD ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : FALLOC_FL_ZERO_RANGE,
                             (off_t)range[0], (off_t)range[1]);
    default: return -ENOTTY;
    }
}

static int image_ioctl(int fd, unsigned long request, void *argument)
{
    struct view *view = view_get(fd);
    int64_t result = -EBADF, left;

    HIT("ioctl");
    if (view == NULL) {
        return (int)answer(-EBADF);
    }
    switch (request) {
    case FIOCLEX:
    case FIONCLEX:
    case FIONBIO: result = REAL(ioctl)(fd, request, argument) == 0 ? 0 : -errno; break;
    case FIONREAD:
        result = view_size(view);
        left = result - view_seek(fd, view, 0, SEEK_CUR);
        *(int *)argument = left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
        result = result < 0 ? result : 0;
        break;
    case FICLONE:
    case FICLONERANGE: result = -EOPNOTSUPP; break;
    default: result = view->rule->device ? device_ioctl(view, request, argument) : -ENOTTY; break;
    }
    view_release(view);
    return (int)answer(result);
}

HOOK int hook_ioctl(int fd, unsigned long request, void *argument) __asm__("ioctl");

int hook_ioctl(int fd, unsigned long request, void *argument)
{
    return is_view(fd) ? image_ioctl(fd, request, argument) : REAL(ioctl)(fd, request, argument);
}
