/* Any text in place of /proc/self/smaps: the parser stays in its buffer, and says the same whatever the size of the buffer and
 * wherever its ends fall. What it says is compared with a parser of the whole text that is written another way. Input: one byte
 * (size of the small buffer), then the text. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "lib/vma.h"
#include "tests/fuzz/fuzz.h"

#define TEXT_MAX_BYTES 4096
#define FOUND_MAX 512

struct found {
        unsigned n;
        struct {
                uint64_t start, end;
                unsigned special;
        } v[FOUND_MAX];
};

static void note(void *userdata, uint64_t start, uint64_t end, unsigned special) {
        struct found *f = userdata;

        if (f->n == FOUND_MAX || !special)
                abort();
        f->v[f->n].start = start;
        f->v[f->n].end = end;
        f->v[f->n++].special = special;
}

static int parse(int fd, uint32_t buffer_size, struct found *ret) {
        char *buffer = malloc(buffer_size); /* its exact size: ASan sees one byte too far */
        int r;

        if (!buffer)
                abort();
        ret->n = 0;
        r = vma_each_special(fd, buffer, buffer_size, note, ret);
        free(buffer);
        return r;
}

/* Flags are two letters, one space between them; whatever else is there ends up as a pair of letters too. */
static unsigned flags_of(const char *p) {
        unsigned special = 0;

        while (p[0] && p[1]) {
                if (strchr("lwdhsipm", p[0]) && strstr("lo wf dd ht sl io pf mm", (char[]){ p[0], p[1], 0 }) && p[1] != ' ')
                        special |= VMA_FORBIDDEN;
                if (p[0] == 'd' && p[1] == 'c')
                        special |= VMA_DONTFORK;
                p += p[2] == ' ' ? 3 : 2;
        }
        return special;
}

static void parse_whole(char *text, struct found *ret) {
        uint64_t start = 0, end = 0;
        unsigned special = 0;

        ret->n = 0;
        for (char *line = text, *newline; (newline = strchr(line, '\n')); line = newline + 1) {
                *newline = 0;
                if (*line && strchr("0123456789abcdef", *line)) {
                        size_t n = strspn(line, "0123456789abcdef"), m;

                        if (line[n] != '-')
                                continue;
                        m = strspn(line + n + 1, "0123456789abcdef");
                        start = end = 0;
                        for (size_t i = 0; i < n; i++)
                                start = start * 16 + (uint64_t) (line[i] <= '9' ? line[i] - '0' : line[i] - 'a' + 10);
                        for (size_t i = n + 1; i < n + 1 + m; i++)
                                end = end * 16 + (uint64_t) (line[i] <= '9' ? line[i] - '0' : line[i] - 'a' + 10);
                        special = 0;
                } else if (strncmp(line, "ProtectionKey:", 14) == 0) {
                        if (line[14 + strspn(line + 14, " ")] != '0')
                                special |= VMA_FORBIDDEN;
                } else if (strncmp(line, "VmFlags", 7) == 0) {
                        if (strncmp(line, "VmFlags: ", 9) == 0)
                                special |= flags_of(line + 9);
                        if (special)
                                note(ret, start, end, special);
                }
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static struct found small, large, whole;
        static int fd = -1;
        char text[TEXT_MAX_BYTES + 1];
        uint32_t buffer_size;
        int r;

        if (size < 2 || size - 1 > TEXT_MAX_BYTES)
                return 0;
        buffer_size = 2 + data[0];
        data++;
        size--;
        memcpy(text, data, size);
        text[size] = 0;
        if (fd < 0)
                fd = memfd_create("smaps", MFD_CLOEXEC);
        if (ftruncate(fd, 0) < 0 || pwrite(fd, text, size, 0) != (ssize_t) size)
                abort();
        r = parse(fd, buffer_size, &small);
        if (parse(fd, TEXT_MAX_BYTES + 2, &large) != 0)
                abort();
        if (r != 0 && r != -EOVERFLOW)
                abort();
        if (memchr(text, 0, size)) /* the kernel writes none; it ends a line for one of the two parsers only */
                return 0;
        parse_whole(text, &whole);
        if (large.n != whole.n || memcmp(large.v, whole.v, whole.n * sizeof(whole.v[0])) != 0)
                abort();
        if (small.n > large.n || (r == 0 && small.n != large.n) || memcmp(small.v, large.v, small.n * sizeof(small.v[0])) != 0)
                abort();
        return 0;
}
