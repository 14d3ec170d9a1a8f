/* One writer: a second open of the same file is refused, however the file is named and whoever asks; readers share
   with readers; FORCE_SHARE reads along; NO_LOCK asks nobody; death and close release.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <signal.h>
#include <sys/wait.h>

/* Where a leak check in a forked child sees what the parent owns. */
static qcow2_image *image;

static void refused(const char *path, uint64_t flags)
{
    qcow2_image *none;

    CHECK_ERROR(qcow2_open(path, flags, NULL, &none), EAGAIN);
    CHECK(none == NULL);
}

static void refused_in_child(void *opaque)
{
    refused(opaque, 0);
}

static void *refused_in_thread(void *opaque)
{
    refused(opaque, 0);
    return NULL;
}

static void stock_tools_are_refused(const char *path)
{
    const char *const probe[] = {"sh", "-c", "command -v qemu-io >/dev/null", NULL};
    const char *const really[] = {"sh", "-c", "! qemu-io -f qcow2 -c 'read 0 512' \"$0\" >/dev/null 2>&1", path, NULL};

    if (test_run(probe) == 0) {
        CHECK_EQ(test_run(really), 0);
    }
}

int main(void)
{
    const char *path = test_create("disk.qcow2", MIB, NULL), *hard = test_path("hard"), *soft = test_path("soft");
    qcow2_image *second, *third;
    char by_descriptor[64];
    pthread_t thread;
    union {
        const char *in;
        void *out;
    } argument = {.in = path};

    CHECK_EQ(link(path, hard), 0);
    CHECK_EQ(symlink(path, soft), 0);
    image = test_open(path, 0, NULL);
    snprintf(by_descriptor, sizeof by_descriptor, "/proc/self/fd/%d", test_info(image).descriptor);

    refused(path, 0);
    refused(path, QCOW2_OPEN_READ_ONLY);
    refused(hard, 0);
    refused(soft, 0);
    refused(soft, QCOW2_OPEN_READ_ONLY);
    refused(by_descriptor, 0);
    refused(path, QCOW2_OPEN_METADATA_ONLY);
    CHECK_ERROR(qcow2_create(hard, MIB, NULL), EAGAIN);
    test_in_child(refused_in_child, argument.out);
    CHECK_EQ(pthread_create(&thread, NULL, refused_in_thread, argument.out), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    stock_tools_are_refused(path);
    /* None of these opens and closes of the same file has dropped the first one's lock. */
    refused(path, 0);
    test_in_child(refused_in_child, argument.out);

    /* Reading along. */
    test_fill(image, 0, 65536, 1);
    CHECK_OK(qcow2_flush(image));
    second = test_open(path, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_FORCE_SHARE, NULL);
    test_expect(second, 0, 65536, 1);
    test_close(second);
    second = test_open(path, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_NO_LOCK, NULL);
    test_expect(second, 0, 65536, 1);
    test_close(second);
    refused(path, 0);
    test_close(image);

    /* Readers share; a writer has to wait for them, and a reader does not become a writer. */
    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    second = test_open(hard, QCOW2_OPEN_READ_ONLY, NULL);
    refused(path, 0);
    CHECK_ERROR(qcow2_reopen(image, 0, NULL), EAGAIN);
    test_expect(image, 0, 65536, 1);
    test_close(second);
    CHECK_OK(qcow2_reopen(image, 0, NULL));
    test_fill(image, 0, 65536, 2);
    refused(path, QCOW2_OPEN_READ_ONLY);
    CHECK_OK(qcow2_reopen(image, QCOW2_OPEN_READ_ONLY, NULL));
    third = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    test_expect(third, 0, 65536, 2);
    test_close(third);
    test_close(image);

    /* kill -9 releases. */
    int ready[2];
    char byte;
    CHECK_EQ(pipe(ready), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        image = test_open(path, 0, NULL);
        CHECK_EQ(write(ready[1], "x", 1), 1);
        pause();
        _exit(0);
    }
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    refused(path, 0);
    CHECK_EQ(kill(child, SIGKILL), 0);
    CHECK(WIFSIGNALED(test_wait(child)));
    test_close(test_open(path, 0, NULL));
    return 0;
}
