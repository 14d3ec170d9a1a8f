/* Changes of a node that share a unit of its alignment wait for each other.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "node.h"

static bool must_wait(const struct node *node, const struct in_flight *change)
{
    for (const struct in_flight *other = node->in_flight; other != NULL; other = other->next) {
        bool share = other->offset < change->end && change->offset < other->end;

        if (share && (other->padded || change->padded)) {
            return true;
        }
    }
    return false;
}

void in_flight_begin(struct node *node, struct in_flight *change)
{
    if (node->limits.align <= 1) {
        return; /* nothing is padded */
    }
    pthread_mutex_lock(&node->flight_lock);
    while (must_wait(node, change)) {
        pthread_cond_wait(&node->landed, &node->flight_lock);
    }
    change->next = node->in_flight;
    node->in_flight = change;
    pthread_mutex_unlock(&node->flight_lock);
}

void in_flight_end(struct node *node, struct in_flight *change)
{
    struct in_flight **at = &node->in_flight;

    if (node->limits.align <= 1) {
        return;
    }
    pthread_mutex_lock(&node->flight_lock);
    while (*at != change) {
        at = &(*at)->next;
    }
    *at = change->next;
    pthread_cond_broadcast(&node->landed);
    pthread_mutex_unlock(&node->flight_lock);
}
