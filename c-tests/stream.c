/* What an image shows of its chain becomes its own, by request and by reading, and the disk shows the same all the
   time, whatever the guest writes meanwhile.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <pthread.h>

#include "test.h"

#define SIZE (6 * MIB)
#define CHAIN QCOW2_OPEN_ALLOW_RECORDED

static const char *const copying[] = {"copy-on-read=on", NULL}, *const not_copying[] = {"copy-on-read=off", NULL};

/* Bytes of a range that the image itself holds, as data or as zeroes. */
static uint64_t held(qcow2_image *image, uint64_t from, uint64_t to)
{
    qcow2_extent extent = {.struct_size = sizeof extent};
    uint64_t bytes = 0;

    for (uint64_t at = from; at < to; at += extent.length) {
        CHECK_OK(qcow2_block_status(image, at, to - at, QCOW2_STATUS_TOP_ONLY, &extent));
        if (extent.flags & QCOW2_EXTENT_ALLOCATED) {
            bytes += extent.length;
        }
    }
    return bytes;
}

/* base <- middle, which is shorter <- top, each with something of its own and with zeroes over what is below. */
static const char *make_chain(const char *one, const char *other)
{
    const char *path;
    qcow2_image *image = test_open(test_create("base.qcow2", SIZE, "cluster_size=4096", NULL), 0, NULL);

    test_fill(image, 0, 2 * MIB, 1);
    test_fill(image, 5 * MIB, MIB, 2);
    test_close(image);
    test_create("middle.qcow2", 4 * MIB + 512, "backing_file=base.qcow2", "backing_fmt=qcow2", NULL);
    image = test_open(test_path("middle.qcow2"), CHAIN, NULL);
    test_fill(image, MIB - 1000, MIB + 2000, 3);
    CHECK_OK(qcow2_write_zeroes(image, 256 * 1024, 128 * 1024, 0));
    test_fill(image, 4 * MIB, 512, 4);
    test_close(image);
    path = test_create("top.qcow2", SIZE, "backing_file=middle.qcow2", "backing_fmt=qcow2", one, other, NULL);
    image = test_open(path, CHAIN, NULL);
    test_fill(image, MIB + 12345, 100000, 5);
    CHECK_OK(qcow2_write_zeroes(image, 64 * 1024, 64 * 1024, 0));
    test_close(image);
    return path;
}

struct told {
    unsigned calls;
    uint64_t done, total;
};

static int count(void *opaque, uint64_t done, uint64_t total)
{
    struct told *told = opaque;

    CHECK(done >= told->done);
    *told = (struct told){told->calls + 1, done, total};
    return 0;
}

static int stop(void *opaque, uint64_t done, uint64_t total)
{
    (void)total;
    return done >= *(uint64_t *)opaque;
}

static void all_of_it(const char *one, const char *other)
{
    const char *path = make_chain(one, other);
    qcow2_image *image = test_open(path, CHAIN, NULL);
    uint32_t before = test_checksum(image);
    struct told told = {0};
    uint64_t half = SIZE / 2;

    CHECK_ERROR(qcow2_stream(image, 0, SIZE, 0, 0, stop, &half), ECANCELED);
    CHECK_EQ(test_checksum(image), before);
    CHECK_OK(qcow2_stream(image, 0, SIZE, 0, 0, count, &told));
    CHECK(told.calls > 3 && told.done == SIZE && told.total == SIZE);
    CHECK_EQ(test_checksum(image), before);
    CHECK_EQ(held(image, 0, 2 * MIB), 2 * MIB - 128 * 1024); /* zeroes may stay holes */
    test_close(image);
    test_expect_sound(path, false);

    image = test_open(path, CHAIN, NULL);
    CHECK_EQ(test_checksum(image), before);
    CHECK_OK(qcow2_change_backing_file(image, NULL, NULL));
    test_close(image);
    CHECK_EQ(unlink(test_path("middle.qcow2")), 0);
    image = test_open(path, 0, NULL);
    CHECK_EQ(test_checksum(image), before);
    test_close(image);
    test_expect_sound(path, false);
}

static void down_to_a_base(const char *one, const char *other)
{
    const char *path = make_chain(one, other);
    qcow2_image *image = test_open(path, CHAIN, NULL);
    uint32_t before = test_checksum(image);
    uint64_t own = held(image, 0, SIZE);

    CHECK_OK(qcow2_stream(image, 0, SIZE, 1, 0, NULL, NULL));
    CHECK_EQ(held(image, 0, SIZE), own);
    CHECK_ERROR(qcow2_stream(image, 0, SIZE, 3, 0, NULL, NULL), EINVAL);
    CHECK_OK(qcow2_stream(image, 0, SIZE, 2, 0, NULL, NULL));
    CHECK_EQ(test_checksum(image), before);
    /* What only the base has stays there; where the middle one ended, its zeroes are the image's own. */
    CHECK_EQ(held(image, 512 * 1024, 896 * 1024), 0);
    CHECK_EQ(held(image, 5 * MIB, 6 * MIB), MIB);
    CHECK_OK(qcow2_change_backing_file(image, "base.qcow2", "qcow2"));
    test_close(image);
    CHECK_EQ(unlink(test_path("middle.qcow2")), 0);
    image = test_open(path, CHAIN, NULL);
    CHECK_EQ(test_info(image).backing_depth, 1);
    CHECK_EQ(test_checksum(image), before);
    test_close(image);
    test_expect_sound(path, false);
}

static void parts_and_refusals(void)
{
    const char *path = make_chain("cluster_size=65536", "lazy_refcounts=on");
    qcow2_image *image = test_open(path, CHAIN, NULL);
    uint32_t before = test_checksum(image);
    uint64_t own = held(image, 0, SIZE);

    CHECK_OK(qcow2_stream(image, 700 * 1024 + 5, 1, 0, 0, NULL, NULL));
    CHECK_EQ(held(image, 0, SIZE), own + 64 * 1024);
    CHECK_OK(qcow2_stream(image, 700 * 1024, 0, 0, 0, NULL, NULL));
    CHECK_EQ(test_checksum(image), before);
    CHECK_ERROR(qcow2_stream(image, SIZE, 1, 0, 0, NULL, NULL), EIO);
    CHECK_ERROR(qcow2_stream(image, 0, SIZE, 0, 1, NULL, NULL), EINVAL);
    test_close(image);
    image = test_open(path, CHAIN | QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_ERROR(qcow2_stream(image, 0, SIZE, 0, 0, NULL, NULL), EROFS);
    test_close(image);
    image = test_open(path, QCOW2_OPEN_NO_BACKING, NULL);
    CHECK_ERROR(qcow2_stream(image, 0, SIZE, 0, 0, NULL, NULL), EINVAL);
    test_close(image);
    CHECK_ERROR(qcow2_open(path, CHAIN | QCOW2_OPEN_READ_ONLY, copying, &image), EINVAL);
    CHECK_TEXT("Can't use copy-on-read on read-only device");
    image = test_open(path, QCOW2_OPEN_RAW, NULL);
    CHECK_ERROR(qcow2_stream(image, 0, 1, 0, 0, NULL, NULL), ENOTSUP);
    test_close(image);
}

/* What the handle says is dirty in its one bitmap, and what the file says of it. */
static uint64_t dirty_bytes(qcow2_image *image, uint32_t *flags_of_file)
{
    qcow2_bitmap_info bitmap = {.struct_size = sizeof(bitmap)};

    CHECK_OK(qcow2_get_bitmap(image, 0, &bitmap));
    *flags_of_file = bitmap.flags;
    CHECK_OK(qcow2_bitmap_list(image, 0, &bitmap));
    CHECK_EQ(bitmap.flags, QCOW2_BITMAP_AUTO);
    return bitmap.dirty_bytes;
}

/* Bitmaps of the stock tool say what the guest has changed: nothing, by this. */
static void bitmaps_stay(void)
{
    const char *path = make_chain("cluster_size=65536", "lazy_refcounts=off");
    const char *const add[] = {"sh", "-c", "qemu-img bitmap --add -f qcow2 \"$0\" b >/dev/null 2>&1", path, NULL};
    qcow2_image *image;
    uint32_t flags;
    char byte;

    if (test_run(add) != 0) {
        return;
    }
    image = test_open(path, CHAIN, "copy-on-read=on", NULL);
    CHECK_EQ(qcow2_pread(image, &byte, 1, 0), 1);
    CHECK_OK(qcow2_stream(image, 0, SIZE, 0, 0, NULL, NULL));
    CHECK_EQ(qcow2_vmstate_write(image, "x", 1, 0), 1);
    CHECK_EQ(dirty_bytes(image, &flags), 0);
    CHECK_EQ(flags, QCOW2_BITMAP_AUTO);
    test_fill(image, 0, 1, 9);
    CHECK_EQ(dirty_bytes(image, &flags), 65536);
    CHECK_EQ(flags, QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
    test_close(image);
    test_expect_sound(path, false);
    image = test_open(path, CHAIN | QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_EQ(dirty_bytes(image, &flags), 65536);
    CHECK_EQ(flags, QCOW2_BITMAP_AUTO);
    test_close(image);
}

static void by_reading(const char *one, const char *other)
{
    const char *path = make_chain(one, other);
    qcow2_image *image = test_open(path, CHAIN, NULL);
    uint32_t before = test_checksum(image);
    uint64_t own = held(image, 0, SIZE), more;
    unsigned char *bytes = malloc(SIZE), *again = malloc(SIZE);
    struct iovec parts[2] = {{again, 1000}, {again + 1000, SIZE - 1000}};

    CHECK_EQ(qcow2_pread(image, bytes, SIZE, 0), SIZE);
    CHECK_EQ(held(image, 0, SIZE), own);
    CHECK_OK(qcow2_reopen(image, 0, copying));
    CHECK_EQ(qcow2_pread(image, again, 1, 700 * 1024), 1);
    more = held(image, 0, SIZE) - own;
    CHECK(more > 0 && more <= 64 * 1024);
    CHECK_EQ(qcow2_preadv(image, parts, 2, 0), SIZE);
    CHECK(memcmp(bytes, again, SIZE) == 0);
    CHECK_EQ(held(image, 0, SIZE), SIZE);
    CHECK_EQ(test_checksum(image), before);
    CHECK_ERROR(qcow2_reopen(image, QCOW2_OPEN_READ_ONLY, NULL), EINVAL);
    test_close(image);
    image = test_open(path, QCOW2_OPEN_NO_BACKING, NULL);
    CHECK_EQ(test_checksum(image), before);
    test_close(image);
    test_expect_sound(path, false);
    free(bytes);
    free(again);
}

/* A guest that writes, zeroes and discards while another thread copies: its changes win. */
struct guest {
    qcow2_image *image;
    unsigned char values[SIZE / 4096];
    bool reads;
};

static void *live(void *opaque)
{
    struct guest *guest = opaque;
    uint64_t state = 3;

    for (int round = 0; round < 3000; round++) {
        uint64_t block = test_random(&state) % (SIZE / 4096);
        unsigned char value = (unsigned char)(100 + test_random(&state) % 100);

        if (test_random(&state) % 4 == 0) {
            CHECK_OK(qcow2_write_zeroes(guest->image, block * 4096, 4096, 0));
            value = 0;
        } else {
            test_fill(guest->image, block * 4096, 4096, value);
        }
        guest->values[block] = value;
        test_expect(guest->image, block * 4096, 4096, value);
    }
    return NULL;
}

static void *copy(void *opaque)
{
    struct guest *guest = opaque;
    unsigned char *bytes = malloc(SIZE);

    for (int round = 0; round < 4; round++) {
        if (guest->reads) {
            CHECK_EQ(qcow2_pread(guest->image, bytes, SIZE, 0), SIZE);
        } else {
            CHECK_OK(qcow2_stream(guest->image, 0, SIZE, 0, 0, NULL, NULL));
        }
    }
    free(bytes);
    return NULL;
}

static void beside_the_guest(const char *one, const char *other, bool reads)
{
    const char *path = make_chain(one, other);
    static struct guest guest;
    static unsigned char first[SIZE];
    pthread_t threads[2];

    guest.image = test_open(path, CHAIN, reads ? "copy-on-read=on" : "copy-on-read=off", NULL);
    guest.reads = reads;
    memset(guest.values, 1, sizeof guest.values);
    {
        qcow2_image *before = test_open(path, CHAIN | QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_FORCE_SHARE, NULL);

        CHECK_EQ(qcow2_pread(before, first, SIZE, 0), SIZE);
        test_close(before);
    }
    CHECK_EQ(pthread_create(&threads[0], NULL, live, &guest), 0);
    CHECK_EQ(pthread_create(&threads[1], NULL, copy, &guest), 0);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    }
    test_close(guest.image);
    test_expect_sound(path, false);
    guest.image = test_open(path, QCOW2_OPEN_NO_BACKING, NULL);
    for (uint64_t block = 0; block < SIZE / 4096; block++) {
        unsigned char bytes[4096];

        CHECK_EQ(qcow2_pread(guest.image, bytes, sizeof bytes, block * 4096), sizeof bytes);
        if (guest.values[block] == 1) {
            CHECK(memcmp(bytes, first + block * 4096, sizeof bytes) == 0);
        } else {
            CHECK_FILLED(bytes, sizeof bytes, guest.values[block]);
        }
    }
    test_close(guest.image);
}

/* The host is full: the read fails, as with the stock tool, and nothing else has happened. */
static void a_full_host(void)
{
    const char *path = make_chain("cluster_size=65536", "lazy_refcounts=off");
    struct test_memory memory = TEST_MEMORY_INIT;
    qcow2_image *image = test_open(path, CHAIN, NULL);
    uint32_t before = test_checksum(image);
    char byte;

    CHECK_OK(qcow2_change_backing_file(image, test_path("middle.qcow2"), "qcow2"));
    test_close(image);
    memory.length = test_file_length(path);
    memory.bytes = malloc(memory.length);
    test_file_read(path, memory.bytes, memory.length, 0);
    CHECK_OK(test_memory_open(&test_memory_ops, &memory, CHAIN, &image));
    CHECK_OK(qcow2_reopen(image, 0, copying));
    memory.limit = memory.length;
    CHECK_ERROR(qcow2_pread(image, &byte, 1, 0), ENOSPC);
    CHECK_ERROR(qcow2_stream(image, 0, SIZE, 0, 0, NULL, NULL), ENOSPC);
    CHECK_OK(qcow2_reopen(image, 0, not_copying));
    CHECK_EQ(test_checksum(image), before);
    CHECK_OK(qcow2_reopen(image, 0, copying));
    memory.limit = UINT64_MAX;
    CHECK_EQ(qcow2_pread(image, &byte, 1, 0), 1);
    CHECK_EQ(byte, 1);
    test_close(image);
    test_memory_free(&memory);
}

int main(void)
{
    static const char *const geometries[][2] = {{"cluster_size=65536", "lazy_refcounts=off"},
                                                {"cluster_size=512", "lazy_refcounts=on"},
                                                {"cluster_size=65536", "extended_l2=on"},
                                                {"cluster_size=4096", "compat=0.10"}};

    for (size_t i = 0; i < sizeof geometries / sizeof *geometries; i++) {
        const char *one = geometries[i][0], *other = geometries[i][1];

        all_of_it(one, other);
        down_to_a_base(one, other);
        by_reading(one, other);
        beside_the_guest(one, other, i % 2 == 0);
    }
    beside_the_guest("cluster_size=65536", "extended_l2=on", false);
    bitmaps_stay();
    parts_and_refusals();
    a_full_host();
    return 0;
}
