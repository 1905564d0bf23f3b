/* The core on a simulated machine (tests/sim/world.h), one behaviour a test; the books are recomputed after each. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/sim/world.h"

#define SECOND 1000000

static struct world *start(uint32_t n_processes, uint64_t n_pages) {
        struct world *w = world_new(1, NULL);
        uint32_t d = world_domain(w, "a");

        for (uint32_t i = 0; i < n_processes; i++)
                world_process(w, d, 0, n_pages);
        return w;
}

static void finish(struct world *w) {
        assert_null(core_check(w->core));
        for (uint32_t i = 0; i < w->n_processes; i++)
                if (w->processes[i].is_alive)
                        world_exit(w, i);
        world_run(w, SECOND);
        assert_null(core_check(w->core));
        assert_int_equal(world_counters(w).tracked_pages, 0);
        assert_int_equal(world_counters(w).domains, 0);
        world_free(w);
}

static void fill(struct world *w, uint32_t process, uint64_t i, uint64_t n, uint32_t first) {
        for (uint64_t k = 0; k < n; k++)
                world_write(w, process, i + k, first + (uint32_t) k);
}

static void test_two_equal_pages(void **state) {
        struct world *w = start(2, 64);
        struct counters n;

        world_write(w, 0, 3, 5);
        world_write(w, 1, 9, 5);
        world_run(w, 8 * SECOND); /* a short run waits two passes */
        n = world_counters(w);
        assert_int_equal(n.pages_shared, 1);
        assert_int_equal(n.pages_sharing, 1);
        assert_int_equal(n.pages_unshared, 0);
        assert_int_equal(n.runs, 2);
        assert_int_equal(n.vmas_used, 4);
        finish(w);
}

/* Counts after merging N equal pages with cap M, for all small N and M. */
static void test_max_page_sharing(void **state) {
        for (unsigned m = 2; m <= 4; m++)
                for (unsigned k = 2; k <= 11; k++) {
                        struct world *w = start(k, 64);
                        unsigned q = k / m, r = k % m;
                        struct counters n;

                        assert_int_equal(core_tunable_set(w->core, TUNABLE_max_page_sharing, m, w->now_usec), 0);
                        for (uint32_t i = 0; i < k; i++)
                                world_write(w, i, 3, 5);
                        world_run(w, 30 * SECOND);
                        n = world_counters(w);
                        assert_int_equal(n.pages_shared, r < 2 ? q : q + 1);
                        assert_int_equal(n.pages_sharing, r < 2 ? q * (m - 1) : k - q - 1);
                        assert_int_equal(n.pages_unshared, r == 1);
                        assert_int_equal(n.stable_node_chains, n.pages_shared > 1);
                        assert_int_equal(n.stable_node_dups, n.pages_shared > 1 ? n.pages_shared : 0);
                        finish(w);
                }
}

static void test_zero_pages(void **state) {
        struct world *w = start(1, 64);

        fill(w, 0, 0, 4, 1);
        for (unsigned i = 8; i < 24; i++)
                world_write(w, 0, i, 0);
        world_run(w, 6 * SECOND);
        assert_int_equal(world_counters(w).ksm_zero_pages, 16);
        assert_int_equal(world_counters(w).vmas_used, 0);
        assert_int_equal(world_counters(w).tracked_pages, 4);
        world_write(w, 0, 9, 77);
        world_run(w, 2 * SECOND);
        assert_int_equal(world_counters(w).ksm_zero_pages, 15);
        finish(w);
}

/* Zeros are contents like any other when use_zero_pages is 0. */
static void test_zeros_as_contents(void **state) {
        struct world *w = start(2, 64);

        assert_int_equal(core_tunable_set(w->core, TUNABLE_use_zero_pages, 0, w->now_usec), 0);
        for (uint32_t i = 0; i < 2; i++)
                for (unsigned k = 8; k < 24; k++)
                        world_write(w, i, k, 0);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).ksm_zero_pages, 0);
        assert_int_equal(world_counters(w).pages_sharing, 31);
        finish(w);
}

/* Dead slots of the segment that is still being filled stand in the way of a small domain's bound. */
static void test_small_domain_lives_long(void **state) {
        struct world *w = start(2, 64);

        for (uint32_t round = 0; round < 20; round++) {
                for (uint32_t i = 0; i < 2; i++)
                        fill(w, i, 0, 64, 1 + round * 100);
                world_run(w, 60 * SECOND);
                assert_int_equal(world_counters(w).pages_sharing, 64);
        }
        finish(w);
}

/* A full segment is sealed for good, also when who had slots in it exits without using them. */
static void test_full_segments_are_sealed(void **state) {
        struct world *w = start(5, 2048);

        for (uint32_t i = 0; i < 3; i++)
                fill(w, i, 0, 8, 1);
        world_run(w, 20 * SECOND);
        assert_int_equal(w->n_segments, 1);
        world_exit(w, 0);
        world_exit(w, 1);
        for (uint32_t i = 3; i < 5; i++)
                fill(w, i, 0, 2048, 1000);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 2048);
        assert_true(w->n_segments >= 4);
        assert_in_range(world_unsealed(w), 0, 1); /* the one that is being filled */
        finish(w);
}

static unsigned writers; /* of the two, as bits */

static void write_pages(struct world *w) {
        for (uint32_t i = 0; i < w->n_processes; i++)
                if (writers & 1U << i)
                        world_write(w, i, 3, 600 + i);
        world_scan(w);
}

/* Written while a worker has it: what was read, and what was published, is of another time. */
static void test_written_meanwhile(void **state) {
        for (unsigned of = MEANWHILE_READ; of <= MEANWHILE_PUBLISHED; of++)
                for (writers = 1; writers <= 3; writers++) {
                        struct world *w = start(2, 64);

                        for (uint32_t i = 0; i < 2; i++)
                                world_write(w, i, 3, 5);
                        w->meanwhile = write_pages;
                        w->meanwhile_of = of;
                        world_run(w, 20 * SECOND);
                        assert_null(w->meanwhile);
                        assert_int_equal(world_counters(w).pages_unshared, 2);
                        assert_int_equal(world_counters(w).failed_changed, 0);
                        for (uint32_t i = 0; i < 2; i++)
                                world_write(w, i, 3, 600);
                        world_run(w, 20 * SECOND);
                        assert_int_equal(world_counters(w).pages_sharing, 1);
                        finish(w);
                }
}

static void leave_chain(struct world *w) {
        world_write(w, 0, 3, 99);
        world_scan(w);
}

/* A full chain has room again while a dup of it is being published. */
static void test_dup_not_needed(void **state) {
        struct world *w = start(4, 64);

        assert_int_equal(core_tunable_set(w->core, TUNABLE_max_page_sharing, 2, w->now_usec), 0);
        for (uint32_t i = 0; i < 2; i++)
                world_write(w, i, 3, 5);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 1);
        for (uint32_t i = 2; i < 4; i++)
                world_write(w, i, 3, 5);
        w->meanwhile = leave_chain;
        w->meanwhile_of = MEANWHILE_PUBLISHED;
        world_run(w, 20 * SECOND);
        assert_null(w->meanwhile);
        assert_int_equal(world_counters(w).pages_shared, 1);
        assert_int_equal(world_counters(w).pages_sharing, 1);
        assert_int_equal(world_counters(w).pages_unshared, 2);
        finish(w);
}

static unsigned publishes_until;

static void others_go_on(struct world *w) {
        if (--publishes_until == 0)
                world_pump(w);
        else
                w->meanwhile = others_go_on;
}

/* One publish is under way when the last slot of its segment is written by another: the world sees that it is sealed after both. */
static void test_not_sealed_while_written(void **state) {
        enum { SLOTS = 512, FEW = 128, PUBLISHES = SLOTS / 64 }; /* few: a strip */

        for (unsigned at = 1; at < PUBLISHES; at++) {
                struct world *w = start(2, 2 * SLOTS);

                for (uint32_t half = 0; half < 2; half++) {
                        fill(w, 0, half * FEW, FEW, 1);
                        fill(w, 1, half * (SLOTS - FEW), SLOTS - FEW, 1000);
                }
                publishes_until = at;
                w->meanwhile = others_go_on;
                w->meanwhile_of = MEANWHILE_PUBLISHED;
                world_run(w, 20 * SECOND);
                assert_null(w->meanwhile);
                assert_int_equal(world_counters(w).pages_sharing, SLOTS);
                assert_int_equal(w->n_segments, 1);
                assert_int_equal(w->n_sealed, 1);
                finish(w);
        }
}

static void unregister(struct world *w) {
        for (uint32_t i = 0; i < w->n_processes; i++) {
                memset(w->processes[i].pages, 0, 64 * sizeof(*w->processes[i].pages));
                assert_int_equal(core_range_remove(w->core, w->processes[i].client, 0, 64), 0);
        }
}

/* The range goes while the agent works on it: its answer is about nothing that is known. */
static void test_unregistered_while_merging(void **state) {
        struct world *w = start(2, 64);

        for (uint32_t i = 0; i < 2; i++)
                fill(w, i, 0, 64, 1);
        w->meanwhile = unregister;
        w->meanwhile_of = MEANWHILE_APPLIED;
        world_run(w, 20 * SECOND);
        assert_null(w->meanwhile);
        assert_null(core_check(w->core));
        assert_int_equal(world_counters(w).tracked_pages, 0);
        assert_int_equal(world_counters(w).vmas_used, 0);
        finish(w);
}

static void unmerge_both(struct world *w) {
        for (uint32_t i = 0; i < 2; i++)
                assert_int_equal(core_unmerge(w->core, w->processes[i].client, 0, 0, i, w->now_usec), 0);
        world_pump(w);
}

/* A block in transition is asked to be restored: that waits for the answer (the world sees to it). */
static void test_one_transition_a_block(void **state) {
        struct world *w = start(2, 64);

        for (uint32_t i = 0; i < 2; i++)
                fill(w, i, 0, 32, 1);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 32);
        for (uint32_t i = 0; i < 2; i++)
                fill(w, i, 32, 32, 100);
        w->meanwhile = unmerge_both;
        w->meanwhile_of = MEANWHILE_APPLIED;
        world_run(w, 20 * SECOND);
        assert_null(w->meanwhile);
        assert_int_equal(w->n_events, 2);
        assert_int_equal(world_merged(w, 0) + world_merged(w, 1), 0);
        finish(w);
}

static unsigned reads_until_stop;

static void stop_merging(struct world *w) {
        if (--reads_until_stop > 0)
                w->meanwhile = stop_merging;
        else
                assert_int_equal(core_tunable_set(w->core, TUNABLE_run, 0, w->now_usec), 0);
}

/* After each of the reads: what is read by then is queued to be published. */
static void test_stopped_before_publish(void **state) {
        enum { BLOCKS = 8, READS = 2 * BLOCKS * 64 / CORE_READ_PAGES };

        for (unsigned at = 1; at <= READS; at++) {
                struct world *w = start(2, BLOCKS * 64);

                for (uint32_t i = 0; i < 2; i++)
                        fill(w, i, 0, BLOCKS * 64, 1);
                reads_until_stop = at;
                w->meanwhile = stop_merging;
                world_run(w, 20 * SECOND);
                assert_null(w->meanwhile);
                assert_int_equal(w->n_segments, 0);
                assert_int_equal(w->n_applies, 0);
                finish(w);
        }
}

static void unmerge_all(struct world *w) {
        assert_int_equal(core_tunable_set(w->core, TUNABLE_run, 2, w->now_usec), 0);
}

/* What was planned before is not merged after all. */
static void test_unmerged_before_merge(void **state) {
        struct world *w = start(2, 64);

        for (uint32_t i = 0; i < 2; i++)
                fill(w, i, 0, 64, 1);
        w->meanwhile = unmerge_all;
        w->meanwhile_of = MEANWHILE_PUBLISHED;
        world_run(w, 20 * SECOND);
        assert_null(w->meanwhile);
        assert_int_equal(world_counters(w).merges, 0);
        assert_int_equal(world_merged(w, 0) + world_merged(w, 1), 0);
        finish(w);
}

/* What the index stores beside an entry narrows the search; the key decides. */
static void test_equal_tags(void **state) {
        struct world *w = start(3, 64);

        w->same_tags = true;
        fill(w, 0, 0, 32, 1);
        fill(w, 1, 0, 64, 1);
        world_run(w, 10 * SECOND);
        fill(w, 2, 0, 64, 1);
        world_run(w, 10 * SECOND);
        assert_int_equal(world_counters(w).pages_shared, 64);
        assert_int_equal(world_counters(w).pages_sharing, 96);
        assert_int_equal(world_counters(w).failed_changed, 0);
        finish(w);
}

static void test_copy_on_write(void **state) {
        struct world *w = start(2, 64);

        fill(w, 0, 0, 64, 1);
        fill(w, 1, 0, 64, 1);
        world_run(w, 6 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 64);
        fill(w, 1, 0, 8, 1000);
        world_run(w, 2 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 56);
        assert_int_equal(world_counters(w).unshares, 8);
        /* What nobody shares any more still takes memory, and is no profit. */
        fill(w, 0, 0, 8, 3000);
        world_run(w, SECOND + SECOND / 2);
        assert_int_equal(world_counters(w).dead_bytes, 8 * 4096);
        assert_int_equal(world_counters(w).general_profit,
                         (56 - 8) * 4096 - world_counters(w).metadata_bytes);
        assert_int_equal(world_counters(w).vmas_used, 4); /* a page copied on write stays in the mapping */
        /* With less than a quarter live at two looks the run is restored, and what is equal still merges again. */
        fill(w, 1, 8, 42, 2000);
        world_run(w, 2 * SECOND);
        assert_true(w->processes[1].pages[0].in_file);
        world_run(w, 40 * SECOND);
        assert_false(w->processes[1].pages[0].in_file);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 14);
        finish(w);
}

static void test_pinned_backs_off(void **state) {
        struct world *w = start(2, 64);
        uint64_t applies;

        fill(w, 0, 0, 64, 1);
        fill(w, 1, 0, 64, 1);
        for (unsigned i = 0; i < 64; i++)
                w->processes[1].pages[i].is_pinned = true;
        world_run(w, 200 * SECOND);
        applies = w->n_applies;
        assert_in_range(world_counters(w).failed_pinned_or_forked, 64, 64 * 9);
        assert_true(applies <= 12);
        for (unsigned i = 0; i < 64; i++)
                w->processes[1].pages[i].is_pinned = false;
        world_run(w, 140 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 64);
        finish(w);
}

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

/* A scan that was under way must not bring back what is unmerged. */
static void test_unmerged_while_scanned(void **state) {
        struct world *w = start(1, 64);
        const struct core_run written = { .page = 3, .n_pages = 1, .categories = CORE_WRITTEN };
        struct core_scan s;
        uint64_t next;

        world_write(w, 0, 3, 5);
        assert_true(core_next_scan(w->core, w->now_usec, &s, &next));
        assert_int_equal(core_unmerge(w->core, w->processes[0].client, 0, 0, 1, w->now_usec), 0);
        core_scan_done(w->core, s.op, w->now_usec, &written, 1, s.page + s.n_pages, 0);
        assert_int_equal(world_counters(w).tracked_pages, 0);
        world_run(w, 10 * SECOND);
        assert_int_equal(w->n_events, 1);
        assert_int_equal(world_counters(w).tracked_pages, 0);
        finish(w);
}

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

/* A large interval is forgotten in steps; what a scan says meanwhile of its rest must not be forgotten with it. */
static void test_scanned_while_forgotten(void **state) {
        enum { BLOCKS = 200 };
        struct world *w = start(1, BLOCKS * 64);
        const struct core_run written = { .page = (BLOCKS - 1) * 64, .n_pages = 1, .categories = CORE_WRITTEN };
        struct core_scan s;
        uint64_t next;

        for (uint32_t i = 0; i < BLOCKS; i++)
                world_write(w, 0, i * 64, 1 + i);
        world_run(w, 3 * SECOND);
        assert_int_equal(world_counters(w).tracked_pages, BLOCKS);
        w->now_usec += 2 * SECOND;
        assert_int_equal(core_pages_gone(w->core, w->processes[0].client, 0, BLOCKS * 64), 0);
        assert_true(core_next_scan(w->core, w->now_usec, &s, &next));
        core_scan_done(w->core, s.op, w->now_usec, &written, 1, s.page + s.n_pages, 0);
        world_run(w, 4 * SECOND);
        assert_int_equal(world_counters(w).tracked_pages, BLOCKS); /* a look found them all */
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

static void test_domains_do_not_share(void **state) {
        struct world *w = start(1, 64);
        uint32_t other = world_domain(w, "b");

        world_process(w, other, 0, 64);
        fill(w, 0, 0, 64, 1);
        fill(w, 1, 0, 64, 1);
        world_run(w, 8 * SECOND);
        assert_int_equal(world_counters(w).pages_shared, 0);
        assert_int_equal(world_counters(w).domains, 2);
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

/* Ops answered after their client is gone, with results that would have changed much. */
static void test_answers_after_exit(void **state) {
        struct world *w = start(2, 64);

        fill(w, 0, 0, 64, 1);
        fill(w, 1, 0, 64, 1);
        for (unsigned t = 0; t < 20000 && world_counters(w).pages_shared == 0; t++) {
                for (unsigned n = 0; n < 8; n++)
                        world_step(w);
                w->now_usec += 10000;
        }
        assert_true(w->n_ops > 0 || world_counters(w).pages_shared > 0);
        world_exit(w, 0);
        world_exit(w, 1);
        (void) core_tick(w->core, w->now_usec);
        core_scan_done(w->core, 12345, w->now_usec, NULL, 0, 0, 0);
        (void) core_apply_done(w->core, UINT64_MAX, w->now_usec, NULL, -EIO);
        finish(w);
}

/* Places in the books are given again; an id that was given for one names nobody then. */
static void test_ids_of_the_gone(void **state) {
        struct world *w = start(1, 64);
        const struct core_client_config config = {};
        uint32_t old_domain = w->processes[0].domain, old_client = w->processes[0].client, domain, client;
        struct core_client_counters counters;

        world_exit(w, 0);
        (void) core_tick(w->core, w->now_usec);
        assert_int_equal(world_counters(w).domains, 0);
        assert_int_equal(core_domain(w->core, "b", 1, &domain), 0);
        assert_int_not_equal(core_client_add(w->core, old_domain, &config, &client), 0);
        assert_int_equal(core_client_add(w->core, domain, &config, &client), 0);
        assert_int_equal(client & 0xffff, old_client & 0xffff); /* the same place */
        assert_int_not_equal(core_client_counters(w->core, old_client, &counters), 0);
        assert_int_not_equal(core_range_add(w->core, old_client, 0, 64), 0);
        core_client_gone(w->core, old_client);
        assert_int_equal(core_client_counters(w->core, client, &counters), 0);
        core_client_gone(w->core, client);
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

/* Rewriting and merging again for long: dead slots do not pile up, nor do books. */
static void test_churn_levels_off(void **state) {
        struct world *w = start(2, 2048);
        struct counters n;

        fill(w, 0, 0, 2048, 1);
        fill(w, 1, 0, 2048, 1);
        for (uint32_t round = 0; round < 40; round++) {
                for (uint32_t k = 0; k < 20; k++) {
                        uint64_t at = world_random(w, 2048 - 32);

                        fill(w, 0, at, 32, 10000 + 1000 * round + 32 * k);
                        fill(w, 1, at, 32, 10000 + 1000 * round + 32 * k);
                }
                world_run(w, 20 * SECOND);
        }
        world_run(w, 140 * SECOND);
        n = world_counters(w);
        print_message("sharing %d, dead %d of %d KiB, VMAs %d\n", (int) n.pages_sharing, (int) n.dead_bytes / 1024,
                      (int) n.segment_bytes / 1024, (int) n.vmas_used);
        assert_true(n.pages_sharing >= 2048 * 8 / 10);
        assert_true(n.dead_bytes <= n.segment_bytes * 6 / 10);
        assert_true(w->n_dropped > 4);
        finish(w);
}

/* Shared bytes of a domain stay within a share of what it registered. */
static void test_segment_bound(void **state) {
        enum { PAGES = 8192, MOST = 2 * PAGES / 10 };
        struct world *w = start(2, PAGES);

        assert_int_equal(core_tunable_set(w->core, TUNABLE_segment_share_permille, 100, w->now_usec), 0);
        fill(w, 0, 0, PAGES, 1);
        fill(w, 1, 0, PAGES, 1);
        world_run(w, 20 * SECOND);
        assert_in_range(world_counters(w).pages_shared, MOST / 2, MOST);
        assert_true(world_counters(w).failed_budget > 0);
        /* Nothing is to be had from cleaning where all is shared. */
        world_run(w, 20 * SECOND);
        assert_int_equal(w->n_dropped, 0);
        assert_int_equal(w->n_relocated, 0);
        finish(w);
}

/* Dead slots are bounded too, even when nothing is cleaned. */
static void test_dead_slots_are_bounded(void **state) {
        struct world *w = start(2, 512);

        assert_int_equal(core_tunable_set(w->core, TUNABLE_stable_node_chains_prune_millisecs, 3600000, w->now_usec), 0);
        /* A few pages of each round stay: no segment dies whole. */
        for (uint32_t round = 0; round < 12; round++) {
                for (uint32_t i = 0; i < 2; i++)
                        fill(w, i, 16 * round, 400 - 16 * round, 1000 + round * 512);
                world_run(w, 20 * SECOND);
        }
        /* Half of what is registered may be live, half as much again dead. */
        assert_in_range(world_counters(w).segment_bytes, 1, 4096 * 512 * 3 / 2);
        finish(w);
}

static void test_vma_limit_of_the_kernel(void **state) {
        struct world *w = start(2, 1024);

        w->processes[1].vmas_max = 6;
        for (unsigned i = 0; i < 1024; i += 32) {
                fill(w, 0, i, 16, 1 + i);
                fill(w, 1, i, 16, 1 + i);
        }
        world_run(w, 60 * SECOND);
        assert_true(world_vmas(w, 1) <= 6);
        assert_true(world_counters(w).failed_budget > 0);
        assert_true(w->n_applies < 400); /* left alone for a while each time */
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

/* -- no memory: every allocation of a busy history fails once ----------------------------------------------------------- */

struct failing {
        unsigned count, fail_at;
};

static void *failing_realloc(void *userdata, void *p, size_t size) {
        struct failing *f = userdata;

        return ++f->count == f->fail_at ? NULL : realloc(p, size);
}
static void failing_free(void *userdata, void *p) {
        free(p);
}

/* True: the failing allocation was reached. */
static bool run_with_failure(unsigned at) {
        struct failing f = { .fail_at = at };
        struct core_allocator a = { failing_realloc, failing_free, &f };
        struct world *w = world_new(1, &a);
        uint32_t d;

        if (!w)
                return true;
        (void) core_tunable_set(w->core, TUNABLE_max_page_sharing, 2, w->now_usec);
        d = world_domain(w, "a");
        for (uint32_t i = 0; i < 5; i++)
                if (world_process(w, d, 0, 256) == i)
                        fill(w, i, 0, 200, 1);
        world_run(w, 6 * SECOND);
        assert_null(core_check(w->core));
        if (w->n_processes > 1) {
                (void) core_merge_now(w->core, w->processes[1].client, 0, 256, 1, w->now_usec);
                world_run(w, SECOND);
                (void) core_unmerge(w->core, w->processes[1].client, 10, 20, 2, w->now_usec);
                fill(w, 0, 0, 100, 500);
                world_run(w, 4 * SECOND);
                assert_null(core_check(w->core));
        }
        f.fail_at = 0;
        world_run(w, 140 * SECOND);
        if (w->n_processes == 5)
                assert_true(world_counters(w).pages_sharing >= 200);
        finish(w);
        return f.count >= at;
}

static void test_allocation_failure(void **state) {
        unsigned n = 1;

        while (run_with_failure(n))
                n++;
        print_message("%u allocations failed in turn\n", n - 1);
        assert_true(n > 50);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_two_equal_pages),
                cmocka_unit_test(test_max_page_sharing),
                cmocka_unit_test(test_zero_pages),
                cmocka_unit_test(test_small_domain_lives_long),
                cmocka_unit_test(test_zeros_as_contents),
                cmocka_unit_test(test_dead_slots_are_bounded),
                cmocka_unit_test(test_written_meanwhile),
                cmocka_unit_test(test_dup_not_needed),
                cmocka_unit_test(test_not_sealed_while_written),
                cmocka_unit_test(test_unregistered_while_merging),
                cmocka_unit_test(test_one_transition_a_block),
                cmocka_unit_test(test_stopped_before_publish),
                cmocka_unit_test(test_unmerged_before_merge),
                cmocka_unit_test(test_full_segments_are_sealed),
                cmocka_unit_test(test_equal_tags),
                cmocka_unit_test(test_copy_on_write),
                cmocka_unit_test(test_pinned_backs_off),
                cmocka_unit_test(test_merge_now),
                cmocka_unit_test(test_merge_now_lets_settle),
                cmocka_unit_test(test_unmerge_range),
                cmocka_unit_test(test_unmerged_while_scanned),
                cmocka_unit_test(test_scan_results_are_cut),
                cmocka_unit_test(test_scanned_while_forgotten),
                cmocka_unit_test(test_run_2_empties_the_store),
                cmocka_unit_test(test_domains_do_not_share),
                cmocka_unit_test(test_sparse_range),
                cmocka_unit_test(test_vanished_pages),
                cmocka_unit_test(test_scan_that_failed),
                cmocka_unit_test(test_answers_after_exit),
                cmocka_unit_test(test_ids_of_the_gone),
                cmocka_unit_test(test_parked_is_not_asked),
                cmocka_unit_test(test_churn_levels_off),
                cmocka_unit_test(test_segment_bound),
                cmocka_unit_test(test_vma_limit_of_the_kernel),
                cmocka_unit_test(test_tunables),
                cmocka_unit_test(test_a_stop_loses_nothing),
                cmocka_unit_test(test_requests_end_when_stopped),
                cmocka_unit_test(test_full_scans),
                cmocka_unit_test(test_allocation_failure),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
