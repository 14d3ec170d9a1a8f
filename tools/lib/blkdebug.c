/* Node blkdebug: errors at events, breakpoints, and limits on requests.  SPDX-License-Identifier: MIT OR Apache-2.0

   A rule waits for an event, perhaps in one state only. When it comes, errors of its rules become active, in the place of
   those that were, and requests fail; a state is set; a breakpoint suspends the request that has met it. */
#include "blkdebug.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const event_names[] = {
    "l1_update",
    "l1_grow_alloc_table",
    "l1_grow_write_table",
    "l1_grow_activate_table",
    "l2_load",
    "l2_update",
    "l2_update_compressed",
    "l2_alloc_cow_read",
    "l2_alloc_write",
    "read_aio",
    "read_backing_aio",
    "read_compressed",
    "write_aio",
    "write_compressed",
    "vmstate_load",
    "vmstate_save",
    "cow_read",
    "cow_write",
    "reftable_load",
    "reftable_grow",
    "reftable_update",
    "refblock_load",
    "refblock_update",
    "refblock_update_part",
    "refblock_alloc",
    "refblock_alloc_hookup",
    "refblock_alloc_write",
    "refblock_alloc_write_blocks",
    "refblock_alloc_write_table",
    "refblock_alloc_switch_table",
    "cluster_alloc",
    "cluster_alloc_bytes",
    "cluster_free",
    "flush_to_os",
    "flush_to_disk",
    "pwritev_rmw_head",
    "pwritev_rmw_after_head",
    "pwritev_rmw_tail",
    "pwritev_rmw_after_tail",
    "pwritev",
    "pwritev_zero",
    "pwritev_done",
    "empty_image_prepare",
    "l1_shrink_write_table",
    "l1_shrink_free_l2_clusters",
    "cor_write",
    "cluster_alloc_space",
    "none",
};
#define EVENT_COUNT (sizeof(event_names) / sizeof(event_names[0]))

int blkdebug_event_number(const char *name)
{
    for (size_t i = 0; i < EVENT_COUNT; i++) {
        if (strcmp(name, event_names[i]) == 0) {
            return (int)i;
        }
    }
    return -1;
}

void blkdebug_add_rule(struct blkdebug *state, const struct blkdebug_rule *rule)
{
    struct blkdebug_rule *copy = memory_or_exit(malloc(sizeof(*copy)));
    struct blkdebug_rule **at = &state->rules;

    *copy = *rule;
    copy->next = NULL;
    while (*at != NULL) {
        at = &(*at)->next;
    }
    *at = copy;
}

/* --- what happens at an event; called with the lock --- */

static bool meets(const struct blkdebug *state, const struct blkdebug_rule *rule, int event)
{
    return rule->event == event && !rule->spent && (rule->state == 0 || rule->state == state->state);
}

static void deactivate(struct blkdebug *state)
{
    for (struct blkdebug_rule *rule = state->rules; rule != NULL; rule = rule->next) {
        rule->active = false;
    }
}

/* A breakpoint that a request has met. */
static void add_stop(struct blkdebug *state, const char *tag, const void *owner)
{
    struct blkdebug_stop *stop = memory_or_exit(calloc(1, sizeof(*stop)));

    stop->tag = text_copy(tag);
    stop->owner = owner;
    stop->next = state->stops;
    state->stops = stop;
    printf("blkdebug: Suspended request '%s'\n", tag);
}

/* Takes out a breakpoint of a request that has been resumed; false: one is left at which it stands. */
static bool leave_stops(struct blkdebug *state, const void *owner)
{
    struct blkdebug_stop **at = &state->stops;
    bool free_to_go = true;

    while (*at != NULL) {
        struct blkdebug_stop *stop = *at;

        if (stop->owner == owner && stop->resumed) {
            *at = stop->next;
            free(stop->tag);
            free(stop);
            continue;
        }
        free_to_go = free_to_go && stop->owner != owner;
        at = &stop->next;
    }
    return free_to_go;
}

static void happen(struct blkdebug *state, int event)
{
    bool injected = false, met = false;
    int new_state = state->state;

    for (struct blkdebug_rule *rule = state->rules; rule != NULL; rule = rule->next) {
        if (!meets(state, rule, event)) {
            continue;
        }
        if (rule->action == BLKDEBUG_STATE) {
            new_state = rule->new_state;
        } else if (rule->action == BLKDEBUG_ERROR) {
            if (!injected) {
                deactivate(state);
            }
            injected = true;
            rule->active = true;
        } else {
            rule->spent = true;
            met = true;
            add_stop(state, rule->tag, &met);
        }
    }
    state->state = new_state;
    while (met && !state->no_stops && !leave_stops(state, &met)) {
        pthread_cond_wait(&state->changed, &state->lock);
    }
}

static void blkdebug_event(struct node *node, const char *name)
{
    struct blkdebug *state = node->state;
    int event = blkdebug_event_number(name);

    if (event >= 0) {
        pthread_mutex_lock(&state->lock);
        happen(state, event);
        pthread_mutex_unlock(&state->lock);
    }
}

/* --- requests --- */

/* 0, or the error that is injected here. */
static int check(struct node *node, int type, uint64_t bytes, uint64_t offset)
{
    struct blkdebug *state = node->state;
    int ret = 0;

    pthread_mutex_lock(&state->lock);
    for (struct blkdebug_rule *rule = state->rules; rule != NULL && ret == 0; rule = rule->next) {
        bool here = rule->offset == UINT64_MAX || (rule->offset >= offset && rule->offset - offset < bytes);

        if (rule->active && here && (rule->types & 1u << type) != 0) {
            if (rule->error == 0) {
                break;
            }
            ret = -rule->error;
            rule->active = !rule->once;
            rule->spent = rule->once;
        }
    }
    pthread_mutex_unlock(&state->lock);
    return ret;
}

static int blkdebug_read(struct node *node, void *buffer, size_t bytes, uint64_t offset)
{
    int ret = check(node, BLKDEBUG_READ, bytes, offset);

    ret = ret < 0 ? ret : node_child_read(node, buffer, bytes, offset);
    if (ret == 0 && node->copies_on_read && !node_child_has(node, offset, bytes)) {
        blkdebug_event(node, "cor_write");
        ret = check(node, BLKDEBUG_WRITE, bytes, offset);
        ret = ret < 0 ? ret : node_child_write(node, buffer, bytes, offset);
    }
    return ret;
}

static int blkdebug_write(struct node *node, const void *buffer, size_t bytes, uint64_t offset)
{
    int ret = check(node, BLKDEBUG_WRITE, bytes, offset);

    return ret < 0 ? ret : node_child_write(node, buffer, bytes, offset);
}

static int blkdebug_zero(struct node *node, uint64_t bytes, uint64_t offset)
{
    int ret = check(node, BLKDEBUG_ZERO, bytes, offset);

    return ret < 0 ? ret : node_child_zero(node, bytes, offset);
}

static int blkdebug_discard(struct node *node, uint64_t bytes, uint64_t offset)
{
    int ret = check(node, BLKDEBUG_DISCARD, bytes, offset);

    return ret < 0 ? ret : node_child_discard(node, bytes, offset);
}

static int blkdebug_flush(struct node *node)
{
    int ret = check(node, BLKDEBUG_FLUSH, 0, 0);

    return ret < 0 ? ret : node_child_flush(node);
}

/* --- opening --- */

static int parse_name(const char *filename, struct string_list *items, char **error)
{
    const char *config = filename + strlen("blkdebug:"), *colon;

    if (strncmp(filename, "blkdebug:", strlen("blkdebug:")) != 0) {
        list_addf(items, "x-image=%s", filename);
        return 0;
    }
    colon = strchr(config, ':');
    if (colon == NULL) {
        return refuse(error, -EINVAL, text_copy("blkdebug requires both config file and image path"));
    }
    if (colon > config) {
        list_addf(items, "config=%.*s", (int)(colon - config), config);
    }
    list_addf(items, "x-image=%s", colon + 1);
    return 0;
}

static bool power_of_two(uint64_t value)
{
    return (value & (value - 1)) == 0;
}

static int take_limit(struct string_list *items, const char *key, uint64_t *limit, uint64_t unit, uint64_t most,
                      char **error)
{
    if (take_size(items, key, limit, error) < 0) {
        return -EINVAL;
    }
    if (*limit > most || *limit % (unit > 1 ? unit : 1) != 0) {
        return refuse(error, -EINVAL,
                      text_format("Cannot meet constraints with %s %llu", key, (unsigned long long)*limit));
    }
    return 0;
}

static int take_limits(struct node *node, struct string_list *items, char **error)
{
    struct node_limits *limits = &node->limits;
    uint64_t align, zero, discard;

    if (take_size(items, "align", &limits->align, error) < 0) {
        return -EINVAL;
    }
    align = limits->align;
    if (align >= INT32_MAX || !power_of_two(align)) {
        return refuse(error, -EINVAL,
                      text_format("Cannot meet constraints with align %llu", (unsigned long long)align));
    }
    if (take_limit(items, "max-transfer", &limits->max_transfer, align, INT32_MAX, error) < 0 ||
        take_limit(items, "opt-write-zero", &limits->opt_zero, align, INT32_MAX, error) < 0) {
        return -EINVAL;
    }
    zero = limits->opt_zero > align ? limits->opt_zero : align;
    if (take_limit(items, "max-write-zero", &limits->max_zero, zero, INT32_MAX, error) < 0 ||
        take_limit(items, "opt-discard", &limits->opt_discard, align, INT32_MAX, error) < 0) {
        return -EINVAL;
    }
    discard = limits->opt_discard > align ? limits->opt_discard : align;
    return take_limit(items, "max-discard", &limits->max_discard, discard, INT32_MAX, error);
}

static int blkdebug_open(struct node *node, struct string_list *items, char **error)
{
    struct blkdebug *state = memory_or_exit(calloc(1, sizeof(*state)));
    char *image = list_take(items, "x-image"), *config = list_take(items, "config");
    int ret;

    node->state = state;
    state->state = 1;
    pthread_mutex_init(&state->lock, NULL);
    pthread_cond_init(&state->changed, NULL);
    node->filename = image != NULL ? text_format("blkdebug:%s:%s", config != NULL ? config : "", image) : NULL;
    ret = blkdebug_read_rules(state, config, items, error);
    if (ret == 0) {
        happen(state, blkdebug_event_number("none"));
        ret = node_build_child(node, items, "image", image, true, error);
    }
    if (ret == 0 && node->child_count == 0) {
        ret = refuse(error, -EINVAL, text_copy("A block device must be specified for \"image\""));
    }
    ret = ret == 0 ? take_limits(node, items, error) : ret;
    if (ret == 0 && node->filename == NULL) {
        char *below = node_name(node->children[0]);

        node->filename = text_format("blkdebug:%s:%s", config != NULL ? config : "", below);
        free(below);
    }
    free(image);
    free(config);
    return ret == 0 ? node_open_child(node->children[0], error) : ret;
}

static void blkdebug_free(struct node *node)
{
    struct blkdebug *state = node->state;

    while (state != NULL && state->rules != NULL) {
        struct blkdebug_rule *rule = state->rules;

        state->rules = rule->next;
        free(rule->tag);
        free(rule);
    }
    while (state != NULL && state->stops != NULL) {
        struct blkdebug_stop *stop = state->stops;

        state->stops = stop->next;
        free(stop->tag);
        free(stop);
    }
    free(state);
}

const struct node_driver node_blkdebug = {
    .name = "blkdebug",
    .protocol = true,
    .parse_filename = parse_name,
    .open = blkdebug_open,
    .free_state = blkdebug_free,
    .read = blkdebug_read,
    .write = blkdebug_write,
    .zero = blkdebug_zero,
    .discard = blkdebug_discard,
    .flush = blkdebug_flush,
    .length = node_child_length,
    .truncate = node_child_truncate,
    .event = blkdebug_event,
    .status = node_child_status,
};
