/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef PRELOAD_OPEN_H
#define PRELOAD_OPEN_H

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "views.h"

/* Not an image: the C library's function answers. */
enum { NOT_AN_IMAGE = INT_MIN };

/* Whether a name may be an image's: the rule, or NULL. Names of descriptors, as /dev/stdin, count. */
const struct rule *image_rule(const char *path);

/* A descriptor, -errno, or NOT_AN_IMAGE. */
int image_open(int directory, const char *path, int flags, mode_t mode);

/* Virtual size of the image in a file that stat says is regular; -errno. */
int64_t image_size(int directory, const char *path, const struct stat64 *status);

/* A descriptor whose name is /dev/fd/N and the like; -1: no such name. */
int descriptor_of(const char *path);

/* Whether the kernel has what stands for an image at a descriptor. */
bool is_placeholder(int fd);

/* Takes over the images that the process was started with. */
void adopt_descriptors(void);

/* What a call returns for a count or -errno. */
static inline long answer(long result)
{
    if (__builtin_expect(result < 0, 0)) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

#endif
