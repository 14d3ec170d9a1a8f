/* What processes do with descriptors, streams and signals, once on a raw file and once on an image under the shim.
   Arguments: the shim.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "../test.h"

#include <dirent.h>
#include <fcntl.h>
#include <mntent.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>

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

static void run_true(void)
{
    pid_t child = fork();

    if (child == 0) {
        execl("/bin/true", "true", (char *)NULL);
        _exit(1);
    }
    CHECK_EQ(test_wait(child), 0);
}

/* With nothing open before: the child of vfork has what it opens for itself. */
static void child_of_vfork(void)
{
    int status, saved = dup(1), null = open("/dev/null", O_WRONLY);
    pid_t child;

    CHECK_EQ(dup2(null, 1), 1);
    child = vfork();
    if (child == 0) {
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

        dup2(fd, 1);
        close(fd);
        execl("/bin/echo", "echo", "of the child", (char *)NULL);
        _exit(127);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    CHECK_EQ(write(1, "of the parent", 13), 13);
    CHECK_EQ(dup2(saved, 1), 1);
    close(saved);
    close(null);
    content("of the child\n");
}

/* A program that is started has nothing of what streams hold, neither to write nor to read. */
static void streams_at_exec(void)
{
    FILE *file = fopen(path, "w");
    char line[64];
    int lines = 0;

    CHECK(file != NULL);
    fprintf(file, "one\n");
    run_true();
    fprintf(file, "two\n");
    CHECK_EQ(system("true"), 0);
    CHECK_EQ(fclose(file), 0);
    content("one\ntwo\n");
    file = fopen(path, "r");
    while (fgets(line, sizeof line, file) != NULL) {
        lines++;
        run_true();
    }
    CHECK_EQ(lines, 2);
    fclose(file);
}

static void stream_appends(void)
{
    int fd = make("begin,");
    FILE *file = fdopen(fd, "a");

    CHECK(file != NULL);
    CHECK((fcntl(fd, F_GETFL) & O_APPEND) != 0);
    fprintf(file, "end");
    fclose(file);
    content("begin,end");
    fd = open(path, O_RDONLY);
    CHECK(fdopen(fd, "w") == NULL);
    CHECK_EQ(errno, EINVAL);
    close(fd);
}

/* The C library closes the image's number, and another file gets it, by `maker`. */
static void number_of_another(int maker)
{
    int fd = make("image"), number, made, pair[2] = {-1, -1};
    FILE *log = maker == 0 ? fopen("/dev/null", "w") : setmntent("/dev/null", "r"), *file = NULL;
    DIR *directory = NULL;
    struct stat status;

    number = fileno(log);
    CHECK_EQ(dup2(fd, number), number);
    /* The one is interposed, the other closes past the hooks. */
    if (maker == 0) {
        fclose(log);
        CHECK_EQ(write(number, "x", 1), -1);
        CHECK_EQ(errno, EBADF);
    } else {
        endmntent(log);
    }
    switch (maker) {
    case 0:
    case 1: made = open("/dev/null", O_RDWR); break;
    case 2: made = socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 ? pair[0] : -1; break;
    case 3: made = pipe(pair) == 0 ? pair[0] : -1; break;
    case 4: made = eventfd(0, 0); break;
    case 5: made = (file = fopen("/dev/null", "r")) != NULL ? fileno(file) : -1; break;
    case 6: made = (directory = opendir("/")) != NULL ? dirfd(directory) : -1; break;
    case 7: made = fcntl(2, F_DUPFD, 0); break;
    case 8: made = (file = tmpfile()) != NULL ? fileno(file) : -1; break;
    default: made = dup(2); break;
    }
    CHECK_EQ(made, number);
    CHECK_EQ(fstat(made, &status), 0);
    CHECK(status.st_size != 5);
    CHECK(write(made, "other", maker == 7 || maker == 9 ? 0 : 5) <= 8);
    if (file != NULL) {
        fclose(file);
    } else if (directory != NULL) {
        closedir(directory);
    } else {
        close(made);
    }
    close(pair[1]);
    CHECK_EQ(close(fd), 0);
    content("image");
}

/* What a daemon writes goes nowhere. */
static void becomes_daemon(void)
{
    int ends[2];
    char byte;
    pid_t child;

    close(make("before"));
    CHECK_EQ(pipe(ends), 0);
    child = fork();
    if (child == 0) {
        int fd = open(path, O_WRONLY);

        dup2(fd, 1);
        close(fd);
        close(ends[0]);
        _exit(daemon(1, 0) != 0 || write(1, "after", 5) != 5);
    }
    close(ends[1]);
    test_wait(child);
    CHECK_EQ(read(ends[0], &byte, 1), 0);
    close(ends[0]);
    content("before");
}

static void locks(void)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    int fd = (close(make("text")), open(path, O_RDONLY));

    CHECK_EQ(fcntl(fd, F_SETLK, &lock), 0);
    lock.l_type = F_UNLCK;
    CHECK_EQ(fcntl(fd, F_SETLK, &lock), 0);
    lock.l_type = F_WRLCK;
    CHECK_EQ(fcntl(fd, F_SETLK, &lock), -1);
    CHECK_EQ(errno, EBADF);
    close(fd);
}

enum { SIGNALS = 300, FAR = 100000, UNIT = 4096 };

static int handlers_fd;
static volatile sig_atomic_t signals, wrong;

/* In the middle of a request at times: it must not wait for that, and its offset counts. */
static void seek_in_handler(int number)
{
    int saved = errno;
    char bytes[16];

    (void)number;
    if (pread(handlers_fd, bytes, sizeof bytes, 0) < 0 && errno != EDEADLK) {
        wrong = 1;
    }
    if (lseek(handlers_fd, 0, SEEK_CUR) < 0 || lseek(handlers_fd, FAR, SEEK_SET) != FAR) {
        wrong = 2;
    }
    signals++;
    errno = saved;
}

static void seeks_in_handlers(void)
{
    struct itimerval often = {.it_interval = {.tv_usec = 400}, .it_value = {.tv_usec = 400}};
    char bytes[UNIT] = "x";

    handlers_fd = make("");
    signals = 0;
    CHECK_EQ(ftruncate(handlers_fd, 1 << 20), 0);
    CHECK(signal(SIGALRM, seek_in_handler) != SIG_ERR);
    setitimer(ITIMER_REAL, &often, NULL);
    while (signals < SIGNALS) {
        off_t at;
        int before;

        lseek(handlers_fd, 0, SEEK_SET);
        before = signals;
        CHECK_EQ(write(handlers_fd, bytes, UNIT), UNIT);
        if (signals != before) {
            at = lseek(handlers_fd, 0, SEEK_CUR);
            CHECK(at == FAR || at == FAR + UNIT);
        }
    }
    setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
    signal(SIGALRM, SIG_DFL);
    CHECK_EQ(wrong, 0);
    CHECK_EQ(close(handlers_fd), 0);
}

/* Opens and closes other images, the last descriptor of each, in the middle of the thread's own opens. */
static void close_in_handler(int number)
{
    int saved = errno;
    struct stat status;

    (void)number;
    if (handlers_fd >= 0) {
        close(handlers_fd);
        handlers_fd = -1;
    }
    if (stat(path, &status) < 0 && errno != EDEADLK) {
        wrong = 1;
    }
    signals++;
    errno = saved;
}

static void closes_in_handlers(void)
{
    struct itimerval often = {.it_interval = {.tv_usec = 300}, .it_value = {.tv_usec = 300}};
    char other[4200];

    snprintf(other, sizeof other, "%s-other.qcow2", path);
    signals = wrong = 0;
    handlers_fd = -1;
    close(make("text"));
    CHECK(signal(SIGALRM, close_in_handler) != SIG_ERR);
    setitimer(ITIMER_REAL, &often, NULL);
    while (signals < SIGNALS) {
        int fd = open(other, O_RDWR | O_CREAT, 0600);

        CHECK(fd >= 0);
        handlers_fd = fd;
        fd = open(path, O_RDWR);
        CHECK(fd >= 0);
        CHECK_EQ(pwrite(fd, "text", 4, 0), 4);
        CHECK_EQ(close(fd), 0);
    }
    setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
    signal(SIGALRM, SIG_DFL);
    CHECK_EQ(wrong, 0);
    if (handlers_fd >= 0) {
        CHECK_EQ(close(handlers_fd), 0);
    }
    content("text");
    CHECK_EQ(unlink(other), 0);
}

static sigjmp_buf place;

static void leave(int number)
{
    (void)number;
    siglongjmp(place, 1);
}

/* What a handler has left by longjmp does not make the thread's later requests fail. */
static void left_by_handler(void)
{
    volatile int jumps = 0;
    char bytes[UNIT] = "x";
    int fd = make("");

    CHECK_EQ(ftruncate(fd, 1 << 20), 0);
    CHECK(signal(SIGALRM, leave) != SIG_ERR);
    while (jumps < 30) {
        struct itimerval soon = {.it_value = {.tv_usec = 700}};

        if (sigsetjmp(place, 1) != 0) {
            jumps++;
            continue;
        }
        setitimer(ITIMER_REAL, &soon, NULL);
        for (;;) {
            CHECK_EQ(pread(fd, bytes, UNIT, 0), UNIT);
        }
    }
    signal(SIGALRM, SIG_DFL);
    _exit(0);
}

static void in_child(void (*body)(void))
{
    pid_t child = fork();

    if (child == 0) {
        body();
        _exit(0);
    }
    CHECK_EQ(test_wait(child), 0);
}

static void printed(void)
{
    int fd = make("");

    CHECK_EQ(dprintf(fd, "%d %s", 42, "words"), 8);
    CHECK_EQ(close(fd), 0);
    content("42 words");
}

/* A descriptor that goes through a socket is the same open file, with its offset. */
static void sent(void)
{
    int fd = make("0123456789"), ends[2], got;
    _Alignas(struct cmsghdr) char room[CMSG_SPACE(sizeof(int))] = "";
    char byte = 0, two[2];
    struct iovec iov = {&byte, 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    pid_t child;

    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    close(fd);
    child = fork();
    if (child == 0) {
        CHECK_EQ(recvmsg(ends[1], &message, 0), 1);
        memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof got);
        CHECK_EQ(read(got, two, 2), 2);
        CHECK_EQ(memcmp(two, "23", 2), 0);
        CHECK_EQ(write(got, "sent", 4), 4);
        CHECK_EQ(close(got), 0);
        _exit(0);
    }
    fd = open(path, O_RDWR);
    CHECK_EQ(read(fd, two, 2), 2);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(part), &fd, sizeof fd);
    CHECK_EQ(sendmsg(ends[0], &message, 0), 1);
    CHECK_EQ(test_wait(child), 0);
    CHECK_EQ(read(fd, two, 2), 2);
    CHECK_EQ(memcmp(two, "89", 2), 0);
    close(fd);
    close(ends[0]);
    close(ends[1]);
    content("0123sent89");
}

static void all(void)
{
    child_of_vfork();
    streams_at_exec();
    stream_appends();
    for (int maker = 0; maker < 10; maker++) {
        number_of_another(maker);
    }
    becomes_daemon();
    locks();
    seeks_in_handlers();
    closes_in_handlers();
    in_child(left_by_handler);
    printed();
    sent();
}

/* Who has no hooks is told so, rather than shown an empty file. */
static void without_hooks(void)
{
    char command[5000];

    close(make("text"));
    snprintf(command, sizeof command, "env -i cat <%s 2>/dev/null", path);
    CHECK(system(command) != 0);
    snprintf(command, sizeof command, "env -i sh -c 'echo x' >>%s 2>/dev/null", path);
    CHECK(system(command) != 0);
    content("text");
}

int main(int argc, char **argv)
{
    if (argc > 1 && getenv("LD_PRELOAD") == NULL) {
        setenv("LD_PRELOAD", argv[1], 1);
        execv("/proc/self/exe", argv);
        return 1;
    }
    snprintf(path, sizeof path, "%s", test_path("image.qcow2"));
    all();
    without_hooks();
    CHECK_EQ(test_run((const char *const[]){"env", "LD_PRELOAD=", "grep", "-q", "^QFI", path, NULL}), 0);
    snprintf(path, sizeof path, "%s", test_path("raw"));
    all();
    return 0;
}
