/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "shared.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>

#include "growth.h"
#include "real.h"

enum {
    /* Another process that has the image may be about to let it go. */
    PATIENCE_MS = 1000,
    PAUSE_MS = 2,
};

atomic_bool shared_ending;
_Thread_local int shared_inside;
atomic_bool shared_later;
_Thread_local int shared_cancel_state;

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static struct shared *list;
static pid_t forking;

static void lock_list(void)
{
    shared_begin();
    pthread_mutex_lock(&list_lock);
}

static void unlock_list(void)
{
    pthread_mutex_unlock(&list_lock);
    shared_end();
}

static void pause_ms(int ms)
{
    struct timespec pause = {.tv_nsec = ms * 1000000L};

    nanosleep(&pause, NULL);
}

/* With `opening` held. */
static int open_image(struct shared *shared, int patience_ms)
{
    uint64_t flags = shared->flags | (shared->writable ? 0 : QCOW2_OPEN_READ_ONLY);
    qcow2_image *image;
    int64_t length;
    int result;

    for (int waited = 0;; waited += PAUSE_MS) {
        result = anchor_open(shared->anchor, shared->device, shared->inode, flags, shared->options, &image);
        if (result != -EAGAIN || waited >= patience_ms) {
            break;
        }
        pause_ms(PAUSE_MS);
    }
    if (result < 0) {
        return result == -EAGAIN ? (shared->inherited ? -EOWNERDEAD : -EBUSY) : result;
    }
    length = qcow2_length(image);
    if (length < 0) {
        qcow2_close(image);
        return (int)length;
    }
    growth_read(shared, image, (uint64_t)length);
    atomic_store(&shared->image, image);
    return 0;
}

static void restore_times(struct shared *shared)
{
    if (atomic_load(&shared->has_times)) {
        REAL(utimensat)(AT_FDCWD, shared->link, shared->times, 0);
    }
}

/* With `opening` held. */
static int close_image(struct shared *shared, bool settle)
{
    qcow2_image *image = atomic_exchange(&shared->image, NULL);
    int result;

    if (image == NULL) {
        return 0;
    }
    while (atomic_load(&shared->users) != 0) {
        sched_yield();
    }
    if (settle) {
        growth_settle(shared, image);
    }
    shared->ahead = growth_is_ahead(shared);
    result = qcow2_close(image);
    restore_times(shared);
    return result;
}

/* With `opening` held: what fork has closed with a virtual size that is ahead. */
static void settle_suspended(struct shared *shared)
{
    if (shared->ahead && shared->writable && atomic_load(&shared->image) == NULL) {
        /* Otherwise another process has it, and does this. */
        shared->ahead = false;
        open_image(shared, 0);
    }
}

void shared_keep_times(struct shared *shared)
{
    struct stat64 status;

    if (REAL(fstat64)(shared->anchor, &status) == 0) {
        pthread_mutex_lock(&shared->resizing);
        shared->times[0] = status.st_atim;
        shared->times[1] = status.st_mtim;
        pthread_mutex_unlock(&shared->resizing);
        atomic_store(&shared->has_times, true);
    }
}

static struct shared *find(dev_t device, ino_t inode)
{
    struct shared *shared = list;

    while (shared != NULL && (shared->device != device || shared->inode != inode)) {
        shared = shared->next;
    }
    return shared;
}

static struct shared *new_shared(const struct shared_source *source, bool now)
{
    struct shared *shared = calloc(1, sizeof *shared);

    if (shared == NULL) {
        return NULL;
    }
    shared->anchor = source->anchor;
    anchor_link(source->anchor, shared->link);
    shared->device = source->device;
    shared->inode = source->inode;
    shared->flags = source->flags;
    shared->options = source->options;
    shared->inherited = !now;
    pthread_mutex_init(&shared->opening, NULL);
    pthread_mutex_init(&shared->resizing, NULL);
    return shared;
}

static void free_shared(struct shared *shared)
{
    anchor_end(shared->anchor);
    free(shared);
}

static int become_writable(struct shared *shared)
{
    qcow2_image *image = atomic_load(&shared->image);
    int result = 0;

    if (!shared->writable && image != NULL) {
        result = qcow2_reopen(image, 0, NULL);
    }
    if (result == 0) {
        shared->writable = true;
    }
    return result == -EAGAIN ? -EBUSY : result;
}

/* With `opening` held. Other processes may read now; when that fails the image stays as it is. */
static int become_read_only(struct shared *shared)
{
    qcow2_image *image;
    int result = 0;

    settle_suspended(shared);
    image = atomic_load(&shared->image);
    if (image != NULL) {
        pthread_mutex_lock(&shared->resizing);
        growth_settle(shared, image);
        pthread_mutex_unlock(&shared->resizing);
        result = qcow2_reopen(image, QCOW2_OPEN_READ_ONLY, NULL);
        restore_times(shared);
    }
    if (result == 0) {
        shared->writable = false;
    }
    return result;
}

/* With the list's lock. */
static int add_user(struct shared *shared, bool writable, bool now)
{
    int result = 0;

    pthread_mutex_lock(&shared->opening);
    if (writable) {
        result = become_writable(shared);
    }
    if (result == 0 && now && atomic_load(&shared->image) == NULL) {
        result = open_image(shared, PATIENCE_MS);
    }
    if (result == 0) {
        shared->opens++;
        shared->writers += writable;
    } else if (shared->writers == 0 && atomic_load(&shared->image) == NULL) {
        shared->writable = false;
    }
    pthread_mutex_unlock(&shared->opening);
    return result;
}

static int get(const struct shared_source *source, bool writable, bool now, struct shared **out)
{
    struct shared *shared;
    bool made = false;
    int result;

    lock_list();
    shared = find(source->device, source->inode);
    if (shared == NULL) {
        made = true;
        shared = new_shared(source, now);
    }
    if (!made && atomic_load(&shared->image) == NULL && !anchor_is(shared->anchor, shared->device, shared->inode)) {
        /* It was attached where its name was lost, and has one now. */
        anchor_end(shared->anchor);
        shared->anchor = source->anchor;
        anchor_link(source->anchor, shared->link);
    } else if (!made || shared == NULL) {
        anchor_end(source->anchor);
    }
    result = shared == NULL ? -ENOMEM : add_user(shared, writable, now);
    if (result == 0 && made) {
        shared->next = list;
        list = shared;
    } else if (made && shared != NULL) {
        free_shared(shared);
    }
    unlock_list();
    *out = result == 0 ? shared : NULL;
    return result;
}

int shared_open(const struct shared_source *source, bool writable, struct shared **out)
{
    return get(source, writable, true, out);
}

int shared_attach(const struct shared_source *source, bool writable, struct shared **out)
{
    return get(source, writable, false, out);
}

struct shared *shared_find(dev_t device, ino_t inode)
{
    struct shared *shared;

    lock_list();
    shared = find(device, inode);
    if (shared != NULL) {
        shared->opens++;
    }
    unlock_list();
    return shared;
}

int shared_put(struct shared *shared, bool writable)
{
    int result = 0;

    lock_list();
    shared->writers -= writable;
    if (--shared->opens > 0) {
        if (writable && shared->writers == 0) {
            pthread_mutex_lock(&shared->opening);
            result = become_read_only(shared);
            pthread_mutex_unlock(&shared->opening);
        }
        unlock_list();
        return result;
    }
    for (struct shared **link = &list; *link != NULL; link = &(*link)->next) {
        if (*link == shared) {
            *link = shared->next;
            break;
        }
    }
    pthread_mutex_lock(&shared->opening);
    settle_suspended(shared);
    result = close_image(shared, true);
    pthread_mutex_unlock(&shared->opening);
    unlock_list();
    free_shared(shared);
    return result;
}

int shared_enter_slow(struct shared *shared, qcow2_image **image)
{
    int result = 0;

    shared_begin();
    pthread_mutex_lock(&shared->opening);
    *image = atomic_load(&shared->image);
    if (*image == NULL) {
        result = open_image(shared, PATIENCE_MS);
        *image = atomic_load(&shared->image);
    }
    if (result == 0) {
        atomic_fetch_add(&shared->users, 1);
    }
    pthread_mutex_unlock(&shared->opening);
    if (result != 0) {
        shared_end();
    }
    return result;
}

int shared_suspend(struct shared *shared)
{
    int result;

    shared_begin();
    pthread_mutex_lock(&shared->opening);
    settle_suspended(shared);
    result = close_image(shared, true);
    pthread_mutex_unlock(&shared->opening);
    shared_end();
    return result;
}

void shared_suspend_all(void)
{
    lock_list();
    for (struct shared *shared = list; shared != NULL; shared = shared->next) {
        shared_suspend(shared);
    }
    unlock_list();
}

void shared_before_fork(void)
{
    lock_list();
    forking = getpid();
    for (struct shared *shared = list; shared != NULL; shared = shared->next) {
        pthread_mutex_lock(&shared->opening);
        close_image(shared, false);
    }
}

void shared_after_fork(void)
{
    for (struct shared *shared = list; shared != NULL; shared = shared->next) {
        /* From here on two processes may want it. */
        shared->inherited = true;
        shared->ahead = shared->ahead && getpid() == forking;
        pthread_mutex_unlock(&shared->opening);
    }
    unlock_list();
}
