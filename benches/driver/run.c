/* One workload on one disk, timed.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "bench.h"

#include "count.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

struct job {
    struct disk *disk;
    const struct workload *w;
    pthread_barrier_t *start;
    char *buffer;
    unsigned number;
    uint64_t blocks, done; /* places an operation may go to; operations made */
    _Atomic bool ended;
};

struct usage usage_now(void)
{
    struct rusage r;
    struct timespec t;

    getrusage(RUSAGE_SELF, &r);
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (struct usage){
        .wall = (double)t.tv_sec + (double)t.tv_nsec * 1e-9,
        .user = (double)r.ru_utime.tv_sec + (double)r.ru_utime.tv_usec * 1e-6,
        .system = (double)r.ru_stime.tv_sec + (double)r.ru_stime.tv_usec * 1e-6,
        .faults = (unsigned long long)r.ru_minflt + (unsigned long long)r.ru_majflt,
    };
}

/* The counters of count.c, where it is loaded. */
static const struct counts *counts(void)
{
    static const struct counts *(*get)(void);
    static bool looked;

    if (!looked) {
        void *found = dlsym(RTLD_DEFAULT, "bench_counts");

        memcpy(&get, &found, sizeof get);
        looked = true;
    }
    return get != NULL ? get() : NULL;
}

static struct counts counts_at_start;

static struct {
    double times[65536];
    size_t count;
} flushes;

void begin_counting(void)
{
    if (counts() != NULL)
        counts_at_start = *counts();
    /* Where strace finds the beginning. */
    (void)!access("/bench-begin", F_OK);
}

static void print_counts(void)
{
    const struct counts *now = counts(), *was = &counts_at_start;

    if (now == NULL)
        return;
    printf(", \"reads\": %llu, \"read_bytes\": %llu, \"writes\": %llu, \"written_bytes\": %llu, \"syncs\": %llu, "
           "\"others\": %llu, \"questions\": %llu, \"waits\": %llu",
           now->reads - was->reads, now->read_bytes - was->read_bytes, now->writes - was->writes,
           now->written_bytes - was->written_bytes, now->syncs - was->syncs, now->others - was->others,
           now->questions - was->questions, now->waits - was->waits);
}

static int by_time(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* What the flushes beside the last run have taken, seconds. */
static void print_flushes(void)
{
    size_t count = flushes.count;

    if (count > 0) {
        qsort(flushes.times, count, sizeof *flushes.times, by_time);
        printf(", \"flushes\": %zu, \"flush_median\": %.9f, \"flush_p99\": %.9f, \"flush_worst\": %.9f", count,
               flushes.times[count / 2], flushes.times[count * 99 / 100], flushes.times[count - 1]);
    }
    flushes.count = 0;
}

void print_usage(const struct usage *from, uint64_t operations, uint64_t bytes)
{
    struct usage to = usage_now();

    printf("{\"wall\": %.9f, \"user\": %.6f, \"system\": %.6f, \"faults\": %llu, \"ops\": %llu, \"bytes\": %llu",
           to.wall - from->wall, to.user - from->user, to.system - from->system, to.faults - from->faults,
           (unsigned long long)operations, (unsigned long long)bytes);
    print_counts();
    print_flushes();
    printf("}\n");
    fflush(stdout);
}

/* A bijection of 64-bit numbers that looks like chance (the finalizer of splitmix64). */
uint64_t mix(uint64_t value)
{
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

/* The product of three fractions prefers small numbers: 0 is the most frequent one of 4096. */
static uint64_t skewed(uint64_t r)
{
    return (((r & 0xffff) * (r >> 16 & 0xffff) >> 16) * (r >> 32 & 0xffff)) >> 20;
}

void fill_text(char *buffer, size_t count, uint64_t seed)
{
    enum { PHRASE_WORDS = 4 };
    uint64_t phrase = 0;
    size_t at = 0;

    for (uint64_t i = 0; at < count; i++) {
        uint64_t letters;
        unsigned length;

        if (i % PHRASE_WORDS == 0)
            phrase = skewed(mix(seed * 0x10001 + i));
        letters = mix(skewed(mix(phrase * PHRASE_WORDS + i % PHRASE_WORDS)));
        length = 2 + (unsigned)(letters >> 56) % 9;
        for (unsigned k = 0; k < length && at < count; k++, letters /= 26)
            buffer[at++] = (char)('a' + letters % 26);
        if (at < count)
            buffer[at++] = ' ';
    }
}

/* Where operation number `i` of all goes. `state` is the thread's sequence. */
static inline uint64_t place(const struct job *job, uint64_t i, uint64_t *state)
{
    const struct workload *w = job->w;

    switch (w->order) {
    case RANDOM:
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        return w->start + (uint64_t)((unsigned __int128)*state * job->blocks >> 64) * w->block;
    case STRIDE:
        return w->start + i % job->blocks * w->stride;
    case PERMUTED: /* the number of places is a power of two */
        return w->start + (i * 0x9e3779b1u + w->seed) % job->blocks * w->stride;
    default:
        return w->start + i % job->blocks * w->block;
    }
}

static void wait_for(struct timespec *next, unsigned pace)
{
    next->tv_nsec += pace * 1000L;
    next->tv_sec += next->tv_nsec / 1000000000;
    next->tv_nsec %= 1000000000;
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, next, NULL);
}

static void *work(void *opaque)
{
    struct job *job = opaque;
    const struct workload *w = job->w;
    const struct engine *engine = job->disk->engine;
    uint64_t state = mix(w->seed * 64 + job->number) | 1, count = w->count / w->threads;
    unsigned unflushed = 0;
    struct timespec next;

    if (job->start != NULL)
        pthread_barrier_wait(job->start);
    clock_gettime(CLOCK_MONOTONIC, &next);
    for (uint64_t k = 0; k < count; k++) {
        /* Threads read and write parts of their own one after the other, and take strides in turns. */
        uint64_t i = w->order == SEQUENTIAL || w->order == SHARE ? job->number * count + k : k * w->threads + job->number;
        uint64_t offset = place(job, i, &state);

        if (w->order == SHARE && mix(i) % w->parts != w->part)
            continue;
        if (w->pace > 0)
            wait_for(&next, w->pace);
        if (w->text)
            fill_text(job->buffer, w->block, offset);
        if (w->write)
            engine->write(job->disk, job->buffer, w->block, offset);
        else
            engine->read(job->disk, job->buffer, w->block, offset);
        job->done++;
        if (w->flush_every != 0 && ++unflushed == w->flush_every) {
            engine->flush(job->disk);
            unflushed = 0;
        }
    }
    atomic_store(&job->ended, true);
    return NULL;
}

static struct job *prepare_jobs(struct disk *disk, const struct workload *w, pthread_barrier_t *start)
{
    struct job *jobs = calloc(w->threads, sizeof *jobs);
    uint64_t step = w->order == STRIDE || w->order == PERMUTED ? w->stride : w->block;

    for (unsigned i = 0; jobs != NULL && i < w->threads; i++) {
        jobs[i].disk = disk;
        jobs[i].w = w;
        jobs[i].start = start;
        jobs[i].number = i;
        jobs[i].blocks = w->span / step;
        if (posix_memalign((void **)&jobs[i].buffer, 4096, w->block) != 0)
            fail("no memory");
        /* Nothing that a library could take for a block of zeroes. */
        for (size_t k = 0; k < w->block; k++)
            jobs[i].buffer[k] = (char)(mix(k + w->seed) | 1);
    }
    if (jobs == NULL)
        fail("no memory");
    return jobs;
}

/* Flushes until the threads that write are done. */
static void flush_beside(struct job *jobs, unsigned threads)
{
    struct disk *disk = jobs[0].disk;
    bool running = true;

    while (running && flushes.count < sizeof flushes.times / sizeof flushes.times[0]) {
        double before = usage_now().wall;

        disk->engine->flush(disk);
        flushes.times[flushes.count++] = usage_now().wall - before;
        running = false;
        for (unsigned i = 0; i < threads; i++)
            running |= !atomic_load(&jobs[i].ended);
    }
}

static void run_threads(struct job *jobs, unsigned threads, pthread_barrier_t *start, struct usage *from)
{
    pthread_t *ids = calloc(threads, sizeof *ids);

    for (unsigned i = 0; i < threads; i++)
        if (ids == NULL || pthread_create(&ids[i], NULL, work, &jobs[i]) != 0)
            fail("no thread");
    begin_counting();
    *from = usage_now();
    pthread_barrier_wait(start);
    if (jobs[0].w->flusher)
        flush_beside(jobs, threads);
    for (unsigned i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
    free(ids);
}

void run_workload(struct disk *disk, const struct workload *w)
{
    bool threaded = w->threads > 1 || w->flusher;
    pthread_barrier_t start;
    struct job *jobs;
    struct usage from;
    uint64_t done = 0;

    pthread_barrier_init(&start, NULL, w->threads + 1);
    jobs = prepare_jobs(disk, w, threaded ? &start : NULL);
    if (threaded) {
        run_threads(jobs, w->threads, &start, &from);
    } else {
        begin_counting();
        from = usage_now();
        if (w->depth > 0 && !uring_reads(disk->fd, w)) {
            printf("{\"absent\": \"io_uring\"}\n");
            fflush(stdout);
            return;
        }
        if (w->depth == 0)
            work(&jobs[0]);
        else
            jobs[0].done = w->count;
    }
    if (w->final_flush)
        disk->engine->flush(disk);
    for (unsigned i = 0; i < w->threads; i++)
        done += jobs[i].done;
    print_usage(&from, done, done * w->block);
    (void)!access("/bench-end", F_OK);
    for (unsigned i = 0; i < w->threads; i++)
        free(jobs[i].buffer);
    free(jobs);
    pthread_barrier_destroy(&start);
}
