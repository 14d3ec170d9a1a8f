/* NULL for every pointer of every function: an error with a text, or a documented meaning; never a crash.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

static const char *path;
static qcow2_image *image;

static int64_t open_without_path(void)
{
    qcow2_image *out;
    return qcow2_open(NULL, 0, NULL, &out);
}
static int64_t open_without_image(void)
{
    return qcow2_open(path, 0, NULL, NULL);
}
static int64_t open_fd_without_image(void)
{
    return qcow2_open_fd(0, 0, NULL, NULL);
}
static int64_t open_with_without_params(void)
{
    qcow2_image *out;
    return qcow2_open_with(NULL, &out);
}
static int64_t open_with_without_image(void)
{
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
    params.path = path;
    return qcow2_open_with(&params, NULL);
}
static int64_t open_with_nothing_named(void)
{
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
    qcow2_image *out;
    return qcow2_open_with(&params, &out);
}
static int64_t reopen(void)
{
    return qcow2_reopen(NULL, 0, NULL);
}
static int64_t clean_caches(void)
{
    return qcow2_clean_caches(NULL);
}
static int64_t pread_image(void)
{
    char byte;
    return qcow2_pread(NULL, &byte, 1, 0);
}
static int64_t pread_buffer(void)
{
    return qcow2_pread(image, NULL, 1, 0);
}
static int64_t pwrite_image(void)
{
    return qcow2_pwrite(NULL, "x", 1, 0);
}
static int64_t pwrite_buffer(void)
{
    return qcow2_pwrite(image, NULL, 1, 0);
}
static int64_t preadv_image(void)
{
    char byte;
    struct iovec one = {&byte, 1};
    return qcow2_preadv(NULL, &one, 1, 0);
}
static int64_t preadv_iov(void)
{
    return qcow2_preadv(image, NULL, 1, 0);
}
static int64_t preadv_base(void)
{
    struct iovec one = {NULL, 1};
    return qcow2_preadv(image, &one, 1, 0);
}
static int64_t pwritev_image(void)
{
    char byte = 0;
    struct iovec one = {&byte, 1};
    return qcow2_pwritev(NULL, &one, 1, 0);
}
static int64_t pwritev_iov(void)
{
    return qcow2_pwritev(image, NULL, 1, 0);
}
static int64_t pwritev_base(void)
{
    struct iovec one = {NULL, 1};
    return qcow2_pwritev(image, &one, 1, 0);
}
static int64_t pwritev2_image(void)
{
    char byte = 0;
    struct iovec one = {&byte, 1};
    return qcow2_pwritev2(NULL, &one, 1, 0, 0);
}
static int64_t pwritev2_iov(void)
{
    return qcow2_pwritev2(image, NULL, 1, 0, 0);
}
static int64_t write_zeroes(void)
{
    return qcow2_write_zeroes(NULL, 0, 512, 0);
}
static int64_t discard(void)
{
    return qcow2_discard(NULL, 0, 512);
}
static int64_t flush(void)
{
    return qcow2_flush(NULL);
}
static int64_t status_image(void)
{
    qcow2_extent e = {.struct_size = sizeof e};
    return qcow2_block_status(NULL, 0, 512, 0, &e);
}
static int64_t status_extent(void)
{
    return qcow2_block_status(image, 0, 512, 0, NULL);
}
static int64_t length(void)
{
    return qcow2_length(NULL);
}
static int64_t truncate_image(void)
{
    return qcow2_truncate(NULL, 512, 0);
}
static int64_t info_image(void)
{
    qcow2_info i = {.struct_size = sizeof i};
    return qcow2_get_info(NULL, &i);
}
static int64_t info_out(void)
{
    return qcow2_get_info(image, NULL);
}
static int64_t extension_image(void)
{
    qcow2_header_extension e = {.struct_size = sizeof e};
    return qcow2_get_header_extension(NULL, 0, &e);
}
static int64_t extension_out(void)
{
    return qcow2_get_header_extension(image, 0, NULL);
}
static int64_t bitmap_image(void)
{
    qcow2_bitmap_info b = {.struct_size = sizeof b};
    return qcow2_get_bitmap(NULL, 0, &b);
}
static int64_t snapshot_image(void)
{
    qcow2_snapshot_info s = {.struct_size = sizeof s};
    return qcow2_get_snapshot(NULL, 0, &s);
}
static int64_t check_image(void)
{
    qcow2_check_result r = {.struct_size = sizeof r};
    return qcow2_check(NULL, 0, &r, NULL, NULL, NULL, NULL);
}
static int64_t check_result(void)
{
    return qcow2_check(image, 0, NULL, NULL, NULL, NULL, NULL);
}
static int64_t findings_image(void)
{
    qcow2_check_result r = {.struct_size = sizeof r};
    return qcow2_check_findings(NULL, 0, &r, NULL, NULL, NULL, NULL);
}
static int64_t findings_result(void)
{
    return qcow2_check_findings(image, 0, NULL, NULL, NULL, NULL, NULL);
}
static int64_t snapshot_create_image(void)
{
    return qcow2_snapshot_create(NULL, "name", NULL);
}
static int64_t snapshot_create_name(void)
{
    return qcow2_snapshot_create(image, NULL, NULL);
}
static int64_t snapshot_apply_image(void)
{
    return qcow2_snapshot_apply(NULL, "1", NULL);
}
static int64_t snapshot_apply_which(void)
{
    return qcow2_snapshot_apply(image, NULL, NULL);
}
static int64_t snapshot_delete_image(void)
{
    return qcow2_snapshot_delete(NULL, "1", NULL);
}
static int64_t inactivate_image(void)
{
    return qcow2_inactivate(NULL);
}
static int64_t invalidate_image(void)
{
    return qcow2_invalidate(NULL, NULL);
}
static int64_t stream_image(void)
{
    return qcow2_stream(NULL, 0, 1, 0, 0, NULL, NULL);
}
static int64_t vmstate_write_image(void)
{
    return qcow2_vmstate_write(NULL, "x", 1, 0);
}
static int64_t vmstate_read_image(void)
{
    char byte;
    return qcow2_vmstate_read(NULL, &byte, 1, 0);
}
static int64_t snapshot_delete_which(void)
{
    return qcow2_snapshot_delete(image, NULL, NULL);
}
static int64_t commit(void)
{
    return qcow2_commit(NULL, 0, NULL, NULL);
}
static int64_t amend_image(void)
{
    return qcow2_amend(NULL, NULL, 0, NULL, NULL);
}
static int64_t amend_with_image(void)
{
    qcow2_amend_params params = QCOW2_AMEND_PARAMS_INIT;
    return qcow2_amend_with(NULL, &params);
}
static int64_t amend_with_params(void)
{
    return qcow2_amend_with(image, NULL);
}
static int64_t encryption_image(void)
{
    qcow2_encryption_info info = {.struct_size = sizeof info};
    return qcow2_get_encryption_info(NULL, 0, &info);
}
static int64_t encryption_out(void)
{
    return qcow2_get_encryption_info(image, 0, NULL);
}
static int64_t measure_format(void)
{
    return qcow2_measure_format("luks", MIB, NULL, NULL, NULL);
}
static int64_t change_backing_file(void)
{
    return qcow2_change_backing_file(NULL, NULL, NULL);
}
static int64_t rebase(void)
{
    return qcow2_rebase(NULL, NULL, NULL, NULL, 0, NULL, NULL);
}
static int64_t make_empty(void)
{
    return qcow2_make_empty(NULL);
}
static int64_t measure(void)
{
    return qcow2_measure(MIB, NULL, NULL, NULL);
}
static int64_t convert_source(void)
{
    return qcow2_convert(NULL, image, NULL, NULL, NULL);
}
static int64_t convert_target(void)
{
    return qcow2_convert(image, NULL, NULL, NULL, NULL);
}
static int64_t checksum_image(void)
{
    uint32_t crc;
    return qcow2_checksum(NULL, &crc, NULL, NULL);
}
static int64_t checksum_out(void)
{
    return qcow2_checksum(image, NULL, NULL, NULL);
}
static int64_t create(void)
{
    return qcow2_create(NULL, MIB, NULL);
}
static int64_t create_fd(void)
{
    return qcow2_create_fd(-1, MIB, NULL);
}
static int64_t create_io(void)
{
    return qcow2_create_io(NULL, NULL, MIB, NULL);
}
static int64_t create_io_required(void)
{
    qcow2_io_ops ops = {.struct_size = sizeof ops};
    return qcow2_create_io(&ops, NULL, MIB, NULL);
}
static int64_t option_list(void)
{
    return qcow2_option_list(QCOW2_SCOPE_OPEN, 0, NULL);
}
static int64_t check_open_option(void)
{
    return qcow2_check_open_option(NULL);
}

static const struct {
    const char *name;
    int64_t (*call)(void);
} cases[] = {
    {"open: path", open_without_path},
    {"open: image", open_without_image},
    {"open_fd: image", open_fd_without_image},
    {"open_with: params", open_with_without_params},
    {"open_with: image", open_with_without_image},
    {"open_with: path, fd and io", open_with_nothing_named},
    {"reopen: image", reopen},
    {"amend: image", amend_image},
    {"amend_with: image", amend_with_image},
    {"amend_with: params", amend_with_params},
    {"get_encryption_info: image", encryption_image},
    {"get_encryption_info: info", encryption_out},
    {"measure_format: result", measure_format},
    {"get_bitmap: image", bitmap_image},
    {"clean_caches: image", clean_caches},
    {"pread: image", pread_image},
    {"pread: buffer", pread_buffer},
    {"pwrite: image", pwrite_image},
    {"pwrite: buffer", pwrite_buffer},
    {"preadv: image", preadv_image},
    {"preadv: iov", preadv_iov},
    {"preadv: iov_base", preadv_base},
    {"pwritev: image", pwritev_image},
    {"pwritev: iov", pwritev_iov},
    {"pwritev: iov_base", pwritev_base},
    {"pwritev2: image", pwritev2_image},
    {"pwritev2: iov", pwritev2_iov},
    {"write_zeroes: image", write_zeroes},
    {"discard: image", discard},
    {"flush: image", flush},
    {"block_status: image", status_image},
    {"block_status: extent", status_extent},
    {"length: image", length},
    {"truncate: image", truncate_image},
    {"get_info: image", info_image},
    {"get_info: info", info_out},
    {"get_header_extension: image", extension_image},
    {"get_header_extension: extension", extension_out},
    {"get_snapshot: image", snapshot_image},
    {"check: image", check_image},
    {"check: result", check_result},
    {"check_findings: image", findings_image},
    {"check_findings: result", findings_result},
    {"commit: image", commit},
    {"snapshot create: image", snapshot_create_image},
    {"snapshot create: name", snapshot_create_name},
    {"snapshot apply: image", snapshot_apply_image},
    {"snapshot apply: which", snapshot_apply_which},
    {"snapshot delete: image", snapshot_delete_image},
    {"snapshot delete: which", snapshot_delete_which},
    {"inactivate: image", inactivate_image},
    {"invalidate: image", invalidate_image},
    {"stream: image", stream_image},
    {"vmstate_write: image", vmstate_write_image},
    {"vmstate_read: image", vmstate_read_image},
    {"change_backing_file: image", change_backing_file},
    {"rebase: image", rebase},
    {"make_empty: image", make_empty},
    {"measure: result", measure},
    {"convert: source", convert_source},
    {"convert: target", convert_target},
    {"checksum: image", checksum_image},
    {"checksum: crc", checksum_out},
    {"create: path", create},
    {"create_io: io", create_io},
    {"create_io: required functions", create_io_required},
    {"option_list: info", option_list},
    {"check_open_option: option", check_open_option},
};

int main(void)
{
    char byte = 'x';

    path = test_create("disk.qcow2", MIB, NULL);
    image = test_open(path, 0, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int64_t result = cases[i].call();

        if (result != -EINVAL) {
            test_fail(__FILE__, __LINE__, "%s: %" PRId64 ", expected -EINVAL", cases[i].name, result);
        }
        if (qcow2_last_error()[0] == '\0') {
            test_fail(__FILE__, __LINE__, "%s: no text", cases[i].name);
        }
    }
    CHECK_ERROR(create_fd(), EBADF);

    /* Where NULL has a meaning. */
    CHECK_EQ(qcow2_close(NULL), 0);
    CHECK_EQ(qcow2_pread(image, NULL, 0, 0), 0);
    CHECK_EQ(qcow2_pwrite(image, NULL, 0, 0), 0);
    CHECK_EQ(qcow2_preadv(image, NULL, 0, 0), 0);
    CHECK_EQ(qcow2_pwritev(image, NULL, 0, 0), 0);
    struct iovec mixed[] = {{NULL, 0}, {&byte, 1}, {NULL, 0}};
    CHECK_EQ(qcow2_pwritev(image, mixed, 3, 0), 1);
    CHECK_EQ(qcow2_preadv(image, mixed, 3, 0), 1);
    CHECK(qcow2_last_error() != NULL);
    CHECK(qcow2_version() != NULL);

    /* A failed open leaves no handle behind, so that closing it anyway is harmless. */
    qcow2_image *none = image;
    CHECK_ERROR(qcow2_open(test_path("missing"), 0, NULL, &none), ENOENT);
    CHECK(none == NULL);

    test_close(image);
    return 0;
}
