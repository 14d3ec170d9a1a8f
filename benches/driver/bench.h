/* The benchmark's driver: one set of workloads over several engines.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef BENCH_H
#define BENCH_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { OPEN_WRITABLE = 1, OPEN_DIRECT = 2 };
enum { MAX_OPTIONS = 16 };

struct disk;

/* What a workload needs of whoever serves a disk. Everything moves whole ranges, or the driver ends. */
struct engine {
    const char *name;
    void (*open)(struct disk *disk, const char *path, const char *const *options);
    void (*read)(struct disk *disk, void *buffer, size_t count, uint64_t offset);
    void (*write)(struct disk *disk, const void *buffer, size_t count, uint64_t offset);
    void (*flush)(struct disk *disk);
    void (*close)(struct disk *disk);
};

struct disk {
    const struct engine *engine;
    char name[32];
    unsigned flags;
    int fd;                    /* engines over a plain file */
    void *handle;              /* the others */
    const struct peer *peer;   /* a crate's functions */
};

/* What one `run` does. Sizes in bytes. */
struct workload {
    bool write, text, final_flush;
    enum { RANDOM, SEQUENTIAL, STRIDE, PERMUTED, SHARE } order;
    size_t block;              /* of one operation */
    uint64_t start, span;      /* the part of the disk that is used */
    uint64_t stride;           /* STRIDE, PERMUTED: from one operation to the next */
    uint64_t count;            /* operations of all threads together; 0: the span once */
    uint64_t seed;
    unsigned threads, flush_every, depth;
    unsigned pace;             /* microseconds from one operation of a thread to its next, where more than 0 */
    bool flusher;              /* one more thread flushes until the others are done, and each flush is timed */
    unsigned part, parts;      /* SHARE: of each `parts` blocks, spread by chance, the ones of `part` */
};

__attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...);
uint64_t mix(uint64_t value);
uint64_t parse_size(const char *text);
/* The value of the word "key=..." among `words`, or `absent`. */
const char *word(char *const *words, const char *key, const char *absent);

const struct engine *find_engine(const char *name);
extern const struct engine codec_engine, places_engine;

/* Runs and prints one line of JSON. */
void run_workload(struct disk *disk, const struct workload *w);
/* Text of a vocabulary in which frequent words are frequent, which compresses to about two fifths. */
void fill_text(char *buffer, size_t count, uint64_t seed);

/* O_DIRECT reads that keep `depth` requests in an io_uring. Returns false where the host has none. */
bool uring_reads(int fd, const struct workload *w);

struct usage {
    double wall, user, system; /* seconds */
    unsigned long long faults; /* of pages, with and without the disk */
};

struct usage usage_now(void);
/* What is counted from here on belongs to the next print_usage. */
void begin_counting(void);
void print_usage(const struct usage *from, uint64_t operations, uint64_t bytes);

#endif
