/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * One image for each (device, inode) in a process, however often it is opened: the users count. An image may be
 * suspended, that is flushed and closed while its users stay; the next request opens it again. So it is across a
 * fork: neither process has it open then, and whoever asks first takes it.
 */
#ifndef CLIENTS_SHARED_H
#define CLIENTS_SHARED_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "qcow2.h"

struct shared {
    struct shared *next;
    dev_t device;
    ino_t inode;
    char *path;
    /* Both under the list's lock. */
    unsigned opens;
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
    pthread_mutex_t resizing;
    uint64_t virtual_size;
    /* The file has the attribute below; it takes none. */
    bool has_length;
    bool no_length;
    /* Times that a user has set: closing the image must not change them, a write does. */
    atomic_bool has_times;
    struct timespec times[2];
};

/*
 * A file that grows changes its length with each write; a change of the virtual size takes several syncs, and is of whole
 * sectors. So the virtual size goes ahead, until the image is closed, and the length is in this attribute of the
 * image's file: "LENGTH SIZE NEXT-SIZE", which counts while one of them is the virtual size. A file system that keeps no
 * attributes has every length rounded up to 512.
 */
#define SHARED_LENGTH "user.libqcow2.length"

enum { SHARED_LENGTH_BYTES = 64 };

/* The length that the attribute's value and a virtual size make. */
uint64_t shared_length(const char *value, ssize_t value_length, uint64_t virtual_size);

/* `options` are open options that must stay, `flags` are QCOW2_OPEN_*; they count at the first open. -errno, and qcow2_last_error says why. */
int shared_open(const char *path, dev_t device, ino_t inode, bool writable, uint64_t flags, const char *const *options,
                struct shared **out);

/* The same, suspended: nothing is opened before the first request. */
int shared_attach(const char *path, dev_t device, ino_t inode, bool writable, uint64_t flags,
                  const char *const *options, struct shared **out);

/* One user more; NULL where this process has no such image. */
struct shared *shared_find(dev_t device, ino_t inode);

/* One user less; the last one closes. What qcow2_close says. */
int shared_put(struct shared *shared);

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

/* 0 with an image that stays open until shared_leave, or -errno. */
static inline int shared_enter(struct shared *shared, qcow2_image **image)
{
    shared_inside++;
    atomic_fetch_add(&shared->users, 1);
    *image = atomic_load(&shared->image);
    if (__builtin_expect(*image != NULL, 1)) {
        return 0;
    }
    atomic_fetch_sub(&shared->users, 1);
    shared_inside--;
    return shared_enter_slow(shared, image);
}

static inline void shared_leave(struct shared *shared)
{
    atomic_fetch_sub_explicit(&shared->users, 1, memory_order_release);
    shared_inside--;
    if (__builtin_expect(atomic_load_explicit(&shared_ending, memory_order_relaxed), 0)) {
        shared_suspend(shared);
    }
}

/* Between enter and leave: makes room for a write that ends at `end`, or sets the size. 0 or -errno. */
int shared_grow(struct shared *shared, qcow2_image *image, uint64_t end);
/* Makes the file `length` longer: where the new part begins, or -errno. */
int64_t shared_append(struct shared *shared, qcow2_image *image, uint64_t length);
int shared_resize(struct shared *shared, qcow2_image *image, uint64_t size);

/* After the file's times have been set by name. */
void shared_keep_times(struct shared *shared);

/* For pthread_atfork. */
void shared_before_fork(void);
void shared_after_fork(void);

#endif
