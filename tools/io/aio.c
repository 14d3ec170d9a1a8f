/* qcow2-io: requests that go on while other commands run, and breakpoints.  SPDX-License-Identifier: MIT OR Apache-2.0

   Where nothing can stop a request it is made at once, and only its result waits: so what is printed is the same each
   time. With breakpoints it has a thread, and the command returns when it has ended or stands. */
#include "io.h"
#include "node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* How long a request that waits for one that stands is waited for. */
#define PATIENCE_NANOSECONDS UINT64_C(100000000)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct io_task *tasks; /* submitted and not shown yet, in the order in which they ended */
static size_t running;

static struct node *root(void)
{
    return io.spec.tree != NULL ? io.spec.tree->root : NULL;
}

static void finish(struct io_task *task)
{
    struct io_task **at = &tasks;

    fclose(task->out);
    pthread_mutex_lock(&lock);
    while (*at != NULL) {
        at = &(*at)->next;
    }
    *at = task;
    running -= task->threaded;
    pthread_mutex_unlock(&lock);
}

static void *run_thread(void *opaque)
{
    struct io_task *task = opaque;

    task->run(task);
    finish(task);
    return NULL;
}

static size_t still_running(void)
{
    size_t count;

    pthread_mutex_lock(&lock);
    count = running;
    pthread_mutex_unlock(&lock);
    return count;
}

static void pause_shortly(void)
{
    struct timespec pause = {0, 200000};

    nanosleep(&pause, NULL);
}

static bool start_thread(struct io_task *task)
{
    pthread_attr_t attributes;
    pthread_t thread;
    bool started;

    pthread_mutex_lock(&lock);
    running++;
    pthread_mutex_unlock(&lock);
    task->threaded = true;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    started = pthread_create(&thread, &attributes, run_thread, task) == 0;
    pthread_attr_destroy(&attributes);
    if (!started) {
        pthread_mutex_lock(&lock);
        running--;
        pthread_mutex_unlock(&lock);
        task->threaded = false;
    }
    return started;
}

void io_submit(struct io_task *task)
{
    bool stood = blkdebug_is_suspended(root(), NULL);
    size_t before = still_running();
    uint64_t start;

    task->out = memory_or_exit(open_memstream(&task->text, &task->bytes));
    task->next = NULL;
    task->threaded = false;
    if (!blkdebug_may_suspend(root()) || !start_thread(task)) {
        run_thread(task);
        return;
    }
    start = monotonic_nanoseconds();
    while (still_running() > before && (stood || !blkdebug_is_suspended(root(), NULL)) &&
           monotonic_nanoseconds() - start < PATIENCE_NANOSECONDS) {
        pause_shortly();
    }
}

void io_show_finished(void)
{
    struct io_task *task;

    pthread_mutex_lock(&lock);
    task = tasks;
    tasks = NULL;
    pthread_mutex_unlock(&lock);
    while (task != NULL) {
        struct io_task *next = task->next;

        fwrite(task->text, 1, task->bytes, stdout);
        free(task->text);
        task->free(task);
        task = next;
    }
}

void io_wait_for_all(void)
{
    while (still_running() > 0) {
        pause_shortly();
    }
    io_show_finished();
}

void io_let_go(void)
{
    if (still_running() > 0) {
        blkdebug_resume_all(root());
    }
    io_wait_for_all();
}

int cmd_aio_flush(const struct io_command *command, int argc, char **argv)
{
    (void)command, (void)argc, (void)argv;
    io_wait_for_all();
    return 0;
}

static int wait_for_break(const char *tag)
{
    while (!blkdebug_is_suspended(root(), tag)) {
        if (still_running() == 0) {
            return -ENOTSUP; /* the stock tool waits for ever */
        }
        pause_shortly();
    }
    return 0;
}

int cmd_break(const struct io_command *command, int argc, char **argv)
{
    int ret;

    (void)argc;
    if (strcmp(command->name, "break") == 0) {
        ret = blkdebug_break(root(), argv[1], argv[2]);
        if (ret < 0) {
            printf("Could not set breakpoint: %s\n", strerror(-ret));
        }
    } else if (strcmp(command->name, "remove_break") == 0) {
        ret = blkdebug_remove(root(), argv[1]);
        if (ret < 0) {
            printf("Could not remove breakpoint %s: %s\n", argv[1], strerror(-ret));
        }
    } else if (strcmp(command->name, "resume") == 0) {
        ret = blkdebug_resume(root(), argv[1]);
        if (ret < 0) {
            printf("Could not resume request: %s\n", strerror(-ret));
        }
    } else {
        ret = wait_for_break(argv[1]);
        if (ret < 0) {
            printf("Could not wait for breakpoint %s: %s\n", argv[1], strerror(-ret));
        }
    }
    return ret;
}
