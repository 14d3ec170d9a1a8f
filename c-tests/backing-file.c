/* The backing file of an open image: another name, another file with the same disk, nothing of its own; how large
   an image gets.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

static const char *base, *other, *top;

static void make_chain(const char *const geometry)
{
    qcow2_image *image;

    base = test_create("base.qcow2", 4 * MIB, NULL);
    other = test_create("other.qcow2", 3 * MIB, NULL);
    top = test_create("top.qcow2", 4 * MIB, geometry, "backing_file=base.qcow2", "backing_fmt=qcow2", NULL);
    image = test_open(base, 0, NULL);
    test_fill(image, 0, 2 * MIB, 1);
    test_close(image);
    image = test_open(other, 0, NULL);
    test_fill(image, MIB, 2 * MIB, 2);
    test_close(image);
    image = test_open(top, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    test_fill(image, 100000, 50000, 3);
    CHECK_OK(qcow2_write_zeroes(image, 3 * MIB / 2, 64 * 1024, 0));
    test_close(image);
}

static void expect_name(const char *path, const char *name, const char *format)
{
    qcow2_image *image = test_open(path, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_METADATA_ONLY | QCOW2_OPEN_NO_LOCK, NULL);
    qcow2_info info = test_info(image);

    CHECK((name == NULL) == (info.backing_file == NULL));
    CHECK(!name || strcmp(name, info.backing_file) == 0);
    CHECK((format == NULL) == (info.backing_format == NULL));
    CHECK(!format || strcmp(format, info.backing_format) == 0);
    test_close(image);
}

static int count_calls(void *opaque, uint64_t done, uint64_t total)
{
    CHECK(done <= total);
    ++*(unsigned *)opaque;
    return 0;
}

static int stop(void *opaque, uint64_t done, uint64_t total)
{
    (void)opaque;
    return done > total / 4;
}

static void a_safe_rebase_keeps_the_disk(const char *geometry, uint64_t flags)
{
    qcow2_image *image, *below;
    unsigned calls = 0;
    uint32_t before;
    uint64_t digest;

    make_chain(geometry);
    digest = test_digest(base);
    image = test_open(top, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    below = test_open(other, QCOW2_OPEN_READ_ONLY, NULL);
    before = test_checksum(image);

    /* Stopped: the old name, the same disk. */
    CHECK_ERROR(qcow2_rebase(image, below, "other.qcow2", "qcow2", flags, stop, NULL), ECANCELED);
    CHECK_EQ(test_checksum(image), before);
    CHECK_OK(qcow2_rebase(image, below, "other.qcow2", "qcow2", flags, count_calls, &calls));
    CHECK(calls > 1);
    CHECK_EQ(test_checksum(image), before);
    test_fill(image, 4 * MIB - 4096, 4096, 0);
    /* What would leave a hole waits until the new chain is open. */
    CHECK_ERROR(qcow2_write_zeroes(image, 0, 64 * 1024, 0), EINVAL);
    CHECK_TEXT("open the image anew");
    CHECK_ERROR(qcow2_discard(image, 0, 64 * 1024), EINVAL);
    CHECK_ERROR(qcow2_truncate(image, 8 * MIB, QCOW2_PREALLOC_OFF), EINVAL);
    test_close(below);
    test_close(image);
    expect_name(top, "other.qcow2", "qcow2");
    CHECK_EQ(test_digest(base), digest);
    image = test_open(top, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    CHECK_EQ(test_checksum(image), before);
    /* And into no backing file at all. */
    CHECK_OK(qcow2_rebase(image, NULL, NULL, NULL, flags, NULL, NULL));
    CHECK_EQ(test_checksum(image), before);
    /* The handle has left its chain: what becomes a hole is zeroes. */
    CHECK_OK(qcow2_discard(image, 0, MIB));
    CHECK_OK(qcow2_write_zeroes(image, MIB, MIB, QCOW2_REQ_UNMAP));
    CHECK_OK(qcow2_truncate(image, 8 * MIB, QCOW2_PREALLOC_OFF));
    test_expect(image, 0, 2 * MIB, 0);
    test_expect(image, 4 * MIB, 4 * MIB, 0);
    before = test_checksum(image);
    test_close(image);
    expect_name(top, NULL, NULL);
    image = test_open(top, 0, NULL);
    CHECK_EQ(test_checksum(image), before);
    test_close(image);
    test_expect_sound(top, false);
}

#define EXTENSION_BACKING_FORMAT 0xe2792acau

/* The header extension says so to a handle that has looked at it before, too. */
static void expect_format(qcow2_image *image, const char *format)
{
    qcow2_header_extension extension = {.struct_size = sizeof extension};
    size_t index = 0;

    do {
        CHECK_OK(qcow2_get_header_extension(image, index++, &extension));
    } while (extension.type != EXTENSION_BACKING_FORMAT);
    CHECK_EQ(extension.length, strlen(format));
    CHECK(memcmp(extension.data, format, extension.length) == 0);
}

static void a_name_is_only_a_name(void)
{
    char name[1025];
    qcow2_image *image;
    uint32_t before;

    make_chain("cluster_size=4k");
    image = test_open(top, QCOW2_OPEN_NO_BACKING, NULL);
    memset(name, 'n', sizeof name);
    name[1024] = '\0';
    CHECK_ERROR(qcow2_change_backing_file(image, name, "raw"), EINVAL);
    name[1023] = '\0';
    expect_format(image, "qcow2");
    CHECK_OK(qcow2_change_backing_file(image, name, "raw"));
    expect_name(top, name, "raw");
    expect_format(image, "raw");
    CHECK_ERROR(qcow2_change_backing_file(image, "x", NULL), EINVAL);
    CHECK_TEXT("backing format must be specified");
    CHECK_ERROR(qcow2_change_backing_file(image, "x", "no-such-format"), EINVAL);
    CHECK_ERROR(qcow2_change_backing_file(image, NULL, "raw"), EINVAL);
    expect_name(top, name, "raw");
    /* What a handle without its chain shows is not the disk. */
    CHECK_ERROR(qcow2_rebase(image, NULL, NULL, NULL, 0, NULL, NULL), EINVAL);
    CHECK_OK(qcow2_change_backing_file(image, "base.qcow2", "qcow2"));
    expect_format(image, "qcow2");
    test_close(image);

    image = test_open(top, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    before = test_checksum(image);
    /* The same names again change nothing, other names nothing but the header. */
    CHECK_OK(qcow2_change_backing_file(image, "base.qcow2", "qcow2"));
    CHECK_OK(qcow2_discard(image, 3 * MIB, MIB / 2));
    CHECK_OK(qcow2_change_backing_file(image, "base.qcow2", "raw"));
    CHECK_ERROR(qcow2_discard(image, 3 * MIB, MIB / 2), EINVAL);
    CHECK(test_checksum(image) != 0);
    /* Without a backing file, what the image does not hold is zeroes, on this handle as on the next. */
    CHECK_OK(qcow2_change_backing_file(image, "", NULL));
    CHECK(test_checksum(image) != before);
    before = test_checksum(image);
    CHECK_OK(qcow2_discard(image, 3 * MIB, MIB / 2));
    test_close(image);
    image = test_open(top, 0, NULL);
    CHECK_EQ(test_checksum(image), before);
    test_expect(image, 0, 65536, 0);
    test_expect(image, 100000, 50000, 3);
    test_close(image);
    test_expect_sound(top, false);
}

static void small_headers_are_full(void)
{
    char name[500];
    const char *path = test_create("small.qcow2", MIB, "cluster_size=512", NULL);
    qcow2_image *image = test_open(path, 0, NULL);
    uint64_t digest = test_digest(path);

    memset(name, 'n', sizeof name);
    name[499] = '\0';
    CHECK_ERROR(qcow2_change_backing_file(image, name, "raw"), ENOSPC);
    CHECK_TEXT("No space left in the file header");
    CHECK_EQ(test_digest(path), digest);
    CHECK_OK(qcow2_change_backing_file(image, "short", "raw"));
    test_close(image);
    expect_name(path, "short", "raw");
}

static void refused(void)
{
    qcow2_image *image, *below, *above;

    make_chain("cluster_size=64k");
    image = test_open(top, QCOW2_OPEN_ALLOW_RECORDED | QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_ERROR(qcow2_change_backing_file(image, NULL, NULL), EROFS);
    CHECK_ERROR(qcow2_rebase(image, NULL, NULL, NULL, 0, NULL, NULL), EROFS);
    CHECK_ERROR(qcow2_make_empty(image), EROFS);
    test_close(image);

    image = test_open(top, QCOW2_OPEN_ALLOW_RECORDED | QCOW2_OPEN_NO_LOCK, NULL);
    CHECK_ERROR(qcow2_rebase(image, NULL, NULL, NULL, 8, NULL, NULL), EINVAL);
    CHECK_ERROR(qcow2_rebase(image, image, "top.qcow2", "qcow2", 0, NULL, NULL), EINVAL);
    CHECK_ERROR(qcow2_rebase(image, NULL, "base.qcow2", "qcow2", 0, NULL, NULL), EINVAL);
    below = test_open(base, QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_ERROR(qcow2_rebase(image, below, NULL, NULL, 0, NULL, NULL), EINVAL);
    CHECK_ERROR(qcow2_rebase(image, below, "base.qcow2", NULL, 0, NULL, NULL), EINVAL);
    test_close(below);
    test_create("above.qcow2", MIB, "backing_file=top.qcow2", "backing_fmt=qcow2", NULL);
    above = test_open(test_path("above.qcow2"), QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED | QCOW2_OPEN_NO_LOCK,
                      NULL);
    CHECK_ERROR(qcow2_rebase(image, above, "above.qcow2", "qcow2", 0, NULL, NULL), ELOOP);
    test_close(above);
    test_close(image);

    image = test_open(base, QCOW2_OPEN_RAW, NULL);
    CHECK_ERROR(qcow2_change_backing_file(image, NULL, NULL), ENOTSUP);
    CHECK_ERROR(qcow2_make_empty(image), ENOTSUP);
    test_close(image);
}

static void empty_shows_what_is_below(void)
{
    uint64_t length;
    qcow2_image *image;

    make_chain("cluster_size=64k");
    length = test_file_length(top);
    image = test_open(top, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    CHECK_OK(qcow2_make_empty(image));
    test_expect(image, 0, 2 * MIB, 1);
    test_expect(image, 2 * MIB, 2 * MIB, 0);
    test_fill(image, 0, 4096, 9);
    test_expect(image, 4096, 2 * MIB - 4096, 1);
    CHECK_OK(qcow2_make_empty(image));
    test_close(image);
    CHECK(test_file_length(top) < length);
    test_expect_sound(top, false);
}

static void measured_sizes(void)
{
    const char *const small_clusters[] = {"cluster_size=4k", NULL}, *const full[] = {"preallocation=full", NULL};
    const char *const wrong[] = {"cluster_size=3", NULL};
    qcow2_measure_result measured = {.struct_size = sizeof measured};
    qcow2_image *image;

    CHECK_OK(qcow2_measure(GIB, NULL, NULL, &measured));
    CHECK_EQ(measured.required_bytes, 393216);
    CHECK_EQ(measured.fully_allocated_bytes, 1074135040);
    CHECK(measured.bitmaps_bytes == UINT64_MAX);
    CHECK_OK(qcow2_measure(GIB, full, NULL, &measured));
    CHECK_EQ(measured.required_bytes, 1074135040);
    CHECK_ERROR(qcow2_measure(GIB, wrong, NULL, &measured), EINVAL);
    CHECK_ERROR(qcow2_measure((uint64_t)7 << 60, NULL, NULL, &measured), EFBIG);

    /* What is promised is what a full image takes. */
    CHECK_OK(qcow2_measure(10 * MIB, small_clusters, NULL, &measured));
    image = test_open(test_create("full.qcow2", 10 * MIB, "cluster_size=4k", NULL), 0, NULL);
    test_fill(image, 0, 10 * MIB, 1);
    test_close(image);
    CHECK_EQ(test_file_length(test_path("full.qcow2")), measured.fully_allocated_bytes);

    make_chain("cluster_size=64k");
    image = test_open(top, QCOW2_OPEN_ALLOW_RECORDED | QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_OK(qcow2_measure(0, NULL, image, &measured));
    CHECK_EQ(measured.bitmaps_bytes, 0);
    /* Header, L1, L2, two for counts, 2 MiB of data less a zero cluster. */
    CHECK_EQ(measured.required_bytes, (5 + 31) * 65536);
    CHECK_EQ(measured.fully_allocated_bytes, (5 + 64) * 65536);
    test_close(image);
}

int main(void)
{
    a_safe_rebase_keeps_the_disk("cluster_size=64k", 0);
    a_safe_rebase_keeps_the_disk("cluster_size=512", 0);
    a_safe_rebase_keeps_the_disk("compat=0.10", 0);
    a_safe_rebase_keeps_the_disk("cluster_size=4k", QCOW2_REBASE_COMPRESSED);
    a_name_is_only_a_name();
    small_headers_are_full();
    refused();
    empty_shows_what_is_below();
    measured_sizes();
    return 0;
}
