/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* How long an image is that the program has only named. */
#include <string.h>

#include "length.h"
#include "open.h"
#include "real.h"

/* To look at an image that another program may have. */
static const uint64_t LOOK = QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_NO_LOCK;

/* The length of an image that is not open here. */
static int64_t kept_length(int fd, int64_t virtual_size)
{
    char value[LENGTH_VALUE_BYTES], later[LENGTH_VALUE_BYTES];
    ssize_t length = REAL(fgetxattr)(fd, LENGTH_ATTRIBUTE, value, sizeof value), length_later;
    uint64_t size = length_of_value(value, length, (uint64_t)virtual_size);
    qcow2_image *image;
    bool counts;

    if (size == (uint64_t)virtual_size || qcow2_open_fd(fd, LOOK | QCOW2_OPEN_NO_BACKING, NULL, &image) < 0) {
        return (int64_t)size;
    }
    counts = length_tail_is_zero(image, size, (uint64_t)virtual_size);
    qcow2_close(image);
    if (!counts) {
        /* Or it has just been raised. */
        length_later = REAL(fgetxattr)(fd, LENGTH_ATTRIBUTE, later, sizeof later);
        counts = length_later > 0 && (length_later != length || memcmp(value, later, (size_t)length) != 0);
        size = counts ? length_of_value(later, length_later, (uint64_t)virtual_size) : (uint64_t)virtual_size;
    }
    return (int64_t)size;
}

static int64_t size_of(int directory, const char *path, const struct stat64 *status)
{
    struct shared *shared = shared_find(status->st_dev, status->st_ino);
    qcow2_image *image = NULL;
    int64_t size;
    int fd;

    if (shared != NULL) {
        size = shared_enter(shared, &image);
        if (size == 0) {
            size = (int64_t)atomic_load(&shared->size);
            shared_leave(shared);
        }
        shared_put(shared, false);
        if (size >= 0) {
            return size;
        }
    }
    fd = REAL(openat64)(directory, path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0) {
        return -errno;
    }
    size = qcow2_open_fd(fd, LOOK | QCOW2_OPEN_METADATA_ONLY, NULL, &image);
    if (size == 0) {
        size = qcow2_length(image);
        qcow2_close(image);
        if (size >= 0) {
            size = kept_length(fd, size);
        }
    }
    REAL(close)(fd);
    return size;
}

int64_t image_size(int directory, const char *path, const struct stat64 *status)
{
    int64_t size;
    int cancel;

    if (view_interrupted()) {
        /* A signal handler, in the middle of a request: the images' list may be held. */
        return -EDEADLK;
    }
    /* Parts of it take locks. */
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
    size = size_of(directory, path, status);
    pthread_setcancelstate(cancel, NULL);
    return size;
}
