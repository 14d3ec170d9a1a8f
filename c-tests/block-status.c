/* A walk over block status covers the disk once, tells data from zeroes and holes and which layer has them, and the
   host offsets hold the data.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#define CLUSTER 65536u

struct expected {
    uint64_t length;
    uint32_t flags;
    int depth;
};

static void walk(qcow2_image *image, uint64_t flags, const struct expected *expected, unsigned count)
{
    uint64_t at = 0, size = (uint64_t)CHECK_OK(qcow2_length(image));

    for (unsigned i = 0; i < count; i++) {
        uint64_t left = expected[i].length;

        /* One extent may come in pieces where host offsets jump. */
        while (left > 0) {
            qcow2_extent extent = {.struct_size = sizeof extent};

            CHECK_OK(qcow2_block_status(image, at, size - at, flags, &extent));
            if (extent.length == 0 || extent.length > left) {
                test_fail(__FILE__, __LINE__,
                          "the extent at %" PRIu64 " has %" PRIu64 " bytes, expected at most %" PRIu64, at,
                          extent.length, left);
            }
            if ((extent.flags & ~(uint32_t)QCOW2_EXTENT_HOST_OFFSET) != expected[i].flags) {
                test_fail(__FILE__, __LINE__, "the extent at %" PRIu64 " has flags %#x, expected %#x", at, extent.flags,
                          expected[i].flags);
            }
            if (extent.depth != expected[i].depth) {
                test_fail(__FILE__, __LINE__, "the extent at %" PRIu64 " has depth %d, expected %d", at, extent.depth,
                          expected[i].depth);
            }
            at += extent.length;
            left -= extent.length;
        }
    }
    CHECK_EQ(at, size);
}

int main(void)
{
    enum { DATA = QCOW2_EXTENT_DATA | QCOW2_EXTENT_ALLOCATED, ZERO = QCOW2_EXTENT_ZERO | QCOW2_EXTENT_ALLOCATED };
    const char *base = test_create("base.qcow2", 16 * CLUSTER, NULL), *top;
    qcow2_image *image = test_open(base, 0, NULL);
    unsigned char block[512];

    test_fill(image, 0, 4 * CLUSTER, 1);
    test_fill(image, 8 * CLUSTER, 2 * CLUSTER, 2);
    CHECK_OK(qcow2_write_zeroes(image, CLUSTER, CLUSTER, 0));
    CHECK_OK(qcow2_write_zeroes(image, 12 * CLUSTER, CLUSTER, 0));
    CHECK_OK(qcow2_flush(image));
    static const struct expected of_base[] = {
        {CLUSTER, DATA, 0},     {CLUSTER, ZERO, 0},
        {2 * CLUSTER, DATA, 0}, {4 * CLUSTER, QCOW2_EXTENT_ZERO, 0},
        {2 * CLUSTER, DATA, 0}, {2 * CLUSTER, QCOW2_EXTENT_ZERO, 0},
        {CLUSTER, ZERO, 0},     {3 * CLUSTER, QCOW2_EXTENT_ZERO, 0},
    };
    walk(image, 0, of_base, sizeof of_base / sizeof of_base[0]);

    /* The host offset is where the bytes are. */
    qcow2_extent extent = {.struct_size = sizeof extent};
    CHECK_OK(qcow2_block_status(image, 8 * CLUSTER + 4096, CLUSTER, 0, &extent));
    CHECK(extent.flags & QCOW2_EXTENT_HOST_OFFSET);
    test_file_read(base, block, sizeof block, extent.host_offset);
    CHECK_FILLED(block, sizeof block, 2);
    /* Inside a range: not more than was asked for. */
    CHECK_OK(qcow2_block_status(image, 100, 200, 0, &extent));
    CHECK_EQ(extent.length, 200);
    CHECK_ERROR(qcow2_block_status(image, 16 * CLUSTER, 1, 0, &extent), EIO);
    CHECK_ERROR(qcow2_block_status(image, 0, 16 * CLUSTER + 1, 0, &extent), EIO);
    test_close(image);

    top = test_create("top.qcow2", 20 * CLUSTER, "backing_file=base.qcow2", "backing_fmt=qcow2", NULL);
    image = test_open(top, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    test_fill(image, 2 * CLUSTER, CLUSTER, 3);
    CHECK_OK(qcow2_write_zeroes(image, 8 * CLUSTER, CLUSTER, QCOW2_REQ_UNMAP));
    static const struct expected through[] = {
        {CLUSTER, DATA, 1},
        {CLUSTER, ZERO, 1},
        {CLUSTER, DATA, 0},
        {CLUSTER, DATA, 1},
        {4 * CLUSTER, QCOW2_EXTENT_ZERO, 1},
        {CLUSTER, ZERO, 0},
        {CLUSTER, DATA, 1},
        {2 * CLUSTER, QCOW2_EXTENT_ZERO, 1},
        {CLUSTER, ZERO, 1},
        {3 * CLUSTER, QCOW2_EXTENT_ZERO, 1},
        /* Past the end of the backing file. */
        {4 * CLUSTER, QCOW2_EXTENT_ZERO, 0},
    };
    walk(image, 0, through, sizeof through / sizeof through[0]);
    static const struct expected alone[] = {
        {2 * CLUSTER, 0, 0}, {CLUSTER, DATA, 0}, {5 * CLUSTER, 0, 0}, {CLUSTER, ZERO, 0}, {11 * CLUSTER, 0, 0},
    };
    walk(image, QCOW2_STATUS_TOP_ONLY, alone, sizeof alone / sizeof alone[0]);
    test_close(image);
    return 0;
}
