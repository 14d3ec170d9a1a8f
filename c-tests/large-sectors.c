/* O_DIRECT where a sector of the host has 4096 bytes: requests of 512 bytes beside others in the same block. Each thread
   has sectors of its own and must find there what it has put. Started by devices.sh with a raw file or device, and one
   for a qcow2 image.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define SECTOR 512u
#define BLOCKS 16u
#define THREADS 4u

static qcow2_image *image;
static unsigned rounds;

/* What the kernel tells of alignment: the truth, nothing (before Linux 6.1), or what is too small. */
static enum { TRUTH, NOTHING, TOO_SMALL } told;

/* The library asks by a bare system call, for a C library may be older than the question; it reads and writes so, too. */
__attribute__((no_sanitize("address", "undefined"))) long syscall(long number, ...)
{
    const uint32_t align_mask = 0x2000, sector = SECTOR; /* STATX_DIOALIGN */
    static long (*real)(long, ...);
    va_list arguments;
    long a[6], result;

    if (real == NULL) {
        void *symbol = dlsym(RTLD_NEXT, "syscall");

        memcpy(&real, &symbol, sizeof real);
    }
    va_start(arguments, number);
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(arguments, long);
    }
    va_end(arguments);
    result = real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (number == SYS_statx && result == 0 && ((uint32_t)a[3] & align_mask) && told != TRUTH) {
        char *found; /* struct statx: stx_mask first, stx_dio_offset_align at 0x9c */
        uint32_t mask;

        memcpy(&found, &a[4], sizeof found);
        memcpy(&mask, found, sizeof mask);
        mask = told == NOTHING ? mask & ~align_mask : mask | align_mask;
        memcpy(found, &mask, sizeof mask);
        if (told == TOO_SMALL) {
            memcpy(found + 0x9c, &sector, sizeof sector);
        }
    }
    return result;
}

struct worker {
    pthread_t thread;
    unsigned number;
};

/* The sectors number, number + THREADS, ... */
static void *work(void *opaque)
{
    const struct worker *worker = opaque;
    uint64_t random = worker->number + 1;
    unsigned char buffer[SECTOR];

    for (unsigned i = 0; i < rounds; i++) {
        uint64_t sector = test_random(&random) % (BLOCKS * 8 / THREADS) * THREADS + worker->number;
        int value = (int)(test_random(&random) % 255) + 1;

        test_fill(image, sector * SECTOR, SECTOR, value);
        switch (test_random(&random) % 4) {
        case 0:
            CHECK_OK(qcow2_write_zeroes(image, sector * SECTOR, SECTOR, 0));
            value = 0;
            break;
        case 1:
            CHECK_OK(qcow2_write_zeroes(image, sector * SECTOR, SECTOR, QCOW2_REQ_UNMAP));
            value = 0;
            break;
        case 2:
            /* What is read afterwards is old or zero, and must stay. */
            CHECK_OK(qcow2_discard(image, sector * SECTOR, SECTOR));
            CHECK_EQ(qcow2_pread(image, buffer, SECTOR, sector * SECTOR), SECTOR);
            value = buffer[0];
            break;
        default: break;
        }
        for (unsigned look = 0; look < 3; look++) {
            test_expect(image, sector * SECTOR, SECTOR, value);
        }
    }
    return NULL;
}

static void run(const char *path, uint64_t flags)
{
    struct worker workers[THREADS];

    image = test_open(path, flags, "cache=none", NULL);
    test_fill(image, 0, BLOCKS * 8 * SECTOR, 0xa5);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i].number = i;
        CHECK_EQ(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        CHECK_EQ(pthread_join(workers[i].thread, NULL), 0);
    }
    test_close(image);
}

/* A disk that ends inside a block is written to its end, and stays as long as it is. */
static void end_inside_a_block(const char *path)
{
    uint64_t length = test_file_length(path);

    image = test_open(path, QCOW2_OPEN_RAW, "cache=none", NULL);
    CHECK_EQ(qcow2_truncate(image, length + 3 * SECTOR, QCOW2_PREALLOC_OFF), 0);
    test_fill(image, length + 2 * SECTOR, SECTOR, 0x77);
    CHECK_OK(qcow2_flush(image));
    CHECK_EQ(test_file_length(path), length + 3 * SECTOR);
    test_expect(image, length, 2 * SECTOR, 0);
    test_expect(image, length + 2 * SECTOR, SECTOR, 0x77);
    test_close(image);
}

/* A sparse file, of which a read tells nothing of the sectors. */
static void sparse_file(const char *path)
{
    image = test_open(path, QCOW2_OPEN_RAW, "cache=none", NULL);
    for (unsigned i = 0; i < 64; i += 3) {
        test_expect(image, i * SECTOR, SECTOR, 0);
        test_fill(image, i * SECTOR, SECTOR, (int)i + 1);
        test_expect(image, i * SECTOR, SECTOR, (int)i + 1);
    }
    test_close(image);
}

int main(int argc, char **argv)
{
    rounds = (unsigned)test_setting("QCOW2_TEST_ROUNDS", 1500);
    if (argc != 4) {
        fprintf(stderr, "usage: test-large-sectors device|file RAW QCOW2\n");
        return 2;
    }
    for (told = TRUTH; told <= TOO_SMALL; told++) {
        if (strcmp(argv[1], "file") == 0) {
            uint64_t length = test_file_length(argv[2]);

            CHECK_EQ(truncate(argv[2], 0), 0);
            CHECK_EQ(truncate(argv[2], (off_t)length), 0);
            sparse_file(argv[2]);
            end_inside_a_block(argv[2]);
        }
        run(argv[2], QCOW2_OPEN_RAW);
        CHECK_OK(qcow2_create(argv[3], 4 * MIB, (const char *const[]){"cluster_size=512", NULL}));
        run(argv[3], 0);
        test_expect_sound(argv[3], false);
    }
    return 0;
}
