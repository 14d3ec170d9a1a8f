/* The rules of node blkdebug, from a file and from options.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "blkdebug.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALL_BUT_STATUS                                                                                                 \
    (1u << BLKDEBUG_READ | 1u << BLKDEBUG_WRITE | 1u << BLKDEBUG_ZERO | 1u << BLKDEBUG_DISCARD | 1u << BLKDEBUG_FLUSH)

enum value_type { TEXT, NUMBER, FLAG };

struct rule_key {
    const char *name;
    enum value_type type;
};

struct group {
    const char *name;
    int action;
    struct rule_key keys[8]; /* ends in a NULL */
};

static const struct group groups[] = {
    {"inject-error",
     BLKDEBUG_ERROR,
     {{"event", TEXT},
      {"state", NUMBER},
      {"iotype", TEXT},
      {"errno", NUMBER},
      {"sector", NUMBER},
      {"once", FLAG},
      {"immediately", FLAG},
      {NULL, TEXT}}},
    {"set-state", BLKDEBUG_STATE, {{"event", TEXT}, {"state", NUMBER}, {"new_state", NUMBER}, {NULL, TEXT}}},
};

static const struct group *find_group(const char *name)
{
    for (size_t i = 0; i < 2; i++) {
        if (strcmp(name, groups[i].name) == 0) {
            return &groups[i];
        }
    }
    return NULL;
}

static int check_value(const struct group *group, const char *name, const char *value, char **error)
{
    const struct rule_key *key = group->keys;
    char *end;
    bool flag;

    while (key->name != NULL && strcmp(key->name, name) != 0) {
        key++;
    }
    if (key->name == NULL) {
        return refuse(error, -EINVAL, text_format("Invalid parameter '%s'", name));
    }
    if (key->type == FLAG && parse_bool(value, &flag) < 0) {
        return refuse(error, -EINVAL, text_format("Parameter '%s' expects 'on' or 'off'", name));
    }
    if (key->type == NUMBER) {
        errno = 0;
        strtoull(value, &end, 0);
        if (errno != 0 || end == value || *end != '\0') {
            return refuse(error, -EINVAL, text_format("Parameter '%s' expects a number", name));
        }
    }
    return 0;
}

static uint64_t number(const struct string_list *items, const char *key, uint64_t otherwise)
{
    const char *value = list_value(items, key);

    return value != NULL ? strtoull(value, NULL, 0) : otherwise;
}

static int io_types(const struct string_list *items, unsigned *types, char **error)
{
    static const char *const names[] = {"read", "write", "write-zeroes", "discard", "flush", "block-status"};
    const char *name = list_value(items, "iotype");

    *types = ALL_BUT_STATUS;
    if (name == NULL) {
        return 0;
    }
    for (unsigned i = 0; i < 6; i++) {
        if (strcmp(name, names[i]) == 0) {
            *types = 1u << i;
            return 0;
        }
    }
    return refuse(error, -EINVAL, text_format("invalid parameter value: %s", name));
}

static int add(struct blkdebug *state, const struct group *group, const struct string_list *items, char **error)
{
    const char *event = list_value(items, "event"), *once = list_value(items, "once");
    struct blkdebug_rule rule = {.action = group->action};

    if (event == NULL) {
        return refuse(error, -EINVAL, text_copy("Missing event name for rule"));
    }
    rule.event = blkdebug_event_number(event);
    if (rule.event < 0) {
        return refuse(error, -EINVAL, text_format("invalid parameter value: %s", event));
    }
    rule.state = (int)number(items, "state", 0);
    rule.new_state = (int)number(items, "new_state", 0);
    rule.error = (int)number(items, "errno", EIO);
    rule.offset = number(items, "sector", UINT64_MAX);
    rule.offset = rule.offset == UINT64_MAX ? rule.offset : rule.offset * 512;
    if (once != NULL) {
        parse_bool(once, &rule.once);
    }
    if (group->action == BLKDEBUG_ERROR && io_types(items, &rule.types, error) < 0) {
        return -EINVAL;
    }
    blkdebug_add_rule(state, &rule);
    return 0;
}

/* --- the file --- */

struct section {
    const struct group *group;
    struct string_list items;
};

struct config {
    struct section *sections;
    size_t count;
};

static int parse_line(struct config *config, const char *line, char **error)
{
    char name[64], value[1024] = "";
    const struct group *group;

    line += strspn(line, " \t");
    if (*line == '\n' || *line == '\0' || *line == '#') {
        return 0;
    }
    if (sscanf(line, "[%63s \"%63[^\"]\"]", name, value) == 2 || sscanf(line, "[%63[^]]]", name) == 1) {
        group = find_group(name);
        if (group == NULL) {
            return refuse(error, -EINVAL, text_format("There is no option group '%s'", name));
        }
        config->sections = memory_or_exit(realloc(config->sections, (config->count + 1) * sizeof(*config->sections)));
        config->sections[config->count++] = (struct section){.group = group};
        return 0;
    }
    *value = '\0';
    if (sscanf(line, " %63s = \"%1023[^\"]\"", name, value) != 2 && sscanf(line, " %63s = \"\"", name) != 1) {
        return refuse(error, -EINVAL, text_copy("parse error"));
    }
    if (config->count == 0) {
        return refuse(error, -EINVAL, text_copy("no group defined"));
    }
    list_addf(&config->sections[config->count - 1].items, "%s=%s", name, value);
    return check_value(config->sections[config->count - 1].group, name, value, error);
}

static int read_file(struct config *config, const char *path, char **error)
{
    FILE *file = fopen(path, "r");
    char line[1024];
    int ret = 0;

    if (file == NULL) {
        ret = -errno;
        return refuse(error, ret, text_format("Could not read blkdebug config file: %s", strerror(-ret)));
    }
    while (ret == 0 && fgets(line, sizeof(line), file) != NULL) {
        ret = parse_line(config, line, error);
    }
    fclose(file);
    return ret;
}

/* --- options --- */

/* "inject-error.0.event=x" and "inject-error.event=x". */
static int from_items(struct config *config, const struct group *group, struct string_list *items, char **error)
{
    struct string_list all = {NULL, 0};
    int ret = 0;

    take_group(items, group->name, &all);
    while (all.count > 0 && ret == 0) {
        struct string_list one = {NULL, 0};
        char *index = text_format("%.*s", (int)strspn(all.items[0], "0123456789"), all.items[0]);

        if (*index != '\0') {
            take_group(&all, index, &one);
        }
        if (one.count == 0) {
            list_free(&one);
            one = all;
            all = (struct string_list){NULL, 0};
        }
        free(index);
        config->sections = memory_or_exit(realloc(config->sections, (config->count + 1) * sizeof(*config->sections)));
        config->sections[config->count++] = (struct section){.group = group, .items = one};
        for (size_t i = 0; i < one.count && ret == 0; i++) {
            char *key = text_format("%.*s", (int)strcspn(one.items[i], "="), one.items[i]);

            ret = check_value(group, key, one.items[i] + strcspn(one.items[i], "=") + 1, error);
            free(key);
        }
    }
    list_free(&all);
    return ret;
}

int blkdebug_read_rules(struct blkdebug *state, const char *config_file, struct string_list *items, char **error)
{
    struct config config = {NULL, 0};
    int ret = config_file != NULL ? read_file(&config, config_file, error) : 0;

    for (size_t i = 0; i < 2 && ret == 0; i++) {
        ret = from_items(&config, &groups[i], items, error);
    }
    for (size_t i = 0; i < config.count; i++) {
        ret = ret == 0 ? add(state, config.sections[i].group, &config.sections[i].items, error) : ret;
        list_free(&config.sections[i].items);
    }
    free(config.sections);
    return ret;
}
