/* A new image that is given no size has its backing file's, which need not be quiet; without one it is refused.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

static uint64_t size_of(const char *path)
{
    qcow2_image *image = test_open(path, QCOW2_OPEN_METADATA_ONLY | QCOW2_OPEN_READ_ONLY, NULL);
    uint64_t size = test_info(image).virtual_size;

    test_close(image);
    return size;
}

static int create(const char *path, const char *backing, const char *format)
{
    const char *const options[] = {backing, format, NULL};

    return qcow2_create(path, UINT64_MAX, options);
}

int main(void)
{
    const char *base = test_create("base.qcow2", 3 * MIB, NULL), *new = test_path("new.qcow2");
    qcow2_image *writer = test_open(base, 0, NULL);
    uint64_t digest;
    char absolute[4200];

    test_file_write(test_path("odd.raw"), "x", 1, MIB);
    CHECK_OK(create(new, "backing_file=base.qcow2", "backing_fmt=qcow2"));
    CHECK_EQ(size_of(new), 3 * MIB);
    test_close(writer);
    snprintf(absolute, sizeof absolute, "backing_file=%s", base);
    CHECK_OK(create(new, absolute, "backing_fmt=qcow2"));
    CHECK_EQ(size_of(new), 3 * MIB);
    CHECK_OK(create(new, "backing_file=odd.raw", "backing_fmt=raw"));
    CHECK_EQ(size_of(new), MIB + 512);
    /* An overlay whose own backing file is nowhere has a size, too; and a size that is given needs no file. */
    test_create("lost.qcow2", 5 * MIB, "backing_file=nowhere.qcow2", "backing_fmt=qcow2", NULL);
    CHECK_OK(create(new, "backing_file=lost.qcow2", "backing_fmt=qcow2"));
    CHECK_EQ(size_of(new), 5 * MIB);

    digest = test_digest(new);
    CHECK_ERROR(create(new, "cluster_size=65536", NULL), EINVAL);
    CHECK_TEXT("no size is given");
    CHECK_ERROR(create(new, "backing_file=nowhere.qcow2", "backing_fmt=qcow2"), ENOENT);
    CHECK_TEXT("nowhere.qcow2");
    CHECK_ERROR(create(new, "backing_file=nbd://host/x", "backing_fmt=raw"), EINVAL);
    CHECK_TEXT("nbd://host/x");
    CHECK_ERROR(create(new, "backing_file=odd.raw", "backing_fmt=qcow2"), EMEDIUMTYPE);
    CHECK(create(new, "backing_file=base.qcow2", NULL) < 0);
    CHECK_EQ(test_digest(new), digest);
    return 0;
}
