/* Incremental backups by a dirty bitmap: a full copy of a disk, then copies of what has changed since the one before.

       qcow2-backup DISK full DIRECTORY
       qcow2-backup DISK increment DIRECTORY

   The backups are DIRECTORY/0.qcow2, 1.qcow2, ...: each has the one before as its backing file, so that each shows the
   whole disk as it was. Each gets its name when it is complete. A crash at any time costs an increment that is larger
   than it need be, never a change.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qcow2.h>

#define BITMAP "backup"
#define FROZEN "backup-under-way"
#define UNFINISHED "unfinished.qcow2"
#define CHUNK_BYTES (1u << 20)

static char buffer[CHUNK_BYTES];

static int failed(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, qcow2_last_error());
    return -1;
}

/* The number of backups in a directory. */
static int count_backups(const char *directory)
{
    char path[4096];

    for (int number = 0;; number++) {
        FILE *file;

        snprintf(path, sizeof(path), "%s/%d.qcow2", directory, number);
        file = fopen(path, "rb");
        if (!file) {
            return number;
        }
        fclose(file);
    }
}

/* Copies a range; what is zero is zeroed. */
static int copy_range(qcow2_image *disk, qcow2_image *backup, uint64_t offset, uint64_t length)
{
    while (length > 0) {
        size_t count = length < CHUNK_BYTES ? (size_t)length : CHUNK_BYTES;
        qcow2_extent extent = {.struct_size = sizeof(extent)};

        if (qcow2_block_status(disk, offset, count, 0, &extent) < 0) {
            return failed("status");
        }
        count = extent.length < count ? (size_t)extent.length : count;
        if (extent.flags & QCOW2_EXTENT_ZERO) {
            if (qcow2_write_zeroes(backup, offset, count, 0) < 0) {
                return failed("zero");
            }
        } else if (qcow2_pread(disk, buffer, count, offset) < 0 || qcow2_pwrite(backup, buffer, count, offset) < 0) {
            return failed("copy");
        }
        offset += count;
        length -= count;
    }
    return 0;
}

/* Copies what the bitmap says has changed. */
static int copy_dirty(qcow2_image *disk, qcow2_image *backup, uint64_t *bytes)
{
    uint64_t offset = 0, length;
    int found;

    while ((found = qcow2_bitmap_next_dirty(disk, FROZEN, offset, &offset, &length)) == 1) {
        if (copy_range(disk, backup, offset, length) < 0) {
            return -1;
        }
        offset += length;
        *bytes += length;
    }
    return found < 0 ? failed("bitmap") : 0;
}

/* Whether there is a bitmap of this name: 0, 1, or 2 for one that nobody may believe. */
static int has_bitmap(qcow2_image *disk, const char *name)
{
    qcow2_bitmap_info bitmap = {.struct_size = sizeof(bitmap)};

    for (size_t index = 0; qcow2_bitmap_list(disk, index, &bitmap) == 0; index++) {
        if (strcmp(bitmap.name, name) == 0) {
            return bitmap.flags & QCOW2_BITMAP_IN_USE ? 2 : 1;
        }
    }
    return 0;
}

/* The frozen bitmap, which says what the next backup has to copy. */
static int freeze(qcow2_image *disk, int full)
{
    /* Left by a backup that was not completed: it is put back. */
    if (has_bitmap(disk, BITMAP) == 2 && qcow2_bitmap_recover(disk, BITMAP) < 0) {
        return failed("recover");
    }
    if (has_bitmap(disk, FROZEN) && has_bitmap(disk, BITMAP) &&
        (qcow2_bitmap_merge(disk, BITMAP, NULL, FROZEN) < 0 || qcow2_bitmap_remove(disk, FROZEN) < 0)) {
        return failed("merge");
    }
    if (full && has_bitmap(disk, BITMAP) && qcow2_bitmap_remove(disk, BITMAP) < 0) {
        return failed("remove");
    }
    if (full && qcow2_bitmap_add(disk, BITMAP, 0, 0) < 0) {
        return failed("add");
    }
    return full || qcow2_bitmap_rotate(disk, BITMAP, FROZEN) == 0 ? 0 : failed("rotate");
}

static qcow2_image *create_backup(const char *directory, int number, uint64_t size)
{
    char path[4096], backing[64];
    const char *options[] = {backing, "backing_fmt=qcow2", NULL};
    qcow2_image *backup = NULL;

    snprintf(path, sizeof(path), "%s/" UNFINISHED, directory);
    snprintf(backing, sizeof(backing), "backing_file=%d.qcow2", number - 1);
    remove(path);
    if (qcow2_create(path, size, number > 0 ? options : NULL) < 0 ||
        qcow2_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL, &backup) < 0) {
        return NULL;
    }
    return backup;
}

/* Gives a backup that is complete its name. */
static int name_backup(const char *directory, int number)
{
    char from[4096], to[4096];

    snprintf(from, sizeof(from), "%s/" UNFINISHED, directory);
    snprintf(to, sizeof(to), "%s/%d.qcow2", directory, number);
    if (rename(from, to) < 0) {
        perror(to);
        return -1;
    }
    return 0;
}

static int back_up(qcow2_image *disk, const char *directory, int full)
{
    int64_t size = qcow2_length(disk);
    int number = count_backups(directory), result;
    uint64_t bytes = 0;
    qcow2_image *backup;

    if (full != (number == 0)) {
        fprintf(stderr, "%s: %s\n", directory, full ? "there are backups already" : "there is no full backup");
        return -1;
    }
    if (size < 0 || freeze(disk, full) < 0) {
        return -1;
    }
    backup = create_backup(directory, number, (uint64_t)size);
    if (!backup) {
        return failed("create");
    }
    bytes = full ? (uint64_t)size : 0;
    result = full ? copy_range(disk, backup, 0, (uint64_t)size) : copy_dirty(disk, backup, &bytes);
    if (qcow2_close(backup) < 0 && result == 0) {
        result = failed("close");
    }
    if (result == 0) {
        result = name_backup(directory, number);
    }
    /* Now, and not before, nobody needs to know any more what it had to copy. */
    if (result == 0 && !full && qcow2_bitmap_remove(disk, FROZEN) < 0) {
        result = failed("remove");
    }
    if (result == 0) {
        printf("%s/%d.qcow2: %" PRIu64 " bytes\n", directory, number, bytes);
    }
    return result;
}

int main(int argc, char **argv)
{
    qcow2_image *disk = NULL;
    int result;

    if (argc != 4 || (strcmp(argv[2], "full") != 0 && strcmp(argv[2], "increment") != 0)) {
        fprintf(stderr, "usage: %s DISK full|increment DIRECTORY\n", argv[0]);
        return 2;
    }
    if (qcow2_open(argv[1], QCOW2_OPEN_ALLOW_RECORDED, NULL, &disk) < 0) {
        return failed(argv[1]) < 0;
    }
    result = back_up(disk, argv[3], strcmp(argv[2], "full") == 0);
    if (qcow2_close(disk) < 0) {
        result = failed("close");
    }
    return result < 0;
}
