/* Random calls on an image under the shim do what they do on a raw file: results, errno, offsets, contents; with copies
   of descriptors, streams, appending, POSIX AIO. Arguments: the shim.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "../test.h"

#include <aio.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>

enum { DISK = 3 << 20, MAX_BYTES = 200000, STEPS = 2500 };

/* The same thing twice: [0] a raw file, [1] an image. */
static int fds[2], copies[2], appending[2];
static char *buffers[2];
static uint64_t seed = 1;
static int step;

static uint64_t below(uint64_t limit)
{
    return test_random(&seed) % limit;
}

static void same(const char *call, int64_t raw, int raw_errno, int64_t image, int image_errno)
{
    if (raw != image || (raw < 0 && raw_errno != image_errno)) {
        test_fail(__FILE__, __LINE__, "step %d, %s: %" PRId64 " (%s) on a raw file, %" PRId64 " (%s) on an image", step,
                  call, raw, raw < 0 ? strerror(raw_errno) : "", image, image < 0 ? strerror(image_errno) : "");
    }
}

/* `call` with `i` 0 and 1. */
#define BOTH(name, call)                                                                                               \
    do {                                                                                                               \
        int64_t results_[2];                                                                                           \
        int errnos_[2];                                                                                                \
                                                                                                                       \
        for (int i = 0; i < 2; i++) {                                                                                  \
            errno = 0;                                                                                                 \
            results_[i] = (int64_t)(call);                                                                             \
            errnos_[i] = errno;                                                                                        \
        }                                                                                                              \
        same(name, results_[0], errnos_[0], results_[1], errnos_[1]);                                                  \
    } while (0)

static void same_buffers(const char *call)
{
    if (memcmp(buffers[0], buffers[1], MAX_BYTES) != 0) {
        test_fail(__FILE__, __LINE__, "step %d, %s: other bytes than in a raw file", step, call);
    }
}

static void fill(void)
{
    uint64_t state = below(1 << 20);

    for (size_t at = 0; at < MAX_BYTES; at += 8) {
        uint64_t word = test_random(&state);

        memcpy(buffers[0] + at, &word, 8);
    }
    memcpy(buffers[1], buffers[0], MAX_BYTES);
}

static int aio_both(int i, int operation, size_t count, off_t at)
{
    struct aiocb request = {
        .aio_fildes = fds[i],
        .aio_buf = buffers[i],
        .aio_nbytes = count,
        .aio_offset = at,
        .aio_sigevent = {.sigev_notify = SIGEV_NONE},
    };
    const struct aiocb *list[] = {&request};

    if ((operation == 0   ? aio_read(&request)
         : operation == 1 ? aio_write(&request)
                          : aio_fsync(O_DSYNC, &request)) != 0) {
        return -1;
    }
    while (aio_error(&request) == EINPROGRESS) {
        aio_suspend(list, 1, NULL);
    }
    errno = aio_error(&request);
    return (int)aio_return(&request);
}

/* Three parts of a buffer. */
static const struct iovec *parts(int i, size_t count)
{
    static struct iovec iov[2][3];
    size_t one = count / 3;

    iov[i][0] = (struct iovec){buffers[i], one};
    iov[i][1] = (struct iovec){buffers[i] + one, 0};
    iov[i][2] = (struct iovec){buffers[i] + one, count - one};
    return iov[i];
}

static void one_read(size_t count, off_t at)
{
    switch (below(7)) {
    case 0: BOTH("read", read(fds[i], buffers[i], count)); break;
    case 1: BOTH("pread", pread(fds[i], buffers[i], count, at)); break;
    case 2: BOTH("readv", readv(copies[i], parts(i, count), 3)); break;
    case 3: BOTH("preadv", preadv(fds[i], parts(i, count), 3, at)); break;
    case 4: BOTH("preadv2", preadv2(fds[i], parts(i, count), 3, at % 4 == 0 ? -1 : at, 0)); break;
    case 5: BOTH("aio_read", aio_both(i, 0, count, at)); break;
    default: BOTH("read of what is for writing", read(appending[i], buffers[i], count)); break;
    }
    same_buffers("a read");
}

static void one_write(size_t count, off_t at)
{
    fill();
    switch (below(10)) {
    case 9: BOTH("pwrite at the end", pwrite(appending[i], buffers[i], count % 3000, at)); break;
    case 0: BOTH("write", write(copies[i], buffers[i], count)); break;
    case 1: BOTH("pwrite", pwrite(fds[i], buffers[i], count, at)); break;
    case 2: BOTH("writev", writev(fds[i], parts(i, count), 3)); break;
    case 3: BOTH("pwritev", pwritev(fds[i], parts(i, count), 3, at)); break;
    case 4: BOTH("pwritev2", pwritev2(fds[i], parts(i, count), 3, at, at % 8 == 0 ? RWF_DSYNC : 0)); break;
    case 5: BOTH("aio_write", aio_both(i, 1, count, at)); break;
    case 6: BOTH("write at the end", write(appending[i], buffers[i], count % 3000)); break;
    case 7: BOTH("pwrite, negative", pwrite(fds[i], buffers[i], count, -at - 1)); break;
    default: BOTH("aio_fsync", aio_both(i, 2, 0, 0)); break;
    }
}

static void one_change(size_t count, off_t at)
{
    int modes[] = {0,
                   FALLOC_FL_KEEP_SIZE,
                   FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                   FALLOC_FL_ZERO_RANGE,
                   FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                   FALLOC_FL_PUNCH_HOLE};
    int mode = modes[below(6)];

    switch (below(8)) {
    case 0: BOTH("ftruncate", ftruncate(fds[i], at)); break;
    case 1: BOTH("ftruncate to a little less", ftruncate(copies[i], at - at / 9)); break;
    case 2:
    case 3: BOTH("fallocate", fallocate(fds[i], mode, at, (off_t)count)); break;
    case 4: BOTH("posix_fallocate", posix_fallocate(fds[i], at, (off_t)count)); break;
    case 5: BOTH("posix_fadvise", posix_fadvise(fds[i], at, (off_t)count, POSIX_FADV_DONTNEED)); break;
    case 6: BOTH("fdatasync", fdatasync(fds[i])); break;
    default: BOTH("sync_file_range", sync_file_range(fds[i], at, (off_t)count, SYNC_FILE_RANGE_WRITE)); break;
    }
}

/* What SEEK_DATA and SEEK_HOLE say of a place may differ in how coarse it is, but not in what it means. */
static void look_at_holes(int fd, off_t at)
{
    off_t data = lseek(fd, at, SEEK_DATA), hole;
    char *bytes = buffers[0];
    struct stat status;
    ssize_t count;

    CHECK_EQ(fstat(fd, &status), 0);
    if (at >= status.st_size) {
        CHECK_EQ(data, -1);
        CHECK_EQ(errno, ENXIO);
        return;
    }
    hole = data < 0 ? at : lseek(fd, data, SEEK_HOLE);
    CHECK(data < 0 || (data >= at && hole > data && hole <= status.st_size));
    if (data != at) {
        count = pread(fd, bytes, (size_t)((data < 0 ? status.st_size : data) - at) % MAX_BYTES, at);
        for (ssize_t k = 0; k < count; k++) {
            CHECK_EQ(bytes[k], 0);
        }
    }
    memcpy(buffers[1], buffers[0], MAX_BYTES);
}

static off_t place(int i)
{
    return lseek(fds[i], 0, SEEK_CUR);
}

static int64_t status_of(int i, const char *path)
{
    struct stat status, by_path;

    CHECK_EQ(fstat(fds[i], &status), 0);
    CHECK_EQ(stat(path, &by_path), 0);
    CHECK_EQ(status.st_ino, by_path.st_ino);
    CHECK_EQ(status.st_dev, by_path.st_dev);
    CHECK_EQ(status.st_size, by_path.st_size);
    return status.st_size;
}

static void one_seek(off_t at)
{
    switch (below(5)) {
    case 0: BOTH("lseek", lseek(fds[i], at, SEEK_SET)); break;
    case 1: BOTH("lseek", lseek(copies[i], at - DISK / 2, SEEK_CUR)); break;
    case 2: BOTH("lseek", lseek(fds[i], at / 50 - 9000, SEEK_END)); break;
    case 3: BOTH("lseek", lseek(fds[i], at, 77)); break;
    default:
        look_at_holes(fds[1], at);
        BOTH("lseek", lseek(fds[i], at, SEEK_SET));
        break;
    }
}

static void one_stream(int i, const char *path)
{
    char line[64];
    FILE *file = fopen(path, "r+");

    CHECK(file != NULL);
    CHECK(fileno(file) >= 0);
    CHECK_EQ(fseek(file, 1000, SEEK_SET), 0);
    CHECK_EQ(fprintf(file, "a line of step %d\n", step) > 0, 1);
    CHECK_EQ(fseek(file, 1000, SEEK_SET), 0);
    CHECK(fgets(line, sizeof line, file) != NULL);
    CHECK(strncmp(line, "a line of step ", 15) == 0);
    CHECK_EQ(fread(buffers[i], 1, 5000, file) > 0, 1);
    CHECK_EQ(fclose(file), 0);
}

static int64_t send(int i, const char *to, size_t count, off_t at)
{
    int out = open(to, O_RDWR | O_CREAT | O_TRUNC, 0600);
    ssize_t sent = sendfile(out, fds[i], &at, count), kept;

    CHECK(out >= 0);
    kept = pread(out, buffers[i], MAX_BYTES, 0);
    CHECK_EQ(kept, sent);
    close(out);
    return sent + at;
}

static void one_other(size_t count, off_t at, const char *const paths[2])
{
    void *map;

    switch (below(6)) {
    case 0:
        for (int i = 0; i < 2; i++) {
            one_stream(i, paths[i]);
        }
        break;
    case 1: BOTH("fcntl F_GETFL", fcntl(appending[i], F_GETFL) & (O_ACCMODE | O_APPEND)); break;
    case 2: BOTH("st_size", status_of(i, paths[i])); break;
    case 3: BOTH("sendfile", send(i, test_path("out"), count, at)); break;
    case 4:
        for (int i = 0; i < 2; i++) {
            close(copies[i]);
            copies[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 20);
            CHECK(copies[i] >= 20);
        }
        break;
    default:
        map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);
        CHECK(map == MAP_FAILED && errno == ENODEV);
        map = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fds[1], 0);
        CHECK(map != MAP_FAILED);
        if (pread(fds[0], buffers[0], 4096, 0) == 4096) {
            CHECK_EQ(memcmp(map, buffers[0], 4096), 0);
        }
        munmap(map, 8192);
        break;
    }
    memcpy(buffers[1], buffers[0], MAX_BYTES);
}

static void compare_contents(void)
{
    for (off_t at = 0;; at += MAX_BYTES) {
        memset(buffers[0], 0, MAX_BYTES);
        memset(buffers[1], 0, MAX_BYTES);
        BOTH("pread", pread(fds[i], buffers[i], MAX_BYTES, at));
        same_buffers("a look at everything");
        if (pread(fds[0], buffers[0], MAX_BYTES, at) <= 0) {
            return;
        }
    }
}

int main(int argc, char **argv)
{
    char paths[2][4096];
    const char *const names[] = {paths[0], paths[1]};

    if (argc > 1 && getenv("LD_PRELOAD") == NULL) {
        setenv("LD_PRELOAD", argv[1], 1);
        execv("/proc/self/exe", argv);
        return 1;
    }
    seed = test_setting("QCOW2_TEST_SEED", 1);
    snprintf(paths[0], sizeof paths[0], "%s", test_path("raw"));
    snprintf(paths[1], sizeof paths[1], "%s", test_path("image.qcow2"));
    for (int i = 0; i < 2; i++) {
        buffers[i] = calloc(1, MAX_BYTES);
        fds[i] = open(paths[i], O_RDWR | O_CREAT | O_EXCL, 0640);
        copies[i] = dup(fds[i]);
        appending[i] = open(paths[i], O_WRONLY | O_APPEND);
        CHECK(buffers[i] != NULL && fds[i] >= 0 && copies[i] >= 0 && appending[i] >= 0);
    }
    for (step = 0; step < STEPS; step++) {
        size_t count = below(8) == 0 ? below(MAX_BYTES) : below(5000);
        off_t at = below(3) == 0 ? (off_t)below(DISK / 512) * 512 : (off_t)below(DISK);

        switch (below(9)) {
        case 0:
        case 1:
        case 2: one_read(count, at); break;
        case 3:
        case 4:
        case 5: one_write(count, at); break;
        case 6: one_change(count + 1, at); break;
        case 7: one_seek(at); break;
        default: one_other(count, at, names); break;
        }
        BOTH("the offset", place(i));
        if (step % 500 == 0) {
            compare_contents();
        }
    }
    compare_contents();
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(close(fds[i]) | close(copies[i]) | close(appending[i]), 0);
    }
    /* It was no raw file. */
    CHECK_EQ(test_run((const char *const[]){"env", "LD_PRELOAD=", "grep", "-q", "^QFI", paths[1], NULL}), 0);
    return 0;
}
