/* qcow2-io: lines from a terminal, with editing, history and completion of command names.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#define MOST_REMEMBERED 64

static struct string_list history;

struct line {
    char *text; /* with a NUL */
    size_t length, room, cursor;
    size_t shown;    /* the cursor's place on the screen, from the prompt on */
    size_t recalled; /* which line of the history it is; past the end: a new one */
};

static void reserve(struct line *line, size_t length)
{
    if (length + 1 > line->room) {
        line->room = 2 * length + 64;
        line->text = memory_or_exit(realloc(line->text, line->room));
    }
}

static void insert(struct line *line, const char *text, size_t bytes)
{
    reserve(line, line->length + bytes);
    memmove(line->text + line->cursor + bytes, line->text + line->cursor, line->length - line->cursor + 1);
    memcpy(line->text + line->cursor, text, bytes);
    line->length += bytes;
    line->cursor += bytes;
}

static void cut(struct line *line, size_t from, size_t to)
{
    memmove(line->text + from, line->text + to, line->length - to + 1);
    line->length -= to - from;
    line->cursor = from;
}

static void put(struct line *line, const char *text)
{
    line->length = line->cursor = 0;
    reserve(line, 0);
    *line->text = '\0';
    insert(line, text, strlen(text));
}

/* Back to the prompt, the line anew, and to the cursor's place. */
static void show(struct line *line)
{
    if (line->shown > 0) {
        printf("\033[%zuD", line->shown);
    }
    printf("%s\033[K", line->text);
    if (line->length > line->cursor) {
        printf("\033[%zuD", line->length - line->cursor);
    }
    line->shown = line->cursor;
    fflush(stdout);
}

static void recall(struct line *line, bool older)
{
    if (older ? line->recalled == 0 : line->recalled >= history.count) {
        return;
    }
    line->recalled += older ? (size_t)-1 : 1;
    put(line, line->recalled < history.count ? history.items[line->recalled] : "");
}

/* What the commands that begin like the line have in common. */
static void complete(struct line *line)
{
    const char *found = NULL;
    size_t common = 0, matches = 0;

    if (line->cursor != line->length || strchr(line->text, ' ') != NULL) {
        return;
    }
    for (size_t i = 0; i < io_command_count; i++) {
        const char *name = io_commands[i].name;

        if (strncmp(name, line->text, line->length) != 0) {
            continue;
        }
        common = found == NULL ? strlen(name) : common;
        for (size_t at = 0; found != NULL && at < common; at++) {
            common = name[at] == found[at] ? common : at;
        }
        found = name;
        matches++;
    }
    if (matches > 0) {
        insert(line, found + line->length, common - line->length);
    }
    if (matches == 1) {
        insert(line, " ", 1);
    }
}

/* What an escape sequence asks for, as the key that does the same; 0: nothing. */
static int escape_key(void)
{
    unsigned char key[2];

    if (read(STDIN_FILENO, key, 2) != 2 || (key[0] != '[' && key[0] != 'O')) {
        return 0;
    }
    switch (key[1]) {
    case 'A': return 'P' & 31;
    case 'B': return 'N' & 31;
    case 'C': return 'F' & 31;
    case 'D': return 'B' & 31;
    case 'H': return 'A' & 31;
    case 'F': return 'E' & 31;
    case '3': return read(STDIN_FILENO, key, 1) == 1 ? 'D' & 31 : 0;
    default: return 0;
    }
}

/* False at the end of the input. */
static bool press(struct line *line, int key)
{
    char letter = (char)key;

    switch (key) {
    case 'A' & 31: line->cursor = 0; break;
    case 'E' & 31: line->cursor = line->length; break;
    case 'B' & 31: line->cursor -= line->cursor > 0; break;
    case 'F' & 31: line->cursor += line->cursor < line->length; break;
    case 'P' & 31: recall(line, true); break;
    case 'N' & 31: recall(line, false); break;
    case 'K' & 31: cut(line, line->cursor, line->length); break;
    case 'U' & 31: cut(line, 0, line->cursor); break;
    case '\t': complete(line); break;
    case 'H' & 31:
    case 127:
        if (line->cursor > 0) {
            cut(line, line->cursor - 1, line->cursor);
        }
        break;
    case 'D' & 31:
        if (line->length == 0) {
            return false;
        }
        if (line->cursor < line->length) {
            cut(line, line->cursor, line->cursor + 1);
        }
        break;
    default:
        if (key >= ' ') {
            insert(line, &letter, 1);
        }
    }
    show(line);
    return true;
}

static void remember(const char *text)
{
    if (*text == '\0' || (history.count > 0 && strcmp(history.items[history.count - 1], text) == 0)) {
        return;
    }
    if (history.count == MOST_REMEMBERED) {
        free(history.items[0]);
        memmove(history.items, history.items + 1, --history.count * sizeof(*history.items));
    }
    list_add(&history, text);
}

static char *edit(void)
{
    struct line line = {.recalled = history.count};
    unsigned char key;

    put(&line, "");
    while (read(STDIN_FILENO, &key, 1) == 1) {
        int meant = key == 27 ? escape_key() : key;

        if (meant == '\r' || meant == '\n') {
            line.cursor = line.length;
            show(&line);
            putchar('\n');
            remember(line.text);
            return line.text;
        }
        if (meant != 0 && !press(&line, meant)) {
            break;
        }
    }
    free(line.text);
    return NULL;
}

bool io_has_terminal(void)
{
    return isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
}

char *io_edit_line(const char *prompt)
{
    struct termios before, raw;
    char *text;

    if (tcgetattr(STDIN_FILENO, &before) != 0) {
        return NULL;
    }
    raw = before; /* signals and output stay as they are */
    raw.c_lflag &= ~(tcflag_t)(ECHO | ICANON | IEXTEN);
    raw.c_iflag &= ~(tcflag_t)(ICRNL | IXON);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
    printf("%s", prompt); /* who types as soon as it is there types into the editor */
    fflush(stdout);
    text = edit();
    tcsetattr(STDIN_FILENO, TCSADRAIN, &before);
    return text;
}
