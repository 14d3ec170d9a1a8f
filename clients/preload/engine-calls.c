/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What the engine calls where it names a function that the shim interposes: engine-names.sh renames its references.
 * Its descriptors lie above those that programs use, and no call of the program's reaches them.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <sys/resource.h>

#include "real.h"
#include "views.h"

#define ENGINE(name) engine_##name

int ENGINE(open)(const char *path, int flags, ...);
int ENGINE(open64)(const char *path, int flags, ...);
int ENGINE(close)(int fd);
ssize_t ENGINE(read)(int fd, void *buffer, size_t count);
ssize_t ENGINE(write)(int fd, const void *buffer, size_t count);
ssize_t ENGINE(readv)(int fd, const struct iovec *iov, int count);
ssize_t ENGINE(writev)(int fd, const struct iovec *iov, int count);
ssize_t ENGINE(pread64)(int fd, void *buffer, size_t count, off_t offset);
ssize_t ENGINE(pwrite64)(int fd, const void *buffer, size_t count, off_t offset);
int ENGINE(fcntl)(int fd, int command, ...);
int ENGINE(fdatasync)(int fd);
int ENGINE(fsync)(int fd);
int ENGINE(fstat64)(int fd, struct stat64 *status);
int ENGINE(stat64)(const char *path, struct stat64 *status);
int ENGINE(lstat64)(const char *path, struct stat64 *status);
int ENGINE(ftruncate64)(int fd, off_t length);
int ENGINE(fallocate64)(int fd, int mode, off_t offset, off_t length);
int ENGINE(ioctl)(int fd, unsigned long request, ...);
off_t ENGINE(lseek64)(int fd, off_t offset, int whence);
void *ENGINE(mmap)(void *address, size_t length, int protection, int flags, int fd, off_t offset);
void *ENGINE(mmap64)(void *address, size_t length, int protection, int flags, int fd, off_t offset);
int ENGINE(statx)(int directory, const char *path, int flags, unsigned mask, struct statx *status);
long ENGINE(syscall)(long number, ...);
int ENGINE(rename)(const char *old, const char *new);
int ENGINE(linkat)(int old_directory, const char *old, int new_directory, const char *new, int flags);
void *ENGINE(dlsym)(void *handle, const char *name);

/* Moves a new descriptor out of the way; not far, for the kernel's table is as long as the highest one. */
static int keep(int fd)
{
    struct rlimit limit;
    int base, moved;

    if (fd < 0) {
        return fd;
    }
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur >= 256) {
        base = limit.rlim_cur >= 1024 ? 800 : (int)limit.rlim_cur * 3 / 4;
        moved = REAL(fcntl64)(fd, F_DUPFD_CLOEXEC, base);
        if (moved >= 0) {
            REAL(close)(fd);
            fd = moved;
        }
    }
    views_set_engine(fd, true);
    return fd;
}

int ENGINE(open64)(const char *path, int flags, ...)
{
    va_list arguments;
    mode_t mode;

    va_start(arguments, flags);
    mode = va_arg(arguments, mode_t);
    va_end(arguments);
    return keep(REAL(open64)(path, flags, mode));
}

/* Of /dev/random, where the kernel has no getrandom. */
int ENGINE(open)(const char *path, int flags, ...)
{
    va_list arguments;
    mode_t mode;

    va_start(arguments, flags);
    mode = va_arg(arguments, mode_t);
    va_end(arguments);
    return keep(REAL(open64)(path, flags, mode));
}

int ENGINE(close)(int fd)
{
    views_set_engine(fd, false);
    return REAL(close)(fd);
}

ssize_t ENGINE(read)(int fd, void *buffer, size_t count)
{
    return REAL(read)(fd, buffer, count);
}

ssize_t ENGINE(write)(int fd, const void *buffer, size_t count)
{
    return REAL(write)(fd, buffer, count);
}

ssize_t ENGINE(readv)(int fd, const struct iovec *iov, int count)
{
    return REAL(readv)(fd, iov, count);
}

ssize_t ENGINE(writev)(int fd, const struct iovec *iov, int count)
{
    return REAL(writev)(fd, iov, count);
}

ssize_t ENGINE(pread64)(int fd, void *buffer, size_t count, off_t offset)
{
    return REAL(pread64)(fd, buffer, count, offset);
}

ssize_t ENGINE(pwrite64)(int fd, const void *buffer, size_t count, off_t offset)
{
    return REAL(pwrite64)(fd, buffer, count, offset);
}

int ENGINE(fcntl)(int fd, int command, ...)
{
    va_list arguments;
    void *argument;
    int result;

    va_start(arguments, command);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    result = REAL(fcntl64)(fd, command, argument);
    return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? keep(result) : result;
}

int ENGINE(fdatasync)(int fd)
{
    return REAL(fdatasync)(fd);
}

int ENGINE(fsync)(int fd)
{
    return REAL(fsync)(fd);
}

int ENGINE(fstat64)(int fd, struct stat64 *status)
{
    return REAL(fstat64)(fd, status);
}

int ENGINE(stat64)(const char *path, struct stat64 *status)
{
    return REAL(stat64)(path, status);
}

int ENGINE(lstat64)(const char *path, struct stat64 *status)
{
    return REAL(lstat64)(path, status);
}

int ENGINE(ftruncate64)(int fd, off_t length)
{
    return REAL(ftruncate64)(fd, length);
}

int ENGINE(fallocate64)(int fd, int mode, off_t offset, off_t length)
{
    return REAL(fallocate64)(fd, mode, offset, length);
}

int ENGINE(ioctl)(int fd, unsigned long request, ...)
{
    va_list arguments;
    void *argument;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    return REAL(ioctl)(fd, request, argument);
}

off_t ENGINE(lseek64)(int fd, off_t offset, int whence)
{
    return REAL(lseek64)(fd, offset, whence);
}

void *ENGINE(mmap)(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return REAL(mmap64)(address, length, protection, flags, fd, offset);
}

void *ENGINE(mmap64)(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return REAL(mmap64)(address, length, protection, flags, fd, offset);
}

int ENGINE(statx)(int directory, const char *path, int flags, unsigned mask, struct statx *status)
{
    return REAL(statx)(directory, path, flags, mask, status);
}

long ENGINE(syscall)(long number, ...)
{
    va_list arguments;
    long argument[6];

    va_start(arguments, number);
    for (int i = 0; i < 6; i++) {
        argument[i] = va_arg(arguments, long);
    }
    va_end(arguments);
    return REAL(syscall)(number, argument[0], argument[1], argument[2], argument[3], argument[4], argument[5]);
}

int ENGINE(rename)(const char *old, const char *new)
{
    return REAL(rename)(old, new);
}

int ENGINE(linkat)(int old_directory, const char *old, int new_directory, const char *new, int flags)
{
    return REAL(linkat)(old_directory, old, new_directory, new, flags);
}

/* The Rust runtime looks newer functions up by name. */
void *ENGINE(dlsym)(void *handle, const char *name)
{
    return dlsym(handle == RTLD_DEFAULT ? RTLD_NEXT : handle, name);
}
