/* How much the core does in which time: the advisor, the tunables that pace it, and what a full scan is. */
#include <errno.h>
#include <stdio.h>

#include "daemon/core/internal.h"
#include "tests/unit/machine.h"

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

/* The time in which nothing is to be scanned is not scan time: 1000 s of it would make 3000 pages. */
static void test_advisor_ignores_rest(void **state) {
        for (int stopped = 0; stopped <= 1; stopped++) {
                struct world *w = start(1, 64);
                int64_t before;

                set(w, TUNABLE_advisor_target_scan_time, 10);
                set(w, TUNABLE_advisor_min_pages_to_scan, 100);
                world_run(w, SECOND / 2);
                set(w, TUNABLE_advisor_mode, ADVISOR_SCAN_TIME);
                before = world_counters(w).full_scans;
                if (stopped)
                        set(w, TUNABLE_run, 0);
                else
                        core_set_pace(w->core, CORE_PACE_REST, w->now_usec);
                world_run(w, 1000 * SECOND);
                assert_int_equal(world_counters(w).full_scans, before);
                assert_int_equal(pages_to_scan(w), 100);
                if (stopped)
                        set(w, TUNABLE_run, 1);
                else
                        core_set_pace(w->core, CORE_PACE_NORMAL, w->now_usec);
                while (world_counters(w).full_scans == before)
                        world_run(w, SECOND / 100);
                assert_int_equal(pages_to_scan(w), 1000);
                finish(w);
        }
}

/* -- full scans ---------------------------------------------------------------------------------------------------------- */

/* What a pass found settled is part of the scan: it ends when that has been read. */
static void test_full_scan_reads(void **state) {
        struct world *w = start(1, 6400);
        int64_t before;

        set(w, TUNABLE_sleep_millisecs, 1000);
        set(w, TUNABLE_pages_to_scan, 640);
        set(w, TUNABLE_settle_millisecs, 1000);
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

/* -- pace ---------------------------------------------------------------------------------------------------------------- */

/* Time until all of n pages that two processes have in common are merged; UINT64_MAX: not within a minute. */
static uint64_t time_to_merge(struct world *w, uint64_t n, uint32_t first) {
        uint64_t begin = w->now_usec;

        fill(w, 0, 0, n, first);
        fill(w, 1, 0, n, first);
        while (world_counters(w).pages_sharing < (int64_t) n) {
                if (w->now_usec > begin + 60 * SECOND)
                        return UINT64_MAX;
                world_run(w, SECOND / 100);
        }
        return w->now_usec - begin;
}

static void test_fast(void **state) {
        uint64_t took[2];

        for (int fast = 0; fast <= 1; fast++) {
                struct world *w = start(2, 640);

                set(w, TUNABLE_settle_millisecs, 1000);
                core_set_pace(w->core, fast ? CORE_PACE_FAST : CORE_PACE_NORMAL, w->now_usec);
                took[fast] = time_to_merge(w, 640, 1);
                finish(w);
        }
        assert_in_range(took[0], SECOND, 4 * SECOND);
        assert_in_range(took[1], 1, took[0] / 3);
        /* In the middle of an hour's pause, too. */
        struct world *w = start(2, 640);

        set(w, TUNABLE_pass_millisecs, 3600000);
        world_run(w, SECOND);
        set(w, TUNABLE_pass_millisecs, 60000);
        world_run(w, SECOND);
        assert_int_equal(world_counters(w).full_scans, 1);
        core_set_pace(w->core, CORE_PACE_FAST, w->now_usec);
        world_run(w, 14 * SECOND);
        assert_int_equal(world_counters(w).full_scans, 2);
        finish(w);
}

/* Also when there is so much of it that reading takes longer than all the scans in which it settled. */
static void test_news_are_work_until_read(void **state) {
        struct world *w = start(1, 6400);
        uint64_t begin = w->now_usec;

        fill(w, 0, 0, 6400, 1);
        for (;;) {
                world_run(w, SECOND / 1000);
                if (world_counters(w).pages_scanned == 6400)
                        break;
                assert_true(core_has_work(w->core));
                assert_true(w->now_usec < begin + 60 * SECOND);
        }
        world_run(w, 10 * SECOND); /* nothing in it has an equal */
        assert_false(core_has_work(w->core));
        finish(w);
}

/* A shorter pass_millisecs holds for the pause that is under way. */
static void test_shorter_pause(void **state) {
        struct world *w = start(1, 64);

        set(w, TUNABLE_pass_millisecs, 3600000);
        world_run(w, 10 * SECOND);
        assert_int_equal(world_counters(w).full_scans, 1);
        set(w, TUNABLE_pass_millisecs, 1000);
        world_run(w, 10 * SECOND);
        assert_in_range(world_counters(w).full_scans, 10, 12);
        finish(w);
}

static void test_rest(void **state) {
        struct world *w = start(2, 640);
        uint64_t scans, reads;

        world_run(w, SECOND / 2);
        core_set_pace(w->core, CORE_PACE_REST, w->now_usec);
        scans = w->n_scans;
        reads = w->n_reads;
        fill(w, 0, 0, 640, 1);
        fill(w, 1, 0, 640, 1);
        world_process(w, w->processes[0].domain, 0, 64);
        world_run(w, 100 * SECOND);
        assert_int_equal(w->n_scans, scans);
        assert_int_equal(w->n_reads, reads);
        /* On demand all goes its way. */
        for (uint32_t i = 0; i < 2; i++)
                assert_int_equal(core_merge_now(w->core, w->processes[i].client, 0, 0, i, w->now_usec), 0);
        world_run(w, SECOND);
        assert_int_equal(w->n_events, 2);
        assert_int_equal(world_counters(w).pages_sharing, 640);
        /* And ends as if nothing had been. */
        fill(w, 0, 0, 640, 1000);
        fill(w, 1, 0, 640, 1000);
        world_run(w, 10 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 640);
        core_set_pace(w->core, CORE_PACE_NORMAL, w->now_usec);
        world_run(w, 120 * SECOND); /* a page that was shared for a short time only waits longer */
        assert_int_equal(world_counters(w).pages_sharing, 640);
        assert_true(w->n_scans > scans + 10);
        for (uint64_t k = 0; k < 640; k++)
                assert_int_equal(w->processes[1].pages[k].kind, KIND_FILE);
        finish(w);
}

/* Scans in ten seconds in which `n` of the processes rewrite all of their 1600 pages without end. */
static uint64_t scans_while_rewritten(struct world *w, unsigned n, uint32_t *content) {
        uint64_t before = 0;

        for (unsigned t = 0; t < 600; t++) {
                if (t == 100) /* the first passes have been counted */
                        before = w->n_scans;
                for (unsigned i = 0; i < n; i++, *content += 1600)
                        fill(w, i, 0, 1600, *content);
                world_run(w, SECOND / 50);
        }
        return w->n_scans - before;
}

/* The faults of processes that write may take a part of the processors' time, however many they are. */
static void test_processors_are_shared(void **state) {
        enum { N = 4 };
        uint32_t content = 1;
        uint64_t scans[N + 2], alone;

        for (unsigned n = 0; n <= N + 1; n++) {
                struct world *w = start(N, 1600);

                set(w, TUNABLE_pass_millisecs, 20);
                set(w, TUNABLE_smart_scan, 0);
                core_set_processors(w->core, n);
                scans[n] = scans_while_rewritten(w, N, &content);
                finish(w);
        }
        assert_in_range(scans[0], 10 * N * 8, 10 * N * 12); /* 1600 pages at 70 us each are 112 ms */
        assert_in_range(scans[N], scans[0] * 9 / 10, scans[0]);
        assert_in_range(scans[N + 1], scans[0] * 9 / 10, scans[0]);
        assert_in_range(scans[2] * 2, scans[0] * 8 / 10, scans[0] * 12 / 10);
        assert_in_range(scans[1] * 4, scans[0] * 8 / 10, scans[0] * 12 / 10);
        /* Those that rest, or are gone, leave theirs to the others. */
        struct world *w = start(N, 1600);

        set(w, TUNABLE_pass_millisecs, 20);
        set(w, TUNABLE_smart_scan, 0);
        core_set_processors(w->core, 1);
        (void) scans_while_rewritten(w, N, &content);
        for (unsigned i = 2; i < N; i++)
                world_exit(w, i);
        core_client_park(w->core, w->processes[1].client, true);
        alone = scans_while_rewritten(w, 1, &content);
        assert_in_range(alone, scans[0] / N * 9 / 10, scans[0] / N * 11 / 10);
        core_client_park(w->core, w->processes[1].client, false);
        world_run(w, 5 * SECOND);
        alone = scans_while_rewritten(w, 1, &content);
        assert_in_range(alone, scans[0] / N, UINT64_MAX); /* and the one that is quiet passes as it likes */
        finish(w);
}

/* What was reckoned at a longer period does not count for many times as much at a shorter one. */
static void test_rewrites_at_another_period(void **state) {
        struct world *w = start(1, 1600);
        uint32_t content = 1;
        uint64_t before;

        set(w, TUNABLE_smart_scan, 0);
        core_set_processors(w->core, 1);
        (void) scans_while_rewritten(w, 1, &content);
        set(w, TUNABLE_pass_millisecs, 10);
        before = w->n_scans;
        for (unsigned t = 0; t < 35; t++, content += 1600) {
                fill(w, 0, 0, 1600, content);
                world_run(w, SECOND / 50);
        }
        assert_in_range(w->n_scans - before, 5, 8); /* every 112 ms, as if it had been so always */
        finish(w);
}

/* What has settled waits, too. */
static void test_rest_reads_nothing(void **state) {
        struct world *w = start(1, 640);

        set(w, TUNABLE_pages_to_scan, 64);
        set(w, TUNABLE_sleep_millisecs, 1000);
        fill(w, 0, 0, 640, 1);
        world_run(w, 4 * SECOND);
        assert_in_range(world_counters(w).pages_scanned, 64, 5 * 64);
        uint64_t reads = w->n_reads;
        core_set_pace(w->core, CORE_PACE_REST, w->now_usec);
        world_run(w, 20 * SECOND);
        assert_int_equal(w->n_reads, reads);
        core_set_pace(w->core, CORE_PACE_FAST, w->now_usec);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).pages_scanned, 640);
        finish(w);
}

/* Rest and its end at any moment lose nothing. */
static void test_rest_at_any_time(void **state) {
        for (unsigned n = 0; n < 60; n++) {
                struct world *w = start(2, 640);

                fill(w, 0, 0, 640, 1);
                fill(w, 1, 0, 640, 1);
                world_run(w, n * SECOND / 12);
                for (unsigned i = 0; i < n % 7; i++)
                        world_step(w);
                core_set_pace(w->core, CORE_PACE_REST, w->now_usec);
                world_run(w, n % 5 * SECOND);
                core_set_pace(w->core, n % 2 ? CORE_PACE_NORMAL : CORE_PACE_FAST, w->now_usec);
                world_run(w, 30 * SECOND);
                assert_int_equal(world_counters(w).pages_sharing, 640);
                finish(w);
        }
}

static void test_has_work(void **state) {
        struct world *w = start(2, 6400);
        const uint32_t client = w->processes[0].client;

        assert_true(core_has_work(w->core)); /* what was registered */
        for (uint32_t i = 0; i < 2; i++)
                fill(w, i, 0, 3200, 1 + i * 100000);
        world_run(w, SECOND / 4);
        assert_true(core_has_work(w->core));
        world_run(w, 4 * SECOND);
        assert_false(core_has_work(w->core)); /* all read, no two equal */
        assert_int_equal(world_counters(w).pages_scanned, 6400);
        world_run(w, 60 * SECOND);
        assert_false(core_has_work(w->core));
        /* Equal ones appear in ranges that are known: as soon as they have been read. */
        fill(w, 0, 3200, 640, 500000);
        fill(w, 1, 3200, 640, 500000);
        for (unsigned t = 0; t < 40 && !core_has_work(w->core); t++)
                world_run(w, SECOND / 10);
        assert_true(core_has_work(w->core));
        world_run(w, 3 * SECOND);
        assert_false(core_has_work(w->core));
        assert_int_equal(world_counters(w).pages_sharing, 640);
        /* A hundredth is the least: unique ones by the thousand, and a few equal. */
        for (unsigned t = 0; t < 5; t++) {
                fill(w, 0, 0, 3200, 1000000 + 10000 * t);
                world_write(w, 0, 5, 1000000 + 10000 * t);
                world_write(w, 0, 50, 1000000 + 10000 * t);
                world_run(w, 3 * SECOND);
                assert_false(core_has_work(w->core));
        }
        /* News of every kind; known ranges are none. */
        assert_int_equal(core_range_add(w->core, client, 100, 100), 0);
        assert_false(core_has_work(w->core));
        world_register_anew(w, 0, 5000, 64);
        assert_true(core_has_work(w->core));
        world_run(w, 6 * SECOND);
        assert_false(core_has_work(w->core));
        core_client_park(w->core, client, true);
        assert_false(core_has_work(w->core));
        core_client_park(w->core, client, false);
        assert_true(core_has_work(w->core));
        world_run(w, 6 * SECOND);
        assert_false(core_has_work(w->core));
        set(w, TUNABLE_use_zero_pages, 0);
        assert_true(core_has_work(w->core));
        world_run(w, 6 * SECOND);
        assert_false(core_has_work(w->core));
        assert_int_equal(core_merge_now(w->core, client, 0, 0, 1, w->now_usec), 0);
        assert_true(core_has_work(w->core));
        /* Pages that take long to settle are waited for. */
        set(w, TUNABLE_settle_millisecs, 10000);
        world_run(w, 10 * SECOND);
        assert_true(core_has_work(w->core));
        world_run(w, 10 * SECOND);
        assert_false(core_has_work(w->core));
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
                cmocka_unit_test(test_advisor_ignores_rest),
                cmocka_unit_test(test_full_scan_reads),
                cmocka_unit_test(test_fast),
                cmocka_unit_test(test_news_are_work_until_read),
                cmocka_unit_test(test_shorter_pause),
                cmocka_unit_test(test_rest),
                cmocka_unit_test(test_processors_are_shared),
                cmocka_unit_test(test_rewrites_at_another_period),
                cmocka_unit_test(test_rest_reads_nothing),
                cmocka_unit_test(test_rest_at_any_time),
                cmocka_unit_test(test_has_work),
                cmocka_unit_test(test_smart_scan),
                cmocka_unit_test(test_pauses_of_nothing),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
