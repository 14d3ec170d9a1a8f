/* The disk as a file of a FUSE file system.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef CLIENTS_FUSE_VIEW_H
#define CLIENTS_FUSE_VIEW_H

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include <qcow2.h>

#include "longest.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <time.h>

struct view {
    qcow2_image *image;
    const char *name;     /* of the one file in the directory; NULL: the root is the file */
    struct stat original; /* of the image: owner and permissions */
    bool read_only;
    pthread_mutex_t size_lock; /* held to change the length */
    /* Bytes, as programs have made it. The disk ends with that sector, whose rest is zero. */
    atomic_uint_fast64_t length;
    bool has_length;           /* the image's file has the attribute of clients/lib/length.h */
    pthread_mutex_t time_lock; /* of the next two */
    struct timespec modified;
    struct timespec accessed;
};

/* `path` is the image, which is open; `read_only` is set. 0 or -errno. */
int view_begin(struct view *view, const char *path);

/* Takes a struct view as user data. */
extern const struct fuse_lowlevel_ops view_operations;

#endif
