/* The command table of qcow2-io and the commands that do no I/O.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "io.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const struct io_command io_commands[] = {
    {"abort", NULL, 0, 0, 0, NULL, "simulate a program crash using abort(3)", NULL, cmd_abort},
    {"aio_flush", NULL, 0, 0, NEEDS_FILE | WAITS, NULL, "completes all outstanding aio requests", NULL, cmd_aio_flush},
    {"aio_read", NULL, 2, -1, NEEDS_FILE, "[-Ciqrv] [-P pattern] off len [len..]",
     "asynchronously reads a number of bytes", "CiP:qrv", cmd_aio_read},
    {"aio_write", NULL, 2, -1, NEEDS_FILE | NEEDS_WRITE, "[-Cfiqruz] [-P pattern] off len [len..]",
     "asynchronously writes a number of bytes", "CfiP:qruz", cmd_aio_write},
    {"alloc", "a", 1, 2, NEEDS_FILE | WAITS, "offset [count]", "checks if offset is allocated in the file", NULL,
     cmd_alloc},
    {"break", NULL, 2, 2, NEEDS_FILE, "event tag", "sets a breakpoint on event and tags the stopped request as tag",
     NULL, cmd_break},
    {"close", "c", 0, 0, NEEDS_FILE | WAITS, NULL, "close the current open file", NULL, cmd_close},
    {"discard", "d", 2, -1, NEEDS_FILE | NEEDS_WRITE | WAITS, "[-Cq] off len",
     "discards a number of bytes at a specified offset", "Cq", cmd_discard},
    {"flush", "f", 0, 0, NEEDS_FILE | WAITS, NULL, "flush all in-core file state to disk", NULL, cmd_flush},
    {"help", "?", 0, 1, 0, "[command]", "help for one or all commands", NULL, cmd_help},
    {"info", "i", 0, 0, NEEDS_FILE, NULL, "prints information about the current file", NULL, cmd_info},
    {"length", "l", 0, 0, NEEDS_FILE, NULL, "gets the length of the current file", NULL, cmd_length},
    {"map", NULL, 0, 0, NEEDS_FILE | WAITS, "", "prints the allocated areas of a file", NULL, cmd_map},
    {"open", "o", 1, -1, 0, "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]", "open the file specified by path",
     "Cd:i:knro:st:U", cmd_open},
    {"quit", "q", 0, -1, 0, NULL, "exit the program", NULL, cmd_quit},
    {"read", "r", 2, -1, NEEDS_FILE | WAITS, "[-abCqrv] [-P pattern [-s off] [-l len]] off len",
     "reads a number of bytes at a specified offset", "bCl:pP:qrs:v", cmd_read},
    {"readv", NULL, 2, -1, NEEDS_FILE | WAITS, "[-Cqrv] [-P pattern] off len [len..]",
     "reads a number of bytes at a specified offset", "CP:qrv", cmd_readv},
    {"remove_break", NULL, 1, 1, NEEDS_FILE, "tag", "remove a breakpoint by tag", NULL, cmd_break},
    {"reopen", NULL, 0, -1, NEEDS_FILE | WAITS, "[(-r|-w)] [-c cache] [-o options]",
     "reopens an image with new options", "c:o:rw", cmd_reopen},
    {"resume", NULL, 1, 1, NEEDS_FILE, "tag", "resumes the request tagged as tag", NULL, cmd_break},
    {"sigraise", NULL, 1, 1, 0, "signal", "raises a signal", NULL, cmd_sigraise},
    {"sleep", NULL, 1, 1, WAITS, NULL, "waits for the given value in milliseconds", NULL, cmd_sleep},
    {"truncate", "t", 1, 3, NEEDS_FILE | NEEDS_WRITE | WAITS, "[-m prealloc_mode] off",
     "truncates the current file at the given offset", "m:", cmd_truncate},
    {"wait_break", NULL, 1, 1, NEEDS_FILE, "tag", "waits for the suspension of a request", NULL, cmd_break},
    {"write", "w", 2, -1, NEEDS_FILE | NEEDS_WRITE | WAITS, "[-bcCfnqruz] [-P pattern | -s source_file] off len",
     "writes a number of bytes at a specified offset", "bcCfnpP:qrs:uz", cmd_write},
    {"writev", NULL, 2, -1, NEEDS_FILE | NEEDS_WRITE | WAITS, "[-Cfqr] [-P pattern] off len [len..]",
     "writes a number of bytes at a specified offset", "CfP:qr", cmd_writev},
    {"zone_append", "zap", 3, 4, NEEDS_FILE | NEEDS_WRITE, "offset len [len..]",
     "append write a number of bytes at a specified offset", NULL, cmd_zone},
    {"zone_close", "zc", 2, 2, NEEDS_FILE, "offset len", "close a range of zones in zone block device", NULL, cmd_zone},
    {"zone_finish", "zf", 2, 2, NEEDS_FILE, "offset len", "finish a range of zones in zone block device", NULL,
     cmd_zone},
    {"zone_open", "zo", 2, 2, NEEDS_FILE, "offset len", "explicit open a range of zones in zone block device", NULL,
     cmd_zone},
    {"zone_report", "zrp", 2, 2, NEEDS_FILE, "offset number", "report zone information", NULL, cmd_zone},
    {"zone_reset", "zrs", 2, 2, NEEDS_FILE, "offset len", "reset a zone write pointer in zone block device", NULL,
     cmd_zone},
};
const size_t io_command_count = sizeof(io_commands) / sizeof(io_commands[0]);

const struct io_command *io_find_command(const char *name)
{
    for (size_t i = 0; i < io_command_count; i++) {
        const struct io_command *command = &io_commands[i];

        if (strcmp(name, command->name) == 0 || (command->alias != NULL && strcmp(name, command->alias) == 0)) {
            return command;
        }
    }
    return NULL;
}

int io_usage(const struct io_command *command)
{
    printf("%s ", command->name);
    if (command->arguments != NULL) {
        printf("%s ", command->arguments);
    }
    printf("-- %s\n", command->summary);
    return -EINVAL;
}

static bool count_fits(const struct io_command *command, const char *typed, int count)
{
    if (count >= command->min_arguments && (command->max_arguments < 0 || count <= command->max_arguments)) {
        return true;
    }
    fprintf(stderr, "bad argument count %d to %s, expected ", count, typed);
    if (command->max_arguments < 0) {
        fprintf(stderr, "at least %d arguments\n", command->min_arguments);
    } else if (command->min_arguments == command->max_arguments) {
        fprintf(stderr, "%d arguments\n", command->min_arguments);
    } else {
        fprintf(stderr, "between %d and %d arguments\n", command->min_arguments, command->max_arguments);
    }
    return false;
}

static int run_command(const struct io_command *command, int argc, char **argv)
{
    if ((command->flags & NEEDS_FILE) != 0 && io.image == NULL) {
        fprintf(stderr, "no file open, try 'help open'\n");
        return -EINVAL;
    }
    if (!count_fits(command, argv[0], argc - 1)) {
        return -EINVAL;
    }
    if ((command->flags & NEEDS_WRITE) != 0 && io.read_only) {
        error_report("Block node is read-only");
        return -EACCES;
    }
    if ((command->flags & WAITS) != 0) {
        io_show_finished();
    }
    optind = 0;
    return command->run(command, argc, argv);
}

int io_run_line(const char *line)
{
    char *copy = text_copy(line), *rest = copy, *word;
    char **argv = memory_or_exit(calloc(strlen(line) + 2, sizeof(*argv)));
    const struct io_command *command;
    int argc = 0, ret = 0;

    while ((word = strsep(&rest, " ")) != NULL) {
        if (*word != '\0') {
            argv[argc++] = word;
        }
    }
    if (argc > 0) {
        command = io_find_command(argv[0]);
        if (command != NULL) {
            ret = run_command(command, argc, argv);
        } else {
            fprintf(stderr, "command \"%s\" not found\n", argv[0]);
            ret = -EINVAL;
        }
    }
    free(argv);
    free(copy);
    return ret;
}

bool io_number(const char *text, int64_t *value)
{
    switch (parse_size_i64(text, value)) {
    case 0: return true;
    case -ERANGE: printf("Parsing error: argument too large -- %s\n", text); return false;
    default:
        printf("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- %s\n", text);
        return false;
    }
}

bool io_pattern(const char *text, int *pattern)
{
    char *end;
    long value = strtol(text, &end, 0);

    if (end == text || *end != '\0' || value < 0 || value > 0xff) {
        printf("%s is not a valid pattern byte\n", text);
        return false;
    }
    *pattern = (int)value;
    return true;
}

int cmd_help(const struct io_command *command, int argc, char **argv)
{
    if (argc == 1) {
        for (size_t i = 0; i < io_command_count; i++) {
            io_usage(&io_commands[i]);
        }
        printf("\nUse 'help commandname' for extended help.\n");
        return 0;
    }
    command = io_find_command(argv[1]);
    if (command == NULL) {
        printf("command %s not found\n", argv[1]);
        return -EINVAL;
    }
    io_usage(command);
    fputs(io_help_text(command->name), stdout);
    return 0;
}

int cmd_quit(const struct io_command *command, int argc, char **argv)
{
    (void)command, (void)argc, (void)argv;
    io.quit = true;
    return 0;
}

int cmd_sleep(const struct io_command *command, int argc, char **argv)
{
    struct timespec pause;
    char *end;
    long milliseconds;

    (void)command, (void)argc;
    errno = 0;
    milliseconds = strtol(argv[1], &end, 0);
    if (errno != 0 || end == argv[1] || *end != '\0' || milliseconds < 0) {
        printf("%s is not a valid number\n", argv[1]);
        return -EINVAL;
    }
    pause.tv_sec = milliseconds / 1000;
    pause.tv_nsec = milliseconds % 1000 * 1000000;
    while (nanosleep(&pause, &pause) != 0 && errno == EINTR) {
    }
    return 0;
}

int cmd_sigraise(const struct io_command *command, int argc, char **argv)
{
    int64_t number;

    (void)command, (void)argc;
    if (!io_number(argv[1], &number)) {
        return -EINVAL;
    }
    if (number > NSIG) {
        printf("signal argument '%s' is too large to be a valid signal\n", argv[1]);
        return -EINVAL;
    }
    fflush(stdout); /* what was done must be seen: there is no exit to do it */
    raise((int)number);
    return 0;
}

int cmd_abort(const struct io_command *command, int argc, char **argv)
{
    (void)command, (void)argc, (void)argv;
    abort(); /* what stdout still holds is lost, as with any crash */
}

int cmd_zone(const struct io_command *command, int argc, char **argv)
{
    int64_t value;

    for (int i = 1; i < argc; i++) {
        if (!io_number(argv[i], &value)) {
            return -EINVAL;
        }
    }
    printf("zone %s failed: %s\n", command->name + strlen("zone_"), strerror(ENOTSUP));
    return -ENOTSUP;
}
