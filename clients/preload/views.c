/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "views.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/sysmacros.h>

#include "real.h"

_Atomic(struct view *) view_table[VIEWS_MAX];
atomic_bool views_displaced;
_Thread_local bool view_left;

static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER;
static struct view *pool;
static atomic_int views;
/* Descriptors above it were never one of ours. */
static atomic_int highest;

/* What has a lock for so long has been left by longjmp. */
enum { PATIENCE_S = 2 };

static void lock_pool(void)
{
    shared_begin();
    pthread_mutex_lock(&pool_lock);
}

static void unlock_pool(void)
{
    pthread_mutex_unlock(&pool_lock);
    shared_end();
}

bool views_any(void)
{
    return atomic_load(&views) != 0;
}

int views_highest(void)
{
    return atomic_load(&highest);
}

struct view *view_get(int fd)
{
    for (;;) {
        struct view *view = atomic_load(&view_table[fd]);

        if (view == NULL || view == VIEW_ENGINE) {
            return NULL;
        }
        atomic_fetch_add(&view->refs, 1);
        if (__builtin_expect(atomic_load(&view_table[fd]) == view, 1)) {
            return view;
        }
        view_release(view);
    }
}

/* Views that a signal handler has left, in the middle of a request, to whoever it has interrupted. */
static _Atomic(struct view *) left_over;

/* The last use of a view that has no descriptors. */
static int finish(struct view *view)
{
    struct shared *shared = view->shared;
    bool writable = view->writable;

    if (view_interrupted()) {
        view->next_free = atomic_load(&left_over);
        while (!atomic_compare_exchange_weak(&left_over, &view->next_free, view)) {
        }
        atomic_store(&shared_later, true);
        return 0;
    }
    view->shared = NULL;
    if (atomic_load(&view->lock_fd) >= 0) {
        anchor_end(atomic_exchange(&view->lock_fd, -1));
    }
    atomic_fetch_sub(&views, 1);
    lock_pool();
    view->next_free = pool;
    pool = view;
    unlock_pool();
    return shared_put(shared, writable);
}

void shared_do_later(void)
{
    struct view *view, *next;

    atomic_store(&shared_later, false);
    for (view = atomic_exchange(&left_over, NULL); view != NULL; view = next) {
        next = view->next_free;
        finish(view);
    }
}

void view_finish(struct view *view)
{
    if (atomic_exchange(&view->dying, 0) == 1) {
        finish(view);
    }
}

static int drop(struct view *view)
{
    if (atomic_fetch_sub(&view->links, 1) != 1) {
        return 0;
    }
    atomic_store(&view->dying, 1);
    return atomic_load(&view->refs) == 0 && atomic_exchange(&view->dying, 0) == 1 ? finish(view) : 0;
}

struct view *view_new(struct shared *shared, bool writable, const struct rule *rule, int flags,
                      const struct stat64 *status)
{
    struct view *view;

    lock_pool();
    view = pool;
    if (view != NULL) {
        pool = view->next_free;
    }
    unlock_pool();
    if (view == NULL) {
        view = calloc(1, sizeof *view);
        if (view == NULL) {
            return NULL;
        }
        pthread_mutex_init(&view->lock, NULL);
    }
    view->shared = shared;
    view->writable = writable;
    view->rule = rule;
    view->status = *status;
    atomic_store(&view->lock_fd, -1);
    view->offset = 0;
    atomic_store(&view->flags, flags);
    atomic_store(&view->kernel_offset, false);
    atomic_fetch_add(&views, 1);
    return view;
}

static void raise_highest(int fd)
{
    int seen = atomic_load(&highest);

    while (seen < fd && !atomic_compare_exchange_weak(&highest, &seen, fd)) {
    }
}

void view_link(int fd, struct view *view)
{
    struct view *old;

    atomic_fetch_add(&view->links, 1);
    raise_highest(fd);
    old = atomic_exchange(&view_table[fd], view);
    if (old != NULL && old != VIEW_ENGINE) {
        drop(old);
    }
}

int view_unlink(int fd)
{
    struct view *old = atomic_exchange(&view_table[fd], NULL);

    return old != NULL && old != VIEW_ENGINE ? drop(old) : 0;
}

void views_set_engine(int fd, bool engine)
{
    if (fd >= 0 && fd < VIEWS_MAX) {
        atomic_store(&view_table[fd], engine ? VIEW_ENGINE : NULL);
    }
}

/* Whoever sees the flag asks the kernel, which must have it by then. */
static void store_offset(int fd, struct view *view)
{
    struct timespec until;
    bool locked;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += PATIENCE_S;
    lock_pool();
    locked = pthread_mutex_clocklock(&view->lock, CLOCK_MONOTONIC, &until) == 0;
    if (!atomic_load(&view->kernel_offset)) {
        REAL(lseek64)(fd, atomic_load(&view->offset), SEEK_SET);
        atomic_store(&view->kernel_offset, true);
    }
    if (locked) {
        pthread_mutex_unlock(&view->lock);
    }
    unlock_pool();
}

void views_store_offsets(void)
{
    for (int fd = 0; fd <= views_highest(); fd++) {
        struct view *view = is_view(fd) ? view_get(fd) : NULL;

        if (view == NULL) {
            continue;
        }
        store_offset(fd, view);
        view_release(view);
    }
}

void views_before_fork(void)
{
    lock_pool();
}

void views_after_fork(void)
{
    unlock_pool();
}

void view_dress(const struct rule *rule, uint64_t size, struct stat64 *status)
{
    if (rule->device) {
        status->st_mode = (status->st_mode & ~(mode_t)S_IFMT) | S_IFBLK;
        /* Numbers that Linux keeps for experiments. */
        status->st_rdev = makedev(240, status->st_ino & 0xfffff);
        status->st_size = 0;
        return;
    }
    status->st_size = (off_t)size;
}

int view_status(struct view *view, struct stat64 *status)
{
    int64_t size = view_size(view);

    if (size < 0) {
        return (int)size;
    }
    if (REAL(fstat64)(view->shared->anchor, status) != 0) {
        *status = view->status;
    }
    view_dress(view->rule, (uint64_t)size, status);
    return 0;
}
