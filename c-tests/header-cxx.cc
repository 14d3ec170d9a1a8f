// The header in C++: initialisers, callbacks and constants work without casts.
// SPDX-License-Identifier: MIT OR Apache-2.0
#include <qcow2.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

void fail(const char *what)
{
    std::fprintf(stderr, "%s: %s\n", what, qcow2_last_error());
    std::exit(1);
}

int on_progress(void *opaque, uint64_t done, uint64_t total)
{
    *static_cast<uint64_t *>(opaque) = total - done;
    return 0;
}

}  // namespace

int main()
{
    const char *base = std::getenv("TMPDIR");
    std::string path = std::string(base != nullptr ? base : "/tmp") + "/qcow2-cxx.XXXXXX";
    const char *const options[] = {"cluster_size=4k", nullptr};
    std::vector<char> data(100000, 'c'), back(data.size());
    uint64_t left = 1;
    uint32_t crc = 0;
    qcow2_image *image = nullptr;
    int fd = mkstemp(&path[0]);

    if (fd < 0)
        return 1;
    if (qcow2_create_fd(fd, 1 << 20, options) != 0)
        fail("create");
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
    params.path = path.c_str();
    params.flags = QCOW2_OPEN_NO_REPAIR;
    if (qcow2_open_with(&params, &image) != 0)
        fail("open");
    if (qcow2_pwrite(image, data.data(), data.size(), 1234) != static_cast<ssize_t>(data.size()))
        fail("write");
    if (qcow2_pread(image, back.data(), back.size(), 1234) != static_cast<ssize_t>(back.size()) || back != data)
        fail("read");
    if (qcow2_checksum(image, &crc, on_progress, &left) != 0 || left != 0)
        fail("checksum");
    qcow2_info info = qcow2_info();
    info.struct_size = sizeof info;
    if (qcow2_get_info(image, &info) != 0 || info.virtual_size != 1 << 20)
        fail("info");
    if (qcow2_close(image) != 0)
        fail("close");
    std::remove(path.c_str());
    return 0;
}
