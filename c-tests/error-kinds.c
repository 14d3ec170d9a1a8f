/* Which errno each kind of failure has.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <sys/stat.h>

static void with_big_endian(unsigned char bytes[8], uint64_t value, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        bytes[i] = (unsigned char)(value >> (8 * (count - 1 - i)));
    }
}

/* The image with one header field replaced. */
static const char *damaged(const char *path, uint64_t value, unsigned bytes, uint64_t offset)
{
    const char *other = test_path("damaged.qcow2");
    unsigned char field[8];

    test_file_copy(path, other);
    with_big_endian(field, value, bytes);
    test_file_write(other, field, bytes, offset);
    return other;
}

int main(void)
{
    const char *path = test_create("disk.qcow2", MIB, "lazy_refcounts=on", NULL);
    const char *const no_v2[] = {"compat=0.10", "lazy_refcounts=on", NULL};
    qcow2_image *image;
    char sector[512] = "";

    /* EMEDIUMTYPE: not an image, and which file; EISDIR or EINVAL: not a file. */
    test_file_write(test_path("text"), "not a disk image, only some text that is long enough to be read as one", 70, 0);
    CHECK_ERROR(qcow2_open(test_path("text"), 0, NULL, &image), EMEDIUMTYPE);
    CHECK_TEXT(test_path("text"));
    test_file_write(test_path("empty"), "", 0, 0);
    CHECK_ERROR(qcow2_open(test_path("empty"), 0, NULL, &image), EMEDIUMTYPE);
    CHECK_EQ(mkdir(test_path("directory"), 0700), 0);
    CHECK(qcow2_open(test_path("directory"), 0, NULL, &image) < 0);
    CHECK(image == NULL);

    /* ENOTSUP: a version, feature or crypt method that is not known, named where there is a name. */
    CHECK_ERROR(qcow2_open(damaged(path, 4, 4, 4), 0, NULL, &image), ENOTSUP);
    CHECK_TEXT("version");
    CHECK_ERROR(qcow2_open(damaged(path, 1ull << 63, 8, 72), 0, NULL, &image), ENOTSUP);
    CHECK_TEXT("8000000000000000");
    CHECK_ERROR(qcow2_open(damaged(path, 77, 4, 32), 0, NULL, &image), ENOTSUP);

    /* EIO: the corrupt bit, for a writable open. */
    CHECK_ERROR(qcow2_open(damaged(path, 2, 8, 72), 0, NULL, &image), EIO);
    CHECK_TEXT("corrupt");
    test_close(test_open(damaged(path, 2, 8, 72), QCOW2_OPEN_READ_ONLY, NULL));

    /* EUCLEAN: dirty, and no repair wanted. */
    CHECK_ERROR(qcow2_open(damaged(path, 1, 8, 72), QCOW2_OPEN_NO_REPAIR, NULL, &image), EUCLEAN);
    CHECK_TEXT("QCOW2_OPEN_NO_REPAIR");
    CHECK_TEXT("damaged.qcow2");

    /* EPERM: a recorded backing file. */
    test_create("overlay.qcow2", MIB, "backing_file=disk.qcow2", "backing_fmt=qcow2", NULL);
    CHECK_ERROR(qcow2_open(test_path("overlay.qcow2"), 0, NULL, &image), EPERM);
    CHECK_TEXT("disk.qcow2");
    CHECK_TEXT("overlay.qcow2");
    CHECK_TEXT("QCOW2_OPEN_ALLOW_RECORDED");
    CHECK_ERROR(qcow2_open(path, QCOW2_OPEN_FORCE_SHARE, NULL, &image), EINVAL);
    CHECK_TEXT("QCOW2_OPEN_READ_ONLY");

    /* ELOOP: its own backing file. */
    test_create("loop.qcow2", MIB, "backing_file=loop.qcow2", "backing_fmt=qcow2", NULL);
    CHECK_ERROR(qcow2_open(test_path("loop.qcow2"), QCOW2_OPEN_ALLOW_RECORDED | QCOW2_OPEN_READ_ONLY, NULL, &image),
                ELOOP);

    /* EROFS, EIO past the end, EPERM for guest I/O of a handle for metadata, EAGAIN in use. */
    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_ERROR(qcow2_pwrite(image, sector, sizeof sector, 0), EROFS);
    CHECK_ERROR(qcow2_write_zeroes(image, 0, 512, 0), EROFS);
    CHECK_ERROR(qcow2_discard(image, 0, 512), EROFS);
    CHECK_ERROR(qcow2_truncate(image, 2 * MIB, QCOW2_PREALLOC_OFF), EROFS);
    CHECK_ERROR(qcow2_pread(image, sector, sizeof sector, MIB - 511), EIO);
    CHECK_ERROR(qcow2_commit(image, 0, NULL, NULL), ENOTSUP);
    CHECK_OK(qcow2_flush(image));
    test_close(image);

    image = test_open(path, QCOW2_OPEN_METADATA_ONLY, NULL);
    CHECK_ERROR(qcow2_pread(image, sector, sizeof sector, 0), EPERM);
    CHECK_ERROR(qcow2_pwrite(image, sector, sizeof sector, 0), EPERM);
    test_close(image);

    image = test_open(path, 0, NULL);
    qcow2_image *second;
    CHECK_ERROR(qcow2_open(path, 0, NULL, &second), EAGAIN);
    CHECK_ERROR(qcow2_create(path, MIB, NULL), EAGAIN);
    CHECK_ERROR(qcow2_truncate(image, MIB + 1, QCOW2_PREALLOC_OFF), EINVAL);
    CHECK_ERROR(qcow2_truncate(image, 2 * MIB, 77), EINVAL);
    test_close(image);

    /* EFBIG: no table within the limit maps it. EINVAL: options that exclude each other. */
    const char *const small[] = {"cluster_size=512", NULL};
    CHECK_ERROR(qcow2_create(test_path("big"), 1ull << 62, small), EFBIG);
    CHECK_ERROR(qcow2_create(test_path("v2"), MIB, no_v2), EINVAL);
    CHECK_ERROR(qcow2_create(test_path("no/such/directory"), MIB, NULL), ENOENT);
    return 0;
}
