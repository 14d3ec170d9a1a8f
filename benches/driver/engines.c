/* Who serves a disk: a raw file, the system calls that the format needs at least, the library, two crates.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "bench.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <qcow2.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- A raw file: the limit ---- */

static void raw_open(struct disk *disk, const char *path, const char *const *options)
{
    int mode = disk->flags & OPEN_WRITABLE ? O_RDWR : O_RDONLY;

    (void)options;
    disk->fd = open(path, mode | (disk->flags & OPEN_DIRECT ? O_DIRECT : 0) | O_CLOEXEC);
    if (disk->fd < 0)
        fail("%s: %s", path, strerror(errno));
}

static void raw_read(struct disk *disk, void *buffer, size_t count, uint64_t offset)
{
    if (pread(disk->fd, buffer, count, (off_t)offset) != (ssize_t)count)
        fail("pread: %s", strerror(errno));
}

static void raw_write(struct disk *disk, const void *buffer, size_t count, uint64_t offset)
{
    if (pwrite(disk->fd, buffer, count, (off_t)offset) != (ssize_t)count)
        fail("pwrite: %s", strerror(errno));
}

static void raw_flush(struct disk *disk)
{
    if (fdatasync(disk->fd) < 0)
        fail("fdatasync: %s", strerror(errno));
}

static void raw_close(struct disk *disk)
{
    close(disk->fd);
}

/* ---- Floors: an allocating write as the format needs it at least. Clusters of 64 KiB are written upwards. ---- */

enum { CLUSTER_BYTES = 65536, FLOOR_DATA = 1 << 22, FLOOR_L2 = 1 << 20, FLOOR_COUNTS = 1 << 21 };

static void sector_of(struct disk *disk, uint64_t table, uint64_t index, unsigned entry_bytes)
{
    static const char sector[512] = {1};

    raw_write(disk, sector, sizeof sector, table + index * entry_bytes / sizeof sector * sizeof sector);
}

/* Data and the sector of its L2 table. */
static void floor_lazy_write(struct disk *disk, const void *buffer, size_t count, uint64_t offset)
{
    raw_write(disk, buffer, count, FLOOR_DATA + offset);
    sector_of(disk, FLOOR_L2, offset / CLUSTER_BYTES, 8);
}

/* Data and the sector of its refcounts, which must be durable before the L2 table says so. */
static void floor_eager_write(struct disk *disk, const void *buffer, size_t count, uint64_t offset)
{
    raw_write(disk, buffer, count, FLOOR_DATA + offset);
    sector_of(disk, FLOOR_COUNTS, offset / CLUSTER_BYTES, 2);
    raw_flush(disk);
    sector_of(disk, FLOOR_L2, offset / CLUSTER_BYTES, 8);
}

/* ---- The library, through its C ABI ---- */

/* Images that are encrypted were made with this one; the others ask for none. */
static int64_t give_secret(void *opaque, const qcow2_secret_request *request, void *buffer, size_t buffer_bytes)
{
    static const char secret[] = "secret";

    (void)opaque;
    (void)request;
    if (buffer_bytes < sizeof secret)
        return -ENOKEY;
    memcpy(buffer, secret, sizeof secret - 1);
    return sizeof secret - 1;
}

static void qcow2_engine_open(struct disk *disk, const char *path, const char *const *options)
{
    const char *all[MAX_OPTIONS + 2];
    uint64_t flags = QCOW2_OPEN_ALLOW_RECORDED | (disk->flags & OPEN_WRITABLE ? 0 : QCOW2_OPEN_READ_ONLY);
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
    qcow2_image *image;
    int used = 0, answer;

    if (disk->flags & OPEN_DIRECT)
        all[used++] = "cache=none";
    while (options != NULL && *options != NULL)
        all[used++] = *options++;
    all[used] = NULL;
    params.path = path;
    params.flags = flags;
    params.options = all;
    params.secret = give_secret;
    answer = qcow2_open(path, flags, all, &image);
    if (answer == -ENOKEY)
        answer = qcow2_open_with(&params, &image);
    if (answer < 0)
        fail("%s: %s", path, qcow2_last_error());
    disk->handle = image;
}

static void qcow2_engine_read(struct disk *disk, void *buffer, size_t count, uint64_t offset)
{
    if (qcow2_pread(disk->handle, buffer, count, offset) != (ssize_t)count)
        fail("read: %s", qcow2_last_error());
}

static void qcow2_engine_write(struct disk *disk, const void *buffer, size_t count, uint64_t offset)
{
    if (qcow2_pwrite(disk->handle, buffer, count, offset) != (ssize_t)count)
        fail("write: %s", qcow2_last_error());
}

static void qcow2_engine_flush(struct disk *disk)
{
    if (qcow2_flush(disk->handle) < 0)
        fail("flush: %s", qcow2_last_error());
}

static void qcow2_engine_close(struct disk *disk)
{
    if (qcow2_close(disk->handle) < 0)
        fail("close: %s", qcow2_last_error());
}

/* ---- Crates, from the library of benches/peers ---- */

struct peer {
    void *(*open)(const char *path, int flags);
    int (*read)(void *image, void *buffer, size_t count, uint64_t offset);
    int (*write)(void *image, const void *buffer, size_t count, uint64_t offset);
    int (*flush)(void *image);
    void (*close)(void *image);
};

static void find_function(void *library, const char *crate, const char *name, void *function)
{
    char symbol[64];
    void *found;

    snprintf(symbol, sizeof symbol, "%s_%s", crate, name);
    found = dlsym(library, symbol);
    if (found == NULL)
        fail("%s: missing", symbol);
    memcpy(function, &found, sizeof found);
}

static void peer_open(struct disk *disk, const char *path, const char *const *options)
{
    const char *file = getenv("BENCH_PEERS");
    struct peer *peer = calloc(1, sizeof *peer);
    void *library = dlopen(file != NULL ? file : "libbench_peers.so", RTLD_NOW | RTLD_LOCAL);

    (void)options;
    if (library == NULL || peer == NULL)
        fail("%s", dlerror());
    find_function(library, disk->engine->name, "open", &peer->open);
    find_function(library, disk->engine->name, "read", &peer->read);
    find_function(library, disk->engine->name, "write", &peer->write);
    find_function(library, disk->engine->name, "flush", &peer->flush);
    find_function(library, disk->engine->name, "close", &peer->close);
    disk->peer = peer;
    disk->handle = peer->open(path, (int)disk->flags);
    if (disk->handle == NULL)
        fail("%s: %s cannot open it", path, disk->engine->name);
}

static void peer_read(struct disk *disk, void *buffer, size_t count, uint64_t offset)
{
    if (disk->peer->read(disk->handle, buffer, count, offset) < 0)
        fail("%s: read", disk->engine->name);
}

static void peer_write(struct disk *disk, const void *buffer, size_t count, uint64_t offset)
{
    if (disk->peer->write(disk->handle, buffer, count, offset) < 0)
        fail("%s: write", disk->engine->name);
}

static void peer_flush(struct disk *disk)
{
    if (disk->peer->flush(disk->handle) < 0)
        fail("%s: flush", disk->engine->name);
}

static void peer_close(struct disk *disk)
{
    disk->peer->close(disk->handle);
    free((void *)(uintptr_t)disk->peer);
}

const struct engine *find_engine(const char *name)
{
    static const struct engine engines[] = {
        {"raw", raw_open, raw_read, raw_write, raw_flush, raw_close},
        {"floor-lazy", raw_open, raw_read, floor_lazy_write, raw_flush, raw_close},
        {"floor-eager", raw_open, raw_read, floor_eager_write, raw_flush, raw_close},
        {"qcow2", qcow2_engine_open, qcow2_engine_read, qcow2_engine_write, qcow2_engine_flush,
         qcow2_engine_close},
        {"imago", peer_open, peer_read, peer_write, peer_flush, peer_close},
        {"qcow2rs", peer_open, peer_read, peer_write, peer_flush, peer_close},
    };

    for (size_t i = 0; i < sizeof engines / sizeof engines[0]; i++)
        if (strcmp(engines[i].name, name) == 0)
            return &engines[i];
    if (strcmp(name, codec_engine.name) == 0)
        return &codec_engine;
    if (strcmp(name, places_engine.name) == 0)
        return &places_engine;
    fail("%s: no such engine", name);
}
