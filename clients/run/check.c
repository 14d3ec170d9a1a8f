/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Looks at a program before it runs: can the shim reach what it calls? */
#include "run.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

/* Imports that move bytes of a file and that the shim does not serve, or not always. */
static const struct {
    const char *name;
    const char *why;
} imports[] = {
    {"io_submit", "libaio: the kernel reads and writes the descriptor"},
    {"io_uring_setup", "io_uring: the kernel reads and writes the descriptor"},
    {"io_uring_queue_init", "io_uring: the kernel reads and writes the descriptor"},
    {"io_uring_queue_init_params", "io_uring: the kernel reads and writes the descriptor"},
    {"mmap", "shared mappings of an image that is open for writing fail (ENODEV)"},
    {"mmap64", "shared mappings of an image that is open for writing fail (ENODEV)"},
    {"tee", "answers for pipes only"},
    {"vmsplice", "answers for pipes only"},
    {"open_by_handle_at", "opens the image's own bytes"},
    {"ftw", "shows how long the image's file is, not its disk"},
    {"ftw64", "shows how long the image's file is, not its disk"},
    {"nftw", "shows how long the image's file is, not its disk"},
    {"nftw64", "shows how long the image's file is, not its disk"},
    {"fts_open", "shows how long the image's file is, not its disk"},
    {"fts64_open", "shows how long the image's file is, not its disk"},
    {"posix_spawn_file_actions_addopen", "served once the program that is started has the shim, too"},
};

/* Libraries that tell what their programs do. */
static const char *const libraries[] = {"libaio.so", "liburing.so"};

struct file {
    const unsigned char *bytes;
    size_t length;
};

static const void *at(const struct file *file, uint64_t offset, uint64_t length)
{
    return offset <= file->length && length <= file->length - offset ? file->bytes + offset : NULL;
}

static const char *text_at(const struct file *file, uint64_t offset)
{
    const char *text = at(file, offset, 1);

    return text != NULL && memchr(text, 0, file->length - offset) != NULL ? text : "";
}

static bool imported(const char *name, bool tell)
{
    for (size_t i = 0; i < sizeof imports / sizeof imports[0]; i++) {
        if (strcmp(name, imports[i].name) == 0) {
            if (tell) {
                printf("%s: %s\n", name, imports[i].why);
            }
            return true;
        }
    }
    return false;
}

static void look_at_symbols(const struct file *file, const Elf64_Ehdr *header, const Elf64_Shdr *table, bool tell,
                            struct finding *finding)
{
    const Elf64_Shdr *strings =
        at(file, header->e_shoff + (uint64_t)table->sh_link * header->e_shentsize, sizeof *strings);
    const Elf64_Sym *symbols = at(file, table->sh_offset, table->sh_size);

    if (strings == NULL || symbols == NULL) {
        return;
    }
    for (uint64_t i = 0; i < table->sh_size / sizeof *symbols; i++) {
        if (symbols[i].st_shndx == SHN_UNDEF &&
            imported(text_at(file, strings->sh_offset + symbols[i].st_name), tell)) {
            finding->uncovered++;
        }
    }
}

static void look_at_libraries(const struct file *file, const Elf64_Ehdr *header, const Elf64_Shdr *table, bool tell,
                              struct finding *finding)
{
    const Elf64_Shdr *strings =
        at(file, header->e_shoff + (uint64_t)table->sh_link * header->e_shentsize, sizeof *strings);
    const Elf64_Dyn *entries = at(file, table->sh_offset, table->sh_size);

    for (uint64_t i = 0; strings != NULL && entries != NULL && i < table->sh_size / sizeof *entries; i++) {
        const char *name =
            entries[i].d_tag == DT_NEEDED ? text_at(file, strings->sh_offset + entries[i].d_un.d_val) : "";

        for (size_t k = 0; k < sizeof libraries / sizeof libraries[0]; k++) {
            if (strncmp(name, libraries[k], strlen(libraries[k])) == 0) {
                finding->uncovered++;
                if (tell) {
                    printf("%s: the kernel reads and writes the descriptor\n", name);
                }
            }
        }
    }
}

/* 0 or -errno. */
static int look_at_elf(const struct file *file, bool tell, struct finding *finding)
{
    const Elf64_Ehdr *header = at(file, 0, sizeof *header);

    if (header == NULL || memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) {
        return -ENOEXEC;
    }
    if (header->e_ident[EI_CLASS] != ELFCLASS64) {
        /* The shim has 64 bits. */
        finding->is_static = true;
        return 0;
    }
    finding->is_static = true;
    for (int i = 0; i < header->e_phnum; i++) {
        const Elf64_Phdr *program = at(file, header->e_phoff + (uint64_t)i * header->e_phentsize, sizeof *program);

        if (program != NULL && program->p_type == PT_INTERP) {
            finding->is_static = false;
        }
    }
    for (int i = 0; i < header->e_shnum; i++) {
        const Elf64_Shdr *section = at(file, header->e_shoff + (uint64_t)i * header->e_shentsize, sizeof *section);

        if (section != NULL && section->sh_type == SHT_DYNSYM) {
            look_at_symbols(file, header, section, tell, finding);
        } else if (section != NULL && section->sh_type == SHT_DYNAMIC) {
            look_at_libraries(file, header, section, tell, finding);
        }
    }
    return 0;
}

/* A script is what its interpreter is. */
static int look_at_script(const struct file *file, bool tell, struct finding *finding)
{
    char line[256] = "", *word, *next = NULL;
    size_t length = file->length - 2 < sizeof line - 1 ? file->length - 2 : sizeof line - 1;

    memcpy(line, file->bytes + 2, length);
    line[strcspn(line, "\n")] = '\0';
    word = strtok_r(line, " \t", &next);
    if (word == NULL) {
        return -ENOEXEC;
    }
    if (strcmp(word, "/usr/bin/env") == 0) {
        word = strtok_r(NULL, " \t", &next);
        word = word != NULL ? find_program(word) : NULL;
        if (word == NULL) {
            return -ENOENT;
        }
    }
    if (tell) {
        printf("a script for %s\n", word);
    }
    return check_program(word, tell, finding);
}

int check_program(const char *path, bool tell, struct finding *finding)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), result;
    struct file file = {NULL, 0};
    struct stat status;

    if (fd < 0 || fstat(fd, &status) != 0) {
        result = -errno;
        if (fd >= 0) {
            close(fd);
        }
        return result;
    }
    file.length = (size_t)status.st_size;
    file.bytes = file.length >= 4 ? mmap(NULL, file.length, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
    close(fd);
    if (file.bytes == MAP_FAILED) {
        return -ENOEXEC;
    }
    finding->is_setuid |=
        (status.st_mode & (S_ISUID | S_ISGID)) != 0 || getxattr(path, "security.capability", NULL, 0) > 0;
    if (file.bytes[0] == '#' && file.bytes[1] == '!') {
        result = look_at_script(&file, tell, finding);
    } else {
        result = look_at_elf(&file, tell, finding);
    }
    munmap(__extension__(void *) file.bytes, file.length);
    return result;
}
