/* SIGKILL at a random moment of eight threads' writes. Nothing that a completed flush covered is lost, nothing is
   corrupt after the repair, and with metadata write-through nothing that a completed write covered is lost.

   QCOW2_TEST_KILLS sets how often (10); QCOW2_TEST_SEED the first seed.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

enum { THREADS = 8, SECTOR = 512, MAX_RUN = 64 };
#define SECTORS_EACH 2048u
#define DISK_BYTES ((uint64_t)THREADS * SECTORS_EACH * SECTOR)

/* What the child has done, in memory that survives it. A sector holds the round of the last write to it; rounds only
   grow. Zeroes are as old as the last round that made zeroes there. */
struct ledger {
    struct {
        _Atomic uint32_t begun;    /* set before a write */
        _Atomic uint32_t zeroed;   /* set before a write of zeroes */
        _Atomic uint32_t complete; /* set after it */
        _Atomic uint32_t flushed;  /* value of `complete` before a flush that then succeeded */
    } sector[THREADS][SECTORS_EACH];
    _Atomic unsigned failures, writes;
};

struct job {
    qcow2_image *image;
    struct ledger *ledger;
    unsigned number;
    uint64_t seed;
};

static void stamp(unsigned char *sector, uint32_t value, uint64_t number)
{
    uint64_t words[2] = {value, value == 0 ? 0 : number + 1};

    for (unsigned at = 0; at < SECTOR; at += sizeof words) {
        memcpy(sector + at, words, sizeof words);
    }
}

static void flush_all(struct job *job)
{
    static _Thread_local uint32_t seen[THREADS][SECTORS_EACH];

    for (unsigned t = 0; t < THREADS; t++) {
        for (unsigned i = 0; i < SECTORS_EACH; i++) {
            seen[t][i] = atomic_load(&job->ledger->sector[t][i].complete);
        }
    }
    if (qcow2_flush(job->image) != 0) {
        atomic_fetch_add(&job->ledger->failures, 1);
        return;
    }
    for (unsigned t = 0; t < THREADS; t++) {
        for (unsigned i = 0; i < SECTORS_EACH; i++) {
            uint32_t old = atomic_load(&job->ledger->sector[t][i].flushed);

            while (old < seen[t][i] &&
                   !atomic_compare_exchange_weak(&job->ledger->sector[t][i].flushed, &old, seen[t][i])) {
            }
        }
    }
}

static void *run(void *opaque)
{
    struct job *job = opaque;
    unsigned char buffer[MAX_RUN * SECTOR];
    uint64_t first = (uint64_t)job->number * SECTORS_EACH;

    for (uint32_t round = 1;; round++) {
        unsigned count = 1 + (unsigned)(test_random(&job->seed) % MAX_RUN);
        unsigned at = (unsigned)(test_random(&job->seed) % (SECTORS_EACH - count + 1));

        bool zero = test_random(&job->seed) % 8 == 0;
        int64_t done;

        for (unsigned i = 0; i < count; i++) {
            if (zero) {
                atomic_store(&job->ledger->sector[job->number][at + i].zeroed, round);
            }
            atomic_store(&job->ledger->sector[job->number][at + i].begun, round);
            stamp(buffer + i * SECTOR, round, first + at + i);
        }
        if (zero) {
            done =
                qcow2_write_zeroes(job->image, (first + at) * SECTOR, count * SECTOR, round % 2 ? QCOW2_REQ_UNMAP : 0);
        } else {
            done = qcow2_pwrite(job->image, buffer, count * SECTOR, (first + at) * SECTOR);
        }
        if (done < 0) {
            atomic_fetch_add(&job->ledger->failures, 1);
        }
        for (unsigned i = 0; i < count; i++) {
            atomic_store(&job->ledger->sector[job->number][at + i].complete, round);
        }
        atomic_fetch_add(&job->ledger->writes, 1);
        if (test_random(&job->seed) % 32 == 0) {
            flush_all(job);
        }
    }
    return NULL;
}

static void child_main(const char *path, const char *option, struct ledger *ledger, uint64_t seed)
{
    struct job jobs[THREADS];
    pthread_t threads[THREADS];
    qcow2_image *image = test_open(path, 0, option, NULL);

    for (unsigned t = 0; t < THREADS; t++) {
        jobs[t] = (struct job){image, ledger, t, seed + t};
        CHECK_EQ(pthread_create(&threads[t], NULL, run, &jobs[t]), 0);
    }
    pthread_join(threads[0], NULL);
}

static void verify(qcow2_image *image, struct ledger *ledger, bool writes_count, uint64_t seed)
{
    unsigned char *buffer = malloc(SECTORS_EACH * SECTOR), expected[SECTOR];

    CHECK(buffer != NULL);
    for (unsigned t = 0; t < THREADS; t++) {
        CHECK_OK(qcow2_pread(image, buffer, SECTORS_EACH * SECTOR, (uint64_t)t * SECTORS_EACH * SECTOR));
        for (unsigned i = 0; i < SECTORS_EACH; i++) {
            uint64_t value, number = (uint64_t)t * SECTORS_EACH + i;
            uint32_t least =
                writes_count ? atomic_load(&ledger->sector[t][i].complete) : atomic_load(&ledger->sector[t][i].flushed);

            memcpy(&value, buffer + i * SECTOR, sizeof value);
            stamp(expected, (uint32_t)value, number);
            if (memcmp(buffer + i * SECTOR, expected, SECTOR) != 0) {
                test_fail(__FILE__, __LINE__, "seed %" PRIu64 ": thread %u's sector %u is torn or misplaced", seed, t,
                          i);
            }
            if (value == 0) {
                value = atomic_load(&ledger->sector[t][i].zeroed);
            }
            if (value < least) {
                test_fail(__FILE__, __LINE__,
                          "seed %" PRIu64 ": thread %u's sector %u holds write %" PRIu64 ", but write %u had been %s",
                          seed, t, i, value, least, writes_count ? "completed" : "flushed");
            }
            if (value > atomic_load(&ledger->sector[t][i].begun)) {
                test_fail(__FILE__, __LINE__, "seed %" PRIu64 ": thread %u's sector %u comes from the future", seed, t,
                          i);
            }
        }
    }
    free(buffer);
}

static void one_kill(uint64_t seed, uint64_t *writes)
{
    static const char *const clusters[] = {"cluster_size=64k", "cluster_size=4k", "cluster_size=512"};
    bool lazy = seed % 2 == 0, through = seed / 2 % 2 == 0;
    struct ledger *ledger = mmap(NULL, sizeof *ledger, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    const char *path = test_create("disk.qcow2", DISK_BYTES, lazy ? "lazy_refcounts=on" : "lazy_refcounts=off",
                                   clusters[seed / 4 % 3], NULL);
    qcow2_check_result result = {.struct_size = sizeof result};
    uint64_t state = seed;
    uint32_t crc;
    pid_t child;

    CHECK(ledger != MAP_FAILED);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        child_main(path, through ? "metadata-writethrough=on" : "metadata-writethrough=off", ledger, seed * 1000);
        _exit(0);
    }
    /* At least a few writes; then any moment. */
    struct timespec pause = {0, 1000000};
    while (atomic_load(&ledger->writes) < 8 && waitpid(child, NULL, WNOHANG) == 0) {
        nanosleep(&pause, NULL);
    }
    pause.tv_nsec = (long)(test_random(&state) % 150000000);
    nanosleep(&pause, NULL);
    CHECK_EQ(kill(child, SIGKILL), 0);
    CHECK(WIFSIGNALED(test_wait(child)));
    CHECK_EQ(atomic_load(&ledger->failures), 0);
    *writes += atomic_load(&ledger->writes);

    qcow2_image *image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    verify(image, ledger, through, seed);
    if (!lazy) {
        CHECK_EQ(test_info(image).dirty, 0);
        CHECK_OK(qcow2_check(image, 0, &result, NULL, NULL, NULL, NULL));
        if (result.corruptions != 0) {
            test_fail(__FILE__, __LINE__, "seed %" PRIu64 ": %" PRIu64 " corruptions without lazy refcounts", seed,
                      result.corruptions);
        }
    }
    crc = test_checksum(image);
    test_close(image);

    image = test_open(path, 0, NULL);
    CHECK_EQ(test_checksum(image), crc);
    CHECK_EQ(test_info(image).dirty, 0);
    test_close(image);
    test_expect_sound(path, !lazy);

    /* And it goes on. */
    image = test_open(path, 0, NULL);
    verify(image, ledger, through, seed);
    test_fill(image, 0, DISK_BYTES, 0x3c);
    test_expect(image, 0, DISK_BYTES, 0x3c);
    test_close(image);
    test_expect_sound(path, !lazy);
    munmap(ledger, sizeof *ledger);
}

int main(void)
{
    uint64_t kills = test_setting("QCOW2_TEST_KILLS", test_under_valgrind() ? 1 : 10), writes = 0;
    uint64_t seed = test_setting("QCOW2_TEST_SEED", 1);

    for (uint64_t i = 0; i < kills; i++) {
        one_kill(seed + i, &writes);
    }
    printf("%" PRIu64 " kills, %" PRIu64 " completed writes\n", kills, writes);
    return 0;
}
