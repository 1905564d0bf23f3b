#include "ctl/placement.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "ctl/render.h"

/* A line a hierarchy, each up to PATH_MAX; what is cut off is not the unified one's on a host that has only that. */
#define CGROUP_TEXT_BYTES 16384

static bool ends_with(const char *s, size_t length, const char *suffix) {
        size_t n = strlen(suffix);

        return length > n && memcmp(s + length - n, suffix, n) == 0;
}

void placement_parse(const char *text, struct placement *ret) {
        const char *path = NULL, *unit = NULL;
        size_t length = 0, unit_length = 0;

        for (const char *line = text; line; line = strchr(line, '\n')) {
                line += *line == '\n';
                if (strncmp(line, "0::/", 4) == 0)
                        path = line + 3;
        }
        *ret = (struct placement) { 0 };
        if (!path)
                return;
        length = strcspn(path, "\n");
        for (size_t i = 0; i < length;) {
                size_t n = strcspn(path + i, "/\n");

                n = MIN(n, length - i);
                if (ends_with(path + i, n, ".service") || ends_with(path + i, n, ".scope")) {
                        unit = path + i;
                        unit_length = n;
                }
                i += n + 1;
        }
        make_printable(ret->cgroup, sizeof(ret->cgroup), path, length);
        if (unit)
                make_printable(ret->unit, sizeof(ret->unit), unit, unit_length);
}

void placement_of(uint32_t pid, struct placement *ret) {
        char path[64], text[CGROUP_TEXT_BYTES];
        ssize_t n = -1;
        int fd;

        snprintf(path, sizeof(path), "/proc/%u/cgroup", pid);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0)
                n = read(fd, text, sizeof(text) - 1);
        close_fd(fd);
        text[MAX(n, (ssize_t) 0)] = '\0';
        placement_parse(text, ret);
}
