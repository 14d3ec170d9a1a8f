/* qcow2-img map.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"
#include "node.h"

enum { OPTION_PICTURE = OPTION_OWN };

struct map_entry {
    uint64_t start;
    qcow2_extent extent;
};

struct map_output {
    bool json;
    bool any;
    struct chain chain;
    const struct node_tree *tree;
    char *top_name; /* of what the image is on, where that is no file; or NULL */
};

static const char *truth(bool value)
{
    return value ? "true" : "false";
}

static void print_json_entry(struct map_output *output, const struct map_entry *entry)
{
    uint32_t flags = entry->extent.flags;

    printf("%s{ \"start\": %llu, \"length\": %llu, \"depth\": %d, \"present\": %s, \"zero\": %s, \"data\": %s,"
           " \"compressed\": %s",
           output->any ? ",\n" : "", (unsigned long long)entry->start, (unsigned long long)entry->extent.length,
           (int)entry->extent.depth, truth(flags & QCOW2_EXTENT_ALLOCATED), truth(flags & QCOW2_EXTENT_ZERO),
           truth(flags & QCOW2_EXTENT_DATA), truth(flags & QCOW2_EXTENT_COMPRESSED));
    if (flags & QCOW2_EXTENT_HOST_OFFSET) {
        printf(", \"offset\": %llu", (unsigned long long)entry->extent.host_offset);
    }
    putchar('}');
    output->any = true;
}

static const char *layer_name(struct map_output *output, size_t depth)
{
    if (depth == 0 && output->top_name) {
        return output->top_name;
    }
    return chain_reach(&output->chain, depth) ? output->chain.data_names.items[depth] : "?";
}

static bool print_human_entry(struct map_output *output, const struct map_entry *entry)
{
    uint32_t flags = entry->extent.flags;
    size_t depth = (size_t)entry->extent.depth;

    if (!(flags & QCOW2_EXTENT_DATA) || (flags & QCOW2_EXTENT_ZERO)) {
        return true;
    }
    if (!(flags & QCOW2_EXTENT_HOST_OFFSET)) {
        error_report("File contains external, encrypted or compressed clusters.");
        return false;
    }
    printf("%#-16llx%#-16llx%#-16llx%s\n", (unsigned long long)entry->start, (unsigned long long)entry->extent.length,
           (unsigned long long)entry->extent.host_offset, layer_name(output, depth));
    return true;
}

static bool print_entry(struct map_output *output, const struct map_entry *entry)
{
    if (!output->json) {
        return print_human_entry(output, entry);
    }
    print_json_entry(output, entry);
    return true;
}

/* The library merges as far as it looks at once; entries that meet are still one. */
static bool merge(struct map_entry *into, const qcow2_extent *next)
{
    qcow2_extent *extent = &into->extent;

    if (extent->length == 0 || extent->flags != next->flags || extent->depth != next->depth) {
        return false;
    }
    if ((next->flags & QCOW2_EXTENT_HOST_OFFSET) && extent->host_offset + extent->length != next->host_offset) {
        return false;
    }
    extent->length += next->length;
    return true;
}

static int print_map(qcow2_image *image, struct map_output *output, uint64_t start, uint64_t max_length)
{
    struct map_entry current = {.start = start};
    uint64_t at = start, end = (uint64_t)qcow2_length(image);

    if (max_length < end && start < end - max_length) {
        end = start + max_length;
    }
    if (output->json) {
        putchar('[');
    } else {
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
    }
    while (at < end) {
        qcow2_extent extent = {.struct_size = sizeof(extent)};

        int result = qcow2_block_status(image, at, end - at, 0, &extent);

        if (result < 0 || extent.length == 0) {
            error_report("Could not read file metadata: %s", strerror(-result));
            return EXIT_FAILURE;
        }
        if (!node_tells_offsets(output->tree, extent.depth)) {
            extent.flags &= ~(uint32_t)QCOW2_EXTENT_HOST_OFFSET;
        }
        if (!merge(&current, &extent)) {
            if (current.extent.length && !print_entry(output, &current)) {
                return EXIT_FAILURE;
            }
            current = (struct map_entry){.start = at, .extent = extent};
        }
        at += extent.length;
    }
    if (!print_entry(output, &current)) {
        return EXIT_FAILURE;
    }
    if (output->json) {
        puts("]");
    }
    return EXIT_SUCCESS;
}

static int run_map(const struct img_command *command, int argc, char **argv)
{
    struct image_args args = {0};
    struct image_spec spec = {0};
    struct map_output output = {0};
    qcow2_image *image = NULL;
    int64_t start = 0, max_length = INT64_MAX;
    const char *name;
    bool picture = false;
    int code, result = EXIT_FAILURE;

    while ((code = next_option(command, argc, argv)) != -1) {
        if (code == 's' && !parse_bytes(optarg, "start offset", &start)) {
            return EXIT_FAILURE;
        }
        if (code == 'l' && !parse_bytes(optarg, "max length", &max_length)) {
            return EXIT_FAILURE;
        }
        picture = picture || code == OPTION_PICTURE;
        if (code != 's' && code != 'l') {
            take_image_option(&args, command, code);
        }
    }
    name = one_file_name(&args, command, argc, argv);
    if (name && open_image(&args, name, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED, &spec, &image)) {
        output.tree = spec.tree;
        output.top_name = name_below(spec.tree->root);
        output.json = args.json;
        chain_init(&output.chain, spec.path, spec.format);
        result = picture ? print_picture(image) : print_map(image, &output, (uint64_t)start, (uint64_t)max_length);
        chain_free(&output.chain);
        if (close_image(image) != EXIT_SUCCESS) {
            result = EXIT_FAILURE;
        }
    }
    free(output.top_name);
    image_spec_free(&spec);
    return result;
}

const struct img_command img_map = {
    .name = "map",
    .summary = "Show where an image keeps its data",
    .operands = "FILENAME",
    .options = (const struct img_option[]){IMG_HELP,
                                           IMG_FORMAT,
                                           IMG_IMAGE_OPTS,
                                           IMG_OUTPUT,
                                           IMG_SHARE,
                                           IMG_OBJECT,
                                           {'s', "start-offset", "OFFSET", "first byte of the disk to look at"},
                                           {'l', "max-length", "LENGTH", "how many bytes of the disk to look at"},
                                           {OPTION_PICTURE, "picture", NULL, "draw the whole of it, as SVG"},
                                           IMG_END},
    .run = run_map,
};
