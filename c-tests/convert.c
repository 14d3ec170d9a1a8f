/* Copies of whole disks: every pair of formats, geometries and numbers of workers shows the same bytes, holes stay
   holes, compressed clusters, backing files, a cancel, what is refused, and the signals of workers.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>

#define SIZE (9 * MIB + 1536)

static const char *source_path;
static uint32_t source_crc;

struct seen {
    pthread_t thread;
    uint64_t last;
    unsigned calls, cancel_at; /* 0: never */
};

static int look(void *opaque, uint64_t done, uint64_t total)
{
    struct seen *seen = opaque;

    CHECK(pthread_equal(seen->thread, pthread_self()));
    CHECK(done >= seen->last && done <= total);
    seen->last = done;
    seen->calls++;
    return seen->calls == seen->cancel_at;
}

/* Text, noise, written zeroes, small parts of clusters and holes. */
static void make_source(void)
{
    qcow2_image *image;
    uint64_t state = 7;
    unsigned char block[200000];

    source_path = strdup(test_create("source.qcow2", SIZE, NULL));
    image = test_open(source_path, 0, NULL);
    for (int i = 0; i < 12; i++) {
        for (size_t b = 0; b < sizeof block; b++) {
            block[b] = (unsigned char)(i % 3 ? "abcdefgh"[b / 13 % 8] + i : (int)test_random(&state));
        }
        if (i % 4 == 0) {
            memset(block + 30000, 0, 100000);
        }
        CHECK_OK(qcow2_pwrite(image, block, sizeof block, test_random(&state) % (SIZE - sizeof block)));
    }
    test_fill(image, 5 * MIB, 300000, 0);
    test_fill(image, SIZE - 700, 700, 9);
    CHECK_OK(qcow2_discard(image, 6 * MIB, MIB));
    source_crc = test_checksum(image);
    test_close(image);
}

static void expect_copy(const char *path, uint64_t flags)
{
    qcow2_image *image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED | flags, NULL);

    CHECK_EQ(test_checksum(image), source_crc);
    test_close(image);
    if (!(flags & QCOW2_OPEN_RAW)) {
        test_expect_sound(path, false);
    }
}

static int64_t copy(const char *from, uint64_t from_flags, const char *to, uint64_t to_flags,
                    qcow2_convert_params params, struct seen *seen)
{
    qcow2_image *source = test_open(from, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED | from_flags, NULL);
    qcow2_image *target = test_open(to, QCOW2_OPEN_ALLOW_RECORDED | to_flags, NULL);
    int result;

    params.struct_size = sizeof params;
    seen->thread = pthread_self();
    result = qcow2_convert(source, target, &params, look, seen);
    test_close(target);
    test_close(source);
    return result;
}

static const char *new_raw(const char *name)
{
    const char *path = test_path(name);

    unlink(path);
    test_file_write(path, "", 1, SIZE - 1);
    return path;
}

static void every_way(void)
{
    static const char *const sizes[] = {"cluster_size=512", "cluster_size=64k", "cluster_size=2M"};
    static const char *const types[] = {"compression_type=zlib", "compression_type=zstd"};
    static const uint64_t sparse[] = {0, 512, 4096, 1536, 65536};

    for (unsigned i = 0; i < 40; i++) {
        bool compressed = i % 4 == 1;
        qcow2_convert_params params = {
            .flags = QCOW2_CONVERT_TARGET_ZERO | (compressed ? QCOW2_CONVERT_COMPRESSED : 0) |
                     (i % 3 == 2 ? QCOW2_CONVERT_ANY_ORDER : 0) | (i % 5 == 0 && i % 2 ? QCOW2_CONVERT_ALLOCATE : 0),
            .sparse_bytes = sparse[i % 5],
            .workers = 1 + i % 4,
        };
        const char *path = test_create("target.qcow2", SIZE + i % 2 * MIB, sizes[i % 3], types[i / 3 % 2], NULL);
        struct seen seen = {0};
        qcow2_image *image;
        qcow2_extent extent = {.struct_size = sizeof extent};

        CHECK_OK(copy(source_path, 0, path, 0, params, &seen));
        CHECK(seen.calls >= (params.workers == 1 ? 10 : 2));
        CHECK_EQ(seen.last, SIZE);
        if (i % 2 == 0) {
            expect_copy(path, 0);
        }
        if (params.flags & QCOW2_CONVERT_ALLOCATE || compressed) {
            continue;
        }
        image = test_open(path, 0, NULL);
        CHECK_OK(qcow2_block_status(image, 6 * MIB + 131072, 65536, 0, &extent));
        CHECK(sizes[i % 3] == sizes[2] || !(extent.flags & QCOW2_EXTENT_DATA)); /* the discarded part */
        test_close(image);
    }
}

/* A target that holds something else, and raw files on either side. */
static void over_old_data(void)
{
    qcow2_convert_params params = {.sparse_bytes = 4096, .workers = 2};
    struct seen seen = {0};
    char *raw = strdup(new_raw("disk.raw"));
    const char *path = test_create("old.qcow2", SIZE, NULL);
    qcow2_image *image = test_open(path, 0, NULL);

    test_fill(image, 0, SIZE, 0x77);
    test_close(image);
    CHECK_OK(copy(source_path, 0, path, 0, params, &seen));
    expect_copy(path, 0);
    image = test_open(raw, QCOW2_OPEN_RAW, NULL);
    test_fill(image, 0, SIZE, 0x77);
    test_close(image);
    for (int i = 0; i < 2; i++) { /* with and without looking at the data */
        seen = (struct seen){0};
        CHECK_OK(copy(source_path, 0, raw, QCOW2_OPEN_RAW, params, &seen));
        expect_copy(raw, QCOW2_OPEN_RAW);
        seen = (struct seen){0};
        path = test_create("back.qcow2", SIZE, "cluster_size=4k", NULL);
        CHECK_OK(copy(raw, QCOW2_OPEN_RAW, path, 0, params, &seen));
        expect_copy(path, 0);
        params.sparse_bytes = 0;
    }
    free(raw);
}

/* What the overlay holds, its zeroes over data below among it, goes into another overlay of the same base. */
static void over_a_backing_file(void)
{
    char *base = strdup(test_create("base.qcow2", SIZE, NULL)), *over, options[600];
    qcow2_image *image = test_open(base, 0, NULL);
    uint32_t crc;

    test_fill(image, 0, 4 * MIB, 5);
    test_close(image);
    snprintf(options, sizeof options, "backing_file=%s", base);
    over = strdup(test_create("over.qcow2", SIZE, options, "backing_fmt=qcow2", NULL));
    image = test_open(over, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    test_fill(image, MIB, 300000, 6);
    CHECK_OK(qcow2_write_zeroes(image, 2 * MIB, 500000, 0));
    test_fill(image, SIZE - 4096, 4096, 7);
    crc = test_checksum(image);
    test_close(image);
    for (unsigned i = 0; i < 8; i++) {
        qcow2_convert_params params = {
            .flags = QCOW2_CONVERT_TOP_ONLY | (i & 1 ? QCOW2_CONVERT_COMPRESSED : 0),
            .sparse_bytes = 4096,
            .workers = 1 + (i & 2),
        };
        struct seen seen = {0};
        const char *path = test_create("copy.qcow2", SIZE, options, "backing_fmt=qcow2",
                                       i & 4 ? "cluster_size=512" : "cluster_size=128k", NULL);
        qcow2_extent extent = {.struct_size = sizeof extent};

        CHECK_OK(copy(over, 0, path, 0, params, &seen));
        image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
        CHECK_EQ(test_checksum(image), crc);
        CHECK_OK(qcow2_block_status(image, 0, 65536, 0, &extent));
        CHECK_EQ(extent.depth, 1);
        test_close(image);
        test_expect_sound(path, false);
    }
    free(base);
    free(over);
}

static void cancelled(void)
{
    for (unsigned workers = 1; workers <= 4; workers += 3) {
        const char *path = test_create("cancelled.qcow2", SIZE, NULL);
        qcow2_convert_params params = {.sparse_bytes = 4096, .workers = workers};
        struct seen seen = {.cancel_at = workers == 1 ? 2 : 1}; /* the others may be through after the first */

        CHECK_ERROR(copy(source_path, 0, path, 0, params, &seen), ECANCELED);
        CHECK_EQ(seen.calls, seen.cancel_at);
        test_expect_sound(path, false);
    }
}

static void refused(void)
{
    const char *short_path = test_create("short.qcow2", SIZE - 512, NULL), *raw;
    qcow2_convert_params good = {.struct_size = sizeof good, .sparse_bytes = 4096, .workers = 1}, bad;
    qcow2_image *source = test_open(source_path, QCOW2_OPEN_READ_ONLY, NULL);
    qcow2_image *target = test_open(short_path, 0, NULL);

    CHECK_ERROR(qcow2_convert(source, target, &good, NULL, NULL), EINVAL);
    CHECK_TEXT("smaller");
    test_close(target);
    CHECK_ERROR(qcow2_convert(target = source, source, &good, NULL, NULL), EINVAL);
    CHECK_TEXT("the same");
    target = test_open(test_create("fine.qcow2", SIZE, NULL), 0, NULL);
    CHECK_ERROR(qcow2_convert(target, source, &good, NULL, NULL), EROFS);
    for (unsigned i = 0; i < 64; i++) {
        bad = good;
        bad.flags = UINT64_C(1) << i;
        if (i > 5) {
            CHECK_ERROR(qcow2_convert(source, target, &bad, NULL, NULL), EINVAL);
        }
    }
    for (unsigned i = 0; i < 8; i++) {
        bad = good;
        switch (i) {
        case 0: bad.workers = 0; break;
        case 1: bad.workers = 65; break;
        case 2: bad.sparse_bytes = 100; break;
        case 3: bad.sparse_bytes = (16 << 20) + 512; break;
        case 4: bad.reserved = 1; break;
        case 5: bad.target_offset = 100; break;
        case 6: bad.target_offset = 512; break; /* there is no room behind it */
        default: bad.struct_size = 0; break;
        }
        CHECK_ERROR(qcow2_convert(source, target, &bad, NULL, NULL), EINVAL);
    }
    CHECK_OK(qcow2_convert(source, target, NULL, NULL, NULL));
    CHECK_EQ(test_checksum(target), source_crc);
    bad = good;
    bad.flags = QCOW2_CONVERT_COMPRESSED;
    CHECK_ERROR(qcow2_convert(source, target, &bad, NULL, NULL), EIO); /* allocated now */
    CHECK_TEXT("error while writing at byte");
    test_close(target);
    raw = new_raw("refused.raw");
    target = test_open(raw, QCOW2_OPEN_RAW, NULL);
    CHECK_ERROR(qcow2_convert(source, target, &bad, NULL, NULL), ENOTSUP);
    test_close(target);
    test_close(source);
}

/* Several disks one after another, that begin and end in the middle of clusters. */
static void one_after_another(void)
{
    static const uint64_t lengths[] = {700 * 512, 3 * MIB, 512, 1 * MIB - 1024};
    uint64_t total = 0, at = 0;
    char *parts[4];

    for (int i = 0; i < 4; i++) {
        char name[32];
        qcow2_image *image;

        snprintf(name, sizeof name, "part-%d.qcow2", i);
        parts[i] = strdup(test_create(name, lengths[i], "cluster_size=4k", NULL));
        image = test_open(parts[i], 0, NULL);
        test_fill(image, lengths[i] > MIB ? MIB + 1000 : 0, lengths[i] > MIB ? 9000 : 512, i + 1);
        test_fill(image, lengths[i] - 512, 512, i + 11);
        test_close(image);
        total += lengths[i];
    }
    for (unsigned way = 0; way < 12; way++) {
        qcow2_convert_params params = {
            .flags = (way & 1 ? QCOW2_CONVERT_COMPRESSED : 0) | (way & 2 ? QCOW2_CONVERT_TARGET_ZERO : 0),
            .sparse_bytes = way & 2 ? 4096 : 0,
            .workers = 1 + way % 3,
        };
        const char *path = test_create("whole.qcow2", total, way & 4 ? "cluster_size=512" : "cluster_size=64k", NULL);
        qcow2_image *image;

        for (int i = 0; i < 4; i++) {
            struct seen seen = {0};

            params.target_offset = i == 0 ? 0 : params.target_offset + lengths[i - 1];
            CHECK_OK(copy(parts[i], 0, path, 0, params, &seen));
        }
        image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
        at = 0;
        for (int i = 0; i < 4; i++) {
            if (lengths[i] > MIB) {
                test_expect(image, at, MIB + 1000, 0);
                test_expect(image, at + MIB + 1000, 9000, i + 1);
            } else if (lengths[i] > 512) {
                test_expect(image, at, 512, i + 1);
                test_expect(image, at + 512, lengths[i] - 1024, 0);
            }
            test_expect(image, at + lengths[i] - 512, 512, i + 11);
            at += lengths[i];
        }
        test_close(image);
        test_expect_sound(path, false);
    }
    for (int i = 0; i < 4; i++) {
        free(parts[i]);
    }
}

#define BAD_START (2 * MIB)
#define BAD_BYTES (70 * 512)
static uint64_t told[200];
static unsigned told_count;

/* Reads of guest data fail where the image keeps it for the bad part; the image is one run from its first data on. */
static uint64_t bad_host;

static int read_with_holes(void *opaque, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    uint64_t bytes = 0;

    for (int i = 0; i < iovcnt; i++) {
        bytes += iov[i].iov_len;
    }
    if (bad_host && offset < bad_host + BAD_BYTES && offset + bytes > bad_host) {
        return -EIO;
    }
    return test_memory_ops.preadv(opaque, iov, iovcnt, offset);
}

static void take_lost(void *opaque, int kind, const char *text)
{
    CHECK(opaque == &told_count);
    CHECK_EQ(kind, QCOW2_MSG_ERROR);
    CHECK(told_count < 200);
    CHECK_EQ(sscanf(text, "error while reading offset %" SCNu64 ": Input/output error", &told[told_count]), 1);
    told_count++;
}

/* Sectors that cannot be read become zeroes and are told, once each; without the flag they are an error. */
static void salvage(void)
{
    for (unsigned way = 0; way < 6; way++) {
        struct test_memory from = TEST_MEMORY_INIT;
        const char *const options[] = {"cluster_size=4k", NULL};
        const char *path = test_create("salvaged.qcow2", 4 * MIB, NULL);
        qcow2_io_ops ops = test_memory_ops;
        qcow2_image *source, *target = test_open(path, 0, NULL);
        qcow2_extent extent = {.struct_size = sizeof extent};
        qcow2_convert_params params = {
            .struct_size = sizeof params,
            .flags = way & 1 ? QCOW2_CONVERT_COMPRESSED : 0,
            .sparse_bytes = 4096,
            .workers = 1 + way / 2,
            .message = take_lost,
            .message_opaque = &told_count,
        };

        bad_host = told_count = 0;
        ops.preadv = read_with_holes;
        CHECK_OK(qcow2_create_io(&test_memory_ops, &from, 4 * MIB, options));
        CHECK_OK(test_memory_open(&ops, &from, 0, &source));
        test_fill(source, 0, 4 * MIB, 5);
        CHECK_OK(qcow2_flush(source));
        CHECK_OK(qcow2_block_status(source, BAD_START, BAD_BYTES, 0, &extent));
        CHECK(extent.flags & QCOW2_EXTENT_HOST_OFFSET && extent.length >= BAD_BYTES);
        bad_host = extent.host_offset;
        CHECK_ERROR(qcow2_convert(source, target, &params, NULL, NULL), EIO);
        CHECK_EQ(told_count, 0);
        test_close(target);
        path = test_create("salvaged.qcow2", 4 * MIB, NULL);
        target = test_open(path, 0, NULL);
        params.flags |= QCOW2_CONVERT_SALVAGE;
        CHECK_OK(qcow2_convert(source, target, &params, NULL, NULL));
        CHECK_EQ(told_count, BAD_BYTES / 512);
        for (unsigned i = 0; i < told_count; i++) {
            CHECK_EQ(told[i], BAD_START + i * 512);
        }
        test_expect(target, 0, BAD_START, 5);
        test_expect(target, BAD_START, BAD_BYTES, 0);
        test_expect(target, BAD_START + BAD_BYTES, 2 * MIB - BAD_BYTES, 5);
        bad_host = 0;
        test_close(target);
        test_close(source);
        test_memory_free(&from);
        test_expect_sound(path, false);
    }
}

/* A storage of the caller's on both sides; its errors name the place and leave a sound image. */
static void failing(void)
{
    for (unsigned i = 0; i < 40; i++) {
        struct test_memory from = TEST_MEMORY_INIT, to = TEST_MEMORY_INIT;
        qcow2_image *source, *target;
        qcow2_convert_params params = {.struct_size = sizeof params, .sparse_bytes = 4096, .workers = 1 + i % 3};
        const char *const options[] = {"cluster_size=4k", NULL};

        CHECK_OK(qcow2_create_io(&test_memory_ops, &from, SIZE, options));
        CHECK_OK(qcow2_create_io(&test_memory_ops, &to, SIZE, options));
        CHECK_OK(test_memory_open(&test_memory_ops, &from, 0, &source));
        test_fill(source, 0, MIB, 1);
        test_fill(source, 3 * MIB, MIB, 2);
        CHECK_OK(test_memory_open(&test_memory_ops, &to, 0, &target));
        if (i % 2) {
            to.fail_after = i % 8 / 2;
            to.fail_write = ENOSPC;
        } else {
            from.fail_after = i / 16;
            from.fail_read = EIO;
        }
        CHECK_ERROR(qcow2_convert(source, target, &params, NULL, NULL), i % 2 ? ENOSPC : EIO);
        CHECK_TEXT(i % 2 ? "error while writing at byte" : "error while reading");
        from.fail_read = to.fail_write = 0;
        qcow2_close(target);
        test_close(source);
        test_memory_free(&from);
        test_memory_free(&to);
    }
}

static pthread_t caller;
static atomic_uint helped;

static bool takes(int number)
{
    sigset_t held;

    CHECK_EQ(pthread_sigmask(SIG_SETMASK, NULL, &held), 0);
    return !sigismember(&held, number);
}

/* The caller's thread gives the others the time to begin. */
static int read_and_look(void *opaque, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    bool is_data = iovcnt > 0 && iov[0].iov_len > 4096;

    if (!pthread_equal(pthread_self(), caller)) {
        CHECK(!takes(SIGUSR1) && !takes(SIGALRM) && !takes(SIGTERM));
        CHECK(takes(SIGSEGV));
        helped++;
    }
    for (int i = 0; is_data && helped == 0 && i < 5000; i++) {
        usleep(1000);
    }
    return test_memory_ops.preadv(opaque, iov, iovcnt, offset);
}

/* The handlers of a program run on its own threads, and these take signals as before. */
static void signals(void)
{
    struct test_memory from = TEST_MEMORY_INIT;
    const char *const options[] = {"cluster_size=4k", NULL};
    qcow2_convert_params params = {.struct_size = sizeof params, .flags = QCOW2_CONVERT_ANY_ORDER, .workers = 4};
    qcow2_io_ops ops = test_memory_ops;
    qcow2_image *source, *target = test_open(test_create("signals.qcow2", SIZE, NULL), 0, NULL);

    caller = pthread_self();
    ops.preadv = read_and_look;
    CHECK_OK(qcow2_create_io(&test_memory_ops, &from, SIZE, options));
    CHECK_OK(test_memory_open(&test_memory_ops, &from, 0, &source));
    test_fill(source, 0, SIZE, 3);
    test_close(source);
    CHECK_OK(test_memory_open(&ops, &from, QCOW2_OPEN_READ_ONLY, &source));
    CHECK_OK(qcow2_convert(source, target, &params, NULL, NULL));
    CHECK(helped > 0);
    CHECK(takes(SIGUSR1) && takes(SIGALRM) && takes(SIGTERM));
    test_expect(target, 0, SIZE, 3);
    test_close(target);
    test_close(source);
    test_memory_free(&from);
}

int main(void)
{
    make_source();
    every_way();
    over_old_data();
    over_a_backing_file();
    cancelled();
    refused();
    failing();
    one_after_another();
    salvage();
    signals();
    return 0;
}
