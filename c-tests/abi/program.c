/* A program of yesterday: built with an older header (abi.sh), it must run with the library of today. It is not changed
   when the library is.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <qcow2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                               \
    ((condition) ? (void)0 : (fprintf(stderr, "line %d: %s (%s)\n", __LINE__, #condition, qcow2_last_error()), exit(1)))

/* What the library writes into a struct ends where this program's struct does. */
#define GUARDED(type, name)                                                                                            \
    struct {                                                                                                           \
        type it;                                                                                                       \
        unsigned char guard[64];                                                                                       \
    } name;                                                                                                            \
    memset(&name, 0xa5, sizeof name);                                                                                  \
    memset(&name.it, 0, sizeof name.it);                                                                               \
    name.it.struct_size = sizeof name.it
#define INTACT(name) (name.guard[0] == 0xa5 && memcmp(name.guard, name.guard + 1, sizeof name.guard - 1) == 0)

static int asked;

static int resolve(void *opaque, const qcow2_resolve_request *request, qcow2_resolve_answer *answer)
{
    asked++;
    CHECK(request->struct_size >= sizeof *request && answer->struct_size >= sizeof *answer);
    CHECK(request->kind == QCOW2_NODE_BACKING && request->depth == 1 && strcmp(request->format, "qcow2") == 0);
    answer->path = opaque;
    return 0;
}

static int on_progress(void *opaque, uint64_t done, uint64_t total)
{
    CHECK(done <= total);
    ++*(int *)opaque;
    return 0;
}

static void look(qcow2_image *image)
{
    GUARDED(qcow2_info, info);
    GUARDED(qcow2_extent, extent);
    GUARDED(qcow2_check_result, check);
    GUARDED(qcow2_snapshot_info, snapshot);
    qcow2_snapshot_options options = QCOW2_SNAPSHOT_OPTIONS_INIT;
    int calls = 0;

    CHECK(qcow2_get_info(image, &info.it) == 0 && INTACT(info));
    CHECK(info.it.virtual_size == 1 << 26 && info.it.version == 3 && info.it.cluster_bits == 16);
    CHECK(info.it.refcount_bits == 16 && strcmp(info.it.backing_format, "qcow2") == 0 && info.it.backing_depth == 1);
    CHECK(info.it.read_only == 0 && info.it.dirty == 0 && info.it.descriptor >= 0);
    CHECK(qcow2_block_status(image, 1 << 20, 1 << 20, 0, &extent.it) == 0 && INTACT(extent));
    CHECK(extent.it.length == 1 << 16 && extent.it.depth == 0);
    CHECK(extent.it.flags == (QCOW2_EXTENT_DATA | QCOW2_EXTENT_ALLOCATED | QCOW2_EXTENT_HOST_OFFSET));
    options.date_seconds = 1234567890;
    CHECK(qcow2_snapshot_create(image, "before", &options) == 0);
    CHECK(qcow2_get_snapshot(image, 0, &snapshot.it) == 0 && INTACT(snapshot));
    CHECK(strcmp(snapshot.it.name, "before") == 0 && snapshot.it.date_seconds == 1234567890);
    CHECK(snapshot.it.disk_size == 1 << 26 && snapshot.it.icount == UINT64_MAX);
    CHECK(qcow2_check(image, 0, &check.it, NULL, NULL, on_progress, &calls) == 0 && INTACT(check) && calls > 0);
    CHECK(check.it.corruptions == 0 && check.it.leaks == 0 && check.it.total_clusters == 1 << 10);
    CHECK(check.it.allocated_clusters == 1 && check.it.image_end_offset > 0);
}

static void copy(qcow2_image *image, const char *path)
{
    qcow2_convert_params how = {.struct_size = sizeof how, .flags = QCOW2_CONVERT_TARGET_ZERO, .workers = 1};
    GUARDED(qcow2_compare_result, compared);
    GUARDED(qcow2_measure_result, measured);
    qcow2_image *other;

    CHECK(qcow2_measure(0, NULL, image, &measured.it) == 0 && INTACT(measured));
    CHECK(measured.it.required_bytes > 0 && measured.it.fully_allocated_bytes > 1 << 26);
    CHECK(qcow2_create(path, 1 << 26, NULL) == 0 && qcow2_open(path, 0, NULL, &other) == 0);
    CHECK(qcow2_convert(image, other, &how, NULL, NULL) == 0);
    CHECK(qcow2_compare(image, other, 0, &compared.it, NULL, NULL) == 0 && INTACT(compared));
    CHECK(compared.it.verdict == QCOW2_COMPARE_SAME && qcow2_close(other) == 0);
}

static void fail(qcow2_image *image)
{
    GUARDED(qcow2_error_detail, detail);
    GUARDED(qcow2_option_info, option);
    char byte;

    CHECK(qcow2_pread(image, &byte, 1, 1 << 26) == -EIO);
    CHECK(qcow2_last_error_detail(&detail.it) == 0 && INTACT(detail));
    CHECK(detail.it.result == -EIO && detail.it.kind == QCOW2_ERROR_PAST_END && *detail.it.summary != '\0');
    CHECK(qcow2_open("/nonexistent/disk", 0, NULL, &image) == -ENOENT && image == NULL);
    CHECK(qcow2_option_list(QCOW2_SCOPE_OPEN, 0, &option.it) == 0 && INTACT(option));
    CHECK(option.it.scope == QCOW2_SCOPE_OPEN && *option.it.name != '\0' && *option.it.help != '\0');
}

int main(int argc, char **argv)
{
    char base[4096], top[4096], other[4096], record[4200], out[512], in[512];
    const char *create_options[] = {"backing_fmt=qcow2", record, NULL};
    const char *open_options[] = {"cache=writethrough", NULL};
    qcow2_create_params create = QCOW2_CREATE_PARAMS_INIT;
    qcow2_open_params open = QCOW2_OPEN_PARAMS_INIT;
    struct iovec parts[2] = {{out, 100}, {out + 100, 412}};
    qcow2_image *image;

    if (argc != 2) {
        return 2;
    }
    snprintf(base, sizeof base, "%s/base.qcow2", argv[1]);
    snprintf(top, sizeof top, "%s/top.qcow2", argv[1]);
    snprintf(other, sizeof other, "%s/other.qcow2", argv[1]);
    snprintf(record, sizeof record, "backing_file=%s", base);
    memset(out, 'o', sizeof out);
    CHECK(qcow2_create(base, 1 << 26, NULL) == 0);
    create.path = top;
    create.options = create_options;
    CHECK(qcow2_create_with(&create) == 0 && qcow2_probe(top) == 1);
    open.path = top;
    open.options = open_options;
    open.resolve = resolve;
    open.resolve_opaque = base;
    CHECK(qcow2_open_with(&open, &image) == 0 && asked == 1 && qcow2_length(image) == 1 << 26);
    CHECK(qcow2_pwritev(image, parts, 2, 1 << 20) == 512 && qcow2_flush(image) == 0);
    CHECK(qcow2_pread(image, in, 512, 1 << 20) == 512 && memcmp(in, out, 512) == 0);
    look(image);
    copy(image, other);
    CHECK(qcow2_discard(image, 1 << 20, 1 << 16) == 0 && qcow2_write_zeroes(image, 0, 1 << 20, QCOW2_REQ_UNMAP) == 0);
    fail(image);
    CHECK(qcow2_close(image) == 0);
    printf("library %s\n", qcow2_version());
    return 0;
}
