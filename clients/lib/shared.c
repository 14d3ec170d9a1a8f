/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "shared.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>

enum {
    SECTOR = 512,
    /* Another process that has the image may be about to let it go. */
    PATIENCE_MS = 1000,
    PAUSE_MS = 2,
    AHEAD_LEAST = 1 << 20,
    AHEAD_MOST = 256 << 20,
};

atomic_bool shared_ending;
_Thread_local int shared_inside;

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static struct shared *list;

static void lock_list(void)
{
    shared_inside++;
    pthread_mutex_lock(&list_lock);
}

static void unlock_list(void)
{
    pthread_mutex_unlock(&list_lock);
    shared_inside--;
}

static uint64_t round_up(uint64_t size)
{
    return (size + SECTOR - 1) / SECTOR * SECTOR;
}

static void pause_ms(int ms)
{
    struct timespec pause = {.tv_nsec = ms * 1000000L};

    nanosleep(&pause, NULL);
}

uint64_t shared_length(const char *value, ssize_t value_length, uint64_t virtual_size)
{
    char text[SHARED_LENGTH_BYTES] = "", *end;
    uint64_t length, size, next;

    if (value_length <= 0 || (size_t)value_length >= sizeof text) {
        return virtual_size;
    }
    memcpy(text, value, (size_t)value_length);
    length = strtoull(text, &end, 10);
    size = strtoull(end, &end, 10);
    next = strtoull(end, &end, 10);
    return (size == virtual_size || next == virtual_size) && length <= virtual_size ? length : virtual_size;
}

static void read_length(struct shared *shared, uint64_t virtual_size)
{
    char value[SHARED_LENGTH_BYTES];
    ssize_t length = getxattr(shared->path, SHARED_LENGTH, value, sizeof value);

    shared->virtual_size = virtual_size;
    shared->has_length = length > 0;
    atomic_store(&shared->size, shared_length(value, length, virtual_size));
}

/* `next`: what the virtual size is about to become. Whether the file keeps it. */
static bool write_length(struct shared *shared, uint64_t next)
{
    char value[SHARED_LENGTH_BYTES];

    snprintf(value, sizeof value, "%" PRIu64 " %" PRIu64 " %" PRIu64, (uint64_t)atomic_load(&shared->size),
             shared->virtual_size, next);
    if (!shared->no_length && setxattr(shared->path, SHARED_LENGTH, value, strlen(value), 0) == 0) {
        shared->has_length = true;
    } else {
        shared->no_length = true;
    }
    return !shared->no_length;
}

static void forget_length(struct shared *shared)
{
    if (shared->has_length) {
        removexattr(shared->path, SHARED_LENGTH);
        shared->has_length = false;
    }
}

static int set_virtual_size(struct shared *shared, qcow2_image *image, uint64_t size)
{
    int result = 0;

    if (shared->virtual_size != size) {
        result = qcow2_truncate(image, size, QCOW2_PREALLOC_OFF);
        if (result == 0) {
            shared->virtual_size = size;
        }
    }
    return result;
}

/* Nobody uses the image: what was ahead goes. */
static void settle_length(struct shared *shared, qcow2_image *image)
{
    uint64_t size = atomic_load(&shared->size);

    if (shared->writable && shared->virtual_size != round_up(size)) {
        write_length(shared, round_up(size));
    }
    if (shared->writable && (shared->has_length || shared->virtual_size != size) &&
        set_virtual_size(shared, image, round_up(size)) == 0) {
        if (size % SECTOR != 0) {
            write_length(shared, shared->virtual_size);
        } else {
            forget_length(shared);
        }
    }
}

/* With `opening` held. */
static int open_image(struct shared *shared)
{
    uint64_t flags = shared->flags | (shared->writable ? 0 : QCOW2_OPEN_READ_ONLY);
    qcow2_image *image;
    int64_t length;
    int result;

    for (int waited = 0;; waited += PAUSE_MS) {
        result = qcow2_open(shared->path, flags, shared->options, &image);
        if (result != -EAGAIN || waited >= PATIENCE_MS) {
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
    read_length(shared, (uint64_t)length);
    atomic_store(&shared->image, image);
    return 0;
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
        settle_length(shared, image);
    }
    result = qcow2_close(image);
    if (atomic_load(&shared->has_times)) {
        utimensat(AT_FDCWD, shared->path, shared->times, 0);
    }
    return result;
}

void shared_keep_times(struct shared *shared)
{
    struct stat status;

    if (stat(shared->path, &status) == 0) {
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

static struct shared *new_shared(const char *path, dev_t device, ino_t inode, uint64_t flags,
                                 const char *const *options)
{
    struct shared *shared = calloc(1, sizeof *shared);

    if (shared == NULL || (shared->path = strdup(path)) == NULL) {
        free(shared);
        return NULL;
    }
    shared->device = device;
    shared->inode = inode;
    shared->flags = flags;
    shared->options = options;
    pthread_mutex_init(&shared->opening, NULL);
    pthread_mutex_init(&shared->resizing, NULL);
    return shared;
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

static int get(const char *path, dev_t device, ino_t inode, bool writable, uint64_t flags, const char *const *options,
               bool now, struct shared **out)
{
    struct shared *shared;
    bool made = false;
    int result = 0;

    lock_list();
    shared = find(device, inode);
    if (shared == NULL) {
        made = true;
        shared = new_shared(path, device, inode, flags, options);
        if (shared == NULL) {
            unlock_list();
            return -ENOMEM;
        }
        shared->inherited = !now;
    }
    pthread_mutex_lock(&shared->opening);
    if (writable) {
        result = become_writable(shared);
    }
    if (result == 0 && now && atomic_load(&shared->image) == NULL) {
        result = open_image(shared);
    }
    pthread_mutex_unlock(&shared->opening);
    if (result == 0) {
        shared->opens++;
        if (made) {
            shared->next = list;
            list = shared;
        }
    } else if (made) {
        free(shared->path);
        free(shared);
    }
    unlock_list();
    *out = result == 0 ? shared : NULL;
    return result;
}

int shared_open(const char *path, dev_t device, ino_t inode, bool writable, uint64_t flags, const char *const *options,
                struct shared **out)
{
    return get(path, device, inode, writable, flags, options, true, out);
}

int shared_attach(const char *path, dev_t device, ino_t inode, bool writable, uint64_t flags,
                  const char *const *options, struct shared **out)
{
    return get(path, device, inode, writable, flags, options, false, out);
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

int shared_put(struct shared *shared)
{
    int result;

    lock_list();
    if (--shared->opens > 0) {
        unlock_list();
        return 0;
    }
    for (struct shared **link = &list; *link != NULL; link = &(*link)->next) {
        if (*link == shared) {
            *link = shared->next;
            break;
        }
    }
    pthread_mutex_lock(&shared->opening);
    result = close_image(shared, true);
    pthread_mutex_unlock(&shared->opening);
    unlock_list();
    free(shared->path);
    free(shared);
    return result;
}

int shared_enter_slow(struct shared *shared, qcow2_image **image)
{
    int result = 0;

    shared_inside++;
    pthread_mutex_lock(&shared->opening);
    *image = atomic_load(&shared->image);
    if (*image == NULL) {
        result = open_image(shared);
        *image = atomic_load(&shared->image);
    }
    if (result == 0) {
        atomic_fetch_add(&shared->users, 1);
    } else {
        shared_inside--;
    }
    pthread_mutex_unlock(&shared->opening);
    return result;
}

int shared_suspend(struct shared *shared)
{
    int result;

    pthread_mutex_lock(&shared->opening);
    result = close_image(shared, true);
    pthread_mutex_unlock(&shared->opening);
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

/* How long the virtual size becomes for a file of `end` bytes. */
static uint64_t ahead_of(uint64_t end)
{
    uint64_t ahead = end / 4 < AHEAD_LEAST ? AHEAD_LEAST : end / 4 > AHEAD_MOST ? AHEAD_MOST : end / 4;

    return end < INT64_MAX / 2 ? round_up(end + ahead) : round_up(end);
}

/* With `resizing` held, `end` past the size. */
static int grow(struct shared *shared, qcow2_image *image, uint64_t end)
{
    int result = 0;

    if (end > INT64_MAX - SECTOR) {
        return -EFBIG;
    }
    if (end > shared->virtual_size) {
        if (write_length(shared, ahead_of(end))) {
            result = set_virtual_size(shared, image, ahead_of(end));
        }
        if (result < 0 || shared->no_length) {
            result = set_virtual_size(shared, image, round_up(end));
        }
    }
    if (result == 0) {
        atomic_store(&shared->size, end);
        /* Before the write, which a kill may then leave as zeroes, but never cut off. */
        if (shared->virtual_size != end || shared->has_length) {
            write_length(shared, shared->virtual_size);
        }
    }
    return result;
}

int shared_grow(struct shared *shared, qcow2_image *image, uint64_t end)
{
    int result = 0;

    pthread_mutex_lock(&shared->resizing);
    if (end > atomic_load(&shared->size)) {
        result = grow(shared, image, end);
    }
    pthread_mutex_unlock(&shared->resizing);
    return result;
}

int64_t shared_append(struct shared *shared, qcow2_image *image, uint64_t length)
{
    int64_t result;
    uint64_t size;

    pthread_mutex_lock(&shared->resizing);
    size = atomic_load(&shared->size);
    result = size + length < size ? -EFBIG : grow(shared, image, size + length);
    pthread_mutex_unlock(&shared->resizing);
    return result < 0 ? result : (int64_t)size;
}

int shared_resize(struct shared *shared, qcow2_image *image, uint64_t size)
{
    uint64_t before;
    int result;

    if (size > INT64_MAX - SECTOR) {
        return -EFBIG;
    }
    pthread_mutex_lock(&shared->resizing);
    before = atomic_load(&shared->size);
    forget_length(shared);
    result = set_virtual_size(shared, image, round_up(size));
    /* What lies past the end reads as zeroes when the end moves over it again. */
    if (result == 0 && size < before && size % SECTOR != 0) {
        result = qcow2_write_zeroes(image, size, round_up(size) - size, 0);
    }
    if (result == 0) {
        atomic_store(&shared->size, size);
        if (size % SECTOR != 0) {
            write_length(shared, shared->virtual_size);
        }
    }
    pthread_mutex_unlock(&shared->resizing);
    return result;
}

void shared_before_fork(void)
{
    lock_list();
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
        pthread_mutex_unlock(&shared->opening);
    }
    unlock_list();
}
