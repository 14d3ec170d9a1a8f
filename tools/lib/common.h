/* What the command line tools share.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef QCOW2_TOOLS_COMMON_H
#define QCOW2_TOOLS_COMMON_H

#include <qcow2.h>

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

/* --- messages: "PROGRAM: text\n" on stderr, PROGRAM being the base name of argv[0]. They do not wait for what
   stdout still holds, as in the stock tools --- */

extern const char *program_name;
/* The first thing that a tool does. */
void program_init(const char *argv0);
void error_report(const char *format, ...) __attribute__((format(printf, 1, 2)));
void warn_report(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Allocated text; the tools run out of memory by exiting. */
char *text_format(const char *format, ...) __attribute__((format(printf, 1, 2)));
char *text_vformat(const char *format, va_list arguments) __attribute__((format(printf, 1, 0)));
char *text_copy(const char *text);
void *memory_or_exit(void *pointer);
/* Frees text that may be a secret. */
void text_wipe(char *text);
/* Hands an allocated text over as the reason for `code`, which it returns. */
int refuse(char **error, int code, char *text);
/* What the library's last failure on this thread was, as the stock tools put it; with QCOW2_TOOL_DETAIL=1 in the
   environment also the details that the library adds. Valid until the next call. */
const char *failure_text(void);

/* What the stock engine says by itself when it meets a broken table, once for an image. */
enum corruption {
    CORRUPTION_NONE,   /* the last failure is of another kind */
    CORRUPTION_SEEN,   /* an image that is only read */
    CORRUPTION_MARKED, /* nothing more is done with the image */
};
enum corruption tell_corruption(void);
/* The same of a write that begins at `offset`. */
enum corruption tell_corruption_of_write(uint64_t offset, uint64_t cluster_size);
/* The next image has told nothing yet. */
void forget_corruption(void);
/* The same failure in the library's parts. */
void failure_parts(qcow2_error_detail *parts);

/* --- numbers --- */

/* "1.5k", "0x200", "64M": 0, -EINVAL (not a number, or text after it) or -ERANGE (negative or >= 2^64). */
int parse_size(const char *text, uint64_t *bytes);
/* The same for what must fit a signed 64-bit number: -ERANGE above INT64_MAX. */
int parse_size_i64(const char *text, int64_t *bytes);
/* on/off, yes/no, true/false, y/n: 0 or -EINVAL. */
int parse_bool(const char *text, bool *value);

#define SIZE_TEXT_BYTES 64
/* As qemu-io prints sizes: "512 bytes", "64 KiB", "1.500 GiB". `bytes` may be a rate. Returns `text`. */
const char *size_text_io(double bytes, char text[SIZE_TEXT_BYTES]);
/* As qemu-img prints sizes: "512 B", "64 KiB", "1.5 GiB", "0.977 MiB". Returns `text`. */
const char *size_text_img(uint64_t bytes, char text[SIZE_TEXT_BYTES]);

uint64_t monotonic_nanoseconds(void);

/* What a LUKS header says; `in_qcow2`: as part of a qcow2 image. 0 or -errno. */
int print_luks(FILE *out, int indent, qcow2_image *image, bool in_qcow2);

/* --- growable lists of strings, always ending in NULL, as the library takes options --- */

struct string_list {
    char **items; /* NULL while empty */
    size_t count;
};
void list_add(struct string_list *list, const char *text);
void list_addf(struct string_list *list, const char *format, ...) __attribute__((format(printf, 2, 3)));
void list_free(struct string_list *list);
/* For the library's `options`; never NULL. Belongs to the list. */
const char *const *list_options(const struct string_list *list);
/* Value of the last "key=value" item with this key, or NULL. */
const char *list_value(const struct string_list *list, const char *key);
/* Takes every "key=..." item out; returns the last value (allocated) or NULL. */
char *list_take(struct string_list *list, const char *key);

/* Splits "a=1,b=x,,y,c" at single commas into "a=1", "b=x,y", "c=on" ("noc" gives "c=off").
   `deprecated` makes the short form warn, as it does everywhere but in creation options. */
void split_options(struct string_list *list, const char *text, bool deprecated);
/* True when one of the items of an option string asks for help ("help" or "?"). */
bool options_ask_help(const char *text);

/* --- images --- */

struct cache_mode {
    bool direct, no_flush, writethrough;
};
/* none, off, writeback, writethrough, directsync, unsafe: false for anything else. */
bool cache_parse(const char *mode, struct cache_mode *cache);

struct node_tree;

/* How the user named an image, and once it is open its tree of nodes (node.h). */
struct image_spec {
    char *name;                 /* as typed, for messages */
    char *path;                 /* of the file, where the name tells */
    char *format;               /* a driver; NULL: probe */
    struct string_list options; /* library keys that the tool adds */
    struct string_list items;   /* what the user says, by --image-opts, json: or -o: "file.filename=x" */
    struct cache_mode cache;
    bool bare;         /* `name` is a file's name, with or without a protocol; otherwise the items name the image */
    bool by_options;   /* named by --image-opts: messages do not repeat it */
    bool recorded;     /* named by an image, and not by the user */
    bool writes_below; /* images below are written to */
    bool probed_raw;   /* set by image_open */
    struct node_tree *tree;
};

void image_spec_free(struct image_spec *spec);
/* "nbd:..." has a protocol, "./nbd:..." is a path. */
bool has_protocol(const char *name);
/* Whether nothing but a file of this host has such a name. */
bool name_is_file(const char *name);
/* A name that means the file at `path` whatever colons are in it; allocated. */
char *path_as_name(const char *path);
/* The one place that knows names: plain paths, names with a protocol, "json:{...}" and, with `image_opts`,
   "driver=qcow2,file.filename=...". 0 or -errno with *error allocated: the stock tool's text without any prefix. */
int image_from_name(struct image_spec *spec, const char *name, const char *format, bool image_opts, char **error);
/* The same for a file that is to be made, whose path it gives. */
int image_target(struct image_spec *spec, const char *name, char **error);
/* More items, as "open -o" has them; they may name the image as well. */
void image_items(struct image_spec *spec, const struct string_list *items);
/* What "reopen -o" changes: 0 or -errno with *error. `change` comes with the cache mode that is in force. */
struct reopen_change {
    struct cache_mode cache;
    bool read_only;
    struct string_list options; /* for the library */
};
int image_reopen_options(const struct image_spec *spec, qcow2_image *image, const struct string_list *given,
                         struct reopen_change *change, char **error);
/* {"driver": "qcow2", "file": {"filename": "x"}} becomes "driver=qcow2", "file.filename=x"; true and false
   become on and off; null is left out, except that "backing" becomes empty. 0 or -EINVAL with *error allocated. */
int json_flatten(const char *text, struct string_list *items, char **error);
/* The same, with what each value is as "key=string", "key=number" and so on, and errors that speak of no options. */
int json_object(const char *text, struct string_list *items, struct string_list *kinds, char **error);
/* unmap/on or ignore/off: false for anything else. */
bool image_discard(struct image_spec *spec, const char *mode);
void image_cache(struct image_spec *spec, struct cache_mode cache);
/* "cache=..." for the library, from the mode; static. */
const char *cache_option(struct cache_mode cache);

/* Opens with the backing chain; `flags` are added to those of the spec. Prints the warning about a guessed format.
   0 or -errno with *error as above ("Could not open 'x': No such file or directory"). */
int image_open(struct image_spec *spec, uint64_t flags, qcow2_image **image, char **error);
/* That warning, again. */
void image_warn_guessed(const struct image_spec *spec);
/* What the first bytes look like, also what is no driver here ("vmdk"); "raw" where they look like nothing; NULL when the
   file cannot be read. */
const char *image_probe(const char *path);
/* A qcow2_message_fn: one line on stderr. */
void print_message(void *opaque, int kind, const char *text);

#endif
