/* The library over a caller's storage: everything works that works on a file, functions that are optional may be
   missing, and storage without a write function is read-only.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

static void exercise(const qcow2_io_ops *ops)
{
    struct test_memory memory = TEST_MEMORY_INIT;
    qcow2_check_result result = {.struct_size = sizeof result};
    qcow2_image *image;
    uint32_t crc;

    CHECK_OK(qcow2_create_io(ops, &memory, 64 * MIB, NULL));
    CHECK_OK(test_memory_open(ops, &memory, 0, &image));
    CHECK_EQ(qcow2_length(image), 64 * MIB);
    test_fill(image, 12345, 1000000, 0x5a);
    CHECK_OK(qcow2_write_zeroes(image, 100000, 200000, QCOW2_REQ_UNMAP));
    CHECK_OK(qcow2_discard(image, 600000, 131072));
    CHECK_OK(qcow2_flush(image));
    test_expect(image, 12345, 100000 - 12345, 0x5a);
    test_expect(image, 100000, 200000, 0);
    test_expect(image, 300000, 300000, 0x5a);
    CHECK_OK(qcow2_truncate(image, 128 * MIB, QCOW2_PREALLOC_OFF));
    test_expect(image, 64 * MIB, MIB, 0);
    CHECK(test_info(image).path == NULL);
    CHECK_EQ(test_info(image).descriptor, -1);
    CHECK_OK(qcow2_check(image, 0, &result, NULL, NULL, NULL, NULL));
    CHECK_EQ(result.corruptions, 0);
    CHECK_EQ(result.leaks, 0);
    crc = test_checksum(image);
    test_close(image);

    /* The bytes are a qcow2 file like any other. */
    test_file_write(test_path("copy.qcow2"), memory.bytes, memory.length, 0);
    test_expect_sound(test_path("copy.qcow2"), false);
    image = test_open(test_path("copy.qcow2"), QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_EQ(test_checksum(image), crc);
    test_close(image);
    CHECK_EQ(unlink(test_path("copy.qcow2")), 0);

    /* Read-only by flag and by a missing function. */
    qcow2_io_ops no_write = *ops;
    unsigned writes = memory.writes;
    no_write.pwritev = NULL;
    CHECK_ERROR(test_memory_open(&no_write, &memory, 0, &image), EROFS);
    CHECK(image == NULL);
    CHECK_OK(test_memory_open(&no_write, &memory, QCOW2_OPEN_READ_ONLY, &image));
    CHECK_EQ(test_checksum(image), crc);
    CHECK_ERROR(qcow2_pwrite(image, "x", 1, 0), EROFS);
    test_close(image);
    CHECK_EQ(memory.writes, writes);
    test_memory_free(&memory);
}

int main(void)
{
    qcow2_io_ops minimal = test_memory_ops;

    exercise(&test_memory_ops);
    minimal.sync = NULL;
    minimal.truncate = NULL;
    minimal.close = NULL;
    exercise(&minimal);
    return 0;
}
