/* How long the file is, where that is not the disk's size.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "growth.h"

#include <errno.h>
#include <sys/xattr.h>

#include "length.h"

/* By descriptor: the file's name may be this mount. */
int growth_begin(struct view *view)
{
    qcow2_info info = {.struct_size = sizeof(info)};
    char value[LENGTH_VALUE_BYTES];
    uint64_t length;
    ssize_t bytes;
    int ret = qcow2_get_info(view->image, &info);

    if (ret < 0) {
        return ret;
    }
    bytes = fgetxattr(info.descriptor, LENGTH_ATTRIBUTE, value, sizeof(value));
    length = length_of_value(value, bytes, info.virtual_size);
    view->has_length = bytes > 0;
    view->length = length_tail_is_zero(view->image, length, info.virtual_size) ? length : info.virtual_size;
    return 0;
}

/* For whoever shows the disk as a file the next time, if the file system keeps attributes. */
static void keep(struct view *view)
{
    qcow2_info info = {.struct_size = sizeof(info)};
    char value[LENGTH_VALUE_BYTES];

    if (qcow2_get_info(view->image, &info) < 0) {
        return;
    }
    if (view->length != info.virtual_size) {
        size_t bytes = length_value(value, view->length, info.virtual_size, info.virtual_size);

        view->has_length |= fsetxattr(info.descriptor, LENGTH_ATTRIBUTE, value, bytes, 0) == 0;
    } else if (view->has_length) {
        fremovexattr(info.descriptor, LENGTH_ATTRIBUTE);
        view->has_length = false;
    }
}

int growth_set(struct view *view, uint64_t length, int preallocation)
{
    int64_t before = qcow2_length(view->image);
    uint64_t disk = length_round_up(length);
    int ret = before < 0 ? (int)before : 0;

    if (length > INT64_MAX - LENGTH_SECTOR) {
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
