/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The names below are the plain ones, which the library was linked with. */
#undef _FILE_OFFSET_BITS
#undef _TIME_BITS
#include "host-calls.h"

#include "test.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/uio.h>

struct host host;

/* The C library's function of the same name. */
#define REAL(name)                                                                                                     \
    __extension__({                                                                                                    \
        static __typeof__(&(name)) real;                                                                               \
        if (real == NULL) {                                                                                            \
            void *found = dlsym(RTLD_NEXT, #name);                                                                     \
            memcpy(&real, &found, sizeof real);                                                                        \
        }                                                                                                              \
        real;                                                                                                          \
    })

enum answer { GO, SHORT, FAIL };

static bool one_in(unsigned n)
{
    return n != 0 && test_random(&host.random) % n == 0;
}

/* Decides about one call; sets errno for FAIL. Tests with `host.on` are single-threaded. */
static enum answer decide(enum host_call kind)
{
    if (!host.on) {
        return GO;
    }
    host.calls[kind]++;
    if ((kind == HOST_WRITE || kind == HOST_COPY || kind == HOST_TRUNCATE || kind == HOST_FALLOCATE) &&
        ++host.changes == host.kill_at) {
        kill(getpid(), SIGKILL);
    }
    if (one_in(host.eintr_one_in)) {
        host.interrupted[kind]++;
        errno = EINTR;
        return FAIL;
    }
    if (kind == HOST_FALLOCATE && host.fallocate_errno != 0) {
        errno = host.fallocate_errno;
        return FAIL;
    }
    if (host.fail_errno != 0 && (host.fail_kind < 0 || host.fail_kind == (int)kind)) {
        uint64_t number = host.counted++;

        if (number == host.fail_at || (host.fail_on && number > host.fail_at)) {
            if (host.failed++ == 0) {
                host.failed_kind = (int)kind;
            }
            errno = host.fail_errno;
            return FAIL;
        }
    }
    return kind <= HOST_COPY && one_in(host.short_one_in) ? SHORT : GO;
}

static size_t shortened(enum host_call kind, size_t count)
{
    size_t unit = host.short_unit == 0 ? 1 : host.short_unit, units = count / unit;

    if (units < 2) {
        return count;
    }
    host.shortened[kind]++;
    return (1 + test_random(&host.random) % (units - 1)) * unit;
}

static size_t total(const struct iovec *iov, int count)
{
    size_t bytes = 0;

    for (int i = 0; i < count; i++) {
        bytes += iov[i].iov_len;
    }
    return bytes;
}

/* The first `bytes` bytes of `iov` into `parts`; how many parts. */
static int cut(struct iovec parts[1024], const struct iovec *iov, int count, size_t bytes)
{
    int used = 0;

    for (; used < count && bytes > 0; used++) {
        parts[used] = iov[used];
        if (parts[used].iov_len > bytes) {
            parts[used].iov_len = bytes;
        }
        bytes -= parts[used].iov_len;
    }
    return used;
}

ssize_t pwrite64(int fd, const void *buffer, size_t count, off64_t offset)
{
    switch (decide(HOST_WRITE)) {
    case FAIL: {
        int why = errno;

        if (why != EINTR && host.torn && count >= 1024) {
            REAL(pwrite64)(fd, buffer, count / 1024 * 512, offset);
        }
        errno = why;
        return -1;
    }
    case SHORT: count = shortened(HOST_WRITE, count); break;
    case GO: break;
    }
    return REAL(pwrite64)(fd, buffer, count, offset);
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    struct iovec parts[1024];

    switch (decide(HOST_WRITE)) {
    case FAIL: {
        int why = errno;

        if (why != EINTR && host.torn && total(iov, count) >= 1024) {
            REAL(pwritev)(fd, parts, cut(parts, iov, count, total(iov, count) / 1024 * 512), offset);
        }
        errno = why;
        return -1;
    }
    case SHORT:
        count = cut(parts, iov, count, shortened(HOST_WRITE, total(iov, count)));
        return REAL(pwritev)(fd, parts, count, offset);
    case GO: break;
    }
    return REAL(pwritev)(fd, iov, count, offset);
}

int fdatasync(int fd)
{
    if (decide(HOST_SYNC) == FAIL) {
        return -1;
    }
    /* Nobody pulls the plug in these tests. */
    return host.on ? 0 : REAL(fdatasync)(fd);
}

int ftruncate64(int fd, off64_t length)
{
    return decide(HOST_TRUNCATE) == FAIL ? -1 : REAL(ftruncate64)(fd, length);
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    return decide(HOST_FALLOCATE) == FAIL ? -1 : REAL(fallocate)(fd, mode, offset, length);
}

/* By whichever name the library asks. */
off_t lseek(int fd, off_t offset, int whence)
{
    return decide(HOST_SEEK) == FAIL ? -1 : REAL(lseek)(fd, offset, whence);
}

off64_t lseek64(int fd, off64_t offset, int whence)
{
    return decide(HOST_SEEK) == FAIL ? -1 : REAL(lseek64)(fd, offset, whence);
}

int fcntl(int fd, int command, ...)
{
    va_list arguments;
    void *argument;

    va_start(arguments, command);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    if ((command == F_OFD_SETLK || command == F_OFD_GETLK) && decide(HOST_LOCK) == FAIL) {
        return -1;
    }
    return REAL(fcntl)(fd, command, argument);
}

/* The library reads and writes with bare system calls; its runtime waits with them. */
__attribute__((no_sanitize("address", "undefined"))) long syscall(long number, ...)
{
    long a[6];
    va_list arguments;
    struct iovec parts[1024];

    va_start(arguments, number);
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(arguments, long);
    }
    va_end(arguments);
    if (number == SYS_pread64 || number == SYS_preadv) {
        enum answer answer = decide(HOST_READ);

        if (answer == FAIL) {
            return -1;
        }
        if (answer == SHORT && number == SYS_pread64) {
            a[2] = (long)shortened(HOST_READ, (size_t)a[2]);
        }
        if (answer == SHORT && number == SYS_preadv) {
            struct iovec *iov;

            memcpy(&iov, &a[1], sizeof iov);
            a[2] = cut(parts, iov, (int)a[2], shortened(HOST_READ, total(iov, (int)a[2])));
            iov = parts;
            memcpy(&a[1], &iov, sizeof iov);
        }
    }
    if (number == SYS_pwrite64) {
        const void *buffer;

        memcpy(&buffer, &a[1], sizeof buffer);
        return pwrite64((int)a[0], buffer, (size_t)a[2], a[3]);
    }
    if (number == SYS_pwritev) {
        const struct iovec *iov;

        memcpy(&iov, &a[1], sizeof iov);
        return pwritev((int)a[0], iov, (int)a[2], a[3]);
    }
    if (number == SYS_copy_file_range) {
        enum answer answer = decide(HOST_COPY);

        if (answer == FAIL) {
            return -1;
        }
        if (answer == SHORT) {
            a[4] = (long)shortened(HOST_COPY, (size_t)a[4]);
        }
    }
    return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
