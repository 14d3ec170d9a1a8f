/* VM state: written beside guest I/O, kept by a snapshot, read from a snapshot and after it was applied, never seen by
   the guest; the stock tool agrees.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#define STATE_BYTES ((size_t)3 * 1024 * 1024 + 777)

/* Writes, or compares, `STATE_BYTES` of state in pieces of odd lengths. */
static void save(qcow2_image *image, int value)
{
    static unsigned char piece[50000];

    memset(piece, value, sizeof piece);
    for (size_t at = 0, bytes; at < STATE_BYTES; at += bytes) {
        bytes = STATE_BYTES - at < sizeof piece - at % 777 ? STATE_BYTES - at : sizeof piece - at % 777;
        CHECK_EQ(qcow2_vmstate_write(image, piece, bytes, at), bytes);
    }
}

static void expect_state(qcow2_image *image, int value)
{
    static unsigned char state[STATE_BYTES + 4096];

    memset(state, 0x55, sizeof state);
    CHECK_EQ(qcow2_vmstate_read(image, state, sizeof state, 0), sizeof state);
    CHECK_FILLED(state, STATE_BYTES, value);
    CHECK_FILLED(state + STATE_BYTES, sizeof state - STATE_BYTES, 0);
}

static void expect_none(qcow2_image *image)
{
    unsigned char state[4096];

    CHECK_EQ(qcow2_vmstate_read(image, state, sizeof state, 0), sizeof state);
    CHECK_FILLED(state, sizeof state, 0);
}

static void take(qcow2_image *image, const char *name, uint64_t size)
{
    qcow2_snapshot_options options = {.struct_size = sizeof options, .icount = UINT64_MAX, .vm_state_size = size};

    CHECK_OK(qcow2_snapshot_create(image, name, &options));
}

static void expect_in_snapshot(const char *path, const char *option, int value)
{
    qcow2_image *image = test_open(path, QCOW2_OPEN_READ_ONLY, option, NULL);

    expect_state(image, value);
    CHECK_ERROR(qcow2_vmstate_write(image, "x", 1, 0), EROFS);
    test_close(image);
}

static bool stock(const char *words, const char *path)
{
    char script[300];
    const char *const command[] = {"sh", "-c", script, path, NULL};

    snprintf(script, sizeof script, "command -v qemu-img >/dev/null || exit 0; qemu-img %s >/dev/null 2>&1", words);
    return test_run(command) == 0;
}

static void a_life(const char *const *geometry)
{
    const char *path = test_create("disk.qcow2", 4 * MIB, geometry[0], geometry[1], NULL);
    qcow2_image *image = test_open(path, 0, NULL);
    qcow2_snapshot_info info = {.struct_size = sizeof info};
    uint32_t disk;

    test_fill(image, 0, MIB, 1);
    disk = test_checksum(image);
    expect_none(image);
    save(image, 2);
    expect_state(image, 2);
    CHECK_EQ(test_checksum(image), disk);
    CHECK_EQ(qcow2_length(image), 4 * MIB);
    test_close(image);
    test_expect_sound(path, false);

    image = test_open(path, 0, NULL);
    expect_state(image, 2);
    take(image, "first", STATE_BYTES);
    CHECK_OK(qcow2_get_snapshot(image, 0, &info));
    CHECK_EQ(info.vm_state_size, STATE_BYTES);
    expect_none(image); /* it has gone over to the snapshot */
    test_fill(image, 0, 4 * MIB, 3);
    save(image, 4);
    take(image, "size not told", 0);
    expect_state(image, 4);
    take(image, "second", STATE_BYTES);
    test_close(image);
    test_expect_sound(path, false);
    expect_in_snapshot(path, "snapshot.name=first", 2);
    expect_in_snapshot(path, "snapshot.id=3", 4);
    expect_in_snapshot(path, "snapshot.name=size not told", 4);

    image = test_open(path, 0, NULL);
    CHECK_OK(qcow2_snapshot_apply(image, NULL, "first"));
    expect_state(image, 2);
    CHECK_EQ(test_checksum(image), disk);
    CHECK_OK(qcow2_snapshot_delete(image, NULL, "first"));
    expect_state(image, 2);
    save(image, 5); /* where it is shared, and where it is not */
    expect_state(image, 5);
    test_close(image);
    test_expect_sound(path, false);
    expect_in_snapshot(path, "snapshot.name=second", 4);

    CHECK(stock("snapshot -a second \"$0\"", path));
    image = test_open(path, 0, NULL);
    test_expect(image, 0, 4 * MIB, 3);
    expect_state(image, 4);
    CHECK_OK(qcow2_snapshot_apply(image, NULL, "second"));
    expect_state(image, 4);
    test_close(image);
    CHECK(stock("snapshot -d second \"$0\"", path));
    test_expect_sound(path, false);
}

/* The disk's end moves, and with it the place of the VM state. */
static void a_resize_drops_it(uint64_t size)
{
    const char *path = test_create("size.qcow2", 4 * MIB, "cluster_size=4096", NULL);
    qcow2_image *image = test_open(path, 0, NULL);

    test_fill(image, 0, 4 * MIB, 1);
    save(image, 2);
    take(image, "state", STATE_BYTES);
    CHECK_OK(qcow2_snapshot_apply(image, NULL, "state"));
    expect_state(image, 2);
    CHECK_OK(qcow2_truncate(image, 4 * MIB, QCOW2_PREALLOC_OFF));
    expect_state(image, 2);
    CHECK_OK(qcow2_truncate(image, size, QCOW2_PREALLOC_OFF));
    expect_none(image);
    if (size > 4 * MIB) {
        test_expect(image, 4 * MIB, size - 4 * MIB, 0);
    }
    CHECK_OK(qcow2_snapshot_apply(image, NULL, "state"));
    expect_state(image, 2);
    CHECK_EQ(qcow2_length(image), 4 * MIB);
    CHECK_OK(qcow2_make_empty(image));
    expect_none(image);
    test_close(image);
    test_expect_sound(path, false);
    expect_in_snapshot(path, "snapshot.name=state", 2);
}

/* A backing file goes on past the end of the disk, and is not seen behind VM state. */
static void nothing_is_below_it(void)
{
    const char *path = test_path("overlay.qcow2");
    qcow2_image *image = test_open(test_create("base.qcow2", 64 * MIB, "cluster_size=4096", NULL), 0, NULL);
    unsigned char state[3 * 4096];

    test_fill(image, 0, 64 * MIB, 9);
    test_close(image);
    test_create("overlay.qcow2", 4 * MIB, "cluster_size=4096", "backing_file=base.qcow2", "backing_fmt=qcow2", NULL);
    image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    expect_none(image);
    CHECK_EQ(qcow2_vmstate_write(image, "state", 5, 5000), 5);
    CHECK_EQ(qcow2_vmstate_read(image, state, sizeof state, 0), sizeof state);
    CHECK_FILLED(state, 5000, 0);
    CHECK(memcmp(state + 5000, "state", 5) == 0);
    CHECK_FILLED(state + 5005, sizeof state - 5005, 0);
    test_close(image);
    test_expect_sound(path, false);
}

/* A size of more than 32 bits, and what a table cannot map. */
static void long_ones(void)
{
    const char *path = test_create("long.qcow2", MIB, NULL);
    qcow2_image *image = test_open(path, 0, NULL);
    qcow2_snapshot_info info = {.struct_size = sizeof info};
    uint64_t size = 5 * GIB + 3;
    char byte = 0;

    CHECK_EQ(qcow2_vmstate_write(image, "abc", 3, size - 3), 3);
    take(image, "long", size);
    CHECK_OK(qcow2_get_snapshot(image, 0, &info));
    CHECK_EQ(info.vm_state_size, size);
    CHECK_ERROR(qcow2_vmstate_write(image, "x", 1, UINT64_MAX), EFBIG);
    CHECK_ERROR(qcow2_vmstate_write(image, "x", 1, (uint64_t)1 << 61), EFBIG);
    CHECK_ERROR(qcow2_vmstate_read(image, &byte, 1, (uint64_t)1 << 61), EFBIG);
    CHECK_ERROR(qcow2_vmstate_read(image, NULL, 1, 0), EINVAL);
    CHECK_ERROR(qcow2_vmstate_write(image, NULL, 1, 0), EINVAL);
    test_close(image);
    test_expect_sound(path, false);
    CHECK(stock("snapshot -l \"$0\" | grep -q '^1 *long *5 GiB'", path));
    image = test_open(path, QCOW2_OPEN_READ_ONLY, "snapshot.name=long", NULL);
    CHECK_EQ(qcow2_vmstate_read(image, &byte, 1, size - 1), 1);
    CHECK_EQ(byte, 'c');
    test_close(image);
}

static void refused(void)
{
    const char *path = test_create("refused.qcow2", MIB, NULL);
    qcow2_snapshot_options options = {.struct_size = sizeof options, .vm_state_size = 1};
    qcow2_image *image = test_open(path, 0, NULL);
    char byte;

    CHECK_ERROR(qcow2_snapshot_create(image, "no state", &options), EINVAL);
    CHECK_TEXT("write it first");
    test_close(image);
    image = test_open(path, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_RAW, NULL);
    CHECK_ERROR(qcow2_vmstate_read(image, &byte, 1, 0), ENOTSUP);
    CHECK_ERROR(qcow2_vmstate_write(image, "x", 1, 0), ENOTSUP);
    test_close(image);
}

static void *write_disk(void *opaque)
{
    uint64_t state = 7;

    for (int round = 0; round < 600; round++) {
        test_fill(opaque, test_random(&state) % 1000 * 4096, 4096, 6);
    }
    return NULL;
}

/* Both at once, while the L1 table grows again and again. */
static void beside_the_guest(void)
{
    const char *path = test_create("threads.qcow2", 4 * MIB, "cluster_size=512", NULL);
    qcow2_image *image = test_open(path, 0, NULL);
    pthread_t writer;

    CHECK_EQ(pthread_create(&writer, NULL, write_disk, image), 0);
    save(image, 8);
    CHECK_EQ(pthread_join(writer, NULL), 0);
    expect_state(image, 8);
    take(image, "state", STATE_BYTES);
    test_close(image);
    test_expect_sound(path, false);
    expect_in_snapshot(path, "snapshot.id=1", 8);
}

int main(void)
{
    const char *const geometries[][2] = {{"cluster_size=65536", "lazy_refcounts=off"},
                                         {"cluster_size=65536", "lazy_refcounts=on"},
                                         {"cluster_size=512", "refcount_bits=4"},
                                         {"cluster_size=16384", "extended_l2=on"},
                                         {"cluster_size=65536", "compat=0.10"}};

    for (size_t i = 0; i < sizeof geometries / sizeof *geometries; i++) {
        a_life(geometries[i]);
    }
    a_resize_drops_it(40 * MIB);
    a_resize_drops_it(MIB);
    nothing_is_below_it();
    long_ones();
    refused();
    beside_the_guest();
    return 0;
}
