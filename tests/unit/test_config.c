/* Configuration: defaults, file, command line, and that every mistake is named with its place. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "daemon/config.h"

static char path[64];

static void write_file(const char *text) {
        FILE *f = fopen(path, "we");
        assert_non_null(f);
        assert_true(fputs(text, f) >= 0);
        assert_int_equal(fclose(f), 0);
}

static int setup(void **state) {
        (void) snprintf(path, sizeof(path), "/tmp/userksm-config-XXXXXX");
        int fd = mkstemp(path);
        close_fd(fd);
        return fd < 0 ? -1 : 0;
}

static int teardown(void **state) {
        return unlink(path);
}

/* Reads the text as a file; the error's text without the path in front. */
static int read_text(const char *text, struct config *c, const char **ret_error) {
        static struct config_error error;
        error.text[0] = '\0';
        write_file(text);
        config_init(c);
        int r = config_read_file(c, path, &error);
        size_t n = strlen(path);
        *ret_error = strncmp(error.text, path, n) == 0 ? error.text + n : error.text;
        return r;
}

static void test_defaults(void **state) {
        struct config c;
        config_init(&c);
        assert_string_equal(c.socket, CONFIG_DEFAULT_SOCKET);
        assert_int_equal(c.log_level, LOG_INFO);
        assert_int_equal(c.sandbox, CONFIG_DEFAULT_SANDBOX);
        for (int i = 0; i < TUNABLE_MAX_; i++)
                assert_int_equal(tunable_get(&c.tunables, (enum tunable_id) i), tunable_table[i].def);
}

static void test_file(void **state) {
        struct config c;
        const char *error;
        assert_int_equal(read_text("# comment\n[daemon]\nsocket = /tmp/x ; inline\nlog_level=debug\nsandbox = no\n\n"
                                   "[tunables]\npages_to_scan = 100\nuse_zero_pages=off\n",
                                   &c, &error), 0);
        assert_string_equal(c.socket, "/tmp/x");
        assert_int_equal(c.log_level, LOG_DEBUG);
        assert_int_equal(c.sandbox, 0);
        assert_int_equal(c.tunables.pages_to_scan, 100);
        assert_int_equal(c.tunables.use_zero_pages, 0);
        assert_int_equal(c.tunables.run, 1);
}

/* Every key of both tables is taken, at both ends of its range, and not beyond. */
static void test_every_tunable(void **state) {
        struct config c;
        config_init(&c);
        for (int i = 0; i < TUNABLE_MAX_; i++) {
                char value[32];
                if (tunable_table[i].names)
                        continue;
                (void) snprintf(value, sizeof(value), "%lld", (long long) tunable_table[i].min);
                assert_int_equal(config_set_tunable(&c, tunable_table[i].name, value), 0);
                (void) snprintf(value, sizeof(value), "%lld", (long long) tunable_table[i].max);
                assert_int_equal(config_set_tunable(&c, tunable_table[i].name, value), 0);
                assert_int_equal(tunable_get(&c.tunables, (enum tunable_id) i), tunable_table[i].max);
                (void) snprintf(value, sizeof(value), "%lld", (long long) tunable_table[i].max + 1);
                assert_int_equal(config_set_tunable(&c, tunable_table[i].name, value), -EINVAL);
                (void) snprintf(value, sizeof(value), "%lld", (long long) tunable_table[i].min - 1);
                assert_int_equal(config_set_tunable(&c, tunable_table[i].name, value), -EINVAL);
                assert_int_equal(tunable_get(&c.tunables, (enum tunable_id) i), tunable_table[i].max);
        }
}

/* A choice is made by name, and understood as it is shown. */
static void test_names(void **state) {
        static const char *const bad[] = { "", "0", "1", "yes", "scan", "scan-time ", "none scan-time", "[none]", "[none] [scan-time]",
                                           "none [none]", "[scan-time] none", "]none[", "[none", "[] none scan-time" };
        char text[TUNABLE_TEXT_BYTES];
        struct config c;
        config_init(&c);
        assert_int_equal(config_set_tunable(&c, "advisor_mode", "scan-time"), 0);
        assert_int_equal(c.tunables.advisor_mode, ADVISOR_SCAN_TIME);
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
                assert_int_equal(config_set_tunable(&c, "advisor_mode", bad[i]), -EINVAL);
        assert_int_equal(c.tunables.advisor_mode, ADVISOR_SCAN_TIME);
        assert_string_equal(tunable_format(TUNABLE_advisor_mode, ADVISOR_NONE, text), "[none] scan-time");
        assert_int_equal(config_set_tunable(&c, "advisor_mode", text), 0);
        assert_int_equal(c.tunables.advisor_mode, ADVISOR_NONE);
        assert_string_equal(tunable_format(TUNABLE_advisor_mode, ADVISOR_SCAN_TIME, text), "none [scan-time]");
        assert_int_equal(config_set_tunable(&c, "advisor_mode", text), 0);
        assert_int_equal(c.tunables.advisor_mode, ADVISOR_SCAN_TIME);
        assert_string_equal(tunable_format_value(TUNABLE_advisor_mode, ADVISOR_SCAN_TIME, text), "scan-time");
        assert_string_equal(tunable_format_range(TUNABLE_advisor_mode, text), "none or scan-time");
        /* A daemon that says what no table has. */
        assert_string_equal(tunable_format(TUNABLE_advisor_mode, 7, text), "none scan-time");
        assert_string_equal(tunable_format_value(TUNABLE_advisor_mode, -1, text), "");
}

/* As mm/ksm.c has them: names, defaults, least and greatest values. Where ours differ on purpose the text says so. */
static void test_kernel_tunables(void **state) {
        static const struct {
                const char *name;
                int64_t min, max, def;
        } kernel[] = {
                { "run", 0, 2, 0 },
                { "pages_to_scan", 0, UINT32_MAX, 100 },
                { "sleep_millisecs", 0, UINT32_MAX, 20 },
                { "merge_across_nodes", 0, 1, 1 },
                { "max_page_sharing", 2, INT32_MAX, 256 },
                { "stable_node_chains_prune_millisecs", 0, UINT32_MAX, 2000 },
                { "use_zero_pages", 0, 1, 0 },
                { "smart_scan", 0, 1, 1 },
                { "advisor_mode", 0, 1, 0 },
                { "advisor_max_cpu", 0, UINT32_MAX, 70 },
                { "advisor_target_scan_time", 1, UINT32_MAX, 200 },
                { "advisor_min_pages_to_scan", 0, UINT32_MAX, 500 },
                { "advisor_max_pages_to_scan", 0, UINT32_MAX, 30000 },
        };
        for (size_t i = 0; i < ARRAY_SIZE(kernel); i++) {
                const struct tunable_info *t = &tunable_table[tunable_find(kernel[i].name)];
                char def[32];
                assert_string_equal(t->name, kernel[i].name);
                assert_int_equal(t->min, kernel[i].min);
                assert_int_equal(t->max, kernel[i].max);
                (void) snprintf(def, sizeof(def), "(kernel: %lld", (long long) kernel[i].def);
                assert_true(t->def == kernel[i].def || strstr(t->text, def));
        }
}

static void test_mistakes_are_named(void **state) {
        static const struct {
                const char *text, *error;
        } cases[] = {
                { "[daemon]\nsokket=/x\n", ":2: unknown key \"sokket\" in [daemon]" },
                { "[tunables]\n\n\nsocket=/x\n", ":4: unknown key \"socket\" in [tunables]" },
                { "[daemon]\npages_to_scan=5\n", ":2: unknown key \"pages_to_scan\" in [daemon]" },
                { "[deamon]\nsocket=/x\n", ":2: unknown section [deamon]; there are [daemon] and [tunables]" },
                { "socket=/x\n", ":1: key \"socket\" stands before any section" },
                { "[tunables]\nrun=3\n", ":2: bad value \"3\" for \"run\": expected 0 to 2" },
                { "[tunables]\nadvisor_mode=1\n", ":2: bad value \"1\" for \"advisor_mode\": expected none or scan-time" },
                { "[tunables]\nrun=1x\n", ":2: bad value \"1x\" for \"run\": expected 0 to 2" },
                { "[tunables]\nrun=\n", ":2: bad value \"\" for \"run\": expected 0 to 2" },
                { "[tunables]\nrun=99999999999999999999\n",
                  ":2: bad value \"99999999999999999999\" for \"run\": expected 0 to 2" },
                { "[daemon]\nlog_level=loud\n",
                  ":2: bad value \"loud\" for \"log_level\": expected err, warning, notice, info or debug" },
                { "[tunables]\nrun=1\nrun=1\n", ":3: key \"run\" is given twice" },
                { "[daemon]\nnonsense\n", ":2: not a section, a \"key = value\" or a comment" },
                { "[daemon\nsocket=/x\n", ":1: not a section, a \"key = value\" or a comment" },
                /* The first of several, whichever of the two parsers finds it. */
                { "[tunables]\nnonsense\nrun=7\n", ":2: not a section, a \"key = value\" or a comment" },
                { "[tunables]\nrun=7\nnonsense\n", ":2: bad value \"7\" for \"run\": expected 0 to 2" },
        };
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct config c;
                const char *error;
                assert_int_equal(read_text(cases[i].text, &c, &error), -EINVAL);
                assert_string_equal(error, cases[i].error);
        }
}

/* inih would take the tail of a long line for a line of its own. */
static void test_long_line(void **state) {
        struct config c;
        const char *error;
        char text[1024] = "[daemon]\nsocket=/";
        memset(text + strlen(text), 'x', 600);
        assert_int_equal(read_text(text, &c, &error), -EINVAL);
        assert_non_null(strstr(error, ":2: line is longer than"));
}

static void test_socket_path_length(void **state) {
        struct config c;
        char value[CONFIG_SOCKET_BYTES + 1];
        memset(value, 'x', sizeof(value));
        value[CONFIG_SOCKET_BYTES] = '\0';
        config_init(&c);
        assert_int_equal(config_set_option(&c, "socket", value), -EINVAL);
        value[CONFIG_SOCKET_BYTES - 1] = '\0';
        assert_int_equal(config_set_option(&c, "socket", value), 0);
        assert_int_equal(config_set_option(&c, "socket", ""), -EINVAL);
}

static void test_command_line_wins(void **state) {
        struct config c;
        struct config_error error;
        char option[96];
        write_file("[daemon]\nlog_level=debug\nworkers=3\n[tunables]\npages_to_scan=7\nrun=0\n");
        (void) snprintf(option, sizeof(option), "--config=%s", path);
        char *argv[] = { (char *) "userksmd", option, (char *) "--pages-to-scan", (char *) "9",
                         (char *) "--log_level=err", (char *) "--private", (char *) "--no-sandbox", NULL };
        assert_int_equal(config_load(&c, 7, argv, &error), 0);
        assert_int_equal(c.tunables.pages_to_scan, 9);
        assert_int_equal(c.tunables.run, 0);
        assert_int_equal(c.log_level, LOG_ERR);
        assert_int_equal(c.workers, 3);
        assert_int_equal(c.sandbox, 0);
        assert_true(c.private_mode);
}

static void test_bad_command_lines(void **state) {
        static const char *const bad[][2] = {
                { "--frobnicate", NULL },  { "--run", NULL },        { "--run=5", NULL }, { "--run", "x" },
                { "positional", NULL },    { "--private=yes", NULL }, { "--", NULL },      { "-h", NULL },
                { "--workers=-1", NULL },
        };
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                struct config c;
                struct config_error error = { "" };
                char *argv[] = { (char *) "userksmd", (char *) bad[i][0], (char *) bad[i][1], NULL };
                assert_int_equal(config_load(&c, bad[i][1] ? 3 : 2, argv, &error), EXIT_STATUS_USAGE);
                assert_true(error.text[0]);
        }
}

static void test_missing_file(void **state) {
        struct config c;
        struct config_error error = { "" };
        char *argv[] = { (char *) "userksmd", (char *) "--config=/nonexistent/x.conf", NULL };
        assert_int_equal(config_load(&c, 2, argv, &error), EXIT_STATUS_CONFIG);
        assert_string_equal(error.text, "/nonexistent/x.conf: No such file or directory");
}

static void test_fixed_difference(void **state) {
        struct config a, b;
        config_init(&a);
        config_init(&b);
        assert_null(config_fixed_difference(&a, &b));
        b.log_level = LOG_ERR;
        assert_null(config_fixed_difference(&a, &b));
        assert_int_equal(config_set_option(&b, "socket", "/other"), 0);
        assert_string_equal(config_fixed_difference(&a, &b), "socket");
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_defaults),
                cmocka_unit_test(test_file),
                cmocka_unit_test(test_every_tunable),
                cmocka_unit_test(test_names),
                cmocka_unit_test(test_kernel_tunables),
                cmocka_unit_test(test_mistakes_are_named),
                cmocka_unit_test(test_long_line),
                cmocka_unit_test(test_socket_path_length),
                cmocka_unit_test(test_command_line_wins),
                cmocka_unit_test(test_bad_command_lines),
                cmocka_unit_test(test_missing_file),
                cmocka_unit_test(test_fixed_difference),
        };
        return cmocka_run_group_tests(tests, setup, teardown);
}
