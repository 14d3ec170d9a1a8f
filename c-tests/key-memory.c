/* The key of an open image is in no core dump of the process, and not in the memory of a forked child.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { KEY_BYTES = 16, METHOD_AT = 32 };

/* The key of the older AES is the secret itself. It stands nowhere in this program but inverted. */
static const unsigned char inverted[KEY_BYTES] = {0x6d, 0x1f, 0x9a, 0x44, 0xe7, 0x38, 0xc1, 0x52,
                                                  0x0b, 0xf6, 0x83, 0x2d, 0x95, 0x70, 0xae, 0x19};
/* In any dump of this process's data; the second half tells it from the program's text. */
static char mark[] = "a mark that a dump has: ............";
static const char *path;

static int64_t give_key(void *opaque, const qcow2_secret_request *request, void *buffer, size_t buffer_bytes)
{
    volatile unsigned char *key = buffer;

    (void)opaque;
    CHECK_EQ(request->encryption, QCOW2_ENCRYPTION_AES);
    CHECK(buffer_bytes >= KEY_BYTES);
    for (int at = 0; at < KEY_BYTES; at++)
        key[at] = inverted[at] ^ 0xff;
    return KEY_BYTES;
}

static qcow2_image *open_encrypted(void)
{
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
    qcow2_image *image;

    params.path = path;
    params.secret = give_key;
    CHECK_OK(qcow2_open_with(&params, &image));
    test_fill(image, 0, 65536, 5);
    test_fill(image, 100000, 700, 6);
    test_expect(image, 100000, 700, 6);
    return image;
}

static bool has_key(const unsigned char *bytes, size_t count)
{
    for (size_t from = 0; from + KEY_BYTES <= count; from++) {
        int at = 0;

        while (at < KEY_BYTES && (bytes[from + (size_t)at] ^ inverted[at]) == 0xff)
            at++;
        if (at == KEY_BYTES)
            return true;
    }
    return false;
}

/* Whether the key is in memory of this process that it may write to. `looked_at`: how much that is. */
static bool key_in_memory(uint64_t *looked_at)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    int memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    char line[512], access[8];
    uint64_t from, to;
    bool found = false;

    CHECK(maps != NULL && memory >= 0);
    while (fgets(line, sizeof line, maps) != NULL) {
        unsigned char page[4096 + KEY_BYTES] = "";

        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s", &from, &to, access) != 3 || access[1] != 'w')
            continue;
        for (uint64_t at = from; at < to && !found; at += 4096) {
            ssize_t count = pread(memory, page, sizeof page, (off_t)at);

            *looked_at += count > 0 ? (uint64_t)count : 0;
            /* Where this function has it, it is inverted or somebody else's. */
            found = count > 0 && has_key(page, (size_t)count);
        }
        explicit_bzero(page, sizeof page);
    }
    fclose(maps);
    close(memory);
    return found;
}

static void look_in_child(void *opaque)
{
    uint64_t looked_at = 0;

    (void)opaque;
    CHECK(!key_in_memory(&looked_at));
    CHECK(looked_at > 65536);
}

/* Dies with the image open; the host writes a core. */
static void die(const char *directory)
{
    struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};

    getrlimit(RLIMIT_CORE, &all);
    all.rlim_cur = all.rlim_max;
    setrlimit(RLIMIT_CORE, &all);
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    signal(SIGABRT, SIG_DFL);
    open_encrypted();
    memcpy(mark + 24, "in this one", 11);
    CHECK_EQ(chdir(directory), 0);
    abort();
}

/* Whether the host writes cores as files beside the program. */
static bool writes_cores(void)
{
    char pattern[128] = "", uses_pid[8] = "";
    FILE *file = fopen("/proc/sys/kernel/core_pattern", "r");

    if (file == NULL || fgets(pattern, sizeof pattern, file) == NULL)
        return false;
    fclose(file);
    file = fopen("/proc/sys/kernel/core_uses_pid", "r");
    if (file != NULL) {
        if (fgets(uses_pid, sizeof uses_pid, file) == NULL)
            uses_pid[0] = 0;
        fclose(file);
    }
    return strcmp(pattern, "core\n") == 0;
}

static void look_in_core(void)
{
    char directory[4096], name[4200];
    struct stat about;
    unsigned char *bytes;
    FILE *core;
    pid_t child;
    int status;

    snprintf(directory, sizeof directory, "%s", test_path("cores"));
    CHECK_EQ(mkdir(directory, 0700), 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        die(directory);
        _exit(1);
    }
    status = test_wait(child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    snprintf(name, sizeof name, "%s/core", directory);
    if (stat(name, &about) < 0) {
        snprintf(name, sizeof name, "%s/core.%d", directory, (int)child);
        if (stat(name, &about) < 0) {
            fprintf(stderr, "no core was written: that part is skipped\n");
            CHECK_EQ(rmdir(directory), 0);
            return;
        }
    }
    core = fopen(name, "r");
    bytes = malloc((size_t)about.st_size);
    CHECK(core != NULL && bytes != NULL);
    CHECK_EQ(fread(bytes, 1, (size_t)about.st_size, core), about.st_size);
    memcpy(mark + 24, "in this one", 11);
    CHECK(memmem(bytes, (size_t)about.st_size, mark, 35) != NULL);
    CHECK(!has_key(bytes, (size_t)about.st_size));
    free(bytes);
    fclose(core);
    CHECK_EQ(unlink(name), 0);
    CHECK_EQ(rmdir(directory), 0);
}

int main(void)
{
    static const unsigned char aes[4] = {0, 0, 0, 1};
    uint64_t looked_at = 0;
    qcow2_image *image;

    if (test_under_valgrind() || test_emulated())
        test_skip("memory is another program's here");
    path = test_create("encrypted.qcow2", MIB, NULL);
    test_file_write(path, aes, sizeof aes, METHOD_AT);
    if (SANITIZED || !writes_cores())
        fprintf(stderr, "cores are not looked at\n");
    else
        look_in_core();
    image = open_encrypted();
    /* The search finds it where it is. Without instructions for AES a key is kept in another shape. */
    if (!key_in_memory(&looked_at))
        fprintf(stderr, "the key is not in memory as it is: nothing is to be found\n");
    test_in_child(look_in_child, NULL);
    test_close(image);
    CHECK(!key_in_memory(&looked_at));
    return 0;
}
