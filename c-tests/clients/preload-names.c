/* Names, places and buffers, once of a raw file and once of an image under the shim. Arguments: the shim.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "../test.h"

#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>

static char path[4096];

static void content(const char *wanted)
{
    char found[4096] = "";
    int fd = open(path, O_RDONLY);

    CHECK(fd >= 0);
    CHECK_EQ(read(fd, found, sizeof found - 1), (ssize_t)strlen(wanted));
    CHECK(strcmp(found, wanted) == 0);
    CHECK_EQ(close(fd), 0);
}

static int make(const char *text)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    CHECK(fd >= 0);
    CHECK_EQ(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    CHECK_EQ(lseek(fd, 0, SEEK_SET), 0);
    return fd;
}

/* A new file under an image's name is an image. */
static void temporary(void)
{
    char name[5000], other[5000];
    size_t length = strlen(path);
    const char *end = strcmp(path + length - 6, ".qcow2") == 0 ? ".qcow2" : "";
    int fd;

    snprintf(name, sizeof name, "%s-XXXXXX%s", path, end);
    snprintf(other, sizeof other, "%s", name);
    fd = mkstemps(name, (int)strlen(end));
    CHECK(fd >= 0 && strcmp(name, other) != 0);
    CHECK_EQ(write(fd, "temporary", 9), 9);
    CHECK_EQ(close(fd), 0);
    CHECK_EQ(rename(name, path), 0);
    content("temporary");
    CHECK_EQ(mkostemps(name, 1000000, 0), -1);
    CHECK_EQ(errno, EINVAL);
}

/* The names that /proc and /dev have for descriptors, of this process and for another one. */
static void names_of_descriptors(void)
{
    const char *const forms[] = {"/proc/self/fd/%d", "/proc/thread-self/fd/%d", "/dev/fd/%d", "/proc/%2$d/fd/%1$d"};
    int fds[2];

    close(make("text of it"));
    fds[0] = open(path, O_RDONLY);
    fds[1] = open(path, O_PATH);
    for (int i = 0; i < 2; i++) {
        struct stat status;
        struct statx extended;
        char name[64], bytes[4], command[200];

        CHECK_EQ(fstat(fds[i], &status), 0);
        CHECK_EQ(status.st_size, 10);
        CHECK_EQ(statx(fds[i], "", AT_EMPTY_PATH, STATX_SIZE, &extended), 0);
        CHECK_EQ(extended.stx_size, 10);
        for (size_t k = 0; k < sizeof forms / sizeof forms[0]; k++) {
            int fd;

            snprintf(name, sizeof name, forms[k], fds[i], (int)getpid());
            fd = open(name, O_RDONLY);
            CHECK_EQ(read(fd, bytes, 4), 4);
            CHECK_EQ(memcmp(bytes, "text", 4), 0);
            close(fd);
            CHECK_EQ(stat(name, &status), 0);
            CHECK_EQ(status.st_size, 10);
        }
        snprintf(command, sizeof command, "test \"$(cat %s)\" = 'text of it'", name);
        CHECK_EQ(system(command), 0);
        close(fds[i]);
    }
}

/* Also where bytes are not read from a file: holes, and what is written is compared with them. */
static void nowhere(void)
{
    char *volatile places[] = {NULL, (char *)16, (char *)-4096};
    int fd = make("data");

    CHECK_EQ(ftruncate(fd, 1 << 20), 0);
    for (int i = 0; i < 3; i++) {
        struct iovec iov = {places[i], 512};

        for (off_t at = 0; at < 1 << 20; at += 1 << 19) {
            CHECK_EQ(pread(fd, places[i], 4096, at), -1);
            CHECK_EQ(errno, EFAULT);
            CHECK_EQ(preadv(fd, &iov, 1, at), -1);
            CHECK_EQ(errno, EFAULT);
            CHECK_EQ(pwrite(fd, places[i], 512, at), -1);
            CHECK_EQ(errno, EFAULT);
            CHECK_EQ(lseek(fd, at, SEEK_SET), at);
            CHECK_EQ(read(fd, places[i], 512), -1);
            CHECK_EQ(errno, EFAULT);
        }
        CHECK_EQ(i == 2 ? 0 : pread(fd, places[i], 0, 0), 0);
    }
    close(fd);
}

/* At the limits of what numbers a file has. */
static void far_places(void)
{
    int fd = make("abc");

    CHECK_EQ(lseek(fd, 1, SEEK_SET), 1);
    CHECK_EQ(lseek(fd, INT64_MAX, SEEK_CUR), -1);
    CHECK_EQ(errno, EINVAL);
    CHECK_EQ(pwrite(fd, "0123456789", 10, INT64_MAX - 5), -1);
    CHECK_EQ(errno, EINVAL);
    CHECK_EQ(pwrite(fd, "0123456789", 10, INT64_C(1) << 62), -1);
    CHECK_EQ(errno, EFBIG);
    CHECK_EQ(pread(fd, (char[10]){0}, 10, INT64_MAX - 5), -1);
    CHECK_EQ(errno, EINVAL);
    CHECK_EQ(close(fd), 0);
    content("abc");
}

/* What a symbolic link leads to is made. */
static void through_link(void)
{
    char name[5000];

    snprintf(name, sizeof name, "%s-target%s", path, strcmp(path + strlen(path) - 6, ".qcow2") == 0 ? ".qcow2" : "");
    close(make("another"));
    CHECK_EQ(unlink(path), 0);
    CHECK_EQ(symlink(name, path), 0);
    close(make("linked"));
    content("linked");
    CHECK_EQ(unlink(path), 0);
    CHECK_EQ(rename(name, path), 0);
    content("linked");
}

/* The image's own attribute is none of the program's. */
static void attributes(void)
{
    char names[1000];
    int fd = make("of a length that is kept");
    ssize_t length = flistxattr(fd, names, sizeof names);

    CHECK(length >= 0 && memmem(names, (size_t)length, "libqcow2", 8) == NULL);
    CHECK_EQ(flistxattr(fd, NULL, 0), length);
    length = listxattr(path, names, sizeof names);
    CHECK(length >= 0 && memmem(names, (size_t)length, "libqcow2", 8) == NULL);
    close(fd);
}

/* A stream becomes that of another file, which has its number then. */
static void reopened(void)
{
    char name[5000], text[32] = "";
    FILE *stream;
    int number;

    snprintf(name, sizeof name, "%s.txt", path);
    stream = fopen(name, "w");
    CHECK(stream != NULL && fputs("plain", stream) >= 0 && fclose(stream) == 0);
    close(make("text of it"));
    stream = fopen(path, "r");
    CHECK(stream != NULL);
    number = fileno(stream);
    CHECK_EQ(fgetc(stream), 't');
    stream = freopen(name, "r", stream);
    CHECK(stream != NULL && fgets(text, sizeof text, stream) != NULL && strcmp(text, "plain") == 0);
    CHECK(feof(stream) && fileno(stream) == number);
    stream = freopen(name, "a+", stream);
    CHECK(stream != NULL && !feof(stream) && ftell(stream) == 0);
    CHECK(fputs(" and more", stream) >= 0);
    rewind(stream);
    CHECK(fgets(text, sizeof text, stream) != NULL && strcmp(text, "plain and more") == 0);
    CHECK_EQ(fclose(stream), 0);
    CHECK_EQ(fcntl(number, F_GETFD), -1);
    content("text of it");
    CHECK_EQ(unlink(name), 0);
}

static int visit(const char *name, const struct stat *status, int kind)
{
    (void)name;
    (void)status;
    (void)kind;
    return 0;
}

/* A walk shows files' lengths, and the report says so. */
static void walked(const char *shim)
{
    char self[4096] = "", setting[5000];

    CHECK(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    snprintf(setting, sizeof setting, "LIBQCOW2_REPORT=%s", test_path("report"));
    CHECK_EQ(test_run((const char *const[]){"env", setting, self, shim, "walk", NULL}), 0);
    CHECK_EQ(test_run((const char *const[]){"grep", "-q", "not served: ftw", test_path("report"), NULL}), 0);
}

/* What is renamed by number is renamed as by name. */
static void by_number(void)
{
    close(make("text"));
    CHECK_EQ(syscall(SYS_renameat, AT_FDCWD, path, AT_FDCWD, test_path("another.img")), -1);
    CHECK_EQ(errno, EXDEV);
}

/* Root may open what others may not. */
static void as_another_user(void)
{
    char old[4096], directory[] = "/tmp/preload-names-XXXXXX";
    pid_t child;

    if (geteuid() != 0) {
        return;
    }
    CHECK(mkdtemp(directory) != NULL);
    CHECK_EQ(chmod(directory, 0777), 0);
    snprintf(old, sizeof old, "%s", path);
    snprintf(path, sizeof path, "%s/other.qcow2", directory);
    child = fork();
    if (child == 0) {
        if (setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0) {
            close(make("of another user"));
            content("of another user");
        }
        _exit(0);
    }
    CHECK_EQ(test_wait(child), 0);
    unlink(path);
    CHECK_EQ(rmdir(directory), 0);
    snprintf(path, sizeof path, "%s", old);
}

static void all(void)
{
    temporary();
    names_of_descriptors();
    nowhere();
    far_places();
    through_link();
    attributes();
    reopened();
    as_another_user();
}

int main(int argc, char **argv)
{
    if (argc > 1 && getenv("LD_PRELOAD") == NULL) {
        setenv("LD_PRELOAD", argv[1], 1);
        execv("/proc/self/exe", argv);
        return 1;
    }
    if (argc > 2) {
        return ftw("/dev/null", visit, 4);
    }
    snprintf(path, sizeof path, "%s", test_path("image.qcow2"));
    all();
    by_number();
    walked(argv[1]);
    CHECK_EQ(test_run((const char *const[]){"env", "LD_PRELOAD=", "grep", "-q", "^QFI", path, NULL}), 0);
    snprintf(path, sizeof path, "%s", test_path("raw"));
    all();
    return 0;
}
