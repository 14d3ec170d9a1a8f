/* Check an image and show progress; with "repair", mend what can be mended.
   SPDX-License-Identifier: MIT OR Apache-2.0
   cc watch.c $(pkg-config --cflags --libs qcow2) -o watch && ./watch disk.qcow2 [repair] */
#include <inttypes.h>
#include <qcow2.h>
#include <stdio.h>
#include <string.h>

static void on_message(void *opaque, int kind, const char *text)
{
    (void)opaque;
    fprintf(stderr, "%s%s\n", kind == QCOW2_MSG_REPAIR ? "repaired: " : "", text);
}

static int on_progress(void *opaque, uint64_t done, uint64_t total)
{
    (void)opaque;
    fprintf(stderr, "\r%3" PRIu64 "%%", total > 0 ? done * 100 / total : 100);
    return 0; /* anything else cancels */
}

int main(int argc, char **argv)
{
    int repair = argc > 2 && strcmp(argv[2], "repair") == 0;
    uint64_t flags = QCOW2_OPEN_METADATA_ONLY | (repair ? 0 : QCOW2_OPEN_READ_ONLY);
    qcow2_check_result result = {.struct_size = sizeof result};
    qcow2_image *image;

    if (argc < 2) {
        fprintf(stderr, "usage: watch IMAGE [repair]\n");
        return 2;
    }
    if (qcow2_open(argv[1], flags, NULL, &image) < 0 ||
        qcow2_check(image, repair ? QCOW2_CHECK_REPAIR_LEAKS | QCOW2_CHECK_REPAIR_ERRORS : 0, &result, on_message, NULL,
                    on_progress, NULL) < 0) {
        fprintf(stderr, "%s\n", qcow2_last_error());
        return 1;
    }
    printf("\n%" PRIu64 " errors, %" PRIu64 " leaked clusters, %" PRIu64 " repaired\n", result.corruptions,
           result.leaks, result.corruptions_fixed + result.leaks_fixed);
    return qcow2_close(image) < 0 || result.corruptions > result.corruptions_fixed;
}
