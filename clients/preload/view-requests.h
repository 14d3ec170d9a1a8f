/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What requests on a view share. */
#ifndef PRELOAD_VIEW_REQUESTS_H
#define PRELOAD_VIEW_REQUESTS_H

#include <errno.h>
#include <fcntl.h>

#include "views.h"

static inline bool may_read(struct view *view)
{
    return (atomic_load_explicit(&view->flags, memory_order_relaxed) & O_ACCMODE) != O_WRONLY;
}

static inline bool may_write(struct view *view)
{
    return (atomic_load_explicit(&view->flags, memory_order_relaxed) & O_ACCMODE) != O_RDONLY;
}

/*
 * shared_enter, but in a signal handler that has interrupted a request of this thread: what it would wait for may be what
 * that request holds.
 */
static inline int view_enter(struct view *view, qcow2_image **image)
{
    if (__builtin_expect(view_interrupted(), 0)) {
        return -EDEADLK;
    }
    return shared_enter(view->shared, image);
}

/* Takes the lock and gives the offset. */
off_t view_offset_begin(int fd, struct view *view);
/* `before` is what view_offset_begin said. */
void view_offset_end(int fd, struct view *view, off_t before, off_t offset);

/* The size has not been changed for a write. */
#define SAME_SIZE UINT64_MAX

#endif
