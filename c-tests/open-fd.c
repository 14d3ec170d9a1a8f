/* Open and create by descriptor: the caller keeps its own, the file offset is not touched, and nothing is opened by
   name.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <fcntl.h>

static bool descriptor_is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

int main(void)
{
    const char *path = test_path("disk.qcow2");
    int fd = open(path, O_RDWR | O_CREAT, 0600), read_only;
    qcow2_image *image, *second;

    CHECK(fd >= 0);
    CHECK_OK(qcow2_create_fd(fd, 16 * MIB, NULL));
    CHECK(descriptor_is_open(fd));
    CHECK_EQ(lseek(fd, 77, SEEK_SET), 77);

    /* The name may be gone. */
    CHECK_EQ(rename(path, test_path("elsewhere.qcow2")), 0);
    CHECK_OK(qcow2_open_fd(fd, 0, NULL, &image));
    CHECK(test_info(image).path == NULL);
    CHECK(test_info(image).descriptor >= 0);
    CHECK(test_info(image).descriptor != fd);
    test_fill(image, MIB, MIB, 0x11);
    CHECK_OK(qcow2_flush(image));
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 77);

    /* In use, by descriptor as by name. */
    CHECK_ERROR(qcow2_open_fd(fd, 0, NULL, &second), EAGAIN);
    CHECK_ERROR(qcow2_open(test_path("elsewhere.qcow2"), 0, NULL, &second), EAGAIN);

    /* The caller's descriptor may be closed at any time; the image's lock and data stay. */
    CHECK_EQ(close(fd), 0);
    CHECK_ERROR(qcow2_open(test_path("elsewhere.qcow2"), 0, NULL, &second), EAGAIN);
    test_expect(image, MIB, MIB, 0x11);
    test_close(image);
    test_expect_sound(test_path("elsewhere.qcow2"), false);

    /* A descriptor that cannot write makes a read-only image only. */
    read_only = open(test_path("elsewhere.qcow2"), O_RDONLY);
    CHECK(read_only >= 0);
    CHECK(qcow2_open_fd(read_only, 0, NULL, &image) < 0);
    CHECK(image == NULL);
    CHECK_OK(qcow2_open_fd(read_only, QCOW2_OPEN_READ_ONLY, NULL, &image));
    test_expect(image, MIB, MIB, 0x11);
    test_close(image);
    CHECK(descriptor_is_open(read_only));

    /* The host would append whatever is written, wherever it belongs. */
    int appends = open(test_path("elsewhere.qcow2"), O_RDWR | O_APPEND);
    uint64_t digest = test_digest(test_path("elsewhere.qcow2"));
    CHECK(appends >= 0);
    CHECK_ERROR(qcow2_open_fd(appends, 0, NULL, &image), EINVAL);
    CHECK_ERROR(qcow2_create_fd(appends, MIB, NULL), EINVAL);
    CHECK_EQ(test_digest(test_path("elsewhere.qcow2")), digest);
    CHECK_OK(qcow2_open_fd(appends, QCOW2_OPEN_READ_ONLY, NULL, &image));
    test_close(image);

    /* What is no file. */
    int pipes[2];
    CHECK_EQ(pipe(pipes), 0);
    CHECK(qcow2_open_fd(pipes[0], QCOW2_OPEN_READ_ONLY, NULL, &image) < 0);
    CHECK_ERROR(qcow2_open_fd(-1, 0, NULL, &image), EINVAL);
    CHECK_ERROR(qcow2_open_fd(9999, 0, NULL, &image), EBADF);
    return 0;
}
