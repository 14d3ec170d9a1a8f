/* Command lines of qcow2-img.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"
#include "secrets.h"

#define MAX_OPTIONS 40

const char *program_path;

static void __attribute__((noreturn)) print_command_help(const struct img_command *command)
{
    printf("%s.\n\nUsage: %s %s [OPTION]... %s\n\n", command->summary, program_name, command->name, command->operands);
    for (const struct img_option *option = command->options; option->code; option++) {
        const char *argument = option->argument ? option->argument : "", *space = option->argument ? " " : "";
        const bool is_short = option->code < 256;
        char left[64];

        snprintf(left, sizeof(left), "%c%c%s%s%s%s", is_short ? '-' : ' ', is_short ? option->code : ' ',
                 !option->name ? ""
                 : is_short    ? ", --"
                               : "  --",
                 option->name ? option->name : "", space, argument);
        printf("  %-34s %s\n", left, option->help);
    }
    exit(EXIT_SUCCESS);
}

int next_option(const struct img_command *command, int argc, char **argv)
{
    struct option long_options[MAX_OPTIONS] = {0};
    char short_options[2 * MAX_OPTIONS + 2];
    size_t long_count = 0, length = 0;
    int code;

    if (command->in_order) {
        short_options[length++] = '-';
    }
    for (const struct img_option *option = command->options; option->code && long_count + 1 < MAX_OPTIONS; option++) {
        if (option->name) {
            long_options[long_count++] =
                (struct option){option->name, option->argument ? required_argument : no_argument, NULL, option->code};
        }
        if (option->code < 256) {
            short_options[length++] = (char)option->code;
            if (option->argument) {
                short_options[length++] = ':';
            }
        }
    }
    short_options[length] = '\0';
    code = getopt_long(argc, argv, short_options, long_options, NULL);
    if (code == 'h') {
        print_command_help(command);
    }
    if (code == '?') {
        fprintf(stderr, "Try '%s --help' for more info\n", argv[0]);
        exit(EXIT_FAILURE);
    }
    return code;
}

int usage_error(const struct img_command *command, const char *format, ...)
{
    va_list arguments;
    char *text = NULL;

    va_start(arguments, format);
    if (vasprintf(&text, format, arguments) < 0) {
        text = NULL;
    }
    va_end(arguments);
    error_report("%s", (char *)memory_or_exit(text));
    free(text);
    fprintf(stderr, "Try '%s%s%s --help' for more info\n", program_path, command ? " " : "",
            command ? command->name : "");
    return EXIT_FAILURE;
}

/* Where 1 means that the images differ, another status tells of a failure. */
static void take_object(const struct img_command *command, char *text)
{
    char *problem = NULL;
    int result = secret_object(text, &problem);

    if (result == 0) {
        return;
    }
    if (result < 0) {
        error_report("%s", problem);
        free(problem);
    }
    exit(result > 0 ? EXIT_SUCCESS : strcmp(command->name, "compare") == 0 ? 2 : EXIT_FAILURE);
}

bool take_image_option(struct image_args *args, const struct img_command *command, int code)
{
    switch (code) {
    case 'f': args->format = optarg; return true;
    case 'q': args->quiet = true; return true;
    case 'p': args->progress = true; return true;
    case 'U': args->force_share = true; return true;
    case OPTION_IMAGE_OPTS: args->image_opts = true; return true;
    case OPTION_OUTPUT:
        args->json = strcmp(optarg, "json") == 0;
        if (!args->json && strcmp(optarg, "human") != 0) {
            exit(usage_error(command, "--output expects 'human' or 'json' not '%s'", optarg));
        }
        return true;
    case OPTION_OBJECT: take_object(command, optarg); return true;
    default: return false;
    }
}

const char *one_file_name(const struct image_args *args, const struct img_command *command, int argc, char **argv)
{
    if (optind != argc - 1) {
        usage_error(command, "Expecting one image file name");
        return NULL;
    }
    if (args->image_opts && args->format) {
        error_report("--image-opts and --format are mutually exclusive");
        return NULL;
    }
    return argv[optind];
}

bool parse_bytes_within(const char *text, const char *what, int64_t least, int64_t most, int64_t *bytes)
{
    int result = parse_size_i64(text, bytes);

    if (result == -ERANGE || (result == 0 && (*bytes < least || *bytes > most))) {
        error_report("Invalid %s specified. Must be between %lld and %lld.", what, (long long)least, (long long)most);
        return false;
    }
    if (result < 0) {
        error_report("Invalid %s specified: '%s'.", what, text);
    }
    return result == 0;
}

bool parse_bytes(const char *text, const char *what, int64_t *bytes)
{
    return parse_bytes_within(text, what, 0, INT64_MAX, bytes);
}

bool parse_count_within(const char *text, const char *what, int64_t least, int64_t most, int64_t *number)
{
    char *end;

    errno = 0;
    *number = strtoll(text, &end, 0);
    if (end == text || *end != '\0') {
        error_report("Invalid %s specified: '%s'.", what, text);
        return false;
    }
    if (errno == ERANGE || *number < least || *number > most) {
        error_report("Invalid %s specified. Must be between %lld and %lld.", what, (long long)least, (long long)most);
        return false;
    }
    return true;
}
