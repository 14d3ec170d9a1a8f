/* Snapshots at the limits of the format: a full table, long names, IDs that are no numbers.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <sys/resource.h>
#include <time.h>

#include "test.h"

#define CLUSTER ((uint64_t)65536)
#define LIMIT 65536u
#define NAME_LIMIT 65535u

static void put(unsigned char *at, unsigned bytes, uint64_t value)
{
    while (bytes-- > 0) {
        at[bytes] = (unsigned char)value;
        value >>= 8;
    }
}

static void put_in_file(const char *path, uint64_t offset, unsigned bytes, uint64_t value)
{
    unsigned char field[8];

    put(field, bytes, value);
    test_file_write(path, field, bytes, offset);
}

/* An entry without VM state of a disk of 1 MiB; its length. */
static size_t entry(unsigned char *at, uint64_t l1, unsigned number)
{
    char id[16], name[16];
    size_t id_bytes = (size_t)snprintf(id, sizeof id, "%u", number);
    size_t name_bytes = (size_t)snprintf(name, sizeof name, "s%u", number);

    put(at, 8, l1);
    put(at + 8, 4, 1);
    put(at + 12, 2, id_bytes);
    put(at + 14, 2, name_bytes);
    put(at + 36, 4, 16);
    put(at + 48, 8, MIB);
    memcpy(at + 56, id, id_bytes);
    memcpy(at + 56 + id_bytes, name, name_bytes);
    return (56 + id_bytes + name_bytes + 7) / 8 * 8;
}

/* An empty disk with `count` snapshots, each with an L1 table of its own. */
static const char *with_snapshots(unsigned count)
{
    const char *path = test_create("full.qcow2", MIB, NULL);
    qcow2_image *image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    uint64_t per_block = CLUSTER / 2, table = test_info(image).refcount_table_offset, blocks, used, first;
    unsigned char *entries = calloc(count + 1, 80), *counts;
    size_t bytes = 0;

    test_close(image);
    used = (test_file_length(path) + CLUSTER - 1) / CLUSTER;
    blocks = (used + count + count * 80 / CLUSTER) / per_block + 1;
    counts = calloc(blocks, CLUSTER);
    first = used + blocks - 1 + (count * 80 + CLUSTER - 1) / CLUSTER; /* of the L1 tables */
    for (unsigned i = 0; i < count; i++) {
        bytes += entry(entries + bytes, (first + i) * CLUSTER, i + 1);
    }
    test_file_write(path, entries, bytes, (used + blocks - 1) * CLUSTER);
    for (uint64_t i = 0; i < first + count; i++) {
        bool in_table = i >= used + blocks - 1 && i < first;

        put(counts + 2 * i, 2, !in_table || (i - (used + blocks - 1)) * CLUSTER < bytes);
    }
    for (uint64_t b = 0; b < blocks; b++) {
        uint64_t place = b == 0 ? 2 : used + b - 1; /* the first one is where a new image has it */

        put_in_file(path, table + 8 * b, 8, place * CLUSTER);
        test_file_write(path, counts + b * CLUSTER, CLUSTER, place * CLUSTER);
    }
    put_in_file(path, 60, 4, count);
    put_in_file(path, 64, 8, (used + blocks - 1) * CLUSTER);
    CHECK_EQ(truncate(path, (off_t)((first + count) * CLUSTER)), 0);
    free(entries);
    free(counts);
    return path;
}

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static bool stock(const char *words, const char *path)
{
    char script[300];
    const char *const command[] = {"sh", "-c", script, path, NULL};

    snprintf(script, sizeof script, "command -v qemu-img >/dev/null || exit 0; qemu-img %s >/dev/null 2>&1", words);
    return test_run(command) == 0;
}

static unsigned list(qcow2_image *image)
{
    qcow2_snapshot_info info = {.struct_size = sizeof info};
    unsigned count = 0;
    char name[16];

    while (qcow2_get_snapshot(image, count, &info) == 0) {
        count++;
        snprintf(name, sizeof name, "s%s", info.id);
        if (strcmp(info.name, name) != 0) {
            test_fail(__FILE__, __LINE__, "snapshot %u has ID %s and name %s", count, info.id, info.name);
        }
    }
    CHECK_ERROR(qcow2_get_snapshot(image, count, &info), ENOENT);
    return count;
}

static void a_full_table(void)
{
    const char *path = with_snapshots(LIMIT - 1);
    double began = seconds(), took;
    struct rusage usage;
    qcow2_check_result found = {.struct_size = sizeof found};
    qcow2_image *image;

    image = test_open(path, 0, NULL);
    CHECK_OK(qcow2_check(image, 0, &found, NULL, NULL, NULL, NULL));
    CHECK_EQ(found.corruptions + found.leaks + found.check_errors, 0);
    CHECK_EQ(list(image), LIMIT - 1);
    test_fill(image, 0, 4096, 1);
    CHECK_OK(qcow2_snapshot_create(image, "s65536", NULL));
    CHECK_EQ(list(image), LIMIT);
    CHECK_ERROR(qcow2_snapshot_create(image, "one too many", NULL), EFBIG);
    CHECK_TEXT("65536");
    CHECK_EQ(test_info(image).snapshot_count, LIMIT);
    test_fill(image, 0, 4096, 2);
    test_close(image);

    image = test_open(path, 0, NULL);
    CHECK_OK(qcow2_snapshot_apply(image, "65536", NULL));
    test_expect(image, 0, 4096, 1);
    CHECK_OK(qcow2_snapshot_apply(image, NULL, "s1"));
    test_expect(image, 0, MIB, 0);
    CHECK_OK(qcow2_snapshot_delete(image, "40000", "s40000"));
    CHECK_ERROR(qcow2_snapshot_delete(image, "40000", NULL), ENOENT);
    CHECK_OK(qcow2_snapshot_delete(image, NULL, "s1"));
    CHECK_EQ(list(image), LIMIT - 2);
    CHECK_OK(qcow2_snapshot_create(image, "s65537", NULL));
    CHECK_EQ(list(image), LIMIT - 1);
    test_close(image);
    test_expect_sound(path, false);
    image = test_open(path, QCOW2_OPEN_READ_ONLY, "snapshot.name=s65536", NULL);
    test_expect(image, 0, 4096, 1);
    test_close(image);

    took = seconds() - began;
    getrusage(RUSAGE_SELF, &usage);
    if (!test_under_valgrind() && !SANITIZED && (took > 120 || usage.ru_maxrss > 400 * 1024)) {
        test_fail(__FILE__, __LINE__, "a full table took %.1f s and %ld KiB", took, usage.ru_maxrss);
    }
    printf("full table: %.1f s, %ld KiB\n", took, usage.ru_maxrss);
    unlink(path);
}

static void long_names(void)
{
    const char *path = test_create("long.qcow2", MIB, NULL);
    char *name = malloc(NAME_LIMIT + 2), *option = malloc(NAME_LIMIT + 32);
    qcow2_snapshot_options options = {.struct_size = sizeof options, .icount = UINT64_MAX};
    qcow2_snapshot_info info = {.struct_size = sizeof info};
    qcow2_image *image = test_open(path, 0, NULL);
    const char *list_of_one[2] = {option, NULL};

    memset(name, 'n', NAME_LIMIT + 1);
    name[7] = ',';
    name[8] = '=';
    name[NAME_LIMIT + 1] = 0;
    CHECK_ERROR(qcow2_snapshot_create(image, name, NULL), EINVAL);
    CHECK_TEXT("65535");
    name[NAME_LIMIT] = 0;
    options.id = name;
    test_fill(image, 0, 4096, 1);
    CHECK_OK(qcow2_snapshot_create(image, name, &options));
    test_fill(image, 0, 4096, 2);
    CHECK_ERROR(qcow2_snapshot_create(image, "another", &options), EINVAL);
    CHECK_OK(qcow2_get_snapshot(image, 0, &info));
    CHECK(strcmp(info.name, name) == 0 && strcmp(info.id, name) == 0);
    test_close(image);
    test_expect_sound(path, false);
    CHECK(stock("snapshot -l \"$0\"", path));

    sprintf(option, "snapshot.name=%s", name);
    CHECK_OK(qcow2_open(path, QCOW2_OPEN_READ_ONLY, list_of_one, &image));
    test_expect(image, 0, 4096, 1);
    test_close(image);
    image = test_open(path, 0, NULL);
    CHECK_OK(qcow2_snapshot_apply(image, name, name));
    test_expect(image, 0, 4096, 1);
    name[100] = 'm';
    CHECK_ERROR(qcow2_snapshot_delete(image, NULL, name), ENOENT);
    name[100] = 'n';
    CHECK_OK(qcow2_snapshot_delete(image, NULL, name));
    test_close(image);
    test_expect_sound(path, false);
    free(name);
    free(option);
}

/* IDs are texts; the next one is a number all the same. */
static void ids_of_all_kinds(void)
{
    static const char *const ids[] = {"007", "8 and more", "eleven", "\xff\xfe", "6"};
    const char *path = test_create("ids.qcow2", MIB, NULL);
    qcow2_snapshot_options options = {.struct_size = sizeof options, .icount = UINT64_MAX};
    qcow2_snapshot_info info = {.struct_size = sizeof info};
    qcow2_image *image = test_open(path, 0, NULL);

    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        options.id = ids[i];
        test_fill(image, 0, 4096, 1 + (int)i);
        /* One name for all of them; the first in the table is meant by it. */
        CHECK_OK(qcow2_snapshot_create(image, "same", &options));
    }
    CHECK_OK(qcow2_snapshot_create(image, "6", NULL)); /* another one's ID */
    CHECK_OK(qcow2_get_snapshot(image, 5, &info));
    CHECK(strcmp(info.id, "9") == 0);
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        CHECK_OK(qcow2_snapshot_apply(image, ids[i], "same"));
        test_expect(image, 0, 4096, 1 + (int)i);
    }
    CHECK_ERROR(qcow2_snapshot_apply(image, "7", NULL), ENOENT);
    CHECK_ERROR(qcow2_snapshot_apply(image, "6", "6"), ENOENT);
    CHECK_OK(qcow2_snapshot_apply(image, NULL, "same"));
    test_expect(image, 0, 4096, 1);
    test_close(image);
    test_expect_sound(path, false);

    /* The stock tool takes an ID before a name. */
    CHECK(stock("snapshot -a 6 \"$0\" && qemu-io -r -c 'read -P 5 0 4096' \"$0\" | grep -qv failed", path));
    image = test_open(path, QCOW2_OPEN_READ_ONLY, "snapshot.name=6", NULL);
    CHECK_EQ(test_info(image).snapshot_count, 6);
    test_close(image);
    CHECK(stock("snapshot -d same \"$0\"", path));
    image = test_open(path, QCOW2_OPEN_READ_ONLY, "snapshot.name=same", NULL);
    test_expect(image, 0, 4096, 2);
    test_close(image);
    CHECK(stock("snapshot -l \"$0\" | grep -q '^eleven'", path));
    test_expect_sound(path, false);
}

int main(void)
{
    ids_of_all_kinds();
    long_names();
    a_full_table();
    return 0;
}
