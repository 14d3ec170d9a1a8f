/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Which files are images. */
#include "run.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "qcow2.h"

static const char suffix[] = ".qcow2";

static bool has_suffix(const char *text)
{
    size_t length = strlen(text), end_length = sizeof suffix - 1;

    return length >= end_length && strcmp(text + length - end_length, suffix) == 0;
}

/* `name` from the root on. */
static char *absolute(const char *name)
{
    char here[PATH_MAX], *path;

    if (name[0] == '/') {
        return strdup(name);
    }
    return getcwd(here, sizeof here) != NULL && asprintf(&path, "%s/%s", here, name) >= 0 ? path : NULL;
}

/* 0 or -errno. */
static int add(struct images *images, const char *name, bool guessed)
{
    struct image image = {realpath(name, NULL), absolute(name), guessed}, *list;

    if (image.path == NULL || image.name == NULL) {
        goto failed;
    }
    for (int i = 0; i < images->count; i++) {
        if (strcmp(images->list[i].path, image.path) == 0 && strcmp(images->list[i].name, image.name) == 0) {
            free(image.path);
            free(image.name);
            images->list[i].guessed &= guessed;
            return 0;
        }
    }
    list = realloc(images->list, (size_t)(images->count + 1) * sizeof *list);
    if (list == NULL) {
        goto failed;
    }
    images->list = list;
    list[images->count++] = image;
    return 0;

failed:
    free(image.path);
    free(image.name);
    return -ENOMEM;
}

int images_add_named(struct images *images, const char *name)
{
    int result = qcow2_probe(name);

    if (result == 1) {
        result = add(images, name, false);
    } else if (result == 0) {
        complain("%s is no qcow2 image", name);
        return 126;
    }
    if (result < 0) {
        complain("%s: %s", name, strerror(-result));
        return 126;
    }
    return 0;
}

/* FILE, or KEY=FILE as dd has it. */
static const char *file_of(const char *argument)
{
    const char *equals = strchr(argument, '=');

    return access(argument, F_OK) != 0 && equals != NULL ? equals + 1 : argument;
}

int images_add_arguments(struct images *images, char *const arguments[])
{
    for (int i = 0; arguments[i] != NULL; i++) {
        const char *name = file_of(arguments[i]);
        bool named = has_suffix(name);
        struct stat status;
        int result;

        if (stat(name, &status) != 0) {
            images->missing |= named && errno == ENOENT;
            continue;
        }
        if (!S_ISREG(status.st_mode)) {
            continue;
        }
        result = qcow2_probe(name);
        if (result == 1) {
            result = add(images, name, !named);
        } else if (!named) {
            continue;
        }
        if (result < 0) {
            complain("%s: %s", name, strerror(-result));
            return 126;
        }
    }
    return 0;
}

int images_add_descriptors(struct images *images)
{
    enum { MOST = 1024 };
    int result = 0;

    for (int fd = 0; fd < MOST && result == 0; fd++) {
        char link[64], name[PATH_MAX];
        struct stat status;
        ssize_t length;

        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        length = readlink(link, name, sizeof name - 1);
        if (length <= 0 || fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
            continue;
        }
        name[length] = '\0';
        if (name[0] != '/' || !has_suffix(name)) {
            continue;
        }
        /* An empty one becomes an image; one that is open for writing alone cannot be looked at. */
        images->inherited = images->inherited || status.st_size == 0 || qcow2_probe_fd(fd) != 0;
        if (status.st_size != 0 && qcow2_probe_fd(fd) != 0) {
            result = images_add_named(images, name);
        }
    }
    return result;
}

void images_merge(struct images *images)
{
    int kept = 0;

    for (int i = 0; i < images->count; i++) {
        struct image image = images->list[i];
        int same = 0;

        while (same < kept && strcmp(images->list[same].path, image.path) != 0) {
            same++;
        }
        if (same == kept) {
            images->list[kept++] = image;
        } else {
            images->list[same].guessed &= image.guessed;
            free(image.path);
            free(image.name);
        }
    }
    images->count = kept;
}

/* Adds ":RULE" to a list. */
static void add_rule(char **rules, const char *name, const char *options)
{
    char *longer = NULL;

    if (*rules != NULL && asprintf(&longer, "%s%s%s%s", *rules, **rules != '\0' ? ":" : "", name, options) < 0) {
        longer = NULL;
    }
    free(*rules);
    *rules = longer;
}

/* Rules have no way to say these. */
static bool can_be_said(const char *name)
{
    return strpbrk(name, ":,") == NULL;
}

static bool add_image_rules(char **rules, const struct image *image, bool read_only)
{
    const char *names[] = {image->path, image->name};
    const char *options = image->guessed ? read_only ? ",ro,backing=off" : ",backing=off" : read_only ? ",ro" : "";

    for (int i = strcmp(image->path, image->name) == 0; i < 2; i++) {
        if (!can_be_said(names[i])) {
            complain("the preload library cannot be told of a name with ':' or ',': %s", names[i]);
            return false;
        }
        add_rule(rules, names[i], options);
    }
    return true;
}

/*
 * The user's rules come first: they may say how a file is opened. Then the images of the command line, which are served
 * whatever the user's rules leave out, and names that end in .qcow2 where there are none.
 */
char *preload_rules(const struct images *images, const char *before, bool read_only)
{
    bool has_rules = before != NULL && *before != '\0' && strcmp(before, "off") != 0;
    char *rules = strdup(""), *copy = has_rules ? strdup(before) : NULL, *next = NULL;

    for (char *rule = copy != NULL ? strtok_r(copy, ":", &next) : NULL; rule != NULL;
         rule = strtok_r(NULL, ":", &next)) {
        add_rule(&rules, rule, read_only ? ",ro" : "");
    }
    free(copy);
    for (int i = 0; i < images->count; i++) {
        const struct image *image = &images->list[i];

        if ((has_rules || !has_suffix(image->path) || !has_suffix(image->name)) &&
            !add_image_rules(&rules, image, read_only)) {
            free(rules);
            return NULL;
        }
    }
    if (!has_rules) {
        add_rule(&rules, "*.qcow2", read_only ? ",ro" : "");
    }
    return rules;
}
