/*
 * What a program does with the file of a disk, call by call.
 *
 *   view-calls calls FILE       a disk of 8 MiB that is all holes, in clusters of 64 KiB
 *   view-calls map FILE         its data and holes, by lseek
 *   view-calls fill FILE SEED   random 4 KiB writes, and nothing synced
 *   view-calls filled FILE SEED what they have left
 *   view-calls keeps FILE       status 0: the file system keeps attributes
 *   view-calls mapped FILE      writes through a mapping; it stays open until standard input ends
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define MIB (1 << 20)
#define BLOCK 4096

#define EXPECT(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, strerror(errno));                      \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static char buffer[MIB], other[MIB];

static off_t size_of(int fd)
{
    struct stat now;

    EXPECT(fstat(fd, &now) == 0);
    return now.st_size;
}

static int reads_as(int fd, off_t offset, size_t length, char byte)
{
    memset(other, byte, length);
    return pread(fd, buffer, length, offset) == (ssize_t)length && memcmp(buffer, other, length) == 0;
}

static void holes(int fd)
{
    memset(buffer, 'a', MIB);
    EXPECT(pwrite(fd, buffer, MIB, MIB) == MIB);
    EXPECT(lseek(fd, 0, SEEK_DATA) == MIB && lseek(fd, MIB + 5, SEEK_DATA) == MIB + 5);
    EXPECT(lseek(fd, MIB, SEEK_HOLE) == 2 * MIB && lseek(fd, 3 * MIB, SEEK_HOLE) == 3 * MIB);
    EXPECT(lseek(fd, 2 * MIB, SEEK_DATA) == -1 && errno == ENXIO);
    EXPECT(lseek(fd, 8 * MIB, SEEK_HOLE) == -1 && errno == ENXIO);
    /* Not whole clusters, and in the page cache just before. */
    EXPECT(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, MIB + 1000, 200000) == 0);
    EXPECT(reads_as(fd, MIB + 1000, 200000, 0) && reads_as(fd, MIB, 1000, 'a') &&
           reads_as(fd, MIB + 201000, 1000, 'a'));
    EXPECT(lseek(fd, MIB + 65536, SEEK_HOLE) == MIB + 65536);
    EXPECT(fallocate(fd, FALLOC_FL_ZERO_RANGE, MIB + 512 * 1024, 512 * 1024) == 0);
    EXPECT(reads_as(fd, MIB + 512 * 1024, 512 * 1024, 0) && size_of(fd) == 8 * MIB);
    EXPECT(fallocate(fd, 0, 0, MIB) == -1 && errno == EOPNOTSUPP);
    EXPECT(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, MIB) == -1 && errno == EOPNOTSUPP);
}

static void sizes(int fd)
{
    EXPECT(ftruncate(fd, 10 * MIB) == 0 && size_of(fd) == 10 * MIB && reads_as(fd, 9 * MIB, MIB, 0));
    EXPECT(pread(fd, buffer, MIB, 10 * MIB - 100) == 100 && pread(fd, buffer, MIB, 10 * MIB) == 0);
    /* The disk has whole sectors, the file has the length that it was given. */
    EXPECT(pwrite(fd, "end", 3, 10 * MIB + 100) == 3 && fsync(fd) == 0 && size_of(fd) == 10 * MIB + 103);
    EXPECT(ftruncate(fd, 9 * MIB + 1) == 0 && size_of(fd) == 9 * MIB + 1);
    EXPECT(fallocate(fd, 0, 9 * MIB + 512, MIB) == 0 && size_of(fd) == 10 * MIB + 512);
    EXPECT(fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 9 * MIB, 8 * MIB) == 0);
    EXPECT(size_of(fd) == 10 * MIB + 512);
    /* What is cut off does not come back, be it in the same sector, and read just before. */
    for (off_t cut = 8 * MIB + 1; cut < 8 * MIB + 512; cut += 170) {
        memset(buffer, 'c', 512);
        EXPECT(ftruncate(fd, 8 * MIB) == 0 && pwrite(fd, buffer, 512, 8 * MIB) == 512);
        EXPECT(reads_as(fd, 8 * MIB, 512, 'c') && ftruncate(fd, cut) == 0 && size_of(fd) == cut);
        EXPECT(pread(fd, buffer, MIB, 8 * MIB) == cut - 8 * MIB && ftruncate(fd, 8 * MIB + 512) == 0);
        EXPECT(reads_as(fd, cut, (size_t)(8 * MIB + 512 - cut), 0) &&
               reads_as(fd, 8 * MIB, (size_t)(cut - 8 * MIB), 'c'));
    }
    EXPECT(ftruncate(fd, 8 * MIB) == 0 && size_of(fd) == 8 * MIB);
}

static void copies(int fd)
{
    loff_t from = MIB, to = 5 * MIB;

    EXPECT(reads_as(fd, MIB, 1000, 'a'));
    EXPECT(copy_file_range(fd, &from, fd, &to, 1000, 0) == 1000 && reads_as(fd, 5 * MIB, 1000, 'a'));
}

static void calls(const char *path)
{
    struct timespec times[2] = {{0, UTIME_OMIT}, {1000000000, 0}};
    struct stat now;
    int fd = open(path, O_RDWR);
    char *map;

    EXPECT(fd >= 0 && size_of(fd) == 8 * MIB);
    holes(fd);
    sizes(fd);
    copies(fd);
    /* A mapping and the calls see the same. */
    map = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 6 * MIB);
    EXPECT(map != MAP_FAILED);
    memset(map + 100, 'm', 5000);
    EXPECT(reads_as(fd, 6 * MIB + 100, 5000, 'm'));
    memset(buffer, 'n', 10);
    EXPECT(pwrite(fd, buffer, 10, 6 * MIB) == 10 && memcmp(map, "nnnnnnnnnn", 10) == 0);
    EXPECT(msync(map, MIB, MS_SYNC) == 0 && munmap(map, MIB) == 0);
    EXPECT(futimens(fd, times) == 0 && fstat(fd, &now) == 0 && now.st_mtime == 1000000000);
    /* The end of the file is a hole. */
    EXPECT(pwrite(fd, "x", 1, 8 * MIB - 1) == 1 && lseek(fd, 8 * MIB - 10, SEEK_HOLE) == 8 * MIB);
    EXPECT(pwrite(fd, "x", 1, 7 * MIB) == 1 && fstat(fd, &now) == 0 && now.st_mtime != 1000000000);
    EXPECT(now.st_blocks > 0 && now.st_blocks < 8 * MIB / 512);
    EXPECT(fchmod(fd, 0777) == -1 && errno == EPERM);
    EXPECT(close(fd) == 0);
}

static void print_map(const char *path)
{
    int fd = open(path, O_RDONLY);
    off_t end = size_of(fd), data = 0;

    while ((data = lseek(fd, data, SEEK_DATA)) >= 0) {
        off_t hole = lseek(fd, data, SEEK_HOLE);

        EXPECT(hole > data && hole <= end);
        printf("%lld %lld\n", (long long)data, (long long)(hole - data));
        data = hole;
    }
    EXPECT(errno == ENXIO);
}

/* The same blocks for both. */
static void blocks(const char *path, unsigned seed, int check)
{
    int fd = open(path, O_RDWR);
    off_t count = size_of(fd) / BLOCK;

    EXPECT(fd >= 0);
    for (int i = 0; i < 500; i++) {
        off_t block = rand_r(&seed) % count;

        memset(buffer, 1 + (int)(block % 255), BLOCK);
        if (check) {
            EXPECT(reads_as(fd, block * BLOCK, BLOCK, (char)(1 + block % 255)));
        } else {
            EXPECT(pwrite(fd, buffer, BLOCK, block * BLOCK) == BLOCK);
        }
    }
}

static void mapped(const char *path)
{
    int fd = open(path, O_RDWR);
    char *map = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    EXPECT(map != MAP_FAILED);
    memset(map, 'w', MIB);
    puts("written");
    fflush(stdout);
    EXPECT(read(0, buffer, 1) == 0);
    _exit(0);
}

int main(int argc, char **argv)
{
    EXPECT(argc >= 3);
    if (strcmp(argv[1], "calls") == 0) {
        calls(argv[2]);
    } else if (strcmp(argv[1], "map") == 0) {
        print_map(argv[2]);
    } else if (strcmp(argv[1], "keeps") == 0) {
        return setxattr(argv[2], "user.libqcow2.test", "", 0, 0) != 0;
    } else if (strcmp(argv[1], "mapped") == 0) {
        mapped(argv[2]);
    } else {
        EXPECT(argc == 4);
        blocks(argv[2], (unsigned)atoi(argv[3]), strcmp(argv[1], "filled") == 0);
    }
    return 0;
}
