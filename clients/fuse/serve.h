/* The loop that serves the kernel.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef CLIENTS_FUSE_SERVE_H
#define CLIENTS_FUSE_SERVE_H

#include "view.h"

/* For all threads to come; the kernel keeps the signals until serve() waits for them. */
void serve_block_signals(void);

/* Serves a mounted session, in which `file` is the disk, until it is unmounted or a signal says so. 0; 1: a failure. */
int serve(struct fuse_session *session, const struct fuse_cmdline_opts *command, const char *file);

#endif
