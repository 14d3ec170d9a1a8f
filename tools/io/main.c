/* qcow2-io: reads and writes images by command, as qemu-io does.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "io.h"
#include "secrets.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

struct io_state io;

static void print_help(void)
{
    printf("Usage: %s [OPTIONS]... [-c STRING]... [file]\n"
           "QEMU Disk exerciser\n"
           "\n"
           "  --object OBJECTDEF   define an object such as 'secret' for\n"
           "                       passwords and/or encryption keys\n"
           "  --image-opts         treat file as option string\n"
           "  -c, --cmd STRING     execute command with its arguments\n"
           "                       from the given string\n"
           "  -f, --format FMT     specifies the block driver to use\n"
           "  -r, --read-only      export read-only\n"
           "  -s, --snapshot       use snapshot file\n"
           "  -n, --nocache        disable host cache, short for -t none\n"
           "  -C, --copy-on-read   enable copy-on-read\n"
           "  -m, --misalign       misalign allocations for O_DIRECT\n"
           "  -k, --native-aio     use kernel AIO implementation\n"
           "                       (Linux only, prefer use of -i)\n"
           "  -i, --aio=MODE       use AIO mode (threads, native or io_uring)\n"
           "  -t, --cache=MODE     use the given cache mode for the image\n"
           "  -d, --discard=MODE   use the given discard mode for the image\n"
           "  -T, --trace [[enable=]<pattern>][,events=<file>][,file=<file>]\n"
           "                       specify tracing options\n"
           "                       see qemu-img(1) man page for full description\n"
           "  -U, --force-share    force shared permissions\n"
           "  -h, --help           display this help and exit\n"
           "  -V, --version        output version information and exit\n"
           "\n"
           "See '%s -c help' for information on available commands.\n"
           "\n"
           "See <https://qemu.org/contribute/report-a-bug> for how to report bugs.\n"
           "More information on the QEMU project at <https://qemu.org>.\n",
           program_name, program_name);
}

enum { OPTION_OBJECT = 256, OPTION_IMAGE_OPTS };

static const struct option long_options[] = {
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'V'},
    {"cmd", required_argument, NULL, 'c'},
    {"format", required_argument, NULL, 'f'},
    {"read-only", no_argument, NULL, 'r'},
    {"snapshot", no_argument, NULL, 's'},
    {"nocache", no_argument, NULL, 'n'},
    {"copy-on-read", no_argument, NULL, 'C'},
    {"misalign", no_argument, NULL, 'm'},
    {"native-aio", no_argument, NULL, 'k'},
    {"aio", required_argument, NULL, 'i'},
    {"cache", required_argument, NULL, 't'},
    {"discard", required_argument, NULL, 'd'},
    {"trace", required_argument, NULL, 'T'},
    {"force-share", no_argument, NULL, 'U'},
    {"object", required_argument, NULL, OPTION_OBJECT},
    {"image-opts", no_argument, NULL, OPTION_IMAGE_OPTS},
    {NULL, 0, NULL, 0},
};

/* False: the program ends with *status. */
static bool take_object(char *text, int *status)
{
    char *problem = NULL;
    int ret = secret_object(text, &problem);

    if (ret < 0) {
        error_report("%s", problem);
        free(problem);
    }
    *status = ret < 0;
    return ret == 0;
}

/* -1: go on; otherwise the exit status. */
static int parse_program_options(int argc, char **argv, struct io_open_request *request, struct string_list *lines)
{
    int code, status;

    while ((code = getopt_long(argc, argv, "hVc:d:f:rsnCmki:t:T:U", long_options, NULL)) != -1) {
        switch (code) {
        case 'c': list_add(lines, optarg); break;
        case 'f': request->format = optarg; break;
        case 'm':
        case 'T': break;
        case OPTION_OBJECT:
            if (!take_object(optarg, &status)) {
                return status;
            }
            break;
        case OPTION_IMAGE_OPTS: request->image_opts = true; break;
        case 'h': print_help(); return 0;
        case 'V': printf("%s version %s\n", program_name, qcow2_version()); return 0;
        case '?': print_help(); return 1;
        default:
            if (!io_open_option(request, code, optarg)) {
                return 1;
            }
        }
    }
    if (argc - optind > 1) {
        print_help();
        return 1;
    }
    if (request->format != NULL && request->image_opts) {
        error_report("--image-opts and -f are mutually exclusive");
        return 1;
    }
    request->name = argv[optind]; /* NULL at the end */
    return -1;
}

/* NULL at the end. */
static char *read_line(const char *prompt)
{
    char *line = NULL;
    size_t room = 0;
    ssize_t length;

    if (io_has_terminal()) {
        return io_edit_line(prompt);
    }
    fputs(prompt, stdout);
    fflush(stdout);
    length = getline(&line, &room, stdin);
    if (length < 0) {
        free(line);
        return NULL;
    }
    if (length > 0 && line[length - 1] == '\n') {
        line[length - 1] = '\0';
    }
    return line;
}

static int run_stdin(void)
{
    char *prompt = text_format("%s> ", program_name), *line;
    int status = 0;

    while (!io.quit && (line = read_line(prompt)) != NULL) {
        if (io_run_line(line) < 0) {
            status = 1;
        }
        free(line);
    }
    free(prompt);
    return status;
}

static int run_lines(const struct string_list *lines)
{
    int status = 0;

    for (size_t i = 0; i < lines->count && !io.quit; i++) {
        if (io_run_line(lines->items[i]) < 0) {
            status = 1;
        }
    }
    return status;
}

int main(int argc, char **argv)
{
    struct io_open_request request = {.name = NULL};
    struct string_list lines = {NULL, 0};
    int status;

    program_init(argv[0]);
    signal(SIGUSR1, SIG_IGN);
    status = parse_program_options(argc, argv, &request, &lines);
    if (status < 0) {
        status = request.name != NULL && io_open(&request) < 0;
        if (status == 0) {
            status = lines.count > 0 ? run_lines(&lines) : run_stdin();
            if (io_close() < 0) {
                status = 1;
            }
        }
    }
    list_free(&lines);
    if (fflush(stdout) != 0 && errno != EPIPE) {
        status = 1;
    }
    return status;
}
