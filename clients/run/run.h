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

struct image {
    /* The file itself, and how the program may call it: both from the root on. */
    char *path;
    char *name;
    /*
     * By its contents alone: a guest can write such contents into its raw disk, so that no other file that they name is
     * opened.
     */
    bool guessed;
};

struct images {
    struct image *list;
    int count;
    /* A name among the arguments is that of an image which is not there yet. */
    bool missing;
    /* The program is started with a descriptor of an image, which a mount over its name does not change. */
    bool inherited;
};

/* What --image names. 0 or an exit status, said. */
int images_add_named(struct images *images, const char *name);
/* What the arguments of a program name. 0 or an exit status, said. */
int images_add_arguments(struct images *images, char *const arguments[]);

/* What the program is started with as descriptors, as by a shell's "<". 0 or an exit status, said. */
int images_add_descriptors(struct images *images);

/* Each file once, whatever names it has. */
void images_merge(struct images *images);

/* LIBQCOW2_PRELOAD for these images and what the user has there (`before`, or NULL). NULL: there can be none, said. */
char *preload_rules(const struct images *images, const char *before, bool read_only);

/* Where a command is; NULL: nowhere. The caller frees it. */
char *find_program(const char *name);

/* 0 or -errno. With `tell` what is found is printed. */
int check_program(const char *path, bool tell, struct finding *finding);

/* Whether a private mount is possible here; otherwise why not. */
const char *fuse_unavailable(const char *server);

/* Mounts each image over itself where only the program and its children see it, and runs the program. Its status. */
int run_by_fuse(const char *server, bool read_only, const struct images *images, char *const command[]);

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same, with --quiet too: why nothing runs. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
