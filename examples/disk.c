/* Create a disk, write, flush, read back, close: cc disk.c $(pkg-config --cflags --libs qcow2) -o disk && ./disk
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <qcow2.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    static const char *const options[] = {"lazy_refcounts=on", NULL};
    const char *path = argc > 1 ? argv[1] : "disk.qcow2";
    char sector[512] = "hello, disk", back[512];
    qcow2_image *image;

    if (qcow2_create(path, 1 << 30, options) < 0 || qcow2_open(path, 0, NULL, &image) < 0) {
        fprintf(stderr, "%s\n", qcow2_last_error());
        return 1;
    }
    if (qcow2_pwrite(image, sector, sizeof sector, 512000) < 0 || qcow2_flush(image) < 0 ||
        qcow2_pread(image, back, sizeof back, 512000) < 0) {
        fprintf(stderr, "%s\n", qcow2_last_error());
        qcow2_close(image);
        return 1;
    }
    printf("%lld bytes, %s\n", (long long)qcow2_length(image), memcmp(sector, back, 512) == 0 ? "equal" : "different");
    return qcow2_close(image) < 0; /* it flushes, and says what has not reached the disk */
}
