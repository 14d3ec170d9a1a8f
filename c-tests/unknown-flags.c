/* Every bit that a call does not know is EINVAL, and the call has done nothing.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

static void each_unknown_bit(uint64_t known, int64_t (*call)(uint64_t flags))
{
    for (unsigned bit = 0; bit < 64; bit++) {
        uint64_t flag = 1ull << bit;

        if ((known & flag) == 0) {
            int64_t result = call(flag);

            if (result != -EINVAL) {
                test_fail(__FILE__, __LINE__, "bit %u: %" PRId64 ", expected -EINVAL", bit, result);
            }
        }
    }
}

static const char *path;
static qcow2_image *image;

static int64_t call_open(uint64_t flags)
{
    qcow2_image *out;
    return qcow2_open(path, flags, NULL, &out);
}

static int64_t call_reopen(uint64_t flags)
{
    return qcow2_reopen(image, flags, NULL);
}
static int64_t call_zeroes(uint64_t flags)
{
    return qcow2_write_zeroes(image, 0, 65536, flags);
}
static int64_t call_commit(uint64_t flags)
{
    return qcow2_commit(image, flags, NULL, NULL);
}

static int64_t call_write(uint64_t flags)
{
    char sector[512] = "";
    struct iovec one = {sector, sizeof sector};
    return qcow2_pwritev2(image, &one, 1, 0, flags);
}

static int64_t call_status(uint64_t flags)
{
    qcow2_extent extent = {.struct_size = sizeof extent};
    return qcow2_block_status(image, 0, 512, flags, &extent);
}

static int64_t call_check(uint64_t flags)
{
    qcow2_check_result result = {.struct_size = sizeof result};
    return qcow2_check(image, flags, &result, NULL, NULL, NULL, NULL);
}

static int64_t call_findings(uint64_t flags)
{
    qcow2_check_result result = {.struct_size = sizeof result};
    return qcow2_check_findings(image, flags, &result, NULL, NULL, NULL, NULL);
}

static int64_t call_amend(uint64_t flags)
{
    return qcow2_amend(image, NULL, flags, NULL, NULL);
}

int main(void)
{
    path = test_create("disk.qcow2", MIB, NULL);
    each_unknown_bit(0x3ff, call_open);
    image = test_open(path, 0, NULL);
    test_fill(image, 0, MIB, 1);
    each_unknown_bit(QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_NO_REPAIR, call_reopen);
    each_unknown_bit(QCOW2_REQ_FUA | QCOW2_REQ_UNMAP | QCOW2_REQ_NO_FALLBACK, call_zeroes);
    each_unknown_bit(QCOW2_REQ_FUA | QCOW2_REQ_COMPRESSED, call_write);
    each_unknown_bit(QCOW2_COMMIT_KEEP, call_commit);
    each_unknown_bit(QCOW2_AMEND_FORCE, call_amend);
    each_unknown_bit(QCOW2_STATUS_TOP_ONLY, call_status);
    each_unknown_bit(QCOW2_CHECK_REPAIR_LEAKS | QCOW2_CHECK_REPAIR_ERRORS, call_check);
    each_unknown_bit(QCOW2_CHECK_REPAIR_LEAKS | QCOW2_CHECK_REPAIR_ERRORS, call_findings);
    test_expect(image, 0, MIB, 1);
    test_close(image);

    qcow2_option_info info = {.struct_size = sizeof info};
    CHECK_ERROR(qcow2_option_list(0, 0, &info), EINVAL);
    CHECK_ERROR(qcow2_option_list(QCOW2_SCOPE_CREATE | QCOW2_SCOPE_OPEN, 0, &info), EINVAL);
    CHECK_ERROR(qcow2_option_list(-1, 0, &info), EINVAL);
    /* FORCE_SHARE is for readers. */
    CHECK_ERROR(call_open(QCOW2_OPEN_FORCE_SHARE), EINVAL);
    return 0;
}
