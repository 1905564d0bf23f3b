#include "ctl/placement.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/rules.h"
#include "ctl/render.h"

/* A line a hierarchy, each up to PATH_MAX; what is cut off is not the unified one's on a host that has only that. */
#define CGROUP_TEXT_BYTES 16384

void placement_parse(const char *text, struct placement *ret) {
        struct rule_text path = rule_cgroup_path(text, strlen(text)), unit;

        *ret = (struct placement) { 0 };
        if (!path.text)
                return;
        unit = rule_cgroup_unit(path);
        make_printable(ret->cgroup, sizeof(ret->cgroup), path.text, path.length);
        make_printable(ret->unit, sizeof(ret->unit), unit.text, unit.length);
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
