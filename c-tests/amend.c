/* Amend: each setting there and back, contents and snapshots stay, refusals change nothing, cancelling leaves old or
   new.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

/* Words of one amend; NULL ends them. */
static int amend(qcow2_image *image, const char *first, const char *second)
{
    const char *options[] = {first, second, NULL};

    return qcow2_amend(image, options, 0, NULL, NULL);
}

/* Data, zero clusters with and without room, a snapshot that has some of each, and what came after it. */
static void put_contents(qcow2_image *image)
{
    test_fill(image, 0, MIB, 1);
    CHECK_OK(qcow2_write_zeroes(image, 256 * 1024, 128 * 1024, 0));
    CHECK_OK(qcow2_write_zeroes(image, 512 * 1024, 128 * 1024, QCOW2_REQ_UNMAP));
    CHECK_OK(qcow2_write_zeroes(image, 2 * MIB, 64 * 1024, 0));
    CHECK_OK(qcow2_snapshot_create(image, "first", NULL));
    test_fill(image, 512 * 1024, 64 * 1024, 2);
    CHECK_OK(qcow2_write_zeroes(image, 0, 64 * 1024, 0));
    CHECK_OK(qcow2_write_zeroes(image, 3 * MIB, 64 * 1024, 0));
}

static uint32_t snapshot_checksum(const char *path)
{
    qcow2_image *image = test_open(path, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED, "snapshot.name=first", NULL);
    uint32_t sum = test_checksum(image);

    test_close(image);
    return sum;
}

static void versions(const char *geometry, bool backed)
{
    const char *base = test_create("base.qcow2", 4 * MIB, NULL), *path;
    char *name = NULL;
    qcow2_image *image = test_open(base, 0, NULL);
    uint32_t sum, snapshot;

    test_fill(image, 0, 4 * MIB, 9);
    test_close(image);
    CHECK(asprintf(&name, "backing_file=%s", base) > 0);
    path = backed ? test_create("disk.qcow2", 4 * MIB, geometry, name, "backing_fmt=qcow2", NULL)
                  : test_create("disk.qcow2", 4 * MIB, geometry, NULL);
    image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    put_contents(image);
    sum = test_checksum(image);
    test_close(image);
    snapshot = snapshot_checksum(path);
    image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    for (int round = 0; round < 2; round++) {
        CHECK_OK(amend(image, "compat=0.10", NULL));
        CHECK_EQ(test_info(image).version, 2);
        CHECK_EQ(test_checksum(image), sum);
        CHECK_OK(amend(image, "compat=1.1", "lazy_refcounts=on"));
        CHECK_EQ(test_info(image).version, 3);
        CHECK_EQ(test_checksum(image), sum);
        CHECK_OK(qcow2_write_zeroes(image, 3 * MIB + 512 * 1024, 64 * 1024, QCOW2_REQ_UNMAP));
        sum = test_checksum(image);
    }
    CHECK_OK(amend(image, "compat=v2", NULL));
    test_close(image);
    CHECK_EQ(snapshot_checksum(path), snapshot);
    test_expect_sound(path, false);
    free(name);
}

static void widths(void)
{
    static const char *const width[] = {"refcount_bits=1",  "refcount_bits=2",  "refcount_bits=4", "refcount_bits=8",
                                        "refcount_bits=16", "refcount_bits=32", "refcount_bits=64"};
    const char *path = test_create("width.qcow2", 4 * MIB, "cluster_size=512", NULL);
    qcow2_image *image = test_open(path, 0, NULL);
    unsigned changes = 0;
    uint32_t sum;

    test_fill(image, 0, 3 * MIB, 1);
    sum = test_checksum(image);
    for (size_t from = 0; from < 7; from++) {
        for (size_t to = 0; to < 7; to++) {
            CHECK_OK(amend(image, width[from], NULL));
            CHECK_OK(amend(image, width[to], NULL));
            CHECK_EQ(test_info(image).refcount_bits, 1u << to);
            CHECK_EQ(test_checksum(image), sum);
            test_fill(image, 3 * MIB + 512 * (from * 7 + to), 512, 2); /* a new cluster by the new counts */
            sum = test_checksum(image);
            changes += from != to;
        }
    }
    CHECK_EQ(changes, 42);
    CHECK_OK(qcow2_snapshot_create(image, "first", NULL));
    CHECK_ERROR(amend(image, "refcount_bits=1", NULL), EINVAL);
    CHECK_TEXT("Cannot decrease refcount entry width to 1 bits: Cluster at offset 0x");
    CHECK_OK(amend(image, "refcount_bits=2", "size=5M"));
    CHECK_EQ(qcow2_length(image), 5 * MIB);
    test_close(image);
    test_expect_sound(path, false);
}

static void refused(void)
{
    static const struct {
        const char *first, *second;
        int number;
        const char *text;
    } cases[] = {
        {"foo=1", NULL, EINVAL, "Invalid parameter 'foo'"},
        {"cluster_size=4k", NULL, EINVAL, "only supported for image creation"},
        {"compat=0.9", NULL, EINVAL, "Unknown compatibility level 0.9"},
        {"compat=0.10", "refcount_bits=8", EINVAL, "require compatibility level 1.1 or above"},
        {"compat=0.10", "lazy_refcounts=on", EINVAL, "only supported with compatibility level 1.1"},
        {"refcount_bits=3", NULL, EINVAL, "power of two"},
        {"size=1000", NULL, EINVAL, "multiple of 512"},
        {"size=8E", NULL, EFBIG, "File too large"},
        {"data_file=x", NULL, EINVAL, "data-file can only be set"},
        {"data_file_raw=on", NULL, EINVAL, "data-file-raw cannot be set"},
        {"encrypt.state=active", NULL, ENOTSUP, "encryption not present"},
        {"backing_file=x", "backing_fmt=raw", ENOTSUP, "Cannot amend the backing file"},
        {"lazy_refcounts=maybe", NULL, EINVAL, "expects 'on' or 'off'"},
    };
    const char *path = test_create("refused.qcow2", MIB, NULL), *none[] = {NULL};
    qcow2_image *image = test_open(path, 0, NULL);
    uint64_t digest;

    test_fill(image, 0, 4096, 1);
    CHECK_OK(qcow2_flush(image));
    CHECK_OK(qcow2_amend(image, none, 0, NULL, NULL));
    CHECK_OK(qcow2_amend(image, NULL, 0, NULL, NULL));
    CHECK_OK(amend(image, "compat=1.1", "lazy_refcounts=off")); /* nothing to do */
    CHECK_OK(amend(image, "size=0", NULL));                     /* "as it is" */
    CHECK_EQ(qcow2_length(image), MIB);
    digest = test_digest(path);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK_ERROR(amend(image, cases[i].first, cases[i].second), cases[i].number);
        CHECK_TEXT(cases[i].text);
        CHECK_EQ(test_digest(path), digest);
    }
    CHECK_ERROR(qcow2_amend(image, none, 2, NULL, NULL), EINVAL);
    test_close(image);
    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_ERROR(amend(image, "lazy_refcounts=on", NULL), EROFS);
    test_close(image);
    /* A session that was told to be lazy cannot go on in version 2. */
    image = test_open(path, 0, "lazy-refcounts=on", NULL);
    CHECK_ERROR(amend(image, "compat=0.10", NULL), EINVAL);
    CHECK_EQ(test_info(image).version, 3);
    test_close(image);
    test_expect_sound(path, false);
}

/* A name for which the header has no room is refused before the other settings change. */
static void a_name_that_does_not_fit(void)
{
    char create[4200], name[1100] = "data_file=";
    const char *path;
    qcow2_image *image;

    snprintf(create, sizeof create, "data_file=%s", test_path("d.raw"));
    path = test_create("small.qcow2", MIB, "cluster_size=512", create, NULL);
    for (size_t i = strlen(name); i < 800; i++) {
        name[i] = 'n';
    }
    image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    CHECK_ERROR(amend(image, "refcount_bits=1", name), ENOSPC);
    CHECK_EQ(test_info(image).refcount_bits, 16);
    CHECK(strcmp(test_info(image).data_file, test_path("d.raw")) == 0);
    test_close(image);
    test_expect_sound(path, false);
}

struct stop {
    unsigned calls, at;
    uint64_t last;
};

static int progress(void *opaque, uint64_t done, uint64_t total)
{
    struct stop *stop = opaque;

    CHECK(done <= total && done >= stop->last);
    stop->last = done;
    return ++stop->calls == stop->at;
}

static void cancelled(void)
{
    const char *options[] = {"refcount_bits=64", "lazy_refcounts=on", NULL},
               *down[] = {"refcount_bits=16", "compat=0.10", NULL};
    unsigned stopped = 0;

    for (unsigned at = 1;; at++) {
        const char *path = test_create("cancel.qcow2", 4 * MIB, "cluster_size=512", NULL);
        qcow2_image *image = test_open(path, 0, NULL);
        struct stop up_stop = {.at = at}, down_stop = {.at = at};
        int up, back;
        uint32_t sum;

        test_fill(image, 0, 64 * 1024, 1);
        CHECK_OK(qcow2_write_zeroes(image, 512 * 1024, 512 * 1024, 0));
        CHECK_OK(qcow2_snapshot_create(image, "first", NULL));
        sum = test_checksum(image);
        up = qcow2_amend(image, options, 0, progress, &up_stop);
        back = qcow2_amend(image, down, 0, progress, &down_stop);
        CHECK(up == 0 || up == -ECANCELED);
        CHECK(back == 0 || back == -ECANCELED);
        stopped += up != 0 || back != 0;
        CHECK_EQ(test_checksum(image), sum);
        test_fill(image, 256 * 1024, 4096, 2);
        test_close(image);
        test_expect_sound(path, false);
        if (at > up_stop.calls && at > down_stop.calls) {
            break;
        }
    }
    CHECK(stopped > 10);
}

int main(void)
{
    versions("cluster_size=64k", false);
    versions("cluster_size=64k", true);
    versions("cluster_size=512", false);
    versions("cluster_size=4k", true);
    widths();
    refused();
    a_name_that_does_not_fit();
    cancelled();
    return 0;
}
