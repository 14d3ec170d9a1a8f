/* Create a disk, write, flush, read back, close.
   SPDX-License-Identifier: MIT OR Apache-2.0
   cc disk.c $(pkg-config --cflags --libs qcow2) -o disk && ./disk disk.qcow2 */
#include <qcow2.h>
#include <stdio.h>
#include <string.h>

static int failed(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, qcow2_last_error());
    return 1;
}

int main(int argc, char **argv)
{
    static const char *const create_options[] = {"lazy_refcounts=on", "cluster_size=64k", NULL};
    const char *path = argc > 1 ? argv[1] : "disk.qcow2";
    char sector[512], back[512];
    qcow2_image *image;

    if (qcow2_create(path, (uint64_t)1 << 30, create_options) < 0) {
        return failed("create");
    }
    if (qcow2_open(path, 0, NULL, &image) < 0) {
        return failed("open");
    }

    memset(sector, 0x42, sizeof sector);
    if (qcow2_pwrite(image, sector, sizeof sector, 1000 * 512) < 0 || qcow2_flush(image) < 0) {
        return failed("write");
    }
    if (qcow2_pread(image, back, sizeof back, 1000 * 512) < 0) {
        return failed("read");
    }
    printf("%lld bytes, %s\n", (long long)qcow2_length(image),
           memcmp(sector, back, sizeof back) == 0 ? "equal" : "different");

    /* close flushes and reports: look at what it returns. */
    return qcow2_close(image) < 0 ? failed("close") : 0;
}
