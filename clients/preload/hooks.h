/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the interposed functions share. Those that no header declares are declared here. */
#ifndef PRELOAD_HOOKS_H
#define PRELOAD_HOOKS_H

#include <setjmp.h>
#include <stdarg.h>

#include "open.h"
#include "real.h"
#include "report.h"
#include "views.h"

/* hooks.txt lists them for the version script; a name that is missing there is not interposed. */
#define HOOK __attribute__((visibility("default")))

/*
 * Functions with "..." are defined under another C name with the arguments that they take: Linux's ABIs with 64 bits pass
 * both in the same way, and what does not gather arguments can end in a jump.
 */

ssize_t __read_chk(int fd, void *buffer, size_t count, size_t room);
ssize_t __pread_chk(int fd, void *buffer, size_t count, off_t offset, size_t room);
ssize_t __pread64_chk(int fd, void *buffer, size_t count, off_t offset, size_t room);
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int directory, const char *path, int flags);
int __openat64_2(int directory, const char *path, int flags);
int __dprintf_chk(int fd, int flag, const char *format, ...);
int __vdprintf_chk(int fd, int flag, const char *format, va_list arguments);
void __longjmp_chk(struct __jmp_buf_tag place[1], int value) __attribute__((noreturn));
wchar_t *__fgetws_chk(wchar_t *line, size_t size, int room, FILE *file);
wchar_t *__fgetws_unlocked_chk(wchar_t *line, size_t size, int room, FILE *file);
int __vfwprintf_chk(FILE *file, int flag, const wchar_t *format, va_list arguments);
int __vwprintf_chk(int flag, const wchar_t *format, va_list arguments);
int __fwprintf_chk(FILE *file, int flag, const wchar_t *format, ...);
int __wprintf_chk(int flag, const wchar_t *format, ...);
int __xstat(int version, const char *path, struct stat *status);
int __xstat64(int version, const char *path, struct stat64 *status);
int __lxstat(int version, const char *path, struct stat *status);
int __lxstat64(int version, const char *path, struct stat64 *status);
int __fxstat(int version, int fd, struct stat *status);
int __fxstat64(int version, int fd, struct stat64 *status);
int __fxstatat(int version, int directory, const char *path, struct stat *status, int flags);
int __fxstatat64(int version, int directory, const char *path, struct stat64 *status, int flags);

/* Before and after a descriptor changes: `stdin`, `stdout` and `stderr` are streams of ours while theirs is an image. */
void stream_leaves(int fd);
void stream_follows(int fd);
/* Writes what our streams still hold. */
void flush_streams(void);
void streams_before_fork(void);
void streams_after_fork(void);

/* Whether a stream is one of ours, which have no descriptor of the C library's. */
#define is_ours(file) (unlikely((file)->_fileno < 0) && stream_is_ours(file))
bool stream_is_ours(const FILE *file);
/* fwide, for a stream of ours. */
int stream_wide(const FILE *file, int mode);

/* The number is no image's any more: its descriptor has been closed past the hooks. */
void number_gone(int fd);

/* A number that a call has just made, or is about to close; -1: none. */
static inline int number_made(int fd)
{
    if (is_view(fd)) {
        number_gone(fd);
    }
    return fd;
}

/* Before another program takes this process over, or one is started, or gets descriptors. */
void prepare_exec(void);

#endif
