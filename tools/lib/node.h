/* A tree of nodes: what the user calls an image, down to the files.  SPDX-License-Identifier: MIT OR Apache-2.0

   A node has a driver, options and children. It is built from the bottom up, and the library opens it: a qcow2 or raw
   disk straight on the path where the node below is a file, otherwise through a table of functions (qcow2_io_ops) that
   lead to the node below, which the library has opened, too. The open handles belong to who reads through them: closing
   the top one closes all. The memory of the nodes belongs to the tree. */
#ifndef QCOW2_TOOLS_NODE_H
#define QCOW2_TOOLS_NODE_H

#include "common.h"

#include <pthread.h>

#define NODE_CHILD_LIMIT 32

/* Bytes that requests of a driver keep to; 0: no rule. */
struct node_limits {
    uint64_t align;
    uint64_t max_transfer;
    uint64_t opt_zero, max_zero;
    uint64_t opt_discard, max_discard;
};

struct node;

/* One kind of node. The functions of requests return 0 or -errno, and get pieces that keep to the node's limits. */
struct node_driver {
    const char *name;
    bool protocol;              /* has no node "file" below; takes a file name */
    bool needs_filename;        /* also an empty one is none */
    const char *const *options; /* of its own, NULL at the end; those with a '.' at their end begin a group */
    /* What a name such as "blkdebug:CONFIG:FILE" means, as options: 0 or -errno with *error. May be NULL. */
    int (*parse_filename)(const char *filename, struct string_list *items, char **error);
    /* Its other children, and its options: 0 or -errno with *error. May be NULL. */
    int (*open)(struct node *node, struct string_list *items, char **error);
    void (*free_state)(struct node *node);
    /* Requests; without `read` the library reads the file below by itself. */
    int (*read)(struct node *node, void *buffer, size_t bytes, uint64_t offset);
    int (*write)(struct node *node, const void *buffer, size_t bytes, uint64_t offset);
    int (*zero)(struct node *node, uint64_t bytes, uint64_t offset);
    int (*discard)(struct node *node, uint64_t bytes, uint64_t offset);
    int (*flush)(struct node *node);
    int64_t (*length)(struct node *node);
    int (*truncate)(struct node *node, uint64_t length);
    void (*event)(struct node *node, const char *name);
    /* As in qcow2_io_ops. */
    int (*status)(struct node *node, uint64_t offset, uint64_t length, uint64_t *run, uint32_t *flags);
};

struct node_tree {
    struct node *root;
    struct string_list names; /* "NAME=" of each node that has one */
    uint64_t flags;           /* of the open: QCOW2_OPEN_READ_ONLY and QCOW2_OPEN_FORCE_SHARE count for all nodes */
    struct cache_mode cache;
    struct node *spare;               /* below layers that the library has opened by itself, chained by `backing` */
    struct string_list backing_paths; /* that the resolver has answered */
    char *refusal;                    /* why a name that an image records means nothing */
    bool recorded;                    /* an image, and not the user, names what is being built */
};

struct node {
    const struct node_driver *driver;
    const struct node_driver *requests; /* whose functions serve the library */
    struct node_tree *tree;
    char *unknown;  /* what to say about an option that it does not have, once it is open; or NULL */
    char *filename; /* of a file, else what the name was; NULL: none */
    struct node *children[NODE_CHILD_LIMIT];
    char *child_names[NODE_CHILD_LIMIT];
    size_t child_count;
    struct node *backing;             /* NULL: what the image records, if anything */
    struct string_list backing_items; /* "backing.*" that was given */
    struct string_list image_options; /* for the library */
    struct cache_mode cache;
    uint64_t flags; /* QCOW2_OPEN_* beside those of the tree */
    bool ask_read_only;
    bool probed;
    bool changed;        /* since the last flush; atomic */
    bool image_is_child; /* its image is read through by the node above, which closes it */
    qcow2_image *image;
    struct node_limits limits;
    pthread_mutex_t end_lock; /* growing */
    qcow2_io_ops ops;
    void *state;
};

/* Builds the node that `items` (taken apart) and `filename` (NULL: none) describe: 0, or -errno with *error and nothing
   built. `protocol`: a bare file name is a file and no image. */
int node_build(struct node_tree *tree, struct string_list *items, const char *filename, bool protocol,
               struct node **node, char **error);
/* The child `name` that "NAME.*" and "NAME" among the items describe, or `filename`; *child is NULL where there is none. */
int node_build_child(struct node *node, struct string_list *items, const char *name, const char *filename,
                     bool protocol, char **error);
/* Opens it with the library, for reading through: 0 or -errno with *error. Its image is closed with the node above. */
int node_open_child(struct node *child, char **error);
/* Opens the root. `options` are the library's, beside those of the node. */
int node_open_root(struct node *root, uint64_t flags, const struct string_list *options, qcow2_image **image,
                   char **error);
void node_tree_free(struct node_tree *tree);

/* "Unknown protocol" is a NULL. */
const struct node_driver *node_find_driver(const char *name);
const struct node_driver *node_find_protocol(const char *filename);
/* The first file below and including this node, NULL: none. */
struct node *node_file(struct node *node);
/* The child by its name, NULL: none. */
struct node *node_child(const struct node *node, const char *name);
/* What the node is called: a path, or as the stock tools name one without; allocated. */
char *node_name(const struct node *node);
/* The table of functions by which the library gets at what a node shows; `requests` has them. */
const qcow2_io_ops *node_ops(struct node *node, const struct node_driver *requests);
/* Requests that go to the first child as they are. */
extern const struct node_driver node_through;
/* Whether it is a file that the library opens by its path. */
bool node_is_file(const struct node *node);
/* Where the format of the bytes that a node shows is guessed: a name, static; NULL with *error where they cannot be read. */
const char *node_probe(struct node *node, char **error);
/* The format that the first bytes of a disk look like; "raw" where they look like none. */
const char *probe_bytes(const void *bytes, size_t count);

/* Requests on the image of a child, clipped at its end, and growing it where it takes that. */
int node_child_read(struct node *node, void *buffer, size_t bytes, uint64_t offset);
int node_child_write(struct node *node, const void *buffer, size_t bytes, uint64_t offset);
int node_child_zero(struct node *node, uint64_t bytes, uint64_t offset);
int node_child_discard(struct node *node, uint64_t bytes, uint64_t offset);
int node_child_flush(struct node *node);
int64_t node_child_length(struct node *node);
int node_child_truncate(struct node *node, uint64_t length);
int node_child_status(struct node *node, uint64_t offset, uint64_t length, uint64_t *run, uint32_t *flags);

/* What a reopen changes of a node; everything in `items` counts. 0, or -EINVAL with *error; frees nothing of *change. */
int node_reopen_options(const struct node *node, struct string_list *items, struct reopen_change *change, char **error);

/* Takes "key=..." out of the items and reads it. 0, or -EINVAL with *error. What is not given stays. */
int take_size(struct string_list *items, const char *key, uint64_t *value, char **error);
int take_flag(struct string_list *items, const char *key, bool *value, char **error);
/* Takes every "PREFIX.key=..." out as "key=...". */
void take_group(struct string_list *items, const char *prefix, struct string_list *group);

/* Whether the library takes an open option of that name. */
bool library_knows(const char *key);

extern const struct node_driver node_blkdebug, node_blkverify, node_quorum, node_nbd;

/* --- blkdebug: the breakpoints of qcow2-io; -ENOTSUP where there is no such node --- */

int blkdebug_break(struct node *root, const char *event, const char *tag);
int blkdebug_resume(struct node *root, const char *tag);
int blkdebug_remove(struct node *root, const char *tag);
/* Whether a request is suspended under that tag; NULL: under any. */
bool blkdebug_is_suspended(struct node *root, const char *tag);
/* Whether requests may be suspended: a breakpoint is set, or a request stands at one. */
bool blkdebug_may_suspend(struct node *root);
/* Lets everything go on; nothing will be suspended any more. */
void blkdebug_resume_all(struct node *root);

#endif
