/* Breakpoints of node blkdebug, from the side of who sets and resumes them.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "blkdebug.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct blkdebug *find(struct node *root)
{
    while (root != NULL && root->driver != &node_blkdebug) {
        root = root->child_count > 0 ? root->children[0] : NULL;
    }
    return root != NULL ? root->state : NULL;
}

int blkdebug_break(struct node *root, const char *event, const char *tag)
{
    struct blkdebug *state = find(root);
    struct blkdebug_rule rule = {.action = BLKDEBUG_STOP};

    if (state == NULL) {
        return -ENOTSUP;
    }
    rule.event = blkdebug_event_number(event);
    if (rule.event < 0) {
        return -ENOENT;
    }
    rule.tag = text_copy(tag);
    pthread_mutex_lock(&state->lock);
    blkdebug_add_rule(state, &rule);
    pthread_mutex_unlock(&state->lock);
    return 0;
}

/* The next request under a tag (NULL: any) that still stands; called with the lock. */
static struct blkdebug_stop *standing(struct blkdebug *state, const char *tag)
{
    struct blkdebug_stop *stop = state->stops;

    while (stop != NULL && (stop->resumed || (tag != NULL && strcmp(stop->tag, tag) != 0))) {
        stop = stop->next;
    }
    return stop;
}

static int resume(struct blkdebug *state, const char *tag, bool all)
{
    struct blkdebug_stop *stop;
    int ret = -ENOENT;

    pthread_mutex_lock(&state->lock);
    while ((stop = standing(state, tag)) != NULL) {
        printf("blkdebug: Resuming request '%s'\n", stop->tag);
        stop->resumed = true;
        ret = 0;
        if (!all) {
            break;
        }
    }
    pthread_cond_broadcast(&state->changed);
    pthread_mutex_unlock(&state->lock);
    return ret;
}

int blkdebug_resume(struct node *root, const char *tag)
{
    struct blkdebug *state = find(root);

    return state != NULL ? resume(state, tag, false) : -ENOTSUP;
}

int blkdebug_remove(struct node *root, const char *tag)
{
    struct blkdebug *state = find(root);
    int ret = -ENOENT;

    if (state == NULL) {
        return -ENOTSUP;
    }
    pthread_mutex_lock(&state->lock);
    for (struct blkdebug_rule *rule = state->rules; rule != NULL; rule = rule->next) {
        if (rule->action == BLKDEBUG_STOP && !rule->spent && strcmp(rule->tag, tag) == 0) {
            rule->spent = true;
            ret = 0;
        }
    }
    pthread_mutex_unlock(&state->lock);
    resume(state, tag, true);
    return ret;
}

bool blkdebug_is_suspended(struct node *root, const char *tag)
{
    struct blkdebug *state = find(root);
    bool found;

    if (state == NULL) {
        return false;
    }
    pthread_mutex_lock(&state->lock);
    found = standing(state, tag) != NULL;
    pthread_mutex_unlock(&state->lock);
    return found;
}

bool blkdebug_may_suspend(struct node *root)
{
    struct blkdebug *state = find(root);
    bool may;

    if (state == NULL) {
        return false;
    }
    pthread_mutex_lock(&state->lock);
    may = state->stops != NULL;
    for (struct blkdebug_rule *rule = state->rules; rule != NULL && !may; rule = rule->next) {
        may = rule->action == BLKDEBUG_STOP && !rule->spent;
    }
    pthread_mutex_unlock(&state->lock);
    return may;
}

void blkdebug_resume_all(struct node *root)
{
    struct blkdebug *state = find(root);

    if (state != NULL) {
        pthread_mutex_lock(&state->lock);
        state->no_stops = true; /* the tree, and with it the list, lives on until it is closed */
        for (struct blkdebug_stop *stop = state->stops; stop != NULL; stop = stop->next) {
            stop->resumed = true;
        }
        pthread_cond_broadcast(&state->changed);
        pthread_mutex_unlock(&state->lock);
    }
}
