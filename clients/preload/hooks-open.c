/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What opens, by path. */
#include "hooks.h"

static inline int open_any(int directory, const char *path, int flags, mode_t mode)
{
    int fd = config_maybe(path) ? image_open(directory, path, flags, mode) : NOT_AN_IMAGE;

    if (__builtin_expect(fd == NOT_AN_IMAGE, 1)) {
        return REAL(openat64)(directory, path, flags, mode);
    }
    stream_follows(fd);
    return (int)answer(fd);
}

#define MODE(last)                                                                                                     \
    mode_t mode = 0;                                                                                                   \
    if ((flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE) {                                                  \
        va_list arguments;                                                                                             \
        va_start(arguments, last);                                                                                     \
        mode = va_arg(arguments, mode_t);                                                                              \
        va_end(arguments);                                                                                             \
    }

HOOK int open(const char *path, int flags, ...)
{
    MODE(flags)
    return open_any(AT_FDCWD, path, flags, mode);
}

HOOK int open64(const char *path, int flags, ...)
{
    MODE(flags)
    return open_any(AT_FDCWD, path, flags, mode);
}

HOOK int openat(int directory, const char *path, int flags, ...)
{
    MODE(flags)
    return open_any(directory, path, flags, mode);
}

HOOK int openat64(int directory, const char *path, int flags, ...)
{
    MODE(flags)
    return open_any(directory, path, flags, mode);
}

HOOK int __open_2(const char *path, int flags)
{
    return open_any(AT_FDCWD, path, flags, 0);
}

HOOK int __open64_2(const char *path, int flags)
{
    return open_any(AT_FDCWD, path, flags, 0);
}

HOOK int __openat_2(int directory, const char *path, int flags)
{
    return open_any(directory, path, flags, 0);
}

HOOK int __openat64_2(int directory, const char *path, int flags)
{
    return open_any(directory, path, flags, 0);
}

HOOK int creat(const char *path, mode_t mode)
{
    return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

HOOK int creat64(const char *path, mode_t mode)
{
    return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

static int truncate_any(const char *path, off_t size)
{
    int fd = image_rule(path) != NULL ? image_open(AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0) : NOT_AN_IMAGE;
    struct view *view;
    int result;

    if (fd == NOT_AN_IMAGE) {
        return REAL(truncate64)(path, size);
    }
    if (fd < 0) {
        return (int)answer(fd);
    }
    view = view_get(fd);
    result = view != NULL ? view_truncate(view, size) : -EBADF;
    if (view != NULL) {
        view_release(view);
    }
    close(fd);
    return (int)answer(result);
}

HOOK int truncate(const char *path, off_t size)
{
    return truncate_any(path, size);
}

HOOK int truncate64(const char *path, off_t size)
{
    return truncate_any(path, size);
}
