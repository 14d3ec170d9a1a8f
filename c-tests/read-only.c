/* A read-only open changes no byte of the file and not its time of change, whatever is asked of the handle; the
   file may be unwritable.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <sys/stat.h>

static void ask_everything(qcow2_image *image)
{
    qcow2_check_result result = {.struct_size = sizeof result};
    qcow2_extent extent = {.struct_size = sizeof extent};
    const char *const options[] = {"lazy-refcounts=on", NULL};
    char sector[512] = "";
    struct iovec one = {sector, sizeof sector};

    CHECK_OK(qcow2_pread(image, sector, sizeof sector, 0));
    CHECK_OK(qcow2_block_status(image, 0, MIB, 0, &extent));
    CHECK_OK(qcow2_check(image, 0, &result, NULL, NULL, NULL, NULL));
    CHECK_OK(qcow2_flush(image));
    test_checksum(image);
    test_info(image);
    CHECK_ERROR(qcow2_pwrite(image, sector, sizeof sector, 0), EROFS);
    CHECK_ERROR(qcow2_pwritev(image, &one, 1, 0), EROFS);
    CHECK_ERROR(qcow2_pwritev2(image, &one, 1, 0, QCOW2_REQ_FUA), EROFS);
    CHECK_ERROR(qcow2_write_zeroes(image, 0, 512, 0), EROFS);
    CHECK_ERROR(qcow2_discard(image, 0, MIB), EROFS);
    CHECK_ERROR(qcow2_truncate(image, 4 * MIB, QCOW2_PREALLOC_OFF), EROFS);
    CHECK_ERROR(qcow2_check(image, QCOW2_CHECK_REPAIR_LEAKS, &result, NULL, NULL, NULL, NULL), EROFS);
    CHECK_ERROR(qcow2_check(image, QCOW2_CHECK_REPAIR_ERRORS, &result, NULL, NULL, NULL, NULL), EROFS);
    CHECK_OK(qcow2_reopen(image, QCOW2_OPEN_READ_ONLY, options));
    CHECK_OK(qcow2_clean_caches(image));
}

static void unchanged(const char *path, uint64_t flags)
{
    struct stat before, after;
    uint64_t digest = test_digest(path);
    qcow2_image *image;

    CHECK_EQ(stat(path, &before), 0);
    image = test_open(path, flags, NULL);
    ask_everything(image);
    test_close(image);
    CHECK_EQ(stat(path, &after), 0);
    CHECK_EQ(test_digest(path), digest);
    CHECK_EQ(before.st_mtim.tv_sec, after.st_mtim.tv_sec);
    CHECK_EQ(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
    CHECK_EQ(before.st_blocks, after.st_blocks);
}

int main(void)
{
    const char *path = test_create("disk.qcow2", 2 * MIB, "lazy_refcounts=on", NULL), *dirty = test_path("dirty.qcow2");
    qcow2_image *image = test_open(path, 0, NULL);

    test_fill(image, 0, MIB, 1);
    CHECK_OK(qcow2_flush(image));
    test_file_copy(path, dirty); /* as a crash would leave it */
    test_close(image);

    unchanged(path, QCOW2_OPEN_READ_ONLY);
    unchanged(path, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_FORCE_SHARE);
    unchanged(path, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_NO_LOCK);
    unchanged(dirty, QCOW2_OPEN_READ_ONLY);
    CHECK_EQ(chmod(dirty, 0400), 0);
    unchanged(dirty, QCOW2_OPEN_READ_ONLY);

    /* An unknown autoclear bit stays, too: only a write clears it. */
    unsigned char bits[8] = {0x80};
    test_file_write(path, bits, sizeof bits, 88);
    unchanged(path, QCOW2_OPEN_READ_ONLY);
    uint64_t digest = test_digest(path);
    test_close(test_open(path, 0, NULL));
    CHECK_EQ(test_digest(path), digest); /* a writable open that writes nothing */
    image = test_open(path, 0, NULL);
    CHECK_EQ(test_info(image).autoclear_features, 1ull << 63);
    test_fill(image, 0, 512, 2);
    CHECK_EQ(test_info(image).autoclear_features, 0);
    test_close(image);
    test_file_read(path, bits, sizeof bits, 88);
    CHECK_EQ(bits[0], 0);
    return 0;
}
