/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* fork, exec, exit: where images are let go. Also what loads and unloads the shim. */
#include "hooks.h"

#include <alloca.h>
#include <stdlib.h>

/* A process that has not come by fork, as the child of vfork, leaves what its parent has alone. */
static pid_t owner;

void prepare_exec(void)
{
    if (views_any() && getpid() == owner && shared_inside == 0) {
        views_store_offsets();
        shared_suspend_all();
    }
}

/* Not where a signal handler forks in the middle of a request: the child's copy of the image is dead then. */
static _Thread_local bool held_for_fork;

static void before_fork(void)
{
    if (shared_inside != 0) {
        return;
    }
    held_for_fork = true;
    if (views_any()) {
        views_store_offsets();
    }
    streams_before_fork();
    shared_before_fork();
    views_before_fork();
}

static void after_fork(void)
{
    if (!held_for_fork) {
        return;
    }
    held_for_fork = false;
    views_after_fork();
    shared_after_fork();
    streams_after_fork();
}

static void after_fork_in_child(void)
{
    after_fork();
    owner = getpid();
}

HOOK int execve(const char *path, char *const arguments[], char *const environment[])
{
    prepare_exec();
    return REAL(execve)(path, arguments, environment);
}

HOOK int execv(const char *path, char *const arguments[])
{
    prepare_exec();
    return REAL(execve)(path, arguments, environ);
}

HOOK int execvpe(const char *path, char *const arguments[], char *const environment[])
{
    prepare_exec();
    return REAL(execvpe)(path, arguments, environment);
}

HOOK int execvp(const char *path, char *const arguments[])
{
    prepare_exec();
    return REAL(execvpe)(path, arguments, environ);
}

HOOK int fexecve(int fd, char *const arguments[], char *const environment[])
{
    prepare_exec();
    return REAL(fexecve)(fd, arguments, environment);
}

/* The arguments after `first` as an array; `rest` is at what follows the NULL. */
#define COLLECT                                                                                                        \
    va_list rest;                                                                                                      \
    int count = 1;                                                                                                     \
    char **arguments;                                                                                                  \
                                                                                                                       \
    va_start(rest, first);                                                                                             \
    while (va_arg(rest, char *) != NULL) {                                                                             \
        count++;                                                                                                       \
    }                                                                                                                  \
    va_end(rest);                                                                                                      \
    arguments = alloca(((size_t)count + 1) * sizeof *arguments);                                                       \
    arguments[0] = __extension__(char *) first;                                                                        \
    va_start(rest, first);                                                                                             \
    for (int i = 1; i <= count; i++) {                                                                                 \
        arguments[i] = va_arg(rest, char *);                                                                           \
    }

HOOK int execl(const char *path, const char *first, ...)
{
    COLLECT
    va_end(rest);
    return execv(path, arguments);
}

HOOK int execlp(const char *path, const char *first, ...)
{
    COLLECT
    va_end(rest);
    return execvp(path, arguments);
}

HOOK int execle(const char *path, const char *first, ...)
{
    char **environment;

    COLLECT
    environment = va_arg(rest, char **);
    va_end(rest);
    return execve(path, arguments, environment);
}

HOOK int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                     const posix_spawnattr_t *attributes, char *const arguments[], char *const environment[])
{
    prepare_exec();
    return REAL(posix_spawn)(pid, path, actions, attributes, arguments, environment);
}

HOOK int posix_spawnp(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                      const posix_spawnattr_t *attributes, char *const arguments[], char *const environment[])
{
    prepare_exec();
    return REAL(posix_spawnp)(pid, path, actions, attributes, arguments, environment);
}

HOOK int system(const char *command)
{
    prepare_exec();
    return REAL(system)(command);
}

/* A child of vfork would open, and let go of, what is its parent's: it is a child of fork. */
HOOK pid_t vfork(void)
{
    return REAL(fork)();
}

/* What a signal handler leaves for good is no request under way any more, but what it held stays held. */
#define JUMP(name)                                                                                                     \
    HOOK void name(struct __jmp_buf_tag place[1], int value)                                                           \
    {                                                                                                                  \
        view_left = view_left || shared_inside != 0;                                                                   \
        REAL(siglongjmp)(place, value);                                                                                \
        __builtin_unreachable();                                                                                       \
    }

JUMP(longjmp)
JUMP(_longjmp)
JUMP(siglongjmp)

HOOK void __longjmp_chk(struct __jmp_buf_tag place[1], int value)
{
    view_left = view_left || shared_inside != 0;
    REAL(__longjmp_chk)(place, value);
    __builtin_unreachable();
}

static void let_go(void)
{
    if (getpid() != owner) {
        return;
    }
    if (views_any() && shared_inside == 0) {
        views_store_offsets();
        shared_suspend_all();
    }
    report_end();
}

HOOK void _exit(int status)
{
    let_go();
    REAL(_exit)(status);
    __builtin_unreachable();
}

HOOK void _Exit(int status)
{
    _exit(status);
}

HOOK void quick_exit(int status)
{
    let_go();
    REAL(quick_exit)(status);
    __builtin_unreachable();
}

__attribute__((constructor)) static void load(void)
{
    real_resolve();
    report_start();
    config_read();
    owner = getpid();
    if (config_off) {
        return;
    }
    pthread_atfork(before_fork, after_fork, after_fork_in_child);
    adopt_descriptors();
    for (int fd = 0; fd < 3; fd++) {
        stream_follows(fd);
    }
}

__attribute__((destructor)) static void unload(void)
{
    if (getpid() == owner) {
        flush_streams();
    }
    let_go();
    atomic_store(&shared_ending, true);
}
