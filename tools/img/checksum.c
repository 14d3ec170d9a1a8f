/* qcow2-img checksum: what the guest sees, in 32 bits.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <getopt.h>
#include <stdlib.h>
#include <unistd.h>

#include "img.h"

/* More read no faster than the host's memory. */
enum { MOST_THREADS = 4 };

static void use_processors(struct image_spec *spec)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);

    list_addf(&spec->options, "check-threads=%ld",
              processors < 1              ? 1
              : processors < MOST_THREADS ? processors
                                          : MOST_THREADS);
}

static int run_checksum(const struct img_command *command, int argc, char **argv)
{
    struct image_args args = {0};
    struct image_spec spec = {0};
    qcow2_image *image = NULL;
    const char *name;
    uint32_t crc = 0;
    int code, result = EXIT_FAILURE;

    while ((code = next_option(command, argc, argv)) != -1) {
        take_image_option(&args, command, code);
    }
    name = one_file_name(&args, command, argc, argv);
    use_processors(&spec);
    progress_init(args.progress);
    if (name && open_image(&args, name, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED, &spec, &image)) {
        result = EXIT_SUCCESS;
        if (qcow2_checksum(image, &crc, progress_update, NULL) < 0) {
            error_report("%s", failure_text());
            result = EXIT_FAILURE;
        }
        progress_end();
        if (close_image(image) != EXIT_SUCCESS) {
            result = EXIT_FAILURE;
        }
        if (result == EXIT_SUCCESS) {
            printf("%08x\n", (unsigned)crc);
        }
    }
    image_spec_free(&spec);
    return result;
}

const struct img_command img_checksum = {
    .name = "checksum",
    .summary = "Print the CRC-32 of the disk in an image",
    .operands = "FILENAME",
    .options =
        (const struct img_option[]){IMG_HELP, IMG_PROGRESS, IMG_FORMAT, IMG_IMAGE_OPTS, IMG_SHARE, IMG_OBJECT, IMG_END},
    .run = run_checksum,
};
