/* An image in memory: the library over the caller's own storage.
   SPDX-License-Identifier: MIT OR Apache-2.0
   cc memory.c $(pkg-config --cflags --libs qcow2) -pthread -o memory && ./memory */
#include <errno.h>
#include <pthread.h>
#include <qcow2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct memory {
    pthread_mutex_t lock; /* calls come from every thread that calls the library */
    char *bytes;
    uint64_t length;
};

static int64_t memory_length(void *opaque)
{
    struct memory *memory = opaque;

    pthread_mutex_lock(&memory->lock);
    int64_t length = (int64_t)memory->length;
    pthread_mutex_unlock(&memory->lock);
    return length;
}

static int resize(struct memory *memory, uint64_t length)
{
    char *bytes = realloc(memory->bytes, length > 0 ? length : 1);

    if (bytes == NULL) {
        return -ENOMEM;
    }
    if (length > memory->length) {
        memset(bytes + memory->length, 0, length - memory->length);
    }
    memory->bytes = bytes;
    memory->length = length;
    return 0;
}

static int memory_truncate(void *opaque, uint64_t length)
{
    struct memory *memory = opaque;

    pthread_mutex_lock(&memory->lock);
    int result = resize(memory, length);
    pthread_mutex_unlock(&memory->lock);
    return result;
}

/* Moves whole ranges: past the end a read gives zeroes and a write extends. */
static int move(struct memory *memory, const struct iovec *iov, int iovcnt, uint64_t offset, int write)
{
    int result = 0;

    pthread_mutex_lock(&memory->lock);
    for (int i = 0; i < iovcnt && result == 0; i++) {
        size_t count = iov[i].iov_len;

        if (write && offset + count > memory->length) {
            result = resize(memory, offset + count);
        }
        if (result == 0 && write) {
            memcpy(memory->bytes + offset, iov[i].iov_base, count);
        } else if (result == 0) {
            uint64_t there = offset < memory->length ? memory->length - offset : 0;
            size_t held = there < count ? (size_t)there : count;

            if (held > 0) {
                memcpy(iov[i].iov_base, memory->bytes + offset, held);
            }
            memset((char *)iov[i].iov_base + held, 0, count - held);
        }
        offset += count;
    }
    pthread_mutex_unlock(&memory->lock);
    return result;
}

static int memory_preadv(void *opaque, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    return move(opaque, iov, iovcnt, offset, 0);
}

static int memory_pwritev(void *opaque, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    return move(opaque, iov, iovcnt, offset, 1);
}

int main(void)
{
    struct memory memory = {.lock = PTHREAD_MUTEX_INITIALIZER};
    const qcow2_io_ops ops = {
        .struct_size = sizeof ops,
        .preadv = memory_preadv,
        .pwritev = memory_pwritev,
        .length = memory_length,
        .truncate = memory_truncate,
    };
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
    qcow2_image *image;
    char text[6] = "";

    params.io = &ops;
    params.io_opaque = &memory;
    if (qcow2_create_io(&ops, &memory, 16 << 20, NULL) < 0 || qcow2_open_with(&params, &image) < 0 ||
        qcow2_pwrite(image, "hello", 5, 12345) < 0 || qcow2_pread(image, text, 5, 12345) < 0) {
        fprintf(stderr, "%s\n", qcow2_last_error());
        return 1;
    }
    int result = qcow2_close(image);
    printf("%s, in %llu bytes of memory\n", text, (unsigned long long)memory.length);
    free(memory.bytes);
    return result < 0;
}
