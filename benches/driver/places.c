/* The floor of reads and overwrites: one system call to the image file that has the data, at the place where it is,
   which an array tells. What an image costs beyond that is the library's; what this costs beyond a raw file is the
   host's, for other files with other pages.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <qcow2.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_LAYERS = 64 };

struct place {
    uint64_t host;
    int fd;
};

struct places {
    int fds[MAX_LAYERS];
    unsigned layers, cluster_bits;
    uint64_t clusters;
    struct place *of;
};

/* Opens the file of each layer; returns the cluster size of the first as log2. */
static unsigned open_layers(struct places *places, const char *path, int mode)
{
    char name[4096];
    unsigned bits = 0;

    for (snprintf(name, sizeof name, "%s", path); name[0] != '\0'; places->layers++) {
        qcow2_info info = {.struct_size = sizeof info};
        qcow2_image *image;

        if (places->layers == MAX_LAYERS)
            fail("%s: too many layers", path);
        if (qcow2_open(name, QCOW2_OPEN_METADATA_ONLY | QCOW2_OPEN_READ_ONLY, NULL, &image) < 0 ||
            qcow2_get_info(image, &info) < 0)
            fail("%s: %s", name, qcow2_last_error());
        if (bits == 0)
            bits = info.cluster_bits;
        places->fds[places->layers] = open(name, mode | O_CLOEXEC);
        if (places->fds[places->layers] < 0)
            fail("%s: %s", name, strerror(errno));
        snprintf(name, sizeof name, "%s", info.backing_file != NULL ? info.backing_file : "");
        qcow2_close(image);
    }
    return bits;
}

static void places_open(struct disk *disk, const char *path, const char *const *options)
{
    struct places *places = calloc(1, sizeof *places);
    qcow2_extent extent = {.struct_size = sizeof extent};
    qcow2_image *image;
    uint64_t length, bytes;

    (void)options;
    if (places == NULL)
        fail("no memory");
    places->cluster_bits = open_layers(places, path, (disk->flags & OPEN_WRITABLE ? O_RDWR : O_RDONLY) |
                                                         (disk->flags & OPEN_DIRECT ? O_DIRECT : 0));
    bytes = 1ull << places->cluster_bits;
    if (qcow2_open(path, QCOW2_OPEN_ALLOW_RECORDED | QCOW2_OPEN_READ_ONLY, NULL, &image) < 0)
        fail("%s: %s", path, qcow2_last_error());
    length = (uint64_t)qcow2_length(image);
    places->clusters = length / bytes;
    places->of = calloc(places->clusters, sizeof *places->of);
    if (places->of == NULL)
        fail("no memory");
    for (uint64_t at = 0; at < places->clusters * bytes; at += extent.length) {
        if (qcow2_block_status(image, at, length - at, 0, &extent) < 0)
            fail("%s: %s", path, qcow2_last_error());
        if (!(extent.flags & QCOW2_EXTENT_HOST_OFFSET) || extent.length % bytes != 0)
            fail("%s: byte %llu is in no cluster of data", path, (unsigned long long)at);
        for (uint64_t done = 0; done < extent.length; done += bytes)
            places->of[(at + done) / bytes] =
                (struct place){extent.host_offset + done, places->fds[extent.depth]};
    }
    qcow2_close(image);
    disk->handle = places;
}

static struct place place_of(const struct disk *disk, size_t count, uint64_t offset)
{
    const struct places *places = disk->handle;
    uint64_t inside = offset & ((1ull << places->cluster_bits) - 1);
    struct place place = places->of[offset >> places->cluster_bits];

    if (inside + count > 1ull << places->cluster_bits)
        fail("a request over the end of a cluster");
    return (struct place){place.host + inside, place.fd};
}

static void places_read(struct disk *disk, void *buffer, size_t count, uint64_t offset)
{
    struct place place = place_of(disk, count, offset);

    if (pread(place.fd, buffer, count, (off_t)place.host) != (ssize_t)count)
        fail("pread: %s", strerror(errno));
}

static void places_write(struct disk *disk, const void *buffer, size_t count, uint64_t offset)
{
    struct place place = place_of(disk, count, offset);

    if (pwrite(place.fd, buffer, count, (off_t)place.host) != (ssize_t)count)
        fail("pwrite: %s", strerror(errno));
}

static void places_flush(struct disk *disk)
{
    const struct places *places = disk->handle;

    if (fdatasync(places->fds[0]) < 0)
        fail("fdatasync: %s", strerror(errno));
}

static void places_close(struct disk *disk)
{
    struct places *places = disk->handle;

    for (unsigned layer = 0; layer < places->layers; layer++)
        close(places->fds[layer]);
    free(places->of);
    free(places);
}

const struct engine places_engine = {
    "floor", places_open, places_read, places_write, places_flush, places_close,
};
