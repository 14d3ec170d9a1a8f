/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* System calls by number, where they name a file or a descriptor: to the hooks. */
#include "hooks.h"

#include <linux/openat2.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#define P(i) ((void *)a[i])
#define I(i) ((int)a[i])

static long open_how(int directory, const char *path, const struct open_how *how)
{
    char name[PATH_MAX];

    if (image_rule(path) == NULL && (how->flags & O_NOFOLLOW) == 0 && (how->resolve & RESOLVE_NO_SYMLINKS) == 0 &&
        image_link(directory, path, name)) {
        return image_open(directory, name, (int)how->flags, (mode_t)how->mode);
    }
    return image_open(directory, path, (int)how->flags, (mode_t)how->mode);
}

static bool by_path(long number, const long *a, long *result)
{
    switch (number) {
#ifdef SYS_open
    case SYS_open: *result = open(P(0), I(1), (mode_t)a[2]); return true;
    case SYS_creat: *result = creat(P(0), (mode_t)a[1]); return true;
    case SYS_stat: *result = stat(P(0), P(1)); return true;
    case SYS_lstat: *result = lstat(P(0), P(1)); return true;
#endif
#ifdef SYS_rename
    case SYS_rename: *result = rename(P(0), P(1)); return true;
    case SYS_link: *result = link(P(0), P(1)); return true;
#endif
    case SYS_renameat2: *result = renameat2(I(0), P(1), I(2), P(3), (unsigned)a[4]); return true;
    case SYS_linkat: *result = linkat(I(0), P(1), I(2), P(3), I(4)); return true;
    case SYS_openat: *result = openat(I(0), P(1), I(2), (mode_t)a[3]); return true;
    case SYS_renameat: *result = renameat(I(0), P(1), I(2), P(3)); return true;
    case SYS_openat2: *result = open_how(I(0), P(1), P(2)); break;
    case SYS_newfstatat: *result = fstatat(I(0), P(1), P(2), I(3)); return true;
    case SYS_statx: *result = statx(I(0), P(1), I(2), (unsigned)a[3], P(4)); return true;
    case SYS_truncate: *result = truncate(P(0), a[1]); return true;
    case SYS_copy_file_range:
        *result = copy_file_range(I(0), P(1), I(2), P(3), (size_t)a[4], (unsigned)a[5]);
        return true;
    case SYS_splice: *result = splice(I(0), P(1), I(2), P(3), (size_t)a[4], (unsigned)a[5]); return true;
    case SYS_sendfile: *result = sendfile(I(0), I(1), P(2), (size_t)a[3]); return true;
#ifndef __s390x__ /* There its arguments are in memory. */
    case SYS_mmap: *result = (long)mmap(P(0), (size_t)a[1], I(2), I(3), I(4), a[5]); return true;
#endif
    case SYS_close_range: *result = close_range((unsigned)a[0], (unsigned)a[1], I(2)); return true;
#ifdef SYS_dup2
    case SYS_dup2: *result = dup2(I(0), I(1)); return true;
#endif
    case SYS_dup3: *result = dup3(I(0), I(1), I(2)); return true;
    case SYS_execve:
    case SYS_execveat: prepare_exec(); return false;
    case SYS_sendmsg: *result = sendmsg(I(0), P(1), I(2)); return true;
    case SYS_recvmsg: *result = recvmsg(I(0), P(1), I(2)); return true;
    case SYS_exit_group: _exit(I(0));
    default: return false;
    }
    if (*result == NOT_AN_IMAGE) {
        return false;
    }
    *result = answer(*result);
    return true;
}

/* The first argument is a descriptor. */
static bool by_descriptor(long number, const long *a, long *result)
{
    switch (number) {
    case SYS_read: *result = read(I(0), P(1), (size_t)a[2]); return true;
    case SYS_write: *result = write(I(0), P(1), (size_t)a[2]); return true;
    case SYS_pread64: *result = pread(I(0), P(1), (size_t)a[2], a[3]); return true;
    case SYS_pwrite64: *result = pwrite(I(0), P(1), (size_t)a[2], a[3]); return true;
    case SYS_readv: *result = readv(I(0), P(1), I(2)); return true;
    case SYS_writev: *result = writev(I(0), P(1), I(2)); return true;
    case SYS_preadv: *result = preadv(I(0), P(1), I(2), a[3]); return true;
    case SYS_pwritev: *result = pwritev(I(0), P(1), I(2), a[3]); return true;
    case SYS_preadv2: *result = preadv2(I(0), P(1), I(2), a[3], I(5)); return true;
    case SYS_pwritev2: *result = pwritev2(I(0), P(1), I(2), a[3], I(5)); return true;
    case SYS_lseek: *result = lseek(I(0), a[1], I(2)); return true;
    case SYS_fstat: *result = fstat(I(0), P(1)); return true;
    case SYS_ftruncate: *result = ftruncate(I(0), a[1]); return true;
    case SYS_fallocate: *result = fallocate(I(0), I(1), a[2], a[3]); return true;
    case SYS_flock: *result = flock(I(0), I(1)); return true;
    case SYS_fsync: *result = fsync(I(0)); return true;
    case SYS_fdatasync: *result = fdatasync(I(0)); return true;
    case SYS_syncfs: *result = syncfs(I(0)); return true;
    case SYS_sync_file_range: *result = sync_file_range(I(0), a[1], a[2], (unsigned)a[3]); return true;
    case SYS_dup: *result = dup(I(0)); return true;
    case SYS_fcntl: *result = fcntl(I(0), I(1), P(2)); return true;
    case SYS_ioctl: *result = ioctl(I(0), (unsigned long)a[1], P(2)); return true;
    case SYS_utimensat: *result = a[1] == 0 ? futimens(I(0), P(2)) : -1; return a[1] == 0;
    case SYS_fchmod: *result = fchmod(I(0), (mode_t)a[1]); return true;
    case SYS_fchown: *result = fchown(I(0), (uid_t)a[1], (gid_t)a[2]); return true;
    case SYS_close: *result = close(I(0)); return true;
    default: return false;
    }
}

static void new_numbers(long number, const long *a, long result)
{
    switch (number) {
#ifdef SYS_open
    case SYS_open:
    case SYS_creat:
    case SYS_epoll_create:
    case SYS_eventfd:
    case SYS_inotify_init:
    case SYS_signalfd:
#endif
    case SYS_openat:
    case SYS_openat2:
    case SYS_open_by_handle_at:
    case SYS_dup:
    case SYS_socket:
    case SYS_accept:
    case SYS_accept4:
    case SYS_epoll_create1:
    case SYS_eventfd2:
    case SYS_signalfd4:
    case SYS_timerfd_create:
    case SYS_inotify_init1:
    case SYS_fanotify_init:
    case SYS_memfd_create:
    case SYS_pidfd_open:
    case SYS_pidfd_getfd:
    case SYS_perf_event_open:
    case SYS_userfaultfd:
    case SYS_io_uring_setup: number_made((int)result); break;
    case SYS_fcntl:
        if (I(1) == F_DUPFD || I(1) == F_DUPFD_CLOEXEC) {
            number_made((int)result);
        }
        break;
#ifdef SYS_pipe
    case SYS_pipe:
#endif
    case SYS_pipe2:
        number_made(((int *)P(0))[0]);
        number_made(((int *)P(0))[1]);
        break;
    case SYS_socketpair:
        number_made(((int *)P(3))[0]);
        number_made(((int *)P(3))[1]);
        break;
    default: break;
    }
}

HOOK long hook_syscall(long number, long a, long b, long c, long d, long e, long f) __asm__("syscall");

long hook_syscall(long number, long a, long b, long c, long d, long e, long f)
{
    const long arguments[] = {a, b, c, d, e, f};
    long result;

    if ((is_view((int)a) && by_descriptor(number, arguments, &result)) || by_path(number, arguments, &result)) {
        return result;
    }
    result = REAL(syscall)(number, a, b, c, d, e, f);
    if (result >= 0 && views_any()) {
        new_numbers(number, arguments, result);
    }
    return result;
}
