/* A handle changes between read-only and read-write and its run-time options, keeps what is not named, and stays as
   it was when that fails.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

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

/* In a sandbox: no /proc, no permission to open the file, no descriptor to spare. */
static void in_a_cell(void *opaque)
{
    const char *path = opaque;
    struct rlimit none = {0, 0};
    qcow2_image *by_name = test_open(path, 0, NULL), *image;
    int descriptors;

    test_close(by_name);
    by_name = test_open(path, 0, NULL);
    descriptors = test_info(by_name).descriptor;
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("none", "/proc", "tmpfs", 0, NULL) != 0) {
        fprintf(stderr, "skipped: hiding /proc needs root\n");
    }
    CHECK_EQ(chmod(path, 0), 0);
    if (geteuid() == 0) {
        CHECK_EQ(setuid(65534), 0);
    }
    /* valgrind has some of its own. */
    if (!test_under_valgrind() || test_emulated()) {
        CHECK_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    }
    for (unsigned round = 1; round < 5; round++) {
        CHECK_OK(qcow2_reopen(by_name, QCOW2_OPEN_READ_ONLY, NULL));
        CHECK_ERROR(qcow2_pwrite(by_name, "x", 1, 0), EROFS);
        if (!test_under_valgrind() || test_emulated()) {
            CHECK_ERROR(qcow2_open(path, 0, NULL, &image), EMFILE);
        }
        CHECK_OK(qcow2_reopen(by_name, 0, NULL));
        test_fill(by_name, 0, MIB, (int)round);
        test_expect(by_name, 0, MIB, (int)round);
    }
    CHECK_EQ(test_info(by_name).descriptor, descriptors);
    test_close(by_name);
}

/* What was opened read-only needs a new descriptor; without /proc it is looked for by its name, and must be the same. */
static void without_proc(void *opaque)
{
    const char *path = opaque;
    qcow2_image *image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);

    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("none", "/proc", "tmpfs", 0, NULL) != 0) {
        fprintf(stderr, "skipped: hiding /proc needs root\n");
        return;
    }
    CHECK_OK(qcow2_reopen(image, 0, NULL));
    test_fill(image, 0, MIB, 9);
    CHECK_OK(qcow2_close(image));
    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    test_file_copy(path, test_path("copy"));
    CHECK_EQ(rename(test_path("copy"), path), 0);
    CHECK_ERROR(qcow2_reopen(image, 0, NULL), ESTALE);
    test_expect(image, 0, MIB, 9);
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
    char *other = strdup(test_create("cell.qcow2", 4 * MIB, NULL));
    test_in_child(in_a_cell, other);
    CHECK_EQ(chmod(other, 0600), 0);
    test_expect_sound(other, false);
    test_in_child(without_proc, other);
    free(other);

    /* Version 2 has no lazy refcounts. */
    image = test_open(test_create("v2.qcow2", MIB, "compat=0.10", NULL), 0, NULL);
    CHECK_ERROR(qcow2_reopen(image, 0, lazy_on), EINVAL);
    test_fill(image, 0, MIB, 1);
    test_close(image);
    CHECK(qcow2_open(test_path("v2.qcow2"), 0, lazy_on, &image) < 0);
    return 0;
}
