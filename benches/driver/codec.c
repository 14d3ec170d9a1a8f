/* The limit of compressed images: one read of the stream, one run of the codec (libdeflate or libzstd, where the
   machine has them), the last cluster kept. The whole mapping is in memory.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "bench.h"

#include <dlfcn.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct codec {
    int fd;
    uint64_t cluster_bytes, clusters;
    uint64_t *entries; /* L2 entries of the whole disk */
    unsigned offset_bits;
    /* libdeflate or libzstd */
    void *(*deflate_new)(void);
    int (*deflate)(void *d, const void *in, size_t in_bytes, void *out, size_t out_bytes, size_t *actual);
    void *(*zstd_new)(void);
    size_t (*zstd)(void *d, void *out, size_t out_bytes, const void *in, size_t in_bytes);
    size_t (*zstd_bound)(const void *in, size_t in_bytes);
};

/* A thread's scratch; there is one image at a time. */
static __thread struct {
    void *decoder;
    char *in, *out;
    const struct codec *owner;
    uint64_t cluster;
} own;

static void load(void *library, const char *name, void *function)
{
    void *found = dlsym(library, name);

    if (found == NULL)
        fail("%s: missing", name);
    memcpy(function, &found, sizeof found);
}

static void load_library(struct codec *codec, bool zstd)
{
    void *library = dlopen(zstd ? "libzstd.so.1" : "libdeflate.so.0", RTLD_NOW);

    if (library == NULL)
        fail("%s", dlerror());
    if (zstd) {
        load(library, "ZSTD_createDCtx", &codec->zstd_new);
        load(library, "ZSTD_decompressDCtx", &codec->zstd);
        load(library, "ZSTD_findFrameCompressedSize", &codec->zstd_bound);
    } else {
        load(library, "libdeflate_alloc_decompressor", &codec->deflate_new);
        load(library, "libdeflate_deflate_decompress_ex", &codec->deflate);
    }
}

static void read_all(int fd, void *buffer, size_t count, uint64_t offset)
{
    if (pread(fd, buffer, count, (off_t)offset) != (ssize_t)count)
        fail("codec: the image is not what it should be");
}

static uint64_t header_field(const unsigned char *header, unsigned offset, unsigned bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes; i++)
        value = value << 8 | header[offset + i];
    return value;
}

static void codec_open(struct disk *disk, const char *path, const char *const *options)
{
    struct codec *codec = calloc(1, sizeof *codec);
    unsigned char header[112];
    unsigned cluster_bits;
    uint64_t l1_size, l1_offset, per_table;

    (void)options;
    if (codec == NULL || (codec->fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
        fail("%s: %s", path, strerror(errno));
    read_all(codec->fd, header, sizeof header, 0);
    cluster_bits = (unsigned)header_field(header, 20, 4);
    l1_size = header_field(header, 36, 4);
    l1_offset = header_field(header, 40, 8);
    codec->cluster_bytes = 1ull << cluster_bits;
    codec->offset_bits = 62 - (cluster_bits - 8);
    per_table = codec->cluster_bytes / 8;
    codec->clusters = l1_size * per_table;
    codec->entries = calloc(codec->clusters, 8);
    if (codec->entries == NULL)
        fail("no memory");
    for (uint64_t i = 0; i < l1_size; i++) {
        uint64_t table;

        read_all(codec->fd, &table, 8, l1_offset + i * 8);
        table = be64toh(table) & 0x00fffffffffffe00u;
        if (table != 0)
            read_all(codec->fd, &codec->entries[i * per_table], codec->cluster_bytes, table);
    }
    load_library(codec, header[104] == 1);
    disk->handle = codec;
}

static void scratch(const struct codec *codec)
{
    if (own.owner == codec)
        return;
    own.in = realloc(own.in, codec->cluster_bytes + 512);
    own.out = realloc(own.out, codec->cluster_bytes);
    own.decoder = codec->zstd != NULL ? codec->zstd_new() : codec->deflate_new();
    own.owner = codec;
    own.cluster = UINT64_MAX;
    if (own.in == NULL || own.out == NULL || own.decoder == NULL)
        fail("no memory");
}

static void inflate_cluster(const struct codec *codec, uint64_t cluster)
{
    uint64_t entry = be64toh(codec->entries[cluster]), host = entry & ((1ull << codec->offset_bits) - 1);
    uint64_t sectors = (entry >> codec->offset_bits & ((1ull << (62 - codec->offset_bits)) - 1)) + 1;
    size_t bytes = sectors * 512 - (host & 511), actual;
    ssize_t got;

    if (entry >> 62 != 1)
        fail("codec: cluster %llu is not compressed", (unsigned long long)cluster);
    got = pread(codec->fd, own.in, bytes, (off_t)host);
    if (got <= 0)
        fail("codec: %s", strerror(errno));
    if (codec->zstd != NULL) {
        size_t frame = codec->zstd_bound(own.in, (size_t)got);

        if (codec->zstd(own.decoder, own.out, codec->cluster_bytes, own.in, frame) != codec->cluster_bytes)
            fail("codec: a damaged frame");
    } else if (codec->deflate(own.decoder, own.in, (size_t)got, own.out, codec->cluster_bytes, &actual) != 0) {
        fail("codec: a damaged stream");
    }
    own.cluster = cluster;
}

static void codec_read(struct disk *disk, void *buffer, size_t count, uint64_t offset)
{
    const struct codec *codec = disk->handle;
    char *to = buffer;

    scratch(codec);
    while (count > 0) {
        uint64_t within = offset % codec->cluster_bytes, bytes = codec->cluster_bytes - within;

        if (bytes > count)
            bytes = count;
        if (own.cluster != offset / codec->cluster_bytes)
            inflate_cluster(codec, offset / codec->cluster_bytes);
        memcpy(to, own.out + within, bytes);
        to += bytes;
        offset += bytes;
        count -= bytes;
    }
}

static void codec_write(struct disk *disk, const void *buffer, size_t count, uint64_t offset)
{
    (void)disk, (void)buffer, (void)count, (void)offset;
    fail("codec: read-only");
}

static void codec_flush(struct disk *disk)
{
    (void)disk;
}

static void codec_close(struct disk *disk)
{
    struct codec *codec = disk->handle;

    own.owner = NULL;
    close(codec->fd);
    free(codec->entries);
    free(codec);
}

const struct engine codec_engine = {"codec", codec_open, codec_read, codec_write, codec_flush, codec_close};
