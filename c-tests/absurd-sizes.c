/* Sizes, counts and offsets that no disk has: an error each, no crash, nothing changed.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <limits.h>

int main(void)
{
    const char *path = test_create("disk.qcow2", MIB, NULL);
    qcow2_image *image = test_open(path, 0, NULL);
    qcow2_extent extent = {.struct_size = sizeof extent};
    char byte = 0;
    struct iovec many[1025], huge[2] = {{&byte, SIZE_MAX}, {&byte, 2}};
    static const uint64_t offsets[] = {MIB,        MIB + 1,        INT64_MAX,        (uint64_t)INT64_MAX + 1,
                                       UINT64_MAX, UINT64_MAX - 1, UINT64_MAX - 511, UINT64_MAX << 9,
                                       1ull << 56, 1ull << 62};
    static const uint64_t lengths[] = {MIB + 1, INT64_MAX, (uint64_t)INT64_MAX + 1, UINT64_MAX, UINT64_MAX - 511};

    test_fill(image, 0, MIB, 1);
    for (unsigned i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        uint64_t offset = offsets[i];

        CHECK_ERROR(qcow2_pread(image, &byte, 1, offset), EIO);
        CHECK_ERROR(qcow2_pwrite(image, &byte, 1, offset), EIO);
        CHECK_ERROR(qcow2_write_zeroes(image, offset, 1, 0), EIO);
        CHECK_ERROR(qcow2_discard(image, offset, 1), EIO);
        CHECK_ERROR(qcow2_block_status(image, offset, 1, 0, &extent), EIO);
        CHECK_ERROR(qcow2_write_zeroes(image, offset, UINT64_MAX, 0), EIO);
        CHECK_ERROR(qcow2_discard(image, offset, UINT64_MAX), EIO);
        CHECK_ERROR(qcow2_block_status(image, offset, UINT64_MAX, 0, &extent), EIO);
        CHECK(qcow2_truncate(image, offset | (1ull << 60), QCOW2_PREALLOC_OFF) < 0);
    }
    for (unsigned i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        uint64_t length = lengths[i];
        size_t bytes = length > SIZE_MAX ? SIZE_MAX : (size_t)length;

        CHECK(qcow2_pread(image, &byte, bytes, 0) < 0);
        CHECK(qcow2_pwrite(image, &byte, bytes, 0) < 0);
        CHECK_ERROR(qcow2_write_zeroes(image, 0, length, 0), EIO);
        CHECK_ERROR(qcow2_discard(image, 0, length), EIO);
    }
    CHECK_ERROR(qcow2_pread(image, &byte, SIZE_MAX, 0), EINVAL);
    CHECK_ERROR(qcow2_pwrite(image, &byte, SIZE_MAX, 0), EINVAL);
    CHECK_ERROR(qcow2_block_status(image, 0, 0, 0, &extent), EINVAL);

    for (unsigned i = 0; i < 1025; i++) {
        many[i] = (struct iovec){&byte, 1};
    }
    CHECK_ERROR(qcow2_preadv(image, many, -1, 0), EINVAL);
    CHECK_ERROR(qcow2_preadv(image, many, INT_MIN, 0), EINVAL);
    CHECK_ERROR(qcow2_preadv(image, many, INT_MAX, 0), EINVAL);
    CHECK_ERROR(qcow2_preadv(image, many, 1025, 0), EINVAL);
    CHECK_ERROR(qcow2_pwritev(image, many, -1, 0), EINVAL);
    CHECK_ERROR(qcow2_pwritev(image, many, 1025, 0), EINVAL);
    CHECK_ERROR(qcow2_pwritev2(image, many, 1025, 0, QCOW2_REQ_FUA), EINVAL);
    CHECK_ERROR(qcow2_preadv(image, huge, 2, 0), EINVAL);
    CHECK_ERROR(qcow2_pwritev(image, huge, 2, 0), EINVAL);
    CHECK_EQ(qcow2_preadv(image, many, 1024, 0), 1024);
    CHECK_EQ(byte, 1);
    CHECK_EQ(qcow2_pwritev(image, many, 1024, 0), 1024);

    /* Nothing, at the end and past it. */
    CHECK_EQ(qcow2_pread(image, &byte, 0, MIB), 0);
    CHECK_OK(qcow2_write_zeroes(image, MIB, 0, 0));
    CHECK_OK(qcow2_discard(image, MIB, 0));

    test_expect(image, 0, MIB, 1);
    test_close(image);
    test_expect_sound(path, false);

    /* Creation. */
    const char *const backing_too_long[] = {NULL, "backing_fmt=raw", NULL};
    char name[5000] = "backing_file=";
    memset(name + strlen(name), 'x', 2000);
    const char *const long_name[] = {name, backing_too_long[1], NULL};
    CHECK(qcow2_create(test_path("other"), 0x7ffffffffffffe00, NULL) < 0);
    CHECK(qcow2_create(test_path("other"), UINT64_MAX - 1, NULL) < 0);
    CHECK(qcow2_create(test_path("other"), UINT64_MAX, NULL) < 0);
    CHECK(qcow2_create(test_path("other"), MIB, long_name) < 0);
    CHECK(access(test_path("other"), F_OK) != 0);
    CHECK_OK(qcow2_create(test_path("other"), 0, NULL));
    image = test_open(test_path("other"), 0, NULL);
    CHECK_EQ(qcow2_length(image), 0);
    CHECK_ERROR(qcow2_pread(image, &byte, 1, 0), EIO);
    CHECK_OK(qcow2_flush(image));
    test_close(image);

    /* Options without an end, and one that is too long to be one. */
    const char *options[1100];
    for (unsigned i = 0; i < 1100; i++) {
        options[i] = "cache=writeback";
    }
    CHECK_ERROR(qcow2_open(path, 0, options, &image), EINVAL);
    char *text = malloc(1 << 20);
    CHECK(text != NULL);
    memset(text, 'a', 1 << 20);
    text[(1 << 20) - 1] = '\0';
    options[0] = text;
    options[1] = NULL;
    CHECK_ERROR(qcow2_open(path, 0, options, &image), EINVAL);
    CHECK_ERROR(qcow2_check_open_option(text), EINVAL);
    free(text);
    return 0;
}
