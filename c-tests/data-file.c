/* An external data file: made and opened behind the permission, by path, descriptor or callbacks; guest data is in it at
   its own offset, and a raw one shows the disk to whoever reads it alone.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <fcntl.h>
#include <sys/stat.h>

#define CLUSTER 65536

/* What the file itself holds. */
static void expect_file(const char *path, uint64_t offset, uint64_t length, int value)
{
    unsigned char *bytes = malloc(length);

    CHECK(bytes != NULL);
    test_file_read(path, bytes, length, offset);
    CHECK_FILLED(bytes, length, value);
    free(bytes);
}

static qcow2_extent extent_at(qcow2_image *image, uint64_t offset)
{
    qcow2_extent extent = {.struct_size = sizeof extent};

    CHECK_OK(qcow2_block_status(image, offset, qcow2_length(image) - offset, 0, &extent));
    return extent;
}

static void opens_with_permission_only(const char *image_path, const char *data_path)
{
    qcow2_image *image;
    struct stat before, after;

    CHECK(stat(data_path, &before) == 0);
    CHECK_ERROR(qcow2_open(image_path, 0, NULL, &image), EPERM);
    CHECK_TEXT("data file");
    /* Looks at the header need no data file. */
    image = test_open(image_path, QCOW2_OPEN_METADATA_ONLY | QCOW2_OPEN_READ_ONLY, NULL);
    CHECK(strcmp(test_info(image).data_file, data_path) == 0);
    CHECK_EQ(test_info(image).data_file_raw, 0);
    test_close(image);
    CHECK(stat(data_path, &after) == 0);
    CHECK_EQ(before.st_atim.tv_nsec, after.st_atim.tv_nsec);

    image = test_open(image_path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    qcow2_image *second;
    const char *option[] = {NULL, NULL};
    char named[4200];
    /* One writer, whichever of the two files somebody else comes by. */
    CHECK_ERROR(qcow2_open(data_path, QCOW2_OPEN_RAW, NULL, &second), EAGAIN);
    test_close(image);
    /* An option of the caller needs no permission, and goes before the name. */
    snprintf(named, sizeof named, "data-file=%s", data_path);
    option[0] = named;
    CHECK_OK(qcow2_open(image_path, 0, option, &image));
    test_close(image);
    CHECK_ERROR(qcow2_open(test_create("plain.qcow2", MIB, NULL), 0, option, &image), EINVAL);
    CHECK_TEXT("data-file");

    /* Missing: one clear error, and the image is as it was. */
    uint64_t digest = test_digest(image_path);
    const char *away = test_path("away");
    CHECK(rename(data_path, away) == 0);
    CHECK_ERROR(qcow2_open(image_path, QCOW2_OPEN_ALLOW_RECORDED, NULL, &image), ENOENT);
    CHECK_TEXT("Could not open");
    CHECK_EQ(test_digest(image_path), digest);
    CHECK(rename(away, data_path) == 0);
    /* The image as its own data file. */
    snprintf(named, sizeof named, "data-file=%s", image_path);
    CHECK_ERROR(qcow2_open(image_path, 0, option, &image), ELOOP);
}

static void serves_guest_data(const char *image_path, const char *data_path)
{
    qcow2_image *image = test_open(image_path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    qcow2_extent extent;

    test_fill(image, 3 * CLUSTER, CLUSTER, 7);
    test_fill(image, CLUSTER / 2, 512, 8);
    expect_file(data_path, 3 * CLUSTER, CLUSTER, 7);
    expect_file(data_path, CLUSTER / 2, 512, 8);
    extent = extent_at(image, 3 * CLUSTER);
    CHECK_EQ(extent.host_offset, 3 * CLUSTER);
    CHECK(extent.flags & QCOW2_EXTENT_IN_DATA_FILE);
    CHECK(extent.flags & QCOW2_EXTENT_DATA);
    CHECK(!(extent_at(image, 2 * CLUSTER).flags & QCOW2_EXTENT_IN_DATA_FILE));

    CHECK_OK(qcow2_write_zeroes(image, 3 * CLUSTER, CLUSTER, 0));
    test_expect(image, 3 * CLUSTER, CLUSTER, 0);
    CHECK_OK(qcow2_discard(image, 0, CLUSTER));
    test_expect(image, 0, CLUSTER, 0);
    test_fill(image, 3 * CLUSTER + 4096, 512, 9);
    test_expect(image, 3 * CLUSTER, 4096, 0);
    test_expect(image, 3 * CLUSTER + 4096, 512, 9);
    test_expect(image, 3 * CLUSTER + 4608, CLUSTER - 4608, 0);

    /* What such an image cannot have. */
    char cluster[CLUSTER] = {1};
    struct iovec iov = {cluster, sizeof cluster};
    CHECK_ERROR(qcow2_pwritev2(image, &iov, 1, 5 * CLUSTER, QCOW2_REQ_COMPRESSED), ENOTSUP);
    CHECK_TEXT("external data file");
    CHECK_ERROR(qcow2_snapshot_create(image, "s", NULL), ENOTSUP);
    CHECK_TEXT("external data file");

    /* Both ways, and the file goes along. */
    CHECK_OK(qcow2_truncate(image, 8 * MIB, QCOW2_PREALLOC_METADATA));
    CHECK_EQ(test_file_length(data_path), 8 * MIB);
    test_expect(image, 4 * MIB, 4 * MIB, 0);
    test_fill(image, 8 * MIB - 512, 512, 6);
    CHECK_OK(qcow2_truncate(image, 2 * MIB, QCOW2_PREALLOC_OFF));
    CHECK_EQ(test_file_length(data_path), 2 * MIB);
    CHECK_OK(qcow2_truncate(image, 4 * MIB, QCOW2_PREALLOC_OFF));
    test_expect(image, 2 * MIB, 2 * MIB, 0);

    /* Read-only and back: both files. */
    CHECK_OK(qcow2_reopen(image, QCOW2_OPEN_READ_ONLY, NULL));
    CHECK_ERROR(qcow2_pwrite(image, "x", 1, 0), EROFS);
    test_expect(image, 3 * CLUSTER + 4096, 512, 9);
    CHECK_OK(qcow2_reopen(image, 0, NULL));
    test_fill(image, MIB, 512, 5);

    /* Given away: both files are free, and taken back. */
    qcow2_image *other;
    CHECK_OK(qcow2_inactivate(image));
    CHECK_OK(qcow2_open(image_path, QCOW2_OPEN_ALLOW_RECORDED, NULL, &other));
    test_fill(other, MIB + 512, 512, 4);
    CHECK_ERROR(qcow2_invalidate(image, NULL), EAGAIN);
    test_close(other);
    CHECK_OK(qcow2_invalidate(image, NULL));
    test_expect(image, MIB + 512, 512, 4);
    CHECK_ERROR(qcow2_open(data_path, QCOW2_OPEN_RAW, NULL, &other), EAGAIN);
    CHECK_OK(qcow2_flush(image));
    test_close(image);
    test_expect_sound(image_path, false);
    image = test_open(image_path, QCOW2_OPEN_ALLOW_RECORDED | QCOW2_OPEN_READ_ONLY, "cache=none", NULL);
    test_expect(image, MIB, 512, 5);
    test_close(image);
}

static void keeps_a_raw_file_true(void)
{
    const char *data = test_path("raw.data");
    char option[4200];
    snprintf(option, sizeof option, "data_file=%s", data);
    const char *path = test_create("raw.qcow2", 2 * MIB + 512, option, "data_file_raw=on", NULL);
    qcow2_image *image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL), *alone;

    CHECK_EQ(test_info(image).data_file_raw, 1);
    CHECK(extent_at(image, 0).flags & QCOW2_EXTENT_IN_DATA_FILE);
    test_fill(image, 0, 2 * MIB + 512, 3);
    CHECK_OK(qcow2_write_zeroes(image, CLUSTER, 2 * CLUSTER, 0));
    CHECK_OK(qcow2_write_zeroes(image, 4 * CLUSTER + 512, 1024, 0));
    CHECK_OK(qcow2_write_zeroes(image, 6 * CLUSTER, CLUSTER, QCOW2_REQ_UNMAP));
    CHECK_OK(qcow2_discard(image, 8 * CLUSTER, CLUSTER));
    expect_file(data, CLUSTER, 2 * CLUSTER, 0);
    expect_file(data, 4 * CLUSTER, 512, 3);
    expect_file(data, 4 * CLUSTER + 512, 1024, 0);
    expect_file(data, 6 * CLUSTER, CLUSTER, 0);
    uint32_t digest = test_checksum(image);
    test_close(image);
    CHECK_EQ(test_file_length(data), 2 * MIB + 512);
    alone = test_open(data, QCOW2_OPEN_RAW | QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_EQ(test_checksum(alone), digest);
    test_close(alone);

    /* What somebody left behind the end does not become the guest's. */
    test_file_write(data, "left behind", 11, 2 * MIB + 512);
    image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    CHECK_OK(qcow2_truncate(image, 3 * MIB, QCOW2_PREALLOC_OFF));
    test_expect(image, 2 * MIB + 512, MIB - 512, 0);
    CHECK_ERROR(qcow2_change_backing_file(image, "base", "raw"), EINVAL);
    CHECK_TEXT("data-file-raw");
    test_close(image);
    test_expect_sound(path, false);
}

static int give_memory(void *opaque, const qcow2_resolve_request *request, qcow2_resolve_answer *answer)
{
    CHECK_EQ(request->kind, QCOW2_NODE_DATA_FILE);
    CHECK_EQ(request->depth, 0);
    CHECK(strcmp(request->recorded_name, "in-memory") == 0);
    CHECK(strcmp(request->resolved_path, "in-memory") == 0);
    CHECK(strcmp(request->format, "raw") == 0);
    answer->io = &test_memory_ops;
    answer->io_opaque = opaque;
    return 0;
}

static void works_over_callbacks(void)
{
    struct test_memory tables = TEST_MEMORY_INIT, data = TEST_MEMORY_INIT;
    const char *options[] = {"data_file=in-memory", "data_file_raw=on", NULL};
    qcow2_create_params create = QCOW2_CREATE_PARAMS_INIT;
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
    qcow2_image *image;

    create.io = create.data_io = &test_memory_ops;
    create.io_opaque = &tables;
    create.data_io_opaque = &data;
    create.options = options;
    create.size = MIB;
    CHECK_OK(qcow2_create_with(&create));
    CHECK_EQ(data.length, MIB);
    CHECK_EQ(tables.closes, 1);
    CHECK_EQ(data.closes, 1);
    params.io = &test_memory_ops;
    params.io_opaque = &tables;
    params.resolve = give_memory;
    params.resolve_opaque = &data;
    CHECK_OK(qcow2_open_with(&params, &image));
    test_fill(image, 1000, 100000, 4);
    CHECK_FILLED(data.bytes + 1000, 100000, 4);
    CHECK_OK(qcow2_flush(image));

    /* A failed sync of either file is the end of writing. */
    data.fail_sync = EIO;
    test_fill(image, 0, 512, 5);
    CHECK_ERROR(qcow2_flush(image), EIO);
    data.fail_sync = 0;
    CHECK_ERROR(qcow2_pwrite(image, "x", 1, 0), ENOTRECOVERABLE);
    CHECK(qcow2_close(image) < 0);

    /* Not both, not none, not without a name. */
    create.data_fd = 2;
    CHECK_ERROR(qcow2_create_with(&create), EINVAL);
    create.data_fd = 0;
    create.flags = QCOW2_CREATE_DATA_FD;
    CHECK_ERROR(qcow2_create_with(&create), EINVAL);
    create.flags = 0;
    create.data_fd = -1;
    create.options = NULL;
    CHECK_ERROR(qcow2_create_with(&create), EINVAL);
    CHECK_ERROR(qcow2_create_with(NULL), EINVAL);
    CHECK_EQ(tables.closes, 5);
    CHECK_EQ(data.closes, 5);

    /* A storage that takes no writes, whichever it is, is seen before the other one has lost what it held. */
    qcow2_io_ops no_writes = test_memory_ops;
    uint64_t tables_length = tables.length, data_length = data.length;

    no_writes.pwritev = NULL;
    create.options = options;
    create.data_io = &no_writes;
    CHECK_ERROR(qcow2_create_with(&create), EROFS);
    create.io = &no_writes;
    create.data_io = &test_memory_ops;
    CHECK_ERROR(qcow2_create_with(&create), EROFS);
    CHECK(tables_length > 0 && memcmp(tables.bytes, "QFI\xfb", 4) == 0);
    CHECK_EQ(tables.length, tables_length);
    CHECK_EQ(data.length, data_length);
    CHECK_FILLED(data.bytes + 1000, 100000 - 1000, 4);
    test_memory_free(&tables);
    test_memory_free(&data);
}

/* A recorded name is a file's name letter by letter, as for the stock tools, or it is refused. */
static void names_are_taken_literally(void)
{
    const char *path;
    char option[4200], name[4300];
    qcow2_image *image;

    snprintf(option, sizeof option, "data_file=file:%s", test_path("x.raw"));
    path = test_create("literal.qcow2", MIB, option, NULL);
    image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    CHECK(strcmp(test_info(image).data_file, test_path("x.raw")) == 0);
    test_fill(image, 0, MIB, 1);
    snprintf(name, sizeof name, "data_file=file:%s", test_path("x.raw"));
    CHECK_OK(qcow2_amend(image, (const char *const[]){name, NULL}, 0, NULL, NULL));
    test_close(image);
    /* That is a file "x.raw" in a directory "file:...", which is not there. */
    CHECK_ERROR(qcow2_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL, &image), ENOENT);
}

/* Puts a byte that no UTF-8 has into the only place of the header cluster that says `name`. */
static void spoil(const char *path, const char *name)
{
    char header[65536];
    const char *found;

    test_file_read(path, header, sizeof header, 0);
    found = memmem(header, sizeof header, name, strlen(name));
    CHECK(found != NULL);
    test_file_write(path, "\xff", 1, (uint64_t)(found - header));
}

/* A name is bytes, and stands for the file with these bytes and no other. */
static void names_are_bytes(void)
{
    char option[4300], plain[4200], odd[4200];
    const char *path;
    qcow2_image *image;

    snprintf(plain, sizeof plain, "%s", test_path("Xdata.raw"));
    snprintf(option, sizeof option, "data_file=%s", plain);
    path = test_create("spoiled-data.qcow2", MIB, option, NULL);
    spoil(path, "Xdata.raw");
    CHECK_ERROR(qcow2_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL, &image), ENOENT);
    snprintf(odd, sizeof odd, "%s", test_path("\377data.raw"));
    CHECK(rename(plain, odd) == 0);
    image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    CHECK(strcmp(test_info(image).data_file, odd) == 0);
    test_fill(image, 0, MIB, 1);
    /* The name as it is changes nothing; another one is recorded byte for byte. */
    snprintf(option, sizeof option, "data_file=%s", odd);
    CHECK_OK(qcow2_amend(image, (const char *const[]){option, NULL}, 0, NULL, NULL));
    snprintf(option, sizeof option, "data_file=%s\376", odd);
    CHECK_OK(qcow2_amend(image, (const char *const[]){option, NULL}, 0, NULL, NULL));
    test_close(image);
    snprintf(option, sizeof option, "data-file=%s", odd);
    image = test_open(path, 0, option, NULL);
    test_expect(image, 0, MIB, 1);
    test_close(image);

    path = test_create("spoiled-backing.qcow2", MIB, "backing_file=Xbase.raw", "backing_fmt=raw", NULL);
    spoil(path, "Xbase.raw");
    CHECK_ERROR(qcow2_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL, &image), ENOENT);
    CHECK(symlink(odd, test_path("\377base.raw")) == 0);
    image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    CHECK(strcmp(test_info(image).backing_file, "\377base.raw") == 0);
    test_expect(image, 0, MIB, 1);
    test_close(image);
}

static void find_snapshots(void *opaque, int kind, const char *text)
{
    (void)kind;
    *(bool *)opaque |= strstr(text, "1 snapshots in image with data file") != NULL;
}

/* There can be no snapshots: a check says so, and a repair leaves it. */
static void snapshots_are_an_error(void)
{
    /* Big-endian: an entry without an L1 table, ID "1", name "s". */
    static const unsigned char entry[42] = {[13] = 1, [15] = 1, [40] = '1', [41] = 's'};
    unsigned char fields[12] = {[3] = 1, [9] = 6}; /* one, at 6 clusters */
    char option[4200];
    const char *path;
    qcow2_image *image;
    qcow2_check_result result = {.struct_size = sizeof result};
    bool told = false;

    snprintf(option, sizeof option, "data_file=%s", test_path("snap.raw"));
    path = test_create("snap.qcow2", MIB, option, NULL);
    test_file_write(path, fields, sizeof fields, 60);
    test_file_write(path, entry, sizeof entry, 6 * CLUSTER);
    image = test_open(path, QCOW2_OPEN_METADATA_ONLY, NULL);
    CHECK_OK(qcow2_check(image, QCOW2_CHECK_REPAIR_LEAKS | QCOW2_CHECK_REPAIR_ERRORS, &result, find_snapshots, &told,
                         NULL, NULL));
    CHECK(told);
    told = false;
    CHECK_OK(qcow2_check(image, 0, &result, find_snapshots, &told, NULL, NULL));
    CHECK(told);
    CHECK_EQ(result.corruptions, 1);
    test_close(image);
}

/* A rebase that is to compress cannot. */
static void nothing_is_compressed(void)
{
    char option[4200];
    qcow2_image *image;

    test_create("below.qcow2", MIB, NULL);
    snprintf(option, sizeof option, "data_file=%s", test_path("over.raw"));
    image = test_open(test_create("over.qcow2", MIB, option, "backing_file=below.qcow2", "backing_fmt=qcow2", NULL),
                      QCOW2_OPEN_ALLOW_RECORDED, NULL);
    CHECK_ERROR(qcow2_rebase(image, NULL, NULL, NULL, QCOW2_REBASE_COMPRESSED, NULL, NULL), ENOTSUP);
    test_close(image);
}

/* Somebody names another data file while a handle without a lock only reads: it does not go on to write the old one. */
static void another_name_meanwhile(void)
{
    char option[4200];
    const char *path;
    qcow2_image *reader, *writer;

    snprintf(option, sizeof option, "data_file=%s", test_path("one.raw"));
    path = test_create("names.qcow2", MIB, option, NULL);
    test_file_copy(test_path("one.raw"), test_path("two.raw"));
    reader = test_open(path, QCOW2_OPEN_ALLOW_RECORDED | QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_FORCE_SHARE, NULL);
    writer = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    snprintf(option, sizeof option, "data_file=%s", test_path("two.raw"));
    CHECK_OK(qcow2_amend(writer, (const char *const[]){option, NULL}, 0, NULL, NULL));
    test_close(writer);
    CHECK_ERROR(qcow2_reopen(reader, 0, NULL), EINVAL);
    CHECK_TEXT("another data file");
    test_close(reader);

    /* And another backing file. */
    test_create("first.qcow2", MIB, NULL);
    test_create("second.qcow2", MIB, NULL);
    path = test_create("over-first.qcow2", MIB, "backing_file=first.qcow2", "backing_fmt=qcow2", NULL);
    reader = test_open(path, QCOW2_OPEN_ALLOW_RECORDED | QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_FORCE_SHARE, NULL);
    writer = test_open(path, QCOW2_OPEN_NO_BACKING, NULL);
    CHECK_OK(qcow2_change_backing_file(writer, "second.qcow2", "qcow2"));
    test_close(writer);
    CHECK_ERROR(qcow2_reopen(reader, 0, NULL), EINVAL);
    test_expect(reader, 0, MIB, 0);
    test_close(reader);
}

int main(void)
{
    const char *data = test_path("the.data");
    char option[4200];
    snprintf(option, sizeof option, "data_file=%s", data);
    const char *path = test_create("disk.qcow2", 4 * MIB, option, NULL);

    CHECK_EQ(test_file_length(data), 4 * MIB);
    opens_with_permission_only(path, data);
    serves_guest_data(path, data);
    keeps_a_raw_file_true();
    works_over_callbacks();
    names_are_taken_literally();
    names_are_bytes();
    snapshots_are_an_error();
    nothing_is_compressed();
    another_name_meanwhile();
    return 0;
}
