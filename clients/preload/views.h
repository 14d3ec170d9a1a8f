/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Views: what the program's descriptors of an image are. A view is an open file description, shared by dup: an image,
 * an offset, flags. The descriptor itself is an empty sealed memfd, whose kernel offset carries the view's across fork
 * and exec and whose name says what it is.
 */
#ifndef PRELOAD_VIEWS_H
#define PRELOAD_VIEWS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "shared.h"
#include "config.h"

enum { VIEWS_MAX = 65536 };

struct view {
    /* Calls under way. The memory of a view is never freed, only used again, so that this may always be counted. */
    atomic_int refs;
    /* Descriptors. */
    atomic_int links;
    /* No descriptor is left; whoever takes this to 0 while refs is 0 finishes the view. */
    atomic_int dying;
    atomic_int flags;
    /* Another process may have it: the offset is where the kernel has it. */
    atomic_bool kernel_offset;
    /* Under `lock`; a signal handler that has interrupted its holder moves it without. */
    _Atomic(off_t) offset;
    /* Orders users of `offset`. Taken after shared_enter, so that nobody has it across a fork. */
    pthread_mutex_t lock;
    struct shared *shared;
    /* How `shared` was asked for. */
    bool writable;
    const struct rule *rule;
    struct stat64 status;
    /* Of the file, for flock: the placeholder is nobody else's. -1: not yet. */
    atomic_int lock_fd;
    struct view *next_free;
};

/* A descriptor of the engine's own. */
#define VIEW_ENGINE ((struct view *)1)

extern _Atomic(struct view *) view_table[VIEWS_MAX];

/* NULL: not an image. */
static inline struct view *view_at(int fd)
{
    return (unsigned)fd < VIEWS_MAX ? atomic_load_explicit(&view_table[fd], memory_order_relaxed) : NULL;
}

#define is_view(fd) __builtin_expect(view_at(fd) != NULL, 0)

/* Keeps the view of a descriptor until view_release; NULL: none, or none that the program may use. */
struct view *view_get(int fd);
void view_finish(struct view *view);

static inline void view_release(struct view *view)
{
    if (atomic_fetch_sub(&view->refs, 1) == 1 && __builtin_expect(atomic_load(&view->dying), 0)) {
        view_finish(view);
    }
}

/* NULL: no memory. The view has no descriptor yet. Takes over the caller's count of `shared`. */
struct view *view_new(struct shared *shared, bool writable, const struct rule *rule, int flags,
                      const struct stat64 *status);

/* Makes `fd` one more descriptor of the view; what it was before goes. */
void view_link(int fd, struct view *view);

/* The descriptor is none any more. 0, or what closing the image said. */
int view_unlink(int fd);

void views_set_engine(int fd, bool engine);
bool views_any(void);
/*
 * An image has taken the number of another open file, by dup2: whoever opened that, as a stream of the C library's, may
 * close it past the hooks.
 */
extern atomic_bool views_displaced;
/* No descriptor above it is a view. */
int views_highest(void);

/* Writes the offsets where other processes find them. */
void views_store_offsets(void);

/* For pthread_atfork, around those of the images. */
void views_before_fork(void);
void views_after_fork(void);

/* This thread has left a request by longjmp. */
extern _Thread_local bool view_left;

/* This is a signal handler in the middle of a request. */
static inline bool view_interrupted(void)
{
    return shared_inside != 0 && !view_left;
}

/* Requests on a view: a count, or -errno. `fd` is the descriptor that was used. */
ssize_t view_pread(struct view *view, void *buffer, size_t count, off_t offset);
ssize_t view_pwrite(struct view *view, const void *buffer, size_t count, off_t offset);
ssize_t view_preadv(struct view *view, const struct iovec *iov, int count, off_t offset);
ssize_t view_pwritev(struct view *view, const struct iovec *iov, int count, off_t offset, bool durable);
ssize_t view_read(int fd, struct view *view, const struct iovec *iov, int count);
ssize_t view_write(int fd, struct view *view, const struct iovec *iov, int count, bool durable);
off_t view_seek(int fd, struct view *view, off_t offset, int whence);
int view_truncate(struct view *view, off_t size);
int view_allocate(struct view *view, int mode, off_t offset, off_t length);
int view_flush(struct view *view);
int64_t view_size(struct view *view);
int view_status(struct view *view, struct stat64 *status);
/* What the rule and the image make of a container's status. */
void view_dress(const struct rule *rule, uint64_t size, struct stat64 *status);

#endif
