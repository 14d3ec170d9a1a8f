/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What opens, by path. */
#include "hooks.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/random.h>

/* As the caller has it. */
static __attribute__((noinline)) int open_plain(int directory, const char *path, int flags, mode_t mode)
{
    char name[PATH_MAX];

    if ((flags & (O_PATH | O_NOFOLLOW)) == O_PATH && image_link(directory, path, name)) {
        atomic_store(&image_paths, true);
    }
    return number_made(REAL(openat64)(directory, path, flags, mode));
}

/* The last part is a symbolic link. */
static __attribute__((noinline)) int open_link(int directory, const char *path, int flags, mode_t mode)
{
    char name[PATH_MAX];
    int fd = image_link(directory, path, name) ? image_open(directory, name, flags, mode) : NOT_AN_IMAGE;

    if (fd == NOT_AN_IMAGE) {
        return open_plain(directory, path, flags, mode);
    }
    stream_follows(fd);
    return (int)answer(fd);
}

/* What has to do with symbolic links; and with O_DIRECTORY a link would be ENOTDIR, not ELOOP. */
enum { NOT_BY_LINK = O_NOFOLLOW | O_PATH | O_DIRECTORY };

static __attribute__((noinline)) int open_image(int directory, const char *path, int flags, mode_t mode)
{
    int fd = image_open(directory, path, flags, mode);

    if (fd == NOT_AN_IMAGE) {
        if ((flags & NOT_BY_LINK) != 0 || image_rule(path) != NULL) {
            return open_plain(directory, path, flags, mode);
        }
        fd = REAL(openat64)(directory, path, flags | O_NOFOLLOW, mode);
        return fd < 0 && errno == ELOOP ? open_link(directory, path, flags, mode) : number_made(fd);
    }
    stream_follows(fd);
    return (int)answer(fd);
}

static inline int open_any(int directory, const char *path, int flags, mode_t mode)
{
    int fd;

    if (config_maybe(path)) {
        return open_image(directory, path, flags, mode);
    }
    if (unlikely((flags & NOT_BY_LINK) != 0)) {
        return open_plain(directory, path, flags, mode);
    }
    /* Whatever is no link costs nothing more. */
    fd = directory == AT_FDCWD ? REAL(open64)(path, flags | O_NOFOLLOW, mode)
                               : REAL(openat64)(directory, path, flags | O_NOFOLLOW, mode);
    if (unlikely(fd < 0)) {
        return errno == ELOOP ? open_link(directory, path, flags, mode) : fd;
    }
    return unlikely(atomic_load_explicit(&views_displaced, memory_order_relaxed)) ? number_made(fd) : fd;
}

#define OPEN(name)                                                                                                     \
    HOOK int hook_##name(const char *path, int flags, mode_t mode) __asm__(#name);                                     \
    int hook_##name(const char *path, int flags, mode_t mode)                                                          \
    {                                                                                                                  \
        return open_any(AT_FDCWD, path, flags, mode);                                                                  \
    }
#define OPENAT(name)                                                                                                   \
    HOOK int hook_##name(int directory, const char *path, int flags, mode_t mode) __asm__(#name);                      \
    int hook_##name(int directory, const char *path, int flags, mode_t mode)                                           \
    {                                                                                                                  \
        return open_any(directory, path, flags, mode);                                                                 \
    }

/* What the caller has not given is not looked at. */
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

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
    struct view *view;
    char name[PATH_MAX];
    int result, fd = NOT_AN_IMAGE;

    if (image_rule(path) != NULL) {
        fd = image_open(AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    } else if (image_link(AT_FDCWD, path, name)) {
        fd = image_open(AT_FDCWD, name, O_WRONLY | O_CLOEXEC, 0);
    }
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

/* A new image with a name of its own, as mkostemps makes a file. */
static int image_temporary(char *name, size_t suffix, int flags)
{
    const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    enum { PLACES = 6, TRIES = 1000 };
    size_t length = strlen(name);
    char *place = name + length - suffix - PLACES;
    int fd = -EEXIST;

    if (suffix > length || length - suffix < PLACES || strncmp(place, "XXXXXX", PLACES) != 0) {
        return -EINVAL;
    }
    for (int i = 0; fd == -EEXIST && i < TRIES; i++) {
        uint64_t random = 0;

        if (getrandom(&random, sizeof random, 0) != sizeof random) {
            return -errno;
        }
        for (int k = 0; k < PLACES; k++, random /= sizeof letters - 1) {
            place[k] = letters[random % (sizeof letters - 1)];
        }
        fd = image_open(AT_FDCWD, name, (flags & ~O_ACCMODE) | O_RDWR | O_CREAT | O_EXCL, 0600);
    }
    return fd == NOT_AN_IMAGE ? -EROFS : fd;
}

/* The letters that are yet to come do not matter to a rule that has none of them. */
static int temporary(char *name, int suffix, int flags)
{
    int fd = NOT_AN_IMAGE;

    if (suffix >= 0 && config_maybe(name) && config_match(name) != NULL) {
        fd = image_temporary(name, (size_t)suffix, flags);
        stream_follows(fd);
    }
    if (fd == NOT_AN_IMAGE) {
        return number_made(REAL(mkostemps64)(name, suffix, flags));
    }
    return (int)answer(fd);
}

HOOK int mkstemp(char *name)
{
    return temporary(name, 0, 0);
}

HOOK int mkstemp64(char *name)
{
    return temporary(name, 0, 0);
}

HOOK int mkostemp(char *name, int flags)
{
    return temporary(name, 0, flags);
}

HOOK int mkostemp64(char *name, int flags)
{
    return temporary(name, 0, flags);
}

HOOK int mkstemps(char *name, int suffix)
{
    return temporary(name, suffix, 0);
}

HOOK int mkstemps64(char *name, int suffix)
{
    return temporary(name, suffix, 0);
}

HOOK int mkostemps(char *name, int suffix, int flags)
{
    return temporary(name, suffix, flags);
}

HOOK int mkostemps64(char *name, int suffix, int flags)
{
    return temporary(name, suffix, flags);
}
