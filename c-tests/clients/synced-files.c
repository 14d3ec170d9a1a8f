/*
 * What a program on a file system may rely on: a file that was synced, renamed and whose directory was synced is there.
 *
 *   synced-files write DIR LOG     replaces files in DIR until it fails, and notes each in LOG once it is safe
 *   synced-files verify DIR LOG    each file has what LOG says, or what was written next
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SLOTS 24
#define LONGEST (96 * 1024)

static unsigned char wanted[LONGEST], found[LONGEST + 1];

/* What generation `number` of a file is: its length, and the bytes in `wanted`. */
static size_t make_contents(unsigned number)
{
    uint64_t state = number * 0x9e3779b97f4a7c15ull + 1;
    size_t length = 1 + number * 7919u % LONGEST;

    for (size_t i = 0; i < length; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        wanted[i] = (unsigned char)state;
    }
    return length;
}

static int store(const char *name, size_t length)
{
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    int done = fd >= 0 && write(fd, wanted, length) == (ssize_t)length && fsync(fd) == 0;

    if (fd >= 0 && close(fd) < 0) {
        done = 0;
    }
    return done;
}

static int write_files(int directory, const char *log)
{
    int notes = open(log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    unsigned number = 0;
    char name[32], line[32];

    /* It goes on where the last one has ended. */
    FILE *old = fopen(log, "r");
    while (old != NULL && fscanf(old, "%u", &number) == 1) {
    }
    if (old != NULL) {
        fclose(old);
    }
    for (;;) {
        number++;
        snprintf(name, sizeof(name), "file-%u", number % SLOTS);
        if (!store("new", make_contents(number)) || rename("new", name) < 0 || fsync(directory) < 0) {
            fprintf(stderr, "stopped at %u: %s\n", number, strerror(errno));
            return 0;
        }
        snprintf(line, sizeof(line), "%u\n", number);
        if (write(notes, line, strlen(line)) != (ssize_t)strlen(line)) {
            return 1;
        }
    }
}

/* Whether the file of a slot is generation `number`. */
static int is_generation(unsigned slot, unsigned number)
{
    size_t length = make_contents(number);
    char name[32];
    ssize_t got = -1;
    int fd;

    snprintf(name, sizeof(name), "file-%u", slot);
    fd = open(name, O_RDONLY);
    if (fd >= 0) {
        got = read(fd, found, sizeof(found));
        close(fd);
    }
    return got == (ssize_t)length && memcmp(found, wanted, length) == 0;
}

static int verify_files(const char *log)
{
    unsigned last[SLOTS] = {0}, number = 0, bad = 0;
    FILE *notes = fopen(log, "r");

    while (notes != NULL && fscanf(notes, "%u", &number) == 1) {
        last[number % SLOTS] = number;
    }
    if (notes == NULL || number == 0) {
        fprintf(stderr, "nothing was written\n");
        return 1;
    }
    fclose(notes);
    for (unsigned slot = 0; slot < SLOTS; slot++) {
        int next = number + 1; /* it was renamed, and not noted yet */

        if (last[slot] != 0 && !is_generation(slot, last[slot]) &&
            !((unsigned)next % SLOTS == slot && is_generation(slot, (unsigned)next))) {
            fprintf(stderr, "file-%u is not what was synced as %u\n", slot, last[slot]);
            bad++;
        }
    }
    printf("%u synced\n", number);
    return bad != 0;
}

int main(int argc, char **argv)
{
    int directory;

    if (argc != 4 || (directory = open(argv[2], O_RDONLY | O_DIRECTORY)) < 0 || fchdir(directory) < 0) {
        fprintf(stderr, "usage: synced-files write|verify DIR LOG\n");
        return 1;
    }
    return strcmp(argv[1], "write") == 0 ? write_files(directory, argv[3]) : verify_files(argv[3]);
}
