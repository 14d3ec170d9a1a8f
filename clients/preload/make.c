/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Images that an open makes. */
#include <string.h>
#include <sys/file.h>

#include "open.h"
#include "real.h"

/* What a process that was killed has left of an image that it was making; none begins so. */
enum { UNFINISHED = 65536 };

static const char *const options[] = {"lazy_refcounts=on", NULL};

static bool begins_with_zeroes(int fd)
{
    static const char zeroes[4096];
    char bytes[sizeof zeroes];

    for (off_t at = 0; at < UNFINISHED; at += (off_t)sizeof bytes) {
        ssize_t length = REAL(pread64)(fd, bytes, sizeof bytes, at);

        if (length <= 0) {
            return length == 0;
        }
        if (memcmp(bytes, zeroes, (size_t)length) != 0) {
            return false;
        }
    }
    return true;
}

int fill_empty(int fd, bool create, bool cut, struct stat64 *status)
{
    bool locked;
    int result;

    if (status->st_size != 0 && !(cut && begins_with_zeroes(fd))) {
        return 0;
    }
    locked = REAL(flock)(fd, create ? LOCK_EX : LOCK_SH) == 0;
    result = REAL(fstat64)(fd, status) != 0 ? -errno : 0;
    if (result == 0 && status->st_size != 0 && create && cut && begins_with_zeroes(fd)) {
        result = REAL(ftruncate64)(fd, 0) != 0 ? -errno : 0;
        status->st_size = result == 0 ? 0 : status->st_size;
    }
    if (result == 0 && status->st_size == 0 && create) {
        result = qcow2_create_fd(fd, 0, options);
    }
    if (locked) {
        REAL(flock)(fd, LOCK_UN);
    }
    return result;
}

/* `fd` becomes what has been linked at `path`, it itself: its own name in /proc stays that of a file without any. */
static int open_linked(int directory, const char *path, int fd)
{
    struct stat64 made, found;
    bool lacks;
    int named;

    if (REAL(fstat64)(fd, &made) != 0) {
        return -errno;
    }
    /* By the umask. */
    lacks = (made.st_mode & NEW_FILE_OWNER) != NEW_FILE_OWNER && REAL(fchmod)(fd, 0600) == 0;
    named = REAL(openat64)(directory, path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NOFOLLOW);
    if (lacks) {
        REAL(fchmod)(fd, made.st_mode & 07777);
    }
    if (named >= 0 &&
        (REAL(fstat64)(named, &found) != 0 || made.st_ino != found.st_ino || made.st_dev != found.st_dev)) {
        REAL(close)(named);
        return -EEXIST;
    }
    if (named < 0 || REAL(dup3)(named, fd, O_CLOEXEC) < 0) {
        return -errno;
    }
    REAL(close)(named);
    return 0;
}

/* The whole image before its name, so that a kill leaves none or all. -EEXIST, or another -errno: not in this way. */
static int make_whole(int directory, const char *path, mode_t mode)
{
    char folder[PATH_MAX] = ".", link[64];
    const char *slash = strrchr(path, '/');
    int fd, result;

    if (slash != NULL) {
        snprintf(folder, sizeof folder, "%.*s", (int)(slash + 1 - path), path);
    }
    fd = REAL(openat64)(directory, folder, O_TMPFILE | O_RDWR | O_CLOEXEC, mode | NEW_FILE_OWNER);
    if (fd < 0) {
        return -errno;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    result = qcow2_create_fd(fd, 0, options);
    if (result == 0 && REAL(linkat)(AT_FDCWD, link, directory, path, AT_SYMLINK_FOLLOW) != 0) {
        result = -errno;
    }
    if (result == 0) {
        result = open_linked(directory, path, fd);
    }
    if (result == 0) {
        return fd;
    }
    REAL(close)(fd);
    return result;
}

int make_file(int directory, const char *path, int flags, mode_t mode, bool *made)
{
    int how = O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY, fd = make_whole(directory, path, mode);

    if (fd < 0 && fd != -EEXIST) {
        fd = REAL(openat64)(directory, path, how | O_EXCL, mode | NEW_FILE_OWNER);
        fd = fd < 0 ? -errno : fd;
    }
    *made = fd >= 0;
    if (fd == -EEXIST && (flags & O_EXCL) == 0) {
        /* What a symbolic link leads to, or what somebody else has made just now. */
        fd = REAL(openat64)(directory, path, how | (flags & O_NOFOLLOW), mode);
        fd = fd < 0 ? -errno : fd;
    }
    return fd;
}
