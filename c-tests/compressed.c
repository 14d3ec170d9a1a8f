/* Compressed writes: whole clusters, from several threads, over snapshots; what they refuse.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#define CLUSTER ((uint64_t)64 * 1024)
#define SIZE (4 * MIB + 1536)

static unsigned char text[SIZE], back[SIZE];

static void make_text(void)
{
    uint64_t state = 7;

    for (size_t i = 0; i < sizeof text; i++) { /* every fifth cluster is noise */
        text[i] = i / CLUSTER % 5 == 4 ? (unsigned char)test_random(&state)
                                       : (unsigned char)("abcdefgh"[i / 13 % 8] + i / CLUSTER);
    }
}

static int64_t write_compressed(qcow2_image *image, uint64_t offset, uint64_t bytes)
{
    struct iovec parts[2] = {{text + offset, bytes / 2}, {text + offset + bytes / 2, bytes - bytes / 2}};

    return qcow2_pwritev2(image, parts, 2, offset, QCOW2_REQ_COMPRESSED);
}

struct job {
    qcow2_image *image;
    unsigned first, step;
};

static void *write_share(void *opaque)
{
    const struct job *job = opaque;

    for (uint64_t at = job->first * CLUSTER; at < SIZE; at += job->step * CLUSTER) {
        CHECK_OK(write_compressed(job->image, at, at + CLUSTER < SIZE ? CLUSTER : SIZE - at));
    }
    return NULL;
}

static void expect_text(qcow2_image *image)
{
    memset(back, 0xee, sizeof back);
    CHECK_OK(qcow2_pread(image, back, sizeof back, 0));
    CHECK(memcmp(text, back, sizeof text) == 0);
}

static void whole(const char *threads, const char *const *options)
{
    const char *path = test_create("disk.qcow2", SIZE, options[0], options[1], NULL);
    qcow2_image *image = test_open(path, 0, threads, NULL);
    qcow2_extent extent = {.struct_size = sizeof extent};

    CHECK_EQ(write_compressed(image, 0, SIZE), SIZE);
    expect_text(image);
    CHECK_OK(qcow2_block_status(image, 0, SIZE, 0, &extent));
    CHECK(extent.flags & QCOW2_EXTENT_COMPRESSED);
    test_close(image);
    test_expect_sound(path, false);
    image = test_open(path, 0, NULL);
    expect_text(image);
    if (test_info(image).cluster_bits == 16) {
        CHECK(test_info(image).file_length < SIZE / 2);
    }
    test_fill(image, 10, 100, 3); /* part of a compressed cluster */
    memset(text + 10, 3, 100);
    expect_text(image);
    test_close(image);
    test_expect_sound(path, false);
    make_text();
}

static void from_threads(void)
{
    const char *path = test_create("threads.qcow2", SIZE, NULL);
    qcow2_image *image = test_open(path, 0, NULL);
    struct job jobs[4];
    pthread_t threads[4];

    for (unsigned i = 0; i < 4; i++) {
        jobs[i] = (struct job){image, i, 4};
        CHECK_EQ(pthread_create(&threads[i], NULL, write_share, &jobs[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    }
    expect_text(image);
    test_close(image);
    test_expect_sound(path, false);
}

static void freed_and_written_again(void)
{
    const char *path = test_create("again.qcow2", SIZE, "refcount_bits=8", NULL);
    qcow2_image *image = test_open(path, 0, NULL);

    for (int round = 0; round < 5; round++) {
        CHECK_OK(write_compressed(image, 0, SIZE));
        expect_text(image);
        CHECK_OK(qcow2_discard(image, 0, SIZE));
        test_expect(image, 0, SIZE, 0);
        if (round % 2) {
            CHECK_OK(qcow2_flush(image));
        }
    }
    CHECK_OK(write_compressed(image, 0, SIZE));
    CHECK_OK(qcow2_snapshot_create(image, "full", NULL));
    CHECK_OK(qcow2_discard(image, CLUSTER, 8 * CLUSTER));
    CHECK_OK(write_compressed(image, CLUSTER, 8 * CLUSTER));
    test_fill(image, 0, MIB, 1);
    CHECK_OK(qcow2_snapshot_apply(image, NULL, "full"));
    expect_text(image);
    test_close(image);
    test_expect_sound(path, false);
}

static void refused(void)
{
    const char *path = test_create("refused.qcow2", SIZE, NULL);
    qcow2_image *image = test_open(path, 0, NULL);
    char *raw = strdup(test_path("raw"));
    int bad[] = {0, 65};

    CHECK_ERROR(write_compressed(image, 512, CLUSTER), EINVAL);
    CHECK_ERROR(write_compressed(image, 0, 512), EINVAL);
    CHECK_TEXT("whole clusters");
    CHECK_OK(write_compressed(image, 4 * MIB, 1536)); /* the disk's last cluster */
    CHECK_OK(write_compressed(image, 0, CLUSTER));
    CHECK_ERROR(write_compressed(image, 0, CLUSTER), EIO);
    CHECK_TEXT("allocated");
    test_fill(image, CLUSTER, 512, 1);
    CHECK_ERROR(write_compressed(image, CLUSTER, CLUSTER), EIO);
    CHECK_OK(qcow2_write_zeroes(image, 2 * CLUSTER, CLUSTER, 0));
    CHECK_OK(write_compressed(image, 2 * CLUSTER, CLUSTER));
    test_close(image);
    test_expect_sound(path, false);
    for (size_t i = 0; i < 2; i++) {
        char option[32];
        const char *options[2] = {option, NULL};

        snprintf(option, sizeof option, "compress-threads=%d", bad[i]);
        CHECK_ERROR(qcow2_open(path, 0, options, &image), EINVAL);
    }
    test_file_write(raw, text, CLUSTER, 0);
    image = test_open(raw, QCOW2_OPEN_RAW, NULL);
    CHECK_ERROR(write_compressed(image, 0, CLUSTER), ENOTSUP);
    test_close(image);
    free(raw);
}

int main(void)
{
    const char *const options[][2] = {{"cluster_size=65536", "lazy_refcounts=on"},
                                      {"cluster_size=65536", "compat=0.10"},
                                      {"cluster_size=512", "refcount_bits=1"},
                                      {"cluster_size=2M", "refcount_bits=64"}};

    make_text();
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        whole(i % 2 ? "compress-threads=3" : "compress-threads=1", options[i]);
    }
    from_threads();
    freed_and_written_again();
    refused();
    return 0;
}
