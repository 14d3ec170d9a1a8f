/* What a process pays for its first open, and what a guest costs that never flushes: memory.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* Memory of this process that is not a file's, KiB. */
static long own_memory(void)
{
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    char line[200];
    long size = -1;

    if (file == NULL) {
        test_skip("no /proc/self/smaps_rollup");
    }
    while (fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "Anonymous: %ld kB", &size) == 1) {
            break;
        }
    }
    fclose(file);
    CHECK(size > 0);
    return size;
}

/* What the first call into the library takes, KiB: another process has made the image, and no fork has made this one's
   memory common. */
static long first_open(void)
{
    const char *path = test_path("large");
    char name[] = "first-open";
    char *arguments[] = {name, (char *)(uintptr_t)path, NULL};
    qcow2_image *image;
    pid_t child;
    int status;
    long before, after;

    CHECK_EQ(posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environ), 0);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    own_memory();
    before = own_memory();
    CHECK_OK(qcow2_open(path, 0, NULL, &image));
    after = own_memory();
    CHECK_OK(qcow2_close(image));
    return after - before;
}

/* Peak memory, KiB, of a child that writes to a million clusters of 512 bytes at random. */
static long peak_of_writes(void)
{
    const char *path = test_create("writes", GIB, "cluster_size=512", NULL);
    pid_t child = fork();
    struct rusage usage;
    int status;

    CHECK(child >= 0);
    if (child == 0) {
        qcow2_image *image = test_open(path, 0, NULL);
        uint64_t random = 88172645463325252u;
        char sector[512];

        memset(sector, 7, sizeof sector);
        for (unsigned i = 0; i < 1000000; i++) {
            CHECK_EQ(qcow2_pwrite(image, sector, sizeof sector, test_random(&random) % (GIB / 512) * 512), 512);
        }
        CHECK_OK(qcow2_close(image));
        _exit(0);
    }
    CHECK_EQ(wait4(child, &status, 0, &usage), child);
    CHECK_EQ(status, 0);
    return usage.ru_maxrss;
}

int main(int argc, char **argv)
{
    long opened, written;

    if (argc > 1) {
        return qcow2_create(argv[1], 1024 * GIB, NULL) != 0;
    }
    if (test_under_valgrind() || test_emulated() || SANITIZED) {
        test_skip("memory is not the library's alone");
    }
    opened = first_open();
    printf("open: %ld KiB\n", opened);
    CHECK(opened < 120);

    written = peak_of_writes();
    printf("a million writes: %ld KiB\n", written);
    /* What QEMU 10 takes for them. */
    CHECK(written < 25 * 1024);
    return 0;
}
