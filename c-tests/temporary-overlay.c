/* snapshot=on: what is written is read back and gone at close; the image, whatever it is, keeps each byte.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned files_in(const char *path)
{
    DIR *directory = opendir(path);
    unsigned count = 0;

    CHECK(directory != NULL);
    while (readdir(directory) != NULL) {
        count++;
    }
    closedir(directory);
    return count;
}

static void use(qcow2_image *image, int value)
{
    qcow2_info below = {.struct_size = sizeof below};

    test_expect(image, 0, MIB, value);
    test_fill(image, 4096, 128 * 1024, 9);
    test_expect(image, 4096, 128 * 1024, 9);
    test_expect(image, 0, 4096, value);
    CHECK_OK(qcow2_discard(image, 512 * 1024, 64 * 1024));
    CHECK_OK(qcow2_write_zeroes(image, 640 * 1024, 64 * 1024, 0));
    test_expect(image, 640 * 1024, 64 * 1024, 0);
    CHECK_OK(qcow2_truncate(image, 2 * MIB, QCOW2_PREALLOC_OFF));
    test_expect(image, MIB, MIB, 0);
    CHECK_OK(qcow2_snapshot_create(image, "inside", NULL));
    CHECK_OK(qcow2_flush(image));
    CHECK_EQ(test_info(image).read_only, 0);
    CHECK_EQ(test_info(image).backing_depth >= 1, 1);
    CHECK_OK(qcow2_get_node_info(image, 1, &below));
    CHECK_EQ(below.read_only, 1);
    test_close(image);
}

static void unchanged(const char *path, uint64_t flags, int value)
{
    uint64_t digest = test_digest(path);
    int fd;
    qcow2_image *image;

    use(test_open(path, flags, "snapshot=on", NULL), value);
    CHECK_EQ(test_digest(path), digest);
    /* A reader beside it, but no writer. */
    image = test_open(path, flags, "snapshot=on", "lazy-refcounts=on", NULL);
    test_close(test_open(path, flags | QCOW2_OPEN_READ_ONLY, NULL));
    qcow2_image *other;
    CHECK_ERROR(qcow2_open(path, flags, NULL, &other), EAGAIN);
    use(image, value);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if ((flags & QCOW2_OPEN_ALLOW_RECORDED) == 0) {
        static const char *const options[] = {"snapshot=on", NULL};

        CHECK_OK(qcow2_open_fd(fd, flags, options, &image));
        use(image, value);
    }
    close(fd);
    CHECK_EQ(test_digest(path), digest);
}

int main(void)
{
    const char *base = test_create("base.qcow2", MIB, NULL);
    const char *top = test_create("top.qcow2", MIB, "backing_file=base.qcow2", "backing_fmt=qcow2", NULL);
    static const char *const on[] = {"snapshot=on", NULL}, *const off[] = {"snapshot=off", NULL};
    static unsigned char raw[MIB];
    qcow2_image *image = test_open(base, 0, NULL);

    CHECK_EQ(mkdir(test_path("scratch"), 0700), 0);
    CHECK_EQ(setenv("TMPDIR", test_path("scratch"), 1), 0);
    test_fill(image, 0, MIB, 5);
    test_close(image);
    memset(raw, 6, sizeof raw);
    test_file_write(test_path("disk.raw"), raw, sizeof raw, 0);

    unchanged(base, 0, 5);
    unchanged(top, QCOW2_OPEN_ALLOW_RECORDED, 5);
    unchanged(test_path("disk.raw"), QCOW2_OPEN_RAW, 6);
    CHECK_EQ(files_in(test_path("scratch")), 2);

    /* A killed process leaves nothing either: there is no name to leave. */
    image = test_open(base, 0, "snapshot=on", NULL);
    test_fill(image, 0, MIB, 1);
    CHECK_EQ(files_in(test_path("scratch")), 2);
    /* It is decided at open. */
    CHECK_ERROR(qcow2_reopen(image, 0, off), EINVAL);
    CHECK_OK(qcow2_reopen(image, 0, on));
    test_expect(image, 0, MIB, 1);
    test_close(image);

    /* Nothing to write to: nothing is made. What cannot be is said. */
    image = test_open(base, QCOW2_OPEN_READ_ONLY, "snapshot=on", NULL);
    CHECK_EQ(test_info(image).backing_depth, 0);
    test_close(image);
    CHECK_ERROR(qcow2_open(base, QCOW2_OPEN_INACTIVE, on, &image), EINVAL);
    CHECK_TEXT("QCOW2_OPEN_INACTIVE");
    /* A repair through it would be one of the image itself. */
    CHECK_ERROR(qcow2_open(base, QCOW2_OPEN_METADATA_ONLY, on, &image), EINVAL);
    CHECK_TEXT("QCOW2_OPEN_METADATA_ONLY");
    test_close(test_open(base, QCOW2_OPEN_METADATA_ONLY | QCOW2_OPEN_READ_ONLY, "snapshot=on", NULL));
    CHECK_EQ(setenv("TMPDIR", test_path("nowhere"), 1), 0);
    CHECK_ERROR(qcow2_open(base, 0, on, &image), ENOENT);
    CHECK_TEXT("Could not create temporary overlay");
    CHECK_TEXT("nowhere");
    CHECK_EQ(setenv("TMPDIR", test_path("scratch"), 1), 0);
    CHECK_ERROR(qcow2_open(test_path("absent"), 0, on, &image), ENOENT);
    CHECK_ERROR(qcow2_open(top, 0, on, &image), EPERM);
    test_close(test_open(base, 0, NULL));
    return 0;
}
