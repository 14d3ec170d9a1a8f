/* qcow2-io: read, readv, aio_read.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "io.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct read_options {
    bool machine, quiet, dump, vm_state, invalid;
    bool check, check_from, check_length;
    int pattern;
    int64_t from, length; /* the part of the buffer to check */
};

/* 0, or -EINVAL after saying what is wrong. */
static int parse_options(const struct io_command *command, int argc, char **argv, struct read_options *options)
{
    int code;

    memset(options, 0, sizeof(*options));
    while ((code = getopt(argc, argv, command->options)) != -1) {
        switch (code) {
        case 'b': options->vm_state = true; break;
        case 'C': options->machine = true; break;
        case 'q': options->quiet = true; break;
        case 'v': options->dump = true; break;
        case 'p':
        case 'r': break;
        case 'i': options->invalid = true; return 0;
        case 'l':
            options->check_length = true;
            if (!io_number(optarg, &options->length)) {
                return -EINVAL;
            }
            break;
        case 's':
            options->check_from = true;
            if (!io_number(optarg, &options->from)) {
                return -EINVAL;
            }
            break;
        case 'P':
            options->check = true;
            if (!io_pattern(optarg, &options->pattern)) {
                return -EINVAL;
            }
            break;
        default: return io_usage(command);
        }
    }
    return 0;
}

/* Checks, shows and reports what was read: 0, or -EINVAL when the data differs. */
static int show(FILE *out, const struct read_options *options, const unsigned char *buffer, int64_t offset,
                int64_t bytes, uint64_t nanoseconds)
{
    int ret = 0;

    if (options->check &&
        !io_verify(out, buffer + options->from, offset + options->from, options->length, options->pattern)) {
        ret = -EINVAL;
    }
    if (options->quiet) {
        return ret;
    }
    if (options->dump) {
        io_dump(out, buffer, offset, bytes);
    }
    io_report(out, "read", nanoseconds, offset, bytes, options->machine);
    return ret;
}

static bool range_fits(struct read_options *options, int64_t bytes)
{
    if (!options->check_length) {
        options->length = bytes - options->from;
    }
    if (options->from > bytes || options->length < 0 || options->length > bytes - options->from) {
        printf("pattern verification range exceeds end of read data\n");
        return false;
    }
    return true;
}

static int read_arguments(struct read_options *options, char *const *arguments, int64_t *offset, int64_t *bytes)
{
    if (!io_number(arguments[0], offset) || !io_number(arguments[1], bytes)) {
        return -EINVAL;
    }
    if (*bytes > IO_REQUEST_LIMIT) {
        printf("length cannot exceed %" PRId64 ", given %s\n", IO_REQUEST_LIMIT, arguments[1]);
        return -EINVAL;
    }
    return range_fits(options, *bytes) ? 0 : -EINVAL;
}

int cmd_read(const struct io_command *command, int argc, char **argv)
{
    struct read_options options;
    int64_t offset, bytes;
    unsigned char *buffer;
    uint64_t start;
    ssize_t count;
    int ret = parse_options(command, argc, argv, &options);

    if (ret < 0) {
        return ret;
    }
    if (optind != argc - 2 || (!options.check && (options.check_from || options.check_length))) {
        /* The stock tool reads the numbers of a well-formed line first; its complaint wins. */
        if (optind == argc - 2 && (!io_number(argv[optind], &offset) || !io_number(argv[optind + 1], &bytes))) {
            return -EINVAL;
        }
        return io_usage(command);
    }
    ret = read_arguments(&options, argv + optind, &offset, &bytes);
    if (ret < 0) {
        return ret;
    }
    if (options.vm_state && (!io_sector_aligned(offset, "offset") || !io_sector_aligned(bytes, "count"))) {
        return -EINVAL;
    }
    buffer = io_buffer((size_t)bytes, 0xab);
    if (buffer == NULL) {
        return -ENOMEM;
    }
    start = monotonic_nanoseconds();
    if (options.vm_state) {
        count = IO_ASK(qcow2_vmstate_read(io.image, buffer, (size_t)bytes, (uint64_t)offset));
    } else {
        count = IO_ASK(qcow2_pread(io.image, buffer, (size_t)bytes, (uint64_t)offset));
    }
    if (count < 0) {
        ret = io_failed(stdout, "read", (int)count, offset, bytes);
    } else {
        ret = show(stdout, &options, buffer, offset, bytes, monotonic_nanoseconds() - start);
    }
    io_buffer_free(buffer);
    return ret;
}

/* A vectored request with what it needs. */
struct read_task {
    struct io_task task;
    struct read_options options;
    struct io_vector vector;
};

static int read_vector(FILE *out, const struct read_options *options, const struct io_vector *vector)
{
    uint64_t start = monotonic_nanoseconds();
    ssize_t count = IO_ASK(qcow2_preadv(io.image, vector->parts, vector->count, (uint64_t)vector->offset));

    if (count < 0) {
        return io_failed(out, "readv", (int)count, vector->offset, vector->bytes);
    }
    return show(out, options, vector->buffer, vector->offset, vector->bytes, monotonic_nanoseconds() - start);
}

int cmd_readv(const struct io_command *command, int argc, char **argv)
{
    struct read_options options;
    struct io_vector vector;
    int ret = parse_options(command, argc, argv, &options);

    if (ret == 0 && optind > argc - 2) {
        ret = io_usage(command);
    }
    if (ret < 0) {
        return ret;
    }
    if (!io_vector_parse(&vector, argv + optind, 0xab)) {
        return -EINVAL;
    }
    options.length = vector.bytes;
    ret = read_vector(stdout, &options, &vector);
    io_vector_free(&vector);
    return ret;
}

static void run_task(struct io_task *task)
{
    struct read_task *read = (struct read_task *)task;

    read_vector(task->out, &read->options, &read->vector);
}

static void free_task(struct io_task *task)
{
    struct read_task *read = (struct read_task *)task;

    io_vector_free(&read->vector);
    free(read);
}

int cmd_aio_read(const struct io_command *command, int argc, char **argv)
{
    struct read_task *task;
    struct read_options options;
    struct io_vector vector;
    int ret = parse_options(command, argc, argv, &options);

    if (ret < 0) {
        return ret;
    }
    if (options.invalid) {
        printf("injecting invalid read request\n");
        return 0;
    }
    if (optind > argc - 2) {
        return io_usage(command);
    }
    if (!io_vector_parse(&vector, argv + optind, 0xab)) {
        return -EINVAL;
    }
    options.length = vector.bytes;
    task = memory_or_exit(malloc(sizeof(*task)));
    *task = (struct read_task){.task = {.run = run_task, .free = free_task}, .options = options, .vector = vector};
    io_submit(&task->task);
    return 0;
}
