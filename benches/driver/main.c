/* The benchmark's driver: reads commands, one a line, and answers each with one line of JSON.
   SPDX-License-Identifier: MIT OR Apache-2.0

   create qcow2|raw PATH SIZE [KEY=VALUE...]             timed
   open NAME ENGINE PATH [rw] [direct] [KEY=VALUE...]   options of qcow2_open
   run NAME op=read|write order=random|seq|stride|perm|share bs= span= [start= stride= count= seed= threads= flush=
       final=1 depth= data=text part= parts= flusher=1 pace=]
   close NAME                                            timed
   opens ENGINE PATH N [KEY=VALUE...]                    open and close, N times
   check NAME [leaks] [errors] [text|numbers]            qcow2_check, timed; findings are taken as said, or not at all
   map NAME                                              qcow2_block_status of the whole disk, timed; extents
   checksum NAME                                         qcow2_checksum, timed
   snapshots NAME N [FROM]                               that many snapshots, timed; the names count from FROM
   bitmaps NAME N GRANULARITY                            that many dirty bitmaps, timed: b0, b1 and so on
   dirty NAME BITMAP GRANULARITY                         the dirty ranges of one, timed; bytes are those of its bits
   warm PATH                                             reads the file and locks its pages in memory
   cool PATH                                             lets them go again
   memory                                                bytes: peak since the last `memory`, and now

   bench-driver spawn PROGRAM... runs a program and tells what it took. */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <qcow2.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_DISKS = 32, MAX_FILES = 64, MAX_WORDS = 32, READ_BYTES = 1 << 20 };

static struct disk disks[MAX_DISKS];
static struct {
    char *path;
    void *pages;
    size_t length;
} locked[MAX_FILES];

void fail(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

uint64_t parse_size(const char *text)
{
    char *end;
    uint64_t value = strtoull(text, &end, 0);

    switch (*end) {
    case 'k': return value << 10;
    case 'M': return value << 20;
    case 'G': return value << 30;
    case 'T': return value << 40;
    case 0: return value;
    default: fail("%s: not a size", text);
    }
}

const char *word(char *const *words, const char *key, const char *absent)
{
    size_t length = strlen(key);

    for (; *words != NULL; words++)
        if (strncmp(*words, key, length) == 0 && (*words)[length] == '=')
            return *words + length + 1;
    return absent;
}

static uint64_t number(char *const *words, const char *key, const char *absent)
{
    return parse_size(word(words, key, absent));
}

static void done(void)
{
    puts("{}");
    fflush(stdout);
}

static struct disk *find_disk(const char *name)
{
    for (int i = 0; i < MAX_DISKS; i++)
        if (strcmp(disks[i].name, name) == 0)
            return &disks[i];
    fail("%s: no such disk", name);
}

static void command_create(char *const *words)
{
    uint64_t size = parse_size(words[2]);
    struct usage from;

    begin_counting();
    from = usage_now();
    if (strcmp(words[0], "qcow2") == 0) {
        unlink(words[1]);
        if (qcow2_create(words[1], size, (const char *const *)(words + 3)) < 0)
            fail("%s: %s", words[1], qcow2_last_error());
    } else {
        int fd = open(words[1], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

        if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
            fail("%s: %s", words[1], strerror(errno));
        close(fd);
    }
    print_usage(&from, 1, 0);
}

static const char *const *open_flags(char *const *words, unsigned *flags)
{
    for (*flags = 0; *words != NULL && strchr(*words, '=') == NULL; words++)
        *flags |= strcmp(*words, "direct") == 0 ? OPEN_DIRECT : strcmp(*words, "rw") == 0 ? OPEN_WRITABLE : 0;
    return (const char *const *)words;
}

static void command_open(char *const *words)
{
    struct disk *disk = find_disk("");
    const char *const *options = open_flags(words + 3, &disk->flags);

    snprintf(disk->name, sizeof disk->name, "%s", words[0]);
    disk->engine = find_engine(words[1]);
    disk->engine->open(disk, words[2], options);
    done();
}

static void command_run(char *const *words)
{
    static const char *const orders[] = {"random", "seq", "stride", "perm", "share"};
    const char *order = word(words + 1, "order", "random");
    struct disk *disk = find_disk(words[0]);
    struct workload w = {
        .write = strcmp(word(words, "op", "read"), "write") == 0,
        .text = strcmp(word(words, "data", ""), "text") == 0,
        .final_flush = number(words, "final", "0") != 0,
        .block = number(words, "bs", "4k"),
        .start = number(words, "start", "0"),
        .span = number(words, "span", "0"),
        .stride = number(words, "stride", "64k"),
        .count = number(words, "count", "0"),
        .seed = number(words, "seed", "1"),
        .threads = (unsigned)number(words, "threads", "1"),
        .flush_every = (unsigned)number(words, "flush", "0"),
        .depth = (unsigned)number(words, "depth", "0"),
        .pace = (unsigned)number(words, "pace", "0"),
        .flusher = number(words, "flusher", "0") != 0,
        .part = (unsigned)number(words, "part", "0"),
        .parts = (unsigned)number(words, "parts", "1"),
    };

    while (w.order <= SHARE && strcmp(orders[w.order], order) != 0)
        w.order++;
    if (w.order > SHARE || w.span < w.block || w.threads == 0)
        fail("run: a wrong order, span or number of threads");
    if (w.count == 0)
        w.count = w.span / (w.order == STRIDE || w.order == PERMUTED ? w.stride : w.block);
    run_workload(disk, &w);
}

static void command_close(char *const *words)
{
    struct disk *disk = find_disk(words[0]);
    struct usage from;

    begin_counting();
    from = usage_now();
    disk->engine->close(disk);
    memset(disk, 0, sizeof *disk);
    print_usage(&from, 1, 0);
}

static void command_opens(char *const *words)
{
    uint64_t count = parse_size(words[2]);
    struct disk disk = {.engine = find_engine(words[0])};
    const char *const *options = open_flags(words + 3, &disk.flags);
    struct usage from;

    begin_counting();
    from = usage_now();
    for (uint64_t i = 0; i < count; i++) {
        disk.engine->open(&disk, words[1], options);
        disk.engine->close(&disk);
    }
    print_usage(&from, count, 0);
}

static void take_text(void *opaque, int kind, const char *text)
{
    (void)kind;
    *(uint64_t *)opaque += text[0] != '\0';
}

static void take_numbers(void *opaque, const qcow2_finding *finding)
{
    *(uint64_t *)opaque += finding->kind != 0;
}

static void command_check(char *const *words)
{
    qcow2_check_result result = {.struct_size = sizeof result};
    bool text = false, numbers = false;
    struct disk *disk = find_disk(words[0]);
    struct usage from;
    uint64_t flags = 0, taken = 0;
    int status;

    begin_counting();
    from = usage_now();
    for (words++; *words != NULL; words++) {
        text |= strcmp(*words, "text") == 0;
        numbers |= strcmp(*words, "numbers") == 0;
        flags |= strcmp(*words, "leaks") == 0 ? QCOW2_CHECK_REPAIR_LEAKS : 0;
        flags |= strcmp(*words, "errors") == 0 ? QCOW2_CHECK_REPAIR_ERRORS : 0;
    }
    if (numbers)
        status = qcow2_check_findings(disk->handle, flags, &result, take_numbers, &taken, NULL, NULL);
    else
        status = qcow2_check(disk->handle, flags, &result, text ? take_text : NULL, &taken, NULL, NULL);
    if (status < 0)
        fail("check: %s", qcow2_last_error());
    if (result.corruptions != 0 && !text && !numbers)
        fail("check: %llu corruptions", (unsigned long long)result.corruptions);
    print_usage(&from, taken > 0 ? taken : 1, 0);
}

static void command_map(char *const *words)
{
    qcow2_extent extent = {.struct_size = sizeof extent};
    struct disk *disk = find_disk(words[0]);
    uint64_t length = (uint64_t)qcow2_length(disk->handle), extents = 0;
    struct usage from;

    begin_counting();
    from = usage_now();
    for (uint64_t at = 0; at < length; at += extent.length, extents++)
        if (qcow2_block_status(disk->handle, at, length - at, 0, &extent) < 0)
            fail("map: %s", qcow2_last_error());
    print_usage(&from, extents, length);
}

static void command_checksum(char *const *words)
{
    struct disk *disk = find_disk(words[0]);
    struct usage from;
    uint32_t crc;

    begin_counting();
    from = usage_now();
    if (qcow2_checksum(disk->handle, &crc, NULL, NULL) < 0)
        fail("checksum: %s", qcow2_last_error());
    print_usage(&from, 1, (uint64_t)qcow2_length(disk->handle));
}

static void command_snapshots(char *const *words)
{
    struct disk *disk = find_disk(words[0]);
    uint64_t count = parse_size(words[1]), first = words[2] != NULL ? parse_size(words[2]) : 0;
    struct usage from;
    char name[32];

    begin_counting();
    from = usage_now();
    for (uint64_t i = 0; i < count; i++) {
        snprintf(name, sizeof name, "s%llu", (unsigned long long)(first + i));
        if (qcow2_snapshot_create(disk->handle, name, NULL) < 0)
            fail("snapshot: %s", qcow2_last_error());
    }
    print_usage(&from, count, 0);
}

static void command_bitmaps(char *const *words)
{
    struct disk *disk = find_disk(words[0]);
    uint64_t count = parse_size(words[1]);
    struct usage from;
    char name[32];

    begin_counting();
    from = usage_now();
    for (uint64_t i = 0; i < count; i++) {
        snprintf(name, sizeof name, "b%llu", (unsigned long long)i);
        if (qcow2_bitmap_add(disk->handle, name, parse_size(words[2]), 0) < 0)
            fail("bitmap: %s", qcow2_last_error());
    }
    print_usage(&from, count, 0);
}

static void command_dirty(char *const *words)
{
    struct disk *disk = find_disk(words[0]);
    uint64_t at = 0, length, ranges = 0, bits = (uint64_t)qcow2_length(disk->handle) / parse_size(words[2]);
    struct usage from;
    int found;

    begin_counting();
    from = usage_now();
    for (; (found = qcow2_bitmap_next_dirty(disk->handle, words[1], at, &at, &length)) > 0; at += length)
        ranges++;
    if (found < 0)
        fail("dirty: %s", qcow2_last_error());
    print_usage(&from, ranges, bits / 8);
}

/* Locks the pages of a file in memory. Returns false where the host does not allow it. */
static bool lock_pages(const char *path, int fd, size_t length)
{
    void *pages = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, 0);
    int slot = 0;

    while (slot < MAX_FILES && locked[slot].path != NULL)
        slot++;
    if (slot == MAX_FILES || pages == MAP_FAILED)
        return false;
    if (mlock(pages, length) < 0) {
        munmap(pages, length);
        return false;
    }
    locked[slot].path = strdup(path);
    locked[slot].pages = pages;
    locked[slot].length = length;
    return true;
}

/* Written, dropped from the host's cache, read again: every file is in the state that reading leaves. */
static void command_warm(char *const *words)
{
    static char chunk[READ_BYTES];
    int fd = open(words[0], O_RDONLY | O_CLOEXEC);
    off_t at = 0, bytes = 0;
    struct stat st;
    bool held;

    if (fd < 0 || fstat(fd, &st) < 0)
        fail("warm %s: %s", words[0], strerror(errno));
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    while ((at = lseek(fd, at, SEEK_DATA)) >= 0) {
        off_t end = lseek(fd, at, SEEK_HOLE);

        for (off_t from = at; from < end; from += READ_BYTES)
            if (pread(fd, chunk, sizeof chunk, from) < 0)
                fail("warm %s: %s", words[0], strerror(errno));
        bytes += end - at;
        at = end;
    }
    /* Locked holes would become pages, too: only where they are few. */
    held = st.st_size - bytes <= 64 * READ_BYTES && lock_pages(words[0], fd, (size_t)st.st_size);
    close(fd);
    printf("{\"locked\": %s}\n", held ? "true" : "false");
    fflush(stdout);
}

static void command_cool(char *const *words)
{
    for (int i = 0; i < MAX_FILES; i++)
        if (locked[i].path != NULL && strcmp(locked[i].path, words[0]) == 0) {
            munmap(locked[i].pages, locked[i].length);
            free(locked[i].path);
            locked[i].path = NULL;
        }
    done();
}

/* Anonymous memory alone where the kernel tells it apart, for files may be mapped. */
static void command_memory(char *const *words)
{
    unsigned long long peak = 0, now = 0, anonymous = 0;
    FILE *status = fopen("/proc/self/status", "r"), *clear;
    char line[256];

    (void)words;
    while (status != NULL && fgets(line, sizeof line, status) != NULL) {
        sscanf(line, "VmHWM: %llu", &peak);
        sscanf(line, "VmRSS: %llu", &now);
        sscanf(line, "RssAnon: %llu", &anonymous);
    }
    if (status != NULL)
        fclose(status);
    clear = fopen("/proc/self/clear_refs", "w");
    if (clear != NULL) {
        fputs("5", clear);
        fclose(clear);
    }
    printf("{\"peak\": %llu, \"now\": %llu, \"anonymous\": %llu}\n", peak << 10, now << 10, anonymous << 10);
    fflush(stdout);
}

static void execute(char *const *words, int count)
{
    static const struct {
        const char *name;
        int words; /* at least */
        void (*function)(char *const *words);
    } commands[] = {
        {"create", 4, command_create}, {"open", 4, command_open},   {"run", 3, command_run},
        {"close", 2, command_close},   {"opens", 4, command_opens}, {"check", 2, command_check},
        {"map", 2, command_map},       {"checksum", 2, command_checksum},
        {"snapshots", 3, command_snapshots}, {"bitmaps", 4, command_bitmaps},
        {"dirty", 4, command_dirty},   {"warm", 2, command_warm}, {"cool", 2, command_cool},
        {"memory", 1, command_memory},
    };

    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(commands[i].name, words[0]) == 0 && count >= commands[i].words) {
            commands[i].function(words + 1);
            return;
        }
    fail("%s: no such command, or too few words", words[0]);
}

/* Runs a program and then tells what it took. A small process does this, for the kernel counts the memory of whoever
   starts a program as the program's. */
static int spawn(char **arguments)
{
    struct usage from = usage_now();
    struct rusage used;
    int status;
    pid_t pid;

    if (posix_spawnp(&pid, arguments[0], NULL, NULL, arguments, environ) != 0)
        fail("%s: cannot be started", arguments[0]);
    if (wait4(pid, &status, 0, &used) < 0)
        fail("wait4: %s", strerror(errno));
    printf("\n{\"wall\": %.9f, \"user\": %.6f, \"system\": %.6f, \"ops\": 1, \"memory\": %lld}\n",
           usage_now().wall - from.wall, (double)used.ru_utime.tv_sec + (double)used.ru_utime.tv_usec * 1e-6,
           (double)used.ru_stime.tv_sec + (double)used.ru_stime.tv_usec * 1e-6, (long long)used.ru_maxrss << 10);
    return status != 0;
}

int main(int argc, char **argv)
{
    char line[4096];

    if (argc > 2 && strcmp(argv[1], "spawn") == 0)
        return spawn(argv + 2);

    while (fgets(line, sizeof line, stdin) != NULL) {
        char *words[MAX_WORDS + 1], *rest = line;
        int count = 0;

        while (count < MAX_WORDS && (words[count] = strtok_r(rest, " \n", &rest)) != NULL)
            count++;
        words[count] = NULL;
        if (count > 0)
            execute(words, count);
    }
    return 0;
}
