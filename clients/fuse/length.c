/*
 * How long the file is, where that is not the disk's size.  SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * A disk has whole sectors. The length that a program has made is kept as the preload library keeps it: in an attribute of the
 * image's file, "LENGTH SIZE NEXT-SIZE", which counts while one of the sizes is the disk's and all that is past the
 * length is zero, for programs that know nothing of it may write there.
 */
#include "length.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#define ATTRIBUTE "user.libqcow2.length"

enum { SECTOR = 512, VALUE_BYTES = 64, PIECE = 1 << 16 };

static bool is_zero(qcow2_image *image, uint64_t offset, uint64_t end)
{
    static const char zeroes[PIECE];
    char piece[PIECE];

    while (offset < end) {
        qcow2_extent extent = {.struct_size = sizeof(extent)};
        uint64_t count;

        if (qcow2_block_status(image, offset, end - offset, 0, &extent) < 0 || extent.length == 0) {
            return false;
        }
        count = extent.length;
        if ((extent.flags & QCOW2_EXTENT_ZERO) == 0) {
            count = count < PIECE ? count : PIECE;
            if (qcow2_pread(image, piece, (size_t)count, offset) < 0 || memcmp(piece, zeroes, (size_t)count) != 0) {
                return false;
            }
        }
        offset += count;
    }
    return true;
}

/* By descriptor: the file's name may be this mount. */
int length_begin(struct view *view)
{
    qcow2_info info = {.struct_size = sizeof(info)};
    char value[VALUE_BYTES] = "", *end;
    uint64_t length, size, next;
    int ret = qcow2_get_info(view->image, &info);

    if (ret < 0) {
        return ret;
    }
    view->length = info.virtual_size;
    view->has_length = fgetxattr(info.descriptor, ATTRIBUTE, value, sizeof(value) - 1) > 0;
    length = strtoull(value, &end, 10);
    size = strtoull(end, &end, 10);
    next = strtoull(end, &end, 10);
    if (view->has_length && (size == info.virtual_size || next == info.virtual_size) && length < info.virtual_size &&
        is_zero(view->image, length, info.virtual_size)) {
        view->length = length;
    }
    return 0;
}

/* For whoever shows the disk as a file the next time, if the file system keeps attributes. */
static void keep(struct view *view)
{
    qcow2_info info = {.struct_size = sizeof(info)};
    char value[VALUE_BYTES];

    if (qcow2_get_info(view->image, &info) < 0) {
        return;
    }
    if (view->length != info.virtual_size) {
        snprintf(value, sizeof(value), "%" PRIu64 " %" PRIu64 " %" PRIu64, (uint64_t)view->length, info.virtual_size,
                 info.virtual_size);
        view->has_length |= fsetxattr(info.descriptor, ATTRIBUTE, value, strlen(value), 0) == 0;
    } else if (view->has_length) {
        fremovexattr(info.descriptor, ATTRIBUTE);
        view->has_length = false;
    }
}

int length_set(struct view *view, uint64_t length, int preallocation)
{
    int64_t before = qcow2_length(view->image);
    uint64_t disk = (length + SECTOR - 1) / SECTOR * SECTOR;
    int ret = before < 0 ? (int)before : 0;

    if (length > INT64_MAX - SECTOR) {
        return -EFBIG;
    }
    if (ret == 0 && (uint64_t)before != disk) {
        ret = qcow2_truncate(view->image, disk, preallocation);
    }
    if (ret < 0) {
        return ret;
    }
    /* What was there must not come back when it grows. */
    if (length < view->length && length < disk) {
        ret = qcow2_write_zeroes(view->image, length, disk - length, 0);
        if (ret < 0) {
            length = view->length < disk ? view->length : disk;
        }
    }
    view->length = length;
    keep(view);
    return ret;
}
