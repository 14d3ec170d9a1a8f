/* How long the file is, where that is not the disk's size.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef CLIENTS_FUSE_GROWTH_H
#define CLIENTS_FUSE_GROWTH_H

#include "view.h"

/* Of an image that has been opened. 0 or -errno. */
int growth_begin(struct view *view);

/* Changes the length. 0 or -errno; view->size_lock is held. */
int growth_set(struct view *view, uint64_t length, int preallocation);

#endif
