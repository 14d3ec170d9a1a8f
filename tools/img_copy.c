/* Copying what one image shows into another one, for convert.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

#define PIECE_BYTES (UINT64_C(2) << 20)

struct copy {
    const struct copy_job *job;
    unsigned char *buffer;
    uint64_t piece; /* bytes in the buffer; pieces end at multiples of it */
};

static bool all_zero(const unsigned char *bytes, uint64_t length)
{
    return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

static int failed(const char *what, uint64_t offset, int error)
{
    error_report("error while %s %lld: %s", what, (long long)offset, strerror(-error));
    return EXIT_FAILURE;
}

/* The bytes of a range are in `data`. */
static int put_data(const struct copy *copy, const unsigned char *data, uint64_t offset, uint64_t length)
{
    struct iovec part = { (void *)(uintptr_t)data, (size_t)length };
    const uint64_t flags = copy->job->compress ? QCOW2_REQ_COMPRESSED : 0;
    ssize_t count = qcow2_pwritev2(copy->job->target, &part, 1, offset, flags);

    return count < 0 ? failed("writing at byte", offset, (int)count) : EXIT_SUCCESS;
}

static int put_zeroes(const struct copy *copy, uint64_t offset, uint64_t length)
{
    int result;

    if (copy->job->target_zero)
        return EXIT_SUCCESS;
    result = qcow2_write_zeroes(copy->job->target, offset, length, QCOW2_REQ_UNMAP);
    return result < 0 ? failed("writing at byte", offset, result) : EXIT_SUCCESS;
}

/* End of the run that starts at `at` and is all of one kind: parts of job->sparse bytes that are zero, or are not. */
static uint64_t run_end(const struct copy *copy, const unsigned char *data, uint64_t start, uint64_t at, uint64_t end,
                        bool *zero)
{
    const uint64_t part = copy->job->sparse && copy->job->compress ? copy->job->compress : copy->job->sparse;
    bool first = true;

    *zero = false;
    if (!part)
        return end;
    while (at < end) {
        uint64_t next = (at / part + 1) * part;
        bool is_zero;

        if (next > end)
            next = end;
        is_zero = all_zero(data + (at - start), next - at);
        if (first)
            *zero = is_zero;
        else if (is_zero != *zero)
            break;
        first = false;
        at = next;
    }
    return at;
}

static int put_piece(const struct copy *copy, uint64_t offset, uint64_t length)
{
    const uint64_t end = offset + length;
    int result = EXIT_SUCCESS;

    for (uint64_t at = offset, next; at < end && result == EXIT_SUCCESS; at = next) {
        bool zero;

        next = run_end(copy, copy->buffer, offset, at, end, &zero);
        result = zero ? put_zeroes(copy, at, next - at) :
                 put_data(copy, copy->buffer + (at - offset), at, next - at);
    }
    return result;
}

/* `zero`: the range need not be read. */
static int copy_data(const struct copy *copy, uint64_t offset, uint64_t length, bool zero)
{
    const uint64_t end = offset + length;

    if (zero)
        memset(copy->buffer, 0, copy->piece);
    for (uint64_t at = offset, next; at < end; at = next) {
        ssize_t count = 0;

        next = (at / copy->piece + 1) * copy->piece;
        if (next > end)
            next = end;
        if (!zero)
            count = qcow2_pread(copy->job->source, copy->buffer, next - at, at);
        if (count < 0)
            return failed("reading at byte", at, (int)count);
        if (put_piece(copy, at, next - at) != EXIT_SUCCESS)
            return EXIT_FAILURE;
        if (copy->job->progress)
            copy->job->progress(copy->job->progress_opaque, next, copy->job->size);
    }
    return EXIT_SUCCESS;
}

static int copy_extent(const struct copy *copy, uint64_t offset, const qcow2_extent *extent)
{
    bool zero = (extent->flags & QCOW2_EXTENT_ZERO) || !(extent->flags & QCOW2_EXTENT_DATA);

    if (copy->job->top_only && !(extent->flags & QCOW2_EXTENT_ALLOCATED))
        return EXIT_SUCCESS;
    if (zero && !copy->job->fill)
        return put_zeroes(copy, offset, extent->length);
    return copy_data(copy, offset, extent->length, zero);
}

static int copy_all(const struct copy *copy)
{
    const struct copy_job *job = copy->job;
    const uint64_t flags = job->top_only ? QCOW2_STATUS_TOP_ONLY : 0;

    for (uint64_t at = 0; at < job->size;) {
        qcow2_extent extent = { .struct_size = sizeof(extent) };
        int result = qcow2_block_status(job->source, at, job->size - at, flags, &extent);

        if (result == 0 && extent.length == 0)
            result = -EIO;
        if (result < 0)
            return failed("reading block status at offset", at, result);
        if (copy_extent(copy, at, &extent) != EXIT_SUCCESS)
            return EXIT_FAILURE;
        at += extent.length;
        if (job->progress)
            job->progress(job->progress_opaque, at, job->size);
    }
    return EXIT_SUCCESS;
}

/* End of the range of whole clusters of the target from `at` that need not be read: all of it reads as zeroes. */
static int zero_end(const struct copy *copy, uint64_t at, uint64_t *end)
{
    const struct copy_job *job = copy->job;
    const uint64_t flags = job->top_only ? QCOW2_STATUS_TOP_ONLY : 0;
    qcow2_extent extent = { .struct_size = sizeof(extent) };
    int result;

    *end = at;
    for (uint64_t next = at; next < job->size; next += extent.length) {
        result = qcow2_block_status(job->source, next, job->size - next, flags, &extent);
        if (result == 0 && extent.length == 0)
            result = -EIO;
        if (result < 0)
            return failed("reading block status at offset", next, result);
        if (!job->top_only || (extent.flags & QCOW2_EXTENT_ALLOCATED)) {
            if (!(extent.flags & QCOW2_EXTENT_ZERO) && (extent.flags & QCOW2_EXTENT_DATA))
                break;
        }
        *end = next + extent.length;
    }
    if (*end < job->size)
        *end = *end / job->compress * job->compress;
    return EXIT_SUCCESS;
}

/* In whole clusters of the target. */
static int copy_compressed(const struct copy *copy)
{
    const struct copy_job *job = copy->job;
    uint64_t at = 0;

    while (at < job->size) {
        uint64_t end = at;

        if (!job->fill && zero_end(copy, at, &end) != EXIT_SUCCESS)
            return EXIT_FAILURE;
        if (end > at) {
            if (!job->top_only && put_zeroes(copy, at, end - at) != EXIT_SUCCESS)
                return EXIT_FAILURE;
            at = end;
            continue;
        }
        /* Many clusters in one request keep several threads busy; what the source leaves to its backing file is
           looked at cluster by cluster. */
        end = job->top_only ? at + job->compress : (at / copy->piece + 1) * copy->piece;
        if (end > job->size)
            end = job->size;
        if (copy_data(copy, at, end - at, false) != EXIT_SUCCESS)
            return EXIT_FAILURE;
        at = end;
    }
    return EXIT_SUCCESS;
}

int copy_image(const struct copy_job *job)
{
    struct copy copy = { .job = job, .piece = PIECE_BYTES };
    int result;

    if (job->sparse)
        copy.piece = job->sparse > PIECE_BYTES ? job->sparse : PIECE_BYTES / job->sparse * job->sparse;
    if (job->compress)
        copy.piece = PIECE_BYTES > 8 * job->compress ? PIECE_BYTES : 8 * job->compress;
    copy.buffer = memory_or_exit(malloc(copy.piece));
    result = job->compress ? copy_compressed(&copy) : copy_all(&copy);
    free(copy.buffer);
    return result;
}
