/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * One image for each (device, inode) in a process, however often it is opened: the users count. An image may be
 * suspended, that is flushed and closed while its users stay; the next request opens it again. So it is across a
 * fork: neither process has it open then, and whoever asks first takes it.
 */
#ifndef PRELOAD_SHARED_H
#define PRELOAD_SHARED_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "anchor.h"

struct shared {
    struct shared *next;
    dev_t device;
    ino_t inode;
    /* The file, whatever its name is now; a name by which it is found. */
    int anchor;
    char link[ANCHOR_LINK_BYTES];
    /* All under the list's lock. */
    unsigned opens;
    unsigned writers;
    const char *const *options;
    uint64_t flags;
    /* Under `opening`. */
    bool writable;
    /* Inherited from a process that may still have it. */
    bool inherited;
    pthread_mutex_t opening;
    /* NULL while suspended. Whoever is between shared_enter and shared_leave is counted in `users`. */
    _Atomic(qcow2_image *) image;
    atomic_int users;
    /* Bytes, as a raw file would have them. Changes under `resizing`, as all that follows. */
    atomic_uint_fast64_t size;
    /* Writes that have not made the file longer end here at most: it is not taken back past that. */
    atomic_uint_fast64_t reached;
    pthread_mutex_t resizing;
    uint64_t virtual_size;
    /* The file has the attribute; it takes none. */
    bool has_length;
    bool no_length;
    /* Suspended while the virtual size was ahead. */
    bool ahead;
    /* Times that a user has set: closing the image must not change them, a write does. */
    atomic_bool has_times;
    struct timespec times[2];
};

/*
 * A file that grows changes its length with each write; a change of the virtual size takes several syncs. So the virtual
 * size goes ahead, until the image is closed, and the length is in the attribute of clients/lib/length.h, which is raised
 * before anything is written there.
 */

/* Where an image is, and how it is opened. */
struct shared_source {
    /* Becomes the callee's, whatever it returns. */
    int anchor;
    dev_t device;
    ino_t inode;
    /* QCOW2_OPEN_*; they count at the first open. */
    uint64_t flags;
    /* Open options, which must stay. */
    const char *const *options;
};

/* -errno, and qcow2_last_error says why. */
int shared_open(const struct shared_source *source, bool writable, struct shared **out);

/* The same, suspended: nothing is opened before the first request. */
int shared_attach(const struct shared_source *source, bool writable, struct shared **out);

/* One user more, who only reads; NULL where this process has no such image. */
struct shared *shared_find(dev_t device, ino_t inode);

/* One user less, who had it with this `writable`; the last one closes. What qcow2_close says. */
int shared_put(struct shared *shared, bool writable);

/* Opens a suspended image. */
int shared_enter_slow(struct shared *shared, qcow2_image **image);

/* After the process has begun to end images do not stay open. */
extern atomic_bool shared_ending;

int shared_suspend(struct shared *shared);
/* At the end of a process, or of a program. */
void shared_suspend_all(void);

/*
 * What this thread is in the middle of here: a signal handler that ends the process, or forks, must not wait for it. The
 * image is then left as a kill would leave it.
 */
extern _Thread_local int shared_inside;
/* No thread is cancelled there: it would keep locks, and leave the engine in the middle of something. */
extern _Thread_local int shared_cancel_state;

/* A signal handler has left something to do: views.c does it. */
extern atomic_bool shared_later;
void shared_do_later(void);

/* In this order, for a signal handler in between does the same. */
static inline void shared_begin(void)
{
    if (shared_inside++ == 0) {
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &shared_cancel_state);
    }
}

static inline void shared_end(void)
{
    if (shared_inside == 1) {
        pthread_setcancelstate(shared_cancel_state, NULL);
    }
    shared_inside--;
    if (__builtin_expect(atomic_load_explicit(&shared_later, memory_order_relaxed), 0) && shared_inside == 0) {
        shared_do_later();
    }
}

/*
 * Whether a write that ends at `end`, between enter and leave, is inside the file. The write is counted first, then the
 * size is asked for (again): a write that fails lowers the size first, then asks what is counted.
 */
static inline bool shared_holds(struct shared *shared, uint64_t end)
{
    uint_fast64_t reached;

    if (end > atomic_load(&shared->size)) {
        return false;
    }
    reached = atomic_load(&shared->reached);
    while (__builtin_expect(reached < end, 0) && !atomic_compare_exchange_weak(&shared->reached, &reached, end)) {
    }
    return end <= atomic_load(&shared->size);
}

/* 0 with an image that stays open until shared_leave, or -errno. */
static inline int shared_enter(struct shared *shared, qcow2_image **image)
{
    shared_begin();
    atomic_fetch_add(&shared->users, 1);
    *image = atomic_load(&shared->image);
    if (__builtin_expect(*image != NULL, 1)) {
        return 0;
    }
    atomic_fetch_sub(&shared->users, 1);
    shared_end();
    return shared_enter_slow(shared, image);
}

static inline void shared_leave(struct shared *shared)
{
    atomic_fetch_sub_explicit(&shared->users, 1, memory_order_release);
    shared_end();
    if (__builtin_expect(atomic_load_explicit(&shared_ending, memory_order_relaxed), 0)) {
        shared_suspend(shared);
    }
}

/*
 * Between enter and leave: makes room for a write that ends at `end`, or sets the size. 0 or -errno. `before`: the size
 * that it was, if that has changed.
 */
int shared_grow(struct shared *shared, qcow2_image *image, uint64_t end, uint64_t *before);
/* Makes the file `length` longer: where the new part begins, or -errno. */
int64_t shared_append(struct shared *shared, qcow2_image *image, uint64_t length);
/* After the write for which the size was raised has failed. */
void shared_take_back(struct shared *shared, qcow2_image *image, uint64_t before, uint64_t end);
int shared_resize(struct shared *shared, qcow2_image *image, uint64_t size);

/* After the file's times have been set by name. */
void shared_keep_times(struct shared *shared);

/* For pthread_atfork. */
void shared_before_fork(void);
void shared_after_fork(void);

#endif
