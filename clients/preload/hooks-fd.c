/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Descriptors as such: close, dup, fcntl. */
#include "hooks.h"

#include <sys/file.h>

static int close_image(int fd)
{
    int result;

    HIT("close");
    if (view_at(fd) == VIEW_ENGINE) {
        return (int)answer(-EBADF);
    }
    stream_leaves(fd);
    result = view_unlink(fd);
    if (REAL(close)(fd) != 0) {
        return -1;
    }
    stream_follows(fd);
    return (int)answer(result == -EOWNERDEAD ? 0 : result);
}

HOOK int close(int fd)
{
    return is_view(fd) ? close_image(fd) : REAL(close)(fd);
}

HOOK int close_range(unsigned first, unsigned last, int flags)
{
    unsigned from = first, end = last < VIEWS_MAX ? last : VIEWS_MAX - 1;
    int result = 0;

    if ((flags & CLOSE_RANGE_CLOEXEC) != 0 || first > last) {
        return REAL(close_range)(first, last, flags);
    }
    for (unsigned fd = first; fd <= end; fd++) {
        struct view *view = view_at((int)fd);

        if (view == VIEW_ENGINE) {
            if (fd > from) {
                result |= REAL(close_range)(from, fd - 1, flags);
            }
            from = fd + 1;
        } else if (view != NULL) {
            close_image((int)fd);
        }
    }
    return from <= last ? result | REAL(close_range)(from, last, flags) : result;
}

HOOK void closefrom(int first)
{
    close_range(first < 0 ? 0 : (unsigned)first, ~0u, 0);
}

/* `made` has become a copy of `fd`. */
static int copied(int fd, int made)
{
    struct view *view;

    if (made < 0) {
        return made;
    }
    view = is_view(fd) ? view_get(fd) : NULL;
    if (view == NULL) {
        view_unlink(made);
        stream_follows(made);
        return made;
    }
    HIT("dup");
    if (made >= VIEWS_MAX) {
        REAL(close)(made);
        made = (int)answer(-EMFILE);
    } else {
        view_link(made, view);
        stream_follows(made);
    }
    view_release(view);
    return made;
}

static bool engines(int fd)
{
    return view_at(fd) == VIEW_ENGINE;
}

HOOK int dup(int fd)
{
    if (!is_view(fd)) {
        return number_made(REAL(dup)(fd));
    }
    return engines(fd) ? (int)answer(-EBADF) : copied(fd, REAL(dup)(fd));
}

/* Before dup2. The standard ones are followed by name. */
static void displaces(int fd, int target)
{
    int saved = errno;

    if (is_view(fd) && !is_view(target) && target > STDERR_FILENO && REAL(fcntl64)(target, F_GETFD) >= 0) {
        atomic_store(&views_displaced, true);
    }
    errno = saved;
}

HOOK int dup2(int fd, int target)
{
    if (!is_view(fd) && !is_view(target)) {
        return REAL(dup2)(fd, target);
    }
    if (engines(fd) || engines(target)) {
        return (int)answer(-EBADF);
    }
    if (fd == target) {
        return REAL(dup2)(fd, target);
    }
    displaces(fd, target);
    stream_leaves(target);
    return copied(fd, REAL(dup2)(fd, target));
}

HOOK int dup3(int fd, int target, int flags)
{
    if (!is_view(fd) && !is_view(target)) {
        return REAL(dup3)(fd, target, flags);
    }
    if (engines(fd) || engines(target)) {
        return (int)answer(-EBADF);
    }
    displaces(fd, target);
    stream_leaves(target);
    return copied(fd, REAL(dup3)(fd, target, flags));
}

enum { STATUS_FLAGS = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME };

/*
 * Locks are on the placeholder: the library's own are on the file, and keep other processes away. It is open for writing
 * alone, so that a lock for reading is one for writing there.
 */
static int lock_placeholder(int fd, int flags, int command, struct flock *wanted)
{
    bool get = command == F_GETLK || command == F_OFD_GETLK;
    struct flock lock;
    int result;

    if (wanted == NULL || wanted->l_type != F_RDLCK) {
        if (!get && wanted != NULL && wanted->l_type == F_WRLCK && (flags & O_ACCMODE) == O_RDONLY) {
            return (int)answer(-EBADF);
        }
        return REAL(fcntl64)(fd, command, wanted);
    }
    if (!get && (flags & O_ACCMODE) == O_WRONLY) {
        return (int)answer(-EBADF);
    }
    lock = *wanted;
    lock.l_type = F_WRLCK;
    result = REAL(fcntl64)(fd, command, &lock);
    if (get && result == 0) {
        *wanted = lock;
    }
    return result;
}

/* On the image's file, by a descriptor of the view's: the library's own locks are of bytes, which do not meet these. */
static int lock_file(struct view *view, int operation)
{
    int fd = atomic_load(&view->lock_fd), none = -1;

    if (fd < 0) {
        fd = view_interrupted() ? -EDEADLK : anchor_open_file(view->shared->anchor);
        if (fd >= 0 && !atomic_compare_exchange_strong(&view->lock_fd, &none, fd)) {
            anchor_end(fd);
            fd = none;
        }
    }
    return fd < 0 ? (int)answer(fd) : REAL(flock)(fd, operation);
}

HOOK int flock(int fd, int operation)
{
    struct view *view;
    int result;

    if (!is_view(fd)) {
        return REAL(flock)(fd, operation);
    }
    HIT("flock");
    view = view_get(fd);
    if (view == NULL) {
        return (int)answer(-EBADF);
    }
    result = lock_file(view, operation);
    view_release(view);
    return result;
}

static int image_fcntl(int fd, int command, void *argument)
{
    struct view *view = view_get(fd);
    int result, flags;

    HIT("fcntl");
    if (view == NULL) {
        return (int)answer(-EBADF);
    }
    switch (command) {
    case F_DUPFD:
    case F_DUPFD_CLOEXEC: result = copied(fd, REAL(fcntl64)(fd, command, argument)); break;
    case F_GETFL: result = atomic_load(&view->flags); break;
    case F_SETFL:
        flags = (int)(long)argument;
        result = REAL(fcntl64)(fd, command, (long)(flags & (O_APPEND | O_NONBLOCK)));
        if (result == 0) {
            atomic_store(&view->flags, (atomic_load(&view->flags) & ~STATUS_FLAGS) | (flags & STATUS_FLAGS));
        }
        break;
    case F_ADD_SEALS:
    case F_GET_SEALS: result = (int)answer(-EINVAL); break;
    case F_SETLK:
    case F_SETLKW:
    case F_GETLK:
    case F_OFD_SETLK:
    case F_OFD_SETLKW:
    case F_OFD_GETLK: result = lock_placeholder(fd, atomic_load(&view->flags), command, argument); break;
    default: result = REAL(fcntl64)(fd, command, argument); break;
    }
    view_release(view);
    return result;
}

HOOK int hook_fcntl(int fd, int command, void *argument) __asm__("fcntl");
HOOK int hook_fcntl64(int fd, int command, void *argument) __asm__("fcntl64");

static inline int any_fcntl(int fd, int command, void *argument)
{
    if (is_view(fd)) {
        return image_fcntl(fd, command, argument);
    }
    if (command == F_GETFL) {
        int flags = REAL(fcntl64)(fd, command, argument);

        /* Most opens are with it (hooks-open.c), which their callers have not asked for. */
        return flags < 0 ? flags : flags & ~O_NOFOLLOW;
    }
    return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? number_made(REAL(fcntl64)(fd, command, argument))
                                                            : REAL(fcntl64)(fd, command, argument);
}

int hook_fcntl(int fd, int command, void *argument)
{
    return any_fcntl(fd, command, argument);
}

int hook_fcntl64(int fd, int command, void *argument)
{
    return any_fcntl(fd, command, argument);
}
