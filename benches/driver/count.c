/* Counts what a process asks of its files, when it is loaded with LD_PRELOAD. The driver asks for the numbers; any
   other program has them written to descriptor 2 at its end, when BENCH_COUNT_EXIT is set.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Both names of each function are defined below, so that none may stand for the other. */
#undef _FILE_OFFSET_BITS
#undef _TIME_BITS
#include "count.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static struct {
    _Atomic unsigned long long reads, read_bytes, writes, written_bytes, syncs, questions, waits, others;
} count;

/* The C library's function of the same name. */
#define REAL(name)                                       \
    __extension__({                                      \
        static __typeof__(&(name)) real;                 \
        if (real == NULL) {                              \
            void *found = dlsym(RTLD_NEXT, #name);       \
            memcpy(&real, &found, sizeof real);          \
        }                                                \
        real;                                            \
    })

const struct counts *bench_counts(void)
{
    static struct counts copy;

    copy = (struct counts){count.reads, count.read_bytes, count.writes, count.written_bytes,
                           count.syncs, count.questions,  count.waits,  count.others};
    return &copy;
}

__attribute__((destructor)) static void tell(void)
{
    char line[300];
    int length;

    if (getenv("BENCH_COUNT_EXIT") == NULL)
        return;
    length = snprintf(line, sizeof line,
                      "{\"reads\": %llu, \"read_bytes\": %llu, \"writes\": %llu, \"written_bytes\": %llu, "
                      "\"syncs\": %llu, \"questions\": %llu, \"waits\": %llu, \"others\": %llu}\n",
                      count.reads, count.read_bytes, count.writes, count.written_bytes, count.syncs, count.questions,
                      count.waits, count.others);
    (void)!write(2, line, (size_t)length);
}

static ssize_t read_done(ssize_t result)
{
    count.reads++;
    if (result > 0)
        count.read_bytes += (unsigned long long)result;
    return result;
}

static ssize_t write_done(ssize_t result)
{
    count.writes++;
    if (result > 0)
        count.written_bytes += (unsigned long long)result;
    return result;
}

#define READ(name, buffer_type, count_type, offset_type)                          \
    ssize_t name(int fd, buffer_type buffer, count_type n, offset_type offset)    \
    {                                                                             \
        return read_done(REAL(name)(fd, buffer, n, offset));                      \
    }
#define WRITE(name, buffer_type, count_type, offset_type)                         \
    ssize_t name(int fd, buffer_type buffer, count_type n, offset_type offset)    \
    {                                                                             \
        return write_done(REAL(name)(fd, buffer, n, offset));                     \
    }
READ(pread, void *, size_t, off_t)
READ(pread64, void *, size_t, off64_t)
READ(preadv, const struct iovec *, int, off_t)
READ(preadv64, const struct iovec *, int, off64_t)
WRITE(pwrite, const void *, size_t, off_t)
WRITE(pwrite64, const void *, size_t, off64_t)
WRITE(pwritev, const struct iovec *, int, off_t)
WRITE(pwritev64, const struct iovec *, int, off64_t)

int fdatasync(int fd)
{
    count.syncs++;
    return REAL(fdatasync)(fd);
}

int fsync(int fd)
{
    count.syncs++;
    return REAL(fsync)(fd);
}

#define OTHER_LENGTH(name, type)                     \
    int name(int fd, type length)                    \
    {                                                \
        count.others++;                              \
        return REAL(name)(fd, length);               \
    }
#define OTHER_RANGE(name, type)                                 \
    int name(int fd, int mode, type offset, type length)        \
    {                                                           \
        count.others++;                                         \
        return REAL(name)(fd, mode, offset, length);            \
    }
OTHER_LENGTH(ftruncate, off_t)
OTHER_LENGTH(ftruncate64, off64_t)
OTHER_RANGE(fallocate, off_t)
OTHER_RANGE(fallocate64, off64_t)

#define SEEK(name, type)                             \
    type name(int fd, type offset, int whence)       \
    {                                                \
        count.questions++;                           \
        return REAL(name)(fd, offset, whence);       \
    }
#define STATUS(name, type)                           \
    int name(int fd, type *status)                   \
    {                                                \
        count.questions++;                           \
        return REAL(name)(fd, status);               \
    }
SEEK(lseek, off_t)
SEEK(lseek64, off64_t)
STATUS(fstat, struct stat)
STATUS(fstat64, struct stat64)

int statx(int directory, const char *path, int flags, unsigned mask, struct statx *status)
{
    count.questions++;
    return REAL(statx)(directory, path, flags, mask, status);
}

/* Calls by number: reads of the library, and what a runtime waits with. */
long syscall(long number, ...)
{
    long a[6], result;
    va_list arguments;

    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(arguments, long);
    va_end(arguments);
    result = REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    switch (number) {
    case SYS_pread64:
    case SYS_preadv:
    case SYS_preadv2:
        return read_done(result);
    case SYS_pwrite64:
    case SYS_pwritev:
    case SYS_pwritev2:
        return write_done(result);
    case SYS_fdatasync:
    case SYS_fsync:
        count.syncs++;
        return result;
    case SYS_statx:
        count.questions++;
        count.others++;
        return result;
    case SYS_futex: count.waits++; /* and the others */ __attribute__((fallthrough));
    default:
        count.others++;
        return result;
    }
}
