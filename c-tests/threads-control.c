/* Requests go on while other threads check, reopen, resize, flush, ask for status and drop caches.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <stdatomic.h>

enum { WRITERS = 4, BLOCK = 4096 };
#define AREA (4 * MIB)

static _Atomic bool stop;

struct job {
    qcow2_image *image;
    unsigned number;
    unsigned long rounds;
};

static void *write_and_read(void *opaque)
{
    struct job *job = opaque;
    uint64_t seed = job->number, base = job->number * AREA;
    unsigned char *model = calloc(1, AREA / BLOCK), block[BLOCK];

    CHECK(model != NULL);
    while (!atomic_load(&stop)) {
        unsigned at = (unsigned)(test_random(&seed) % (AREA / BLOCK));
        uint64_t offset = base + (uint64_t)at * BLOCK;

        switch (test_random(&seed) % 4) {
        case 0:
            model[at] = (unsigned char)(job->rounds % 255 + 1);
            memset(block, model[at], sizeof block);
            CHECK_OK(qcow2_pwrite(job->image, block, sizeof block, offset));
            break;
        case 1:
            model[at] = 0;
            CHECK_OK(job->rounds % 2 ? qcow2_discard(job->image, offset, BLOCK)
                                     : qcow2_write_zeroes(job->image, offset, BLOCK, QCOW2_REQ_UNMAP));
            break;
        default:
            CHECK_OK(qcow2_pread(job->image, block, sizeof block, offset));
            CHECK_FILLED(block, sizeof block, model[at]);
        }
        job->rounds++;
    }
    for (unsigned at = 0; at < AREA / BLOCK; at++) {
        test_expect(job->image, base + (uint64_t)at * BLOCK, BLOCK, model[at]);
    }
    free(model);
    return NULL;
}

static void *control(void *opaque)
{
    static const char *const lazy[] = {"lazy-refcounts=on", "l2-cache-size=64k", NULL};
    static const char *const eager[] = {"lazy-refcounts=off", "l2-cache-size=1M", NULL};
    static const char *const through[] = {"metadata-writethrough=on", NULL};
    static const char *const back[] = {"metadata-writethrough=off", NULL};
    qcow2_image *image = opaque;
    qcow2_check_result result = {.struct_size = sizeof result};
    unsigned rounds = test_under_valgrind() ? 2 : 8;

    for (unsigned i = 0; i < rounds; i++) {
        CHECK_OK(qcow2_reopen(image, 0, i % 2 ? lazy : eager));
        CHECK_OK(qcow2_check(image, 0, &result, NULL, NULL, NULL, NULL));
        if (result.corruptions != 0 && !test_info(image).dirty) {
            test_fail(__FILE__, __LINE__, "%" PRIu64 " corruptions under load", result.corruptions);
        }
        CHECK_OK(qcow2_truncate(image, WRITERS * AREA + i % 5 * MIB, QCOW2_PREALLOC_OFF));
        CHECK_OK(qcow2_flush(image));
        CHECK_OK(qcow2_clean_caches(image));
        CHECK_OK(qcow2_clean_caches(image));
        CHECK_OK(qcow2_reopen(image, 0, i % 3 ? through : back));
        test_checksum(image);
    }
    return NULL;
}

static void *look(void *opaque)
{
    while (!atomic_load(&stop)) {
        qcow2_extent extent = {.struct_size = sizeof extent};

        for (uint64_t at = 0; at < WRITERS * AREA; at += extent.length) {
            CHECK_OK(qcow2_block_status(opaque, at, WRITERS * AREA - at, 0, &extent));
            CHECK(extent.length > 0);
        }
        CHECK(qcow2_length(opaque) >= (int64_t)(WRITERS * AREA));
        CHECK_OK(qcow2_flush(opaque));
    }
    return NULL;
}

int main(void)
{
    const char *path = test_create("disk.qcow2", WRITERS * AREA, "cluster_size=4k", NULL);
    qcow2_image *image = test_open(path, 0, NULL);
    pthread_t writers[WRITERS], controller, looker;
    struct job jobs[WRITERS];
    unsigned long rounds = 0;

    alarm(test_under_valgrind() ? 1800 : 300);
    for (unsigned t = 0; t < WRITERS; t++) {
        jobs[t] = (struct job){image, t, 0};
        CHECK_EQ(pthread_create(&writers[t], NULL, write_and_read, &jobs[t]), 0);
    }
    CHECK_EQ(pthread_create(&controller, NULL, control, image), 0);
    CHECK_EQ(pthread_create(&looker, NULL, look, image), 0);
    CHECK_EQ(pthread_join(controller, NULL), 0);
    atomic_store(&stop, true);
    for (unsigned t = 0; t < WRITERS; t++) {
        CHECK_EQ(pthread_join(writers[t], NULL), 0);
        rounds += jobs[t].rounds;
    }
    CHECK_EQ(pthread_join(looker, NULL), 0);
    uint32_t crc = test_checksum(image);
    test_close(image);
    test_expect_sound(path, false);
    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_EQ(test_checksum(image), crc);
    test_close(image);
    printf("%lu requests\n", rounds);
    return 0;
}
