/* Numbers for people, and the parts of a saving. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "ctl/placement.h"
#include "ctl/render.h"
#include "ctl/report.h"

static void test_bytes(void **state) {
        static const struct {
                int64_t bytes;
                const char *text;
        } cases[] = {
                { 0, "0" },
                { 1, "1 B" },
                { 1023, "1023 B" },
                { 1024, "1.00 KiB" },
                { 10234, "9.99 KiB" },
                { 10235, "10.0 KiB" },
                { 102348, "99.9 KiB" },
                { 102400, "100 KiB" },
                { 1048063, "1023 KiB" },
                { 1048575, "1.00 MiB" }, /* not 1024 KiB */
                { 1048576, "1.00 MiB" },
                { -3355443, "-3.20 MiB" },
                { INT64_C(3) << 40, "3.00 TiB" },
                { INT64_MAX, "8.00 EiB" },
                { INT64_MIN, "-8.00 EiB" },
        };
        char text[TEXT_BYTES];

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
                assert_string_equal(format_bytes(text, cases[i].bytes), cases[i].text);
        assert_string_equal(format_pages(text, 256), "1.00 MiB");
        /* A client may register 16 EiB of holes, and two of them twice that. */
        assert_string_equal(format_pages(text, INT64_C(1) << 52), "8.00 EiB");
        assert_int_equal(add_clamped(INT64_MAX, 1), INT64_MAX);
        assert_int_equal(add_clamped(INT64_MIN, -1), INT64_MIN);
        assert_int_equal(subtract_clamped(INT64_MIN, 1), INT64_MIN);
        assert_int_equal(subtract_clamped(0, INT64_MIN), INT64_MAX);
}

static void test_usec(void **state) {
        static const struct {
                uint64_t usec;
                const char *text;
        } cases[] = {
                { 0, "0 us" },
                { 999, "999 us" },
                { 1500, "1.5 ms" },
                { 4210000, "4.21 s" },
                { 61000000, "1 min 1 s" },
                { 11100000000, "3 h 5 min" },
                { 180000000000, "2 d 2 h" },
        };
        char text[TEXT_BYTES];

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
                assert_string_equal(format_usec(text, cases[i].usec), cases[i].text);
        (void) format_usec(text, UINT64_MAX);
}

static void test_names(void **state) {
        char text[TEXT_BYTES], long_name[100];

        assert_string_equal(format_name(text, "redis-server", 16), "redis-server");
        assert_string_equal(format_name(text, "a\033]0;x\007\n\x7f\xff", 16), "a?]0;x????");
        assert_string_equal(format_name(text, "", 16), "?");
        assert_string_equal(format_name(text, "abc", 2), "ab"); /* not terminated within its size */
        memset(long_name, 'x', sizeof(long_name));
        assert_int_equal(strlen(format_name(text, long_name, sizeof(long_name))), TEXT_BYTES - 1);
}

/* The parts of processes that hold all mappings add up to the whole. */
static void test_parts_add_up(void **state) {
        struct counters c = { .pages_shared = 1000, .pages_sharing = 2500, .ksm_zero_pages = 77 };
        struct client_element clients[] = { { .merged_pages = 3000, .zero_pages = 70 },
                                            { .merged_pages = 499, .zero_pages = 7 },
                                            { .merged_pages = 1 } };
        int64_t sum = 0;

        for (size_t i = 0; i < ARRAY_SIZE(clients); i++)
                sum += client_saved_bytes(&c, &clients[i]);
        assert_int_equal(saved_bytes(&c), 2577 * 4096);
        assert_true(llabs(sum - saved_bytes(&c)) < (long long) ARRAY_SIZE(clients)); /* each rounded down */
        c = (struct counters) { 0 };
        assert_int_equal(client_saved_bytes(&c, &clients[0]), 70 * 4096); /* no shared pages at all */
}

static void test_placement(void **state) {
        static const struct {
                const char *text, *cgroup, *unit;
        } cases[] = {
                { "0::/system.slice/system-redis.slice/redis@1.service\n", "/system.slice/system-redis.slice/redis@1.service", "redis@1.service" },
                { "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope\n",
                  "/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope", "app-x.scope" },
                { "12:cpu:/a\n0::/docker/0123\n", "/docker/0123", "" },
                { "0::/a.service/sub\n", "/a.service/sub", "a.service" },
                { "0::/", "/", "" },
                { "0::/.service\n", "/.service", "" },
                { "0::/\033[2J.service", "/?[2J.service", "?[2J.service" },
                { "1:name=systemd:/x.service\n", "/x.service", "x.service" },
                { "9:name=systemd:/x.service\n8:cpu:/y\n0::/\n", "/x.service", "x.service" },
                { "9:name=systemd:/x.service\n0::/y.scope\n", "/y.scope", "y.scope" },
                { "9:name=systemd:/\n0::/\n", "/", "" },
                { "0:cpu:/x.service\n:::/x\n0\n:\n", "", "" },
                { "", "", "" },
        };
        struct placement p;

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                placement_parse(cases[i].text, &p);
                assert_string_equal(p.cgroup, cases[i].cgroup);
                assert_string_equal(p.unit, cases[i].unit);
        }
}

static void test_turn_quantiles(void **state) {
        struct counters c = { 0 };

        assert_int_equal(turn_quantile_usec(&c, 990, 0), 0);
        c = (struct counters) { .turn_le_256_usec = 98, .turn_le_4096_usec = 2, .turn_longest_usec = 3000 };
        assert_int_equal(turn_quantile_usec(&c, 990, 0), 3000);
        c.turn_longest_usec = 60000;
        c.turn_le_256_usec = 1000;
        c.turn_le_250000_usec = 10;
        assert_int_equal(turn_quantile_usec(&c, 990, 0), 4096); /* 10 of 1012 are no more than one of 100 */
        c.turn_le_250000_usec = 12;
        assert_int_equal(turn_quantile_usec(&c, 990, 0), 60000);
        assert_int_equal(turn_quantile_usec(&c, 500, 0), 256);
        assert_int_equal(turn_quantile_usec(&c, 1000, 0), 60000);
        c.turn_cpu_gt_250000_usec = 1;
        c.turn_cpu_longest_usec = 700000;
        assert_int_equal(turn_quantile_usec(&c, 990, 1), 700000);
}

static void says(const struct report *r, const char *expected) {
        char *text = NULL;
        size_t size = 0;
        FILE *f = open_memstream(&text, &size);

        assert_non_null(f);
        report_print_governor(r, f);
        report_print_never_short(r, f);
        assert_int_equal(fclose(f), 0);
        assert_string_equal(text, expected);
        free(text);
}

static void test_governor(void **state) {
        struct report r = { .counters = { .governor = GOVERNOR_HURRY, .cpu_allowed_permille = 1000 } };

        r.counters.memory_pressure_permille = 123;
        r.counters.memory_available_permille = 81;
        r.tunables.values.pressure_permille = 50;
        r.tunables.values.low_memory_permille = 100;
        says(&r, "it hurries, looks at pages four times as often and takes at most 100.0 % of a core for it (max_cpu_permille): memory is "
                 "short: processes waited for it 12.3 % of the last 10 s (short from 5.0 % on); 8.1 % is available (short below 10.0 %)\n");
        r.counters.governor = GOVERNOR_REST;
        r.counters.memory_pressure_permille = -1;
        r.tunables.values.low_memory_permille = 0;
        says(&r, "it rests: only_under_pressure is set, and memory is not short: how long processes wait for it is not known (pressure_file); "
                 "how much is available does not count (low_memory_permille=0)\n"
                 "! only_under_pressure is set, but nothing says when memory is short: see pressure_file, pressure_permille and "
                 "low_memory_permille\n");
        r.counters.memory_pressure_permille = 0;
        r.counters.memory_available_permille = -1;
        r.tunables.values.pressure_permille = 0;
        says(&r, "it rests: only_under_pressure is set, and memory is not short: how long processes wait for it does not count "
                 "(pressure_permille=0); how much is available is not known\n"
                 "! only_under_pressure is set, but nothing says when memory is short: see pressure_file, pressure_permille and "
                 "low_memory_permille\n");
        r.counters.governor = GOVERNOR_IDLE;
        r.counters.cpu_allowed_permille = 50;
        says(&r, "it idles: nothing is new, and the last full scan found next to nothing to merge; scanning takes at most 5.0 % of a core "
                 "(idle_cpu_permille)\n");
        r.counters.governor = GOVERNOR_WORK;
        says(&r, "it works: something is new, or the last full scan found equal pages; scanning takes at most 5.0 % of a core "
                 "(max_cpu_permille)\n");
        r.counters.governor = GOVERNOR_STOPPED;
        says(&r, "");
        r.counters.governor = 99;
        says(&r, "");
}

static void test_table(void **state) {
        static const char *const titles[] = { "N", "NAME" };
        struct table t;
        char *text = NULL;
        size_t size = 0;
        FILE *f = open_memstream(&text, &size);

        table_init(&t, titles, 2, 2);
        for (unsigned i = 0; i < 100; i++) { /* grows */
                table_cell(&t, i == 99 ? "12345" : "1");
                table_cell(&t, "x");
        }
        table_rule(&t);
        assert_int_equal(table_print(&t, f), 0);
        table_free(&t);
        fclose(f);
        assert_int_equal(strncmp(text, "    N  NAME\n    1  x\n", 21), 0);
        assert_string_equal(strstr(text, "12345"), "12345  x\n-----  ----\n");
        free(text);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_bytes), cmocka_unit_test(test_usec),  cmocka_unit_test(test_names), cmocka_unit_test(test_placement), cmocka_unit_test(test_turn_quantiles),
                cmocka_unit_test(test_parts_add_up), cmocka_unit_test(test_governor), cmocka_unit_test(test_table),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
