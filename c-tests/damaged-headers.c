/* Every header field at its extremes, with 256 MiB of address space: an error with a text or a disk that can be
   read, never a crash, never a changed byte by an open that is refused or read-only.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <sys/resource.h>

#define CLUSTER 65536u

struct field {
    const char *name;
    unsigned offset, bytes;
};

static const struct field fields[] = {
    {"magic", 0, 4},
    {"version", 4, 4},
    {"backing file offset", 8, 8},
    {"backing file size", 16, 4},
    {"cluster bits", 20, 4},
    {"virtual size", 24, 8},
    {"crypt method", 32, 4},
    {"L1 size", 36, 4},
    {"L1 offset", 40, 8},
    {"refcount table offset", 48, 8},
    {"refcount table clusters", 56, 4},
    {"snapshots", 60, 4},
    {"snapshot table offset", 64, 8},
    {"incompatible features", 72, 8},
    {"compatible features", 80, 8},
    {"autoclear features", 88, 8},
    {"refcount order", 96, 4},
    {"header length", 100, 4},
    {"compression type", 104, 1},
    {"type of the first extension", 112, 4},
    {"length of the first extension", 116, 4},
};

/* What no image may have. */
static const struct {
    unsigned field;
    uint64_t value;
} refused_always[] = {
    {0, 0},
    {0, 0x514649},
    {1, 0},
    {1, 1},
    {1, 4},
    {1, UINT32_MAX},
    {4, 0},
    {4, 8},
    {4, 22},
    {4, 63},
    {4, 64},
    {4, UINT32_MAX},
    {5, UINT64_MAX},
    {5, 1ull << 63},
    {6, 3},
    {6, UINT32_MAX},
    {7, UINT32_MAX},
    {7, 0},
    {8, 1},
    {8, CLUSTER - 1},
    {8, UINT64_MAX},
    {8, 1ull << 63},
    {9, 1},
    {9, UINT64_MAX},
    {10, UINT32_MAX},
    {11, UINT32_MAX},
    {11, 65537},
    {13, 1ull << 63},
    {13, 1ull << 5},
    {16, 7},
    {16, 64},
    {16, UINT32_MAX},
    {17, 0},
    {17, 71},
    {17, 103},
    {17, UINT32_MAX},
    {17, CLUSTER + 8},
    {18, 1},
    {20, UINT32_MAX},
    {20, CLUSTER},
};

static unsigned cases, refusals;

static void put(unsigned char *at, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        at[i] = (unsigned char)(value >> (8 * (bytes - 1 - i)));
    }
}

static void use(qcow2_image *image, uint64_t flags)
{
    qcow2_check_result result = {.struct_size = sizeof result};
    qcow2_extent extent = {.struct_size = sizeof extent};
    qcow2_header_extension extension = {.struct_size = sizeof extension};
    qcow2_snapshot_info snapshot = {.struct_size = sizeof snapshot};
    char block[4096];
    int64_t length = qcow2_length(image);

    test_info(image);
    for (size_t i = 0; i < 5 && qcow2_get_header_extension(image, i, &extension) == 0; i++) {
        CHECK(extension.length == 0 || extension.data != NULL);
    }
    for (size_t i = 0; i < 5 && qcow2_get_snapshot(image, i, &snapshot) == 0; i++) {
        CHECK(snapshot.name != NULL);
    }
    if ((flags & QCOW2_OPEN_METADATA_ONLY) == 0 && length >= (int64_t)sizeof block) {
        CHECK(qcow2_pread(image, block, sizeof block, 0) == sizeof block || qcow2_last_error()[0] != '\0');
        CHECK(qcow2_pread(image, block, sizeof block, (uint64_t)length - sizeof block) == sizeof block ||
              qcow2_last_error()[0] != '\0');
        CHECK(qcow2_block_status(image, 0, (uint64_t)length, 0, &extent) == 0 || qcow2_last_error()[0] != '\0');
    }
    if (length < (int64_t)GIB) {
        CHECK(qcow2_check(image, 0, &result, NULL, NULL, NULL, NULL) == 0 || qcow2_last_error()[0] != '\0');
    }
}

/* Opens in every way; true when all guest opens were refused. */
static bool try(const char *path, const char *name, uint64_t value)
{
    static const uint64_t ways[] = {QCOW2_OPEN_READ_ONLY, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_METADATA_ONLY,
                                    QCOW2_OPEN_METADATA_ONLY, 0};
    uint64_t digest = test_digest(path);
    bool refused = true;

    for (unsigned i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        qcow2_image *image;
        int result = qcow2_open(path, ways[i], NULL, &image);

        cases++;
        if (result == 0) {
            refused = false;
            if (ways[i] & QCOW2_OPEN_READ_ONLY) {
                use(image, ways[i]);
            }
            qcow2_close(image);
        } else {
            refusals++;
            CHECK(image == NULL);
            if (qcow2_last_error()[0] == '\0') {
                test_fail(__FILE__, __LINE__, "%s = %#" PRIx64 ": refused without a text", name, value);
            }
            if (result == -ENOMEM) {
                test_fail(__FILE__, __LINE__, "%s = %#" PRIx64 ": out of memory: %s", name, value, qcow2_last_error());
            }
        }
        if ((result != 0 || (ways[i] & QCOW2_OPEN_READ_ONLY)) && test_digest(path) != digest) {
            test_fail(__FILE__, __LINE__, "%s = %#" PRIx64 ", flags %#" PRIx64 ": bytes have changed", name, value,
                      ways[i]);
        }
    }
    return refused;
}

static bool try_value(const char *good, const struct field *field, uint64_t value)
{
    const char *path = test_path("damaged.qcow2");
    unsigned char bytes[8];

    test_file_copy(good, path);
    put(bytes, value, field->bytes);
    test_file_write(path, bytes, field->bytes, field->offset);
    return try(path, field->name, value);
}

static void limit_memory(void)
{
#if !defined(__SANITIZE_ADDRESS__)
    struct rlimit limit = {256 * MIB, 256 * MIB};

    if (!test_under_valgrind()) {
        CHECK_EQ(setrlimit(RLIMIT_AS, &limit), 0);
    }
#endif
}

int main(void)
{
    const char *good = test_create("good.qcow2", 16 * MIB, NULL);
    qcow2_image *image = test_open(good, 0, NULL);
    uint64_t length;

    test_fill(image, 0, CLUSTER, 1);
    test_close(image);
    length = test_file_length(good);
    limit_memory();

    for (unsigned i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        uint64_t top = fields[i].bytes == 8 ? UINT64_MAX : (1ull << (8 * fields[i].bytes)) - 1;
        const uint64_t values[] = {0,
                                   1,
                                   2,
                                   top,
                                   top - 1,
                                   top / 2,
                                   top / 2 + 1,
                                   top & ~(uint64_t)(CLUSTER - 1),
                                   CLUSTER,
                                   CLUSTER + 8,
                                   CLUSTER - 1,
                                   length,
                                   length - CLUSTER,
                                   length + CLUSTER,
                                   64,
                                   512,
                                   1024,
                                   1ull << 32,
                                   1ull << 55,
                                   1ull << 56,
                                   (1ull << 56) - CLUSTER};

        for (unsigned v = 0; v < sizeof values / sizeof values[0]; v++) {
            if (values[v] <= top) {
                try_value(good, &fields[i], values[v]);
            }
        }
    }
    for (unsigned i = 0; i < sizeof refused_always / sizeof refused_always[0]; i++) {
        const struct field *field = &fields[refused_always[i].field];

        if (!try_value(good, field, refused_always[i].value)) {
            fprintf(stderr, "%s = %#" PRIx64 " was taken by some open\n", field->name, refused_always[i].value);
            qcow2_image *out;
            test_file_copy(good, test_path("damaged.qcow2"));
            unsigned char bytes[8];
            put(bytes, refused_always[i].value, field->bytes);
            test_file_write(test_path("damaged.qcow2"), bytes, field->bytes, field->offset);
            CHECK(qcow2_open(test_path("damaged.qcow2"), 0, NULL, &out) < 0);
        }
    }

    /* Every length of file up to the end of the header, and some beyond. */
    for (uint64_t cut = 0; cut < 256; cut += cut < 120 ? 1 : 17) {
        const char *path = test_path("short.qcow2");

        test_file_copy(good, path);
        CHECK_EQ(truncate(path, (off_t)cut), 0);
        CHECK(try(path, "file length", cut) || cut > 104);
    }
    printf("%u opens, %u refused\n", cases, refusals);
    CHECK(cases > 1000);
    CHECK(refusals > 400);
    return 0;
}
