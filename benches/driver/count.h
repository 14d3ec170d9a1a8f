/* What count.c has counted since the process began.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef BENCH_COUNT_H
#define BENCH_COUNT_H

struct counts {
    unsigned long long reads, read_bytes, writes, written_bytes, syncs;
    unsigned long long questions; /* lseek, fstat, statx */
    unsigned long long waits;     /* futex, by number */
    unsigned long long others; /* fallocate, ftruncate, and what is called by number and is no read or write */
};

const struct counts *bench_counts(void);

#endif
