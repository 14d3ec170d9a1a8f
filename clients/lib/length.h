/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * How long a file is that a disk is shown as. A disk has whole sectors, and changes its size slowly; so the length that
 * a program has made is in an attribute of the image's file, "LENGTH SIZE NEXT-SIZE", and NEXT-LENGTH where
 * that is another one: what the disk's size, and the length with it, are about to become. Programs that know nothing of it
 * may write past it: it counts only while one of the sizes is the disk's and all that is past the length reads as zeroes.
 * A file system that keeps no attributes has every length rounded up.
 */
#ifndef CLIENTS_LENGTH_H
#define CLIENTS_LENGTH_H

#include <qcow2.h>

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define LENGTH_ATTRIBUTE "user.libqcow2.length"

enum { LENGTH_SECTOR = 512, LENGTH_VALUE_BYTES = 96 };

/* Up to the next sector's end. */
uint64_t length_round_up(uint64_t length);

/* Of a file, and of the disk that it is. */
struct file_length {
    uint64_t length;
    uint64_t size;
};

/* The attribute's value: its bytes. `next` is what is about to be, or the same. */
size_t length_value(char value[LENGTH_VALUE_BYTES], struct file_length now, struct file_length next);

/* What a value (`value_bytes` <= 0: there is none) makes of a disk's size, if length_tail_is_zero. */
uint64_t length_of_value(const char *value, ssize_t value_bytes, uint64_t size);

bool length_tail_is_zero(qcow2_image *image, uint64_t length, uint64_t size);

#endif
