/* Any text in place of a file of rules, and of /proc/PID/cgroup: reading stays in its buffers and gives the same lines whatever the sizes
 * of the pieces it comes in; what is a rule says the same when it is written out and read again; patterns match what a table of
 * prefixes says, and a decision is that of the first rule that holds. Input: one byte (size of the pieces), then the text. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/rules.h"
#include "tests/fuzz/fuzz.h"

#define MUST(x) ((x) ? (void) 0 : abort())
#define TEXT_MAX_BYTES 4096

static const char *text;
static size_t text_size, text_at, piece;

enum { FD_DIRECTORY = 3, FD_FILE };

static int io_open(int directory, const char *name, int flags) {
        text_at = 0;
        return directory < 0 ? FD_DIRECTORY : FD_FILE;
}
static int io_stat(int fd, struct rules_stat *ret) {
        *ret = (struct rules_stat){ .mode = fd == FD_DIRECTORY ? S_IFDIR | 0755 : S_IFREG | 0644 };
        return 0;
}
static long io_list(int fd, void *buffer, size_t size) {
        static const uint8_t entry[] = "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x20\0\x08" "a.conf";
        if (text_at++ > 0)
                return 0;
        memset(buffer, 0, 32);
        memcpy(buffer, entry, sizeof(entry));
        return 32;
}
static long io_read(int fd, void *buffer, size_t size) {
        size_t n = MIN(size, piece);
        n = MIN(n, text_size - text_at);
        memcpy(buffer, text + text_at, n);
        text_at += n;
        return (long) n;
}
static void io_close(int fd) {
        text_at = 0;
}
static const struct rules_io io = { .open = io_open, .stat = io_stat, .list = io_list, .read = io_read, .close = io_close };

/* By a table: does the pattern's beginning of length p match the text's of length t? */
static bool table_matches(struct rule_text pattern, struct rule_text s) {
        static bool m[RULE_LINE_MAX + 2][TEXT_MAX_BYTES / 32 + 2];
        for (size_t p = 0; p <= pattern.length; p++)
                for (size_t t = 0; t <= s.length; t++) {
                        int c = p > 0 ? pattern.text[p - 1] : 0;
                        m[p][t] = p == 0   ? t == 0
                                  : c == '*' ? m[p - 1][t] || (t > 0 && m[p][t - 1])
                                             : t > 0 && (c == '?' || c == s.text[t - 1]) && m[p - 1][t - 1];
                }
        return m[pattern.length][s.length];
}

static void find_nothing(struct rule_facts *f) {
}
static void find_exe(struct rule_facts *f) {
        f->exe = (struct rule_text){ text, MIN(text_size, (size_t) (TEXT_MAX_BYTES / 32)) };
}
static void find_cgroup(struct rule_facts *f) {
        f->cgroup = rule_cgroup_path(text, text_size);
        if (f->cgroup.text)
                f->unit = rule_cgroup_unit(f->cgroup);
}
static struct rule_facts facts(void) {
        return (struct rule_facts){ .uid = piece * 5, .find_exe = find_exe, .find_cgroup = piece % 2 ? find_cgroup : find_nothing };
}

static size_t write_pattern(char *line, size_t n, const char *key, struct rule_text value) {
        return value.text ? n + (size_t) sprintf(line + n, " %s=%.*s", key, (int) value.length, value.text) : n;
}

static bool same(struct rule_text a, struct rule_text b) {
        return !a.text == !b.text && a.length == b.length && (!a.text || memcmp(a.text, b.text, a.length) == 0);
}

static void check_rule(const struct rule *r) {
        static const char *const actions[] = { [RULE_MERGE_ANY] = "merge-any", [RULE_MADVISE] = "madvise", [RULE_OFF] = "off" };
        char line[RULE_LINE_MAX + 64];
        struct rule again;
        size_t n = (size_t) sprintf(line, "%s", actions[r->action]);
        n = write_pattern(line, n, "exe", r->exe);
        n = write_pattern(line, n, "unit", r->unit);
        n = write_pattern(line, n, "cgroup", r->cgroup);
        if (r->has_uid)
                n += (size_t) sprintf(line + n, " uid=%u-%u", r->uid_first, r->uid_last);
        enum rule_error e = rule_parse(line, n, &again);
        MUST(e == RULE_OK || (e == RULE_TOO_LONG && n > RULE_LINE_MAX));
        if (e == RULE_OK)
                MUST(same(again.exe, r->exe) && same(again.unit, r->unit) && same(again.cgroup, r->cgroup) && again.has_uid == r->has_uid &&
                     again.uid_first == r->uid_first && again.uid_last == r->uid_last && again.action == r->action);
        if (r->exe.text) {
                struct rule_text s = { text, MIN(text_size, (size_t) (TEXT_MAX_BYTES / 32)) };
                MUST(rule_pattern_matches(r->exe, s) == table_matches(r->exe, s));
        }
}

struct expected {
        const char *at, *end;
        unsigned line;
        enum rule_action action;
        bool is_decided;
        struct rule_facts facts;
};

static bool take_line(void *userdata, const char *file, unsigned line, const char *got, size_t length, enum rule_error e) {
        struct expected *x = userdata;
        const char *newline = memchr(x->at, '\n', (size_t) (x->end - x->at));
        size_t want = (size_t) ((newline ?: x->end) - x->at);
        struct rule r;
        MUST(strcmp(file, "a.conf") == 0 && line == ++x->line && x->at < x->end);
        MUST(length == MIN(want, (size_t) RULE_LINE_MAX) && memcmp(got, x->at, length) == 0);
        MUST(e == (want > RULE_LINE_MAX ? RULE_TOO_LONG : RULE_OK));
        x->at += want + (newline != NULL);
        if (e != RULE_OK || rule_parse(got, length, &r) != RULE_OK)
                return false;
        check_rule(&r);
        enum rule_verdict v = rule_holds(&r, &x->facts);
        if (!x->is_decided && v == RULE_HOLDS)
                x->action = r.action;
        x->is_decided |= v != RULE_HOLDS_NOT;
        return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        if (size == 0 || size > TEXT_MAX_BYTES)
                return 0;
        piece = data[0] + 1U;
        text_size = size - 1;
        char *copy = malloc(MAX(text_size, (size_t) 1)); /* its exact size: ASan sees one byte too far */
        MUST(copy);
        memcpy(copy, data + 1, text_size);
        text = copy;
        struct expected x = { .at = text, .end = text + text_size, .facts = facts() };
        rules_read(&io, "directory", take_line, &x);
        MUST(x.at == x.end);
        struct rule_facts f = facts();
        MUST(rules_decide(&io, "directory", &f) == x.action);
        free(copy);
        return 0;
}
