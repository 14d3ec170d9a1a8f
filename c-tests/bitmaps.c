/* Dirty bitmaps by the header: what each call does, and what it refuses.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#define SIZE (4 * MIB)

static qcow2_bitmap_info nth(qcow2_image *image, size_t index)
{
    qcow2_bitmap_info bitmap = {.struct_size = sizeof bitmap};

    CHECK_OK(qcow2_bitmap_list(image, index, &bitmap));
    return bitmap;
}

/* The dirty ranges of a bitmap as text: "0+65536 131072+512". */
static const char *ranges(qcow2_image *image, const char *name)
{
    static char text[1000];
    size_t used = 0;
    uint64_t at = 0, length;
    int found;

    text[0] = 0;
    while ((found = qcow2_bitmap_next_dirty(image, name, at, &at, &length)) == 1 && used < sizeof text - 50) {
        used +=
            (size_t)snprintf(text + used, sizeof text - used, "%s%" PRIu64 "+%" PRIu64, used ? " " : "", at, length);
        at += length;
    }
    CHECK_EQ(found, 0);
    return text;
}

static void tracking(void)
{
    const char *path = test_create("tracking.qcow2", SIZE, "cluster_size=65536", NULL), *other_path;
    qcow2_image *image = test_open(path, 0, NULL), *other;

    CHECK_OK(qcow2_bitmap_add(image, "a", 0, 0));
    CHECK_OK(qcow2_bitmap_add(image, "b", 4096, QCOW2_BITMAP_DISABLED));
    CHECK_EQ(nth(image, 0).granularity, 65536);
    CHECK_EQ(nth(image, 0).flags, QCOW2_BITMAP_AUTO);
    CHECK_EQ(nth(image, 1).flags, 0);
    CHECK(strcmp(nth(image, 1).name, "b") == 0);
    test_fill(image, MIB - 1, 2, 1);
    CHECK_OK(qcow2_write_zeroes(image, 2 * MIB, 1, 0));
    CHECK_OK(qcow2_discard(image, 3 * MIB, 65536));
    CHECK(strcmp(ranges(image, "a"), "983040+131072 2097152+65536 3145728+65536") == 0);
    CHECK(strcmp(ranges(image, "b"), "") == 0);
    CHECK_EQ(nth(image, 0).dirty_bytes, 4 * 65536);

    CHECK_OK(qcow2_bitmap_rotate(image, "a", "frozen"));
    test_fill(image, 0, 1, 2);
    CHECK(strcmp(ranges(image, "a"), "0+65536") == 0);
    CHECK(strcmp(ranges(image, "frozen"), "983040+131072 2097152+65536 3145728+65536") == 0);
    CHECK_OK(qcow2_bitmap_merge(image, "b", NULL, "a"));
    CHECK_OK(qcow2_bitmap_enable(image, "b"));
    test_fill(image, SIZE - 1, 1, 3);
    CHECK_OK(qcow2_bitmap_disable(image, "b"));
    test_fill(image, SIZE / 2, 1, 3);
    CHECK(strcmp(ranges(image, "b"), "0+65536 4190208+4096") == 0);
    CHECK_OK(qcow2_bitmap_clear(image, "a"));
    CHECK_OK(qcow2_bitmap_remove(image, "frozen"));
    CHECK_OK(qcow2_bitmap_sync(image));

    other_path = test_create("other.qcow2", SIZE, NULL);
    other = test_open(other_path, 0, NULL);
    CHECK_OK(qcow2_bitmap_add(other, "mine", 512, 0));
    CHECK_OK(qcow2_bitmap_merge(other, "mine", image, "b"));
    CHECK(strcmp(ranges(other, "mine"), "0+65536 4190208+4096") == 0);
    CHECK_OK(qcow2_bitmap_enable(image, "b"));
    CHECK_OK(qcow2_bitmap_copy(other, image, "b"));
    CHECK_EQ(nth(other, 1).granularity, 4096);
    CHECK_EQ(nth(other, 1).flags, QCOW2_BITMAP_AUTO);
    CHECK(strcmp(ranges(other, "b"), "0+65536 4190208+4096") == 0);
    CHECK_ERROR(qcow2_bitmap_copy(other, image, "b"), EEXIST);
    CHECK_OK(qcow2_bitmap_remove(other, "b"));
    test_close(image);
    CHECK_OK(qcow2_truncate(other, 8 * MIB, QCOW2_PREALLOC_OFF));
    test_close(other);

    other = test_open(other_path, QCOW2_OPEN_READ_ONLY, NULL);
    CHECK(strcmp(ranges(other, "mine"), "0+65536 4190208+4096") == 0);
    CHECK_ERROR(qcow2_bitmap_add(other, "x", 0, 0), EROFS);
    CHECK_ERROR(qcow2_bitmap_sync(other), EROFS);
    test_close(other);
    test_expect_sound(path, false);
    test_expect_sound(other_path, false);
}

/* What a writer that is killed leaves nobody believes, until it is recovered: then all is dirty. */
static void inconsistent(void)
{
    const char *path = test_create("killed.qcow2", SIZE, "lazy_refcounts=off", NULL);
    const char *name = test_path("left.qcow2");
    qcow2_image *image = test_open(path, 0, NULL);
    uint64_t at, length;

    CHECK_OK(qcow2_bitmap_add(image, "a", 0, 0));
    CHECK_OK(qcow2_bitmap_add(image, "b", 0, QCOW2_BITMAP_DISABLED));
    test_fill(image, 0, 1, 1);
    CHECK_OK(qcow2_flush(image));
    test_file_copy(path, name);
    test_close(image);

    image = test_open(name, 0, NULL);
    CHECK_EQ(nth(image, 0).flags, QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO);
    CHECK_EQ(nth(image, 0).dirty_bytes, SIZE);
    CHECK_EQ(nth(image, 1).flags, 0);
    CHECK_ERROR(qcow2_bitmap_clear(image, "a"), EINVAL);
    CHECK_ERROR(qcow2_bitmap_enable(image, "a"), EINVAL);
    CHECK_ERROR(qcow2_bitmap_rotate(image, "a", "c"), EINVAL);
    CHECK_ERROR(qcow2_bitmap_merge(image, "b", NULL, "a"), EINVAL);
    CHECK_ERROR(qcow2_bitmap_next_dirty(image, "a", 0, &at, &length), EINVAL);
    CHECK_ERROR(qcow2_bitmap_recover(image, "b"), EINVAL);
    CHECK_OK(qcow2_bitmap_recover(image, "a"));
    CHECK_EQ(nth(image, 0).flags, QCOW2_BITMAP_AUTO);
    CHECK(strcmp(ranges(image, "a"), "0+4194304") == 0);
    CHECK_OK(qcow2_bitmap_clear(image, "a"));
    test_fill(image, MIB, 1, 1);
    CHECK(strcmp(ranges(image, "a"), "1048576+65536") == 0);
    test_close(image);
    test_expect_sound(name, false);
}

static void refused(void)
{
    const char *path = test_create("refused.qcow2", SIZE, NULL);
    qcow2_image *image = test_open(path, 0, NULL), *small, *old, *raw;
    qcow2_bitmap_info bitmap = {.struct_size = sizeof bitmap};
    char name[1025];
    uint64_t at, length;

    memset(name, 'n', 1024);
    name[1024] = 0;
    CHECK_OK(qcow2_bitmap_add(image, "a", 0, 0));
    CHECK_ERROR(qcow2_bitmap_add(image, "a", 0, 0), EEXIST);
    CHECK_ERROR(qcow2_bitmap_add(image, "", 0, 0), EINVAL);
    CHECK_ERROR(qcow2_bitmap_add(image, name, 0, 0), EINVAL);
    CHECK_ERROR(qcow2_bitmap_add(image, "b", 0, 2), EINVAL);
    CHECK_ERROR(qcow2_bitmap_add(image, "b", 3, 0), EINVAL);
    CHECK_ERROR(qcow2_bitmap_add(image, "b", 256, 0), EINVAL);
    CHECK_ERROR(qcow2_bitmap_add(image, "b", UINT64_C(1) << 32, 0), EINVAL);
    CHECK_OK(qcow2_bitmap_add(image, name + 1, UINT64_C(1) << 31, QCOW2_BITMAP_DISABLED));
    CHECK_ERROR(qcow2_bitmap_remove(image, "b"), ENOENT);
    CHECK_ERROR(qcow2_bitmap_clear(image, "b"), ENOENT);
    CHECK_ERROR(qcow2_bitmap_enable(image, "b"), ENOENT);
    CHECK_ERROR(qcow2_bitmap_disable(image, "b"), ENOENT);
    CHECK_ERROR(qcow2_bitmap_recover(image, "b"), ENOENT);
    CHECK_ERROR(qcow2_bitmap_merge(image, "b", NULL, "a"), ENOENT);
    CHECK_ERROR(qcow2_bitmap_merge(image, "a", NULL, "b"), ENOENT);
    CHECK_ERROR(qcow2_bitmap_rotate(image, "b", "c"), ENOENT);
    CHECK_ERROR(qcow2_bitmap_rotate(image, "a", "a"), EEXIST);
    CHECK_ERROR(qcow2_bitmap_rotate(image, name + 1, "c"), EINVAL);
    CHECK_ERROR(qcow2_bitmap_next_dirty(image, "b", 0, &at, &length), ENOENT);
    CHECK_ERROR(qcow2_bitmap_list(image, 2, &bitmap), ENOENT);
    CHECK_EQ(qcow2_bitmap_next_dirty(image, "a", UINT64_MAX, &at, &length), 0);

    small = test_open(test_create("small.qcow2", MIB, NULL), 0, NULL);
    CHECK_OK(qcow2_bitmap_add(small, "a", 0, 0));
    CHECK_ERROR(qcow2_bitmap_merge(image, "a", small, "a"), EINVAL);
    CHECK_OK(qcow2_bitmap_add(small, "small", 0, 0));
    CHECK_ERROR(qcow2_bitmap_copy(image, small, "small"), EINVAL);
    CHECK_ERROR(qcow2_bitmap_copy(image, small, "b"), ENOENT);
    CHECK_ERROR(qcow2_bitmap_copy(image, image, "a"), EINVAL);
    test_close(small);
    old = test_open(test_create("old.qcow2", MIB, "compat=0.10", NULL), 0, NULL);
    CHECK_ERROR(qcow2_bitmap_add(old, "a", 0, 0), ENOTSUP);
    test_close(old);
    raw = test_open(path, QCOW2_OPEN_RAW | QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_FORCE_SHARE, NULL);
    CHECK_ERROR(qcow2_bitmap_list(raw, 0, &bitmap), ENOTSUP);
    test_close(raw);
    test_close(image);
    test_expect_sound(path, false);
}

static void null_pointers(void)
{
    qcow2_image *image = test_open(test_create("null.qcow2", SIZE, NULL), 0, NULL);
    int (*const plain[])(qcow2_image *, const char *) = {
        qcow2_bitmap_remove, qcow2_bitmap_clear, qcow2_bitmap_enable, qcow2_bitmap_disable, qcow2_bitmap_recover,
    };
    qcow2_bitmap_info bitmap = {.struct_size = sizeof bitmap};
    uint64_t out;

    CHECK_OK(qcow2_bitmap_add(image, "a", 0, 0));
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++) {
        CHECK_ERROR(plain[i](NULL, "a"), EINVAL);
        CHECK_ERROR(plain[i](image, NULL), EINVAL);
    }
    CHECK_ERROR(qcow2_bitmap_add(NULL, "b", 0, 0), EINVAL);
    CHECK_ERROR(qcow2_bitmap_add(image, NULL, 0, 0), EINVAL);
    CHECK_ERROR(qcow2_bitmap_merge(NULL, "a", NULL, "a"), EINVAL);
    CHECK_ERROR(qcow2_bitmap_merge(image, NULL, NULL, "a"), EINVAL);
    CHECK_ERROR(qcow2_bitmap_merge(image, "a", NULL, NULL), EINVAL);
    CHECK_ERROR(qcow2_bitmap_copy(NULL, image, "a"), EINVAL);
    CHECK_ERROR(qcow2_bitmap_copy(image, NULL, "a"), EINVAL);
    CHECK_ERROR(qcow2_bitmap_rotate(NULL, "a", "b"), EINVAL);
    CHECK_ERROR(qcow2_bitmap_rotate(image, NULL, "b"), EINVAL);
    CHECK_ERROR(qcow2_bitmap_rotate(image, "a", NULL), EINVAL);
    CHECK_ERROR(qcow2_bitmap_sync(NULL), EINVAL);
    CHECK_ERROR(qcow2_bitmap_list(NULL, 0, &bitmap), EINVAL);
    CHECK_ERROR(qcow2_bitmap_list(image, 0, NULL), EINVAL);
    CHECK_ERROR(qcow2_bitmap_next_dirty(NULL, "a", 0, &out, &out), EINVAL);
    CHECK_ERROR(qcow2_bitmap_next_dirty(image, NULL, 0, &out, &out), EINVAL);
    CHECK_ERROR(qcow2_bitmap_next_dirty(image, "a", 0, NULL, &out), EINVAL);
    CHECK_ERROR(qcow2_bitmap_next_dirty(image, "a", 0, &out, NULL), EINVAL);
    test_close(image);
}

/* More than can be loaded again is refused before it is there: the image opens as before. */
static void too_many_entries(void)
{
    const char *const options[] = {"cluster_size=512", NULL};
    const char *path = test_path("entries.qcow2");
    qcow2_image *image;
    int result = 0, added = 0;
    char name[16];

    CHECK_OK(qcow2_create(path, 128ull << 30, options));
    CHECK_OK(qcow2_open(path, 0, NULL, &image));
    for (; result == 0 && added < 100; added += result == 0) {
        snprintf(name, sizeof name, "b%d", added);
        result = qcow2_bitmap_add(image, name, 512, 0);
    }
    CHECK_EQ(result, -EFBIG);
    CHECK_EQ(added, 64);
    CHECK_OK(qcow2_close(image));
    CHECK_OK(qcow2_open(path, 0, NULL, &image));
    CHECK_OK(qcow2_bitmap_remove(image, "b0"));
    CHECK_OK(qcow2_close(image));
}

int main(void)
{
    if (!test_under_valgrind()) {
        too_many_entries();
    }
    tracking();
    inconsistent();
    refused();
    null_pointers();
    return 0;
}
