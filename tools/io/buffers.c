/* Buffers of qcow2-io, and what it prints about requests.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "io.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Aligned for O_DIRECT; never of size 0, so that the pointer always differs from a failure. */
static void *allocate(size_t bytes)
{
    void *buffer = NULL;

    if (posix_memalign(&buffer, 4096, bytes > 0 ? bytes : 1) != 0) {
        printf("cannot allocate %zu bytes\n", bytes);
        return NULL;
    }
    return buffer;
}

void *io_buffer(size_t bytes, int pattern)
{
    void *buffer = allocate(bytes);

    if (buffer != NULL) {
        memset(buffer, pattern, bytes);
    }
    return buffer;
}

void *io_buffer_from_file(const char *path, size_t bytes)
{
    FILE *file = fopen(path, "rb");
    unsigned char *buffer;
    size_t period, filled;
    int error;

    if (file == NULL) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return NULL;
    }
    buffer = allocate(bytes > 0 ? bytes : 1);
    period = buffer != NULL ? fread(buffer, 1, bytes > 0 ? bytes : 1, file) : 0;
    error = ferror(file) ? errno : 0;
    fclose(file);
    if (buffer == NULL) {
        return NULL;
    }
    if (error != 0 || period == 0) {
        fprintf(stderr, "%s: %s\n", path, error != 0 ? strerror(error) : "file is empty");
        free(buffer);
        return NULL;
    }
    for (filled = period; filled < bytes; filled++) {
        buffer[filled] = buffer[filled - period];
    }
    return buffer;
}

void io_buffer_free(void *buffer)
{
    free(buffer);
}

bool io_verify(FILE *out, const unsigned char *buffer, int64_t offset, int64_t bytes, int pattern)
{
    for (int64_t i = 0; i < bytes; i++) {
        if (buffer[i] != pattern) {
            fprintf(out, "Pattern verification failed at offset %" PRId64 ", %" PRId64 " bytes\n", offset, bytes);
            return false;
        }
    }
    return true;
}

void io_dump(FILE *out, const unsigned char *buffer, int64_t offset, int64_t bytes)
{
    for (int64_t line = 0; line < bytes; line += 16) {
        int64_t end = bytes - line < 16 ? bytes : line + 16;

        fprintf(out, "%08" PRIx64 ":  ", (uint64_t)(offset + line));
        for (int64_t i = line; i < end; i++) {
            fprintf(out, "%02x ", buffer[i]);
        }
        fputc(' ', out);
        for (int64_t i = line; i < end; i++) {
            fputc(isalnum(buffer[i]) ? buffer[i] : '.', out);
        }
        fputc('\n', out);
    }
}

/* "00.25 sec" below a second, "H:MM:SS.hh" from there on and for machines. */
static void duration_text(uint64_t nanoseconds, bool clock, char text[SIZE_TEXT_BYTES])
{
    uint64_t seconds = nanoseconds / UINT64_C(1000000000);
    unsigned hundredths = (unsigned)(nanoseconds % UINT64_C(1000000000) / 10000000);

    if (!clock && seconds == 0) {
        snprintf(text, SIZE_TEXT_BYTES, "00.%02u sec", hundredths);
        return;
    }
    snprintf(text, SIZE_TEXT_BYTES, "%" PRIu64 ":%02u:%02u.%02u", seconds / 3600, (unsigned)(seconds / 60 % 60),
             (unsigned)(seconds % 60), hundredths);
}

void io_report(FILE *out, const char *verb, uint64_t nanoseconds, int64_t offset, int64_t bytes, bool machine)
{
    double seconds = (double)(nanoseconds > 0 ? nanoseconds : 1) / 1e9;
    char duration[SIZE_TEXT_BYTES], size[SIZE_TEXT_BYTES], rate[SIZE_TEXT_BYTES];

    duration_text(nanoseconds, machine, duration);
    if (machine) {
        fprintf(out, "%" PRId64 ",1,%s,%.3f,%.3f\n", bytes, duration, (double)bytes / seconds, 1.0 / seconds);
        return;
    }
    size_text_io((double)bytes, size);
    size_text_io((double)bytes / seconds, rate);
    fprintf(out, "%s %" PRId64 "/%" PRId64 " bytes at offset %" PRId64 "\n", verb, bytes, bytes, offset);
    fprintf(out, "%s, 1 ops; %s (%s/sec and %.4f ops/sec)\n", size, duration, rate, 1.0 / seconds);
}

int io_failed(FILE *out, const char *what, int code, int64_t offset, int64_t bytes)
{
    int64_t length = qcow2_length(io.image);
    bool writes = strstr(what, "write") != NULL;

    if (!io.ejected) {
        if (code == -EINVAL && length >= 0 && (bytes > length || offset > length - bytes)) {
            code = -EIO;
        }
        if (tell_corruption_of_write((uint64_t)offset, writes ? io_cluster_size() : 0) == CORRUPTION_MARKED) {
            io.ejected = true;
            code = -EIO;
        }
    }
    fprintf(out, "%s failed: %s\n", what, strerror(-code));
    return code;
}

bool io_sector_aligned(int64_t value, const char *name)
{
    if (value % 512 != 0) {
        printf("%" PRId64 " is not a sector-aligned value for '%s'\n", value, name);
        return false;
    }
    return true;
}

static bool vector_sizes(struct io_vector *vector, char *const *arguments)
{
    for (int i = 0; i < vector->count; i++) {
        int64_t bytes;

        if (!io_number(arguments[i], &bytes)) {
            return false;
        }
        if (bytes > IO_REQUEST_LIMIT) {
            printf("Argument '%s' exceeds maximum size %" PRId64 "\n", arguments[i], IO_REQUEST_LIMIT);
            return false;
        }
        if (bytes > IO_REQUEST_LIMIT - vector->bytes) {
            printf("The total number of bytes exceed the maximum size %" PRId64 "\n", IO_REQUEST_LIMIT);
            return false;
        }
        vector->parts[i].iov_len = (size_t)bytes;
        vector->bytes += bytes;
    }
    return true;
}

bool io_vector_parse(struct io_vector *vector, char *const *arguments, int pattern)
{
    unsigned char *at;

    memset(vector, 0, sizeof(*vector));
    if (!io_number(arguments[0], &vector->offset)) {
        return false;
    }
    while (arguments[1 + vector->count] != NULL) {
        vector->count++;
    }
    vector->parts = memory_or_exit(calloc((size_t)vector->count + 1, sizeof(*vector->parts)));
    if (vector_sizes(vector, arguments + 1)) {
        vector->buffer = io_buffer((size_t)vector->bytes, pattern);
    }
    if (vector->buffer == NULL) {
        io_vector_free(vector);
        return false;
    }
    at = vector->buffer;
    for (int i = 0; i < vector->count; i++) {
        vector->parts[i].iov_base = at;
        at += vector->parts[i].iov_len;
    }
    return true;
}

void io_vector_free(struct io_vector *vector)
{
    io_buffer_free(vector->buffer);
    free(vector->parts);
    memset(vector, 0, sizeof(*vector));
}
