/* qcow2-img convert.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"

#define DEFAULT_SPARSE_BYTES 4096
#define MAX_SPARSE_BYTES (INT64_C(16) << 20)
#define MAX_COROUTINES 16

enum {
    OPTION_TARGET_IMAGE_OPTS = OPTION_OWN,
    OPTION_TARGET_IS_ZERO,
    OPTION_SALVAGE,
    OPTION_BITMAPS,
    OPTION_SKIP_BROKEN_BITMAPS
};

static int parse_sparse(struct convert_job *job, const char *text)
{
    if (!parse_bytes(text, "buffer size for sparse output", &job->sparse)) {
        return EXIT_FAILURE;
    }
    job->sparse_given = true;
    if (job->sparse % 512 == 0 && job->sparse <= MAX_SPARSE_BYTES) {
        return EXIT_SUCCESS;
    }
    error_report("Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to %lld. "
                 "Select 0 to disable sparse detection (fully allocates output).",
                 (long long)MAX_SPARSE_BYTES);
    return EXIT_FAILURE;
}

static int take_option(struct convert_job *job, const struct img_command *command, int code)
{
    int64_t rate;

    switch (code) {
    case 'B': job->backing_file = optarg; break;
    case 'C': job->offload = true; break;
    case 'F': job->backing_format = optarg; break;
    case 'O': job->target_format = optarg; break;
    case 'S': return parse_sparse(job, optarg);
    case 'T': job->source_cache = optarg; break;
    case 'W': job->flags |= QCOW2_CONVERT_ANY_ORDER; break;
    case 'c': job->compress = true; break;
    case 'l': job->snapshot = optarg; break;
    case 'm':
        return parse_count_within(optarg, "number of coroutines", 1, MAX_COROUTINES, &job->workers) ? EXIT_SUCCESS
                                                                                                    : EXIT_FAILURE;
    case 'n': job->no_create = true; break;
    case 'o':
        job->options_help = job->options_help || options_ask_help(optarg);
        return create_options_join(&job->option_text, optarg);
    case 'r': return parse_bytes(optarg, "rate limit", &rate) ? EXIT_SUCCESS : EXIT_FAILURE;
    case 't': job->target_cache = optarg; break;
    case OPTION_TARGET_IMAGE_OPTS: job->target_image_opts = true; break;
    case OPTION_TARGET_IS_ZERO: job->target_is_zero = true; break;
    case OPTION_SALVAGE: job->salvage = true; break;
    case OPTION_BITMAPS: job->bitmaps = true; break;
    case OPTION_SKIP_BROKEN_BITMAPS: job->skip_broken_bitmaps = true; break;
    default: take_image_option(&job->args, command, code);
    }
    return EXIT_SUCCESS;
}

/* What is wrong with the options taken together, or NULL. */
static const char *find_contradiction(const struct convert_job *job)
{
    if (job->offload && job->salvage) {
        return "Cannot use copy offloading in salvaging mode";
    }
    if (job->target_image_opts && !job->no_create) {
        return "--target-image-opts requires use of -n flag";
    }
    if (job->target_is_zero && !job->no_create) {
        return "--target-is-zero requires use of -n flag";
    }
    if (job->args.image_opts && job->args.format) {
        return "--image-opts and --format are mutually exclusive";
    }
    if (job->skip_broken_bitmaps && !job->bitmaps) {
        return "Use of --skip-broken-bitmaps requires --bitmaps";
    }
    if (job->offload && job->compress) {
        return "Cannot enable copy offloading when -c is used";
    }
    if (job->offload && job->sparse_given) {
        return "Cannot enable copy offloading when -S is used";
    }
    if (job->no_create && job->option_text) {
        return "-o has no effect when skipping image creation";
    }
    return NULL;
}

static int parse_command_line(struct convert_job *job, const struct img_command *command, int argc, char **argv)
{
    const char *contradiction;
    int code;

    while ((code = next_option(command, argc, argv)) != -1) {
        if (take_option(job, command, code) != EXIT_SUCCESS) {
            return EXIT_FAILURE;
        }
    }
    if (job->options_help && !job->no_create) {
        return EXIT_SUCCESS;
    }
    if (argc - optind < 2) {
        error_report("Must specify image file name");
        return EXIT_FAILURE;
    }
    contradiction = find_contradiction(job);
    if (contradiction) {
        error_report("%s", contradiction);
        return EXIT_FAILURE;
    }
    job->source_count = (size_t)(argc - optind - 1);
    job->sources = memory_or_exit(calloc(job->source_count, sizeof(*job->sources)));
    for (size_t i = 0; i < job->source_count; i++) {
        job->sources[i].name = argv[optind++];
    }
    job->target_name = argv[optind];
    if (!job->target_format && !job->target_image_opts) {
        job->target_format = "raw";
    }
    return EXIT_SUCCESS;
}

static int convert(struct convert_job *job)
{
    int result;

    progress_print(0.0);
    result = convert_open_sources(job);
    if (result == EXIT_SUCCESS) {
        result = convert_prepare_target(job);
    }
    if (result == EXIT_SUCCESS && job->bitmaps) {
        result = check_bitmap_target(job->target);
    }
    if (result == EXIT_SUCCESS) {
        result = convert_copy(job);
    }
    if (result == EXIT_SUCCESS && job->bitmaps) {
        result = copy_bitmaps(job->sources[0].image, job->target);
    }
    /* NULL if there was an error before it was opened. */
    if (close_image(job->target) != EXIT_SUCCESS) {
        result = EXIT_FAILURE;
    }
    return result;
}

static int run_convert(const struct img_command *command, int argc, char **argv)
{
    struct convert_job job = {.sparse = DEFAULT_SPARSE_BYTES, .workers = 8};
    struct cache_mode cache;
    int result;

    cache_parse("unsafe", &job.target_spec.cache); /* a target that is lost half way is made anew */
    result = parse_command_line(&job, command, argc, argv);
    if (result == EXIT_SUCCESS && !job.sources) {
        result = create_options_print_help("", job.target_format ? job.target_format : "raw", argc - optind >= 2);
    } else if (result == EXIT_SUCCESS && job.source_cache && !cache_parse(job.source_cache, &cache)) {
        error_report("Invalid source cache option: %s", job.source_cache);
        result = EXIT_FAILURE;
    } else if (result == EXIT_SUCCESS) {
        progress_init(job.args.progress && !job.args.quiet);
        result = convert(&job);
        progress_end();
    }
    convert_close_sources(&job);
    image_spec_free(&job.target_spec);
    free(job.option_text);
    free(job.prefix);
    return result;
}

const struct img_command img_convert = {
    .name = "convert",
    .summary = "Copy an image into another",
    .operands = "SRC_FILENAME [SRC_FILENAME2...] TGT_FILENAME",
    .options =
        (const struct img_option[]){
            IMG_HELP,
            IMG_QUIET,
            IMG_PROGRESS,
            IMG_IMAGE_OPTS,
            IMG_SHARE,
            IMG_OBJECT,
            {'f', "source-format", "FMT", "format of the source, qcow2, luks or raw (default: look)"},
            {OPTION_IMAGE_OPTS, "source-image-opts", NULL, "the same as --image-opts"},
            {'T', "source-cache", "MODE", "cache mode of the source"},
            {'l', "source-snapshot", "SNAPSHOT", "copy this snapshot: an ID, a name, or snapshot.id=,snapshot.name="},
            {'O', "target-format", "FMT", "format of the target, qcow2, luks or raw (default: raw)"},
            {OPTION_TARGET_IMAGE_OPTS, "target-image-opts", NULL, "TGT_FILENAME is a list; needs -n"},
            {'o', "target-options", "KEY=VALUE,...", "options of the format; -o help lists them"},
            {'t', "target-cache", "MODE", "cache mode of the target (default: unsafe)"},
            {'c', "compress", NULL, "compress the clusters of the target"},
            {'B', "backing", "FILE", "the target holds what differs from this image, as the source does"},
            {'F', "backing-format", "FMT", "format of the image given with -B"},
            {'n', "no-create", NULL, "the target exists"},
            {OPTION_TARGET_IS_ZERO, "target-is-zero", NULL, "with -n: the target reads as zeroes"},
            {'S', "sparse-size", "BYTES", "so many zeroes in a row are a hole (default 4k; 0: no holes)"},
            {'m', "parallel", "COUNT", "threads that copy and compress, at most (default 8)"},
            {'W', "oob-writes", NULL, "clusters of the target need not be in the order of the disk"},
            {'C', "copy-range-offloading", NULL, "do not look for zeroes in data"},
            {'r', "rate", "RATE", "accepted for compatibility, without effect"},
            {OPTION_SALVAGE, "salvage", NULL, "what cannot be read becomes zeroes, with a warning"},
            {OPTION_BITMAPS, "bitmaps", NULL, "copy the dirty bitmaps, too"},
            {OPTION_SKIP_BROKEN_BITMAPS, "skip-broken-bitmaps", NULL,
             "with --bitmaps: leave out those that are broken"},
            IMG_END},
    .run = run_convert,
};
