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
#define NODE_DEPTH_LIMIT 200
#define NODE_LIMIT 4096

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
    bool refusal_alone;               /* it says all */
    bool recorded;                    /* an image, and not the user, names what is being built */
    bool read_only;                   /* what is being built is below a backing file */
    bool writes_below;                /* backing files are written to, by a commit */
    struct node *layers[NODE_DEPTH_LIMIT + 1]; /* of the image that is open, by depth; NULL: the library's own file */
    size_t depth, made; /* how deep opens are in each other, and how many nodes there have been */
};

/* One level deeper, which node_leave ends: 0, or -ELOOP with *error. An image may name itself. */
int node_enter(struct node_tree *tree, char **error);
void node_leave(struct node_tree *tree);

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
    struct string_list encrypt;       /* "encrypt.*" that was given */
    struct cache_mode cache;
    uint64_t flags; /* QCOW2_OPEN_* beside those of the tree */
    bool recorded;  /* an image, and not the user, names it */
    bool read_only; /* it is, or is below, a backing file */
    bool ask_read_only;
    bool probed;
    bool changed;        /* since the last flush; atomic */
    bool copies_on_read; /* blkdebug: what is read where the image below has holes is written to it */
    bool image_is_child; /* its image is read through by the node above, which closes it */
    qcow2_image *image;
    struct node_limits limits;
    pthread_mutex_t end_lock; /* growing */
    pthread_mutex_t flush_lock;
    struct in_flight *in_flight;
    pthread_mutex_t flight_lock;
    pthread_cond_t landed;
    qcow2_io_ops ops;
    void *state;
};

/* Builds the node that `items` (taken apart) and `filename` (NULL: none) describe: 0, or -errno with *error and nothing
   built. `protocol`: a bare file name is a file and no image. */
int node_build(struct node_tree *tree, struct string_list *items, const char *filename, bool protocol,
               struct node **node, char **error);
/* A raw node over one that has been built. */
struct node *node_over(struct node *child);
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
/* Whether nobody may write to it, by the open or because of where it is. */
bool node_is_read_only(const struct node *node);
/* Whether offsets that the library tells of a layer are those in a file. */
bool node_tells_offsets(const struct node_tree *tree, int depth);
/* The first file below and including this node, NULL: none. */
struct node *node_file(struct node *node);
/* What it says where an image has a relative name and no directory, NULL: it has one; allocated. */
char *node_no_directory(const struct node *node);
/* The child by its name, NULL: none. */
struct node *node_child(const struct node *node, const char *name);
/* What the node is called: a path, or as the stock tools name one without; allocated. */
char *node_name(const struct node *node);
/* The table of functions by which the library gets at what a node shows; `requests` has them. */
const qcow2_io_ops *node_ops(struct node *node, const struct node_driver *requests);
/* A change that is under way: whole units of the node's alignment. */
struct in_flight {
    uint64_t offset, end;
    bool padded; /* it writes back what it has read beside its own bytes: nothing else may change them meanwhile */
    struct in_flight *next;
};
/* Waits until nothing under way forbids it. */
void in_flight_begin(struct node *node, struct in_flight *change);
void in_flight_end(struct node *node, struct in_flight *change);
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
/* Whether the image of a child has all of a range by itself, and not from what is below it. */
bool node_child_has(struct node *node, uint64_t offset, uint64_t bytes);

/* What a reopen changes of a node; everything in `items` counts. 0, or -EINVAL with *error; frees nothing of *change. */
int node_reopen_options(const struct node *node, struct string_list *items, struct reopen_change *change, char **error);

/* Takes "key=..." out of the items and reads it. 0, or -EINVAL with *error. What is not given stays. */
int take_size(struct string_list *items, const char *key, uint64_t *value, char **error);
int take_flag(struct string_list *items, const char *key, bool *value, char **error);
/* Takes every "PREFIX.key=..." out as "key=...". */
void take_group(struct string_list *items, const char *prefix, struct string_list *group);

/* Takes the options that every node has, and those of a file: 0, or -EINVAL with *error. */
int node_take_general(struct node *node, struct string_list *items, char **error);
int node_take_file_options(struct node *node, struct string_list *items, char **error);
/* Whether the library takes an open option of that name. */
bool library_knows(const char *key);

extern const struct node_driver node_blkdebug, node_blkverify, node_quorum, node_nbd;

/* Whether what is said of the encryption of an image fits it; `method` is its crypt_method. 0 or -EINVAL with *error. */
int encrypt_check(const struct string_list *encrypt, uint32_t method, char **error);
/* What is said about a layer, as the image on top says it; takes over `why`. */
char *backing_failure(int depth, char *why);
/* The same for all layers of an image that is open, by depth; those that have been asked for a secret are known to fit. */
int encrypt_check_layers(struct node *const *layers, qcow2_image *image, char **error);
/* The secret of an image into `buffer`: its length, -ENOKEY where nothing names one, or -EACCES with *error. */
int64_t encrypt_secret(const struct string_list *encrypt, uint32_t method, void *buffer, size_t room, char **error);

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
