/* A handle changes between read-only and read-write and its run-time options, keeps what is not named, and stays as
   it was when that fails.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

static void dies(void *opaque)
{
    qcow2_image *image = test_open(opaque, 0, "lazy-refcounts=on", NULL);

    test_fill(image, 0, MIB, 7);
    CHECK_OK(qcow2_flush(image));
}

/* What a killed writer left is read as it is, and repaired when the handle is to write. */
static void a_dirty_image(void)
{
    char *path = strdup(test_create("dirty.qcow2", MIB, NULL));
    qcow2_image *image;
    uint64_t before;

    test_in_child(dies, path);
    before = test_digest(path);
    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    test_expect(image, 0, MIB, 7);
    CHECK_ERROR(qcow2_reopen(image, QCOW2_OPEN_NO_REPAIR, NULL), EUCLEAN);
    test_expect(image, 0, MIB, 7);
    CHECK_EQ(test_info(image).read_only, 1);
    CHECK(test_digest(path) == before);
    CHECK_OK(qcow2_reopen(image, 0, NULL));
    CHECK_EQ(test_info(image).open_repaired, 1);
    test_expect(image, 0, MIB, 7);
    test_fill(image, 0, 4096, 8);
    test_close(image);
    test_expect_sound(path, false);
    free(path);
}

/* Each option at the value that it has by default: those that change at run time are taken. */
static void each_option(void)
{
    qcow2_image *image = test_open(test_create("options.qcow2", MIB, NULL), 0, NULL);
    qcow2_option_info option = {.struct_size = sizeof option};
    unsigned taken = 0, refused = 0;

    for (size_t index = 0; qcow2_option_list(QCOW2_SCOPE_OPEN, index, &option) == 0; index++) {
        char text[200];
        const char *list[] = {text, NULL};

        if (option.runtime && option.default_value != NULL) {
            snprintf(text, sizeof text, "%s=%s", option.name, option.default_value);
            CHECK_OK(qcow2_reopen(image, 0, list));
            test_fill(image, 0, 4096, (int)++taken);
        } else if (!option.runtime) {
            snprintf(text, sizeof text, "%s=something", option.name);
            CHECK_ERROR(qcow2_reopen(image, 0, list), EINVAL);
            CHECK_TEXT(option.name);
            refused++;
        }
    }
    CHECK(taken > 10 && refused > 0);
    test_expect(image, 0, 4096, (int)taken);
    test_close(image);
}

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

    a_dirty_image();
    each_option();

    /* Version 2 has no lazy refcounts. */
    image = test_open(test_create("v2.qcow2", MIB, "compat=0.10", NULL), 0, NULL);
    CHECK_ERROR(qcow2_reopen(image, 0, lazy_on), EINVAL);
    test_fill(image, 0, MIB, 1);
    test_close(image);
    CHECK(qcow2_open(test_path("v2.qcow2"), 0, lazy_on, &image) < 0);
    return 0;
}
