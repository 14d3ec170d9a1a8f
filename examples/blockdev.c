/* A block device as emulators have it: requests go into a queue, workers serve them, each one tells when it is done.
   SPDX-License-Identifier: MIT OR Apache-2.0
   cc blockdev.c $(pkg-config --cflags --libs qcow2) -pthread -o blockdev && ./blockdev disk.qcow2 */
#include <errno.h>
#include <pthread.h>
#include <qcow2.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum operation { READ, WRITE, FLUSH, DISCARD, ZERO };

struct request {
    enum operation operation;
    void *buffer; /* READ and WRITE; must live until `done` */
    uint64_t offset, count;
    void (*done)(struct request *request, int result); /* on a worker: 0 or -errno */
    void *opaque;
    struct request *next;
};

enum { WORKERS = 4 };

struct blockdev {
    qcow2_image *image;
    pthread_t workers[WORKERS];
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t wake;
    struct request *first, **end;
    bool stopping;
};

/* Workers need no lock around the image, and requests of one moment are in no order: as on hardware, a flush covers the
   requests that were done before it. */
static int serve(qcow2_image *image, const struct request *r)
{
    ssize_t result = -EINVAL;

    switch (r->operation) {
    case READ: result = qcow2_pread(image, r->buffer, r->count, r->offset); break;
    case WRITE: result = qcow2_pwrite(image, r->buffer, r->count, r->offset); break;
    case FLUSH: result = qcow2_flush(image); break;
    case DISCARD: result = qcow2_discard(image, r->offset, r->count); break;
    case ZERO: result = qcow2_write_zeroes(image, r->offset, r->count, QCOW2_REQ_UNMAP); break;
    }
    if (result < 0) {
        /* The text belongs to the thread that failed. */
        fprintf(stderr, "%s\n", qcow2_last_error());
    }
    return result < 0 ? (int)result : 0;
}

static void *work(void *opaque)
{
    struct blockdev *dev = opaque;

    pthread_mutex_lock(&dev->lock);
    for (;;) {
        struct request *request = dev->first;

        if (request != NULL) {
            dev->first = request->next;
            if (dev->first == NULL) {
                dev->end = &dev->first;
            }
            pthread_mutex_unlock(&dev->lock);
            request->done(request, serve(dev->image, request));
            pthread_mutex_lock(&dev->lock);
        } else if (dev->stopping) {
            break;
        } else {
            pthread_cond_wait(&dev->wake, &dev->lock);
        }
    }
    pthread_mutex_unlock(&dev->lock);
    return NULL;
}

static void blockdev_submit(struct blockdev *dev, struct request *request)
{
    request->next = NULL;
    pthread_mutex_lock(&dev->lock);
    *dev->end = request;
    dev->end = &request->next;
    pthread_cond_signal(&dev->wake);
    pthread_mutex_unlock(&dev->lock);
}

/* Serves what is queued, then ends. */
static int blockdev_stop(struct blockdev *dev, int workers)
{
    pthread_mutex_lock(&dev->lock);
    dev->stopping = true;
    pthread_cond_broadcast(&dev->wake);
    pthread_mutex_unlock(&dev->lock);
    for (int i = 0; i < workers; i++) {
        pthread_join(dev->workers[i], NULL);
    }
    pthread_cond_destroy(&dev->wake);
    pthread_mutex_destroy(&dev->lock);
    return qcow2_close(dev->image);
}

static int blockdev_start(struct blockdev *dev, const char *path)
{
    int result = qcow2_open(path, 0, NULL, &dev->image);

    if (result < 0) {
        return result;
    }
    pthread_mutex_init(&dev->lock, NULL);
    pthread_cond_init(&dev->wake, NULL);
    dev->first = NULL;
    dev->end = &dev->first;
    dev->stopping = false;
    for (int i = 0; i < WORKERS; i++) {
        int error = pthread_create(&dev->workers[i], NULL, work, dev);

        if (error != 0) {
            blockdev_stop(dev, i);
            return -error;
        }
    }
    return 0;
}

/* The guest's side: `count` requests of BLOCK_BYTES at once, and a wait for all of them. */
enum { BLOCKS = 512, BLOCK_BYTES = 8192 };

struct batch {
    pthread_mutex_t lock;
    pthread_cond_t finished;
    int pending, failed;
};

static void note(struct request *request, int result)
{
    struct batch *batch = request->opaque;

    pthread_mutex_lock(&batch->lock);
    batch->failed += result < 0;
    if (--batch->pending == 0) {
        pthread_cond_signal(&batch->finished);
    }
    pthread_mutex_unlock(&batch->lock);
}

static int run(struct blockdev *dev, enum operation operation, char *memory, int count)
{
    static struct request requests[BLOCKS];
    struct batch batch = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, count, 0};

    for (int i = 0; i < count; i++) {
        uint64_t at = (uint64_t)i * BLOCK_BYTES;

        requests[i] = (struct request){operation, memory + at, at, BLOCK_BYTES, note, &batch, NULL};
        blockdev_submit(dev, &requests[i]);
    }
    pthread_mutex_lock(&batch.lock);
    while (batch.pending > 0) {
        pthread_cond_wait(&batch.finished, &batch.lock);
    }
    pthread_mutex_unlock(&batch.lock);
    return batch.failed;
}

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : "disk.qcow2";
    char *out = malloc(BLOCKS * BLOCK_BYTES), *in = calloc(BLOCKS, BLOCK_BYTES);
    struct blockdev dev;
    int bad;

    if (out == NULL || in == NULL || qcow2_create(path, 1 << 30, NULL) < 0 || blockdev_start(&dev, path) < 0) {
        fprintf(stderr, "%s\n", qcow2_last_error());
        return 1;
    }
    for (int i = 0; i < BLOCKS * BLOCK_BYTES; i++) {
        out[i] = (char)(i / 512 + i);
    }
    bad = run(&dev, WRITE, out, BLOCKS) + run(&dev, FLUSH, out, 1) + run(&dev, READ, in, BLOCKS);
    bad += memcmp(in, out, BLOCKS * BLOCK_BYTES) != 0;
    bad += run(&dev, ZERO, out, 1) + run(&dev, DISCARD, out, BLOCKS / 2) + run(&dev, READ, in, 1) + (in[1] != 0);
    printf("%d requests by %d workers, %d failed\n", 5 * BLOCKS / 2 + 3, WORKERS, bad);
    free(out);
    free(in);
    return blockdev_stop(&dev, WORKERS) < 0 || bad > 0;
}
