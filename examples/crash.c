/* The main job: lazy refcounts from create to crash to repair, with nothing lost that a flush covered.
   SPDX-License-Identifier: MIT OR Apache-2.0
   cc crash.c $(pkg-config --cflags --libs qcow2) -pthread -o crash && ./crash disk.qcow2 [SECONDS [ROUNDS]]

   Each round a child process writes from several threads and flushes now and then; it is killed at a random
   moment. The parent opens the image, which repairs it, and compares every block with what was flushed. */
#include <pthread.h>
#include <qcow2.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* One block in each cluster of 64 KiB, so that almost every write allocates. */
enum { THREADS = 8, BLOCK_BYTES = 4096, BLOCKS = 65536, STRIDE_BYTES = 65536, FLUSH_EVERY = 32 };
#define DISK_BYTES ((uint64_t)BLOCKS * STRIDE_BYTES)

/* What survives the kill: for each block the last number written, and the last one that a flush covered. */
struct record {
    _Atomic uint32_t written[BLOCKS];
    _Atomic uint32_t flushed[BLOCKS];
    _Atomic uint64_t writes, flushes;
};

struct writer {
    qcow2_image *image;
    struct record *record;
    unsigned number, seed;
};

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, qcow2_last_error());
    exit(1);
}

static void fill(unsigned char *block, uint32_t index, uint32_t number)
{
    for (uint32_t at = 0; at < BLOCK_BYTES; at += 8) {
        memcpy(block + at, &index, 4);
        memcpy(block + at + 4, &number, 4);
    }
}

/* Thread N owns the blocks whose index is N modulo THREADS. */
static void *write_for_ever(void *opaque)
{
    struct writer *w = opaque;
    uint32_t pending[FLUSH_EVERY], numbers[FLUSH_EVERY];
    unsigned char block[BLOCK_BYTES];
    int count = 0;

    for (;;) {
        uint32_t index = (uint32_t)rand_r(&w->seed) % (BLOCKS / THREADS) * THREADS + w->number;
        uint32_t number = atomic_load(&w->record->written[index]) + 1;

        fill(block, index, number);
        atomic_store(&w->record->written[index], number);
        if (qcow2_pwrite(w->image, block, BLOCK_BYTES, (uint64_t)index * STRIDE_BYTES) < 0) {
            fail("write");
        }
        pending[count] = index;
        numbers[count++] = number;
        atomic_fetch_add(&w->record->writes, 1);
        if (count < FLUSH_EVERY) {
            continue;
        }
        if (qcow2_flush(w->image) < 0) {
            fail("flush");
        }
        for (int i = 0; i < count; i++) {
            if (atomic_load(&w->record->flushed[pending[i]]) < numbers[i]) {
                atomic_store(&w->record->flushed[pending[i]], numbers[i]);
            }
        }
        atomic_fetch_add(&w->record->flushes, 1);
        count = 0;
    }
    return NULL;
}

static void child(const char *path, struct record *record, unsigned seed)
{
    struct writer writers[THREADS];
    pthread_t thread;
    qcow2_image *image;

    if (qcow2_open(path, 0, NULL, &image) < 0) {
        fail("open");
    }
    for (unsigned i = 0; i < THREADS; i++) {
        writers[i] = (struct writer){image, record, i, seed * THREADS + i};
        if (pthread_create(&thread, NULL, write_for_ever, &writers[i]) != 0) {
            exit(1);
        }
    }
    pause();
}

/* Shows progress until the moment of the kill. */
static void watch(struct record *record, int round, int rounds, long milliseconds)
{
    for (long passed = 0; passed < milliseconds; passed += 100) {
        struct timespec tenth = {0, 100000000};

        fprintf(stderr, "\rround %d of %d: %llu writes, %llu flushes ", round, rounds,
                (unsigned long long)atomic_load(&record->writes), (unsigned long long)atomic_load(&record->flushes));
        nanosleep(&tenth, NULL);
    }
}

/* Every block holds one whole write, no older than the last flushed one. Returns the blocks with data. */
static unsigned verify(qcow2_image *image, struct record *record)
{
    unsigned char block[BLOCK_BYTES], wanted[BLOCK_BYTES];
    unsigned used = 0;

    for (uint32_t index = 0; index < BLOCKS; index++) {
        uint32_t number;

        if (qcow2_pread(image, block, BLOCK_BYTES, (uint64_t)index * STRIDE_BYTES) < 0) {
            fail("read");
        }
        memcpy(&number, block + 4, 4);
        fill(wanted, number ? index : 0, number);
        if (memcmp(block, wanted, BLOCK_BYTES) != 0 || number > record->written[index] ||
            number < record->flushed[index]) {
            fprintf(stderr, "\nblock %u: holds write %u, flushed was %u, written was %u\n", index, number,
                    record->flushed[index], record->written[index]);
            exit(1);
        }
        record->written[index] = record->flushed[index] = number;
        used += number != 0;
    }
    return used;
}

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : "crash.qcow2";
    double seconds = argc > 2 ? atof(argv[2]) : 2;
    int rounds = argc > 3 ? atoi(argv[3]) : 3;
    const char *options[] = {"lazy_refcounts=on", NULL};
    struct record *record = mmap(NULL, sizeof *record, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (record == MAP_FAILED) {
        return 1;
    }
    if (qcow2_create(path, DISK_BYTES, options) < 0) {
        fail("create");
    }
    printf("created %s: 4 GiB, lazy refcounts\n", path);
    srand((unsigned)time(NULL));
    for (int round = 1; round <= rounds; round++) {
        qcow2_info info = {.struct_size = sizeof info};
        qcow2_image *image;
        uint32_t crc;
        unsigned used, seed = (unsigned)rand();
        int status;
        pid_t pid;

        fflush(stdout);
        pid = fork();
        if (pid == 0) {
            child(path, record, seed);
        }
        watch(record, round, rounds, (long)(seconds * 1000 * (0.5 + rand() % 1000 / 1000.0)));
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
        if (!WIFSIGNALED(status)) {
            return 1;
        }
        fprintf(stderr, "\n");
        if (qcow2_open(path, 0, NULL, &image) < 0 || qcow2_get_info(image, &info) < 0) {
            fail("open after the kill");
        }
        used = verify(image, record);
        if (qcow2_checksum(image, &crc, NULL, NULL) < 0) {
            fail("checksum");
        }
        printf("killed; %s, %llu stale refcounts; %u blocks verified, nothing lost; contents %08x\n",
               info.open_repaired ? "repaired" : "clean", (unsigned long long)info.open_corruptions_fixed, used, crc);
        if (qcow2_close(image) < 0) {
            fail("close");
        }
    }
    return 0;
}
