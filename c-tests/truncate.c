/* A disk grows and shrinks; what is added reads as zeroes, also where data was before and over a longer backing
   file; every kind of preallocation.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

static void grow_and_shrink(const char *cluster_size, const char *lazy)
{
    const char *path = test_create("disk.qcow2", MIB, cluster_size, lazy, NULL);
    qcow2_image *image = test_open(path, 0, NULL);

    test_fill(image, 0, MIB, 1);
    CHECK_OK(qcow2_truncate(image, 40 * MIB, QCOW2_PREALLOC_OFF));
    CHECK_EQ(qcow2_length(image), 40 * MIB);
    test_expect(image, 0, MIB, 1);
    test_expect(image, MIB, 39 * MIB, 0);
    test_fill(image, 39 * MIB, MIB, 2);
    CHECK_OK(qcow2_truncate(image, MIB / 2 + 512, QCOW2_PREALLOC_OFF));
    CHECK_EQ(qcow2_length(image), MIB / 2 + 512);
    test_expect(image, 0, MIB / 2 + 512, 1);
    char byte;
    CHECK_ERROR(qcow2_pread(image, &byte, 1, MIB / 2 + 512), EIO);
    CHECK_OK(qcow2_truncate(image, 40 * MIB, QCOW2_PREALLOC_OFF));
    test_expect(image, 0, MIB / 2 + 512, 1);
    test_expect(image, MIB / 2 + 512, 40 * MIB - MIB / 2 - 512, 0);
    test_fill(image, 20 * MIB, MIB, 3);
    test_close(image);
    test_expect_sound(path, false);
    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_EQ(qcow2_length(image), 40 * MIB);
    test_expect(image, 20 * MIB, MIB, 3);
    test_expect(image, 39 * MIB, MIB, 0);
    test_close(image);
}

static void preallocated(int mode)
{
    const char *path = test_create("preallocated.qcow2", MIB, NULL);
    qcow2_image *image = test_open(path, 0, NULL);
    uint64_t length;

    test_fill(image, 0, MIB, 1);
    CHECK_OK(qcow2_truncate(image, 17 * MIB, mode));
    CHECK_EQ(qcow2_length(image), 17 * MIB);
    test_expect(image, 0, MIB, 1);
    test_expect(image, MIB, 16 * MIB, 0);
    CHECK_OK(qcow2_flush(image));
    length = test_info(image).file_length;
    test_fill(image, MIB, 16 * MIB, 2);
    if (mode != QCOW2_PREALLOC_OFF) {
        CHECK_EQ(test_info(image).file_length, length); /* the room was there */
    }
    test_expect(image, MIB, 16 * MIB, 2);
    test_close(image);
    test_expect_sound(path, false);
}

static void over_a_longer_backing_file(const char *compat)
{
    qcow2_image *image = test_open(test_create("base.qcow2", 8 * MIB, NULL), 0, NULL);

    test_fill(image, 0, 8 * MIB, 9);
    test_close(image);
    test_create("top.qcow2", 2 * MIB, compat, "backing_file=base.qcow2", "backing_fmt=qcow2", NULL);
    image = test_open(test_path("top.qcow2"), QCOW2_OPEN_ALLOW_RECORDED, NULL);
    test_expect(image, 0, 2 * MIB, 9);
    CHECK_OK(qcow2_truncate(image, 4 * MIB, QCOW2_PREALLOC_OFF));
    test_expect(image, 0, 2 * MIB, 9);
    test_expect(image, 2 * MIB, 2 * MIB, 0);
    CHECK_OK(qcow2_truncate(image, MIB, QCOW2_PREALLOC_OFF));
    CHECK_OK(qcow2_truncate(image, 16 * MIB, QCOW2_PREALLOC_OFF));
    test_expect(image, 0, MIB, 9);
    test_expect(image, MIB, 15 * MIB, 0);
    test_close(image);
    test_expect_sound(test_path("top.qcow2"), false);
}

/* Preallocation once gave the cluster that the old end cuts to the new part as a whole: what the backing file shows
   in front of the old end was gone. */
static void preallocated_over_a_backing_file(int mode)
{
    qcow2_image *image = test_open(test_create("base.qcow2", 100 * 1024, NULL), 0, NULL);

    test_fill(image, 0, 100 * 1024, 9);
    test_close(image);
    test_create("top.qcow2", 100 * 1024, "cluster_size=64k", "backing_file=base.qcow2", "backing_fmt=qcow2", NULL);
    image = test_open(test_path("top.qcow2"), QCOW2_OPEN_ALLOW_RECORDED, NULL);
    CHECK_OK(qcow2_truncate(image, 300 * 1024, mode));
    test_expect(image, 0, 100 * 1024, 9);
    test_expect(image, 100 * 1024, 200 * 1024, 0);
    test_close(image);
    test_expect_sound(test_path("top.qcow2"), false);
}

int main(void)
{
    grow_and_shrink("cluster_size=64k", "lazy_refcounts=off");
    grow_and_shrink("cluster_size=512", "lazy_refcounts=on");
    grow_and_shrink("cluster_size=2M", "lazy_refcounts=on");
    preallocated(QCOW2_PREALLOC_OFF);
    preallocated(QCOW2_PREALLOC_METADATA);
    preallocated(QCOW2_PREALLOC_FALLOC);
    preallocated(QCOW2_PREALLOC_FULL);
    over_a_longer_backing_file("compat=1.1");
    over_a_longer_backing_file("compat=0.10");
    preallocated_over_a_backing_file(QCOW2_PREALLOC_METADATA);
    preallocated_over_a_backing_file(QCOW2_PREALLOC_FALLOC);
    preallocated_over_a_backing_file(QCOW2_PREALLOC_FULL);
    return 0;
}
