/* The digest of guest contents: that of a plain CRC-32 over all bytes, the same for equal contents however they are
   stored, another for other contents; a copy has the original's.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

static uint32_t crc_of(qcow2_image *image, uint64_t length)
{
    uint32_t crc = UINT32_MAX;
    unsigned char block[4096];

    for (uint64_t at = 0; at < length; at += sizeof block) {
        size_t count = length - at < sizeof block ? (size_t)(length - at) : sizeof block;

        CHECK_OK(qcow2_pread(image, block, count, at));
        for (size_t i = 0; i < count; i++) {
            crc ^= block[i];
            for (int bit = 0; bit < 8; bit++) {
                crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1)));
            }
        }
    }
    return ~crc;
}

static unsigned calls;

static int count_calls(void *opaque, uint64_t done, uint64_t total)
{
    CHECK(done <= total);
    calls++;
    return opaque != NULL;
}

/* The entry of a cluster of 4 KiB gets an offset that is no multiple of that. */
static void damage(const char *path, uint64_t guest_offset)
{
    unsigned char word[8];
    uint64_t table = 0, at = guest_offset / 4096;

    test_file_read(path, word, 8, 40);
    for (int i = 0; i < 8; i++) {
        table = table << 8 | word[i];
    }
    test_file_read(path, word, 8, table + at / 512 * 8);
    table = 0;
    for (int i = 0; i < 8; i++) {
        table = table << 8 | word[i];
    }
    table &= (uint64_t)0xfffffffffffe00;
    test_file_read(path, word, 8, table + at % 512 * 8);
    word[6] |= 2;
    test_file_write(path, word, 8, table + at % 512 * 8);
}

/* More threads find the same, and a failure of any of them is the call's. */
static void threads(void)
{
    static const char *const options[] = {"check-threads=2", "check-threads=5", "check-threads=64"};
    const uint64_t size = 12 * MIB + 512;
    const char *path = test_create("threads.qcow2", size, "cluster_size=4k", NULL);
    uint64_t state = 11;
    qcow2_image *image = test_open(path, 0, NULL);
    unsigned char block[70000];
    uint32_t crc, again = 0;

    for (int i = 0; i < 400; i++) {
        for (size_t b = 0; b < sizeof block; b++) {
            block[b] = (unsigned char)test_random(&state);
        }
        CHECK_OK(qcow2_pwrite(image, block, sizeof block, test_random(&state) % (size - sizeof block)));
    }
    CHECK_OK(qcow2_write_zeroes(image, 5 * MIB, 3000000, QCOW2_REQ_UNMAP));
    crc = test_checksum(image);
    CHECK_EQ(crc, crc_of(image, size));
    test_close(image);
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
        const char *const list[] = {options[i], NULL};

        CHECK_OK(qcow2_open(path, QCOW2_OPEN_READ_ONLY, list, &image));
        CHECK_EQ(test_checksum(image), crc);
        CHECK_ERROR(qcow2_checksum(image, &again, count_calls, &calls), ECANCELED);
        test_close(image);
    }
    /* An entry that no table can have, far behind the start. */
    damage(path, 10 * MIB);
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
        const char *const list[] = {options[i], NULL};

        CHECK_OK(qcow2_open(path, QCOW2_OPEN_READ_ONLY, list, &image));
        CHECK_ERROR(qcow2_checksum(image, &again, NULL, NULL), EIO);
        test_close(image);
    }
}

int main(void)
{
    uint64_t size = 3 * MIB + 512, state = 7;
    qcow2_image *image = test_open(test_create("a.qcow2", size, NULL), 0, NULL), *other;
    uint32_t empty = test_checksum(image), crc;
    unsigned char block[70000];

    CHECK_EQ(empty, crc_of(image, size));
    for (int i = 0; i < 12; i++) {
        for (size_t b = 0; b < sizeof block; b++) {
            block[b] = (unsigned char)test_random(&state);
        }
        CHECK_OK(qcow2_pwrite(image, block, sizeof block, test_random(&state) % (size - sizeof block)));
    }
    CHECK_OK(qcow2_write_zeroes(image, MIB, 200000, QCOW2_REQ_UNMAP));
    crc = test_checksum(image);
    CHECK_EQ(crc, crc_of(image, size));
    CHECK(crc != empty);

    /* A copy through the block interface into another geometry: the same contents. */
    other = test_open(test_create("b.qcow2", size, "cluster_size=512", "refcount_bits=1", NULL), 0, NULL);
    for (uint64_t at = 0; at < size;) {
        qcow2_extent extent = {.struct_size = sizeof extent};

        CHECK_OK(qcow2_block_status(image, at, size - at, 0, &extent));
        for (uint64_t done = 0; (extent.flags & QCOW2_EXTENT_DATA) && done < extent.length;) {
            size_t count = extent.length - done < sizeof block ? (size_t)(extent.length - done) : sizeof block;

            CHECK_OK(qcow2_pread(image, block, count, at + done));
            CHECK_OK(qcow2_pwrite(other, block, count, at + done));
            done += count;
        }
        at += extent.length;
    }
    CHECK_EQ(test_checksum(other), crc);
    CHECK_EQ(crc_of(other, size), crc);
    /* Written zeroes are like holes. */
    test_fill(other, MIB, 100000, 0);
    CHECK_EQ(test_checksum(other), crc);
    test_fill(other, size - 1, 1, 0x80 ^ 0);
    CHECK(test_checksum(other) != crc);
    test_close(other);

    /* Progress, and a cancel. */
    uint32_t again;
    CHECK_OK(qcow2_checksum(image, &again, count_calls, NULL));
    CHECK_EQ(again, crc);
    CHECK(calls > 0);
    CHECK_ERROR(qcow2_checksum(image, &again, count_calls, &calls), ECANCELED);
    test_close(image);

    /* Time goes by what is allocated: this would not end otherwise. */
    image = test_open(test_create("huge.qcow2", 1ull << 50, "cluster_size=2M", NULL), 0, NULL);
    test_fill(image, 1ull << 49, 4096, 1);
    alarm(test_under_valgrind() ? 600 : 60);
    CHECK(test_checksum(image) != 0);
    alarm(0);
    test_close(image);
    threads();
    return 0;
}
