/* Eight threads, one handle, no lock of the caller's: every sector holds what the last write to it put there, and
   sectors that several threads write at once hold one of the writes, whole.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

enum { THREADS = 8, SECTOR = 512, MAX_SECTORS = 300 };
#define SECTORS_EACH (8 * 1024u)
#define SHARED_FROM ((uint64_t)THREADS * SECTORS_EACH)
#define SHARED 256u
#define DISK_BYTES ((SHARED_FROM + SHARED) * SECTOR)

struct job {
    qcow2_image *image;
    unsigned number, rounds;
    uint64_t seed;
    uint32_t *model; /* what each of this thread's sectors holds; 0: zeroes */
};

/* A sector repeats its stamp and its number, so that a torn or misplaced one is seen. */
static void stamp(unsigned char *sector, uint32_t value, uint64_t number)
{
    uint64_t words[2] = {value, value == 0 ? 0 : number};

    for (unsigned at = 0; at < SECTOR; at += sizeof words) {
        memcpy(sector + at, words, sizeof words);
    }
}

static void *run(void *opaque)
{
    struct job *job = opaque;
    unsigned char *buffer = malloc(MAX_SECTORS * SECTOR), expected[SECTOR];
    uint64_t first_sector = (uint64_t)job->number * SECTORS_EACH;

    CHECK(buffer != NULL);
    for (unsigned round = 1; round <= job->rounds; round++) {
        unsigned count = 1 + (unsigned)(test_random(&job->seed) % (round % 8 == 0 ? MAX_SECTORS : 16));
        unsigned at = (unsigned)(test_random(&job->seed) % (SECTORS_EACH - count));
        uint64_t offset = (first_sector + at) * SECTOR;
        uint32_t value = round * THREADS + job->number;

        switch (test_random(&job->seed) % 10) {
        case 0:
        case 1:
        case 2:
        case 3: /* write, sometimes from several buffers */
            for (unsigned i = 0; i < count; i++) {
                job->model[at + i] = value;
                stamp(buffer + i * SECTOR, value, first_sector + at + i);
            }
            if (round % 2 == 0) {
                struct iovec parts[3] = {{buffer, 100}, {buffer + 100, 0}, {buffer + 100, count * SECTOR - 100}};
                CHECK_EQ(CHECK_OK(qcow2_pwritev(job->image, parts, 3, offset)), count * SECTOR);
            } else {
                CHECK_EQ(CHECK_OK(qcow2_pwrite(job->image, buffer, count * SECTOR, offset)), count * SECTOR);
            }
            break;
        case 4:
            CHECK_OK(qcow2_write_zeroes(job->image, offset, count * SECTOR, round % 2 ? QCOW2_REQ_UNMAP : 0));
            memset(job->model + at, 0, count * sizeof *job->model);
            break;
        case 5: /* where everybody writes */
            at = (unsigned)(test_random(&job->seed) % SHARED);
            stamp(buffer, value, SHARED_FROM + at);
            CHECK_OK(qcow2_pwrite(job->image, buffer, SECTOR, (SHARED_FROM + at) * SECTOR));
            break;
        case 6:
            if (round % 16 == 0) {
                CHECK_OK(qcow2_flush(job->image));
            }
            break;
        default:
            memset(buffer, 0xee, count * SECTOR);
            CHECK_OK(qcow2_pread(job->image, buffer, count * SECTOR, offset));
            for (unsigned i = 0; i < count; i++) {
                stamp(expected, job->model[at + i], first_sector + at + i);
                if (memcmp(buffer + i * SECTOR, expected, SECTOR) != 0) {
                    test_fail(__FILE__, __LINE__, "thread %u, round %u: sector %u is not what was written", job->number,
                              round, at + i);
                }
            }
        }
    }
    free(buffer);
    return NULL;
}

static void verify(qcow2_image *image, const struct job *jobs)
{
    unsigned char *buffer = malloc(SECTORS_EACH * SECTOR), expected[SECTOR];

    CHECK(buffer != NULL);
    for (unsigned t = 0; t < THREADS; t++) {
        CHECK_OK(qcow2_pread(image, buffer, SECTORS_EACH * SECTOR, (uint64_t)t * SECTORS_EACH * SECTOR));
        for (unsigned i = 0; i < SECTORS_EACH; i++) {
            stamp(expected, jobs[t].model[i], (uint64_t)t * SECTORS_EACH + i);
            if (memcmp(buffer + i * SECTOR, expected, SECTOR) != 0) {
                test_fail(__FILE__, __LINE__, "thread %u's sector %u is not what was written", t, i);
            }
        }
    }
    CHECK_OK(qcow2_pread(image, buffer, SHARED * SECTOR, SHARED_FROM * SECTOR));
    for (unsigned i = 0; i < SHARED; i++) {
        uint64_t value;

        memcpy(&value, buffer + i * SECTOR, sizeof value);
        stamp(expected, (uint32_t)value, SHARED_FROM + i);
        if (memcmp(buffer + i * SECTOR, expected, SECTOR) != 0) {
            test_fail(__FILE__, __LINE__, "shared sector %u is a mixture", i);
        }
    }
    free(buffer);
}

static void one_geometry(const char *cluster_size, const char *lazy, const char *cache, uint64_t seed)
{
    struct job jobs[THREADS];
    pthread_t threads[THREADS];
    const char *path = test_create("disk.qcow2", DISK_BYTES, cluster_size, lazy, NULL);
    qcow2_image *image = test_open(path, 0, cache, NULL);

    for (unsigned t = 0; t < THREADS; t++) {
        jobs[t] = (struct job){image, t, (unsigned)test_setting("QCOW2_TEST_SLOW", 0) ? 60 : 1500, seed * 100 + t,
                               calloc(SECTORS_EACH, sizeof(uint32_t))};
        CHECK(jobs[t].model != NULL);
        CHECK_EQ(pthread_create(&threads[t], NULL, run, &jobs[t]), 0);
    }
    for (unsigned t = 0; t < THREADS; t++) {
        CHECK_EQ(pthread_join(threads[t], NULL), 0);
    }
    verify(image, jobs);
    test_close(image);
    test_expect_sound(path, false);

    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    verify(image, jobs);
    test_close(image);
    for (unsigned t = 0; t < THREADS; t++) {
        free(jobs[t].model);
    }
}

int main(void)
{
    one_geometry("cluster_size=64k", "lazy_refcounts=off", "cache=writeback", 1);
    one_geometry("cluster_size=4k", "lazy_refcounts=on", "cache=writeback", 2);
    /* Tables grow and slices are evicted all the time. */
    one_geometry("cluster_size=512", "lazy_refcounts=off", "l2-cache-size=4k", 3);
    one_geometry("cluster_size=64k", "lazy_refcounts=on", "metadata-writethrough=on", 4);
    return 0;
}
