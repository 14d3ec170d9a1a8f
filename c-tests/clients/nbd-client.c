/*
 * What an NBD client asks of the plugin, call by call.
 *
 *   nbd-client calls SOCKET            a disk of 8 MiB that is all holes, in clusters of 64 KiB
 *   nbd-client flush SOCKET SEED       random 4 KiB writes on four connections at once, then one flush on a fifth
 *   nbd-client fua SOCKET SEED         the same, each write durable by itself
 *   nbd-client filled SOCKET SEED      what they have left
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#include <errno.h>
#include <libnbd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1 << 20)
#define BLOCK 4096
#define CONNECTIONS 4

#define EXPECT(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, nbd_get_error());                      \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static const char *socket_path;
static char buffer[2 * MIB];

static struct nbd_handle *connect_to(void)
{
    struct nbd_handle *nbd = nbd_create();

    /* What is wrong is for the server to say. */
    EXPECT(nbd != NULL && nbd_set_strict_mode(nbd, 0) == 0 &&
           nbd_add_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0);
    EXPECT(nbd_connect_unix(nbd, socket_path) == 0);
    return nbd;
}

static int reads_as(struct nbd_handle *nbd, uint64_t offset, size_t length, char byte)
{
    EXPECT(nbd_pread(nbd, buffer, length, offset, 0) == 0);
    for (size_t i = 0; i < length; i++) {
        if (buffer[i] != byte) {
            return 0;
        }
    }
    return 1;
}

static int add_extents(void *opaque, const char *context, uint64_t offset, uint32_t *entries, size_t count, int *error)
{
    char *text = opaque;

    (void)context;
    (void)offset;
    (void)error;
    for (size_t i = 0; i < count; i += 2) {
        sprintf(text + strlen(text), "%u:%u ", entries[i] / 1024, entries[i + 1]);
    }
    return 0;
}

/* KiB and state of each extent: 0 data, 1 hole, 2 zero, 3 hole and zero. */
static int extents_are(struct nbd_handle *nbd, uint64_t length, uint64_t offset, uint32_t flags, const char *wanted)
{
    char text[1024] = "";
    nbd_extent_callback callback = {.callback = add_extents, .user_data = text};

    EXPECT(nbd_block_status(nbd, length, offset, callback, flags) == 0);
    if (strcmp(text, wanted) != 0) {
        fprintf(stderr, "extents: %s\n", text);
    }
    return strcmp(text, wanted) == 0;
}

static void zeroes(struct nbd_handle *nbd)
{
    memset(buffer, 'a', MIB);
    EXPECT(nbd_pwrite(nbd, buffer, MIB, MIB, 0) == 0);
    EXPECT(extents_are(nbd, 4 * MIB, 0, 0, "1024:3 1024:0 2048:3 "));
    EXPECT(extents_are(nbd, 4 * MIB, MIB, LIBNBD_CMD_FLAG_REQ_ONE, "1024:0 "));
    /* Clusters are quick, parts of them are not; the slow way works all the same. */
    EXPECT(nbd_zero(nbd, 65536, MIB, LIBNBD_CMD_FLAG_FAST_ZERO | LIBNBD_CMD_FLAG_FUA) == 0);
    EXPECT(nbd_zero(nbd, 1000, MIB + 70000, LIBNBD_CMD_FLAG_FAST_ZERO) < 0 && nbd_get_errno() == ENOTSUP);
    EXPECT(reads_as(nbd, MIB + 70000, 1000, 'a'));
    EXPECT(nbd_zero(nbd, 1000, MIB + 70000, LIBNBD_CMD_FLAG_NO_HOLE) == 0 && reads_as(nbd, MIB + 70000, 1000, 0));
    EXPECT(reads_as(nbd, MIB, 65536, 0) && reads_as(nbd, MIB + 65536, 70000 - 65536, 'a'));
    EXPECT(nbd_trim(nbd, 131072, MIB + 131072, LIBNBD_CMD_FLAG_FUA) == 0 && reads_as(nbd, MIB + 131072, 131072, 0));
    EXPECT(extents_are(nbd, MIB, MIB, 0, "64:3 64:0 128:3 768:0 "));
    EXPECT(nbd_cache(nbd, MIB, MIB, 0) == 0);
}

static void ends(struct nbd_handle *nbd)
{
    EXPECT(nbd_get_size(nbd) == 8 * MIB);
    memset(buffer, 'e', MIB);
    EXPECT(nbd_pwrite(nbd, buffer, 777, 8 * MIB - 777, LIBNBD_CMD_FLAG_FUA) == 0);
    EXPECT(reads_as(nbd, 8 * MIB - 777, 777, 'e') && reads_as(nbd, 8 * MIB - 65536, 65536 - 777, 0));
    EXPECT(nbd_pread(nbd, buffer, 2, 8 * MIB - 1, 0) < 0 && nbd_pwrite(nbd, buffer, 2, 8 * MIB - 1, 0) < 0);
    EXPECT(nbd_zero(nbd, 2, 8 * MIB - 1, 0) < 0 && nbd_trim(nbd, 2, 8 * MIB - 1, 0) < 0);
    EXPECT(nbd_flush(nbd, 0) == 0);
}

static void calls(void)
{
    struct nbd_handle *nbd = connect_to(), *second = connect_to();

    EXPECT(nbd_can_multi_conn(nbd) == 1 && nbd_can_fua(nbd) == 1 && nbd_can_fast_zero(nbd) == 1);
    EXPECT(nbd_can_cache(nbd) == 1 && nbd_can_trim(nbd) == 1 && nbd_can_zero(nbd) == 1 && nbd_is_read_only(nbd) == 0);
    EXPECT(nbd_get_block_size(nbd, LIBNBD_SIZE_MINIMUM) == 1);
    EXPECT(nbd_get_block_size(nbd, LIBNBD_SIZE_PREFERRED) == 4096);
    EXPECT(nbd_get_block_size(nbd, LIBNBD_SIZE_MAXIMUM) == 64 * MIB);
    zeroes(nbd);
    ends(nbd);
    /* One disk for all connections. */
    EXPECT(reads_as(second, MIB + 65536, 70000 - 65536, 'a'));
    nbd_close(nbd);
    nbd_close(second);
}

struct writer {
    unsigned seed;
    uint32_t flags;
};

/* Block number `block` holds bytes of this value, whoever writes it. */
static char value_of(uint64_t block)
{
    return (char)(1 + block % 255);
}

static void *write_blocks(void *opaque)
{
    struct writer *writer = opaque;
    struct nbd_handle *nbd = connect_to();
    uint64_t count = (uint64_t)nbd_get_size(nbd) / BLOCK;
    char data[BLOCK];

    for (int i = 0; i < 100; i++) {
        uint64_t block = (uint64_t)rand_r(&writer->seed) % count;

        memset(data, value_of(block), BLOCK);
        EXPECT(nbd_pwrite(nbd, data, BLOCK, block * BLOCK, writer->flags) == 0);
    }
    nbd_close(nbd);
    return NULL;
}

static void fill(unsigned seed, uint32_t flags)
{
    struct nbd_handle *last = connect_to();
    struct writer writers[CONNECTIONS];
    pthread_t threads[CONNECTIONS];

    for (unsigned i = 0; i < CONNECTIONS; i++) {
        writers[i] = (struct writer){seed + i, flags};
        EXPECT(pthread_create(&threads[i], NULL, write_blocks, &writers[i]) == 0);
    }
    for (unsigned i = 0; i < CONNECTIONS; i++) {
        pthread_join(threads[i], NULL);
    }
    EXPECT(flags != 0 || nbd_flush(last, 0) == 0);
    nbd_close(last);
}

static void filled(unsigned seed)
{
    struct nbd_handle *nbd = connect_to();
    uint64_t count = (uint64_t)nbd_get_size(nbd) / BLOCK;

    for (unsigned i = 0; i < CONNECTIONS; i++) {
        unsigned state = seed + i;

        for (int k = 0; k < 100; k++) {
            uint64_t block = (uint64_t)rand_r(&state) % count;

            EXPECT(reads_as(nbd, block * BLOCK, BLOCK, value_of(block)));
        }
    }
    nbd_close(nbd);
}

int main(int argc, char **argv)
{
    unsigned seed = argc > 3 ? (unsigned)atoi(argv[3]) : 1;

    EXPECT(argc >= 3);
    socket_path = argv[2];
    if (strcmp(argv[1], "calls") == 0) {
        calls();
    } else if (strcmp(argv[1], "filled") == 0) {
        filled(seed);
    } else {
        fill(seed, strcmp(argv[1], "fua") == 0 ? LIBNBD_CMD_FLAG_FUA : 0);
    }
    return 0;
}
