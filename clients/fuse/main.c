/* qcow2-fuse: a qcow2 disk as a file.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "arguments.h"
#include "guard.h"
#include "log.h"
#include "serve.h"
#include "view.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The disk is not there before the command returns: the parent waits for a byte that the child writes then. */
static int ready_pipe[2] = {-1, -1};

static int begin_background(void)
{
    char byte;
    pid_t child;

    if (pipe2(ready_pipe, O_CLOEXEC) < 0) {
        return -errno;
    }
    child = fork();
    if (child > 0) {
        close(ready_pipe[1]);
        _exit(read(ready_pipe[0], &byte, 1) == 1 ? 0 : 1);
    }
    if (child == 0) {
        close(ready_pipe[0]);
        setsid();
    }
    return child < 0 ? -errno : 0;
}

/* Lets go of the terminal and of the directory. */
static void end_start(void)
{
    int null = open("/dev/null", O_RDWR);

    if (ready_pipe[1] < 0) {
        return;
    }
    log_to_syslog();
    for (int fd = 0; fd <= 2; fd++) {
        dup2(null, fd);
    }
    if (null > 2) {
        close(null);
    }
    if (chdir("/") < 0 || write(ready_pipe[1], "", 1) != 1) {
        log_error("%s", strerror(errno));
    }
    close(ready_pipe[1]);
}

static int serve_image(struct arguments *arguments, struct view *view, struct guard *guard)
{
    struct fuse_session *session = fuse_session_new(&arguments->fuse, &view_operations, sizeof(view_operations), view);
    int ret = 1;

    if (session == NULL) {
        return 1;
    }
    serve_block_signals();
    if (fuse_session_mount(session, arguments->command.mountpoint) == 0) {
        if (guard_mounted(guard, arguments->command.mountpoint) < 0) {
            log_error("nobody unmounts %s if this process is killed", arguments->command.mountpoint);
        }
        end_start();
        ret = serve(session, &arguments->command, arguments->file);
        fuse_session_unmount(session);
    }
    fuse_session_destroy(session);
    return ret;
}

static int run(struct arguments *arguments)
{
    struct view view = {.name = arguments->name};
    struct guard guard = {0, -1};
    char *error;
    int ret;

    if (!arguments->command.foreground && !arguments->command.debug && begin_background() < 0) {
        log_error("cannot go to the background: %s", strerror(errno));
        return 1;
    }
    if (!arguments->stays && guard_begin(&guard, arguments->command.mountpoint) < 0) {
        log_error("cannot start a process: %s", strerror(errno));
        return 1;
    }
    /* Before the mount, which may be over the image. */
    if (open_options_open(&arguments->options, arguments->image, &view.image, &error) < 0) {
        log_error("%s", error != NULL ? error : "out of memory");
        free(error);
        return 1;
    }
    view.read_only = arguments->read_only;
    ret = view_begin(&view, arguments->image);
    if (ret < 0) {
        log_error("%s: %s", arguments->image, strerror(-ret));
        ret = 1;
    } else {
        ret = serve_image(arguments, &view, &guard);
        guard_end(&guard);
    }
    if (qcow2_close(view.image) < 0) {
        log_error("%s: %s", arguments->image, last_failure());
        ret = 1;
    }
    return ret;
}

int main(int argc, char **argv)
{
    struct arguments arguments = {.options = OPEN_OPTIONS_INIT};
    int ret;

    log_begin("qcow2-fuse");
    /* A limit on the length of files is an error of the write that meets it. */
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    ret = arguments_parse(&arguments, argc, argv);
    if (ret == 0) {
        ret = run(&arguments);
    } else if (ret > 0) {
        ret = 0;
    } else {
        ret = 1;
    }
    arguments_free(&arguments);
    return ret;
}
