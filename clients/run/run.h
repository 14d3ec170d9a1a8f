/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef RUN_H
#define RUN_H

#include <stdbool.h>

/* What a look at a program's file says. */
struct finding {
    /* No dynamic linker, so that nothing can be interposed. */
    bool is_static;
    /* Runs as somebody else; the dynamic linker ignores the environment then. */
    bool is_setuid;
    /* Calls past the shim: how many were told. */
    int uncovered;
};

/* Where a command is; NULL: nowhere. The caller frees it. */
char *find_program(const char *name);

/* 0 or -errno. With `tell` what is found is printed. */
int check_program(const char *path, bool tell, struct finding *finding);

/* Whether a private mount is possible here; otherwise why not. */
const char *fuse_unavailable(const char *server);

/* Mounts each image over itself where only this process and its children see it, and runs the program. Its status. */
int run_by_fuse(const char *server, bool read_only, char *const images[], char *const command[]);

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
