/* How much the core does in which time: the advisor, the tunables that pace it, and what a full scan is. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "daemon/core/internal.h"
#include "tests/sim/world.h"

#define SECOND UINT64_C(1000000)

static struct world *start(uint32_t n_processes, uint64_t n_pages) {
        struct world *w = world_new(1, NULL);
        uint32_t d = world_domain(w, "a");

        for (uint32_t i = 0; i < n_processes; i++)
                world_process(w, d, 0, n_pages);
        return w;
}

static void finish(struct world *w) {
        assert_null(core_check(w->core));
        world_free(w);
}

static void fill(struct world *w, uint32_t process, uint64_t i, uint64_t n, uint32_t first) {
        for (uint64_t k = 0; k < n; k++)
                world_write(w, process, i + k, first + (uint32_t) k);
}

static void set(struct world *w, enum tunable_id id, int64_t value) {
        assert_int_equal(core_tunable_set(w->core, id, value, w->now_usec), 0);
}

static int64_t pages_to_scan(const struct world *w) {
        return core_tunables(w->core)->pages_to_scan;
}

/* -- the advisor --------------------------------------------------------------------------------------------------------- */

/* What the kernel's arithmetic gives, worked out by hand; where `kernel` is another it is what the kernel would have set. */
static void test_advisor_arithmetic(void **state) {
        static const struct {
                int64_t now, min, max, max_cpu, target;
                uint64_t last_sec, last_change, scan_usec, cpu_usec;
                int64_t kernel, pages;
                uint64_t change;
        } cases[] = {
                /* First scan, 10 s at 10 %: 500 -> 25 by time, 7 by the average of 30 %, 500 by the least CPU time. */
                { 500, 500, 30000, 70, 200, 0, 0, 10 * SECOND, SECOND, 500, 500, 30 },
                /* First scan, twice the target at 2 %: 300 by time, 2500 by the least CPU time. */
                { 500, 500, 30000, 70, 200, 0, 0, 400 * SECOND, 8 * SECOND, 2500, 2500, 30 },
                /* After it half the target at 10 %; the average is 28 %. */
                { 2500, 500, 30000, 70, 200, 400, 30, 100 * SECOND, 10 * SECOND, 2500, 2500, 28 },
                /* Five times the target at 90 %: 330000 by time, held by advisor_max_cpu. */
                { 30000, 500, 30000, 70, 200, 200, 100, 1000 * SECOND, 900 * SECOND, 23310, 23310, 220 },
                /* Twice the target at 10 %: 52000, held by the ceiling. */
                { 20000, 500, 30000, 70, 200, 200, 100, 400 * SECOND, 40 * SECOND, 30000, 30000, 130 },
                /* Within all bounds: 1.5 times the target at 20 %; 12000 * 150 % (by 66 % of the target: 12000 * 100 / 66), times 115 %. */
                { 12000, 500, 30000, 70, 200, 200, 100, 300 * SECOND, 60 * SECOND, 20908, 20908, 115 },
                /* At 100 % of a core for half the target the kernel goes to 75; the floor is one here. */
                { 500, 500, 30000, 70, 200, 0, 0, 100 * SECOND, 100 * SECOND, 75, 500, 30 },
                /* ... above the ceiling, too ... */
                { 500, 500, 100, 70, 200, 0, 0, 100 * SECOND, 100 * SECOND, 75, 500, 30 },
                /* ... and never nothing at all: the scan would not end. */
                { 500, 0, 0, 70, 200, 0, 0, 100 * SECOND, 100 * SECOND, 0, 1, 30 },
                /* Less than a second is one, less than a percent is one. */
                { 500, 500, 30000, 70, 200, 0, 0, SECOND / 3, 100, 5000, 5000, 30 },
                /* Products beyond 64 bits. */
                { 4294967295, 0, 4294967295, 4294967295, 1, 1, 100, 4000000000 * SECOND, SECOND, 0, 4294967295, 120000000070 },
        };

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct advisor a = { .scan_sec = cases[i].last_sec, .change = cases[i].last_change };
                struct tunables t;

                tunables_init(&t);
                t.pages_to_scan = cases[i].now;
                t.advisor_min_pages_to_scan = cases[i].min;
                t.advisor_max_pages_to_scan = cases[i].max;
                t.advisor_max_cpu = cases[i].max_cpu;
                t.advisor_target_scan_time = cases[i].target;
                assert_int_equal(advisor_step(&a, &t, cases[i].scan_usec, cases[i].cpu_usec), cases[i].pages);
                assert_int_equal(a.change, cases[i].change);
                assert_int_equal(a.scan_sec, MAX(cases[i].scan_usec / SECOND, UINT64_C(1)));
        }
}

static void test_advisor_mode(void **state) {
        struct world *w = start(1, 64);

        set(w, TUNABLE_pages_to_scan, 1234);
        assert_int_equal(core_tunable_set(w->core, TUNABLE_advisor_mode, 2, w->now_usec), -EINVAL);
        set(w, TUNABLE_advisor_mode, ADVISOR_NONE); /* as it was: changes nothing */
        assert_int_equal(pages_to_scan(w), 1234);
        set(w, TUNABLE_advisor_min_pages_to_scan, 700);
        set(w, TUNABLE_advisor_mode, ADVISOR_SCAN_TIME);
        assert_int_equal(pages_to_scan(w), 700);
        assert_int_equal(core_tunable_set(w->core, TUNABLE_pages_to_scan, 5, w->now_usec), -EINVAL);
        assert_int_equal(pages_to_scan(w), 700);
        set(w, TUNABLE_sleep_millisecs, 50); /* all others may be set */
        set(w, TUNABLE_advisor_mode, ADVISOR_NONE);
        assert_int_equal(pages_to_scan(w), tunable_table[TUNABLE_pages_to_scan].def);
        set(w, TUNABLE_pages_to_scan, 5);
        finish(w);
}

/* A scan that takes longer than it should is answered with more pages, one that takes less with fewer. */
static void test_advisor_follows(void **state) {
        struct world *w = start(1, 40000);
        int64_t scans, slow;

        set(w, TUNABLE_sleep_millisecs, 1000);
        set(w, TUNABLE_advisor_min_pages_to_scan, 100);
        set(w, TUNABLE_advisor_target_scan_time, 10);
        set(w, TUNABLE_advisor_mode, ADVISOR_SCAN_TIME);
        fill(w, 0, 0, 40000, 1);
        /* 40000 pages at 100 a second take 400 s, 5 s of them CPU time. */
        scans = world_counters(w).full_scans;
        for (unsigned i = 0; i < 500 && world_counters(w).full_scans <= scans + 2; i++) {
                world_run(w, SECOND);
                core_cpu_used(w->core, i * 12500);
        }
        slow = pages_to_scan(w);
        assert_in_range(slow, 1000, 30000);
        /* Nothing to read any more, at a price: it goes down to what advisor_max_cpu allows. */
        for (unsigned i = 0; i < 30; i++) {
                world_run(w, SECOND);
                core_cpu_used(w->core, 6000000 + i * 900000);
        }
        assert_in_range(pages_to_scan(w), 100, slow / 2);
        finish(w);
}

/* -- full scans ---------------------------------------------------------------------------------------------------------- */

/* What a pass found settled is part of the scan: it ends when that has been read. */
static void test_full_scan_reads(void **state) {
        struct world *w = start(1, 6400);
        int64_t before;

        set(w, TUNABLE_sleep_millisecs, 1000);
        set(w, TUNABLE_pages_to_scan, 640);
        fill(w, 0, 0, 6400, 1);
        world_run(w, 2 * SECOND + SECOND / 2); /* now they have settled */
        before = world_counters(w).full_scans;
        world_run(w, 7 * SECOND);
        assert_in_range(world_counters(w).full_scans, before, before + 1);
        assert_in_range(world_counters(w).pages_scanned, 4000, 6399);
        world_run(w, 10 * SECOND);
        assert_int_equal(world_counters(w).pages_scanned, 6400);
        assert_in_range(world_counters(w).full_scans, before + 5, before + 11);
        finish(w);
}

/* -- tunables that the kernel has ------------------------------------------------------------------------------------------ */

/* Pages of a block that is written all the time, as scans reported them in a minute. */
static uint64_t reported(struct world *w) {
        uint64_t before = w->n_scanned_pages;

        for (unsigned t = 0; t < 60; t++) {
                fill(w, 0, 0, 64, 1000 + 100 * t);
                world_run(w, SECOND);
        }
        return w->n_scanned_pages - before;
}

static void test_smart_scan(void **state) {
        struct world *w = start(1, 128);

        world_run(w, SECOND / 2); /* passes between the writes */
        (void) reported(w);
        assert_in_range(reported(w), 0, 10 * 64);
        set(w, TUNABLE_smart_scan, 0);
        assert_in_range(reported(w), 58 * 64, 61 * 64 + 8 * 64); /* from the next pass on; every 16th has a plain look */
        set(w, TUNABLE_smart_scan, 1);
        (void) reported(w);
        assert_in_range(reported(w), 0, 10 * 64);
        finish(w);
}

/* The kernel takes 0 for these. */
static void test_pauses_of_nothing(void **state) {
        struct world *w = start(2, 1280);
        uint64_t now;

        fill(w, 0, 0, 1280, 1);
        fill(w, 1, 0, 1280, 1);
        set(w, TUNABLE_pages_to_scan, 0);
        world_run(w, 10 * SECOND);
        assert_int_equal(world_counters(w).pages_scanned, 0);
        set(w, TUNABLE_sleep_millisecs, 0);
        world_run(w, 10 * SECOND);
        assert_int_equal(world_counters(w).pages_scanned, 0);
        /* No pause: small batches do not take longer. */
        set(w, TUNABLE_pages_to_scan, 10);
        now = w->now_usec;
        world_run(w, SECOND);
        assert_int_equal(world_counters(w).pages_scanned, 2 * 1280);
        set(w, TUNABLE_stable_node_chains_prune_millisecs, 0);
        world_run(w, 5 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 1280);
        now = w->now_usec;
        assert_true(core_tick(w->core, now) > now); /* the loop may sleep */
        finish(w);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_advisor_arithmetic),
                cmocka_unit_test(test_advisor_mode),
                cmocka_unit_test(test_advisor_follows),
                cmocka_unit_test(test_full_scan_reads),
                cmocka_unit_test(test_smart_scan),
                cmocka_unit_test(test_pauses_of_nothing),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
