/* Zeroed and discarded ranges read as zeroes at every alignment, over data, holes and a backing file, in versions 2
   and 3, and nothing around them changes.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

static void one(const char *compat, bool backing, bool discard, uint64_t flags)
{
    uint64_t state = 3;
    unsigned char *model = malloc(MIB), *seen = malloc(MIB);
    const char *path = test_path("top.qcow2");
    qcow2_image *image;

    CHECK(model != NULL && seen != NULL);
    test_create("top.qcow2", MIB, compat, "cluster_size=4k", backing ? "backing_file=base.qcow2" : "cluster_size=4k",
                backing ? "backing_fmt=qcow2" : NULL, NULL);
    image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    memset(model, backing ? 7 : 0, MIB);
    test_fill(image, 0, MIB / 2, 1);
    memset(model, 1, MIB / 2);
    for (int i = 0; i < (test_under_valgrind() ? 20 : 200); i++) {
        uint64_t offset = test_random(&state) % MIB, length = test_random(&state) % 40000;

        if (length > MIB - offset) {
            length = MIB - offset;
        }
        if (i % 4 == 0) {
            test_fill(image, offset, length, i);
            memset(model + offset, i, length);
        } else if (discard) {
            uint64_t first = (offset + 4095) / 4096 * 4096, end = (offset + length) / 4096 * 4096;

            CHECK_OK(qcow2_discard(image, offset, length));
            CHECK_OK(qcow2_pread(image, seen, MIB, 0));
            /* Whole clusters are zero; in version 2 over a backing file they may stay as they were. */
            if (end > first && memcmp(seen + first, model + first, end - first) != 0) {
                memset(model + first, 0, end - first);
            }
        } else {
            CHECK_OK(qcow2_write_zeroes(image, offset, length, flags));
            memset(model + offset, 0, length);
        }
        CHECK_OK(qcow2_pread(image, seen, MIB, 0));
        if (!discard || !backing || strcmp(compat, "compat=1.1") == 0) {
            for (size_t b = 0; b < MIB; b++) {
                if (seen[b] != model[b]) {
                    test_fail(__FILE__, __LINE__, "%s, backing %d, discard %d, step %d: byte %zu is %#x, expected %#x",
                              compat, backing, discard, i, b, seen[b], model[b]);
                }
            }
        } else {
            memcpy(model, seen, MIB);
        }
    }
    uint32_t crc = test_checksum(image);
    test_close(image);
    test_expect_sound(path, false);
    image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED | QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_EQ(test_checksum(image), crc);
    test_close(image);
    free(model);
    free(seen);
}

int main(void)
{
    qcow2_image *image = test_open(test_create("base.qcow2", MIB, NULL), 0, NULL);

    test_fill(image, 0, MIB, 7);
    test_close(image);
    for (int backing = 0; backing < 2; backing++) {
        for (int v = 0; v < 2; v++) {
            const char *compat = v ? "compat=1.1" : "compat=0.10";

            one(compat, backing, false, 0);
            one(compat, backing, false, QCOW2_REQ_UNMAP);
            one(compat, backing, false, QCOW2_REQ_UNMAP | QCOW2_REQ_FUA);
            one(compat, backing, true, 0);
        }
    }
    return 0;
}
