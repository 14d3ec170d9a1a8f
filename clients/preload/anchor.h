/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A descriptor that holds on to a file without having it open (O_PATH), so that an image is found again whatever has
 * become of its name, and no other file that has the name now. The program cannot reach it; exec closes it.
 */
#ifndef PRELOAD_ANCHOR_H
#define PRELOAD_ANCHOR_H

#include <stdbool.h>
#include <sys/types.h>

#include "qcow2.h"

/* Of "/proc/self/fd/N", which opens the file itself. */
enum { ANCHOR_LINK_BYTES = 32 };

/* Of what `path` is, -errno. */
int anchor_make(const char *path);
int anchor_make_fd(int fd);
/* Another open file description of the file, for reading. */
int anchor_open_file(int anchor);
void anchor_end(int anchor);

void anchor_link(int anchor, char link[ANCHOR_LINK_BYTES]);
/* False also where the program has closed it past the library. */
bool anchor_is(int anchor, dev_t device, ino_t inode);

/* Opens the image; relative names in it count from where it is now. As qcow2_open; -ESTALE: the anchor is lost. */
int anchor_open(int anchor, dev_t device, ino_t inode, uint64_t flags, const char *const *options, qcow2_image **image);

#endif
