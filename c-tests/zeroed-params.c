/* Structs of parameters that begin with zeroes: descriptor 0 is one only where a flag or a call of its own says so.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <fcntl.h>
#include <unistd.h>

static int answer_with_zeroes(void *opaque, const qcow2_resolve_request *request, qcow2_resolve_answer *answer)
{
    (void)opaque;
    *answer = (qcow2_resolve_answer){.struct_size = sizeof *answer, .path = request->resolved_path};
    return 0;
}

static int answer_nothing(void *opaque, const qcow2_resolve_request *request, qcow2_resolve_answer *answer)
{
    (void)opaque, (void)request, (void)answer;
    return 0;
}

static void opening(const char *path)
{
    qcow2_open_params by_path = {.struct_size = sizeof by_path, .path = path};
    qcow2_open_params nothing = {.struct_size = sizeof nothing};
    qcow2_open_params by_zero = {.struct_size = sizeof by_zero, .flags = QCOW2_OPEN_FD};
    qcow2_open_params both = {.struct_size = sizeof both, .path = path, .flags = QCOW2_OPEN_FD};
    qcow2_open_params none = {.struct_size = sizeof none, .path = path, .fd = -1, .flags = QCOW2_OPEN_FD};
    qcow2_open_params overlay = {
        .struct_size = sizeof overlay,
        .path = test_create("top.qcow2", MIB, "backing_file=disk.qcow2", "backing_fmt=qcow2", NULL),
        .resolve = answer_with_zeroes};
    qcow2_image *image;
    int other = open(path, O_RDWR | O_CLOEXEC);

    CHECK_OK(qcow2_open_with(&by_path, &image));
    test_close(image);
    CHECK_ERROR(qcow2_open_with(&nothing, &image), EINVAL);
    CHECK_TEXT("QCOW2_OPEN_FD");
    CHECK_ERROR(qcow2_open_with(&both, &image), EINVAL);
    CHECK_ERROR(qcow2_open_with(&none, &image), EINVAL);
    CHECK_TEXT("QCOW2_OPEN_FD");

    CHECK_EQ(dup2(other, 0), 0);
    CHECK_OK(qcow2_open_with(&by_zero, &image));
    test_expect(image, 0, MIB, 5);
    test_close(image);
    CHECK_OK(qcow2_open_fd(0, 0, NULL, &image));
    test_close(image);
    CHECK_ERROR(qcow2_open_with(&nothing, &image), EINVAL);

    /* The resolver's answer; the program's own descriptor 0 is something else. */
    CHECK_EQ(dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), 0), 0);
    CHECK_OK(qcow2_open_with(&overlay, &image));
    test_expect(image, 0, MIB, 5);
    test_close(image);
    overlay.resolve = answer_nothing;
    CHECK_ERROR(qcow2_open_with(&overlay, &image), EINVAL);
    CHECK_TEXT("none of path, fd and io");
    CHECK_TEXT("disk.qcow2");
    close(other);
}

static void creating(void)
{
    static const char *const by_name[] = {"data_file=data.raw", NULL};
    qcow2_create_params by_path = {.struct_size = sizeof by_path, .path = test_path("new.qcow2"), .size = MIB};
    qcow2_create_params nothing = {.struct_size = sizeof nothing, .size = MIB};
    qcow2_create_params by_zero = {.struct_size = sizeof by_zero, .size = MIB, .flags = QCOW2_CREATE_FD};
    qcow2_create_params data = {.struct_size = sizeof data,
                                .path = test_path("new.qcow2"),
                                .size = MIB,
                                .options = by_name,
                                .data_path = test_path("data.raw")};
    qcow2_create_params unknown = by_path;
    int zero = open(test_path("zero.qcow2"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    CHECK_OK(qcow2_create_with(&by_path));
    CHECK_ERROR(qcow2_create_with(&nothing), EINVAL);
    CHECK_TEXT("QCOW2_CREATE_FD");
    CHECK_EQ(dup2(zero, 0), 0);
    CHECK_ERROR(qcow2_create_with(&nothing), EINVAL);
    CHECK_EQ(test_file_length(test_path("zero.qcow2")), 0);
    CHECK_OK(qcow2_create_with(&by_zero));
    test_close(test_open(test_path("zero.qcow2"), 0, NULL));
    CHECK_OK(qcow2_create_with(&data));
    CHECK_EQ(test_file_length(test_path("data.raw")), MIB);
    for (unsigned bit = 2; bit < 64; bit++) {
        unknown.flags = 1ull << bit;
        CHECK_ERROR(qcow2_create_with(&unknown), EINVAL);
    }
    /* By descriptor 0, and a data file at descriptor 0. */
    close(zero);
    zero = open(test_path("data.raw"), O_RDWR | O_TRUNC | O_CLOEXEC);
    CHECK_EQ(dup2(zero, 0), 0);
    data.data_path = NULL;
    data.flags = QCOW2_CREATE_DATA_FD;
    CHECK_OK(qcow2_create_with(&data));
    CHECK_EQ(test_file_length(test_path("data.raw")), MIB);
    close(zero);
}

int main(void)
{
    const char *path = test_create("disk.qcow2", MIB, NULL);
    qcow2_image *image = test_open(path, 0, NULL);

    test_fill(image, 0, MIB, 5);
    test_close(image);
    opening(path);
    creating();
    return 0;
}
