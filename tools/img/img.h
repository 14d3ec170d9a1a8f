/* What the files of qcow2-img share.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef QCOW2_TOOLS_IMG_H
#define QCOW2_TOOLS_IMG_H

#include <stdio.h>

#include "common.h"

/* --- commands and their options: one table drives getopt and --help --- */

struct img_option {
    int code;             /* the short option, or an OPTION_* above 255 */
    const char *name;     /* long option; NULL: short only */
    const char *argument; /* its name in the help; NULL: takes none */
    const char *help;
};

struct img_command {
    const char *name;
    const char *summary;
    const char *operands;
    const struct img_option *options; /* ends with a code of 0 */
    int (*run)(const struct img_command *command, int argc, char **argv);
    bool in_order; /* operands come back as OPTION_OPERAND, between the options */
};

#define OPTION_OPERAND 1
enum { OPTION_IMAGE_OPTS = 256, OPTION_OBJECT, OPTION_OUTPUT, OPTION_OWN };

#define IMG_HELP                                                                                                       \
    {                                                                                                                  \
        'h', "help", NULL, "show this text"                                                                            \
    }
#define IMG_QUIET                                                                                                      \
    {                                                                                                                  \
        'q', "quiet", NULL, "print nothing but errors"                                                                 \
    }
#define IMG_PROGRESS                                                                                                   \
    {                                                                                                                  \
        'p', "progress", NULL, "show how far the work is"                                                              \
    }
#define IMG_FORMAT                                                                                                     \
    {                                                                                                                  \
        'f', "format", "FMT", "image format, qcow2 or raw (default: look)"                                             \
    }
#define IMG_IMAGE_OPTS                                                                                                 \
    {                                                                                                                  \
        OPTION_IMAGE_OPTS, "image-opts", NULL, "FILENAME is a list driver=...,file.filename=..."                       \
    }
#define IMG_OBJECT                                                                                                     \
    {                                                                                                                  \
        OPTION_OBJECT, "object", "OBJDEF", "an object such as secret,id=...,data=..."                                  \
    }
#define IMG_SHARE                                                                                                      \
    {                                                                                                                  \
        'U', "force-share", NULL, "open even while another program writes"                                             \
    }
#define IMG_OUTPUT                                                                                                     \
    {                                                                                                                  \
        OPTION_OUTPUT, "output", "human|json", "how to print (default: human)"                                         \
    }
#define IMG_END                                                                                                        \
    {                                                                                                                  \
        0, NULL, NULL, NULL                                                                                            \
    }

/* The next option, or -1. Prints help, and what is wrong with a command line, and exits then. */
int next_option(const struct img_command *command, int argc, char **argv);
/* error_report(), then where to find help; returns 1. */
int usage_error(const struct img_command *command, const char *format, ...) __attribute__((format(printf, 2, 3)));
extern const char *program_path; /* argv[0] as it was given */

/* What most commands are told. */
struct image_args {
    const char *format;
    bool image_opts;
    bool force_share;
    bool quiet;
    bool progress;
    bool json;
};
/* Takes one of the options above. False: it belongs to the command. Exits on bad values. */
bool take_image_option(struct image_args *args, const struct img_command *command, int code);
/* The one operand of a command line, NULL after an error message. */
const char *one_file_name(const struct image_args *args, const struct img_command *command, int argc, char **argv);

/* Opens or prints why not and returns false. `spec` is to be freed in both cases; its cache may be set before. */
bool open_image(const struct image_args *args, const char *name, uint64_t flags, struct image_spec *spec,
                qcow2_image **image);
/* Opens the snapshot that -l means in the place of the disk: 0, or 1 after a message. */
int open_snapshot(struct image_spec *spec, const char *text, qcow2_image **image);
/* Whether an open failed with this for want of the key, or because of what was said of it. */
bool lacks_key(int result);
/* Whether the user gives the key of an image that is open for its metadata, if it has one; false after a message. */
bool has_key(const struct image_args *args, const char *name, qcow2_image *image);
/* Closes; prints the error a flush at close had. 0 or 1: the exit code. */
int close_image(qcow2_image *image);
/* qcow2_get_info, or prints why not. */
bool image_info(qcow2_image *image, qcow2_info *info);
/* 0 or 1; `what` is the text of an unknown mode: "Invalid cache option". NULL mode: the default. */
int set_cache(struct image_spec *spec, const char *mode, const char *what);
/* An operand in bytes: prints "Invalid WHAT specified..." */
bool parse_bytes(const char *text, const char *what, int64_t *bytes);
/* The same between limits. */
bool parse_bytes_within(const char *text, const char *what, int64_t least, int64_t most, int64_t *bytes);
/* A plain number between limits, decimal or with a prefix. */
bool parse_count_within(const char *text, const char *what, int64_t least, int64_t most, int64_t *number);

/* --- progress: one job for each process. A SIGUSR1 has it on stderr where -p does not show it --- */

void progress_init(bool shown);
/* qcow2_progress_fn; shows steps of two percent. */
int progress_update(void *opaque, uint64_t done, uint64_t total);
/* What progress_update is told is a part of `total`, after `before`. */
void progress_part(uint64_t before, uint64_t total);
/* Shows it whatever was shown before. */
void progress_print(double percent);
/* The newline after it all, before errors are told or after: where the stock tool has it. */
void progress_end(void);

/* --- backing chains --- */

/* A name recorded in an image, as seen from where the tool runs. Allocated. */
char *resolve_recorded(const char *image_path, const char *recorded);
/* The same for an open image; NULL where it is relative and the image is in no directory. */
char *recorded_below(const struct image_spec *spec, const char *recorded);
/* Host files of the layers of a chain, found on demand. */
struct chain {
    struct string_list data_names; /* per depth: where data is */
    struct string_list paths;      /* per depth: the image */
    char *next_path, *next_format; /* NULL path: the end has been reached */
};
/* `format`: NULL to look. */
void chain_init(struct chain *chain, const char *path, const char *format);
void chain_free(struct chain *chain);
/* False when the chain is shorter or a layer cannot be opened (no message then). */
bool chain_reach(struct chain *chain, size_t depth);

/* What map --picture prints: 0 or 1. */
int print_picture(qcow2_image *image);

/* --- JSON, laid out as the stock tool does --- */

struct json {
    FILE *out;
    int depth;
    bool filled; /* the innermost container has a member */
};
void json_open(struct json *json, const char *key, char bracket);
void json_close(struct json *json, char bracket);
/* Text in quotes, with what has to be escaped. */
void json_quoted(FILE *out, const char *value);
void json_string(struct json *json, const char *key, const char *value);
void json_number(struct json *json, const char *key, uint64_t value);
void json_bool(struct json *json, const char *key, bool value);

/* --- creation options --- */

struct create_option {
    const char *key;
    const char *type; /* "size", "str", "num", "bool (on/off)" */
    const char *help;
    bool recorded; /* known to the library; otherwise a matter of the host file */
    char *value;   /* as given; NULL: not */
    char *text;    /* as shown and handed on */
};
struct create_options {
    struct create_option *items;
    size_t count;
    bool qcow2;
    bool device; /* host_device: there must be one */
    bool amends; /* of amend: others of creation are told apart from what nobody knows */
};
/* "qcow2" or "raw"; false for any other format. `file_level`: with the options of the host file. */
bool create_options_init(struct create_options *options, const char *format, bool file_level);
/* Those that amend takes, for create_options_parse. */
void amend_options_init(struct create_options *options);
void create_options_free(struct create_options *options);
/* Adds one -o to the joined ones, NULL at first: 0, or 1 after a message. */
int create_options_join(char **option_text, const char *text);
/* "key=value,...": 0, or 1 after a message that starts with `prefix` ("NAME: " or nothing). */
int create_options_parse(struct create_options *options, const char *prefix, const char *text);
struct create_option *create_option_find(struct create_options *options, const char *key);
/* The value as it is handed on, NULL: not given. */
const char *create_option_text(const struct create_options *options, const char *key);
void create_option_set(struct create_option *option, const char *value);
/* " key=value key=value", in the order and with the defaults of the stock tool. */
void create_options_print(const struct create_options *options, FILE *out);
void create_options_help(const struct create_options *options);
/* One line of -o help. */
void print_option_help(const char *key, const char *type, const char *help);
/* What -o help prints; 0 or 1. */
int create_options_print_help(const char *prefix, const char *format, bool file_level);
/* Whether we make such images: qcow2, raw, and file, which is raw. */
bool creatable(const char *format);
/* Whether the stock tool has the format. */
bool format_is_known(const char *format);
/* Says that we do not make such images; returns 1. */
int report_no_creation(const char *prefix, const char *format);
/* The options of a format that only the stock tool makes, in order: false after the last one. */
bool foreign_options(const char *format, size_t index, const char **key, const char **type, const char **help);
/* Makes or empties the file, with what the options say: 0, or 1 after a message with that prefix. */
int create_image_file(const struct create_options *options, const char *prefix, const char *path, int64_t size);
/* Whether there is a block device. It keeps its size and what it held before an image is made on it. */
bool file_is_device(const char *path);

/* --- the nodes below an image, part of info --- */

struct node;
void print_child_nodes(FILE *out, const struct node *node);
void json_child_nodes(struct json *json, const struct node *node);
void json_file_specific(struct json *json, const struct node *node);
/* What it takes on the host; negative: nobody can tell. */
int64_t node_disk_bytes(const struct node *node);
bool node_tells_dirty(const struct node *node);
/* The name of what a qcow2 image is on, where that is no file; allocated or NULL. */
char *name_below(const struct node *root);

/* What the image is called: with all that names it where a file does not. Allocated. */
char *shown_name(const struct node *root);

/* --- what encrypts an image, part of info --- */

/* False after a message: what it is encrypted by cannot be read. */
bool encryption_is_readable(qcow2_image *image, const qcow2_info *info, const char *name);
void json_luks(struct json *json, qcow2_image *image, bool in_qcow2);

/* --- snapshots, also part of info --- */

bool snapshots_are_readable(qcow2_image *image, const char *name);
void print_snapshot_list(FILE *out, qcow2_image *image);
void json_snapshots(struct json *json, qcow2_image *image);

/* --- bitmaps of convert --- */

/* Whether the bitmaps of a source can be copied, or all but those that are broken: 0, or 1 after a message. */
int check_bitmaps(qcow2_image *source, bool skip_broken);
/* Whether a target can have bitmaps: 0, or 1 after a message. */
int check_bitmap_target(qcow2_image *target);
/* Copies those that are not broken, with a warning for each other: 0, or 1 after a message. */
int copy_bitmaps(qcow2_image *source, qcow2_image *target);

/* --- the commands --- */

extern const struct img_command img_amend, img_bench, img_bitmap, img_check, img_checksum, img_commit, img_compare,
    img_convert, img_create, img_dd, img_dump_header, img_info, img_map, img_measure, img_rebase, img_resize,
    img_snapshot;

#endif
