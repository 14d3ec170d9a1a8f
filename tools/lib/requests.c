/* Requests on nodes: pieces that keep to a driver's limits, and the way to the node below.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* --- to the image of the node below --- */

static qcow2_image *below(struct node *node)
{
    return node->children[0]->image;
}

int64_t node_child_length(struct node *node)
{
    return qcow2_length(below(node));
}

/* How much of a range is inside the disk below. */
static uint64_t inside(struct node *node, uint64_t bytes, uint64_t offset)
{
    int64_t length = node_child_length(node);

    if (length < 0 || offset >= (uint64_t)length) {
        return 0;
    }
    return bytes < (uint64_t)length - offset ? bytes : (uint64_t)length - offset;
}

int node_child_read(struct node *node, void *buffer, size_t bytes, uint64_t offset)
{
    size_t held = (size_t)inside(node, bytes, offset);
    ssize_t ret = held > 0 ? qcow2_pread(below(node), buffer, held, offset) : 0;

    memset((char *)buffer + held, 0, bytes - held);
    return ret < 0 ? (int)ret : 0;
}

static int grow(struct node *node, uint64_t end)
{
    int ret = 0;

    if (inside(node, end, 0) == end) {
        return 0;
    }
    pthread_mutex_lock(&node->end_lock);
    if (inside(node, end, 0) < end) {
        ret = qcow2_truncate(below(node), end, QCOW2_PREALLOC_OFF);
    }
    pthread_mutex_unlock(&node->end_lock);
    return ret;
}

int node_child_write(struct node *node, const void *buffer, size_t bytes, uint64_t offset)
{
    int ret = grow(node, offset + bytes);
    ssize_t done = ret == 0 ? qcow2_pwrite(below(node), buffer, bytes, offset) : ret;

    return done < 0 ? (int)done : 0;
}

int node_child_zero(struct node *node, uint64_t bytes, uint64_t offset)
{
    int ret = grow(node, offset + bytes);

    return ret < 0 ? ret : qcow2_write_zeroes(below(node), offset, bytes, 0);
}

int node_child_discard(struct node *node, uint64_t bytes, uint64_t offset)
{
    bytes = inside(node, bytes, offset);
    return bytes > 0 ? qcow2_discard(below(node), offset, bytes) : 0;
}

int node_child_flush(struct node *node)
{
    return qcow2_flush(below(node));
}

int node_child_truncate(struct node *node, uint64_t length)
{
    int ret;

    pthread_mutex_lock(&node->end_lock);
    ret = qcow2_truncate(below(node), length, QCOW2_PREALLOC_OFF);
    pthread_mutex_unlock(&node->end_lock);
    return ret;
}

int node_child_status(struct node *node, uint64_t offset, uint64_t length, uint64_t *run, uint32_t *flags)
{
    qcow2_extent extent = {.struct_size = sizeof(extent)};
    int ret = qcow2_block_status(below(node), offset, length, 0, &extent);

    *run = extent.length;
    *flags = extent.flags;
    return ret;
}

bool node_child_has(struct node *node, uint64_t offset, uint64_t bytes)
{
    while (bytes > 0) {
        qcow2_extent extent = {.struct_size = sizeof(extent)};

        if (qcow2_block_status(below(node), offset, bytes, QCOW2_STATUS_TOP_ONLY, &extent) < 0 ||
            (extent.flags & QCOW2_EXTENT_ALLOCATED) == 0) {
            return false;
        }
        if (extent.length >= bytes) {
            break;
        }
        offset += extent.length;
        bytes -= extent.length;
    }
    return true;
}

/* --- from the library: the functions of qcow2_io_ops --- */

static void tell(struct node *node, const char *event)
{
    if (node->requests->event != NULL) {
        node->requests->event(node, event);
    }
}

/* A flush has something to do from now on. */
static void note_change(struct node *node)
{
    __atomic_store_n(&node->changed, true, __ATOMIC_SEQ_CST);
}

static uint64_t least(uint64_t a, uint64_t limit)
{
    return limit != 0 && limit < a ? limit : a;
}

static int read_pieces(struct node *node, char *buffer, uint64_t bytes, uint64_t offset)
{
    int ret = 0;

    while (bytes > 0 && ret == 0) {
        uint64_t piece = least(bytes, node->limits.max_transfer);

        ret = node->requests->read(node, buffer, piece, offset);
        buffer += piece, offset += piece, bytes -= piece;
    }
    return ret;
}

static int write_pieces(struct node *node, const char *buffer, uint64_t bytes, uint64_t offset)
{
    int ret = 0;

    while (bytes > 0 && ret == 0) {
        uint64_t piece = least(bytes, node->limits.max_transfer);

        ret = node->requests->write(node, buffer, piece, offset);
        note_change(node);
        buffer += piece, offset += piece, bytes -= piece;
    }
    return ret;
}

/* A request in one buffer, with what alignment adds on both sides. */
struct span {
    char *buffer;
    uint64_t offset, bytes; /* of the buffer */
    uint64_t head, tail;    /* bytes of it before and behind the request */
};

static uint64_t iov_bytes(const struct iovec *iov, int count)
{
    uint64_t bytes = 0;

    for (int i = 0; i < count; i++) {
        bytes += iov[i].iov_len;
    }
    return bytes;
}

static int span_init(struct span *span, const struct node *node, uint64_t bytes, uint64_t offset)
{
    uint64_t align = node->limits.align > 1 ? node->limits.align : 1;

    if (bytes > INT64_MAX - 2 * align || offset > INT64_MAX - 2 * align - bytes) {
        return -EFBIG;
    }
    span->head = offset % align;
    span->offset = offset - span->head;
    span->bytes = (span->head + bytes + align - 1) / align * align;
    span->tail = span->bytes - span->head - bytes;
    span->buffer = malloc(span->bytes > 0 ? span->bytes : 1);
    return span->buffer != NULL ? 0 : -ENOMEM;
}

static void gather(char *at, const struct iovec *iov, int count)
{
    for (int i = 0; i < count; i++) {
        if (iov[i].iov_len > 0) {
            memcpy(at, iov[i].iov_base, iov[i].iov_len);
        }
        at += iov[i].iov_len;
    }
}

static void scatter(const struct iovec *iov, int count, const char *at)
{
    for (int i = 0; i < count; i++) {
        if (iov[i].iov_len > 0) {
            memcpy(iov[i].iov_base, at, iov[i].iov_len);
        }
        at += iov[i].iov_len;
    }
}

static int ops_preadv(void *opaque, const struct iovec *iov, int count, uint64_t offset)
{
    struct node *node = opaque;
    struct span span;
    int ret = span_init(&span, node, iov_bytes(iov, count), offset);

    if (ret < 0) {
        return ret;
    }
    gather(span.buffer + span.head, iov, count); /* who reads nothing leaves it */
    ret = read_pieces(node, span.buffer, span.bytes, span.offset);
    if (ret == 0) {
        scatter(iov, count, span.buffer + span.head);
    }
    free(span.buffer);
    return ret;
}

/* Reads what alignment adds to a write. */
static int fill_ends(struct node *node, const struct span *span)
{
    uint64_t align = node->limits.align;
    int ret = 0;

    if (span->head > 0) {
        tell(node, "pwritev_rmw_head");
        ret = node->requests->read(node, span->buffer, align, span->offset);
        tell(node, "pwritev_rmw_after_head");
    }
    if (ret == 0 && span->tail > 0 && (span->head == 0 || span->bytes > align)) {
        tell(node, "pwritev_rmw_tail");
        ret = node->requests->read(node, span->buffer + span->bytes - align, align, span->offset + span->bytes - align);
        tell(node, "pwritev_rmw_after_tail");
    }
    return ret;
}

static int ops_pwritev(void *opaque, const struct iovec *iov, int count, uint64_t offset)
{
    struct node *node = opaque;
    struct span span;
    struct in_flight change;
    int ret = span_init(&span, node, iov_bytes(iov, count), offset);

    if (ret < 0) {
        return ret;
    }
    change = (struct in_flight){span.offset, span.offset + span.bytes, span.head > 0 || span.tail > 0, NULL};
    in_flight_begin(node, &change);
    ret = fill_ends(node, &span);
    if (ret == 0) {
        gather(span.buffer + span.head, iov, count);
        tell(node, "pwritev");
        ret = write_pieces(node, span.buffer, span.bytes, span.offset);
        tell(node, "pwritev_done");
    }
    in_flight_end(node, &change);
    free(span.buffer);
    return ret;
}

/* Who finds nothing to do has waited for a flush that is under way: what it makes stable may be his. */
static int ops_sync(void *opaque)
{
    struct node *node = opaque;
    int ret = 0;

    tell(node, "flush_to_os");
    pthread_mutex_lock(&node->flush_lock);
    if (__atomic_exchange_n(&node->changed, false, __ATOMIC_SEQ_CST)) {
        tell(node, "flush_to_disk");
        ret = node->requests->flush(node);
    }
    if (ret < 0) {
        note_change(node);
    }
    pthread_mutex_unlock(&node->flush_lock);
    return ret;
}

static int64_t ops_length(void *opaque)
{
    struct node *node = opaque;

    return node->requests->length(node);
}

static int ops_truncate(void *opaque, uint64_t length)
{
    struct node *node = opaque;
    int ret = node->requests->truncate(node, length);

    note_change(node);
    return ret;
}

static int ops_discard(void *opaque, uint64_t offset, uint64_t length)
{
    struct node *node = opaque;
    uint64_t align = node->limits.opt_discard > node->limits.align ? node->limits.opt_discard : node->limits.align;
    uint64_t end = offset + length;
    int ret = 0;

    if (align > 1) {
        offset = (offset + align - 1) / align * align;
        end = end / align * align;
    }
    while (offset < end && ret == 0) {
        uint64_t piece = least(end - offset, node->limits.max_discard);
        struct in_flight change = {offset, offset + piece, false, NULL};

        in_flight_begin(node, &change);
        ret = node->requests->discard(node, piece, offset);
        in_flight_end(node, &change);
        note_change(node);
        offset += piece;
    }
    return ret;
}

static int zero_by_writing(struct node *node, uint64_t bytes, uint64_t offset)
{
    int ret = 0;
    char *zeroes = bytes > 0 ? calloc(1, 65536) : NULL;

    if (bytes > 0 && zeroes == NULL) {
        return -ENOMEM;
    }
    while (bytes > 0 && ret == 0) {
        struct iovec part = {zeroes, bytes < 65536 ? bytes : 65536};

        ret = ops_pwritev(node, &part, 1, offset);
        offset += part.iov_len, bytes -= part.iov_len;
    }
    free(zeroes);
    return ret;
}

static int ops_write_zeroes(void *opaque, uint64_t offset, uint64_t length)
{
    struct node *node = opaque;
    uint64_t align = node->limits.opt_zero > node->limits.align ? node->limits.opt_zero : node->limits.align;
    uint64_t head = align > 1 ? (align - offset % align) % align : 0, end = offset + length;
    int ret;

    head = head < length ? head : length;
    ret = zero_by_writing(node, head, offset);
    offset += head;
    while (ret == 0 && end > offset && end - offset >= (align > 1 ? align : 1)) {
        uint64_t piece = least(align > 1 ? (end - offset) / align * align : end - offset, node->limits.max_zero);
        struct in_flight change = {offset, offset + piece, false, NULL};

        in_flight_begin(node, &change);
        tell(node, "pwritev_zero");
        ret = node->requests->zero(node, piece, offset);
        in_flight_end(node, &change);
        note_change(node);
        if (ret == -ENOTSUP) {
            ret = zero_by_writing(node, piece, offset);
        }
        tell(node, "pwritev_done");
        offset += piece;
    }
    return ret < 0 ? ret : zero_by_writing(node, end - offset, offset);
}

static int ops_block_status(void *opaque, uint64_t offset, uint64_t length, uint64_t *run, uint32_t *flags)
{
    struct node *node = opaque;

    return node->requests->status(node, offset, length, run, flags);
}

static void ops_event(void *opaque, const char *name)
{
    tell(opaque, name);
}

static void ops_close(void *opaque)
{
    struct node *node = opaque;

    for (size_t i = 0; i < node->child_count; i++) {
        if (node->children[i]->image_is_child) {
            qcow2_close(node->children[i]->image);
            node->children[i]->image = NULL;
            node->children[i]->image_is_child = false;
        }
    }
}

const struct node_driver node_through = {
    .name = "",
    .read = node_child_read,
    .write = node_child_write,
    .zero = node_child_zero,
    .discard = node_child_discard,
    .flush = node_child_flush,
    .length = node_child_length,
    .truncate = node_child_truncate,
    .status = node_child_status,
};

const qcow2_io_ops *node_ops(struct node *node, const struct node_driver *requests)
{
    bool read_only = node_is_read_only(node);

    node->requests = requests;
    node->ops = (qcow2_io_ops){
        .struct_size = sizeof(node->ops),
        .preadv = ops_preadv,
        .pwritev = requests->write != NULL && !read_only ? ops_pwritev : NULL,
        .sync = ops_sync,
        .length = ops_length,
        .truncate = requests->truncate != NULL ? ops_truncate : NULL,
        .discard = requests->discard != NULL ? ops_discard : NULL,
        .write_zeroes = requests->zero != NULL ? ops_write_zeroes : NULL,
        .close = ops_close,
        .event = requests->event != NULL ? ops_event : NULL,
        .block_status = requests->status != NULL ? ops_block_status : NULL,
    };
    return &node->ops;
}
