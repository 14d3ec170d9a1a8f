/* C26: several create at one path, some fail, links lead nowhere, files are renamed to the name: what one create says is
   there stays, and who fails removes what it has made and nothing else.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

static const char *path;

/* A create that begins and then fails: a file cannot get this long. */
static int failing(const char *at)
{
    static const char *const options[] = {"preallocation=full", NULL};
    struct rlimit limit = {.rlim_cur = 400 << 10, .rlim_max = RLIM_INFINITY}, none = {RLIM_INFINITY, RLIM_INFINITY};
    int answer;

    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    answer = qcow2_create(at, MIB, options);
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &none), 0);
    CHECK(answer == -EFBIG || answer == -EAGAIN);
    return answer;
}

static bool exists(const char *at)
{
    struct stat found;

    return lstat(at, &found) == 0;
}

/* Answers by its exit status: 0: an image was made, 1: not. */
static void contend(bool fails, int go)
{
    char byte;

    if (read(go, &byte, 1) != 0) {
        _exit(9);
    }
    _exit(fails ? (failing(path), 1) : qcow2_create(path, MIB, NULL) != 0);
}

static void many_processes(void)
{
    uint64_t rounds = test_under_valgrind() ? 5 : test_setting("QCOW2_TEST_STEPS", 100);
    unsigned won = 0;

    for (uint64_t round = 0; round < rounds; round++) {
        enum { COUNT = 4 };
        pid_t children[COUNT];
        bool winner = false;
        int go[2];

        CHECK_EQ(pipe(go), 0);
        for (unsigned i = 0; i < COUNT; i++) {
            children[i] = fork();
            if (children[i] == 0) {
                close(go[1]);
                contend(i % 2 == round % 2, go[0]);
            }
        }
        close(go[0]);
        close(go[1]);
        for (unsigned i = 0; i < COUNT; i++) {
            int status = test_wait(children[i]);

            CHECK(WIFEXITED(status) && WEXITSTATUS(status) <= 1);
            winner |= WEXITSTATUS(status) == 0;
        }
        if (winner) {
            CHECK(exists(path));
            test_close(test_open(path, 0, NULL));
            unlink(path);
            won++;
        }
        unlink(path);
    }
    CHECK(won > rounds / 2);
}

static bool stop;

static void *fail_on_and_on(void *opaque)
{
    (void)opaque;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        failing(path);
    }
    return NULL;
}

/* Files that somebody else renames to the name are never lost to a create that fails. The failing create may take one
   of them for its target, as a create does with what is there; it never takes it away. */
static void renames(void)
{
    const char *mine = test_path("mine");
    pthread_t other;

    CHECK_EQ(pthread_create(&other, NULL, fail_on_and_on, NULL), 0);
    for (unsigned round = 0; round < 1000; round++) {
        struct stat now, then;

        test_file_write(mine, "x", 1, 0);
        CHECK_EQ(lstat(mine, &then), 0);
        CHECK_EQ(rename(mine, path), 0);
        bool there = false;
        /* It may be put aside for a moment, which is long where the other thread has to wait for a processor. */
        for (unsigned look = 0; look < 11000 && !there; look++) {
            if (look > 1000) {
                usleep(1000);
            }
            there = lstat(path, &now) == 0 && now.st_ino == then.st_ino;
        }
        CHECK(there);
        if (round % 2 == 0) {
            unlink(path);
        }
    }
    __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
    pthread_join(other, NULL);
    unlink(path);
}

static void links(void)
{
    const char *link = test_path("link"), *chain = test_path("chain"), *loop = test_path("loop");

    CHECK_EQ(symlink("made", link), 0);
    CHECK_EQ(symlink("link", chain), 0);
    CHECK_EQ(symlink("loop", loop), 0);
    CHECK_EQ(failing(chain), -EFBIG);
    CHECK(exists(chain) && exists(link) && !exists(test_path("made")));
    CHECK_OK(qcow2_create(chain, MIB, NULL));
    CHECK(exists(chain) && exists(link) && exists(test_path("made")));
    test_close(test_open(chain, 0, NULL));
    /* Locked: refused, and as it was. */
    qcow2_image *image = test_open(test_path("made"), 0, NULL);
    uint64_t before = test_digest(link);
    CHECK_ERROR(qcow2_create(chain, MIB, NULL), EAGAIN);
    CHECK_EQ(test_digest(link), before);
    test_close(image);
    CHECK_ERROR(qcow2_create(loop, MIB, NULL), ELOOP);
    CHECK(exists(loop));
}

/* A data file that is in use keeps its bytes, and the image that was just made goes. */
static void a_data_file_in_use(void)
{
    char option[4200];
    const char *options[] = {option, NULL};
    qcow2_image *image;

    test_file_write(test_path("raw"), "precious", 8, 0);
    CHECK_EQ(truncate(test_path("raw"), 65536), 0);
    image = test_open(test_path("raw"), QCOW2_OPEN_RAW, NULL);
    uint64_t before = test_digest(test_path("raw"));
    snprintf(option, sizeof option, "data_file=%s", test_path("raw"));
    CHECK_ERROR(qcow2_create(path, MIB, options), EAGAIN);
    CHECK(!exists(path));
    CHECK_EQ(test_digest(test_path("raw")), before);
    test_close(image);
}

int main(void)
{
    signal(SIGXFSZ, SIG_IGN);
    path = test_path("disk.qcow2");
    CHECK_EQ(failing(path), -EFBIG);
    CHECK(!exists(path));
    many_processes();
    renames();
    links();
    a_data_file_in_use();
    return 0;
}
