/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "length.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Past a length that counts only the rest of the last cluster has data, which may have 2 MiB. */
enum { READ_MOST = 2 << 20 };

uint64_t length_round_up(uint64_t length)
{
    return (length + LENGTH_SECTOR - 1) / LENGTH_SECTOR * LENGTH_SECTOR;
}

size_t length_value(char value[LENGTH_VALUE_BYTES], struct file_length now, struct file_length next)
{
    int bytes =
        snprintf(value, LENGTH_VALUE_BYTES, "%" PRIu64 " %" PRIu64 " %" PRIu64, now.length, now.size, next.size);

    if (next.length != now.length) {
        bytes += snprintf(value + bytes, LENGTH_VALUE_BYTES - (size_t)bytes, " %" PRIu64, next.length);
    }
    return (size_t)bytes;
}

uint64_t length_of_value(const char *value, ssize_t value_bytes, uint64_t size)
{
    char text[LENGTH_VALUE_BYTES] = "", *end;
    uint64_t length, then, next, next_length;

    if (value_bytes <= 0 || (size_t)value_bytes >= sizeof text) {
        return size;
    }
    memcpy(text, value, (size_t)value_bytes);
    length = strtoull(text, &end, 10);
    then = strtoull(end, &end, 10);
    next = strtoull(end, &end, 10);
    next_length = *end == ' ' ? strtoull(end, &end, 10) : length;
    if (then != size) {
        length = next == size ? next_length : size;
    }
    return length <= size ? length : size;
}

/* A part that has been looked up, of up to READ_MOST bytes in all. */
static bool reads_as_zeroes(qcow2_image *image, uint64_t offset, uint64_t length)
{
    static const char zeroes[4096];
    char bytes[sizeof zeroes];

    while (length > 0) {
        size_t part = length < sizeof bytes ? (size_t)length : sizeof bytes;

        if (qcow2_pread(image, bytes, part, offset) != (ssize_t)part || memcmp(bytes, zeroes, part) != 0) {
            return false;
        }
        offset += part;
        length -= part;
    }
    return true;
}

bool length_tail_is_zero(qcow2_image *image, uint64_t length, uint64_t size)
{
    uint64_t to_read = READ_MOST;

    while (length < size) {
        qcow2_extent extent = {.struct_size = sizeof extent};

        if (qcow2_block_status(image, length, size - length, 0, &extent) < 0 || extent.length == 0) {
            return false;
        }
        if ((extent.flags & QCOW2_EXTENT_DATA) != 0 && (extent.flags & QCOW2_EXTENT_ZERO) == 0) {
            if (extent.length > to_read || !reads_as_zeroes(image, length, extent.length)) {
                return false;
            }
            to_read -= extent.length;
        }
        length += extent.length;
    }
    return true;
}
