/* The sources of convert, and the copy.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "convert.h"

#define SECTOR_BYTES 512

/* More threads than two for each processor cost memory and gain nothing. */
static uint32_t useful_workers(int64_t wanted)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    int64_t most = processors > 0 ? 2 * processors : 2;

    return (uint32_t)(wanted < most ? wanted : most);
}

static int open_source(struct convert_job *job, struct convert_source *source)
{
    int64_t size;

    if (set_cache(&source->spec, job->source_cache, "Invalid source cache option") != EXIT_SUCCESS ||
        !open_image(&job->args, source->name, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED, &source->spec,
                    &source->image)) {
        return EXIT_FAILURE;
    }
    size = qcow2_length(source->image);
    if (size < 0) {
        error_report("Could not get size of %s: %s", source->name, strerror((int)-size));
        return EXIT_FAILURE;
    }
    source->start = job->size;
    source->length = (uint64_t)size;
    /* The next one begins at a sector. */
    job->size +=
        job->source_count > 1 ? (source->length + SECTOR_BYTES - 1) / SECTOR_BYTES * SECTOR_BYTES : source->length;
    return EXIT_SUCCESS;
}

int convert_open_sources(struct convert_job *job)
{
    if (job->bitmaps && job->source_count > 1) {
        error_report("Copying bitmaps only possible with single source");
        return EXIT_FAILURE;
    }
    for (size_t i = 0; i < job->source_count; i++) {
        if (open_source(job, &job->sources[i]) != EXIT_SUCCESS) {
            return EXIT_FAILURE;
        }
    }
    if (job->snapshot && job->source_count > 1 && strncmp(job->snapshot, "snapshot.", 9) != 0) {
        error_report("No support for concatenating multiple snapshot");
        return EXIT_FAILURE;
    }
    if (job->snapshot) {
        struct convert_source *source = &job->sources[0];

        if (open_snapshot(&source->spec, job->snapshot, &source->image) != EXIT_SUCCESS) {
            return EXIT_FAILURE;
        }
        source->length = job->size = (uint64_t)qcow2_length(source->image);
    }
    return job->bitmaps ? check_bitmaps(job->sources[0].image, job->skip_broken_bitmaps) : EXIT_SUCCESS;
}

void convert_close_sources(struct convert_job *job)
{
    for (size_t i = 0; i < job->source_count; i++) {
        qcow2_close(job->sources[i].image);
        image_spec_free(&job->sources[i].spec);
    }
    free(job->sources);
}

static void warn_lost(void *opaque, int kind, const char *text)
{
    const struct convert_job *job = opaque;

    (void)kind;
    if (!job->args.quiet) {
        warn_report("%s", text);
    }
}

static qcow2_convert_params copy_params(struct convert_job *job)
{
    qcow2_convert_params params = {.struct_size = sizeof(params), .flags = job->flags};

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
    if (job->salvage) {
        params.flags |= QCOW2_CONVERT_SALVAGE;
    }
    params.message = warn_lost;
    params.message_opaque = job;
    return params;
}

int convert_copy(struct convert_job *job)
{
    qcow2_convert_params params = copy_params(job);

    for (size_t i = 0; i < job->source_count; i++) {
        const struct convert_source *source = &job->sources[i];

        params.target_offset = source->start;
        if (job->source_count > 1) {
            progress_part(source->start, job->size);
        }
        if (qcow2_convert(source->image, job->target, &params, progress_update, NULL) < 0) {
            error_report("%s", failure_text());
            return EXIT_FAILURE;
        }
    }
    progress_print(100.0); /* the stock tool says twice that it is done */
    return EXIT_SUCCESS;
}
