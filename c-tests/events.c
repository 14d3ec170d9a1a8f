/* A caller's storage is told what comes next, in an order that a test can rely on, and may fail it; what it knows of its
   holes is believed once a sync has covered it.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <string.h>

static char told[65536]; /* " NAME NAME ..." */
static const char *fail_at;
static struct test_memory memory = TEST_MEMORY_INIT;

static void event(void *opaque, const char *name)
{
    struct test_memory *storage = opaque;

    CHECK(strlen(told) + strlen(name) + 2 < sizeof(told));
    strcat(strcat(told, " "), name);
    if (fail_at != NULL && strcmp(name, fail_at) == 0) {
        storage->fail_write = EIO;
    }
}

/* Whether the names were told in this order, perhaps with others between them. */
static bool in_order(const char *const *names)
{
    const char *at = told;

    for (; *names != NULL; names++) {
        char word[64];

        snprintf(word, sizeof(word), " %s", *names);
        at = strstr(at, word);
        if (at == NULL) {
            fprintf(stderr, "%s is missing in:%s\n", *names, told);
            return false;
        }
        at += strlen(word);
    }
    return true;
}

#define IN_ORDER(...) in_order((const char *const[]){__VA_ARGS__, NULL})

static qcow2_io_ops listening(void)
{
    qcow2_io_ops ops = test_memory_ops;

    ops.event = event;
    return ops;
}

static void are_told(const qcow2_io_ops *ops)
{
    qcow2_image *image;

    CHECK_OK(test_memory_open(ops, &memory, 0, &image));
    *told = '\0';
    test_fill(image, 0, 128 << 10, 1);
    CHECK(IN_ORDER("cluster_alloc", "l2_alloc_write", "write_aio"));
    CHECK_OK(qcow2_flush(image));
    CHECK(IN_ORDER("write_aio", "refblock_update_part", "l2_update"));
    CHECK(strstr(told, " l1_update") != NULL && strstr(told, " l2_load") == NULL);
    *told = '\0';
    CHECK_OK(qcow2_discard(image, 0, 64 << 10));
    CHECK_OK(qcow2_flush(image));
    CHECK(IN_ORDER("l2_update", "cluster_free"));
    CHECK_EQ(qcow2_vmstate_write(image, "state", 5, 0), 5);
    CHECK(strstr(told, " vmstate_save") != NULL);
    test_close(image);
    CHECK_OK(test_memory_open(ops, &memory, QCOW2_OPEN_READ_ONLY, &image));
    *told = '\0';
    test_expect(image, 64 << 10, 64 << 10, 1);
    CHECK(IN_ORDER("l2_load", "read_aio"));
    test_close(image);
}

/* The image grows through all of its tables. */
static void tables_grow(const qcow2_io_ops *ops)
{
    static const char *const small[] = {"cluster_size=512", "refcount_bits=64", NULL};
    qcow2_image *image;

    test_memory_free(&memory);
    CHECK_OK(qcow2_create_io(ops, &memory, 64 * MIB, small));
    CHECK_OK(test_memory_open(ops, &memory, 0, &image));
    *told = '\0';
    test_fill(image, 0, 8 * MIB, 2);
    CHECK(IN_ORDER("refblock_alloc", "refblock_alloc_write", "refblock_alloc_hookup"));
    CHECK(IN_ORDER("reftable_grow", "refblock_alloc_write_blocks", "refblock_alloc_write_table",
                   "refblock_alloc_switch_table"));
    *told = '\0';
    CHECK_OK(qcow2_truncate(image, 1024 * MIB, QCOW2_PREALLOC_OFF));
    CHECK(IN_ORDER("l1_grow_alloc_table", "l1_grow_write_table", "l1_grow_activate_table"));
    *told = '\0';
    CHECK_OK(qcow2_make_empty(image));
    CHECK(IN_ORDER("empty_image_prepare", "cluster_free"));
    test_close(image);
}

static void can_fail(const qcow2_io_ops *ops)
{
    static const char *const events[] = {"write_aio", "cluster_alloc", "l2_alloc_write", "refblock_update_part"};
    qcow2_check_result result = {.struct_size = sizeof result};
    qcow2_image *image;

    for (size_t i = 0; i < sizeof(events) / sizeof(events[0]); i++) {
        int ret;

        test_memory_free(&memory);
        CHECK_OK(qcow2_create_io(ops, &memory, 64 * MIB, NULL));
        CHECK_OK(test_memory_open(ops, &memory, 0, &image));
        fail_at = events[i];
        ret = (int)qcow2_pwrite(image, "some bytes", 10, 0);
        ret = ret < 0 ? ret : qcow2_flush(image);
        CHECK_EQ(ret, -EIO);
        fail_at = NULL;
        memory.fail_write = 0;
        CHECK_EQ(qcow2_pwrite(image, "some bytes", 10, 0), 10);
        CHECK_OK(qcow2_flush(image));
        CHECK_OK(qcow2_check(image, 0, &result, NULL, NULL, NULL, NULL));
        CHECK_EQ(result.corruptions, 0);
        test_close(image);
    }
}

/* The second half of the storage is said to be a hole. */
static int status(void *opaque, uint64_t offset, uint64_t length, uint64_t *run, uint32_t *flags)
{
    uint64_t half = ((struct test_memory *)opaque)->length / 2;

    *flags = offset < half ? QCOW2_EXTENT_DATA : QCOW2_EXTENT_ZERO;
    *run = offset < half && length > half - offset ? half - offset : length;
    return 0;
}

static void holes_are_known(void)
{
    qcow2_io_ops ops = test_memory_ops;
    qcow2_extent extent = {.struct_size = sizeof extent};
    qcow2_image *image;

    test_memory_free(&memory);
    ops.block_status = status;
    CHECK_OK(ops.truncate(&memory, 2 * MIB));
    ops.pwritev = NULL; /* what nobody writes is settled */
    CHECK_OK(test_memory_open(&ops, &memory, QCOW2_OPEN_RAW | QCOW2_OPEN_READ_ONLY, &image));
    CHECK_OK(qcow2_block_status(image, 0, 2 * MIB, 0, &extent));
    CHECK_EQ(extent.length, MIB);
    CHECK((extent.flags & QCOW2_EXTENT_DATA) != 0);
    CHECK_OK(qcow2_block_status(image, MIB, MIB, 0, &extent));
    CHECK_EQ(extent.length, MIB);
    CHECK((extent.flags & (QCOW2_EXTENT_ZERO | QCOW2_EXTENT_DATA)) == QCOW2_EXTENT_ZERO);
    test_close(image);
}

int main(void)
{
    qcow2_io_ops ops = listening();

    CHECK_OK(qcow2_create_io(&ops, &memory, 64 * MIB, NULL));
    are_told(&ops);
    tables_grow(&ops);
    can_fail(&ops);
    holes_are_known();
    test_memory_free(&memory);
    return 0;
}
