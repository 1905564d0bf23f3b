/* Results of scans, and what they are not: cut, failed, of pages that have gone. */
#include <errno.h>

#include "tests/unit/machine.h"

/* Of a scan's results counts what was asked for, and is registered still. */
static void test_scan_results_are_cut(void **state) {
        struct world *w = start(1, 64);
        const uint32_t client = w->processes[0].client;
        const struct core_run written = { .page = 0, .n_pages = 200, .categories = CORE_WRITTEN };
        struct core_scan s;
        uint64_t next;

        assert_true(core_next_scan(w->core, w->now_usec, &s, &next));
        assert_int_equal(s.page + s.n_pages, 64);
        assert_int_equal(core_range_remove(w->core, client, 0, 32), 0);
        assert_int_equal(core_range_add(w->core, client, 128, 64), 0);
        core_scan_done(w->core, s.op, w->now_usec, &written, 1, s.page + s.n_pages, 0);
        assert_int_equal(world_counters(w).tracked_pages, 32);
        assert_null(core_check(w->core));
        world_exit(w, 0);
        finish(w);
}

/* Of the next scan of the first process. */
static bool expects_few(struct world *w) {
        struct core_scan s;
        uint64_t next;

        while (!core_next_scan(w->core, w->now_usec, &s, &next))
                w->now_usec = next;
        core_scan_done(w->core, s.op, w->now_usec, NULL, 0, s.page + s.n_pages, 0);
        return s.expects_few;
}

/* Protected pages are looked for first where that is cheaper: not where there are none, nor where mappings cost more than they. */
static void test_scan_expects_few(void **state) {
        struct world *w = start(1, 6400);

        fill(w, 0, 0, 6400, 1);
        assert_false(expects_few(w));
        world_run(w, 5 * SECOND);
        assert_int_equal(world_counters(w).pages_unshared, 6400);
        assert_true(expects_few(w));
        core_client_set_vmas(w->core, w->processes[0].client, 400);
        assert_false(expects_few(w));
        core_client_set_vmas(w->core, w->processes[0].client, 40);
        assert_true(expects_few(w));
        finish(w);
}

/* 32 TiB with one page: one scan, one block. */
static void test_sparse_range(void **state) {
        struct core_client_config config = {};
        struct core_run run = { .page = UINT64_C(1) << 32, .n_pages = 1, .categories = CORE_WRITTEN };
        struct core_scan scan;
        uint32_t domain, client;
        struct core *c;
        struct counters before, after;
        uint64_t next;
        unsigned windows = 0;

        assert_int_equal(core_new(NULL, 1, &c), 0);
        assert_int_equal(core_domain(c, "a", 1, &domain), 0);
        assert_int_equal(core_client_add(c, domain, &config, &client), 0);
        core_counters(c, &before);
        assert_int_equal(core_range_add(c, client, (UINT64_C(1) << 52) - 1, 2), -EINVAL);
        assert_int_equal(core_range_add(c, client, UINT64_MAX, 2), -EINVAL);
        assert_int_equal(core_range_add(c, client, 0, UINT64_C(1) << 33), 0);
        for (uint64_t now = 1000000; now < 20000000; now = next ? next : now + 1)
                while (core_next_scan(c, now, &scan, &next)) {
                        bool is_here = scan.page <= run.page && run.page < scan.page + scan.n_pages;

                        windows++;
                        core_scan_done(c, scan.op, now, &run, is_here && windows < 100, scan.page + scan.n_pages, 0);
                }
        core_counters(c, &after);
        assert_int_equal(after.tracked_pages, 1);
        assert_true(after.metadata_bytes - before.metadata_bytes < 64 * 1024);
        assert_true(windows < 100); /* windows grow where there is nothing */
        assert_int_equal(core_range_remove(c, client, 0, UINT64_C(1) << 33), 0);
        (void) core_tick(c, 20000000);
        core_counters(c, &after);
        assert_int_equal(after.tracked_pages, 0);
        assert_null(core_check(c));
        core_free(c);
}

/* Nobody says so when libc or the kernel takes pages away; a look finds out. */
static void test_vanished_pages(void **state) {
        struct world *w = start(2, 64);

        fill(w, 0, 0, 64, 1);
        world_run(w, 5 * SECOND);
        assert_int_equal(world_counters(w).pages_unshared, 64);
        world_discard(w, 0, 8, 16);
        world_run(w, 40 * SECOND);
        assert_int_equal(world_counters(w).pages_unshared, 48);
        /* Or the agent says so. */
        assert_int_equal(core_pages_gone(w->core, w->processes[0].client, 0, 4), 0);
        assert_int_equal(world_counters(w).pages_unshared, 44);
        for (unsigned i = 0; i < 4; i++) /* it was wrong */
                world_write(w, 0, i, 1 + i);
        fill(w, 1, 0, 64, 1); /* finds no partner that is gone */
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 48);
        assert_int_equal(world_counters(w).pages_unshared, 16);
        finish(w);
}

/* The kernel protects before it says what was written: after an error nobody knows. */
static void test_scan_that_failed(void **state) {
        struct world *w = start(2, 64);

        fill(w, 0, 0, 64, 1);
        world_run(w, 5 * SECOND);
        world_write(w, 0, 3, 500);
        w->fail_permille = 4000; /* every scan */
        world_scan(w);
        w->fail_permille = 0;
        world_write(w, 1, 5, 500);
        world_run(w, 10 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 1);
        finish(w);
}

/* Who does not answer is not asked, whatever others find equal in it. */
static void test_parked_is_not_asked(void **state) {
        struct world *w = start(2, 64);

        fill(w, 0, 0, 64, 1);
        world_run(w, 5 * SECOND);
        assert_int_equal(world_counters(w).pages_unshared, 64);
        core_client_park(w->core, w->processes[0].client, true);
        fill(w, 1, 0, 64, 1);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_merged(w, 0), 0);
        assert_int_equal(world_merged(w, 1), 64);
        core_client_park(w->core, w->processes[0].client, false);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 64);
        finish(w);
}

/* Clients that no pass walks do not hold full_scans up. */
static void test_full_scans(void **state) {
        struct world *w = start(2, 64);
        const struct core_client_config config = {};
        uint32_t idle;
        int64_t before;

        assert_int_equal(core_client_add(w->core, w->processes[0].domain, &config, &idle), 0);
        world_run(w, 10 * SECOND + SECOND / 2);
        assert_in_range(world_counters(w).full_scans, 9, 11);
        before = world_counters(w).full_scans;
        core_client_park(w->core, w->processes[0].client, true);
        world_run(w, 10 * SECOND);
        assert_in_range(world_counters(w).full_scans, before + 9, before + 11);
        before = world_counters(w).full_scans;
        core_client_park(w->core, w->processes[0].client, false);
        assert_int_equal(core_range_remove(w->core, w->processes[1].client, 0, 64), 0);
        world_run(w, 10 * SECOND);
        assert_in_range(world_counters(w).full_scans, before + 9, before + 11);
        before = world_counters(w).full_scans;
        world_exit(w, 1);
        core_client_gone(w->core, idle);
        world_run(w, 10 * SECOND);
        assert_in_range(world_counters(w).full_scans, before + 9, before + 11);
        finish(w);
}

/* A process that has just come is merged as soon as it has settled, not a period later; then it is looked at once a period. */
static void test_news_do_not_wait_for_a_period(void **state) {
        enum { PAGES = 1024, FEW = PAGES / 16 };
        struct world *w = start(2, PAGES);
        uint64_t scanned;

        assert_int_equal(core_tunable_set(w->core, TUNABLE_pass_millisecs, 8000, w->now_usec), 0);
        for (uint32_t i = 0; i < 2; i++)
                fill(w, i, 0, PAGES, 1);
        world_run(w, 4 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, PAGES);
        world_run(w, 8 * SECOND);
        scanned = w->n_scans;
        world_run(w, 80 * SECOND);
        assert_in_range(w->n_scans - scanned, 2 * 9, 2 * 12); /* a plain look among them */
        /* What is written anew here and there is not news. */
        for (uint32_t i = 0; i < 2; i++)
                fill(w, i, 0, FEW, 5000);
        while (world_counters(w).pages_sharing == PAGES)
                world_run(w, SECOND / 10); /* until a pass sees it */
        world_run(w, 7 * SECOND);
        assert_int_not_equal(world_counters(w).pages_sharing, PAGES);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, PAGES);
        finish(w);
}

/* With nothing to settle for, too, passes have a pause. */
static void test_news_have_a_pace(void **state) {
        enum { PAGES = 1024 };
        struct world *w = start(1, PAGES);

        assert_int_equal(core_tunable_set(w->core, TUNABLE_pass_millisecs, 8000, w->now_usec), 0);
        assert_int_equal(core_tunable_set(w->core, TUNABLE_settle_millisecs, 0, w->now_usec), 0);
        for (unsigned k = 0; k < 80; k++) { /* all of it is new all the time */
                world_drop(w, 0, 0, PAGES);
                fill(w, 0, 0, PAGES, 1 + k);
                world_run(w, SECOND / 10);
        }
        assert_in_range(w->n_scans, 4, 24); /* 8 s: a pass a second, and looks */
        finish(w);
}

/* Of much memory passes take their time, and come no sooner than that allows: 400 000 pages every 100 ms. */
static void test_news_of_much_memory(void **state) {
        enum { PAGES = 400000 };
        struct world *w = start(1, PAGES);
        int64_t before;

        assert_int_equal(core_tunable_set(w->core, TUNABLE_pass_millisecs, 200, w->now_usec), 0);
        fill(w, 0, 0, PAGES, 1);
        world_run(w, SECOND / 2);
        before = world_counters(w).full_scans;
        world_run(w, SECOND / 2);
        assert_in_range(world_counters(w).full_scans - before, 3, 6);
        finish(w);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_scan_results_are_cut),
                cmocka_unit_test(test_scan_expects_few),
                cmocka_unit_test(test_sparse_range),
                cmocka_unit_test(test_vanished_pages),
                cmocka_unit_test(test_scan_that_failed),
                cmocka_unit_test(test_parked_is_not_asked),
                cmocka_unit_test(test_full_scans),
                cmocka_unit_test(test_news_do_not_wait_for_a_period),
                cmocka_unit_test(test_news_have_a_pace),
                cmocka_unit_test(test_news_of_much_memory),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
