/* A caller's storage, and a file by descriptor, that held other data: what they held shows nowhere in an image that is
   made there, or in a copy.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <fcntl.h>

#define SIZE MIB

static int keep_length(void *opaque, uint64_t length)
{
    (void)opaque;
    (void)length;
    return 0;
}

enum kind { TRUNCATES, CANNOT_TRUNCATE, KEEPS_LENGTH, KINDS };

static qcow2_io_ops ops_of(enum kind kind)
{
    qcow2_io_ops ops = test_memory_ops;

    if (kind != TRUNCATES) {
        ops.truncate = kind == KEEPS_LENGTH ? keep_length : NULL;
    }
    return ops;
}

static void use(struct test_memory *memory, uint64_t length)
{
    unsigned char block[4096];

    memset(block, 0xa5, sizeof block);
    for (uint64_t at = 0; at < length; at += sizeof block) {
        struct iovec part = {.iov_base = block, .iov_len = sizeof block};

        CHECK_EQ(test_memory_ops.pwritev(memory, &part, 1, at), 0);
    }
}

static void expect_writes_alone(qcow2_image *image)
{
    test_expect(image, 0, SIZE, 0);
    test_fill(image, 100000, 512, 7);
    test_fill(image, 700000, 70000, 8);
    CHECK_OK(qcow2_write_zeroes(image, 710000, 20000, QCOW2_REQ_UNMAP));
    CHECK_OK(qcow2_flush(image));
    test_expect(image, 0, 100000, 0);
    test_expect(image, 100000, 512, 7);
    test_expect(image, 100512, 700000 - 100512, 0);
    test_expect(image, 700000, 10000, 8);
    test_expect(image, 710000, 20000, 0);
    test_expect(image, 730000, 40000, 8);
    test_expect(image, 770000, SIZE - 770000, 0);
}

static void images(enum kind kind, const char *const *options)
{
    struct test_memory memory = TEST_MEMORY_INIT;
    qcow2_io_ops ops = ops_of(kind);
    qcow2_image *image;

    use(&memory, 4 * MIB);
    CHECK_OK(qcow2_create_io(&ops, &memory, SIZE, options));
    CHECK_EQ(test_memory_open(&ops, &memory, 0, &image), 0);
    expect_writes_alone(image);
    CHECK_OK(qcow2_truncate(image, SIZE + MIB, QCOW2_PREALLOC_METADATA));
    test_expect(image, SIZE, MIB, 0);
    test_close(image);
    test_memory_free(&memory);
}

static void copies(enum kind kind)
{
    struct test_memory memory = TEST_MEMORY_INIT;
    qcow2_io_ops ops = ops_of(kind);
    qcow2_image *source = test_open(test_create("source.qcow2", SIZE, NULL), 0, NULL), *target;

    expect_writes_alone(source);
    use(&memory, 4 * MIB);
    CHECK_EQ(test_memory_open(&ops, &memory, QCOW2_OPEN_RAW, &target), 0);
    CHECK_OK(qcow2_convert(source, target, NULL, NULL, NULL));
    for (uint64_t at = 0; at < SIZE; at += 4096) {
        unsigned char wanted[4096], found[4096];

        CHECK_EQ(qcow2_pread(source, wanted, sizeof wanted, at), sizeof wanted);
        CHECK_EQ(qcow2_pread(target, found, sizeof found, at), sizeof found);
        CHECK_EQ(memcmp(wanted, found, sizeof found), 0);
    }
    if (kind == TRUNCATES) {
        CHECK_OK(qcow2_truncate(target, SIZE, QCOW2_PREALLOC_OFF));
    } else {
        CHECK_ERROR(qcow2_truncate(target, SIZE, QCOW2_PREALLOC_OFF), ENOTSUP);
    }
    CHECK_EQ(qcow2_length(target), kind == TRUNCATES ? (int64_t)SIZE : (int64_t)(4 * MIB));
    test_close(target);
    test_close(source);
    test_memory_free(&memory);
}

static void by_descriptor(const char *const *options)
{
    const char *path = test_path("used");
    unsigned char block[4096];
    qcow2_image *image;
    int fd;

    memset(block, 0xa5, sizeof block);
    for (uint64_t at = 0; at < 4 * MIB; at += sizeof block) {
        test_file_write(path, block, sizeof block, at);
    }
    fd = open(path, O_RDWR);
    CHECK(fd >= 0);
    CHECK_OK(qcow2_create_fd(fd, SIZE, options));
    CHECK_OK(qcow2_open_fd(fd, 0, NULL, &image));
    close(fd);
    expect_writes_alone(image);
    test_close(image);
    test_expect_sound(path, false);
}

int main(void)
{
    static const char *const lists[][3] = {
        {NULL},
        {"cluster_size=512", NULL},
        {"preallocation=metadata", NULL},
        {"preallocation=full", "cluster_size=4k", NULL},
    };

    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        for (int kind = 0; kind < KINDS; kind++) {
            images((enum kind)kind, lists[i]);
        }
        by_descriptor(lists[i]);
    }
    for (int kind = 0; kind < KINDS; kind++) {
        copies((enum kind)kind);
    }
    return 0;
}
