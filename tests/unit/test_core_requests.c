/* Merges and unmerges on demand, tunables, stops. */
#include <errno.h>

#include "tests/unit/machine.h"

static void test_merge_now(void **state) {
        struct world *w = start(2, 256);
        uint64_t begin;

        fill(w, 0, 0, 200, 1);
        world_run(w, 5 * SECOND);
        fill(w, 1, 3, 100, 1);
        fill(w, 1, 150, 3, 150); /* a short run: merged at once all the same */
        begin = w->now_usec;
        assert_int_equal(core_merge_now(w->core, w->processes[1].client, 0, 256, 42, w->now_usec), 0);
        while (w->n_events == 0 && w->now_usec < begin + SECOND)
                world_run(w, 1000);
        assert_int_equal(w->last_event.cookie, 42);
        assert_int_equal(w->last_event.error, 0);
        assert_int_equal(w->last_event.pages, 103);
        assert_true(w->now_usec - begin < 30000);
        assert_int_equal(world_merged(w, 1), 103);
        assert_int_equal(core_merge_now(w->core, w->processes[1].client, 4000, 1, 43, w->now_usec), -ENOENT);
        finish(w);
}

/* What was written during the request's own settle time is not for it. */
static void test_merge_now_lets_settle(void **state) {
        struct world *w = start(2, 64);

        assert_int_equal(core_tunable_set(w->core, TUNABLE_settle_millisecs, 60000, w->now_usec), 0);
        for (uint32_t i = 0; i < 2; i++) {
                fill(w, i, 0, 64, 1);
                assert_int_equal(core_merge_now(w->core, w->processes[i].client, 0, 0, i, w->now_usec), 0);
        }
        world_run(w, 5000);
        world_write(w, 0, 3, 4); /* what it held */
        world_run(w, 2 * SECOND);
        assert_int_equal(w->n_events, 2);
        assert_int_equal(world_counters(w).pages_sharing, 63);
        finish(w);
}

static void test_unmerge_range(void **state) {
        struct world *w = start(2, 256);

        fill(w, 0, 0, 256, 1);
        fill(w, 1, 0, 256, 1);
        world_run(w, 6 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 256);
        assert_int_equal(core_unmerge(w->core, w->processes[1].client, 32, 100, 7, w->now_usec), 0);
        world_run(w, 1000);
        assert_int_equal(w->n_events, 1);
        assert_int_equal(w->last_event.pages, 100);
        assert_int_equal(w->last_event.left, 0);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_merged(w, 1), 156); /* and stays so */
        assert_int_equal(core_range_add(w->core, w->processes[1].client, 0, 256), 0);
        world_run(w, 30 * SECOND);
        assert_int_equal(world_merged(w, 1), 256);
        finish(w);
}

static void test_run_2_empties_the_store(void **state) {
        struct world *w = start(3, 1024);

        for (uint32_t i = 0; i < 3; i++)
                fill(w, i, 0, 1024, 1);
        world_run(w, 8 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 2048);
        assert_int_equal(core_tunable_set(w->core, TUNABLE_run, 2, w->now_usec), 0);
        world_run(w, SECOND);
        assert_int_equal(world_counters(w).pages_shared, 0);
        assert_int_equal(world_counters(w).segments, 0);
        assert_int_equal(world_merged(w, 0) + world_merged(w, 1) + world_merged(w, 2), 0);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).pages_shared, 0);
        assert_int_equal(core_tunable_set(w->core, TUNABLE_run, 1, w->now_usec), 0);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 2048);
        finish(w);
}

static void test_tunables(void **state) {
        struct world *w = start(1, 64);

        assert_int_equal(core_tunable_set(w->core, TUNABLE_run, 3, w->now_usec), -EINVAL);
        assert_int_equal(core_tunable_set(w->core, TUNABLE_max_page_sharing, 1, w->now_usec), -EINVAL);
        assert_int_equal(core_tunable_set(w->core, TUNABLE_run, 0, w->now_usec), 0);
        fill(w, 0, 0, 64, 1);
        world_run(w, 5 * SECOND);
        assert_int_equal(w->n_scans, 0);
        assert_int_equal(core_tunable_set(w->core, TUNABLE_run, 1, w->now_usec), 0);
        assert_int_equal(core_tunable_set(w->core, TUNABLE_pages_to_scan, 10, w->now_usec), 0);
        assert_int_equal(core_tunable_set(w->core, TUNABLE_sleep_millisecs, 1000, w->now_usec), 0);
        world_run(w, 4 * SECOND + SECOND / 2);
        assert_in_range(world_counters(w).pages_scanned, 10, 50);
        finish(w);
}

/* Stopped at any moment, work in any state, and started again: all that is equal is merged in the end. */
static void test_a_stop_loses_nothing(void **state) {
        for (int run = 0; run <= 2; run += 2)
                for (unsigned stop_at = 1; stop_at <= 24; stop_at++) {
                        struct world *w = start(2, 128);

                        for (uint32_t p = 0; p < 2; p++) {
                                fill(w, p, 0, 40, 1);
                                world_write(w, p, 50, 77); /* short runs wait longer */
                                world_write(w, p, 70 + p, 78);
                                world_write(w, p, 60, 0);
                        }
                        world_run(w, stop_at * SECOND / 4 - SECOND / 8);
                        for (unsigned i = stop_at % 3 * 20; i > 0; i--)
                                world_step(w); /* some of it in flight */
                        assert_int_equal(core_tunable_set(w->core, TUNABLE_run, run, w->now_usec), 0);
                        world_run(w, stop_at * SECOND / 7);
                        assert_int_equal(core_tunable_set(w->core, TUNABLE_run, 1, w->now_usec), 0);
                        world_run(w, 40 * SECOND);
                        assert_int_equal(world_counters(w).pages_sharing, 42);
                        assert_int_equal(world_counters(w).ksm_zero_pages, 2);
                        finish(w);
                }
}

static void test_requests_end_when_stopped(void **state) {
        struct world *w = start(2, 256);

        fill(w, 0, 0, 256, 1);
        fill(w, 1, 0, 256, 1);
        for (unsigned i = 0; i < 30; i++) {
                assert_int_equal(core_tunable_set(w->core, TUNABLE_run, 1, w->now_usec), 0);
                assert_int_equal(core_merge_now(w->core, w->processes[1].client, 0, 256, 100 + i, w->now_usec), 0);
                world_run(w, i * 500);
                assert_int_equal(core_tunable_set(w->core, TUNABLE_run, 0, w->now_usec), 0);
                world_run(w, 1000);
                assert_int_equal(w->n_events, i + 1);
                assert_int_equal(w->last_event.cookie, 100 + i);
        }
        assert_int_equal(core_tunable_set(w->core, TUNABLE_run, 1, w->now_usec), 0);
        world_run(w, 6 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 256);
        /* An unmerge is carried out all the same. */
        assert_int_equal(core_tunable_set(w->core, TUNABLE_run, 0, w->now_usec), 0);
        assert_int_equal(core_unmerge(w->core, w->processes[1].client, 0, 0, 7, w->now_usec), 0);
        world_run(w, 1000);
        assert_int_equal(w->last_event.cookie, 7);
        assert_int_equal(w->last_event.pages, 256);
        assert_int_equal(world_merged(w, 1), 0);
        finish(w);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_merge_now),
                cmocka_unit_test(test_merge_now_lets_settle),
                cmocka_unit_test(test_unmerge_range),
                cmocka_unit_test(test_run_2_empties_the_store),
                cmocka_unit_test(test_tunables),
                cmocka_unit_test(test_a_stop_loses_nothing),
                cmocka_unit_test(test_requests_end_when_stopped),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
