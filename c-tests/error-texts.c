/* The text of an error belongs to the thread, says what is wrong with what, and outlives calls that succeed.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

static void *in_another_thread(void *opaque)
{
    qcow2_image *image = opaque;
    char byte;

    CHECK_EQ(strlen(qcow2_last_error()), 0);
    CHECK_ERROR(qcow2_pread(image, &byte, 1, UINT64_MAX - 5), EIO);
    return NULL;
}

int main(void)
{
    const char *path = test_create("disk.qcow2", MIB, NULL);
    const char *const unknown[] = {"no-such-option=1", NULL}, *const bad_value[] = {"l2-cache-size=lots", NULL};
    qcow2_image *image, *second;
    char byte;

    CHECK_EQ(strlen(qcow2_last_error()), 0);
    image = test_open(path, 0, NULL);

    CHECK_ERROR(qcow2_pread(image, &byte, 1, MIB), EIO);
    CHECK_TEXT("1048576");
    CHECK_ERROR(qcow2_open(test_path("missing.qcow2"), 0, NULL, &second), ENOENT);
    CHECK_TEXT("No such file");
    CHECK_ERROR(qcow2_open(path, 0, unknown, &second), EINVAL);
    CHECK_TEXT("no-such-option");
    CHECK_ERROR(qcow2_open(path, 0, bad_value, &second), EINVAL);
    CHECK_TEXT("l2-cache-size");
    CHECK_ERROR(qcow2_open(path, 1ull << 40, NULL, &second), EINVAL);
    CHECK_TEXT("0x10000000000");
    CHECK_ERROR(qcow2_open(path, 0, NULL, &second), EAGAIN);
    CHECK_TEXT("lock");
    CHECK_ERROR(qcow2_pread(NULL, &byte, 1, 0), EINVAL);
    CHECK_TEXT("image is NULL");

    /* Another thread's failure is not ours, and has not been ours before. */
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, in_another_thread, image), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_TEXT("image is NULL");

    test_close(image);
    return 0;
}
