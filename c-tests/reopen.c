/* A handle changes between read-only and read-write and its run-time options, keeps what is not named, and stays as
   it was when that fails.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

int main(void)
{
    static const char *const lazy_on[] = {"lazy-refcounts=on", NULL}, *const lazy_off[] = {"lazy-refcounts=off", NULL};
    static const char *const wrong[] = {"lazy-refcounts=on", "l2-cache-entry-size=77", NULL};
    const char *path = test_create("disk.qcow2", 4 * MIB, NULL);
    qcow2_image *image = test_open(path, 0, NULL);

    CHECK_EQ(test_info(image).lazy_refcounts, 0);
    CHECK_OK(qcow2_reopen(image, 0, lazy_on));
    CHECK_EQ(test_info(image).lazy_refcounts, 1);
    CHECK_OK(qcow2_reopen(image, 0, NULL));
    CHECK_EQ(test_info(image).lazy_refcounts, 1);
    test_fill(image, 0, MIB, 1);
    CHECK_OK(qcow2_flush(image));
    CHECK_EQ(test_info(image).dirty, 1);

    /* Off again: clean at once. */
    CHECK_OK(qcow2_reopen(image, 0, lazy_off));
    CHECK_EQ(test_info(image).lazy_refcounts, 0);
    CHECK_EQ(test_info(image).dirty, 0);
    test_fill(image, MIB, MIB, 2);

    CHECK_ERROR(qcow2_reopen(image, 0, wrong), EINVAL);
    CHECK_EQ(test_info(image).lazy_refcounts, 0);

    CHECK_OK(qcow2_reopen(image, QCOW2_OPEN_READ_ONLY, NULL));
    CHECK_EQ(test_info(image).read_only, 1);
    CHECK_ERROR(qcow2_pwrite(image, "x", 1, 0), EROFS);
    test_expect(image, 0, MIB, 1);
    test_expect(image, MIB, MIB, 2);
    CHECK_OK(qcow2_reopen(image, 0, lazy_on));
    CHECK_EQ(test_info(image).read_only, 0);
    test_fill(image, 2 * MIB, MIB, 3);
    CHECK_EQ(test_info(image).dirty, 1);
    /* Read-only leaves it clean. */
    CHECK_OK(qcow2_reopen(image, QCOW2_OPEN_READ_ONLY, NULL));
    CHECK_EQ(test_info(image).dirty, 0);
    test_expect_sound(path, false);
    test_close(image);

    /* Version 2 has no lazy refcounts. */
    image = test_open(test_create("v2.qcow2", MIB, "compat=0.10", NULL), 0, NULL);
    CHECK_ERROR(qcow2_reopen(image, 0, lazy_on), EINVAL);
    test_fill(image, 0, MIB, 1);
    test_close(image);
    CHECK(qcow2_open(test_path("v2.qcow2"), 0, lazy_on, &image) < 0);
    return 0;
}
