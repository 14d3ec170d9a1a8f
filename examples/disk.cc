/* C++: a handle that closes itself, errors as exceptions with the library's sentence, requests on any container of bytes.
   SPDX-License-Identifier: MIT OR Apache-2.0
   c++ -std=c++17 disk.cc $(pkg-config --cflags --libs qcow2) -o disk && ./disk disk.qcow2 */
#include <cstdint>
#include <initializer_list>
#include <iostream>
#include <memory>
#include <qcow2.h>
#include <string>
#include <system_error>
#include <vector>

namespace qcow2
{

/* The code is the errno, the text what qcow2_last_error says. */
struct error : std::system_error {
    explicit error(int result)
        : std::system_error(-result, std::generic_category(), qcow2_last_error()) {}
};

inline int64_t check(int64_t result)
{
    if (result < 0) {
        throw error(static_cast<int>(result));
    }
    return result;
}

/* The list of options as C has it: valid while this lives. */
class options
{
  public:
    options(std::initializer_list<const char *> list) : words_(list) { words_.push_back(nullptr); }
    operator const char *const *() const { return words_.data(); }

  private:
    std::vector<const char *> words_;
};

inline void create(const std::string &path, uint64_t size, const options &how = {})
{
    check(qcow2_create(path.c_str(), size, how));
}

class image
{
  public:
    explicit image(const std::string &path, uint64_t flags = 0, const options &how = {})
    {
        qcow2_image *opened = nullptr;

        check(qcow2_open(path.c_str(), flags, how, &opened));
        handle_.reset(opened);
    }

    uint64_t size() const { return static_cast<uint64_t>(check(qcow2_length(handle_.get()))); }
    template <typename Bytes> void read(Bytes &to, uint64_t offset)
    {
        check(qcow2_pread(handle_.get(), to.data(), to.size() * sizeof *to.data(), offset));
    }
    template <typename Bytes> void write(const Bytes &from, uint64_t offset)
    {
        check(qcow2_pwrite(handle_.get(), from.data(), from.size() * sizeof *from.data(), offset));
    }
    void flush() { check(qcow2_flush(handle_.get())); }
    /* What the destructor cannot say: whether everything has reached the disk. */
    void close() { check(qcow2_close(handle_.release())); }

  private:
    struct closer {
        void operator()(qcow2_image *opened) const { qcow2_close(opened); }
    };
    std::unique_ptr<qcow2_image, closer> handle_;
};

} // namespace qcow2

int main(int argc, char **argv)
try {
    const std::string path = argc > 1 ? argv[1] : "disk.qcow2";

    qcow2::create(path, 1 << 30, {"lazy_refcounts=on"});
    qcow2::image disk(path, 0, {"cache=writeback"});
    std::vector<char> out(4096, 'x'), back(4096);

    disk.write(out, 12345);
    disk.flush();
    disk.read(back, 12345);
    std::cout << disk.size() << " bytes, " << (out == back ? "equal" : "different") << '\n';
    try {
        disk.read(back, disk.size());
    } catch (const qcow2::error &e) {
        std::cout << "past the end: " << e.what() << '\n';
    }
    disk.close();
    return out != back;
} catch (const std::exception &e) {
    std::cerr << e.what() << '\n';
    return 1;
}
