/* The command line of qcow2-fuse.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "arguments.h"

#include "log.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_READ_ONLY = 1, KEY_WRITABLE, KEY_STAYS, KEY_FOREGROUND };

struct parsed {
    struct arguments *arguments;
    char *name;
    int result;
};

static const struct fuse_opt specification[] = {
    FUSE_OPT_KEY("--read-only", KEY_READ_ONLY),
    FUSE_OPT_KEY("-r", KEY_READ_ONLY),
    FUSE_OPT_KEY("ro", KEY_READ_ONLY),
    FUSE_OPT_KEY("rw", KEY_WRITABLE),
    FUSE_OPT_KEY("--no-auto-unmount", KEY_STAYS),
    FUSE_OPT_KEY("auto_unmount", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("--foreground", KEY_FOREGROUND),
    {"--name=%s", offsetof(struct parsed, name), 0},
    FUSE_OPT_END,
};

static void print_help(void)
{
    char *options = open_options_help("    -o ");

    printf("usage: qcow2-fuse [OPTION]... IMAGE MOUNTPOINT\n"
           "\n"
           "The disk of IMAGE as a file: in MOUNTPOINT if that is a directory, or over MOUNTPOINT if that is a file,\n"
           "which may be IMAGE itself. MOUNTPOINT /dev/fd/N: a descriptor of /dev/fuse that the caller has mounted.\n"
           "\n"
           "    -f, --foreground       stay in the foreground\n"
           "    -r, --read-only        change nothing in the image\n"
           "    --name=NAME            of the file in the directory; otherwise that of the image without .qcow2\n"
           "    --no-auto-unmount      stay mounted when the program is killed; over a file it always does\n"
           "\n"
           "Options of the image:\n"
           "    -o backing=on          and so on; metadata-writethrough is on here unless said otherwise\n"
           "%s"
           "\n"
           "Options of FUSE:\n",
           options != NULL ? options : "");
    free(options);
    fuse_cmdline_help();
    fuse_lowlevel_help();
}

/* One -o of the image. 1: it is none, and FUSE's. */
static int take_open_option(struct parsed *parsed, const char *text)
{
    char *key = strdup(text), *error = NULL, *value;
    int ret = 1;

    if (key == NULL) {
        return parsed->result = -ENOMEM;
    }
    value = strchr(key, '=');
    if (value != NULL) {
        *value++ = '\0';
    }
    if (open_options_known(key)) {
        ret = open_options_set(&parsed->arguments->options, key, value != NULL ? value : "on", &error);
        if (ret < 0) {
            log_error("%s", error != NULL ? error : "out of memory");
            free(error);
            parsed->result = ret;
        }
    }
    free(key);
    return ret;
}

/* What libfuse asks about each word: 0: taken, 1: kept, -1: wrong. */
static int take_word(void *opaque, const char *word, int key, struct fuse_args *out)
{
    struct parsed *parsed = opaque;
    struct arguments *arguments = parsed->arguments;

    switch (key) {
    case KEY_READ_ONLY: arguments->options.flags |= QCOW2_OPEN_READ_ONLY; return 0;
    case KEY_WRITABLE: arguments->options.flags &= ~(uint64_t)QCOW2_OPEN_READ_ONLY; return 0;
    case KEY_STAYS: arguments->stays = true; return 0;
    case KEY_FOREGROUND: return fuse_opt_add_arg(out, "-f");
    case FUSE_OPT_KEY_NONOPT:
        if (arguments->image == NULL) {
            arguments->image = strdup(word);
            return arguments->image != NULL ? 0 : -1;
        }
        return 1;
    case FUSE_OPT_KEY_OPT: return *word == '-' ? 1 : take_open_option(parsed, word);
    default: return 1;
    }
}

/* What the file in the directory is called: the image's name without directory and suffix. NULL: no memory. */
static char *default_name(const char *image)
{
    const char *slash = strrchr(image, '/');
    char *name = strdup(slash != NULL ? slash + 1 : image);
    size_t length = name != NULL ? strlen(name) : 0;

    if (length > 6 && strcmp(name + length - 6, ".qcow2") == 0) {
        name[length - 6] = '\0';
    }
    return name;
}

/* 0 or -errno. */
static int add_mount_options(struct arguments *arguments)
{
    char *list = NULL, *source = NULL, *word = NULL;
    int ret = -ENOMEM;

    if (asprintf(&source, "fsname=%s", arguments->image) >= 0 && fuse_opt_add_opt_escaped(&list, source) == 0 &&
        asprintf(&word, "-odefault_permissions,max_read=%u%s,%s", VIEW_LONGEST_REQUEST,
                 arguments->read_only ? ",ro" : "", list) >= 0 &&
        fuse_opt_add_arg(&arguments->fuse, word) == 0) {
        ret = 0;
    }
    free(list);
    free(source);
    free(word);
    return ret;
}

/* Where the disk is, and under which name. 0 or -errno, said. */
static int find_place(struct arguments *arguments, const char *name)
{
    const char *mountpoint = arguments->command.mountpoint;
    struct stat found;
    int descriptor;

    if (sscanf(mountpoint, "/dev/fd/%d", &descriptor) == 1) {
        arguments->stays = true;
        return 0;
    }
    if (stat(mountpoint, &found) < 0) {
        log_error("%s: %s", mountpoint, strerror(errno));
        return -errno;
    }
    if (!S_ISDIR(found.st_mode)) {
        /* Programs that have the name must not find the image's own bytes, or another file, behind it of a sudden. */
        arguments->stays = true;
        arguments->file = strdup(mountpoint);
    } else {
        arguments->name = name != NULL ? strdup(name) : default_name(arguments->image);
        if (arguments->name == NULL || *arguments->name == '\0' || strchr(arguments->name, '/') != NULL) {
            log_error("--name: no name of a file");
            return -EINVAL;
        }
        if (asprintf(&arguments->file, "%s/%s", mountpoint, arguments->name) < 0) {
            arguments->file = NULL;
        }
    }
    return arguments->file != NULL ? 0 : -ENOMEM;
}

static int complete(struct arguments *arguments, struct parsed *parsed)
{
    char *error;
    int ret;

    if (arguments->image == NULL || arguments->command.mountpoint == NULL) {
        log_error("which image, and where? qcow2-fuse [OPTION]... IMAGE MOUNTPOINT");
        return -EINVAL;
    }
    ret = find_place(arguments, parsed->name);
    if (ret < 0) {
        return ret;
    }
    arguments->read_only = open_options_read_only(&arguments->options);
    if (arguments->read_only) {
        arguments->options.flags |= QCOW2_OPEN_READ_ONLY;
    }
    /* Programs that write files do not sync them, and this process may be killed. */
    if (open_options_default(&arguments->options, "metadata-writethrough", "on", &error) < 0) {
        log_error("%s", error != NULL ? error : "out of memory");
        free(error);
        return -EINVAL;
    }
    return add_mount_options(arguments);
}

int arguments_parse(struct arguments *arguments, int argc, char **argv)
{
    struct parsed parsed = {.arguments = arguments};
    int ret;

    arguments->fuse = (struct fuse_args)FUSE_ARGS_INIT(argc, argv);
    if (fuse_opt_parse(&arguments->fuse, &parsed, specification, take_word) < 0 ||
        fuse_parse_cmdline(&arguments->fuse, &arguments->command) < 0) {
        free(parsed.name);
        return parsed.result < 0 ? parsed.result : -EINVAL;
    }
    if (arguments->command.show_help) {
        print_help();
        ret = 1;
    } else if (arguments->command.show_version) {
        printf("qcow2-fuse %s, libfuse %s\n", qcow2_version(), fuse_pkgversion());
        ret = 1;
    } else {
        ret = complete(arguments, &parsed);
    }
    free(parsed.name);
    return ret;
}

void arguments_free(struct arguments *arguments)
{
    open_options_free(&arguments->options);
    fuse_opt_free_args(&arguments->fuse);
    free(arguments->command.mountpoint);
    free(arguments->image);
    free(arguments->name);
    free(arguments->file);
}
