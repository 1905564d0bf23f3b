#include "ctl/rules.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ctl/render.h"

static int io_open(int directory, const char *name, int flags) {
        int fd = openat(directory < 0 ? AT_FDCWD : directory, name, flags);

        return fd < 0 ? -errno : fd;
}

static int io_stat(int fd, struct rules_stat *ret) {
        struct stat s;

        if (fstat(fd, &s) < 0)
                return -errno;
        *ret = (struct rules_stat) { .uid = s.st_uid, .mode = s.st_mode };
        return 0;
}

static long io_list(int fd, void *buffer, size_t size) {
        long n = syscall(SYS_getdents64, fd, buffer, size);

        return n < 0 ? -errno : n;
}

static long io_read(int fd, void *buffer, size_t size) {
        ssize_t n = read(fd, buffer, size);

        return n < 0 ? -errno : n;
}

static void io_close(int fd) {
        (void) close(fd);
}

static void add_problem(struct rules_report *r, const char *file, unsigned line, enum rule_error e) {
        char name[RULE_NAME_MAX + 64];

        if (r->n_problems++ >= RULES_PROBLEMS_MAX)
                return;
        make_printable(name, sizeof(name), *file ? file : r->directory, SIZE_MAX);
        if (line > 0)
                snprintf(r->problems[r->n_problems - 1], sizeof(r->problems[0]), "%s:%u: %s", name, line, rule_error_text(e));
        else
                snprintf(r->problems[r->n_problems - 1], sizeof(r->problems[0]), "%s: %s", name, rule_error_text(e));
}

static bool take_line(void *userdata, const char *file, unsigned line, const char *text, size_t length, enum rule_error e) {
        struct rules_report *r = userdata;
        struct rule rule;

        r->n_files += line == 1;
        if (e == RULE_OK)
                e = rule_parse(text, length, &rule);
        if (e == RULE_OK)
                r->n_rules++;
        else if (e != RULE_EMPTY)
                add_problem(r, file, line, e);
        return false;
}

void rules_report(struct rules_report *ret) {
        const struct rules_io io = {
                .open = io_open, .stat = io_stat, .list = io_list, .read = io_read, .close = io_close, .uid = getuid()
        };
        const char *directory = getenv(RULES_DIRECTORY_ENV);

        *ret = (struct rules_report) { .directory = directory ? directory : RULES_DIRECTORY };
        if (*ret->directory)
                rules_read(&io, ret->directory, take_line, ret);
}
