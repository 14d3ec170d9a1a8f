/* qcow2-img: the commands of qemu-img, for qcow2, luks and raw images, over libqcow2.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <getopt.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "img.h"

static const struct img_command *const commands[] = {
    &img_amend,   &img_bench,   &img_bitmap, &img_check,  &img_checksum,    &img_commit,
    &img_compare, &img_convert, &img_create, &img_dd,     &img_dump_header, &img_info,
    &img_map,     &img_measure, &img_rebase, &img_resize, &img_snapshot,
};
#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void print_version(void)
{
    printf("%s version %s\n", program_name, qcow2_version());
}

static void print_help(void)
{
    print_version();
    printf("Usage: %s [OPTION]... COMMAND [--help | COMMAND OPTION...]\n\n"
           "  -h, --help         show this text\n"
           "  -V, --version      show the version\n"
           "  -T, --trace TRACE  accepted for compatibility, without effect\n\nCommands:\n",
           program_name);
    for (size_t i = 0; i < COMMANDS; i++) {
        printf("  %-12s %s\n", commands[i]->name, commands[i]->summary);
    }
    printf("\nFormats: luks qcow2 raw\n");
}

/* Whoever was to read what is printed has gone. */
static bool nobody_reads(void)
{
    struct pollfd output = {.fd = STDOUT_FILENO, .events = POLLOUT};

    return poll(&output, 1, 0) > 0 && (output.revents & POLLERR) != 0;
}

/* A full disk must not look like success. */
static int finish(int result)
{
    if ((fflush(stdout) == 0 && !ferror(stdout)) || nobody_reads()) {
        return result;
    }
    error_report("Could not write to standard output");
    return result ? result : EXIT_FAILURE;
}

/* Options before the command; leaves optind at the command. */
static void parse_standard_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},
        {"trace", required_argument, NULL, 'T'},
        {NULL, 0, NULL, 0},
    };
    int code;

    while ((code = getopt_long(argc, argv, "+hVT:", options, NULL)) != -1) {
        if (code == 'h') {
            print_help();
        } else if (code == 'V') {
            print_version();
        }
        if (code == 'h' || code == 'V') {
            exit(EXIT_SUCCESS);
        }
        if (code == '?') {
            fprintf(stderr, "Try '%s --help' for more info\n", program_path);
            exit(EXIT_FAILURE);
        }
    }
}

int main(int argc, char **argv)
{
    program_init(argv[0]);
    program_path = argv[0];
    parse_standard_options(argc, argv);
    if (optind >= argc) {
        return usage_error(NULL, "Not enough arguments");
    }
    for (size_t i = 0; i < COMMANDS; i++) {
        if (strcmp(commands[i]->name, argv[optind]) != 0) {
            continue;
        }
        argc -= optind;
        argv += optind;
        argv[0] = text_format("%s %s", program_path, commands[i]->name);
        optind = 0; /* a new scan */
        return finish(commands[i]->run(commands[i], argc, argv));
    }
    return usage_error(NULL, "Command not found: %s", argv[optind]);
}
