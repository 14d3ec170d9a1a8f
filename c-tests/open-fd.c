/* Open and create by descriptor: the caller keeps its own, the file offset is not touched, and nothing is opened by
   name.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <fcntl.h>
#include <sys/syscall.h>

static bool descriptor_is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

/* No seek is put back either: another thread may read at the offset meanwhile. */
static unsigned offset_moves;

static off_t seek(int fd, off_t offset, int whence)
{
    offset_moves += whence != SEEK_CUR || offset != 0;
#ifdef SYS__llseek
    long long at = -1;

    return syscall(SYS__llseek, fd, (long)(offset >> 32), (long)offset, &at, whence) < 0 ? -1 : (off_t)at;
#else
    return (off_t)syscall(SYS_lseek, fd, offset, whence);
#endif
}

/* By whichever name the library asks. glibc's plain one has offsets of a machine word. */
#ifdef __GLIBC__
typedef long plain_offset;
#else
typedef off_t plain_offset;
#endif
plain_offset plain_lseek(int fd, plain_offset offset, int whence) __asm__("lseek");
plain_offset plain_lseek(int fd, plain_offset offset, int whence)
{
    return (plain_offset)seek(fd, offset, whence);
}
off_t long_lseek(int fd, off_t offset, int whence) __asm__("lseek64");
off_t long_lseek(int fd, off_t offset, int whence)
{
    return seek(fd, offset, whence);
}

/* Each call that may want to know of the file what lseek tells. */
static void everything(qcow2_image *image)
{
    qcow2_extent extent = {.struct_size = sizeof extent};
    qcow2_check_result result = {.struct_size = sizeof result};

    offset_moves = 0;
    for (uint64_t at = 0; at < (uint64_t)qcow2_length(image); at += extent.length) {
        CHECK_OK(qcow2_block_status(image, at, (uint64_t)qcow2_length(image) - at, 0, &extent));
    }
    CHECK_OK(qcow2_truncate(image, 32 * MIB, QCOW2_PREALLOC_FALLOC));
    CHECK_OK(qcow2_truncate(image, 40 * MIB, QCOW2_PREALLOC_METADATA));
    for (uint64_t at = 0; at < (uint64_t)qcow2_length(image); at += extent.length) {
        CHECK_OK(qcow2_block_status(image, at, (uint64_t)qcow2_length(image) - at, 0, &extent));
    }
    CHECK_OK(qcow2_write_zeroes(image, 3 * MIB, MIB, 0));
    CHECK_OK(qcow2_discard(image, 5 * MIB, MIB));
    CHECK_OK(qcow2_check(image, QCOW2_CHECK_REPAIR_LEAKS, &result, NULL, NULL, NULL, NULL));
    CHECK(test_info(image).file_length > 0);
    CHECK_OK(qcow2_reopen(image, QCOW2_OPEN_READ_ONLY, NULL));
    CHECK_OK(qcow2_block_status(image, 0, MIB, 0, &extent));
    CHECK_OK(qcow2_reopen(image, 0, NULL));
    CHECK_OK(qcow2_inactivate(image));
    CHECK_OK(qcow2_invalidate(image, NULL));
    CHECK_OK(qcow2_truncate(image, 16 * MIB, QCOW2_PREALLOC_OFF));
}

/* A descriptor of a program that knows small files only (32 bits, no O_LARGEFILE): what does not fit is an error before
   anything is done. Everywhere else there is no such limit. */
static void plainly_opened(void)
{
    const char *path = test_path("plain.raw");
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT, 0600);
    qcow2_image *image;

    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, (off_t)MIB), 0);
    CHECK_OK(qcow2_open_fd(fd, QCOW2_OPEN_RAW, NULL, &image));
    if (sizeof(long) == 4 && (fcntl(fd, F_GETFL) & O_LARGEFILE) == 0) {
        CHECK_ERROR(qcow2_truncate(image, 3 * GIB, QCOW2_PREALLOC_OFF), EFBIG);
        CHECK_EQ(qcow2_length(image), MIB);
    } else {
        CHECK_OK(qcow2_truncate(image, 3 * GIB, QCOW2_PREALLOC_OFF));
        test_fill(image, 3 * GIB - MIB, MIB, 0x22);
        test_expect(image, 3 * GIB - MIB, MIB, 0x22);
    }
    test_close(image);
    CHECK_EQ(close(fd), 0);
}

int main(void)
{
    const char *path = test_path("disk.qcow2");
    int fd = open(path, O_RDWR | O_CREAT, 0600), read_only;
    qcow2_image *image, *second;

    plainly_opened();
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
    everything(image);
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 77);
    CHECK_EQ(offset_moves, 0);

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

    /* The count works: a file that the library has opened itself is asked. */
    offset_moves = 0;
    image = test_open(test_path("elsewhere.qcow2"), 0, NULL);
    everything(image);
    CHECK(offset_moves > 0);
    test_close(image);

    /* What is no file. */
    int pipes[2];
    CHECK_EQ(pipe(pipes), 0);
    CHECK(qcow2_open_fd(pipes[0], QCOW2_OPEN_READ_ONLY, NULL, &image) < 0);
    CHECK_ERROR(qcow2_open_fd(-1, 0, NULL, &image), EINVAL);
    CHECK_ERROR(qcow2_open_fd(9999, 0, NULL, &image), EBADF);
    return 0;
}
