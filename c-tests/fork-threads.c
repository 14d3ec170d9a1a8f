/* A fork while other threads are inside calls: the child's use of the handle is refused at once, not stuck on a lock
   that a thread of the parent held, and the child can open images of its own.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <stdatomic.h>

static _Atomic bool stop;

static void *use_the_handle(void *opaque)
{
    unsigned char block[4096] = {1};

    for (uint64_t i = 0; !atomic_load(&stop); i++) {
        CHECK_OK(qcow2_pwrite(opaque, block, sizeof block, i % 512 * sizeof block));
        CHECK_OK(qcow2_pread(opaque, block, sizeof block, i % 512 * sizeof block));
        if (i % 4 == 0) {
            CHECK_OK(qcow2_flush(opaque));
        }
        test_info(opaque);
    }
    return NULL;
}

static void *open_and_close(void *opaque)
{
    while (!atomic_load(&stop)) {
        qcow2_image *image = test_open(opaque, 0, NULL), *none;

        CHECK_ERROR(qcow2_open(opaque, 0, NULL, &none), EAGAIN);
        test_close(image);
    }
    return NULL;
}

static const char *of_the_child;

static void child(void *opaque)
{
    char byte;

    alarm(20);
    CHECK_ERROR(qcow2_pread(opaque, &byte, 1, 0), EOWNERDEAD);
    CHECK_ERROR(qcow2_flush(opaque), EOWNERDEAD);
    CHECK_ERROR(qcow2_close(opaque), EOWNERDEAD);
    test_close(test_open(of_the_child, 0, NULL));
}

int main(void)
{
#ifdef __SANITIZE_ADDRESS__
    /* Its allocator holds no locks over fork, so that a child of several threads may wait in malloc for ever. */
    return 77;
#endif
    qcow2_image *image = test_open(test_create("disk.qcow2", 4 * MIB, "cluster_size=4k", NULL), 0, NULL);
    union {
        const char *in;
        void *out;
    } other = {.in = test_create("other.qcow2", MIB, NULL)};
    pthread_t threads[4];

    of_the_child = test_create("child.qcow2", MIB, NULL);
    for (unsigned t = 0; t < 4; t++) {
        CHECK_EQ(pthread_create(&threads[t], NULL, t < 3 ? use_the_handle : open_and_close,
                                t < 3 ? (void *)image : other.out),
                 0);
    }
    for (unsigned i = 0; i < (test_under_valgrind() ? 3u : 100u); i++) {
        test_in_child(child, image);
    }
    atomic_store(&stop, true);
    for (unsigned t = 0; t < 4; t++) {
        CHECK_EQ(pthread_join(threads[t], NULL), 0);
    }
    test_close(image);
    test_expect_sound(test_path("disk.qcow2"), false);
    return 0;
}
