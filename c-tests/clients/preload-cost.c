/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What the shim costs: calls on an image beside the library's own, and calls on anything else beside the C library's,
 * in one process. Arguments: the shim. Fails where more than the limits is added.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "qcow2.h"

enum {
    ROUNDS = 200,
    MORE_ROUNDS = 4000,
    CALLS = 128,
    DISK = 1 << 20,
    IMAGE_LIMIT_NS = 100,
    OTHER_LIMIT_NS = 15,
};

static qcow2_image *image;
static int view, other, null;
static char buffer[4096];
static struct stat status;

static ssize_t (*libc_pread)(int, void *, size_t, off_t);
static ssize_t (*libc_read)(int, void *, size_t);
static ssize_t (*libc_write)(int, const void *, size_t);
static off_t (*libc_lseek)(int, off_t, int);
static int (*libc_fstat)(int, struct stat *);
static int (*libc_stat)(int, const char *, struct stat *, int);
static int (*libc_open)(const char *, int, ...);
static int (*libc_close)(int);
static void *(*libc_mmap)(void *, size_t, int, int, int, off_t);

static void own_pread(off_t at)
{
    qcow2_pread(image, buffer, 512, (uint64_t)at);
}

static void view_pread(off_t at)
{
    if (pread(view, buffer, 512, at) != 512) {
        abort();
    }
}

static void own_pwrite(off_t at)
{
    qcow2_pwrite(image, buffer, 512, (uint64_t)at);
}

static void view_pwrite(off_t at)
{
    if (pwrite(view, buffer, 512, at) != 512) {
        abort();
    }
}

static void view_read(off_t at)
{
    /* Half of it is the other call. */
    if (at == 0) {
        lseek(view, 0, SEEK_SET);
    }
    if (read(view, buffer, 512) != 512) {
        abort();
    }
}

#define PAIR(name, real, hooked)                                                                                       \
    static void real_##name(off_t at)                                                                                  \
    {                                                                                                                  \
        (void)at;                                                                                                      \
        real;                                                                                                          \
    }                                                                                                                  \
    static void hook_##name(off_t at)                                                                                  \
    {                                                                                                                  \
        (void)at;                                                                                                      \
        hooked;                                                                                                        \
    }

static volatile long sink;

PAIR(pread, sink = libc_pread(other, buffer, 1, at), sink = pread(other, buffer, 1, at))
PAIR(read, sink = libc_read(null, buffer, 1), sink = read(null, buffer, 1))
PAIR(write, sink = libc_write(null, buffer, 1), sink = write(null, buffer, 1))
PAIR(lseek, sink = libc_lseek(other, 0, SEEK_SET), sink = lseek(other, 0, SEEK_SET))
PAIR(fstat, sink = libc_fstat(other, &status), sink = fstat(other, &status))
/* Flags that are refused before the name is looked up. */
PAIR(stat, sink = libc_stat(AT_FDCWD, "/not-there.img", &status, 1 << 30),
     sink = fstatat(AT_FDCWD, "/not-there.img", &status, 1 << 30))
PAIR(open, sink = libc_open("/not-there.img", O_TMPFILE, 0), sink = open("/not-there.img", O_TMPFILE, 0))
PAIR(close, sink = libc_close(-1), sink = close(-1))
PAIR(mmap, sink = (long)libc_mmap(NULL, 0, 0, 0, -1, 0), sink = (long)mmap(NULL, 0, 0, 0, -1, 0))

static double round_ns(void (*call)(off_t))
{
    struct timespec start, end;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    for (int i = 0; i < CALLS; i++) {
        call((off_t)i * 512 % DISK);
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    return ((double)(end.tv_sec - start.tv_sec) * 1e9 + (double)(end.tv_nsec - start.tv_nsec)) / CALLS;
}

enum { MULTIPLICATIONS = 20 };

/* One after the other: 1 ns each at 3 GHz. */
static void multiply(off_t at)
{
    uint64_t value = (uint64_t)at | 1;

    for (int i = 0; i < MULTIPLICATIONS; i++) {
        value *= 6364136223846793005u;
        __asm__ volatile("" : "+r"(value));
    }
    sink = (long)value;
}

/* How much slower than at 3 GHz this machine is, at least 1. The limits are for 3 GHz. */
static double slowness(void)
{
    double least = 1e12;

    for (int i = 0; i < ROUNDS; i++) {
        double ns = round_ns(multiply) / MULTIPLICATIONS;

        least = ns < least ? ns : least;
    }
    return least > 1 ? least : 1;
}

/* Rounds alternate, and the quickest of each counts: a machine that is busy only makes rounds longer. */
static int compare(const char *name, void (*plain)(off_t), void (*shim)(off_t), double limit)
{
    double least_plain = 1e12, least_shim = 1e12;

    limit *= slowness();
    /* What a busy machine hides, more rounds find. */
    for (int i = 0; i < ROUNDS || (i < MORE_ROUNDS && least_shim - least_plain > limit); i++) {
        double a = round_ns(plain), b = round_ns(shim);

        least_plain = a < least_plain ? a : least_plain;
        least_shim = b < least_shim ? b : least_shim;
    }
    printf("%-22s %8.1f ns, with the shim %8.1f ns: %+6.1f ns (at most %.0f)\n", name, least_plain, least_shim,
           least_shim - least_plain, limit);
    return least_shim - least_plain > limit;
}

static void *libc_symbol(void *libc, const char *name)
{
    void *found = dlsym(libc, name);

    if (found == NULL) {
        abort();
    }
    return found;
}

static void find_libc(void)
{
    void *libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);

    *(void **)&libc_pread = libc_symbol(libc, "pread64");
    *(void **)&libc_read = libc_symbol(libc, "read");
    *(void **)&libc_write = libc_symbol(libc, "write");
    *(void **)&libc_lseek = libc_symbol(libc, "lseek64");
    *(void **)&libc_fstat = libc_symbol(libc, "fstat64");
    *(void **)&libc_stat = libc_symbol(libc, "fstatat64");
    *(void **)&libc_open = libc_symbol(libc, "open64");
    *(void **)&libc_close = libc_symbol(libc, "close");
    *(void **)&libc_mmap = libc_symbol(libc, "mmap64");
}

static const char *const open_options[] = {"metadata-writethrough=on", NULL};

static void give_up(const char *path)
{
    fprintf(stderr, "%s: %s\n", path, qcow2_last_error());
    exit(1);
}

static void make(const char *directory, const char *name)
{
    const char *const create[] = {"lazy_refcounts=on", NULL};
    char path[4096];

    snprintf(path, sizeof path, "%s/%s", directory, name);
    if (qcow2_create(path, DISK, create) < 0 || qcow2_open(path, 0, open_options, &image) < 0) {
        give_up(path);
    }
    for (off_t at = 0; at < DISK; at += (off_t)sizeof buffer) {
        memset(buffer, 1 + (int)(at & 127), sizeof buffer);
        qcow2_pwrite(image, buffer, sizeof buffer, (uint64_t)at);
    }
    qcow2_close(image);
}

/* Without the shim: two images that are alike, then this program again, under it. */
static int begin(char **argv)
{
    char directory[] = "/tmp/preload-cost.XXXXXX";

    if (mkdtemp(directory) == NULL) {
        perror(directory);
        return 1;
    }
    make(directory, "cost.img");
    make(directory, "cost.qcow2");
    setenv("LD_PRELOAD", argv[1], 1);
    execl("/proc/self/exe", argv[0], argv[1], directory, (char *)NULL);
    perror(argv[0]);
    return 1;
}

/* The library's own image has a name that the shim does not take. */
static void open_both(const char *directory)
{
    char path[4096];

    snprintf(path, sizeof path, "%s/cost.img", directory);
    if (qcow2_open(path, 0, open_options, &image) < 0) {
        give_up(path);
    }
    snprintf(path, sizeof path, "%s/cost.qcow2", directory);
    view = open(path, O_RDWR);
    if (view < 0 || fstat(view, &status) < 0 || status.st_size != DISK) {
        perror(path);
        exit(1);
    }
}

static void tidy(const char *directory)
{
    char path[4096];

    snprintf(path, sizeof path, "%s/cost.img", directory);
    unlink(path);
    snprintf(path, sizeof path, "%s/cost.qcow2", directory);
    unlink(path);
    rmdir(directory);
}

int main(int argc, char **argv)
{
    int failed = 0;

    if (argc == 2) {
        return begin(argv);
    }
    if (argc != 3) {
        fprintf(stderr, "usage: preload-cost SHIM\n");
        return 2;
    }
    find_libc();
    if (dlsym(RTLD_DEFAULT, "open64") == *(void **)&libc_open) {
        fprintf(stderr, "not under the shim\n");
        return 1;
    }
    open_both(argv[2]);
    other = open("/etc/passwd", O_RDONLY);
    null = open("/dev/null", O_RDWR);
    failed |= compare("image, pread", own_pread, view_pread, IMAGE_LIMIT_NS);
    failed |= compare("image, pwrite", own_pwrite, view_pwrite, IMAGE_LIMIT_NS);
    failed |= compare("image, read", own_pread, view_read, IMAGE_LIMIT_NS);
    failed |= compare("file, pread", real_pread, hook_pread, OTHER_LIMIT_NS);
    failed |= compare("/dev/null, read", real_read, hook_read, OTHER_LIMIT_NS);
    failed |= compare("/dev/null, write", real_write, hook_write, OTHER_LIMIT_NS);
    failed |= compare("file, lseek", real_lseek, hook_lseek, OTHER_LIMIT_NS);
    failed |= compare("file, fstat", real_fstat, hook_fstat, OTHER_LIMIT_NS);
    failed |= compare("file, fstatat", real_stat, hook_stat, OTHER_LIMIT_NS);
    failed |= compare("file, open", real_open, hook_open, OTHER_LIMIT_NS);
    failed |= compare("file, close", real_close, hook_close, OTHER_LIMIT_NS);
    failed |= compare("mmap that is refused", real_mmap, hook_mmap, OTHER_LIMIT_NS);
    qcow2_close(image);
    close(view);
    tidy(argv[2]);
    return failed;
}
