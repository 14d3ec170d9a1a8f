/* What a read through the library costs over pread on a raw file: 4 KiB at random offsets, both files warm and
   fully allocated, the two interleaved, the median of 15 rounds.
   SPDX-License-Identifier: MIT OR Apache-2.0
   cc -O2 readcost.c $(pkg-config --cflags --libs qcow2) -o readcost && ./readcost DIRECTORY [MEBIBYTES] */
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#include <fcntl.h>
#include <qcow2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 15, READS = 100000, BLOCK_BYTES = 4096, CHUNK_BYTES = 1 << 20 };

static char chunk[CHUNK_BYTES];

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double time_reads(int fd, qcow2_image *image, uint64_t blocks, uint64_t seed)
{
    /* Of a small disk, each block some times. */
    int reads = blocks < READS / 32 ? (int)blocks * 32 : READS;
    double start = now();

    for (int i = 0; i < reads; i++) {
        uint64_t offset = next_random(&seed) % blocks * BLOCK_BYTES;
        ssize_t got =
            image ? qcow2_pread(image, chunk, BLOCK_BYTES, offset) : pread(fd, chunk, BLOCK_BYTES, (off_t)offset);

        if (got != BLOCK_BYTES) {
            exit(1);
        }
    }
    return now() - start;
}

/* Written, then dropped from the host's cache and read again: both files in the state that reading leaves. */
static void warm(int fd, uint64_t bytes)
{
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    for (uint64_t at = 0; at < bytes; at += CHUNK_BYTES) {
        if (pread(fd, chunk, CHUNK_BYTES, (off_t)at) < 0) {
            exit(1);
        }
    }
}

int main(int argc, char **argv)
{
    uint64_t bytes = (argc > 2 ? strtoull(argv[2], NULL, 0) : 256) << 20;
    char raw[4096], disk[4096];
    double ratios[ROUNDS];
    qcow2_image *image;
    int fd, container;

    snprintf(raw, sizeof raw, "%s/readcost.raw", argc > 1 ? argv[1] : ".");
    snprintf(disk, sizeof disk, "%s/readcost.qcow2", argc > 1 ? argv[1] : ".");
    fd = open(raw, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || qcow2_create(disk, bytes, NULL) < 0 || qcow2_open(disk, 0, NULL, &image) < 0) {
        fprintf(stderr, "%s\n", qcow2_last_error());
        return 1;
    }
    memset(chunk, 7, sizeof chunk);
    for (uint64_t at = 0; at < bytes; at += CHUNK_BYTES) {
        if (qcow2_pwrite(image, chunk, CHUNK_BYTES, at) < 0 || pwrite(fd, chunk, CHUNK_BYTES, (off_t)at) < 0) {
            return 1;
        }
    }
    qcow2_flush(image);
    container = open(disk, O_RDONLY);
    warm(fd, bytes);
    warm(container, bytes + CHUNK_BYTES);
    for (int round = 0; round < ROUNDS; round++) {
        double plain = time_reads(fd, NULL, bytes / BLOCK_BYTES, 88172645463325252u + (uint64_t)round);
        double ours = time_reads(-1, image, bytes / BLOCK_BYTES, 88172645463325252u + (uint64_t)round);

        ratios[round] = ours / plain;
    }
    qsort(ratios, ROUNDS, sizeof ratios[0], ascending);
    printf("4 KiB random reads, %llu MiB, warm: %.2f times pread on a raw file (median of %d; %.2f to %.2f)\n",
           (unsigned long long)(bytes >> 20), ratios[ROUNDS / 2], ROUNDS, ratios[0], ratios[ROUNDS - 1]);
    close(container);
    close(fd);
    unlink(raw);
    qcow2_close(image);
    unlink(disk);
    return 0;
}
