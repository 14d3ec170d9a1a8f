/* In a forked child a handle is dead: every call says so, and nothing that the child does, closing and exiting
   included, disturbs the parent's data or lock.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

static const char *path;

static void use_the_parents_handle(void *opaque)
{
    qcow2_image *image = opaque, *second;
    qcow2_check_result result = {.struct_size = sizeof result};
    qcow2_extent extent = {.struct_size = sizeof extent};
    qcow2_header_extension extension = {.struct_size = sizeof extension};
    qcow2_snapshot_info snapshot = {.struct_size = sizeof snapshot};
    qcow2_info info = {.struct_size = sizeof info};
    char bytes[512] = "";
    struct iovec one = {bytes, sizeof bytes};
    uint32_t crc;

    CHECK_ERROR(qcow2_pread(image, bytes, sizeof bytes, 0), EOWNERDEAD);
    CHECK_ERROR(qcow2_pwrite(image, bytes, sizeof bytes, 0), EOWNERDEAD);
    CHECK_ERROR(qcow2_preadv(image, &one, 1, 0), EOWNERDEAD);
    CHECK_ERROR(qcow2_pwritev(image, &one, 1, 0), EOWNERDEAD);
    CHECK_ERROR(qcow2_pwritev2(image, &one, 1, 0, QCOW2_REQ_FUA), EOWNERDEAD);
    CHECK_ERROR(qcow2_write_zeroes(image, 0, 512, 0), EOWNERDEAD);
    CHECK_ERROR(qcow2_discard(image, 0, 512), EOWNERDEAD);
    CHECK_ERROR(qcow2_flush(image), EOWNERDEAD);
    CHECK_ERROR(qcow2_block_status(image, 0, 512, 0, &extent), EOWNERDEAD);
    CHECK_ERROR(qcow2_length(image), EOWNERDEAD);
    CHECK_ERROR(qcow2_truncate(image, 2 * MIB, QCOW2_PREALLOC_OFF), EOWNERDEAD);
    CHECK_ERROR(qcow2_reopen(image, QCOW2_OPEN_READ_ONLY, NULL), EOWNERDEAD);
    CHECK_ERROR(qcow2_clean_caches(image), EOWNERDEAD);
    CHECK_ERROR(qcow2_get_info(image, &info), EOWNERDEAD);
    CHECK_ERROR(qcow2_get_header_extension(image, 0, &extension), EOWNERDEAD);
    CHECK_ERROR(qcow2_get_snapshot(image, 0, &snapshot), EOWNERDEAD);
    CHECK_ERROR(qcow2_check(image, 0, &result, NULL, NULL, NULL, NULL), EOWNERDEAD);
    CHECK_ERROR(qcow2_commit(image, 0, NULL, NULL), EOWNERDEAD);
    CHECK_ERROR(qcow2_snapshot_create(image, "child", NULL), EOWNERDEAD);
    CHECK_ERROR(qcow2_amend(image, NULL, 0, NULL, NULL), EOWNERDEAD);
    CHECK_ERROR(qcow2_snapshot_apply(image, "1", NULL), EOWNERDEAD);
    CHECK_ERROR(qcow2_snapshot_delete(image, "1", NULL), EOWNERDEAD);
    CHECK_ERROR(qcow2_checksum(image, &crc, NULL, NULL), EOWNERDEAD);
    /* The image is the parent's, and a new handle cannot be had either. */
    CHECK_ERROR(qcow2_open(path, 0, NULL, &second), EAGAIN);
    CHECK_ERROR(qcow2_close(image), EOWNERDEAD);
    /* Handles of the child's own work. */
    second = test_open(test_create("of-the-child.qcow2", MIB, NULL), 0, NULL);
    test_fill(second, 0, 4096, 3);
    test_close(second);
}

static void use_a_fork_of_a_fork(void *opaque)
{
    char byte;

    CHECK_ERROR(qcow2_pread(opaque, &byte, 1, 0), EOWNERDEAD);
    test_in_child(use_the_parents_handle, opaque);
}

static void open_elsewhere(void *opaque)
{
    qcow2_image *image;

    (void)opaque;
    CHECK_ERROR(qcow2_open(path, 0, NULL, &image), EAGAIN);
}

static int closed_by_parent[2];

/* What the error text promises: a new handle, once the parent has closed its own. */
static void open_after_the_parent(void)
{
    char byte;

    CHECK_EQ(read(closed_by_parent[0], &byte, 1), 1);
    qcow2_image *anew = test_open(path, 0, NULL);
    test_expect(anew, 0, 65536, 1);
    test_fill(anew, 131072, 65536, 3);
    test_close(anew);
    _exit(0);
}

/* Static, for a leak check in the child: what it inherits and must not free stays reachable. */
static qcow2_image *image;

int main(void)
{
    pid_t child;

    path = test_create("disk.qcow2", MIB, "lazy_refcounts=on", NULL);
    image = test_open(path, 0, NULL);
    test_fill(image, 0, 65536, 1);

    test_in_child(use_the_parents_handle, image);
    test_in_child(use_a_fork_of_a_fork, image);

    /* The lock is still there, the data too, and the handle works. */
    test_in_child(open_elsewhere, NULL);
    test_expect(image, 0, 65536, 1);
    test_fill(image, 65536, 65536, 2);
    CHECK_OK(qcow2_flush(image));
    CHECK_EQ(pipe(closed_by_parent), 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        open_after_the_parent();
    }
    test_close(image);
    CHECK_EQ(write(closed_by_parent[1], "c", 1), 1);
    CHECK_EQ(test_wait(child), 0);
    test_expect_sound(path, false);

    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_EQ(test_info(image).dirty, 0);
    test_expect(image, 0, 65536, 1);
    test_expect(image, 65536, 65536, 2);
    test_expect(image, 131072, 65536, 3);
    test_close(image);
    return 0;
}
