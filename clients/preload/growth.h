/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* For shared.c alone. */
#ifndef PRELOAD_GROWTH_H
#define PRELOAD_GROWTH_H

#include "shared.h"

/* Of an image that has just been opened. */
void growth_read(struct shared *shared, qcow2_image *image, uint64_t virtual_size);

bool growth_is_ahead(const struct shared *shared);

/* What the virtual size is ahead goes. */
void growth_settle(struct shared *shared, qcow2_image *image);

#endif
