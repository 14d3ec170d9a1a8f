/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef CLIENTS_FUSE_LONGEST_H
#define CLIENTS_FUSE_LONGEST_H

/* Bytes of the longest read and write: what libfuse's buffers and the kernel allow. Who mounts says it, too (max_read). */
#define VIEW_LONGEST_REQUEST (1u << 20)

#endif
