/* A conversion whose bytes the host copies (copy_file_range): short and interrupted copies, hosts that cannot, and each
   call failing once.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "host-calls.h"
#include "test.h"
#include <sys/stat.h>

static const char *source_path, *target_path;
static uint32_t wanted;
static uint64_t sparse_bytes;

static void make_source(void)
{
    qcow2_image *source;

    source_path = test_create("source.qcow2", 8 * MIB, "cluster_size=4k", NULL);
    source = test_open(source_path, 0, NULL);
    for (unsigned i = 0; i < 40; i++) {
        test_fill(source, i * 200000ull, 70000 + i * 1000, (int)i + 1);
    }
    wanted = test_checksum(source);
    test_close(source);
}

/* One conversion under `host`, which is off again afterwards. */
static int converted(struct host calls)
{
    qcow2_image *source = test_open(source_path, QCOW2_OPEN_READ_ONLY, NULL), *target;
    qcow2_convert_params params = {
        .struct_size = sizeof params, .flags = QCOW2_CONVERT_TARGET_ZERO, .sparse_bytes = sparse_bytes, .workers = 1};
    int result, closed;

    target_path = test_create("target.qcow2", qcow2_length(source), NULL);
    target = test_open(target_path, 0, NULL);
    host = calls;
    host.on = true;
    result = qcow2_convert(source, target, &params, NULL, NULL);
    host.on = false;
    test_close(source);
    closed = qcow2_close(target);
    return result < 0 ? result : closed;
}

static void expect_copy(void)
{
    qcow2_image *target = test_open(target_path, QCOW2_OPEN_READ_ONLY, NULL);

    CHECK_EQ(test_checksum(target), wanted);
    test_close(target);
    test_expect_sound(target_path, false);
}

static void short_and_interrupted(void)
{
    unsigned long shortened = 0, interrupted = 0;

    for (unsigned seed = 1; seed <= 20; seed++) {
        CHECK_OK(converted((struct host){.random = seed, .short_one_in = 3, .eintr_one_in = 4, .short_unit = 1}));
        shortened += host.shortened[HOST_COPY];
        interrupted += host.interrupted[HOST_COPY];
        expect_copy();
    }
    /* One in three and one in four of the copies, of which each conversion makes a few. */
    CHECK(shortened > 20 && interrupted > 20);
}

/* The bytes go through memory then. */
static void a_host_that_cannot(void)
{
    static const int answers[] = {EXDEV, EOPNOTSUPP, ENOSYS, EPERM};

    for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++) {
        CHECK_OK(converted((struct host){.fail_kind = HOST_COPY, .fail_errno = answers[i], .fail_on = true}));
        CHECK(host.failed > 0);
        expect_copy();
    }
}

/* Of the second errno, one call in five. */
static void each_call_fails_once(void)
{
    static const int answers[] = {EIO, ENOSPC};
    unsigned copies = 0;

    for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++) {
        for (uint64_t call = 0;; call += 1 + 4 * i) {
            int result =
                converted((struct host){.fail_kind = -1, .fail_at = call, .fail_errno = answers[i], .torn = true});

            if (host.failed == 0) {
                CHECK_OK(result);
                break;
            }
            if (result == 0) {
                expect_copy();
            } else {
                test_expect_sound(target_path, true);
            }
            copies += host.failed_kind == HOST_COPY;
        }
    }
    CHECK(copies > 10);
}

/* After 64 MiB of data one page in five is looked at, until one is zero: a disk of data costs few calls, and one that
   has zeroes again keeps its holes. */
static void long_data(void)
{
    const uint64_t data = 160 * MIB, pages = 16 * MIB, page = 4096;
    const char *few_source = source_path;
    qcow2_image *source;
    struct stat target;

    sparse_bytes = page;
    source_path = test_create("long.qcow2", 176 * MIB, NULL);
    source = test_open(source_path, 0, NULL);
    test_fill(source, 0, data, 1);
    for (uint64_t at = data; at < data + pages; at += 2 * page) {
        test_fill(source, at, page, 2);
    }
    wanted = test_checksum(source);
    test_close(source);
    CHECK_OK(converted((struct host){.fail_kind = -1}));
    expect_copy();
    /* 64 MiB whole, a fifth of 96 MiB, 8 MiB of pages in 16. */
    CHECK(host.calls[HOST_READ] < 16384 + 4915 + 4096 + 1000);
    CHECK(stat(target_path, &target) == 0);
    CHECK((uint64_t)target.st_blocks * 512 < data + pages / 2 + MIB);
    source_path = few_source, sparse_bytes = 0;
}

int main(void)
{
    make_source();
    CHECK_OK(converted((struct host){.fail_kind = -1}));
    if (host.calls[HOST_COPY] == 0) {
        test_skip("the host's files are not copied so");
    }
    expect_copy();
    short_and_interrupted();
    a_host_that_cannot();
    each_call_fails_once();
    long_data();
    return 0;
}
