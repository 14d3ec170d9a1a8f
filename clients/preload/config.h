/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What the environment says.
 *
 * LIBQCOW2_PRELOAD=off            nothing is served
 * LIBQCOW2_PRELOAD=RULE[:RULE...] RULE is NAME[,ro][,device][,KEY=VALUE...]; the first one that fits counts
 *
 * NAME is "*END" (names that end so), a path, or a name without '/'. Without rules it is "*.qcow2". KEY=VALUE is an
 * option of qcow2_open.
 */
#ifndef PRELOAD_CONFIG_H
#define PRELOAD_CONFIG_H

#include <stdbool.h>
#include <stddef.h>

struct rule {
    struct rule *next;
    /* What names end with; `whole`: what the last part of them is. */
    const char *end;
    size_t end_length;
    bool whole;
    /* A path with a '/': the file is compared, too. */
    const char *path;
    bool read_only;
    bool device;
    const char *const *options;
};

void config_read(void);

/* The rule for a name, NULL: not an image. A rule with a path still needs config_same_file. */
const struct rule *config_match(const char *name);

/* Removes what this library needs from nothing: whether the environment switches it off. */
extern bool config_off;

#endif
