/* The loop that serves the kernel.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "serve.h"

#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

struct waiter {
    struct fuse_session *session;
    const char *file;
    pthread_t loop; /* the thread that waits for the workers */
    atomic_bool ended;
};

/* Those that whoever started this process has not had ignored, and SIGUSR2: the loop has ended. */
static void ending_signals(sigset_t *set)
{
    const int signals[] = {SIGTERM, SIGINT, SIGHUP};
    struct sigaction action;

    sigemptyset(set);
    sigaddset(set, SIGUSR2);
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        if (sigaction(signals[i], NULL, &action) == 0 && action.sa_handler != SIG_IGN) {
            sigaddset(set, signals[i]);
        }
    }
}

void serve_block_signals(void)
{
    sigset_t set;

    ending_signals(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static void wake(int signal)
{
    (void)signal;
}

/*
 * What programs have written through mappings is in the kernel alone, and comes here as long as there are workers. A
 * sync of the whole file system would not wait for it.
 */
static void bring_mappings_home(const char *file)
{
    int fd = file != NULL ? open(file, O_RDONLY | O_CLOEXEC) : -1;

    if (fd >= 0) {
        if (fsync(fd) < 0) {
            log_error("%s: %s", file, strerror(errno));
        }
        close(fd);
    }
}

static void *wait_for_signal(void *opaque)
{
    struct waiter *waiter = opaque;
    const struct timespec pause = {0, 10 * 1000 * 1000};
    sigset_t set;
    int which;

    ending_signals(&set);
    sigwait(&set, &which);
    if (!waiter->ended) {
        bring_mappings_home(waiter->file);
        fuse_session_exit(waiter->session);
    }
    /* The loop looks at the session, then waits; a signal between the two is not seen. */
    while (!waiter->ended) {
        pthread_kill(waiter->loop, SIGUSR1);
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static int loop(struct fuse_session *session, const struct fuse_cmdline_opts *command)
{
    struct fuse_loop_config *config;
    int ret;

    if (command->singlethread) {
        return fuse_session_loop(session);
    }
    config = fuse_loop_cfg_create();
    if (config == NULL) {
        return -ENOMEM;
    }
    fuse_loop_cfg_set_clone_fd(config, (unsigned)command->clone_fd);
    if (command->max_idle_threads != UINT_MAX) { /* nobody has said how many */
        fuse_loop_cfg_set_idle_threads(config, command->max_idle_threads);
    }
    fuse_loop_cfg_set_max_threads(config, command->max_threads);
    ret = fuse_session_loop_mt(session, config);
    fuse_loop_cfg_destroy(config);
    return ret;
}

int serve(struct fuse_session *session, const struct fuse_cmdline_opts *command, const char *file)
{
    struct waiter waiter = {.session = session, .file = file, .loop = pthread_self()};
    struct sigaction action = {.sa_handler = wake};
    pthread_t thread;
    int ret;

    sigaction(SIGUSR1, &action, NULL);
    ret = pthread_create(&thread, NULL, wait_for_signal, &waiter);
    if (ret != 0) {
        log_error("cannot start a thread: %s", strerror(ret));
        return 1;
    }
    ret = loop(session, command);
    waiter.ended = true;
    pthread_kill(thread, SIGUSR2);
    pthread_join(thread, NULL);
    if (ret < 0) {
        log_error("%s: %s", command->mountpoint, strerror(-ret));
    }
    return ret < 0 ? 1 : 0;
}
