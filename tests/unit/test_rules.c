/* Rules of programs to be merged: lines, patterns, verdicts, and which files of a directory are believed. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/rules.h"

static struct rule_text text(const char *s) {
        return (struct rule_text){ s, s ? strlen(s) : 0 };
}

static void assert_text(struct rule_text t, const char *want) {
        if (!want) {
                assert_null(t.text);
                return;
        }
        assert_int_equal(t.length, strlen(want));
        assert_memory_equal(t.text, want, t.length);
}

static void test_lines(void **state) {
        static const struct {
                const char *line;
                enum rule_error error;
                enum rule_action action;
                const char *unit, *cgroup, *exe;
                uint32_t uid_first, uid_last; /* first > last: no uid */
        } t[] = {
                { "merge-any exe=/usr/bin/redis-server", RULE_OK, RULE_MERGE_ANY, .exe = "/usr/bin/redis-server", .uid_first = 1 },
                { "\t madvise\tunit=a@*.service \t uid=1000-1999 # why", RULE_OK, RULE_MADVISE, .unit = "a@*.service", .uid_first = 1000, .uid_last = 1999 },
                { "off uid=0", RULE_OK, RULE_OFF },
                { "off uid=4294967294", RULE_OK, RULE_OFF, .uid_first = 4294967294, .uid_last = 4294967294 },
                { "off cgroup=*/x exe=*", RULE_OK, RULE_OFF, .cgroup = "*/x", .exe = "*", .uid_first = 1 },
                { "off exe=/a=b#c", RULE_OK, RULE_OFF, .exe = "/a=b#c", .uid_first = 1 },
                { "", RULE_EMPTY },
                { " \t ", RULE_EMPTY },
                { "# off exe=*", RULE_EMPTY },
                { "on exe=*", RULE_BAD_ACTION },
                { "exe=* off", RULE_BAD_ACTION },
                { "OFF exe=*", RULE_BAD_ACTION },
                { "merge-anyexe=*", RULE_BAD_ACTION },
                { "off", RULE_NO_CONDITION },
                { "off # exe=*", RULE_NO_CONDITION },
                { "off merge-any", RULE_BAD_CONDITION },
                { "off exe", RULE_BAD_CONDITION },
                { "off exe=", RULE_BAD_CONDITION },
                { "off =*", RULE_BAD_CONDITION },
                { "off Exe=*", RULE_BAD_CONDITION },
                { "off exe=* path=/", RULE_BAD_CONDITION },
                { "off exe=/a exe=/b", RULE_TWICE },
                { "off uid=1 uid=1", RULE_TWICE },
                { "off exe=redis-server", RULE_BAD_PATH },
                { "off cgroup=system.slice", RULE_BAD_PATH },
                { "off exe=?", RULE_BAD_PATH },
                { "off uid=", RULE_BAD_CONDITION },
                { "off uid=root", RULE_BAD_UID },
                { "off uid=-1", RULE_BAD_UID },
                { "off uid=1-", RULE_BAD_UID },
                { "off uid=2-1", RULE_BAD_UID },
                { "off uid=1-2-3", RULE_BAD_UID },
                { "off uid=1,2", RULE_BAD_UID },
                { "off uid=0x1", RULE_BAD_UID },
                { "off uid=4294967295", RULE_BAD_UID },
                { "off uid=18446744073709551617", RULE_BAD_UID },
                { "off exe=/a\rb", RULE_BAD_CHARACTER },
                { "off exe=/a\r", RULE_BAD_CHARACTER }, /* of another system's editor */
                { "off exe=/\x7f", RULE_BAD_CHARACTER },
                { "# \x1b", RULE_BAD_CHARACTER },
        };
        for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
                struct rule r;
                enum rule_error e = rule_parse(t[i].line, strlen(t[i].line), &r);
                if (e != t[i].error)
                        fail_msg("'%s': %s, expected %s", t[i].line, rule_error_text(e), rule_error_text(t[i].error));
                if (e != RULE_OK)
                        continue;
                assert_int_equal(r.action, t[i].action);
                assert_text(r.unit, t[i].unit);
                assert_text(r.cgroup, t[i].cgroup);
                assert_text(r.exe, t[i].exe);
                assert_int_equal(r.has_uid, t[i].uid_first <= t[i].uid_last);
                if (r.has_uid) {
                        assert_int_equal(r.uid_first, t[i].uid_first);
                        assert_int_equal(r.uid_last, t[i].uid_last);
                }
        }
        struct rule r;
        assert_int_equal(rule_parse("off exe=*\0", 10, &r), RULE_BAD_CHARACTER);
        char line[RULE_LINE_MAX + 2] = "off exe=/";
        memset(line + 9, 'x', sizeof(line) - 9);
        assert_int_equal(rule_parse(line, RULE_LINE_MAX, &r), RULE_OK);
        assert_int_equal(rule_parse(line, RULE_LINE_MAX + 1, &r), RULE_TOO_LONG);
        for (enum rule_error e = RULE_OK; e < RULE_ERROR_MAX_; e++)
                assert_true(strlen(rule_error_text(e)) > 0);
}

static void test_patterns(void **state) {
        static const struct {
                const char *pattern, *text;
                bool matches;
        } t[] = {
                { "/a", "/a", true },        { "/a", "/ab", false },     { "/ab", "/a", false },      { "*", "", true },
                { "*", "/x/y", true },       { "**", "x", true },        { "?", "", false },          { "?", "x", true },
                { "?", "xy", false },        { "/a*", "/a", true },      { "/a*", "/a/b/c", true },   { "*.service", "a.service", true },
                { "a*b", "ab", true },       { "a*b", "acb", true },     { "a*b", "acbd", false },    { "a*b", "ababab", true },
                { "a*b*c", "axbxbc", true }, { "a*b*c", "axcxb", false }, { "*a", "aaab", false },    { "*a*", "bab", true },
                { "a?c*e", "abcde", true },  { "a?c*e", "accccd", false }, { "[a]", "a", false },     { "[a]", "[a]", true },
                { "\\*", "*", false },       { "\\*", "\\x", true },     { "redis@*.service", "redis@1.service", true },
                { "/usr/bin/python3*", "/usr/bin/python3.11", true },    { "/usr/bin/python3*", "/usr/local/bin/python3", false },
        };
        for (size_t i = 0; i < ARRAY_SIZE(t); i++)
                if (rule_pattern_matches(text(t[i].pattern), text(t[i].text)) != t[i].matches)
                        fail_msg("%s, %s", t[i].pattern, t[i].text);
        /* The worst there is: in no more than the product of the lengths. */
        char pattern[500], long_text[4000];
        memset(pattern, '*', sizeof(pattern));
        for (size_t i = 1; i < sizeof(pattern); i += 2)
                pattern[i] = 'a';
        pattern[sizeof(pattern) - 1] = 'b';
        memset(long_text, 'a', sizeof(long_text));
        assert_false(rule_pattern_matches((struct rule_text){ pattern, sizeof(pattern) }, (struct rule_text){ long_text, sizeof(long_text) }));
}

static unsigned n_exe, n_cgroup;
static const char *exe_now, *cgroup_now;

static void find_exe(struct rule_facts *f) {
        n_exe++;
        f->exe = text(exe_now);
}
static void find_cgroup(struct rule_facts *f) {
        n_cgroup++;
        f->cgroup = text(cgroup_now);
        if (f->cgroup.text)
                f->unit = rule_cgroup_unit(f->cgroup);
}

static struct rule_facts facts(uint32_t uid, const char *exe, const char *cgroup) {
        exe_now = exe;
        cgroup_now = cgroup;
        n_exe = n_cgroup = 0;
        return (struct rule_facts){ .uid = uid, .find_exe = find_exe, .find_cgroup = find_cgroup };
}

static void test_verdicts(void **state) {
        static const struct {
                const char *line;
                uint32_t uid;
                const char *exe, *cgroup;
                enum rule_verdict verdict;
                unsigned n_exe, n_cgroup; /* what was looked for */
        } t[] = {
                { "off uid=5", 5, NULL, NULL, RULE_HOLDS, 0, 0 },
                { "off uid=5-7", 7, NULL, NULL, RULE_HOLDS, 0, 0 },
                { "off uid=5 exe=/a unit=x", 6, "/a", "/x", RULE_HOLDS_NOT, 0, 0 },
                { "off exe=/a unit=x.service", 0, "/b", "/x.service", RULE_HOLDS_NOT, 1, 0 },
                { "off exe=/a unit=x.service", 0, "/a", "/x.service", RULE_HOLDS, 1, 1 },
                { "off cgroup=/s/* unit=x.service", 0, NULL, "/s/x.service", RULE_HOLDS, 0, 1 },
                { "off cgroup=/t/* unit=x.service", 0, NULL, "/s/x.service", RULE_HOLDS_NOT, 0, 1 },
                { "off unit=*", 0, NULL, "/user.slice", RULE_HOLDS, 0, 1 }, /* no unit: the empty text */
                { "off unit=?*", 0, NULL, "/user.slice", RULE_HOLDS_NOT, 0, 1 },
                { "off exe=/a", 0, NULL, NULL, RULE_UNKNOWN, 1, 0 },
                { "off unit=a", 0, NULL, NULL, RULE_UNKNOWN, 0, 1 },
                { "off exe=* unit=y", 0, NULL, "/x.service", RULE_HOLDS_NOT, 1, 1 }, /* whatever the unknown is */
        };
        for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
                struct rule_facts f = facts(t[i].uid, t[i].exe, t[i].cgroup);
                struct rule r;
                assert_int_equal(rule_parse(t[i].line, strlen(t[i].line), &r), RULE_OK);
                if (rule_holds(&r, &f) != t[i].verdict || n_exe != t[i].n_exe || n_cgroup != t[i].n_cgroup)
                        fail_msg("%s: verdict or what was looked for", t[i].line);
                (void) rule_holds(&r, &f);
                assert_true(n_exe <= 1 && n_cgroup <= 1);
        }
}

/* -- directories ------------------------------------------------------------------------------------------------------ */

static char directory[] = "/tmp/userksm-rules-XXXXXX";
static long chunk; /* what one read gives at most */

static int io_open(int at, const char *name, int flags) {
        int fd = openat(at < 0 ? AT_FDCWD : at, name, flags);
        return fd < 0 ? -errno : fd;
}
static int io_stat(int fd, struct rules_stat *ret) {
        struct stat s;
        assert_int_equal(fstat(fd, &s), 0);
        *ret = (struct rules_stat){ .uid = s.st_uid, .mode = s.st_mode };
        return 0;
}
static long io_list(int fd, void *buffer, size_t size) {
        return syscall(SYS_getdents64, fd, buffer, size);
}
static long io_read(int fd, void *buffer, size_t size) {
        return read(fd, buffer, MIN(size, (size_t) chunk));
}
static void io_close(int fd) {
        assert_int_equal(close(fd), 0);
}
static struct rules_io io = { .open = io_open, .stat = io_stat, .list = io_list, .read = io_read, .close = io_close };

static void put(const char *name, const char *content, mode_t mode) {
        char path[256];
        snprintf(path, sizeof(path), "%s/%s", directory, name);
        FILE *f = fopen(path, "we");
        assert_non_null(f);
        fputs(content, f);
        assert_int_equal(fclose(f), 0);
        assert_int_equal(chmod(path, mode), 0);
}

static void empty_directory(void) {
        char command[256];
        snprintf(command, sizeof(command), "rm -rf %s && mkdir -m 755 %s", directory, directory);
        assert_int_equal(system(command), 0);
}

struct seen {
        char all[8192];
};
static bool note(void *userdata, const char *file, unsigned line, const char *line_text, size_t length, enum rule_error e) {
        struct seen *s = userdata;
        size_t n = strlen(s->all);
        if (n < 4096)
                snprintf(s->all + n, sizeof(s->all) - n, "%s:%u:%d:%.*s\n", file, line, (int) e, (int) MIN(length, (size_t) 100), line_text);
        return length == 4 && memcmp(line_text, "stop", 4) == 0;
}

static const char *seen(void) {
        static struct seen s;
        s.all[0] = '\0';
        rules_read(&io, directory, note, &s);
        return s.all;
}

static void test_order_and_lines(void **state) {
        for (chunk = 1; chunk <= 4096; chunk *= 7) {
                empty_directory();
                assert_string_equal(seen(), "");
                put("b.conf", "one\n\nthree", 0644);
                put("a.conf", "first\n", 0600);
                put("C.conf", "capitals first\n", 0444);
                put("a.conf~", "backup\n", 0644);
                put(".a.conf", "hidden\n", 0644);
                put("readme", "text\n", 0644);
                put(".conf", "nothing before the dot\n", 0644);
                assert_string_equal(seen(), "C.conf:1:0:capitals first\na.conf:1:0:first\nb.conf:1:0:one\nb.conf:2:0:\nb.conf:3:0:three\n");
                put("a.conf", "stop\nmore\n", 0644);
                assert_string_equal(seen(), "C.conf:1:0:capitals first\na.conf:1:0:stop\n");
        }
        chunk = 4096;
        empty_directory();
        char line[RULE_LINE_MAX + 20], name[RULE_NAME_MAX + 10];
        memset(line, 'x', sizeof(line));
        line[RULE_LINE_MAX] = '\n';
        strcpy(line + RULE_LINE_MAX + 1, "b\n");
        put("a.conf", line, 0644);
        assert_non_null(strstr(seen(), "a.conf:1:0:xxx"));
        line[RULE_LINE_MAX] = 'x';
        line[RULE_LINE_MAX + 1] = '\n';
        strcpy(line + RULE_LINE_MAX + 2, "b\n");
        put("a.conf", line, 0644);
        char want[32];
        snprintf(want, sizeof(want), "a.conf:1:%d:xxx", RULE_TOO_LONG);
        assert_non_null(strstr(seen(), want));
        assert_non_null(strstr(seen(), "a.conf:2:0:b"));
        empty_directory();
        memset(name, 'n', sizeof(name));
        strcpy(name + RULE_NAME_MAX - 6, ".conf"); /* the longest */
        put(name, "good\n", 0644);
        assert_non_null(strstr(seen(), "1:0:good"));
        strcpy(name + RULE_NAME_MAX - 5, ".conf");
        put(name, "bad\n", 0644);
        assert_null(strstr(seen(), "bad"));
        snprintf(want, sizeof(want), ":0:%d:", RULE_NAME_TOO_LONG);
        assert_non_null(strstr(seen(), want));
        empty_directory();
        for (unsigned i = 0; i < RULE_FILES_MAX; i++) {
                snprintf(name, sizeof(name), "%03u.conf", i);
                put(name, "x\n", 0644);
        }
        assert_non_null(strstr(seen(), "063.conf:1:0:x"));
        put("x.conf", "x\n", 0644);
        snprintf(want, sizeof(want), ":0:%d:\n", RULE_TOO_MANY_FILES);
        assert_string_equal(seen(), want);
}

static void assert_refused(enum rule_error e) {
        char want[64];
        snprintf(want, sizeof(want), "a.conf:0:%d:\n", e);
        assert_string_equal(seen(), want);
}

static void test_who_could_write(void **state) {
        char path[256], want[64];
        snprintf(path, sizeof(path), "%s/a.conf", directory);
        empty_directory();
        for (mode_t mode = 0; mode < 01000; mode++) {
                put("a.conf", "x\n", mode);
                if (mode & 0022)
                        assert_refused(RULE_BAD_OWNER);
                else if (geteuid() == 0 || mode & 0400)
                        assert_string_equal(seen(), "a.conf:1:0:x\n");
                assert_int_equal(unlink(path), 0);
        }
        put("a.conf", "x\n", 0644);
        if (geteuid() == 0) { /* a file of somebody else's, who may read his own */
                assert_int_equal(chown(path, 65534, 65534), 0);
                assert_refused(RULE_BAD_OWNER);
                io.uid = 65534;
                assert_string_equal(seen(), "a.conf:1:0:x\n");
                io.uid = 65533;
                assert_refused(RULE_BAD_OWNER);
                assert_int_equal(chown(path, 0, 0), 0);
                assert_string_equal(seen(), "a.conf:1:0:x\n");
                assert_int_equal(chown(directory, 65534, 0), 0);
                snprintf(want, sizeof(want), ":0:%d:\n", RULE_BAD_OWNER);
                assert_string_equal(seen(), want);
                assert_int_equal(chown(directory, 0, 0), 0);
                io.uid = 0;
        }
        assert_int_equal(chmod(directory, 0775), 0);
        snprintf(want, sizeof(want), ":0:%d:\n", RULE_BAD_OWNER);
        assert_string_equal(seen(), want);
        assert_int_equal(chmod(directory, 0755), 0);
        assert_string_equal(seen(), "a.conf:1:0:x\n");
}

static void test_not_files(void **state) {
        char path[256], other[256], want[64];
        empty_directory();
        snprintf(path, sizeof(path), "%s/a.conf", directory);
        snprintf(other, sizeof(other), "%s/other", directory);
        put("other", "x\n", 0644);
        assert_int_equal(symlink(other, path), 0);
        assert_refused(RULE_BAD_KIND);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(mkfifo(path, 0644), 0); /* and nobody waits for its writer */
        assert_refused(RULE_BAD_KIND);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(mkdir(path, 0755), 0);
        assert_refused(RULE_BAD_KIND);
        assert_int_equal(rmdir(path), 0);
        char real[] = "/tmp/userksm-rules-XXXXXX.real";
        snprintf(real, sizeof(real), "%s.real", directory);
        assert_int_equal(rename(directory, real), 0);
        assert_int_equal(symlink(real, directory), 0);
        snprintf(want, sizeof(want), ":0:%d:\n", RULE_BAD_KIND);
        assert_string_equal(seen(), want);
        assert_int_equal(unlink(directory), 0);
        assert_string_equal(seen(), ""); /* no directory, no rules */
        assert_int_equal(rename(real, directory), 0);
}

static void test_decisions(void **state) {
        static const struct {
                const char *a, *b;
                enum rule_action action;
        } t[] = {
                { "", "", RULE_NONE },
                { "merge-any exe=/bin/x\n", "off exe=*\n", RULE_MERGE_ANY },
                { "merge-any exe=/bin/y\n", "off exe=*\n", RULE_OFF },
                { "nonsense\nmerge-any\nmadvise exe=/bin/*", "off exe=*\n", RULE_MADVISE },
                { "merge-any uid=1\n", "", RULE_NONE },
                { "off unit=x.service\n", "merge-any exe=*\n", RULE_NONE }, /* cannot be known, and nothing behind it is tried */
                { "off uid=1 unit=x.service\n", "merge-any exe=*\n", RULE_MERGE_ANY },
        };
        for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
                empty_directory();
                put("10-a.conf", t[i].a, 0644);
                put("20-b.conf", t[i].b, 0644);
                struct rule_facts f = facts(0, "/bin/x", NULL);
                assert_int_equal(rules_decide(&io, directory, &f), t[i].action);
        }
}

static int group_setup(void **state) {
        chunk = 4096;
        io.uid = getuid();
        return mkdtemp(directory) ? 0 : -1;
}

static int group_teardown(void **state) {
        char command[256];
        snprintf(command, sizeof(command), "rm -rf %s", directory);
        return system(command);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_lines),         cmocka_unit_test(test_patterns),  cmocka_unit_test(test_verdicts),
                cmocka_unit_test(test_order_and_lines), cmocka_unit_test(test_who_could_write), cmocka_unit_test(test_not_files),
                cmocka_unit_test(test_decisions),
        };
        return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
