/* The two files of node blkdebug.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef QCOW2_TOOLS_BLKDEBUG_H
#define QCOW2_TOOLS_BLKDEBUG_H

#include "node.h"

enum { BLKDEBUG_READ, BLKDEBUG_WRITE, BLKDEBUG_ZERO, BLKDEBUG_DISCARD, BLKDEBUG_FLUSH, BLKDEBUG_STATUS };
enum { BLKDEBUG_ERROR, BLKDEBUG_STATE, BLKDEBUG_STOP };

struct blkdebug_rule {
    struct blkdebug_rule *next;
    int event, state; /* state 0: any */
    int action;
    bool active; /* errors: requests fail now */
    bool spent;
    /* BLKDEBUG_ERROR */
    int error;       /* an errno; 0: keeps later ones off */
    unsigned types;  /* of requests, a bit for each */
    uint64_t offset; /* bytes; UINT64_MAX: anywhere */
    bool once;
    int new_state; /* BLKDEBUG_STATE */
    char *tag;     /* BLKDEBUG_STOP */
};

/* A request that stands at a breakpoint; one may stand at several. */
struct blkdebug_stop {
    struct blkdebug_stop *next;
    char *tag;
    const void *owner; /* tells requests apart */
    bool resumed;
};

struct blkdebug {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct blkdebug_rule *rules;
    struct blkdebug_stop *stops;
    int state;
    bool no_stops;
};

/* -1: none of that name. */
int blkdebug_event_number(const char *name);
/* Takes over rule->tag. */
void blkdebug_add_rule(struct blkdebug *state, const struct blkdebug_rule *rule);
/* From a file (NULL: none) and from "inject-error.N.*" and "set-state.N.*" of the items: 0 or -errno with *error. */
int blkdebug_read_rules(struct blkdebug *state, const char *config, struct string_list *items, char **error);

#endif
