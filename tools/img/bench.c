/* qcow2-img bench: requests from as many threads as shall be under way at a time.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

#define DEFAULT_COUNT 75000
#define DEFAULT_BYTES 4096
#define MAX_THREADS 64
#define NANOSECONDS 1e9

enum { OPTION_PATTERN = OPTION_OWN, OPTION_FLUSH_INTERVAL, OPTION_NO_DRAIN };

struct bench_job {
    struct image_args args;
    struct image_spec spec;
    qcow2_image *image;
    bool write, native, no_drain;
    int64_t count, depth, bytes, step, pattern, flush_interval, offset;
    /* Of the run, under the mutex. */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t next_offset, length;
    int64_t left, in_flight, done;
    bool flushing;
    int error;
};

static int take_option(struct bench_job *job, const struct img_command *command, int code)
{
    struct cache_mode cache;
    bool good = true;

    switch (code) {
    case 'S': good = parse_bytes_within(optarg, "step size", 0, INT_MAX, &job->step); break;
    case 'c': good = parse_count_within(optarg, "request count", 1, INT_MAX, &job->count); break;
    case 'd': good = parse_count_within(optarg, "queue depth", 1, INT_MAX, &job->depth); break;
    case 'i':
        good = strcmp(optarg, "threads") == 0 || strcmp(optarg, "native") == 0 || strcmp(optarg, "io_uring") == 0;
        job->native = strcmp(optarg, "native") == 0;
        if (!good) {
            error_report("Invalid aio option: %s", optarg);
        }
        break;
    case 'n': job->native = true; break;
    case 'o': good = parse_bytes(optarg, "offset", &job->offset); break;
    case 's': good = parse_bytes_within(optarg, "buffer size", 1, INT_MAX, &job->bytes); break;
    case 't':
        good = cache_parse(optarg, &cache);
        if (good) {
            image_cache(&job->spec, cache);
        } else {
            error_report("Invalid cache mode");
        }
        break;
    case 'w': job->write = true; break;
    case OPTION_PATTERN: good = parse_count_within(optarg, "pattern byte", 0, 255, &job->pattern); break;
    case OPTION_FLUSH_INTERVAL:
        good = parse_count_within(optarg, "flush interval", 0, INT_MAX, &job->flush_interval);
        break;
    case OPTION_NO_DRAIN: job->no_drain = true; break;
    default: take_image_option(&job->args, command, code);
    }
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}

static int check_options(const struct bench_job *job)
{
    if (!job->write && job->flush_interval) {
        error_report("--flush-interval is only available in write tests");
        return EXIT_FAILURE;
    }
    if (job->flush_interval && job->flush_interval < job->depth) {
        error_report("Flush interval can't be smaller than depth");
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

/* Called with the mutex held; false: there is nothing left to do. */
static bool take_request(struct bench_job *job, uint64_t *offset)
{
    while (job->flushing) {
        pthread_cond_wait(&job->changed, &job->mutex);
    }
    if (job->left == 0 || job->error) {
        return false;
    }
    *offset = job->next_offset;
    job->next_offset += (uint64_t)job->step;
    if (job->length && job->next_offset >= job->length) {
        job->next_offset %= job->length;
    }
    job->left--;
    job->in_flight++;
    return true;
}

static int send_request(const struct bench_job *job, char *buffer, uint64_t offset)
{
    ssize_t done;

    if (offset > job->length || (uint64_t)job->bytes > job->length - offset) {
        return -EIO;
    }
    done = job->write ? qcow2_pwrite(job->image, buffer, (size_t)job->bytes, offset)
                      : qcow2_pread(job->image, buffer, (size_t)job->bytes, offset);
    return done < 0 ? (int)done : 0;
}

/* Called with the mutex held, which is given back while it flushes. */
static void flush_now(struct bench_job *job)
{
    int error;

    job->flushing = !job->no_drain;
    while (!job->no_drain && job->in_flight > 0) {
        pthread_cond_wait(&job->changed, &job->mutex);
    }
    pthread_mutex_unlock(&job->mutex);
    error = qcow2_flush(job->image);
    pthread_mutex_lock(&job->mutex);
    if (error < 0 && !job->error) {
        job->error = error;
    }
    job->flushing = false;
    pthread_cond_broadcast(&job->changed);
}

static void *work(void *opaque)
{
    struct bench_job *job = opaque;
    char *buffer = memory_or_exit(malloc((size_t)job->bytes));
    uint64_t offset;

    memset(buffer, (int)job->pattern, (size_t)job->bytes);
    pthread_mutex_lock(&job->mutex);
    while (take_request(job, &offset)) {
        int error;

        pthread_mutex_unlock(&job->mutex);
        error = send_request(job, buffer, offset);
        pthread_mutex_lock(&job->mutex);
        job->in_flight--;
        job->done++;
        if (error < 0 && !job->error) {
            job->error = error;
        }
        pthread_cond_broadcast(&job->changed);
        if (!job->error && job->flush_interval && job->done % job->flush_interval == 0) {
            flush_now(job);
        }
    }
    pthread_mutex_unlock(&job->mutex);
    free(buffer);
    return NULL;
}

static int run_requests(struct bench_job *job)
{
    pthread_t threads[MAX_THREADS];
    int64_t wanted = job->depth < job->count ? job->depth : job->count, started = 0;
    uint64_t before = monotonic_nanoseconds();

    job->left = job->count;
    job->next_offset = (uint64_t)job->offset;
    while (started + 1 < wanted && started < MAX_THREADS && pthread_create(&threads[started], NULL, work, job) == 0) {
        started++;
    }
    work(job);
    while (started > 0) {
        pthread_join(threads[--started], NULL);
    }
    if (job->error) {
        error_report("Failed request: %s", strerror(-job->error));
        return EXIT_FAILURE;
    }
    printf("Run completed in %3.3f seconds.\n", (double)(monotonic_nanoseconds() - before) / NANOSECONDS);
    return EXIT_SUCCESS;
}

static int bench_open(struct bench_job *job, const char *name)
{
    int64_t length = qcow2_length(job->image);

    if (job->native && !job->spec.cache.direct) {
        error_report("Could not open '%s': aio=native was specified, but it requires cache.direct=on, which was not "
                     "specified.",
                     name);
        return EXIT_FAILURE;
    }
    if (length < 0) {
        error_report("%s", failure_text());
        return EXIT_FAILURE;
    }
    job->length = (uint64_t)length;
    printf("Sending %lld %s requests, %lld bytes each, %lld in parallel (starting at offset %lld, step size %lld)\n",
           (long long)job->count, job->write ? "write" : "read", (long long)job->bytes, (long long)job->depth,
           (long long)job->offset, (long long)job->step);
    if (job->flush_interval) {
        printf("Sending flush every %lld requests\n", (long long)job->flush_interval);
    }
    fflush(stdout);
    return run_requests(job);
}

static int run_bench(const struct img_command *command, int argc, char **argv)
{
    struct bench_job job = {.count = DEFAULT_COUNT,
                            .depth = MAX_THREADS,
                            .bytes = DEFAULT_BYTES,
                            .step = -1,
                            .mutex = PTHREAD_MUTEX_INITIALIZER,
                            .changed = PTHREAD_COND_INITIALIZER};
    const char *name;
    int code, result = EXIT_SUCCESS;

    while (result == EXIT_SUCCESS && (code = next_option(command, argc, argv)) != -1) {
        result = take_option(&job, command, code);
    }
    name = result == EXIT_SUCCESS ? one_file_name(&job.args, command, argc, argv) : NULL;
    if (job.step < 0) {
        job.step = job.bytes;
    }
    result = EXIT_FAILURE;
    if (name && check_options(&job) == EXIT_SUCCESS &&
        open_image(&job.args, name, QCOW2_OPEN_ALLOW_RECORDED | (job.write ? 0 : QCOW2_OPEN_READ_ONLY), &job.spec,
                   &job.image)) {
        result = bench_open(&job, name);
        if (close_image(job.image) != EXIT_SUCCESS) {
            result = EXIT_FAILURE;
        }
    }
    image_spec_free(&job.spec);
    return result;
}

const struct img_command img_bench = {
    .name = "bench",
    .summary = "Measure the speed of requests",
    .operands = "FILENAME",
    .options =
        (const struct img_option[]){IMG_HELP,
                                    IMG_QUIET,
                                    IMG_FORMAT,
                                    IMG_IMAGE_OPTS,
                                    {'t', "cache", "MODE", "cache mode of the image file"},
                                    {'c', "count", "COUNT", "how many requests to send (default 75000)"},
                                    {'d', "depth", "DEPTH", "how many at a time (default 64, which is most)"},
                                    {'o', "offset", "OFFSET", "where the first one is"},
                                    {'s', "buffer-size", "SIZE", "bytes of each (default 4096)"},
                                    {'S', "step-size", "SIZE", "how far the next one is (default: its bytes)"},
                                    {'i', "aio", "AIO", "accepted for compatibility: threads send them"},
                                    {'n', "native", NULL, "accepted for compatibility: needs a direct cache mode"},
                                    {'w', "write", NULL, "write, not read"},
                                    {OPTION_PATTERN, "pattern", "BYTE", "what is written (default 0)"},
                                    {OPTION_FLUSH_INTERVAL, "flush-interval", "COUNT", "flush after so many writes"},
                                    {OPTION_NO_DRAIN, "no-drain", NULL, "do not wait for requests before a flush"},
                                    IMG_SHARE,
                                    IMG_END},
    .run = run_bench,
};
