/* qcow2-io: write, writev, aio_write, discard, flush.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "io.h"
#include "node.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct write_options {
    bool machine, quiet, vm_state, compressed, fua, no_fallback, unmap, zero, invalid;
    bool pattern_given;
    int pattern;
    const char *source; /* file to fill from, or NULL */
};

/* 0, or -EINVAL after saying what is wrong. */
static int parse_options(const struct io_command *command, int argc, char **argv, struct write_options *options)
{
    int code;

    memset(options, 0, sizeof(*options));
    options->pattern = IO_DEFAULT_PATTERN;
    while ((code = getopt(argc, argv, command->options)) != -1) {
        switch (code) {
        case 'b': options->vm_state = true; break;
        case 'c': options->compressed = true; break;
        case 'C': options->machine = true; break;
        case 'f': options->fua = true; break;
        case 'n': options->no_fallback = true; break;
        case 'q': options->quiet = true; break;
        case 'p':
        case 'r': break;
        case 'u': options->unmap = true; break;
        case 'z': options->zero = true; break;
        case 's': options->source = optarg; break;
        case 'i': options->invalid = true; return 0;
        case 'P':
            options->pattern_given = true;
            if (!io_pattern(optarg, &options->pattern)) {
                return -EINVAL;
            }
            break;
        default: return io_usage(command);
        }
    }
    return 0;
}

/* What may not be asked for at once; NULL when all is well. */
static const char *conflict(const struct write_options *options)
{
    if (options->vm_state && options->zero) {
        return "-b and -z cannot be specified at the same time";
    }
    if (options->fua && (options->vm_state || options->compressed)) {
        return "-f and -b or -c cannot be specified at the same time";
    }
    if (options->no_fallback && !options->zero) {
        return "-n requires -z to be specified";
    }
    if (options->unmap && !options->zero) {
        return "-u requires -z to be specified";
    }
    if (options->zero + options->pattern_given + (options->source != NULL) > 1) {
        return "Only one of -z, -P, and -s can be specified at the same time";
    }
    return NULL;
}

static int write_zeroes(const struct write_options *options, int64_t offset, int64_t bytes)
{
    uint64_t flags = 0;

    flags |= options->fua ? QCOW2_REQ_FUA : 0;
    flags |= options->unmap ? QCOW2_REQ_UNMAP : 0;
    flags |= options->no_fallback ? QCOW2_REQ_NO_FALLBACK : 0;
    return IO_ASK(qcow2_write_zeroes(io.image, (uint64_t)offset, (uint64_t)bytes, flags));
}

/* The start of a disk whose format was guessed does not become what would be guessed as another one the next time. */
static int check_start(const struct iovec *parts, int count, int64_t offset)
{
    unsigned char block[512];
    size_t at = (size_t)offset;
    int64_t length = IO_ASK(qcow2_length(io.image));
    ssize_t ret;

    if (!io.spec.probed_raw || offset >= 512 || length < 512) {
        return 0;
    }
    ret = IO_ASK(qcow2_pread(io.image, block, sizeof(block), 0));
    if (ret < 0) {
        return (int)ret;
    }
    for (int i = 0; i < count && at < sizeof(block); i++) {
        size_t bytes = parts[i].iov_len < sizeof(block) - at ? parts[i].iov_len : sizeof(block) - at;

        memcpy(block + at, parts[i].iov_base, bytes);
        at += bytes;
    }
    return strcmp(probe_bytes(block, sizeof(block)), "raw") == 0 ? 0 : -EPERM;
}

static int write_data(const struct write_options *options, const struct iovec *parts, int count, int64_t offset)
{
    uint64_t flags = (options->fua ? QCOW2_REQ_FUA : 0) | (options->compressed ? QCOW2_REQ_COMPRESSED : 0);
    ssize_t ret = check_start(parts, count, offset);

    if (ret < 0) {
        return (int)ret;
    }
    if (options->vm_state) {
        ret = IO_ASK(qcow2_vmstate_write(io.image, parts[0].iov_base, parts[0].iov_len, (uint64_t)offset));
    } else {
        ret = IO_ASK(qcow2_pwritev2(io.image, parts, count, (uint64_t)offset, flags));
    }
    return ret < 0 ? (int)ret : 0;
}

static void report(FILE *out, const struct write_options *options, uint64_t start, int64_t offset, int64_t bytes)
{
    if (!options->quiet) {
        io_report(out, "wrote", monotonic_nanoseconds() - start, offset, bytes, options->machine);
    }
}

static int write_buffer(const struct write_options *options, int64_t offset, int64_t bytes)
{
    struct iovec part = {NULL, (size_t)bytes};
    uint64_t start;
    int ret;

    if (!options->zero) {
        part.iov_base = options->source != NULL ? io_buffer_from_file(options->source, (size_t)bytes)
                                                : io_buffer((size_t)bytes, options->pattern);
        if (part.iov_base == NULL) {
            return -EINVAL;
        }
    }
    start = monotonic_nanoseconds();
    ret = options->zero ? write_zeroes(options, offset, bytes) : write_data(options, &part, 1, offset);
    if (ret < 0) {
        ret = io_failed(stdout, "write", ret, offset, bytes);
    } else {
        report(stdout, options, start, offset, bytes);
    }
    io_buffer_free(part.iov_base);
    return ret;
}

int cmd_write(const struct io_command *command, int argc, char **argv)
{
    struct write_options options;
    const char *reason;
    int64_t offset, bytes;
    int ret = parse_options(command, argc, argv, &options);

    if (ret < 0) {
        return ret;
    }
    if (optind != argc - 2) {
        return io_usage(command);
    }
    reason = conflict(&options);
    if (reason != NULL) {
        printf("%s\n", reason);
        return -EINVAL;
    }
    if (!io_number(argv[optind], &offset) || !io_number(argv[optind + 1], &bytes)) {
        return -EINVAL;
    }
    if (bytes > IO_REQUEST_LIMIT && !options.no_fallback) {
        printf("length cannot exceed %" PRId64 " without -n, given %s\n", IO_REQUEST_LIMIT, argv[optind + 1]);
        return -EINVAL;
    }
    if ((options.vm_state || options.compressed) &&
        (!io_sector_aligned(offset, "offset") || !io_sector_aligned(bytes, "count"))) {
        return -EINVAL;
    }
    return write_buffer(&options, offset, bytes);
}

/* A vectored request, or one for zeroes, with what it needs. */
struct write_task {
    struct io_task task;
    struct write_options options;
    struct io_vector vector;
    int64_t offset, bytes;
};

static int write_vector(FILE *out, const char *what, const struct write_options *options,
                        const struct io_vector *vector)
{
    uint64_t start = monotonic_nanoseconds();
    int ret = write_data(options, vector->parts, vector->count, vector->offset);

    if (ret < 0) {
        return io_failed(out, what, ret, vector->offset, vector->bytes);
    }
    report(out, options, start, vector->offset, vector->bytes);
    return 0;
}

int cmd_writev(const struct io_command *command, int argc, char **argv)
{
    struct write_options options;
    struct io_vector vector;
    int ret = parse_options(command, argc, argv, &options);

    if (ret == 0 && optind > argc - 2) {
        ret = io_usage(command);
    }
    if (ret < 0) {
        return ret;
    }
    if (!io_vector_parse(&vector, argv + optind, options.pattern)) {
        return -EINVAL;
    }
    ret = write_vector(stdout, "writev", &options, &vector);
    io_vector_free(&vector);
    return ret;
}

static void run_task(struct io_task *task)
{
    struct write_task *write = (struct write_task *)task;
    uint64_t start = monotonic_nanoseconds();
    int ret;

    if (!write->options.zero) {
        write_vector(task->out, "aio_write", &write->options, &write->vector);
        return;
    }
    ret = write_zeroes(&write->options, write->offset, write->bytes);
    if (ret < 0) {
        io_failed(task->out, "aio_write", ret, write->offset, write->bytes);
    } else {
        report(task->out, &write->options, start, write->offset, write->bytes);
    }
}

static void free_task(struct io_task *task)
{
    struct write_task *write = (struct write_task *)task;

    if (!write->options.zero) {
        io_vector_free(&write->vector);
    }
    free(write);
}

static int submit(const struct write_options *options, char *const *arguments)
{
    struct write_task made = {.task = {.run = run_task, .free = free_task}, .options = *options}, *task;
    bool good;

    if (options->zero) {
        good = io_number(arguments[0], &made.offset) && io_number(arguments[1], &made.bytes);
    } else {
        good = io_vector_parse(&made.vector, arguments, options->pattern);
    }
    if (!good) {
        return -EINVAL;
    }
    task = memory_or_exit(malloc(sizeof(*task)));
    *task = made;
    io_submit(&task->task);
    return 0;
}

int cmd_aio_write(const struct io_command *command, int argc, char **argv)
{
    struct write_options options;
    int ret = parse_options(command, argc, argv, &options);

    if (ret < 0) {
        return ret;
    }
    if (options.invalid) {
        printf("injecting invalid write request\n");
        return 0;
    }
    if (optind > argc - 2) {
        return io_usage(command);
    }
    if (options.zero && optind != argc - 2) {
        printf("-z supports only a single length parameter\n");
        return -EINVAL;
    }
    if (options.unmap && !options.zero) {
        printf("-u requires -z to be specified\n");
        return -EINVAL;
    }
    return submit(&options, argv + optind);
}

int cmd_flush(const struct io_command *command, int argc, char **argv)
{
    (void)command, (void)argc, (void)argv;
    return IO_ASK(qcow2_flush(io.image));
}

int cmd_discard(const struct io_command *command, int argc, char **argv)
{
    struct write_options options;
    int64_t offset, bytes;
    uint64_t start;
    int ret = parse_options(command, argc, argv, &options);

    if (ret < 0) {
        return ret;
    }
    if (optind != argc - 2) {
        return io_usage(command);
    }
    if (!io_number(argv[optind], &offset) || !io_number(argv[optind + 1], &bytes)) {
        return -EINVAL;
    }
    if (bytes > IO_REQUEST_LIMIT) {
        printf("length cannot exceed %" PRId64 ", given %s\n", IO_REQUEST_LIMIT, argv[optind + 1]);
        return -EINVAL;
    }
    start = monotonic_nanoseconds();
    ret = IO_ASK(qcow2_discard(io.image, (uint64_t)offset, (uint64_t)bytes));
    if (ret < 0) {
        return io_failed(stdout, "discard", ret, offset, bytes);
    }
    if (!options.quiet) {
        io_report(stdout, "discard", monotonic_nanoseconds() - start, offset, bytes, options.machine);
    }
    return 0;
}
