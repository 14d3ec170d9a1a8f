/* The loop that serves the kernel.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef CLIENTS_FUSE_SERVE_H
#define CLIENTS_FUSE_SERVE_H

#include "view.h"

/* For all threads to come; the kernel keeps the signals until serve() waits for them. */
void serve_block_signals(void);

/* Serves a mounted session until it is unmounted or a signal says so. Returns 0, or 1 after a failure. */
int serve(struct fuse_session *session, const struct fuse_cmdline_opts *command);

#endif
