/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The names below are those that the library was linked with: where the C library has a second one for offsets of 64
   bits, that one. */
#undef _FILE_OFFSET_BITS
#undef _TIME_BITS
#define _LARGEFILE64_SOURCE
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
#define TEXT(name) #name
#define REAL(name)                                                                                                     \
    __extension__({                                                                                                    \
        static __typeof__(&(name)) real;                                                                               \
        if (real == NULL) {                                                                                            \
            void *found = dlsym(RTLD_NEXT, TEXT(name));                                                                \
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

int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
    return decide(HOST_FALLOCATE) == FAIL ? -1 : REAL(fallocate64)(fd, mode, offset, length);
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

/* Of a transfer whose buffers are the arguments 1 and 2, only the first `bytes` bytes; `parts` has the room. */
static void keep(long a[6], bool is_list, struct iovec parts[1024], size_t bytes)
{
    struct iovec *iov;

    if (!is_list) {
        a[2] = (long)bytes;
        return;
    }
    memcpy(&iov, &a[1], sizeof iov);
    a[2] = cut(parts, iov, (int)a[2], bytes);
    iov = parts;
    memcpy(&a[1], &iov, sizeof iov);
}

static size_t transfer_bytes(const long a[6], bool is_list)
{
    const struct iovec *iov;

    memcpy(&iov, &a[1], sizeof iov);
    return is_list ? total(iov, (int)a[2]) : (size_t)a[2];
}

/* The library reads and writes with bare system calls, and locks with them where the C library's fcntl has locks of its
   own; its runtime waits with them. An offset is in one argument or in two, and stays where it is. */
__attribute__((no_sanitize("address", "undefined"))) long syscall(long number, ...)
{
    const bool is_list = number == SYS_preadv || number == SYS_pwritev;
    const bool is_read = number == SYS_pread64 || number == SYS_preadv;
    const bool is_write = number == SYS_pwrite64 || number == SYS_pwritev;
    long a[6];
    va_list arguments;
    struct iovec parts[1024];

    va_start(arguments, number);
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(arguments, long);
    }
    va_end(arguments);
    if (is_read || is_write) {
        enum host_call kind = is_read ? HOST_READ : HOST_WRITE;
        enum answer answer = decide(kind);
        size_t bytes = transfer_bytes(a, is_list);

        if (answer == FAIL) {
            int why = errno;

            if (is_write && why != EINTR && host.torn && bytes >= 1024) {
                keep(a, is_list, parts, bytes / 1024 * 512);
                REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
            }
            errno = why;
            return -1;
        }
        if (answer == SHORT) {
            keep(a, is_list, parts, shortened(kind, bytes));
        }
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
#ifdef SYS_fcntl64
    if (number == SYS_fcntl64 && (a[1] == F_OFD_SETLK || a[1] == F_OFD_GETLK) && decide(HOST_LOCK) == FAIL) {
        return -1;
    }
#endif
    return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
