/* The parts of qcow2-io.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef QCOW2_TOOLS_IO_H
#define QCOW2_TOOLS_IO_H

#include "common.h"

#include <stdio.h>

/* One program, one open image: what the commands share. */
struct io_state {
    qcow2_image *image; /* NULL: none open */
    bool ejected;       /* the open image has been marked corrupt: nothing more is done with it */
    bool read_only;
    bool quit;
    struct image_spec spec; /* of the open image; reopen adds to it */
};
extern struct io_state io;

#define NEEDS_FILE 0x1  /* an image must be open */
#define NEEDS_WRITE 0x2 /* ... writable */
#define WAITS 0x4       /* lets asynchronous requests finish first */

struct io_command {
    const char *name;
    const char *alias; /* or NULL */
    int min_arguments;
    int max_arguments; /* -1: any */
    unsigned flags;
    const char *arguments; /* for the synopsis, or NULL */
    const char *summary;
    const char *options;                                                 /* for getopt, or NULL */
    int (*run)(const struct io_command *command, int argc, char **argv); /* 0 or -errno, text already printed */
};
extern const struct io_command io_commands[];
extern const size_t io_command_count;

/* A request to the open image: nothing is there any more once it has been marked corrupt. */
#define IO_ASK(call) (io.ejected ? -ENOMEDIUM : (call))

/* A line from the terminal, with editing and history; NULL at its end. */
bool io_has_terminal(void);
char *io_edit_line(const char *prompt);

/* Runs one line; 0 or -errno. */
int io_run_line(const char *line);
const struct io_command *io_find_command(const char *name);
/* What "help COMMAND" says after the synopsis; may be empty. */
const char *io_help_text(const char *command);
/* "read [-abCqrv] ... -- reads ..." on stdout; returns -EINVAL for the caller to return. */
int io_usage(const struct io_command *command);

/* --- asynchronous requests (aio.c) --- */

struct io_task {
    void (*run)(struct io_task *task); /* prints its result to `out` */
    void (*free)(struct io_task *task);
    FILE *out;
    char *text;
    size_t bytes;
    bool threaded;
    struct io_task *next;
};
/* Takes the task over. */
void io_submit(struct io_task *task);
/* Prints the results of requests that have ended. */
void io_show_finished(void);
/* Waits for all of them first. */
void io_wait_for_all(void);
/* The same, and lets go on what stands at a breakpoint. */
void io_let_go(void);

/* Numbers of command arguments; a complaint goes to stdout. */
bool io_number(const char *text, int64_t *value);
bool io_pattern(const char *text, int *pattern);

/* --- buffers and reports (buffers.c) --- */

#define IO_DEFAULT_PATTERN 0xcd
#define IO_REQUEST_LIMIT INT64_C(2147483136) /* largest multiple of 512 in an int */

/* Allocated and filled; NULL after printing why not. */
void *io_buffer(size_t bytes, int pattern);
void *io_buffer_from_file(const char *path, size_t bytes);
void io_buffer_free(void *buffer);
/* Prints and returns false when `bytes` at `buffer` are not all `pattern`; `offset` is the guest's. */
bool io_verify(FILE *out, const unsigned char *buffer, int64_t offset, int64_t bytes, int pattern);
void io_dump(FILE *out, const unsigned char *buffer, int64_t offset, int64_t bytes);
/* "read 512/512 bytes at offset 0" and the rate, or one line of numbers. */
void io_report(FILE *out, const char *verb, uint64_t nanoseconds, int64_t offset, int64_t bytes, bool machine);

/* "read failed: Input/output error"; returns `code`. Guest ranges past the end are I/O errors, as in the stock tool. */
int io_failed(FILE *out, const char *what, int code, int64_t offset, int64_t bytes);

/* Of the open image; 0 if it has none. */
uint64_t io_cluster_size(void);

/* What compressed and VM state requests need; prints a complaint naming the argument. */
bool io_sector_aligned(int64_t value, const char *name);

/* Arguments of a vectored request: an offset and one length for each buffer. */
struct io_vector {
    struct iovec *parts;
    int count;
    int64_t offset, bytes;
    unsigned char *buffer;
};
/* `arguments` end in NULL. False after printing what is wrong. */
bool io_vector_parse(struct io_vector *vector, char *const *arguments, int pattern);
void io_vector_free(struct io_vector *vector);

/* --- images (open.c) --- */

struct io_open_request {
    const char *name;   /* or NULL: options name the image */
    const char *format; /* or NULL */
    bool image_opts;
    bool read_only, force_share, copy_on_read, snapshot;
    const char *cache;   /* or NULL: writethrough, as the stock tool */
    const char *discard; /* or NULL */
    const char *aio;     /* or NULL */
    struct string_list options;
};
/* One of -C -d -i -k -n -r -s -t -U, for the program and for the open command; false after printing a complaint. */
bool io_open_option(struct io_open_request *request, int code, const char *argument);
/* 0 or -errno; has printed why. */
int io_open(const struct io_open_request *request);
int io_close(void);

/* --- commands --- */

int cmd_open(const struct io_command *command, int argc, char **argv);
int cmd_close(const struct io_command *command, int argc, char **argv);
int cmd_reopen(const struct io_command *command, int argc, char **argv);

int cmd_read(const struct io_command *command, int argc, char **argv);
int cmd_readv(const struct io_command *command, int argc, char **argv);
int cmd_aio_read(const struct io_command *command, int argc, char **argv);
int cmd_write(const struct io_command *command, int argc, char **argv);
int cmd_writev(const struct io_command *command, int argc, char **argv);
int cmd_aio_write(const struct io_command *command, int argc, char **argv);
int cmd_aio_flush(const struct io_command *command, int argc, char **argv);
int cmd_flush(const struct io_command *command, int argc, char **argv);
int cmd_discard(const struct io_command *command, int argc, char **argv);

int cmd_length(const struct io_command *command, int argc, char **argv);
int cmd_truncate(const struct io_command *command, int argc, char **argv);
int cmd_info(const struct io_command *command, int argc, char **argv);
int cmd_alloc(const struct io_command *command, int argc, char **argv);
int cmd_map(const struct io_command *command, int argc, char **argv);

int cmd_help(const struct io_command *command, int argc, char **argv);
int cmd_quit(const struct io_command *command, int argc, char **argv);
int cmd_sleep(const struct io_command *command, int argc, char **argv);
int cmd_sigraise(const struct io_command *command, int argc, char **argv);
int cmd_abort(const struct io_command *command, int argc, char **argv);
int cmd_break(const struct io_command *command, int argc, char **argv);
int cmd_zone(const struct io_command *command, int argc, char **argv);

#endif
