/* A process that unmounts what a killed server leaves.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef CLIENTS_FUSE_GUARD_H
#define CLIENTS_FUSE_GUARD_H

#include <sys/types.h>

struct guard {
    pid_t process; /* 0: there is none */
    int pipe;      /* to it; that it ends is the sign */
};

/* Before there are threads, and before files are open that it should not keep. 0 or -errno. */
int guard_begin(struct guard *guard, const char *mountpoint);

/* From now on there is something to unmount. 0 or -errno. */
int guard_mounted(struct guard *guard, const char *mountpoint);

/* It is unmounted already. */
void guard_end(struct guard *guard);

#endif
