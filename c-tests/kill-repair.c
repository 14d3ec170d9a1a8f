/* Death during the repair, at any moment, again and again: the next open repairs what is left, and the contents stay
   what they were.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <signal.h>
#include <sys/wait.h>
#include <time.h>

static uint64_t nanoseconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* A dirty image with many counts to mend. */
static uint32_t make_dirty(const char *path)
{
    uint32_t crc;
    qcow2_image *image;
    pid_t child = fork();

    CHECK(child >= 0);
    if (child == 0) {
        uint64_t state = 5;

        image = test_open(path, 0, "metadata-writethrough=on", NULL);
        for (int i = 0; i < 3000; i++) {
            test_fill(image, test_random(&state) % (64 * MIB - 4096) / 512 * 512, 4096, i);
        }
        CHECK_OK(qcow2_flush(image));
        kill(getpid(), SIGKILL);
    }
    CHECK(WIFSIGNALED(test_wait(child)));
    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_EQ(test_info(image).dirty, 1);
    crc = test_checksum(image);
    test_close(image);
    return crc;
}

int main(void)
{
    const char *path = test_create("disk.qcow2", 64 * MIB, "cluster_size=512", "lazy_refcounts=on", NULL);
    unsigned tries = test_under_valgrind() ? 3 : (unsigned)test_setting("QCOW2_TEST_KILLS", 10) * 3, interrupted = 0;
    uint32_t crc = make_dirty(path);
    uint64_t state = test_setting("QCOW2_TEST_SEED", 1), start = nanoseconds(), whole;
    qcow2_image *image;

    /* How long an undisturbed repair takes. */
    test_file_copy(path, test_path("copy.qcow2"));
    image = test_open(test_path("copy.qcow2"), 0, NULL);
    whole = nanoseconds() - start;
    CHECK_EQ(test_checksum(image), crc);
    test_close(image);

    for (unsigned i = 0; i < tries; i++) {
        pid_t child = fork();
        int status;

        CHECK(child >= 0);
        if (child == 0) {
            test_close(test_open(path, 0, NULL));
            _exit(0);
        }
        uint64_t wait = test_random(&state) % (whole + whole / 4);
        struct timespec pause = {(time_t)(wait / 1000000000u), (long)(wait % 1000000000u)};
        nanosleep(&pause, NULL);
        kill(child, SIGKILL);
        status = test_wait(child);
        CHECK(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
        interrupted += WIFSIGNALED(status);

        image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
        bool dirty = test_info(image).dirty;
        CHECK_EQ(test_checksum(image), crc);
        test_close(image);
        if (!dirty) {
            test_expect_sound(path, false);
            CHECK_EQ(unlink(path), 0);
            test_create("disk.qcow2", 64 * MIB, "cluster_size=512", "lazy_refcounts=on", NULL);
            CHECK_EQ(make_dirty(path), crc);
        }
    }
    image = test_open(path, 0, NULL);
    CHECK_EQ(test_checksum(image), crc);
    test_close(image);
    test_expect_sound(path, false);
    printf("%u of %u repairs were interrupted\n", interrupted, tries);
    return 0;
}
