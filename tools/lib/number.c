/* Numbers that the tools read and print.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "common.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Shift for a size suffix, or -1. */
static int suffix_bits(char suffix)
{
    switch (suffix) {
    case 'b':
    case 'B': return 0;
    case 'k':
    case 'K': return 10;
    case 'm':
    case 'M': return 20;
    case 'g':
    case 'G': return 30;
    case 't':
    case 'T': return 40;
    case 'p':
    case 'P': return 50;
    case 'e':
    case 'E': return 60;
    default: return -1;
    }
}

static int parse_hex(const char *text, uint64_t *bytes)
{
    char *end;

    if (strspn(text + 2, "0123456789abcdefABCDEF") == 0) {
        return -EINVAL;
    }
    errno = 0;
    *bytes = strtoull(text, &end, 16);
    if (*end != '\0') {
        return -EINVAL;
    }
    return errno == ERANGE ? -ERANGE : 0;
}

/* Negative numbers are out of range if they are numbers at all; a suffix or fraction makes them none. */
static int parse_negative(const char *text)
{
    size_t digits = strspn(text + 1, "0123456789");

    return digits > 0 && text[1 + digits] == '\0' ? -ERANGE : -EINVAL;
}

/* Reads ".ddd": the part of one unit in *fraction; returns where the text goes on. */
static const char *parse_fraction(const char *text, double *fraction, bool *non_zero)
{
    size_t digits = strspn(text + 1, "0123456789");
    char *copy = text_format("0%.*s", (int)(digits + 1), text);

    *non_zero = strspn(text + 1, "0") < digits;
    *fraction = strtod(copy, NULL);
    free(copy);
    return text + 1 + digits;
}

/* Digits, perhaps a fraction, perhaps one suffix. */
static int parse_decimal(const char *text, uint64_t *bytes)
{
    size_t digits = strspn(text, "0123456789");
    const char *rest = text + digits;
    bool part_of_unit = false;
    double fraction = 0.0;
    uint64_t whole, part;
    int bits = 0;

    errno = 0;
    whole = digits > 0 ? strtoull(text, NULL, 10) : 0;
    bool overflow = errno == ERANGE;

    if (*rest == '.') {
        digits += strspn(rest + 1, "0123456789");
        rest = parse_fraction(rest, &fraction, &part_of_unit);
    }
    if (*rest != '\0') {
        bits = suffix_bits(*rest++);
    }
    if (digits == 0 || bits < 0 || *rest != '\0' || (bits == 0 && part_of_unit)) {
        return -EINVAL; /* there is no half a byte */
    }
    if (overflow || (bits != 0 && whole >> (64 - bits) != 0)) {
        return -ERANGE;
    }
    part = (uint64_t)(fraction * (double)(UINT64_C(1) << bits) + 0.5);
    if ((whole << bits) > UINT64_MAX - part) {
        return -ERANGE;
    }
    *bytes = (whole << bits) + part;
    return 0;
}

int parse_size(const char *text, uint64_t *bytes)
{
    text += strspn(text, " \t\n\v\f\r");
    if (*text == '-') {
        return parse_negative(text);
    }
    if (*text == '+') {
        text++;
    }
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
        return parse_hex(text, bytes);
    }
    return parse_decimal(text, bytes);
}

int parse_size_i64(const char *text, int64_t *bytes)
{
    uint64_t value;
    int ret = parse_size(text, &value);

    if (ret == 0 && value > INT64_MAX) {
        ret = -ERANGE;
    }
    if (ret == 0) {
        *bytes = (int64_t)value;
    }
    return ret;
}

int parse_bool(const char *text, bool *value)
{
    static const char *const words[2][4] = {{"off", "no", "false", "n"}, {"on", "yes", "true", "y"}};

    for (size_t i = 0; i < 8; i++) {
        if (strcmp(text, words[i / 4][i % 4]) == 0) {
            *value = i >= 4;
            return 0;
        }
    }
    return -EINVAL;
}

static const char size_units[] = "KMGTPE";

const char *size_text_io(double bytes, char text[SIZE_TEXT_BYTES])
{
    int unit = -1;
    char *zeroes;

    while (bytes >= 1024.0 && size_units[unit + 1] != '\0') {
        bytes /= 1024.0;
        unit++;
    }
    if (unit < 0) {
        snprintf(text, SIZE_TEXT_BYTES, "%f", bytes);
        zeroes = strstr(text, ".000000");
    } else {
        snprintf(text, SIZE_TEXT_BYTES, "%.3f", bytes);
        zeroes = strstr(text, ".000");
    }
    if (zeroes != NULL) {
        *zeroes = '\0';
    }
    if (unit < 0) {
        strcat(text, " bytes");
    } else {
        snprintf(text + strlen(text), SIZE_TEXT_BYTES - strlen(text), " %ciB", size_units[unit]);
    }
    return text;
}

const char *size_text_img(uint64_t bytes, char text[SIZE_TEXT_BYTES])
{
    double value = (double)bytes;
    int unit = -1;

    /* The next unit starts at 1000, so that three digits always do. */
    while (value >= 1000.0 && size_units[unit + 1] != '\0') {
        value /= 1024.0;
        unit++;
    }
    if (unit < 0) {
        snprintf(text, SIZE_TEXT_BYTES, "%.3g B", value);
    } else {
        snprintf(text, SIZE_TEXT_BYTES, "%.3g %ciB", value, size_units[unit]);
    }
    return text;
}

uint64_t monotonic_nanoseconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}
