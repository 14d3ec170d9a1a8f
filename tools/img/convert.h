/* What the files of `convert` share.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef QCOW2_TOOLS_CONVERT_H
#define QCOW2_TOOLS_CONVERT_H

#include "img.h"

struct convert_source {
    const char *name;
    struct image_spec spec;
    qcow2_image *image;
    uint64_t start, length; /* of its disk in the target */
};

struct convert_job {
    struct image_args args; /* of the sources */
    struct convert_source *sources;
    size_t source_count;
    const char *target_name;
    const char *source_cache, *target_cache;
    const char *target_format;
    const char *backing_file, *backing_format;
    char *option_text; /* all -o, joined */
    char *prefix;      /* of messages about making the target */
    bool options_help, no_create, target_image_opts, compress, offload, sparse_given, has_backing, salvage;
    bool target_is_zero; /* said, or known of a new one */
    bool bitmaps, skip_broken_bitmaps;
    const char *snapshot; /* of the source, as given */
    int64_t sparse, workers;
    struct image_spec target_spec;
    qcow2_image *target;
    uint64_t size;  /* of the sources together */
    uint64_t flags; /* QCOW2_CONVERT_* */
};

/* Each: 0, or 1 after a message. */
int convert_open_sources(struct convert_job *job);
void convert_close_sources(struct convert_job *job);
/* Makes the target unless there is one, and opens it. */
int convert_prepare_target(struct convert_job *job);
int convert_copy(struct convert_job *job);

#endif
