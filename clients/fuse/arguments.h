/* The command line of qcow2-fuse.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef CLIENTS_FUSE_ARGUMENTS_H
#define CLIENTS_FUSE_ARGUMENTS_H

#include "options.h"
#include "view.h"

struct arguments {
    struct open_options options;
    struct fuse_args fuse; /* for fuse_session_new */
    struct fuse_cmdline_opts command;
    char *image;
    char *name; /* of the file in the directory; NULL: the mount point is a file */
    char *file; /* where the disk is seen; NULL: where whoever has mounted it says */
    bool read_only;
    bool stays; /* mounted after the death of this process */
};

/* 0; 1: the answer has been printed; -errno: said why not. arguments_free in any case. */
int arguments_parse(struct arguments *arguments, int argc, char **argv);
void arguments_free(struct arguments *arguments);

#endif
