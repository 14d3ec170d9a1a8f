/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The C library's own functions. Nothing in the shim calls one of these by its plain name, for that is the hook.
 * REAL(name) may be used before the constructor has run.
 */
#ifndef PRELOAD_REAL_H
#define PRELOAD_REAL_H

#include <aio.h>
#include <dirent.h>
#include <fcntl.h>
#include <fts.h>
#include <ftw.h>
#include <pty.h>
#include <setjmp.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>
#include <wchar.h>

#define unlikely(x) __builtin_expect(!!(x), 0)

#define REAL_FUNCTIONS(F)                                                                                              \
    F(int, open64, (const char *, int, ...))                                                                           \
    F(int, openat64, (int, const char *, int, ...))                                                                    \
    F(int, close, (int))                                                                                               \
    F(int, close_range, (unsigned, unsigned, int))                                                                     \
    F(ssize_t, read, (int, void *, size_t))                                                                            \
    F(ssize_t, write, (int, const void *, size_t))                                                                     \
    F(ssize_t, pread64, (int, void *, size_t, off_t))                                                                  \
    F(ssize_t, pwrite64, (int, const void *, size_t, off_t))                                                           \
    F(ssize_t, readv, (int, const struct iovec *, int))                                                                \
    F(ssize_t, writev, (int, const struct iovec *, int))                                                               \
    F(ssize_t, preadv64, (int, const struct iovec *, int, off_t))                                                      \
    F(ssize_t, pwritev64, (int, const struct iovec *, int, off_t))                                                     \
    F(ssize_t, preadv64v2, (int, const struct iovec *, int, off_t, int))                                               \
    F(ssize_t, pwritev64v2, (int, const struct iovec *, int, off_t, int))                                              \
    F(ssize_t, __read_chk, (int, void *, size_t, size_t))                                                              \
    F(ssize_t, __pread64_chk, (int, void *, size_t, off_t, size_t))                                                    \
    F(off_t, lseek64, (int, off_t, int))                                                                               \
    F(int, fstat64, (int, struct stat64 *))                                                                            \
    F(int, stat64, (const char *, struct stat64 *))                                                                    \
    F(int, lstat64, (const char *, struct stat64 *))                                                                   \
    F(int, fstatat64, (int, const char *, struct stat64 *, int))                                                       \
    F(int, statx, (int, const char *, int, unsigned, struct statx *))                                                  \
    F(int, rename, (const char *, const char *))                                                                       \
    F(int, renameat, (int, const char *, int, const char *))                                                           \
    F(int, renameat2, (int, const char *, int, const char *, unsigned))                                                \
    F(int, link, (const char *, const char *))                                                                         \
    F(int, linkat, (int, const char *, int, const char *, int))                                                        \
    F(int, ftruncate64, (int, off_t))                                                                                  \
    F(int, truncate64, (const char *, off_t))                                                                          \
    F(int, fallocate64, (int, int, off_t, off_t))                                                                      \
    F(int, posix_fallocate64, (int, off_t, off_t))                                                                     \
    F(int, posix_fadvise64, (int, off_t, off_t, int))                                                                  \
    F(int, fsync, (int))                                                                                               \
    F(int, fdatasync, (int))                                                                                           \
    F(int, syncfs, (int))                                                                                              \
    F(int, sync_file_range, (int, off_t, off_t, unsigned))                                                             \
    F(ssize_t, readahead, (int, off_t, size_t))                                                                        \
    F(int, dup, (int))                                                                                                 \
    F(int, dup2, (int, int))                                                                                           \
    F(int, dup3, (int, int, int))                                                                                      \
    F(int, fcntl64, (int, int, ...))                                                                                   \
    F(int, ioctl, (int, unsigned long, ...))                                                                           \
    F(void *, mmap64, (void *, size_t, int, int, int, off_t))                                                          \
    F(ssize_t, sendfile64, (int, int, off_t *, size_t))                                                                \
    F(ssize_t, splice, (int, off_t *, int, off_t *, size_t, unsigned))                                                 \
    F(ssize_t, copy_file_range, (int, off_t *, int, off_t *, size_t, unsigned))                                        \
    F(int, fchmod, (int, mode_t))                                                                                      \
    F(int, fchown, (int, uid_t, gid_t))                                                                                \
    F(int, futimens, (int, const struct timespec[2]))                                                                  \
    F(int, futimes, (int, const struct timeval[2]))                                                                    \
    F(int, utimensat, (int, const char *, const struct timespec[2], int))                                              \
    F(ssize_t, fgetxattr, (int, const char *, void *, size_t))                                                         \
    F(ssize_t, flistxattr, (int, char *, size_t))                                                                      \
    F(int, fsetxattr, (int, const char *, const void *, size_t, int))                                                  \
    F(int, fremovexattr, (int, const char *))                                                                          \
    F(int, fstatfs64, (int, struct statfs64 *))                                                                        \
    F(int, fstatvfs64, (int, struct statvfs64 *))                                                                      \
    F(FILE *, fopen64, (const char *, const char *))                                                                   \
    F(FILE *, freopen64, (const char *, const char *, FILE *))                                                         \
    F(wint_t, fgetwc, (FILE *))                                                                                        \
    F(wint_t, getwc, (FILE *))                                                                                         \
    F(wint_t, fgetwc_unlocked, (FILE *))                                                                               \
    F(wint_t, getwc_unlocked, (FILE *))                                                                                \
    F(wint_t, fputwc, (wchar_t, FILE *))                                                                               \
    F(wint_t, putwc, (wchar_t, FILE *))                                                                                \
    F(wint_t, fputwc_unlocked, (wchar_t, FILE *))                                                                      \
    F(wint_t, putwc_unlocked, (wchar_t, FILE *))                                                                       \
    F(wchar_t *, fgetws, (wchar_t *, int, FILE *))                                                                     \
    F(wchar_t *, fgetws_unlocked, (wchar_t *, int, FILE *))                                                            \
    F(wchar_t *, __fgetws_chk, (wchar_t *, size_t, int, FILE *))                                                       \
    F(wchar_t *, __fgetws_unlocked_chk, (wchar_t *, size_t, int, FILE *))                                              \
    F(int, fputws, (const wchar_t *, FILE *))                                                                          \
    F(int, fputws_unlocked, (const wchar_t *, FILE *))                                                                 \
    F(wint_t, ungetwc, (wint_t, FILE *))                                                                               \
    F(int, fwide, (FILE *, int))                                                                                       \
    F(int, vfwprintf, (FILE *, const wchar_t *, va_list))                                                              \
    F(int, __vfwprintf_chk, (FILE *, int, const wchar_t *, va_list))                                                   \
    F(int, vfwscanf, (FILE *, const wchar_t *, va_list))                                                               \
    F(int, __isoc99_vfwscanf, (FILE *, const wchar_t *, va_list))                                                      \
    F(int, __isoc23_vfwscanf, (FILE *, const wchar_t *, va_list))                                                      \
    F(int, flock, (int, int))                                                                                          \
    F(int, ftw, (const char *, __ftw_func_t, int))                                                                     \
    F(int, ftw64, (const char *, __ftw64_func_t, int))                                                                 \
    F(int, nftw, (const char *, __nftw_func_t, int, int))                                                              \
    F(int, nftw64, (const char *, __nftw64_func_t, int, int))                                                          \
    F(FTS *, fts_open, (char *const *, int, int (*)(const FTSENT **, const FTSENT **)))                                \
    F(FTS64 *, fts64_open, (char *const *, int, int (*)(const FTSENT64 **, const FTSENT64 **)))                        \
    F(FILE *, fdopen, (int, const char *))                                                                             \
    F(int, fileno, (FILE *))                                                                                           \
    F(FILE *, popen, (const char *, const char *))                                                                     \
    F(int, system, (const char *))                                                                                     \
    F(int, execve, (const char *, char *const *, char *const *))                                                       \
    F(int, execvpe, (const char *, char *const *, char *const *))                                                      \
    F(int, fexecve, (int, char *const *, char *const *))                                                               \
    F(int, posix_spawn,                                                                                                \
      (pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, char *const *,            \
       char *const *))                                                                                                 \
    F(int, posix_spawnp,                                                                                               \
      (pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, char *const *,            \
       char *const *))                                                                                                 \
    F(pid_t, fork, (void))                                                                                             \
    F(void, _exit, (int))                                                                                              \
    F(void, quick_exit, (int))                                                                                         \
    F(int, socket, (int, int, int))                                                                                    \
    F(int, accept, (int, struct sockaddr *, socklen_t *))                                                              \
    F(int, accept4, (int, struct sockaddr *, socklen_t *, int))                                                        \
    F(int, epoll_create, (int))                                                                                        \
    F(int, epoll_create1, (int))                                                                                       \
    F(int, eventfd, (unsigned, int))                                                                                   \
    F(int, signalfd, (int, const sigset_t *, int))                                                                     \
    F(int, timerfd_create, (clockid_t, int))                                                                           \
    F(int, inotify_init, (void))                                                                                       \
    F(int, inotify_init1, (int))                                                                                       \
    F(int, fanotify_init, (unsigned, unsigned))                                                                        \
    F(int, memfd_create, (const char *, unsigned))                                                                     \
    F(int, pidfd_open, (pid_t, unsigned))                                                                              \
    F(int, posix_openpt, (int))                                                                                        \
    F(int, getpt, (void))                                                                                              \
    F(int, shm_open, (const char *, int, mode_t))                                                                      \
    F(int, open_by_handle_at, (int, struct file_handle *, int))                                                        \
    F(int, pipe, (int *))                                                                                              \
    F(int, pipe2, (int *, int))                                                                                        \
    F(int, socketpair, (int, int, int, int *))                                                                         \
    F(int, openpty, (int *, int *, char *, const struct termios *, const struct winsize *))                            \
    F(pid_t, forkpty, (int *, char *, const struct termios *, const struct winsize *))                                 \
    F(int, login_tty, (int))                                                                                           \
    F(int, daemon, (int, int))                                                                                         \
    F(void, closelog, (void))                                                                                          \
    F(FILE *, tmpfile64, (void))                                                                                       \
    F(int, fclose, (FILE *))                                                                                           \
    F(int, pclose, (FILE *))                                                                                           \
    F(DIR *, opendir, (const char *))                                                                                  \
    F(int, closedir, (DIR *))                                                                                          \
    F(ssize_t, recvmsg, (int, struct msghdr *, int))                                                                   \
    F(int, recvmmsg, (int, struct mmsghdr *, unsigned, int, struct timespec *))                                        \
    F(void, siglongjmp, (struct __jmp_buf_tag *, int))                                                                 \
    F(void, __longjmp_chk, (struct __jmp_buf_tag *, int))                                                              \
    F(int, vdprintf, (int, const char *, va_list))                                                                     \
    F(int, __vdprintf_chk, (int, int, const char *, va_list))                                                          \
    F(int, mkostemps64, (char *, int, int))                                                                            \
    F(ssize_t, sendmsg, (int, const struct msghdr *, int))                                                             \
    F(int, sendmmsg, (int, struct mmsghdr *, unsigned, int))                                                           \
    F(ssize_t, listxattr, (const char *, char *, size_t))                                                              \
    F(ssize_t, llistxattr, (const char *, char *, size_t))                                                             \
    F(int, aio_read64, (struct aiocb64 *))                                                                             \
    F(int, aio_write64, (struct aiocb64 *))                                                                            \
    F(int, aio_fsync64, (int, struct aiocb64 *))                                                                       \
    F(int, lio_listio64, (int, struct aiocb64 *const *, int, struct sigevent *))                                       \
    F(long, syscall, (long, ...))

struct real_functions {
#define REAL_MEMBER(type, name, arguments) type(*name) arguments;
    REAL_FUNCTIONS(REAL_MEMBER)
#undef REAL_MEMBER
};

extern struct real_functions real_functions;
extern bool real_ready;
void real_resolve(void);

static inline const struct real_functions *real_get(void)
{
    if (unlikely(!real_ready)) {
        real_resolve();
    }
    return &real_functions;
}

#define REAL(name) (real_get()->name)

#endif
