/* qcow2-img convert.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "img.h"

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

struct convert_job {
    struct image_args args; /* of the source */
    const char *source_name, *target_name;
    const char *source_cache, *target_cache;
    const char *target_format;
    const char *backing_file, *backing_format;
    char *option_text; /* all -o, joined */
    char *prefix;      /* of messages about making the target */
    bool options_help, no_create, target_image_opts, compress, offload, sparse_given, has_backing;
    bool target_is_zero; /* said, or known of a new one */
    bool bitmaps, skip_broken_bitmaps;
    const char *snapshot; /* of the source, as given */
    int64_t sparse, workers;
    struct image_spec source_spec, target_spec;
    qcow2_image *source, *target;
    uint64_t size;  /* of the source */
    uint64_t flags; /* QCOW2_CONVERT_* */
    double progress;
    bool progress_shown;
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

/* More threads than two for each processor cost memory and gain nothing. */
static uint32_t useful_workers(int64_t wanted)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    int64_t most = processors > 0 ? 2 * processors : 2;

    return (uint32_t)(wanted < most ? wanted : most);
}

static int parse_coroutines(struct convert_job *job, const char *text)
{
    int64_t number = 0;
    int result = parse_size_i64(text, &number);

    job->workers = number;
    if (result == 0 && number >= 1 && number <= MAX_COROUTINES) {
        return EXIT_SUCCESS;
    }
    if (result == 0 || number < 0) {
        error_report("Invalid number of coroutines specified. Must be between 1 and %d.", MAX_COROUTINES);
    } else {
        error_report("Invalid number of coroutines specified: '%s'.", text);
    }
    return EXIT_FAILURE;
}

static int unsupported(const char *option)
{
    error_report("convert %s is not supported yet", option);
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
    case 'm': return parse_coroutines(job, optarg);
    case 'n': job->no_create = true; break;
    case 'o':
        job->options_help = job->options_help || options_ask_help(optarg);
        return create_options_join(&job->option_text, optarg);
    case 'r': return parse_bytes(optarg, "rate limit", &rate) ? EXIT_SUCCESS : EXIT_FAILURE;
    case 't': job->target_cache = optarg; break;
    case OPTION_TARGET_IMAGE_OPTS: job->target_image_opts = true; break;
    case OPTION_TARGET_IS_ZERO: job->target_is_zero = true; break;
    case OPTION_SALVAGE: return unsupported("--salvage");
    case OPTION_BITMAPS: job->bitmaps = true; break;
    case OPTION_SKIP_BROKEN_BITMAPS: job->skip_broken_bitmaps = true; break;
    default: take_image_option(&job->args, command, code);
    }
    return EXIT_SUCCESS;
}

/* What is wrong with the options taken together, or NULL. */
static const char *find_contradiction(const struct convert_job *job)
{
    if (job->target_is_zero && !job->no_create) {
        return "--target-is-zero requires use of -n flag";
    }
    if (job->target_image_opts && !job->no_create) {
        return "--target-image-opts requires use of -n flag";
    }
    if ((job->args.image_opts && job->args.format) || (job->target_image_opts && job->target_format)) {
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
    if (argc - optind > 2) {
        return unsupported("of several images into one");
    }
    job->source_name = argv[optind];
    job->target_name = argv[optind + 1];
    if (!job->target_format && !job->target_image_opts) {
        job->target_format = "raw";
    }
    return EXIT_SUCCESS;
}

/* The options of a new image, with -B and -F: 0, or 1 after a message. */
static int prepare_options(struct convert_job *job, struct create_options *options)
{
    struct create_option *file, *format, *preallocation;

    if (job->option_text && create_options_parse(options, "", job->option_text) != EXIT_SUCCESS) {
        return EXIT_FAILURE;
    }
    file = create_option_find(options, "backing_file");
    format = create_option_find(options, "backing_fmt");
    if ((job->backing_file && !file) || (job->backing_format && !format)) {
        error_report("Backing file %snot supported for file format '%s'", job->backing_file && !file ? "" : "format ",
                     job->target_format);
        return EXIT_FAILURE;
    }
    if (job->backing_file) {
        create_option_set(file, job->backing_file);
    }
    if (job->backing_format) {
        create_option_set(format, job->backing_format);
    }
    job->has_backing = file && file->text;
    if (job->has_backing && !format->text) {
        error_report("Use of backing file requires explicit backing format");
        return EXIT_FAILURE;
    }
    if (!job->compress) {
        return EXIT_SUCCESS;
    }
    if (!options->qcow2) {
        error_report("Compression not supported for this file format");
        return EXIT_FAILURE;
    }
    preallocation = create_option_find(options, "preallocation");
    if (preallocation && preallocation->text && strcmp(preallocation->text, "off") != 0) {
        error_report("Compression and preallocation not supported at the same time");
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

static int create_target(struct convert_job *job)
{
    struct create_options options;
    struct image_spec named = {0};
    char *error = NULL;
    int result = EXIT_FAILURE;

    if (!create_options_init(&options, job->target_format, true)) {
        error_report("Unknown file format '%s'", job->target_format);
        return EXIT_FAILURE;
    }
    if (strncmp(job->target_name, "json:", 5) == 0) {
        error_report("Unknown protocol 'json'");
    } else if (*job->target_name && image_from_name(&named, job->target_name, "raw", false, &error) < 0) {
        error_report("%s", error);
    } else {
        result = prepare_options(job, &options);
    }
    if (result == EXIT_SUCCESS) {
        result = set_cache(&job->target_spec, job->target_cache, "Invalid cache option");
    }
    if (result == EXIT_SUCCESS) {
        job->prefix = text_format("%s: error while converting %s: ", job->target_name, job->target_format);
        result = create_image_file(&options, job->prefix, named.path ? named.path : "", (int64_t)job->size);
        job->target_is_zero = options.qcow2 || !named.path || !file_is_device(named.path);
    }
    free(error);
    image_spec_free(&named);
    create_options_free(&options);
    return result;
}

/* 0, or 1 after a message. */
static int check_compression(struct convert_job *job)
{
    qcow2_info info;

    if (!image_info(job->target, &info)) {
        return EXIT_FAILURE;
    }
    if (!info.version) {
        error_report("Compression not supported for this file format");
        return EXIT_FAILURE;
    }
    job->flags |= QCOW2_CONVERT_COMPRESSED;
    return EXIT_SUCCESS;
}

/* Opens the target, after making it unless there is one. */
static int prepare_target(struct convert_job *job)
{
    struct image_args args = {.format = job->target_format, .image_opts = job->target_image_opts};

    if (!job->no_create) {
        if (create_target(job) != EXIT_SUCCESS) {
            return EXIT_FAILURE;
        }
    } else {
        job->has_backing = job->backing_file;
        if (set_cache(&job->target_spec, job->target_cache, "Invalid cache option") != EXIT_SUCCESS) {
            return EXIT_FAILURE;
        }
    }
    if (!open_image(&args, job->target_name, QCOW2_OPEN_ALLOW_RECORDED, &job->target_spec, &job->target)) {
        return EXIT_FAILURE;
    }
    if (job->compress && check_compression(job) != EXIT_SUCCESS) {
        return EXIT_FAILURE;
    }
    if (qcow2_length(job->target) < (int64_t)job->size) {
        error_report("output file is smaller than input file");
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

static int open_source(struct convert_job *job)
{
    int64_t size;

    if (set_cache(&job->source_spec, job->source_cache, "Invalid source cache option") != EXIT_SUCCESS ||
        !open_image(&job->args, job->source_name, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED, &job->source_spec,
                    &job->source)) {
        return EXIT_FAILURE;
    }
    if (job->snapshot && open_snapshot(&job->source_spec, job->snapshot, &job->source) != EXIT_SUCCESS) {
        return EXIT_FAILURE;
    }
    if (job->bitmaps && check_bitmaps(job->source, job->skip_broken_bitmaps) != EXIT_SUCCESS) {
        return EXIT_FAILURE;
    }
    size = qcow2_length(job->source);
    if (size < 0) {
        error_report("Could not get size of %s: %s", job->source_name, strerror((int)-size));
        return EXIT_FAILURE;
    }
    job->size = (uint64_t)size;
    return EXIT_SUCCESS;
}

static int copy_contents(struct convert_job *job)
{
    qcow2_convert_params params = {.struct_size = sizeof(params), .flags = job->flags};
    bool progress = job->args.progress && !job->args.quiet;
    int result;

    params.workers = useful_workers(job->workers);
    params.sparse_bytes = job->offload ? 0 : (uint64_t)job->sparse;
    if (job->sparse == 0) {
        params.flags |= QCOW2_CONVERT_ALLOCATE;
    }
    if (job->has_backing) {
        params.flags |= QCOW2_CONVERT_TOP_ONLY;
    }
    if (job->target_is_zero && (job->no_create || !job->has_backing)) {
        params.flags |= QCOW2_CONVERT_TARGET_ZERO;
    }
    if (progress) {
        print_progress(&job->progress, 0, 1);
    }
    result = qcow2_convert(job->source, job->target, &params, progress ? print_progress : NULL, &job->progress);
    if (result < 0) {
        error_report("%s", failure_text());
    }
    job->progress = -1.0; /* the stock tool says twice that it is done */
    if (progress && result == 0) {
        print_progress(&job->progress, 1, 1);
    }
    if (progress) {
        job->progress_shown = true;
    }
    return result == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

static int convert(struct convert_job *job)
{
    int result = open_source(job);

    if (result == EXIT_SUCCESS) {
        result = prepare_target(job);
    }
    if (result == EXIT_SUCCESS && job->bitmaps) {
        result = check_bitmap_target(job->target);
    }
    if (result == EXIT_SUCCESS) {
        result = copy_contents(job);
    }
    if (result == EXIT_SUCCESS && job->bitmaps) {
        result = copy_bitmaps(job->source, job->target);
    }
    /* NULL if there was an error before it was opened. */
    if (close_image(job->target) != EXIT_SUCCESS) {
        result = EXIT_FAILURE;
    }
    qcow2_close(job->source);
    if (job->progress_shown) {
        putchar('\n');
    }
    return result;
}

static int run_convert(const struct img_command *command, int argc, char **argv)
{
    struct convert_job job = {.sparse = DEFAULT_SPARSE_BYTES, .workers = 8, .progress = -1.0};
    int result;

    cache_parse("unsafe", &job.target_spec.cache); /* a target that is lost half way is made anew */
    result = parse_command_line(&job, command, argc, argv);
    if (result == EXIT_SUCCESS && !job.source_name) {
        result = create_options_print_help(job.target_format ? job.target_format : "raw", argc - optind >= 2);
    } else if (result == EXIT_SUCCESS) {
        result = convert(&job);
    }
    image_spec_free(&job.source_spec);
    image_spec_free(&job.target_spec);
    free(job.option_text);
    free(job.prefix);
    return result;
}

const struct img_command img_convert = {
    .name = "convert",
    .summary = "Copy an image into another",
    .operands = "SRC_FILENAME TGT_FILENAME",
    .options =
        (const struct img_option[]){
            IMG_HELP,
            IMG_QUIET,
            IMG_PROGRESS,
            IMG_IMAGE_OPTS,
            IMG_SHARE,
            IMG_OBJECT,
            {'f', "source-format", "FMT", "format of the source, qcow2 or raw (default: look)"},
            {OPTION_IMAGE_OPTS, "source-image-opts", NULL, "the same as --image-opts"},
            {'T', "source-cache", "MODE", "cache mode of the source"},
            {'l', "source-snapshot", "SNAPSHOT", "copy this snapshot: an ID, a name, or snapshot.id=,snapshot.name="},
            {'O', "target-format", "FMT", "format of the target, qcow2 or raw (default: raw)"},
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
            {OPTION_SALVAGE, "salvage", NULL, "not supported yet"},
            {OPTION_BITMAPS, "bitmaps", NULL, "copy the dirty bitmaps, too"},
            {OPTION_SKIP_BROKEN_BITMAPS, "skip-broken-bitmaps", NULL,
             "with --bitmaps: leave out those that are broken"},
            IMG_END},
    .run = run_convert,
};
