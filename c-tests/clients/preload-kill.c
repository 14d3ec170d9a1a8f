/* SIGKILL of a program that writes under the shim, at random moments: nothing that a write has returned for is lost, the
   image opens again and is sound. Arguments: the shim. QCOW2_TEST_KILLS sets how often (10).
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "../test.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>

enum { WRITES = 6000, UNIT = 3000 };
#define PLACES ((uint64_t)8192)

/* Outlives the writer. */
struct ledger {
    atomic_uint done;
};

/* Each write has a place of its own; a program that appends takes them in order. */
static uint64_t place(bool appends, unsigned number)
{
    return (appends ? number : (uint64_t)number * 5471 % PLACES) * UNIT;
}

static void content(char *buffer, unsigned number)
{
    uint64_t state = number + 1;

    for (size_t at = 0; at < UNIT; at += 8) {
        uint64_t word = test_random(&state);

        memcpy(buffer + at, &word, 8);
    }
}

static struct ledger *map_ledger(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    void *map;

    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, sizeof(struct ledger)), 0);
    map = mmap(NULL, sizeof(struct ledger), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED);
    close(fd);
    return map;
}

/* Of a file that is made shorter and longer. */
static const off_t lengths[] = {3000001, 1000001};

static int resizer(const char *path, const char *ledger_path)
{
    struct ledger *ledger = map_ledger(ledger_path);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);

    for (unsigned number = 0; ftruncate(fd, lengths[number % 2]) == 0; number++) {
        if (pwrite(fd, "x", 1, lengths[number % 2] - 1) != 1) {
            break;
        }
        atomic_store(&ledger->done, number + 1);
    }
    perror("ftruncate");
    return 1;
}

static int writer(const char *path, const char *ledger_path, bool appends)
{
    struct ledger *ledger = map_ledger(ledger_path);
    int fd = open(path, O_WRONLY | O_CREAT | (appends ? O_APPEND : 0), 0600);
    char buffer[UNIT];

    for (unsigned number = 0; number < WRITES; number++) {
        content(buffer, number);
        if ((appends ? write(fd, buffer, UNIT) : pwrite(fd, buffer, UNIT, (off_t)place(false, number))) != UNIT) {
            perror("write");
            return 1;
        }
        atomic_store(&ledger->done, number + 1);
    }
    pause();
    return 0;
}

static unsigned kill_once(const char *self, const char *shim, const char *path, const char *how, uint64_t wait_us)
{
    const char *ledger_path = test_path("ledger");
    struct ledger *ledger;
    struct timespec pause;
    unsigned done;
    pid_t child;

    unlink(ledger_path);
    ledger = map_ledger(ledger_path);
    child = fork();
    if (child == 0) {
        setenv("LD_PRELOAD", shim, 1);
        execl(self, self, "write", path, ledger_path, how, (char *)NULL);
        _exit(127);
    }
    while (atomic_load(&ledger->done) == 0 && kill(child, 0) == 0) {
        pause = (struct timespec){.tv_nsec = 100000};
        nanosleep(&pause, NULL);
        CHECK_EQ(waitpid(child, NULL, WNOHANG), 0);
    }
    pause = (struct timespec){.tv_nsec = (long)wait_us * 1000};
    nanosleep(&pause, NULL);
    kill(child, SIGKILL);
    CHECK_EQ(WTERMSIG(test_wait(child)), SIGKILL);
    done = atomic_load(&ledger->done);
    munmap(ledger, sizeof *ledger);
    return done;
}

static long long length_of(const char *shim, const char *path)
{
    char command[9000];
    long long length = -1;
    FILE *said;

    snprintf(command, sizeof command, "LD_PRELOAD='%s' stat -c %%s '%s'", shim, path);
    said = popen(command, "r");
    CHECK(said != NULL);
    CHECK_EQ(fscanf(said, "%lld", &length), 1);
    CHECK_EQ(pclose(said), 0);
    return length;
}

/* A file that was appended to is as long as what has been written, and perhaps one write more. */
static void verify_length(const char *shim, const char *path, unsigned done)
{
    long long length = length_of(shim, path);

    CHECK(length == (long long)done * UNIT || length == (long long)(done + 1) * UNIT);
}

static void verify(const char *path, bool appends, unsigned done)
{
    qcow2_image *image = test_open(path, 0, NULL);
    char expected[UNIT], found[UNIT];

    for (unsigned number = 0; number < done; number++) {
        content(expected, number);
        CHECK_OK(qcow2_pread(image, found, UNIT, place(appends, number)));
        if (memcmp(expected, found, UNIT) != 0) {
            test_fail(__FILE__, __LINE__, "write %u of %u is lost", number, done);
        }
    }
    test_close(image);
    test_expect_sound(path, false);
}

int main(int argc, char **argv)
{
    uint64_t seed = test_setting("QCOW2_TEST_SEED", 1), total = 0;
    unsigned kills = (unsigned)test_setting("QCOW2_TEST_KILLS", 10);
    char self[4096];
    ssize_t length;

    if (argc == 5) {
        return argv[4][0] == 't' ? resizer(argv[2], argv[3]) : writer(argv[2], argv[3], argv[4][0] == 'a');
    }
    CHECK(argc == 2);
    length = readlink("/proc/self/exe", self, sizeof self - 1);
    CHECK(length > 0);
    self[length] = '\0';
    for (unsigned i = 0; i < kills; i++) {
        bool appends = i % 2 == 1;
        const char *path = test_path("killed.qcow2");
        unsigned done;

        unlink(path);
        if (!appends) {
            test_create("killed.qcow2", PLACES * UNIT, "lazy_refcounts=on", NULL);
        }
        done = kill_once(self, argv[1], path, appends ? "append" : "place", test_random(&seed) % 150000);
        if (appends) {
            verify_length(argv[1], path, done);
        }
        verify(path, appends, done);
        total += done;
    }
    /* Where the file system keeps lengths. */
    unlink(test_path("resized.qcow2"));
    kill_once(self, argv[1], test_path("resized.qcow2"), "truncate", 1000);
    for (unsigned i = 0; setxattr(test_path("resized.qcow2"), "user.test", "", 0, 0) == 0 && i < kills; i++) {
        long long found;

        kill_once(self, argv[1], test_path("resized.qcow2"), "truncate", test_random(&seed) % 10000);
        found = length_of(argv[1], test_path("resized.qcow2"));
        CHECK(found == lengths[0] || found == lengths[1]);
    }
    printf("%u kills, %" PRIu64 " writes verified\n", kills, total);
    return 0;
}
