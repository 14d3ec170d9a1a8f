/* What qcow2-img info says about the nodes below an image.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "img.h"
#include "node.h"

#define SECTOR_BYTES 512

/* A device has no length but where it ends. */
static int64_t file_bytes(const char *path)
{
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    int64_t end = fd >= 0 ? lseek(fd, 0, SEEK_END) : -1;

    if (fd >= 0) {
        close(fd);
    }
    return end;
}

static bool is_leaf(const struct node *node)
{
    return node->driver->protocol && node->child_count == 0;
}

/* Bytes that a node shows, in whole sectors; its child is open. */
static uint64_t node_bytes(struct node *node)
{
    int64_t bytes = 0;

    if (node_is_file(node)) {
        bytes = file_bytes(node->filename);
    } else if (node->driver->length != NULL) {
        bytes = node->driver->length(node);
    } else if (node->image != NULL) {
        bytes = qcow2_length(node->image);
    }
    return bytes > 0 ? ((uint64_t)bytes + SECTOR_BYTES - 1) / SECTOR_BYTES * SECTOR_BYTES : 0;
}

int64_t node_disk_bytes(const struct node *node)
{
    struct stat status;

    if (node_is_file(node)) {
        return stat(node->filename, &status) == 0 ? (int64_t)status.st_blocks * SECTOR_BYTES : -1;
    }
    if (node->driver->protocol) {
        return strncmp(node->driver->name, "null-", 5) == 0 ? 0 : -1;
    }
    return node->child_count > 0 ? node_disk_bytes(node->children[0]) : -1;
}

/* Whether it can tell that it is not dirty: what is not stored can not. */
bool node_tells_dirty(const struct node *node)
{
    while (node->child_count > 0) {
        node = node->children[0];
    }
    return node_is_file(node);
}

char *name_below(const struct node *root)
{
    bool qcow2 = strcmp(root->driver->name, "qcow2") == 0; /* what is raw is where the bytes are */

    return qcow2 && !node_is_file(root->children[0]) ? node_name(root->children[0]) : NULL;
}

char *shown_name(const struct node *root)
{
    const char *secret = list_value(&root->encrypt, "key-secret");
    char *name = node_name(root), *text = NULL;
    size_t length = 0;
    FILE *out;

    if (secret == NULL || root->child_count == 0 || !node_is_file(root->children[0])) {
        return name;
    }
    out = memory_or_exit(open_memstream(&text, &length));
    fputs("json:{\"encrypt.key-secret\": ", out);
    json_quoted(out, secret);
    fprintf(out, ", \"driver\": \"%s\", \"file\": {\"driver\": \"%s\", \"filename\": ", root->driver->name,
            root->children[0]->driver->name);
    json_quoted(out, name);
    fputs("}}", out);
    fclose(out);
    free(name);
    return text;
}

static void print_bytes(FILE *out, int indent, const char *label, int64_t bytes, bool exact)
{
    char text[SIZE_TEXT_BYTES];

    if (bytes < 0) {
        fprintf(out, "%*s%s: unavailable\n", indent, "", label);
    } else if (exact) {
        fprintf(out, "%*s%s: %s (%lld bytes)\n", indent, "", label, size_text_img((uint64_t)bytes, text),
                (long long)bytes);
    } else {
        fprintf(out, "%*s%s: %s\n", indent, "", label, size_text_img((uint64_t)bytes, text));
    }
}

static void print_children(FILE *out, const struct node *node, const char *path, int indent)
{
    for (size_t i = node->child_count; i > 0; i--) {
        struct node *child = node->children[i - 1];
        char *child_path = text_format("%s/%s", path, node->child_names[i - 1]), *name = node_name(child);
        bool leaf = is_leaf(child);

        fprintf(out, "%*sChild node '%s':\n", indent, "", child_path);
        fprintf(out, "%*s%s: %s\n", indent + 4, "", leaf ? "filename" : "image", name);
        fprintf(out, "%*s%s: %s\n", indent + 4, "", leaf ? "protocol type" : "file format", child->driver->name);
        print_bytes(out, indent + 4, leaf ? "file length" : "virtual size", (int64_t)node_bytes(child), true);
        print_bytes(out, indent + 4, "disk size", node_disk_bytes(child), false);
        print_children(out, child, child_path, indent + 4);
        free(child_path);
        free(name);
    }
}

void print_child_nodes(FILE *out, const struct node *node)
{
    print_children(out, node, "", 0);
}

static void json_node(struct json *json, struct node *node)
{
    char *name = node_name(node);
    int64_t disk = node_disk_bytes(node);

    json_child_nodes(json, node);
    json_number(json, "virtual-size", node_bytes(node));
    json_string(json, "filename", name);
    json_string(json, "format", node->driver->name);
    if (disk >= 0) {
        json_number(json, "actual-size", (uint64_t)disk);
    }
    json_file_specific(json, node);
    if (node_tells_dirty(node)) {
        json_bool(json, "dirty-flag", false);
    }
    free(name);
}

void json_file_specific(struct json *json, const struct node *node)
{
    if (node_is_file(node)) {
        json_open(json, "format-specific", '{');
        json_string(json, "type", node->driver->name);
        json_open(json, "data", '{');
        json_close(json, '}');
        json_close(json, '}');
    }
}

void json_child_nodes(struct json *json, const struct node *node)
{
    json_open(json, "children", '[');
    for (size_t i = node->child_count; i > 0; i--) {
        json_open(json, NULL, '{');
        json_string(json, "name", node->child_names[i - 1]);
        json_open(json, "info", '{');
        json_node(json, node->children[i - 1]);
        json_close(json, '}');
        json_close(json, '}');
    }
    json_close(json, ']');
}
