/* pthread_cancel hits threads inside calls: each call ends as if nothing had happened, no lock stays behind, and the
   handle goes on working.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <time.h>

enum { THREADS = 4, BLOCK = 4096 };
#define BLOCKS 256u

struct job {
    qcow2_image *image;
    unsigned number;
    /* Not on the stack of a thread that is cancelled: the address sanitizer would keep its borders there. */
    unsigned char block[BLOCK];
};

static void *run(void *opaque)
{
    struct job *job = opaque;
    unsigned char *block = job->block;

    for (uint64_t i = 0;; i++) {
        uint64_t offset = ((i % BLOCKS) * THREADS + job->number) * BLOCK;

        memset(block, (int)job->number + 1, BLOCK);
        CHECK_OK(qcow2_pwrite(job->image, block, BLOCK, offset));
        CHECK_OK(qcow2_pread(job->image, block, BLOCK, offset));
        CHECK_FILLED(block, BLOCK, job->number + 1);
        if (i % 8 == 0) {
            CHECK_OK(qcow2_flush(job->image));
        }
        if (i % 32 == 0) {
            CHECK_OK(qcow2_write_zeroes(job->image, offset, BLOCK, QCOW2_REQ_UNMAP));
        }
        pthread_testcancel();
    }
    return NULL;
}

/* Each read copies what it finds below, and so writes. */
static void *run_copying(void *opaque)
{
    struct job *job = opaque;

    for (uint64_t i = 0;; i = (i + 1) % BLOCKS) {
        CHECK_OK(qcow2_pread(job->image, job->block, BLOCK, (i * THREADS + job->number) * BLOCK));
        CHECK_FILLED(job->block, BLOCK, 3);
        pthread_testcancel();
    }
    return NULL;
}

static void wait_until_idle(qcow2_image *image)
{
    unsigned char block[BLOCK];

    memset(block, 0x77, sizeof block);
    alarm(60); /* A lock that stayed behind would hang here. */
    CHECK_OK(qcow2_pwrite(image, block, sizeof block, (uint64_t)BLOCKS * THREADS * BLOCK));
    CHECK_OK(qcow2_flush(image));
    CHECK_OK(qcow2_reopen(image, 0, NULL));
    alarm(0);
}

static void cancel_them(qcow2_image *image, void *(*job)(void *), unsigned rounds, uint64_t seed)
{
    for (unsigned round = 0; round < rounds; round++) {
        pthread_t threads[THREADS];
        static struct job jobs[THREADS];

        for (unsigned t = 0; t < THREADS; t++) {
            jobs[t].image = image;
            jobs[t].number = t;
            CHECK_EQ(pthread_create(&threads[t], NULL, job, &jobs[t]), 0);
        }
        struct timespec pause = {0, (long)(test_random(&seed) % 5000000)};
        nanosleep(&pause, NULL);
        for (unsigned t = 0; t < THREADS; t++) {
            CHECK_EQ(pthread_cancel(threads[t]), 0);
        }
        for (unsigned t = 0; t < THREADS; t++) {
            void *result;

            CHECK_EQ(pthread_join(threads[t], &result), 0);
            CHECK(result == PTHREAD_CANCELED);
        }
        wait_until_idle(image);
    }
}

int main(void)
{
    unsigned rounds = (unsigned)test_setting("QCOW2_TEST_SLOW", 0) ? 3 : 30;
    const char *path = test_create("disk.qcow2", 8 * MIB, "lazy_refcounts=on", "cluster_size=4k", NULL);
    qcow2_image *image = test_open(path, 0, NULL);

    cancel_them(image, run, rounds, 1);
    test_close(image);
    test_expect_sound(path, false);

    /* Over callbacks, which may themselves hold cancellation points. */
    struct test_memory memory = TEST_MEMORY_INIT;
    CHECK_OK(qcow2_create_io(&test_memory_ops, &memory, 8 * MIB, NULL));
    CHECK_OK(test_memory_open(&test_memory_ops, &memory, 0, &image));
    cancel_them(image, run, rounds, 2);
    test_close(image);
    test_memory_free(&memory);

    image = test_open(test_create("base.qcow2", 8 * MIB, NULL), 0, NULL);
    test_fill(image, 0, 8 * MIB, 3);
    test_close(image);
    for (unsigned round = 0; round < rounds; round++) {
        path = test_create("copies.qcow2", 8 * MIB, "backing_file=base.qcow2", "backing_fmt=qcow2", "cluster_size=4k",
                           NULL);
        image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, "copy-on-read=on", NULL);
        cancel_them(image, run_copying, 1, round);
        test_close(image);
        test_expect_sound(path, false);
    }
    return 0;
}
