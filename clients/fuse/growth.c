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

/* For whoever shows the disk as a file the next time, if the file system keeps attributes. `next`: what is about to be. */
static void keep(struct view *view, int descriptor, struct file_length now, struct file_length next)
{
    char value[LENGTH_VALUE_BYTES];

    if (now.length != now.size || next.length != next.size) {
        size_t bytes = length_value(value, now, next);

        view->has_length |= fsetxattr(descriptor, LENGTH_ATTRIBUTE, value, bytes, 0) == 0;
    } else if (view->has_length) {
        fremovexattr(descriptor, LENGTH_ATTRIBUTE);
        view->has_length = false;
    }
}

int growth_set(struct view *view, uint64_t length, int preallocation)
{
    qcow2_info info = {.struct_size = sizeof(info)};
    struct file_length next = {length, length_round_up(length)};
    int ret = length > INT64_MAX - LENGTH_SECTOR ? -EFBIG : qcow2_get_info(view->image, &info);

    /* What was there must not come back when it grows. */
    if (ret == 0 && length < view->length && length < next.size) {
        ret = qcow2_write_zeroes(view->image, length, next.size - length, 0);
    }
    if (ret == 0 && info.virtual_size != next.size) {
        /* A kill leaves one of both lengths. */
        keep(view, info.descriptor, (struct file_length){view->length, info.virtual_size}, next);
        ret = qcow2_truncate(view->image, next.size, preallocation);
    }
    if (ret < 0) {
        return ret;
    }
    view->length = length;
    keep(view, info.descriptor, next, next);
    return 0;
}
