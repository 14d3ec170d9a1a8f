/* Nodes blkverify and quorum: several disks that are to show the same.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "node.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Children are read by the functions for the first child. */
static struct node as_first(struct node *child)
{
    struct node view = {.child_count = 1};

    view.children[0] = child;
    pthread_mutex_init(&view.end_lock, NULL);
    return view;
}

static int open_children(struct node *node, char **error)
{
    int ret = 0;

    for (size_t i = 0; i < node->child_count && ret == 0; i++) {
        ret = node_open_child(node->children[i], error);
    }
    return ret;
}

/* The first error that one of the children has. */
#define ON_ALL(node, call)                                                                                             \
    int ret = 0;                                                                                                       \
    for (size_t i = 0; i < (node)->child_count && ret == 0; i++) {                                                     \
        struct node view = as_first((node)->children[i]);                                                              \
        ret = call;                                                                                                    \
        pthread_mutex_destroy(&view.end_lock);                                                                         \
    }                                                                                                                  \
    return ret

static int write_all(struct node *node, const void *buffer, size_t bytes, uint64_t offset)
{
    ON_ALL(node, node_child_write(&view, buffer, bytes, offset));
}

static int zero_all(struct node *node, uint64_t bytes, uint64_t offset)
{
    ON_ALL(node, node_child_zero(&view, bytes, offset));
}

static int flush_all(struct node *node)
{
    ON_ALL(node, node_child_flush(&view));
}

static int truncate_all(struct node *node, uint64_t length)
{
    ON_ALL(node, node_child_truncate(&view, length));
}

/* --- blkverify: the raw copy first, then what is tested --- */

static int parse_name(const char *filename, struct string_list *items, char **error)
{
    const char *raw = filename + strlen("blkverify:"), *colon;

    if (strncmp(filename, "blkverify:", strlen("blkverify:")) != 0) {
        list_addf(items, "x-image=%s", filename);
        return 0;
    }
    colon = strchr(raw, ':');
    if (colon == NULL) {
        return refuse(error, -EINVAL, text_copy("blkverify requires raw copy and original image path"));
    }
    list_addf(items, "x-raw=%.*s", (int)(colon - raw), raw);
    list_addf(items, "x-image=%s", colon + 1);
    return 0;
}

static int blkverify_open(struct node *node, struct string_list *items, char **error)
{
    char *raw = list_take(items, "x-raw"), *image = list_take(items, "x-image");
    int ret = node_build_child(node, items, "raw", raw, true, error);

    if (ret == 0 && node->child_count < 1) {
        ret = refuse(error, -EINVAL, text_copy("A block device must be specified for \"raw\""));
    }
    ret = ret == 0 ? node_build_child(node, items, "test", image, false, error) : ret;
    if (ret == 0 && node->child_count < 2) {
        ret = refuse(error, -EINVAL, text_copy("A block device must be specified for \"test\""));
    }
    if (ret == 0 && raw != NULL && image != NULL) {
        node->filename = text_format("blkverify:%s:%s", raw, image);
    }
    free(raw);
    free(image);
    return ret == 0 ? open_children(node, error) : ret;
}

static int blkverify_read(struct node *node, void *buffer, size_t bytes, uint64_t offset)
{
    struct node test = as_first(node->children[1]);
    unsigned char *copy = memory_or_exit(malloc(bytes > 0 ? bytes : 1));
    const unsigned char *shown = buffer;
    int ret = node_child_read(&test, buffer, bytes, offset), raw_ret = node_child_read(node, copy, bytes, offset);
    size_t at = 0;

    pthread_mutex_destroy(&test.end_lock);
    while (ret == 0 && raw_ret == 0 && at < bytes && copy[at] == shown[at]) {
        at++;
    }
    free(copy);
    if (ret != raw_ret || (ret == 0 && at < bytes)) {
        fprintf(stderr, "blkverify: read offset=%llu bytes=%zu ", (unsigned long long)offset, bytes);
        if (ret != raw_ret) {
            fprintf(stderr, "return value mismatch %d != %d\n", ret, raw_ret);
        } else {
            fprintf(stderr, "contents mismatch at offset %llu\n", (unsigned long long)offset + at);
        }
        exit(EXIT_FAILURE);
    }
    return ret;
}

static int64_t blkverify_length(struct node *node)
{
    return qcow2_length(node->children[1]->image);
}

const struct node_driver node_blkverify = {
    .name = "blkverify",
    .protocol = true,
    .parse_filename = parse_name,
    .open = blkverify_open,
    .read = blkverify_read,
    .write = write_all,
    .zero = zero_all,
    .flush = flush_all,
    .length = blkverify_length,
    .truncate = truncate_all,
};

/* --- quorum: what most children show --- */

struct quorum {
    uint64_t threshold;
};

static int quorum_children(struct node *node, struct string_list *items, char **error)
{
    int ret = 0;

    for (size_t i = 0; ret == 0; i++) {
        char *name = text_format("children.%zu", i);
        size_t before = node->child_count;

        ret = node_build_child(node, items, name, NULL, false, error);
        free(name);
        if (ret == 0 && node->child_count == before) {
            break;
        }
    }
    if (ret == 0 && node->child_count == 0) {
        ret = refuse(error, -EINVAL, text_copy("Number of provided children must be 1 or more"));
    }
    return ret;
}

static int quorum_open(struct node *node, struct string_list *items, char **error)
{
    struct quorum *state = memory_or_exit(calloc(1, sizeof(*state)));
    int ret = quorum_children(node, items, error);

    node->state = state;
    if (ret < 0 || take_size(items, "vote-threshold", &state->threshold, error) < 0) {
        return -EINVAL;
    }
    if (state->threshold < 1) {
        return refuse(error, -ERANGE, text_copy("Parameter 'vote-threshold' expects a value >= 1"));
    }
    if (state->threshold > node->child_count) {
        return refuse(error, -ERANGE, text_copy("threshold may not exceed children count"));
    }
    return open_children(node, error);
}

static void quorum_free(struct node *node)
{
    free(node->state);
}

/* How many of the children show what number `which` does. */
static size_t votes(struct node *node, unsigned char *const *shown, const int *results, size_t which, size_t bytes)
{
    size_t count = 0;

    for (size_t i = 0; i < node->child_count; i++) {
        count += results[which] == 0 && results[i] == 0 && memcmp(shown[i], shown[which], bytes) == 0;
    }
    return count;
}

static int quorum_read(struct node *node, void *buffer, size_t bytes, uint64_t offset)
{
    const struct quorum *state = node->state;
    unsigned char *shown[NODE_CHILD_LIMIT];
    int results[NODE_CHILD_LIMIT];
    size_t best = 0, most = 0;

    for (size_t i = 0; i < node->child_count; i++) {
        struct node view = as_first(node->children[i]);

        shown[i] = memory_or_exit(malloc(bytes > 0 ? bytes : 1));
        results[i] = node_child_read(&view, shown[i], bytes, offset);
        pthread_mutex_destroy(&view.end_lock);
    }
    for (size_t i = 0; i < node->child_count; i++) {
        size_t count = votes(node, shown, results, i, bytes);

        if (count >= most) {
            best = i;
            most = count;
        }
    }
    if (most >= state->threshold) {
        memcpy(buffer, shown[best], bytes);
    }
    for (size_t i = 0; i < node->child_count; i++) {
        free(shown[i]);
    }
    return most >= state->threshold ? 0 : -EIO;
}

const struct node_driver node_quorum = {
    .name = "quorum",
    .protocol = true,
    .open = quorum_open,
    .free_state = quorum_free,
    .read = quorum_read,
    .write = write_all,
    .zero = zero_all,
    .flush = flush_all,
    .length = node_child_length,
    .truncate = truncate_all,
};
