/* Internal snapshots: taken, applied and deleted while guest writes, discards and resizes go on; a snapshot never
   changes.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <pthread.h>
#include <time.h>

static unsigned snapshot_count(qcow2_image *image)
{
    return test_info(image).snapshot_count;
}

static void a_life(const char *const *geometry)
{
    const char *path = test_create("disk.qcow2", 4 * MIB, geometry[0], geometry[1], NULL);
    qcow2_image *image = test_open(path, 0, NULL);
    uint32_t first, second;

    test_fill(image, 0, MIB, 1);
    CHECK_OK(qcow2_snapshot_create(image, "first", NULL));
    first = test_checksum(image);
    /* Every way to change the disk after a snapshot. */
    test_fill(image, 64 * 1024, 4096, 2);
    CHECK_OK(qcow2_write_zeroes(image, 128 * 1024, 64 * 1024, 0));
    CHECK_OK(qcow2_write_zeroes(image, 256 * 1024, 64 * 1024, QCOW2_REQ_UNMAP));
    CHECK_OK(qcow2_discard(image, 512 * 1024, 64 * 1024));
    test_fill(image, 3 * MIB, MIB, 3);
    CHECK_OK(qcow2_snapshot_create(image, "second", NULL));
    second = test_checksum(image);
    test_fill(image, 0, 4 * MIB, 4);
    CHECK_EQ(snapshot_count(image), 2);
    test_close(image);
    test_expect_sound(path, false);

    image = test_open(path, 0, NULL);
    CHECK_OK(qcow2_snapshot_apply(image, "1", "first"));
    CHECK_EQ(test_checksum(image), first);
    test_expect(image, 0, MIB, 1);
    test_expect(image, MIB, 3 * MIB, 0);
    test_fill(image, MIB / 2, MIB, 5);
    CHECK_OK(qcow2_snapshot_delete(image, NULL, "first"));
    test_expect(image, 0, MIB / 2, 1);
    CHECK_OK(qcow2_snapshot_apply(image, NULL, "second"));
    CHECK_EQ(test_checksum(image), second);
    CHECK_OK(qcow2_snapshot_delete(image, "2", NULL));
    CHECK_EQ(test_checksum(image), second);
    CHECK_EQ(snapshot_count(image), 0);
    test_fill(image, 0, 4096, 6);
    test_close(image);
    test_expect_sound(path, false);
}

static void sizes_come_back(void)
{
    const char *path = test_create("size.qcow2", MIB, "cluster_size=512", NULL);
    qcow2_image *image = test_open(path, 0, NULL);

    test_fill(image, 0, MIB, 1);
    CHECK_OK(qcow2_snapshot_create(image, "small", NULL));
    CHECK_OK(qcow2_truncate(image, 40 * MIB, QCOW2_PREALLOC_OFF));
    test_fill(image, 39 * MIB, MIB, 2);
    CHECK_OK(qcow2_snapshot_create(image, "large", NULL));
    CHECK_OK(qcow2_snapshot_apply(image, NULL, "small"));
    CHECK_EQ(qcow2_length(image), MIB);
    test_expect(image, 0, MIB, 1);
    CHECK_OK(qcow2_snapshot_apply(image, NULL, "large"));
    CHECK_EQ(qcow2_length(image), 40 * MIB);
    test_expect(image, 39 * MIB, MIB, 2);
    test_expect(image, MIB, 38 * MIB, 0);
    test_close(image);
    test_expect_sound(path, false);
}

static void what_is_told_is_kept(void)
{
    const char *path = test_create("told.qcow2", MIB, NULL);
    qcow2_image *image = test_open(path, 0, NULL);
    qcow2_snapshot_options options = {.struct_size = sizeof options,
                                      .id = "17",
                                      .date_seconds = 1700000000,
                                      .date_nanoseconds = 5,
                                      .vm_clock_nanoseconds = 1234567890123,
                                      .icount = 99};
    qcow2_snapshot_info info = {.struct_size = sizeof info};

    CHECK_OK(qcow2_snapshot_create(image, "told", &options));
    CHECK_OK(qcow2_get_snapshot(image, 0, &info));
    CHECK(strcmp(info.id, "17") == 0 && strcmp(info.name, "told") == 0);
    CHECK_EQ(info.date_seconds, 1700000000);
    CHECK_EQ(info.date_nanoseconds, 5);
    CHECK_EQ(info.vm_clock_nanoseconds, 1234567890123);
    CHECK_EQ(info.icount, 99);
    CHECK_EQ(info.disk_size, MIB);
    CHECK_ERROR(qcow2_snapshot_create(image, "again", &options), EINVAL);
    options.id = NULL;
    CHECK_OK(qcow2_snapshot_create(image, "", &options));
    CHECK_OK(qcow2_get_snapshot(image, 1, &info));
    CHECK(strcmp(info.id, "18") == 0 && strcmp(info.name, "") == 0);
    options.date_nanoseconds = 1000000000;
    CHECK_ERROR(qcow2_snapshot_create(image, "late", &options), EINVAL);
    test_close(image);
    test_expect_sound(path, false);
}

/* Options that say nothing of the time take it from the clock, as none do. */
static void a_date_is_now(void)
{
    qcow2_image *image = test_open(test_create("now.qcow2", MIB, NULL), 0, NULL);
    qcow2_snapshot_options options = QCOW2_SNAPSHOT_OPTIONS_INIT;
    qcow2_snapshot_info info = {.struct_size = sizeof info};
    uint64_t before = (uint64_t)time(NULL);

    CHECK_OK(qcow2_snapshot_create(image, "options", &options));
    CHECK_OK(qcow2_snapshot_create(image, "none", NULL));
    for (size_t i = 0; i < 2; i++) {
        CHECK_OK(qcow2_get_snapshot(image, i, &info));
        /* time() may be some milliseconds behind. */
        CHECK(info.date_seconds >= before && info.date_seconds <= (uint64_t)time(NULL) + 1);
        CHECK(info.icount == UINT64_MAX && info.vm_state_size == 0 && info.vm_clock_nanoseconds == 0);
    }
    test_close(image);
}

static void refused(void)
{
    const char *path = test_create("narrow.qcow2", MIB, "refcount_bits=1", NULL);
    qcow2_image *image = test_open(path, 0, NULL);
    uint32_t before;

    test_fill(image, 0, MIB, 1);
    before = test_checksum(image);
    CHECK_ERROR(qcow2_snapshot_create(image, "two", NULL), EINVAL);
    CHECK_TEXT("refcount");
    CHECK_ERROR(qcow2_snapshot_apply(image, NULL, "two"), ENOENT);
    CHECK_ERROR(qcow2_snapshot_delete(image, "1", NULL), ENOENT);
    CHECK_EQ(snapshot_count(image), 0);
    CHECK_EQ(test_checksum(image), before);
    test_fill(image, 0, 4096, 2); /* the handle goes on */
    test_close(image);
    test_expect_sound(path, false);

    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_ERROR(qcow2_snapshot_create(image, "no", NULL), EROFS);
    test_close(image);
}

static volatile bool done_taking;

/* Lists again and again, by this handle or, where it has none, by a new one each time. */
static void *list(void *opaque)
{
    while (!done_taking) {
        qcow2_snapshot_info info = {.struct_size = sizeof info};
        qcow2_image *image =
            opaque ? opaque
                   : test_open(test_path("listed.qcow2"),
                               QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_METADATA_ONLY | QCOW2_OPEN_FORCE_SHARE, NULL);
        int result = 0;

        for (size_t i = 0; result == 0; i++) {
            result = qcow2_get_snapshot(image, i, &info);
            CHECK(result == 0 || result == -ENOENT);
            if (result == 0) {
                CHECK(info.id[0] != '\0');
                CHECK(strncmp(info.name, "taken ", 6) == 0);
            }
        }
        if (!opaque) {
            test_close(image);
        }
    }
    return NULL;
}

static void nobody_sees_half_an_entry(void)
{
    const char *path = test_create("listed.qcow2", 4 * MIB, "cluster_size=512", NULL);
    qcow2_image *image = test_open(path, 0, "pass-discard-other=on", NULL);
    pthread_t others, same;
    char name[32];

    test_fill(image, 0, 64 * 1024, 1);
    CHECK_EQ(pthread_create(&others, NULL, list, NULL), 0);
    CHECK_EQ(pthread_create(&same, NULL, list, image), 0);
    for (int round = 0; round < 400; round++) {
        snprintf(name, sizeof name, "taken %d", round);
        CHECK_OK(qcow2_snapshot_create(image, name, NULL));
        if (round >= 3) {
            snprintf(name, sizeof name, "taken %d", round - 3);
            CHECK_OK(qcow2_snapshot_delete(image, NULL, name));
        }
    }
    done_taking = true;
    CHECK_EQ(pthread_join(others, NULL), 0);
    CHECK_EQ(pthread_join(same, NULL), 0);
    test_close(image);
    test_expect_sound(path, false);
}

int main(void)
{
    const char *const geometries[][2] = {{"cluster_size=65536", "lazy_refcounts=off"},
                                         {"cluster_size=65536", "lazy_refcounts=on"},
                                         {"cluster_size=512", "refcount_bits=2"},
                                         {"cluster_size=4096", "refcount_bits=64"},
                                         {"cluster_size=65536", "compat=0.10"}};

    for (size_t i = 0; i < sizeof geometries / sizeof *geometries; i++) {
        a_life(geometries[i]);
    }
    sizes_come_back();
    what_is_told_is_kept();
    a_date_is_now();
    refused();
    nobody_sees_half_an_entry();
    return 0;
}
