/* Storage that fails: the caller gets the storage's errno; after a failed write of metadata or a failed sync the
   handle writes no more; what was flushed before is still there.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

/* Writes with the `nth` call on the storage failing; then the storage works again and the image must be whole. */
static bool fail_at(unsigned nth, int *kind, int number)
{
    struct test_memory memory = TEST_MEMORY_INIT;
    static const char *const options[] = {"cluster_size=4k", NULL};
    qcow2_check_result result = {.struct_size = sizeof result};
    qcow2_image *image;
    int64_t failed = 0;
    unsigned char block[4096];

    CHECK_OK(qcow2_create_io(&test_memory_ops, &memory, 4 * MIB, options));
    CHECK_OK(test_memory_open(&test_memory_ops, &memory, 0, &image));
    test_fill(image, 0, 64 * 1024, 1);
    CHECK_OK(qcow2_flush(image));

    /* `kind` is an offset into the struct, chosen by main. */
    int *failure = (int *)(void *)((char *)&memory + *kind);
    *failure = number;
    memory.fail_after = nth;
    memset(block, 2, sizeof block);
    for (unsigned i = 16; i < 64 && failed == 0; i++) {
        int64_t done = qcow2_pwrite(image, block, sizeof block, (uint64_t)i * 8192);

        if (done >= 0 && i % 8 == 0) {
            done = qcow2_flush(image);
        }
        if (done < 0) {
            failed = done;
        }
    }
    if (failed == 0) {
        failed = qcow2_close(image);
    } else {
        qcow2_close(image);
    }
    bool reached = *failure != 0 && memory.fail_after == 0;
    *failure = 0;
    memory.fail_after = 0;
    if (failed != 0) {
        CHECK_EQ(failed, -number);
    }

    CHECK_OK(test_memory_open(&test_memory_ops, &memory, 0, &image));
    test_expect(image, 0, 64 * 1024, 1);
    CHECK_OK(qcow2_check(image, 0, &result, NULL, NULL, NULL, NULL));
    CHECK_EQ(result.corruptions, 0);
    test_fill(image, 3 * MIB, 65536, 3);
    test_expect(image, 3 * MIB, 65536, 3);
    test_close(image);
    test_memory_free(&memory);
    return reached && failed != 0;
}

static void fail_everywhere(int kind, int number)
{
    unsigned limit = test_under_valgrind() ? 12 : 400, nth = 0;

    while (nth < limit && fail_at(nth, &kind, number)) {
        nth++;
    }
    CHECK(nth > 0); /* it did fail, at least once */
}

static void latched_after_a_failed_sync(void)
{
    struct test_memory memory = TEST_MEMORY_INIT;
    qcow2_image *image;
    char byte = 0;

    CHECK_OK(qcow2_create_io(&test_memory_ops, &memory, 4 * MIB, NULL));
    CHECK_OK(test_memory_open(&test_memory_ops, &memory, 0, &image));
    test_fill(image, 0, 65536, 1);
    memory.fail_sync = ENOSPC;
    CHECK_ERROR(qcow2_flush(image), ENOSPC);
    memory.fail_sync = 0;
    /* A sync that failed once and then "succeeds" has lost something: it is not believed. */
    unsigned writes = memory.writes;
    CHECK_ERROR(qcow2_flush(image), ENOTRECOVERABLE);
    CHECK_ERROR(qcow2_pwrite(image, &byte, 1, 0), ENOTRECOVERABLE);
    CHECK_ERROR(qcow2_write_zeroes(image, 0, 65536, 0), ENOTRECOVERABLE);
    CHECK_OK(qcow2_pread(image, &byte, 1, 0));
    CHECK(qcow2_close(image) < 0);
    CHECK_EQ(memory.writes, writes);
    test_memory_free(&memory);
}

static void a_failed_read_is_the_caller_s_errno_and_passes(void)
{
    struct test_memory memory = TEST_MEMORY_INIT;
    qcow2_image *image;
    char byte;

    CHECK_OK(qcow2_create_io(&test_memory_ops, &memory, 4 * MIB, NULL));
    CHECK_OK(test_memory_open(&test_memory_ops, &memory, 0, &image));
    test_fill(image, 0, 65536, 1);
    memory.fail_read = ETIMEDOUT;
    CHECK_ERROR(qcow2_pread(image, &byte, 1, 0), ETIMEDOUT);
    memory.fail_read = 0;
    test_expect(image, 0, 65536, 1);
    test_fill(image, 0, 65536, 2);
    test_close(image);
    test_memory_free(&memory);
}

static void full_storage(void)
{
    struct test_memory memory = TEST_MEMORY_INIT;
    qcow2_check_result result = {.struct_size = sizeof result};
    qcow2_image *image;
    unsigned char block[65536];
    uint64_t written = 0;

    CHECK_OK(qcow2_create_io(&test_memory_ops, &memory, 64 * MIB, NULL));
    CHECK_OK(test_memory_open(&test_memory_ops, &memory, 0, &image));
    memory.limit = memory.length + 10 * sizeof block;
    memset(block, 7, sizeof block);
    while (qcow2_pwrite(image, block, sizeof block, written) > 0) {
        written += sizeof block;
    }
    CHECK_TEXT("No space");
    CHECK(written > 0);
    /* Overwriting needs no room, and with room writing goes on. */
    test_fill(image, 0, written, 8);
    memory.limit = UINT64_MAX;
    test_fill(image, written, MIB, 9);
    CHECK_OK(qcow2_check(image, 0, &result, NULL, NULL, NULL, NULL));
    CHECK_EQ(result.corruptions, 0);
    CHECK_EQ(result.leaks, 0);
    test_close(image);
    CHECK_OK(test_memory_open(&test_memory_ops, &memory, QCOW2_OPEN_READ_ONLY, &image));
    test_expect(image, 0, written, 8);
    test_expect(image, written, MIB, 9);
    test_close(image);
    test_memory_free(&memory);
}

int main(void)
{
    fail_everywhere((int)offsetof(struct test_memory, fail_write), EIO);
    fail_everywhere((int)offsetof(struct test_memory, fail_write), ENOSPC);
    fail_everywhere((int)offsetof(struct test_memory, fail_sync), EIO);
    latched_after_a_failed_sync();
    a_failed_read_is_the_caller_s_errno_and_passes();
    full_storage();
    return 0;
}
