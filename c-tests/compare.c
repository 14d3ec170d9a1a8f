/* qcow2_compare: the same disk in other images, the first difference, and strict.  SPDX-License-Identifier: MIT OR
   Apache-2.0 */
#include "test.h"

static qcow2_compare_result compared(qcow2_image *left, qcow2_image *right, uint64_t flags)
{
    qcow2_compare_result result = {.struct_size = sizeof result, .verdict = 99};

    CHECK_OK(qcow2_compare(left, right, flags, &result, NULL, NULL));
    CHECK_EQ(result.failed_disk, 0);
    return result;
}

static void expect(qcow2_image *left, qcow2_image *right, uint64_t flags, uint32_t verdict, uint64_t offset)
{
    for (int turn = 0; turn < 2; turn++) {
        qcow2_compare_result result = turn ? compared(right, left, flags) : compared(left, right, flags);

        CHECK_EQ(result.verdict, verdict);
        CHECK_EQ(result.offset, offset);
    }
}

static void the_first_difference(void)
{
    qcow2_image *small = test_open(test_create("small.qcow2", 8 * MIB, "cluster_size=4k", NULL), 0, NULL);
    qcow2_image *large = test_open(test_create("large.qcow2", 8 * MIB, "cluster_size=2M", NULL), 0, NULL);

    expect(small, large, QCOW2_COMPARE_STRICT, QCOW2_COMPARE_SAME, 0);
    expect(small, small, QCOW2_COMPARE_STRICT, QCOW2_COMPARE_SAME, 0);
    test_fill(small, 5 * MIB, 2 * MIB, 7);
    test_fill(large, 5 * MIB, 2 * MIB, 7);
    expect(small, large, 0, QCOW2_COMPARE_SAME, 0);
    /* One has allocated what is around. */
    expect(small, large, QCOW2_COMPARE_STRICT, QCOW2_COMPARE_STATUS, 4 * MIB);
    test_fill(small, 7 * MIB - 1000, 1, 8);
    expect(small, large, 0, QCOW2_COMPARE_CONTENTS, 7 * MIB - 1024);
    test_fill(large, 0, 512, 0);
    test_fill(large, 3 * MIB + 512, 1, 1);
    expect(small, large, 0, QCOW2_COMPARE_CONTENTS, 3 * MIB + 512);
    test_close(small);
    test_close(large);
}

static void what_one_is_longer_is_zeroes(void)
{
    qcow2_image *whole = test_open(test_create("whole.qcow2", 8 * MIB, NULL), 0, NULL);
    qcow2_image *part = test_open(test_create("part.qcow2", 5 * MIB + 512, NULL), 0, NULL);

    test_fill(whole, MIB, MIB, 3);
    test_fill(part, MIB, MIB, 3);
    test_fill(whole, 5 * MIB, 2 * MIB, 0);
    expect(whole, part, 0, QCOW2_COMPARE_SAME, 0);
    expect(whole, part, QCOW2_COMPARE_STRICT, QCOW2_COMPARE_SIZES, 0);
    test_fill(whole, 6 * MIB, 1, 1);
    expect(whole, part, 0, QCOW2_COMPARE_CONTENTS, 6 * MIB);
    test_close(whole);
    test_close(part);
}

/* The base's data is damaged in a way that only reading finds: overlays of it are compared without reading it. */
static void what_both_have_from_one_place_is_not_read(void)
{
    static const unsigned char broken[64] = {0xff, 0xff, 0xff};
    qcow2_compare_result result = {.struct_size = sizeof result};
    const char *base = test_create("base.qcow2", 4 * MIB, NULL), *names[2];
    qcow2_image *image = test_open(base, 0, NULL), *overlays[2];
    qcow2_extent extent = {.struct_size = sizeof extent};
    struct iovec data;
    char *words;

    words = malloc(MIB);
    CHECK(words != NULL);
    for (size_t i = 0; i < MIB; i++) {
        words[i] = "four score and seven years"[i % 26];
    }
    data = (struct iovec){words, MIB};
    CHECK_OK(qcow2_pwritev2(image, &data, 1, MIB, QCOW2_REQ_COMPRESSED));
    test_fill(image, 2 * MIB, MIB, 9);
    CHECK_OK(qcow2_block_status(image, 2 * MIB, MIB, 0, &extent));
    test_close(image);
    for (int i = 0; i < 2; i++) {
        names[i] =
            test_create(i ? "two.qcow2" : "one.qcow2", 4 * MIB, "backing_file=base.qcow2", "backing_fmt=qcow2", NULL);
        overlays[i] = test_open(names[i], QCOW2_OPEN_ALLOW_RECORDED, NULL);
        test_fill(overlays[i], 0, 4096, 4);
    }
    expect(overlays[0], overlays[1], QCOW2_COMPARE_STRICT, QCOW2_COMPARE_SAME, 0);
    /* The streams begin behind the tables; the data of the third MiB stays as it is. */
    for (uint64_t at = 5 * 65536; at < extent.host_offset; at += sizeof broken) {
        test_file_write(base, broken, sizeof broken, at);
    }
    CHECK_EQ(qcow2_compare(overlays[0], overlays[1], 0, &result, NULL, NULL), -EIO);
    CHECK_EQ(result.failed_disk, 1);
    CHECK_EQ(result.verdict, QCOW2_COMPARE_CONTENTS);
    CHECK(result.offset >= MIB && result.offset < 2 * MIB);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(qcow2_write_zeroes(overlays[i], MIB, MIB, 0));
        test_close(overlays[i]);
    }
    free(words);
}

/* One image over two data files: the place in the image's own file says nothing. */
static void one_image_and_two_data_files(void)
{
    char create[4200], first[4200], second[4200];
    const char *image_path;
    qcow2_image *left, *right;

    snprintf(create, sizeof create, "data_file=%s", test_path("a.raw"));
    snprintf(first, sizeof first, "data-file=%s", test_path("a.raw"));
    snprintf(second, sizeof second, "data-file=%s", test_path("b.raw"));
    image_path = test_create("data.qcow2", MIB, create, NULL);
    left = test_open(image_path, 0, first, NULL);
    test_fill(left, 0, MIB, 1);
    test_close(left);
    test_file_copy(test_path("a.raw"), test_path("b.raw"));
    test_file_write(test_path("b.raw"), "2", 1, MIB / 2);
    left = test_open(image_path, QCOW2_OPEN_READ_ONLY, first, NULL);
    right = test_open(image_path, QCOW2_OPEN_READ_ONLY, second, NULL);
    expect(left, right, 0, QCOW2_COMPARE_CONTENTS, MIB / 2);
    expect(left, left, 0, QCOW2_COMPARE_SAME, 0);
    test_close(left);
    test_close(right);
}

static int stop(void *opaque, uint64_t done, uint64_t total)
{
    (void)opaque;
    (void)done;
    (void)total;
    return 1;
}

static void what_is_refused(void)
{
    qcow2_image *image = test_open(test_create("one-more.qcow2", MIB, NULL), 0, NULL);
    qcow2_compare_result result = {.struct_size = sizeof result};

    CHECK_ERROR(qcow2_compare(image, NULL, 0, &result, NULL, NULL), EINVAL);
    CHECK_ERROR(qcow2_compare(NULL, image, 0, &result, NULL, NULL), EINVAL);
    CHECK_ERROR(qcow2_compare(image, image, 0, NULL, NULL, NULL), EINVAL);
    CHECK_ERROR(qcow2_compare(image, image, 2, &result, NULL, NULL), EINVAL);
    CHECK_ERROR(qcow2_compare(image, image, 0, &result, stop, NULL), ECANCELED);
    test_close(image);
}

int main(void)
{
    the_first_difference();
    what_one_is_longer_is_zeroes();
    what_both_have_from_one_place_is_not_read();
    one_image_and_two_data_files();
    what_is_refused();
    return 0;
}
