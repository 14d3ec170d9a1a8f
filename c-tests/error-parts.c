/* The last error in parts: which are there for which failure, that they make up the sentence, and how long they stay.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

static qcow2_error_detail parts_of_last(void)
{
    qcow2_error_detail parts = {.struct_size = sizeof(parts)};
    char sentence[8192];

    CHECK_OK(qcow2_last_error_detail(&parts));
    snprintf(sentence, sizeof(sentence), "%s%s%s%s%s", parts.summary, parts.hint, *parts.detail ? " [" : "",
             parts.detail, *parts.detail ? "]" : "");
    CHECK_EQ(strcmp(sentence, qcow2_last_error()), 0);
    return parts;
}

#define CHECK_PART(part, text)                                                                                         \
    do {                                                                                                               \
        if (strcmp(part, text) != 0)                                                                                   \
            test_fail(__FILE__, __LINE__, "%s is \"%s\", expected \"%s\"", #part, part, text);                         \
    } while (0)

static void nothing_yet(void)
{
    qcow2_error_detail parts = parts_of_last();

    CHECK_EQ(parts.kind, QCOW2_ERROR_NONE);
    CHECK_EQ(parts.result, 0);
    CHECK_PART(parts.summary, "");
    CHECK_PART(parts.detail, "");
}

static void a_bad_call_is_no_failure(const char *before)
{
    struct {
        qcow2_error_detail known;
        char unknown[64];
    } newer;
    qcow2_error_detail parts = {.struct_size = 1};

    CHECK_EQ(qcow2_last_error_detail(NULL), -EINVAL);
    CHECK_EQ(qcow2_last_error_detail(&parts), -EINVAL);
    CHECK_EQ(strcmp(qcow2_last_error(), before), 0);
    /* An older caller gets what fits, a newer one keeps what is its own. */
    memset(&parts, 0x55, sizeof(parts));
    parts.struct_size = 2 * sizeof(size_t);
    CHECK_OK(qcow2_last_error_detail(&parts));
    CHECK(parts.result < 0);
    CHECK_EQ((uintptr_t)parts.summary & 0xff, 0x55);
    memset(&newer, 0x55, sizeof(newer));
    newer.known.struct_size = sizeof(newer);
    CHECK_OK(qcow2_last_error_detail(&newer.known));
    CHECK_FILLED(newer.unknown, sizeof(newer.unknown), 0x55);
}

static void host_and_options(const char *path)
{
    const char *const bad_value[] = {"l2-cache-size=lots", NULL}, *const other_dash[] = {"l2_cache_size=1M", NULL};
    const char *const old[] = {"compat=0.10", "extended_l2=on", NULL};
    qcow2_image *image;
    qcow2_error_detail parts;

    CHECK_ERROR(qcow2_open(test_path("missing.qcow2"), 0, NULL, &image), ENOENT);
    parts = parts_of_last();
    CHECK_EQ(parts.kind, QCOW2_ERROR_HOST);
    CHECK_EQ(parts.result, -ENOENT);
    CHECK_PART(parts.file, test_path("missing.qcow2"));
    CHECK_PART(parts.cause, "No such file or directory");

    CHECK_ERROR(qcow2_open(path, 0, bad_value, &image), EINVAL);
    parts = parts_of_last();
    CHECK_EQ(parts.kind, QCOW2_ERROR_INVALID);
    CHECK_PART(parts.option, "l2-cache-size");
    CHECK_EQ(parts.hint[0], '\n');
    CHECK_PART(parts.file, "");

    CHECK_ERROR(qcow2_open(path, 0, other_dash, &image), EINVAL);
    parts = parts_of_last();
    CHECK_PART(parts.summary, "Block format 'qcow2' does not support the option 'l2_cache_size'");
    CHECK_PART(parts.detail, "here it is spelled 'l2-cache-size'");

    CHECK_ERROR(qcow2_create(test_path("new.qcow2"), MIB, old), EINVAL);
    parts = parts_of_last();
    CHECK_PART(parts.option, "compat");
    CHECK_PART(parts.hint, " (use version=v3 or greater)");
}

static void a_lock(const char *path)
{
    qcow2_image *image = test_open(path, 0, NULL), *second;
    qcow2_error_detail parts;

    CHECK_ERROR(qcow2_open(path, 0, NULL, &second), EAGAIN);
    parts = parts_of_last();
    CHECK_EQ(parts.kind, QCOW2_ERROR_LOCKED);
    CHECK_PART(parts.summary, "Failed to get \"write\" lock");
    CHECK_PART(parts.file, path);
    CHECK_EQ(parts.hint[0], '\n');
    test_close(image);
}

/* Of a chain, the file that is damaged is the one that is named. */
static void a_header_below(void)
{
    const char *below = test_path("below.qcow2");
    const unsigned char no_entries[4] = {0};
    char option[4096];
    qcow2_image *image;
    qcow2_error_detail parts;

    test_create("below.qcow2", MIB, NULL);
    snprintf(option, sizeof(option), "backing_file=%s", below);
    test_create("top.qcow2", MIB, option, "backing_fmt=qcow2", NULL);
    test_file_write(below, no_entries, sizeof(no_entries), 36);
    CHECK_ERROR(qcow2_open(test_path("top.qcow2"), QCOW2_OPEN_ALLOW_RECORDED, NULL, &image), EINVAL);
    parts = parts_of_last();
    CHECK_PART(parts.summary, "Could not open backing file: L1 table is too small");
    CHECK_PART(parts.file, below);
    CHECK(strncmp(parts.detail, "l1_size 0, 1 needed, in '", 25) == 0);
}

static void a_broken_rule(void)
{
    const char *path = test_create("broken.qcow2", MIB, NULL);
    const unsigned char reserved[8] = {0x80, 0, 0, 0, 0, 0, 0x02, 0x02};
    qcow2_image *image = test_open(path, 0, NULL);
    qcow2_error_detail parts;
    uint64_t l1_table;
    char byte;

    l1_table = test_info(image).l1_table_offset;
    test_close(image);
    test_file_write(path, reserved, sizeof(reserved), l1_table);
    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_ERROR(qcow2_pread(image, &byte, 1, 0), EIO);
    parts = parts_of_last();
    CHECK_EQ(parts.kind == QCOW2_ERROR_CORRUPT || parts.kind == QCOW2_ERROR_MARKED_CORRUPT, true);
    CHECK_PART(parts.structure, "L1 entry");
    CHECK_PART(parts.index, "0");
    CHECK_EQ(parts.value, 0x8000000000000202);
    CHECK(*parts.rule != '\0');
    qcow2_close(image);
}

/* A name that is longer than all the room there is. */
static void what_is_too_long_is_cut_off(void)
{
    static char option[6000];
    const char *const options[] = {option, NULL};
    qcow2_error_detail parts = {.struct_size = sizeof(parts)};
    qcow2_image *image;

    memset(option, 'x', sizeof(option) - 1);
    CHECK_ERROR(qcow2_open(test_path("missing.qcow2"), 0, options, &image), EINVAL);
    CHECK_OK(qcow2_last_error_detail(&parts));
    CHECK_EQ(strlen(parts.summary), 4095);
    CHECK_PART(parts.hint, "");
    CHECK_PART(parts.detail, "");
    CHECK_EQ(strlen(qcow2_last_error()), 2047);
}

static void *in_another_thread(void *opaque)
{
    (void)opaque;
    nothing_yet();
    return NULL;
}

int main(void)
{
    const char *path;
    pthread_t thread;

    nothing_yet();
    path = test_create("disk.qcow2", MIB, NULL);
    host_and_options(path);
    a_lock(path);
    a_header_below();
    a_broken_rule();
    what_is_too_long_is_cut_off();
    CHECK_EQ(qcow2_flush(NULL), -EINVAL);
    a_bad_call_is_no_failure("image is NULL");
    CHECK_EQ(pthread_create(&thread, NULL, in_another_thread, NULL), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_TEXT("image is NULL");
    return 0;
}
