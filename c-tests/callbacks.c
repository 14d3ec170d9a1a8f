/* Progress goes from 0 to the end and a non-zero answer stops the call, after which the handle works as before;
   messages come one line at a time.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

struct progress {
    unsigned calls, stop_at;
    uint64_t last, total;
};

static int follow(void *opaque, uint64_t done, uint64_t total)
{
    struct progress *progress = opaque;

    CHECK(done <= total);
    CHECK(done >= progress->last);
    CHECK(progress->calls == 0 || total == progress->total);
    progress->last = done;
    progress->total = total;
    progress->calls++;
    return progress->stop_at != 0 && progress->calls >= progress->stop_at;
}

static unsigned messages;

static void count(void *opaque, int kind, const char *text)
{
    CHECK(opaque == NULL);
    CHECK(kind >= QCOW2_MSG_INFO && kind <= QCOW2_MSG_REPAIR);
    CHECK(text[0] != '\0');
    messages++;
}

/* What a discard lets go of is settled when the image is closed, in a block that nobody has looked at before. */
static void told_while_closing(void)
{
    const char *path = test_create("closing.qcow2", 8 * MIB, "cluster_size=4096", "refcount_bits=64", NULL);
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
    qcow2_image *image = test_open(path, 0, NULL);
    qcow2_info info;
    uint64_t entry;
    unsigned char byte = 2; /* 512 bytes into a cluster */

    test_fill(image, 0, 6 * MIB, 1);
    info = test_info(image);
    test_close(image);
    entry = info.refcount_table_offset + 8;
    test_file_write(path, &byte, 1, entry + 6);
    params.path = path;
    params.message = count;
    messages = 0;
    CHECK_OK(qcow2_open_with(&params, &image));
    CHECK_OK(qcow2_discard(image, 3 * MIB, 4096));
    CHECK_EQ(messages, 0);
    CHECK_ERROR(qcow2_close(image), EIO);
    CHECK_TEXT("refcount table entry 1");
    CHECK_EQ(messages, 1);
    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    CHECK(test_info(image).corrupt);
    test_expect(image, 4 * MIB, MIB, 1);
    test_close(image);
}

#define DAMAGED 3 /* host cluster: the L1 table, behind header, refcount table and block */

/* What findings say of the cluster that a test has damaged. */
struct found {
    unsigned findings, damaged, repaired;
    uint64_t refcount, references;
};

static void add_up(void *opaque, const qcow2_finding *finding)
{
    struct found *found = opaque;

    CHECK_EQ(finding->struct_size, sizeof *finding);
    CHECK(finding->message_kind >= QCOW2_MSG_INFO && finding->message_kind <= QCOW2_MSG_REPAIR);
    found->findings++;
    found->repaired += finding->message_kind == QCOW2_MSG_REPAIR;
    if (finding->kind == QCOW2_FINDING_REFCOUNT && finding->place == DAMAGED) {
        found->damaged++;
        found->refcount = finding->value;
        found->references = finding->count;
    }
}

static void count_words(void *opaque, int kind, const char *text)
{
    unsigned *leaks = opaque;

    CHECK(kind == QCOW2_MSG_LEAK || kind == QCOW2_MSG_ERROR);
    *leaks += strcmp(text, "Leaked cluster 3 refcount=5 reference=1") == 0;
    messages++;
}

/* Findings as numbers: as many as in words, and the same. */
static void told_as_numbers(void)
{
    const char *path = test_create("numbers.qcow2", 8 * MIB, "cluster_size=4096", NULL);
    unsigned char five[2] = {0, 5};
    qcow2_check_result result = {.struct_size = sizeof result}, again = result;
    struct found found = {0};
    unsigned leaks = 0;
    qcow2_image *image;

    test_file_write(path, five, sizeof five, 2 * 4096 + 2 * DAMAGED);
    image = test_open(path, QCOW2_OPEN_METADATA_ONLY, NULL);
    messages = 0;
    CHECK_OK(qcow2_check(image, 0, &result, count_words, &leaks, NULL, NULL));
    CHECK_EQ(leaks, 1);
    CHECK_OK(qcow2_check_findings(image, 0, &again, add_up, &found, NULL, NULL));
    CHECK(memcmp(&again, &result, sizeof again) == 0);
    CHECK_EQ(found.findings, messages);
    CHECK_EQ(found.damaged, 1);
    CHECK_EQ(found.refcount, 5);
    CHECK_EQ(found.references, 1);
    CHECK_EQ(found.repaired, 0);

    /* Nobody listens: the same numbers at the end. */
    CHECK_OK(qcow2_check_findings(image, 0, &again, NULL, NULL, NULL, NULL));
    CHECK(memcmp(&again, &result, sizeof again) == 0);

    struct progress progress = {.stop_at = 1};
    CHECK_ERROR(qcow2_check_findings(image, 0, &again, add_up, &found, follow, &progress), ECANCELED);
    found = (struct found){0};
    CHECK_OK(qcow2_check_findings(image, QCOW2_CHECK_REPAIR_LEAKS, &again, add_up, &found, NULL, NULL));
    CHECK(found.repaired > 0);
    CHECK(again.leaks_fixed > 0);
    test_close(image);
    test_expect_sound(path, false);
}

int main(void)
{
    const char *path = test_create("disk.qcow2", 64 * MIB, "cluster_size=4k", NULL);
    qcow2_check_result result = {.struct_size = sizeof result};
    struct progress progress = {0};
    qcow2_image *image = test_open(path, 0, NULL);

    for (uint64_t at = 0; at < 64 * MIB; at += 2 * MIB) {
        test_fill(image, at, 65536, 1);
    }
    CHECK_OK(qcow2_check(image, 0, &result, count, NULL, follow, &progress));
    CHECK(progress.calls > 1);
    CHECK_EQ(progress.last, progress.total);
    CHECK_EQ(messages, 0);
    CHECK_EQ(result.corruptions, 0);
    CHECK_EQ(result.allocated_clusters, 32 * 16);
    CHECK_EQ(result.total_clusters, 64 * MIB / 4096);

    progress = (struct progress){.stop_at = 1};
    CHECK_ERROR(qcow2_check(image, 0, &result, count, NULL, follow, &progress), ECANCELED);
    CHECK_EQ(progress.calls, 1);
    progress = (struct progress){.stop_at = 2};
    CHECK_ERROR(qcow2_check(image, QCOW2_CHECK_REPAIR_LEAKS, &result, count, NULL, follow, &progress), ECANCELED);
    test_fill(image, MIB, 65536, 2);
    test_expect(image, MIB, 65536, 2);
    test_close(image);
    test_expect_sound(path, false);

    /* Commit. */
    uint32_t crc;
    test_create("top.qcow2", 64 * MIB, "backing_file=disk.qcow2", "backing_fmt=qcow2", NULL);
    image = test_open(test_path("top.qcow2"), QCOW2_OPEN_ALLOW_RECORDED, NULL);
    test_fill(image, 3 * MIB, 4 * MIB, 5);
    crc = test_checksum(image);
    progress = (struct progress){.stop_at = 1};
    CHECK_ERROR(qcow2_commit(image, 0, follow, &progress), ECANCELED);
    CHECK_EQ(test_checksum(image), crc);
    progress = (struct progress){0};
    CHECK_OK(qcow2_commit(image, 0, follow, &progress));
    CHECK(progress.calls > 0);
    CHECK_EQ(progress.last, progress.total);
    CHECK_EQ(test_checksum(image), crc);
    test_close(image);
    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_EQ(test_checksum(image), crc);
    test_close(image);
    test_expect_sound(path, false);

    /* Findings are messages: a refcount that is too low. */
    unsigned char zero[2] = {0};
    uint64_t block = 2 * 4096; /* the first refcount block, behind header and table */
    test_file_write(path, zero, sizeof zero, block + 2 * 3);
    image = test_open(path, QCOW2_OPEN_METADATA_ONLY, NULL);
    messages = 0;
    CHECK_OK(qcow2_check(image, 0, &result, count, NULL, NULL, NULL));
    CHECK(result.corruptions > 0);
    CHECK(messages > 0);
    CHECK_OK(
        qcow2_check(image, QCOW2_CHECK_REPAIR_LEAKS | QCOW2_CHECK_REPAIR_ERRORS, &result, count, NULL, NULL, NULL));
    CHECK(result.corruptions_fixed > 0);
    test_close(image);
    test_expect_sound(path, false);
    told_as_numbers();
    told_while_closing();
    return 0;
}
