/* Storage in memory that counts, and fails when it is told to.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

static int begin(struct test_memory *memory, int error)
{
    pthread_mutex_lock(&memory->lock);
    if (error == 0) {
        return 0;
    }
    if (memory->fail_after > 0) {
        memory->fail_after--;
        return 0;
    }
    return -error;
}

static int end(struct test_memory *memory, int result)
{
    pthread_mutex_unlock(&memory->lock);
    return result;
}

static int set_length(struct test_memory *memory, uint64_t length)
{
    unsigned char *bytes;

    if (length > memory->limit) {
        return -ENOSPC;
    }
    bytes = realloc(memory->bytes, length > 0 ? length : 1);
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

static int memory_preadv(void *opaque, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    struct test_memory *memory = opaque;
    int result = begin(memory, memory->fail_read);

    memory->reads++;
    for (int i = 0; i < iovcnt && result == 0; i++) {
        uint64_t there = offset < memory->length ? memory->length - offset : 0;
        size_t held = there < iov[i].iov_len ? (size_t)there : iov[i].iov_len;

        if (held > 0) {
            memcpy(iov[i].iov_base, memory->bytes + offset, held);
        }
        memset((char *)iov[i].iov_base + held, 0, iov[i].iov_len - held);
        offset += iov[i].iov_len;
    }
    return end(memory, result);
}

static int memory_pwritev(void *opaque, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    struct test_memory *memory = opaque;
    int result = begin(memory, memory->fail_write);

    memory->writes++;
    for (int i = 0; i < iovcnt && result == 0; i++) {
        if (offset + iov[i].iov_len > memory->length) {
            result = set_length(memory, offset + iov[i].iov_len);
        }
        if (result == 0 && iov[i].iov_len > 0) {
            memcpy(memory->bytes + offset, iov[i].iov_base, iov[i].iov_len);
        }
        offset += iov[i].iov_len;
    }
    return end(memory, result);
}

static int memory_sync(void *opaque)
{
    struct test_memory *memory = opaque;
    int result = begin(memory, memory->fail_sync);

    memory->syncs++;
    return end(memory, result);
}

static int64_t memory_length(void *opaque)
{
    struct test_memory *memory = opaque;
    int64_t result;

    pthread_mutex_lock(&memory->lock);
    result = memory->fail_length != 0 ? -memory->fail_length : (int64_t)memory->length;
    pthread_mutex_unlock(&memory->lock);
    return result;
}

static int memory_truncate(void *opaque, uint64_t length)
{
    struct test_memory *memory = opaque;
    int result = begin(memory, memory->fail_truncate);

    memory->truncates++;
    return end(memory, result != 0 ? result : set_length(memory, length));
}

static void memory_close(void *opaque)
{
    struct test_memory *memory = opaque;

    pthread_mutex_lock(&memory->lock);
    memory->closes++;
    pthread_mutex_unlock(&memory->lock);
}

const qcow2_io_ops test_memory_ops = {
    .struct_size = sizeof(qcow2_io_ops),
    .preadv = memory_preadv,
    .pwritev = memory_pwritev,
    .sync = memory_sync,
    .length = memory_length,
    .truncate = memory_truncate,
    .close = memory_close,
};

void test_memory_free(struct test_memory *memory)
{
    free(memory->bytes);
    memory->bytes = NULL;
    memory->length = 0;
}

int test_memory_open(const qcow2_io_ops *ops, struct test_memory *memory, uint64_t flags, qcow2_image **image)
{
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;

    params.io = ops;
    params.io_opaque = memory;
    params.flags = flags;
    return qcow2_open_with(&params, image);
}
