/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "real.h"
#include "qcow2.h"
#include "report.h"

bool config_off;
bool config_last[256] = {['2'] = true};

static const char *const default_options[] = {"metadata-writethrough=on", NULL};

static struct rule default_rule = {
    .end = ".qcow2",
    .end_length = sizeof ".qcow2" - 1,
    .flags = QCOW2_OPEN_ALLOW_RECORDED,
    .options = default_options,
};

static struct rule *rules = &default_rule;

/* `text` is split in place and stays. */
static struct rule *parse_rule(char *text)
{
    struct rule *rule = calloc(1, sizeof *rule);
    const char **options = calloc(strlen(text) / 2 + 4, sizeof *options);
    size_t count = 0;
    char *next = NULL, *name = strtok_r(text, ",", &next);

    if (rule == NULL || options == NULL || name == NULL) {
        free(rule);
        free(options);
        return NULL;
    }
    options[count++] = default_options[0];
    rule->flags = QCOW2_OPEN_ALLOW_RECORDED;
    for (char *word; (word = strtok_r(NULL, ",", &next)) != NULL;) {
        if (strcmp(word, "ro") == 0) {
            rule->read_only = true;
        } else if (strcmp(word, "device") == 0) {
            rule->device = true;
        } else if (strcmp(word, "backing=on") == 0 || strcmp(word, "backing=off") == 0) {
            rule->flags = word[9] == 'n' ? QCOW2_OPEN_ALLOW_RECORDED : 0;
        } else {
            /* Said again it counts again. */
            options[count++] = word;
        }
    }
    rule->options = options;
    if (name[0] == '*') {
        rule->end = name + 1;
    } else {
        rule->whole = true;
        rule->end = strrchr(name, '/') != NULL ? strrchr(name, '/') + 1 : name;
        rule->path = rule->end != name ? name : NULL;
    }
    rule->end_length = strlen(rule->end);
    return rule;
}

void config_read(void)
{
    const char *text = secure_getenv("LIBQCOW2_PRELOAD");
    struct rule **last = &rules;
    char *copy, *next = NULL;

    if (text == NULL || text[0] == '\0') {
        return;
    }
    if (strcmp(text, "off") == 0) {
        config_off = true;
        rules = NULL;
        memset(config_last, 0, sizeof config_last);
        return;
    }
    copy = strdup(text);
    if (copy == NULL) {
        return;
    }
    rules = NULL;
    for (char *word = strtok_r(copy, ":", &next); word != NULL; word = strtok_r(NULL, ":", &next)) {
        struct rule *rule = parse_rule(word);

        for (const char *const *option = rule != NULL ? rule->options : NULL; option != NULL && *option != NULL;
             option++) {
            if (qcow2_check_open_option(*option) < 0) {
                report_line("LIBQCOW2_PRELOAD: %s", qcow2_last_error());
            }
        }
        if (rule != NULL) {
            config_last[rule->end_length > 0 ? (unsigned char)rule->end[rule->end_length - 1] : 0] = true;
            if (rule->end_length == 0) {
                memset(config_last, 1, sizeof config_last);
            }
            *last = rule;
            last = &rule->next;
        }
    }
}

static bool same_file(const char *a, const char *b)
{
    struct stat64 first, second;

    return strcmp(a, b) == 0 || (REAL(stat64)(a, &first) == 0 && REAL(stat64)(b, &second) == 0 &&
                                 first.st_dev == second.st_dev && first.st_ino == second.st_ino);
}

const struct rule *config_match(const char *name)
{
    size_t length = name != NULL ? strlen(name) : 0;

    for (const struct rule *rule = rules; rule != NULL; rule = rule->next) {
        if (length >= rule->end_length && memcmp(name + length - rule->end_length, rule->end, rule->end_length) == 0 &&
            (!rule->whole || length == rule->end_length || name[length - rule->end_length - 1] == '/') &&
            (rule->path == NULL || same_file(rule->path, name))) {
            return rule;
        }
    }
    return NULL;
}
