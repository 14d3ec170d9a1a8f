/* qcow2-img check.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <getopt.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "img.h"

#define EXIT_CORRUPT 2
#define EXIT_LEAKS 3
#define EXIT_UNSUPPORTED 63

/* Lines on their way to stderr, which has no buffer: a damaged image may have a million of them. Who looks at a terminal
   sees each at once. */
#define LINES_BYTES (1 << 20)

struct lines {
    size_t used;
    bool at_once;
    char text[LINES_BYTES];
};

static void flush_lines(struct lines *lines)
{
    fwrite(lines->text, 1, lines->used, stderr);
    lines->used = 0;
}

/* What keeps the stock tool from checking at all it says as an error of its own. */
static bool stops_check(const char *text)
{
    return strncmp(text, "ERROR snapshot table too large", strlen("ERROR snapshot table too large")) == 0 ||
           strncmp(text, "ERROR failed to read the snapshot table",
                   strlen("ERROR failed to read the snapshot table")) == 0;
}

static void add_line(void *opaque, int kind, const char *text)
{
    struct lines *lines = opaque;
    size_t length = strlen(text);

    if (*text == 'E' && stops_check(text)) {
        flush_lines(lines);
        error_report("%s", text);
        return;
    }
    if (lines->used + length + 1 > LINES_BYTES) {
        flush_lines(lines);
    }
    if (length + 1 > LINES_BYTES) {
        print_message(NULL, kind, text);
        return;
    }
    memcpy(lines->text + lines->used, text, length);
    lines->text[lines->used + length] = '\n';
    lines->used += length + 1;
    if (lines->at_once) {
        flush_lines(lines);
    }
}

static int check_once(qcow2_image *image, uint64_t repair, qcow2_check_result *result)
{
    static struct lines lines;
    int status;

    memset(result, 0, sizeof(*result));
    result->struct_size = sizeof(*result);
    lines.at_once = isatty(STDERR_FILENO);
    status = qcow2_check(image, repair, result, add_line, &lines, NULL, NULL);
    flush_lines(&lines);
    return status;
}

static void print_allocation(const qcow2_check_result *result)
{
    double allocated = (double)result->allocated_clusters;

    if (result->total_clusters && result->allocated_clusters) {
        printf("%llu/%llu = %0.2f%% allocated, %0.2f%% fragmented, %0.2f%% compressed clusters\n",
               (unsigned long long)result->allocated_clusters, (unsigned long long)result->total_clusters,
               allocated * 100.0 / (double)result->total_clusters,
               (double)result->fragmented_clusters * 100.0 / allocated,
               (double)result->compressed_clusters * 100.0 / allocated);
    }
    if (result->image_end_offset) {
        printf("Image end offset: %llu\n", (unsigned long long)result->image_end_offset);
    }
}

static void print_human(const qcow2_check_result *result)
{
    if (!result->corruptions && !result->leaks && !result->check_errors) {
        printf("No errors were found on the image.\n");
    }
    if (result->corruptions) {
        printf("\n%llu errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may corrupt it.\n",
               (unsigned long long)result->corruptions);
    }
    if (result->leaks) {
        printf("\n%llu leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n",
               (unsigned long long)result->leaks);
    }
    if (result->check_errors) {
        printf("\n%llu internal errors have occurred during the check.\n", (unsigned long long)result->check_errors);
    }
    print_allocation(result);
}

static void number_unless_zero(struct json *json, const char *key, uint64_t value)
{
    if (value) {
        json_number(json, key, value);
    }
}

static void print_json(const qcow2_check_result *result, const char *name)
{
    struct json json = {.out = stdout};

    json_open(&json, NULL, '{');
    number_unless_zero(&json, "image-end-offset", result->image_end_offset);
    number_unless_zero(&json, "compressed-clusters", result->compressed_clusters);
    number_unless_zero(&json, "total-clusters", result->total_clusters);
    number_unless_zero(&json, "corruptions", result->corruptions);
    number_unless_zero(&json, "corruptions-fixed", result->corruptions_fixed);
    json_number(&json, "check-errors", result->check_errors);
    number_unless_zero(&json, "leaks", result->leaks);
    number_unless_zero(&json, "leaks-fixed", result->leaks_fixed);
    number_unless_zero(&json, "allocated-clusters", result->allocated_clusters);
    json_string(&json, "filename", name);
    json_string(&json, "format", "qcow2");
    number_unless_zero(&json, "fragmented-clusters", result->fragmented_clusters);
    json_close(&json, '}');
}

/* Says what a repair did, looks again, and keeps its counters beside those of the second look. */
static int check_again(qcow2_image *image, const struct image_args *args, qcow2_check_result *result)
{
    uint64_t leaks_fixed = result->leaks_fixed, corruptions_fixed = result->corruptions_fixed;
    int status;

    if (!args->json && !args->quiet) {
        printf("The following inconsistencies were found and repaired:\n\n"
               "    %llu leaked clusters\n    %llu corruptions\n\nDouble checking the fixed image now...\n",
               (unsigned long long)leaks_fixed, (unsigned long long)corruptions_fixed);
    }
    status = check_once(image, 0, result);
    result->leaks_fixed = leaks_fixed;
    result->corruptions_fixed = corruptions_fixed;
    return status;
}

static int check_and_print(qcow2_image *image, const struct image_args *args, uint64_t repair, const char *name)
{
    qcow2_check_result result;
    int status = check_once(image, repair, &result);

    if (status == 0 && (result.leaks_fixed || result.corruptions_fixed)) {
        status = check_again(image, args, &result);
    }
    if (status < 0) {
        error_report("Check failed: %s", strerror(-status));
        return EXIT_FAILURE;
    }
    if (!args->quiet && args->json) {
        print_json(&result, name);
    } else if (!args->quiet) {
        print_human(&result);
    }
    if (result.check_errors) {
        error_report("Check failed");
        return EXIT_FAILURE;
    }
    return result.corruptions ? EXIT_CORRUPT : result.leaks ? EXIT_LEAKS : EXIT_SUCCESS;
}

enum { OPTION_NO_KEY = OPTION_OWN };

static uint64_t parse_repair(const struct img_command *command, const char *text)
{
    if (strcmp(text, "leaks") == 0) {
        return QCOW2_CHECK_REPAIR_LEAKS;
    }
    if (strcmp(text, "all") == 0) {
        return QCOW2_CHECK_REPAIR_LEAKS | QCOW2_CHECK_REPAIR_ERRORS;
    }
    exit(usage_error(command, "--repair (-r) expects 'leaks' or 'all' not '%s'", text));
}

static int run_check(const struct img_command *command, int argc, char **argv)
{
    struct image_args args = {0};
    struct image_spec spec = {0};
    qcow2_image *image = NULL;
    qcow2_info info;
    const char *cache = NULL, *name;
    uint64_t repair = 0;
    bool no_key = false;
    int code, result = EXIT_FAILURE;

    while ((code = next_option(command, argc, argv)) != -1) {
        if (code == 'r') {
            repair = parse_repair(command, optarg);
        } else if (code == 'T') {
            cache = optarg;
        } else if (code == OPTION_NO_KEY) {
            no_key = true;
        } else {
            take_image_option(&args, command, code);
        }
    }
    name = one_file_name(&args, command, argc, argv);
    if (name && set_cache(&spec, cache, "Invalid source cache option") == EXIT_SUCCESS &&
        open_image(&args, name, QCOW2_OPEN_METADATA_ONLY | (repair ? 0 : QCOW2_OPEN_READ_ONLY), &spec, &image)) {
        if (!image_info(image, &info) || !(no_key || has_key(&args, name, image))) {
            result = EXIT_FAILURE;
        } else if (info.version == 0) {
            error_report("This image format does not support checks");
            result = EXIT_UNSUPPORTED;
        } else {
            result = check_and_print(image, &args, repair, name);
        }
        if (close_image(image) != EXIT_SUCCESS && result == EXIT_SUCCESS) {
            result = EXIT_FAILURE;
        }
    }
    image_spec_free(&spec);
    return result;
}

const struct img_command img_check = {
    .name = "check",
    .summary = "Check the metadata of an image, and repair it",
    .operands = "FILENAME",
    .options = (const struct img_option[]){IMG_HELP,
                                           IMG_QUIET,
                                           IMG_FORMAT,
                                           IMG_IMAGE_OPTS,
                                           IMG_SHARE,
                                           IMG_OUTPUT,
                                           IMG_OBJECT,
                                           {'T', "cache", "MODE", "cache mode of the image file"},
                                           {'r', "repair", "leaks|all",
                                            "give leaked clusters back, or repair all that can be"},
                                           {OPTION_NO_KEY, "no-key", NULL, "an encrypted image without its key"},
                                           IMG_END},
    .run = run_check,
};
