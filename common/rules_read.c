/* The directory of rules: which files, in which order, and their lines. Everything lies on the stack, some 10 KiB. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/rules.h"

_Static_assert(RULE_FILES_MAX == 64 && RULE_NAME_MAX == 64 && RULE_LINE_MAX == 1024 && RULE_FILE_BYTES_MAX == 1 << 20,
               "numbers in texts of rules.c");

/* As getdents64 writes them. */
struct entry {
        uint64_t inode;
        int64_t offset;
        uint16_t length;
        uint8_t kind;
        char name[];
};
#define LIST_BYTES 2048 /* an entry is at most 280 */

struct reading {
        const struct rules_io *io;
        rules_line_fn fn;
        void *userdata;
        bool is_over;
        unsigned n_names;
        char names[RULE_FILES_MAX][RULE_NAME_MAX];
};

static void say(struct reading *r, const char *file, unsigned line, const char *text, size_t length, enum rule_error e) {
        if (!r->is_over)
                r->is_over = r->fn(r->userdata, file, line, text, length, e);
}

static bool others_may_write(const struct rules_io *io, const struct rules_stat *s) {
        return (s->uid != 0 && s->uid != io->uid) || s->mode & (S_IWGRP | S_IWOTH);
}

static enum rule_error check_kind(const struct rules_io *io, int fd, uint32_t kind) {
        struct rules_stat s;

        if (io->stat(fd, &s) < 0)
                return RULE_UNREADABLE;
        if ((s.mode & S_IFMT) != kind)
                return RULE_BAD_KIND;
        return others_may_write(io, &s) ? RULE_BAD_OWNER : RULE_OK;
}

/* -- names ------------------------------------------------------------------------------------------------------- */

/* What editors and package managers leave beside a file ends otherwise, or begins with a dot. */
static bool is_wanted(const char *name, size_t length) {
        const size_t suffix = strlen(RULES_SUFFIX);

        return length > suffix && name[0] != '.' && memcmp(name + length - suffix, RULES_SUFFIX, suffix) == 0;
}

static bool add_name(struct reading *r, const char *name, size_t length) {
        unsigned at = r->n_names;

        if (r->n_names == RULE_FILES_MAX)
                return false;
        while (at > 0 && strcmp(name, r->names[at - 1]) < 0)
                at--;
        memmove(r->names[at + 1], r->names[at], (r->n_names - at) * sizeof(r->names[0]));
        memcpy(r->names[at], name, length + 1);
        r->n_names++;
        return true;
}

static enum rule_error list_names(struct reading *r, int fd) {
        _Alignas(struct entry) uint8_t buffer[LIST_BYTES];
        long n;

        while ((n = r->io->list(fd, buffer, sizeof(buffer))) > 0)
                for (long at = 0; at < n;) {
                        const struct entry *e = (const struct entry *) (buffer + at);
                        size_t length = strnlen(e->name, e->length - offsetof(struct entry, name));

                        if (e->length <= offsetof(struct entry, name))
                                return RULE_UNREADABLE;
                        at += e->length;
                        if (!is_wanted(e->name, length))
                                continue;
                        if (length >= RULE_NAME_MAX)
                                say(r, e->name, 0, "", 0, RULE_NAME_TOO_LONG);
                        else if (!add_name(r, e->name, length))
                                return RULE_TOO_MANY_FILES;
                }
        return n < 0 ? RULE_UNREADABLE : RULE_OK;
}

/* -- lines ------------------------------------------------------------------------------------------------------- */

struct lines {
        struct reading *r;
        const char *file;
        unsigned number;
        size_t length; /* of what is held; RULE_LINE_MAX + 1: more than a line may have */
        char held[RULE_LINE_MAX + 1];
};

static void take(struct lines *l, const char *text, size_t n) {
        size_t fits = MIN(n, sizeof(l->held) - l->length);

        memcpy(l->held + l->length, text, fits);
        l->length += fits;
}

static void end_line(struct lines *l) {
        enum rule_error e = l->length > RULE_LINE_MAX ? RULE_TOO_LONG : RULE_OK;

        say(l->r, l->file, ++l->number, l->held, MIN(l->length, (size_t) RULE_LINE_MAX), e);
        l->length = 0;
}

static void read_lines(struct reading *r, int fd, const char *file) {
        struct lines l = { .r = r, .file = file };
        size_t total = 0;
        char buffer[2048];
        long n;

        while (!r->is_over && (n = r->io->read(fd, buffer, sizeof(buffer))) != 0) {
                if (n == -EINTR)
                        continue;
                if (n < 0 || total >= RULE_FILE_BYTES_MAX) {
                        say(r, file, 0, "", 0, n < 0 ? RULE_UNREADABLE : RULE_FILE_TOO_LARGE);
                        return; /* a line that may be half of one is none */
                }
                total += (size_t) n;
                for (const char *p = buffer, *end = buffer + n; p < end && !r->is_over;) {
                        const char *newline = memchr(p, '\n', (size_t) (end - p));

                        take(&l, p, (size_t) ((newline ?: end) - p));
                        if (newline)
                                end_line(&l);
                        p = newline ? newline + 1 : end;
                }
        }
        if (l.length > 0 && !r->is_over)
                end_line(&l);
}

static void read_file(struct reading *r, int directory, const char *name) {
        /* NONBLOCK: of a pipe somebody put there nothing is ever read, and opening it must not wait. */
        int fd = r->io->open(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK);
        enum rule_error e = fd == -ELOOP ? RULE_BAD_KIND : fd < 0 ? RULE_UNREADABLE : check_kind(r->io, fd, S_IFREG);

        if (e == RULE_OK)
                read_lines(r, fd, name);
        else
                say(r, name, 0, "", 0, e);
        if (fd >= 0)
                r->io->close(fd);
}

void rules_read(const struct rules_io *io, const char *directory, rules_line_fn fn, void *userdata) {
        struct reading r = { .io = io, .fn = fn, .userdata = userdata };
        int fd = io->open(-1, directory, O_RDONLY | O_CLOEXEC | O_DIRECTORY | O_NOFOLLOW);
        enum rule_error e;

        if (fd == -ENOENT)
                return;
        e = fd == -ELOOP || fd == -ENOTDIR ? RULE_BAD_KIND : fd < 0 ? RULE_UNREADABLE : check_kind(io, fd, S_IFDIR);
        if (e == RULE_OK)
                e = list_names(&r, fd);
        if (e != RULE_OK)
                say(&r, "", 0, "", 0, e);
        for (unsigned i = 0; e == RULE_OK && i < r.n_names && !r.is_over; i++)
                read_file(&r, fd, r.names[i]);
        if (fd >= 0)
                io->close(fd);
}

/* -- decision ---------------------------------------------------------------------------------------------------- */

struct decision {
        struct rule_facts *facts;
        enum rule_action action;
};

static bool decide(void *userdata, const char *file, unsigned line, const char *text, size_t length, enum rule_error e) {
        struct decision *d = userdata;
        struct rule rule;
        enum rule_verdict v;

        if (e != RULE_OK || rule_parse(text, length, &rule) != RULE_OK)
                return false;
        v = rule_holds(&rule, d->facts);
        if (v == RULE_HOLDS)
                d->action = rule.action;
        return v != RULE_HOLDS_NOT;
}

enum rule_action rules_decide(const struct rules_io *io, const char *directory, struct rule_facts *f) {
        struct decision d = { .facts = f, .action = RULE_NONE };

        rules_read(io, directory, decide, &d);
        return d.action;
}
