/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What files are: a regular file as long as the disk; the file's own device, inode, owner, times. */
#include "hooks.h"

#include <string.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/xattr.h>

_Static_assert(sizeof(struct stat) == sizeof(struct stat64), "only where both are the same");

static int fd_status(int fd, struct stat64 *status)
{
    struct view *view = view_get(fd);
    int result = -EBADF;

    HIT("fstat");
    if (view != NULL) {
        result = view_status(view, status);
        view_release(view);
    }
    return (int)answer(result);
}

static int fd_of_view(int directory, const char *path, int flags)
{
    int fd = -1;

    path = config_hide(path);
    if (path != NULL && path[0] == '\0' && (flags & AT_EMPTY_PATH) != 0) {
        fd = directory;
    } else if ((flags & AT_SYMLINK_NOFOLLOW) == 0) {
        fd = descriptor_of(path);
    }
    return is_view(fd) ? fd : -1;
}

/* The image's own name where `path` is a descriptor of another process. */
static const char *followed(const char *path, int flags, char name[PATH_MAX])
{
    return (flags & AT_SYMLINK_NOFOLLOW) == 0 && image_name_of_other(path, name) && config_match(name) != NULL ? name
                                                                                                               : path;
}

/* Of a descriptor that may have been opened with O_PATH. */
static __attribute__((noinline)) int path_fd_status(int fd, struct stat64 *status)
{
    int result = REAL(fstat64)(fd, status), saved = errno;
    const struct rule *rule;
    int64_t size = result == 0 ? image_size_at(fd, status, &rule) : -1;

    if (size >= 0) {
        view_dress(rule, (uint64_t)size, status);
    }
    errno = saved;
    return result;
}

static __attribute__((noinline)) int image_status(int directory, const char *path, struct stat64 *status, int flags)
{
    int fd = fd_of_view(directory, path, flags), result;
    const struct rule *rule;
    char name[PATH_MAX], target[PATH_MAX];
    int64_t size;

    if (fd >= 0) {
        return fd_status(fd, status);
    }
    if (path != NULL && path[0] == '\0' && (flags & AT_EMPTY_PATH) != 0 && atomic_load(&image_paths)) {
        return path_fd_status(directory, status);
    }
    path = followed(path, flags, name);
    result = REAL(fstatat64)(directory, path, status, flags);
    rule = result == 0 && S_ISREG(status->st_mode) ? image_rule(path) : NULL;
    if (rule == NULL && result == 0 && S_ISREG(status->st_mode) && (flags & AT_SYMLINK_NOFOLLOW) == 0 &&
        image_link(directory, path, target)) {
        path = target;
        rule = image_rule(path);
    }
    if (rule != NULL) {
        HIT("stat");
        size = image_size(directory, path, status);
        /* What is no image is shown as it is: an open says what is wrong with it. */
        if (size >= 0) {
            view_dress(rule, (uint64_t)size, status);
        }
    }
    return result;
}

/* The last part is a symbolic link, which is to be followed. */
static __attribute__((noinline)) int link_status(int directory, const char *path, struct stat64 *status, int flags)
{
    char name[PATH_MAX];

    return image_link(directory, path, name) ? image_status(directory, name, status, flags)
                                             : REAL(fstatat64)(directory, path, status, flags);
}

static inline int path_status(int directory, const char *path, struct stat64 *status, int flags)
{
    int result;

    if (config_maybe(path) || (flags & AT_EMPTY_PATH) != 0) {
        return image_status(directory, path, status, flags);
    }
    result = REAL(fstatat64)(directory, path, status, flags | AT_SYMLINK_NOFOLLOW);
    return unlikely(result == 0 && S_ISLNK(status->st_mode)) && (flags & AT_SYMLINK_NOFOLLOW) == 0
               ? link_status(directory, path, status, flags)
               : result;
}

static int fd_any(int fd, struct stat64 *status)
{
    if (unlikely(atomic_load_explicit(&image_paths, memory_order_relaxed)) && !is_view(fd)) {
        return path_fd_status(fd, status);
    }
    return is_view(fd) ? fd_status(fd, status) : REAL(fstat64)(fd, status);
}

#define SAME(status) ((struct stat64 *)(status))

HOOK int stat(const char *path, struct stat *status)
{
    return path_status(AT_FDCWD, path, SAME(status), 0);
}

HOOK int stat64(const char *path, struct stat64 *status)
{
    return path_status(AT_FDCWD, path, status, 0);
}

HOOK int lstat(const char *path, struct stat *status)
{
    return path_status(AT_FDCWD, path, SAME(status), AT_SYMLINK_NOFOLLOW);
}

HOOK int lstat64(const char *path, struct stat64 *status)
{
    return path_status(AT_FDCWD, path, status, AT_SYMLINK_NOFOLLOW);
}

HOOK int fstat(int fd, struct stat *status)
{
    return fd_any(fd, SAME(status));
}

HOOK int fstat64(int fd, struct stat64 *status)
{
    return fd_any(fd, status);
}

HOOK int fstatat(int directory, const char *path, struct stat *status, int flags)
{
    return path_status(directory, path, SAME(status), flags);
}

HOOK int fstatat64(int directory, const char *path, struct stat64 *status, int flags)
{
    return path_status(directory, path, status, flags);
}

HOOK int __xstat(int version, const char *path, struct stat *status)
{
    (void)version;
    return path_status(AT_FDCWD, path, SAME(status), 0);
}

HOOK int __xstat64(int version, const char *path, struct stat64 *status)
{
    (void)version;
    return path_status(AT_FDCWD, path, status, 0);
}

HOOK int __lxstat(int version, const char *path, struct stat *status)
{
    (void)version;
    return path_status(AT_FDCWD, path, SAME(status), AT_SYMLINK_NOFOLLOW);
}

HOOK int __lxstat64(int version, const char *path, struct stat64 *status)
{
    (void)version;
    return path_status(AT_FDCWD, path, status, AT_SYMLINK_NOFOLLOW);
}

HOOK int __fxstat(int version, int fd, struct stat *status)
{
    (void)version;
    return fd_any(fd, SAME(status));
}

HOOK int __fxstat64(int version, int fd, struct stat64 *status)
{
    (void)version;
    return fd_any(fd, status);
}

HOOK int __fxstatat(int version, int directory, const char *path, struct stat *status, int flags)
{
    (void)version;
    return path_status(directory, path, SAME(status), flags);
}

HOOK int __fxstatat64(int version, int directory, const char *path, struct stat64 *status, int flags)
{
    (void)version;
    return path_status(directory, path, status, flags);
}

/* The file's own answer, with what the image makes of size and kind. */
static int dress_statx(const struct rule *rule, uint64_t size, struct statx *status)
{
    struct stat64 dressed = {.st_mode = status->stx_mode, .st_ino = status->stx_ino};

    view_dress(rule, size, &dressed);
    status->stx_mode = (uint16_t)dressed.st_mode;
    status->stx_size = (uint64_t)dressed.st_size;
    if (rule->device) {
        status->stx_rdev_major = major(dressed.st_rdev);
        status->stx_rdev_minor = minor(dressed.st_rdev);
    }
    return 0;
}

static int fd_statx(int fd, int flags, unsigned mask, struct statx *status)
{
    struct view *view = view_get(fd);
    int64_t size = -EBADF;

    HIT("statx");
    if (view != NULL) {
        size = view_size(view);
        if (size >= 0 &&
            REAL(statx)(view->shared->anchor, "", flags | AT_EMPTY_PATH, mask | STATX_BASIC_STATS, status) != 0) {
            size = -errno;
        }
        if (size >= 0) {
            dress_statx(view->rule, (uint64_t)size, status);
        }
        view_release(view);
    }
    return (int)answer(size < 0 ? (int)size : 0);
}

HOOK int statx(int directory, const char *path, int flags, unsigned mask, struct statx *status)
{
    int fd = config_maybe(path) || (flags & AT_EMPTY_PATH) != 0 ? fd_of_view(directory, path, flags) : -1, result;
    const struct rule *rule;
    char name[PATH_MAX], target[PATH_MAX];

    if (fd >= 0) {
        return fd_statx(fd, flags, mask, status);
    }
    path = config_maybe(path) ? followed(path, flags, name) : path;
    result = REAL(statx)(directory, path, flags | AT_SYMLINK_NOFOLLOW, mask | STATX_TYPE, status);
    path = config_hide(path);
    if (result == 0 && S_ISLNK(status->stx_mode) && (flags & AT_SYMLINK_NOFOLLOW) == 0) {
        path = image_link(directory, path, target) ? target : path;
        result = REAL(statx)(directory, path, flags, mask, status);
    }
    if (result == 0 && path != NULL && path[0] == '\0' && atomic_load(&image_paths)) {
        struct stat64 file;
        int64_t size = REAL(fstat64)(directory, &file) == 0 ? image_size_at(directory, &file, &rule) : -1;

        return size >= 0 ? dress_statx(rule, (uint64_t)size, status) : 0;
    }
    rule = result == 0 && config_maybe(path) ? image_rule(path) : NULL;
    if (rule != NULL && S_ISREG(status->stx_mode)) {
        struct stat64 file = {
            .st_dev = makedev(status->stx_dev_major, status->stx_dev_minor),
            .st_ino = status->stx_ino,
        };
        int64_t size = image_size(directory, path, &file);

        HIT("statx");
        if (size >= 0) {
            dress_statx(rule, (uint64_t)size, status);
        }
    }
    return result;
}

/* Owner, mode, times, attributes are those of the image's file, whatever its name is now. */
#define ON_FILE(type, call, parameters, on_path, ...)                                                                  \
    HOOK type call parameters                                                                                          \
    {                                                                                                                  \
        struct view *view;                                                                                             \
        type result = -1;                                                                                              \
                                                                                                                       \
        if (!is_view(fd)) {                                                                                            \
            return REAL(call)(__VA_ARGS__);                                                                            \
        }                                                                                                              \
        HIT(#call);                                                                                                    \
        errno = EBADF;                                                                                                 \
        view = view_get(fd);                                                                                           \
        if (view != NULL) {                                                                                            \
            const char *path = view->shared->link;                                                                     \
                                                                                                                       \
            result = (on_path);                                                                                        \
            view_release(view);                                                                                        \
        }                                                                                                              \
        return result;                                                                                                 \
    }

ON_FILE(int, fchmod, (int fd, mode_t mode), chmod(path, mode), fd, mode)
ON_FILE(int, fchown, (int fd, uid_t owner, gid_t group), chown(path, owner, group), fd, owner, group)
static int keep_times(struct view *view, int result)
{
    if (result == 0) {
        shared_keep_times(view->shared);
    }
    return result;
}

ON_FILE(int, futimens, (int fd, const struct timespec times[2]),
        keep_times(view, REAL(utimensat)(AT_FDCWD, path, times, 0)), fd, times)
ON_FILE(int, futimes, (int fd, const struct timeval times[2]), keep_times(view, utimes(path, times)), fd, times)
ON_FILE(ssize_t, fgetxattr, (int fd, const char *name, void *value, size_t size), getxattr(path, name, value, size), fd,
        name, value, size)
ON_FILE(ssize_t, flistxattr, (int fd, char *names, size_t size), listxattr(path, names, size), fd, names, size)
ON_FILE(int, fsetxattr, (int fd, const char *name, const void *value, size_t size, int flags),
        setxattr(path, name, value, size, flags), fd, name, value, size, flags)
ON_FILE(int, fremovexattr, (int fd, const char *name), removexattr(path, name), fd, name)
ON_FILE(int, fstatfs64, (int fd, struct statfs64 *status), statfs64(path, status), fd, status)
ON_FILE(int, fstatvfs64, (int fd, struct statvfs64 *status), statvfs64(path, status), fd, status)

HOOK int fstatfs(int fd, struct statfs *status)
{
    return fstatfs64(fd, (struct statfs64 *)status);
}

HOOK int fstatvfs(int fd, struct statvfs *status)
{
    return fstatvfs64(fd, (struct statvfs64 *)status);
}
