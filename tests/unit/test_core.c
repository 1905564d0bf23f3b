/* The core on a simulated machine (tests/sim/world.h), one behaviour a test; the books are recomputed after each. */
#include <stdlib.h>

#include "tests/unit/machine.h"

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

/* What the index stores beside an entry narrows the search; all of the hash decides. */
static void test_equal_keys(void **state) {
        struct world *w = start(3, 64);

        w->same_keys = true;
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
                cmocka_unit_test(test_full_segments_are_sealed),
                cmocka_unit_test(test_equal_keys),
                cmocka_unit_test(test_copy_on_write),
                cmocka_unit_test(test_pinned_backs_off),
                cmocka_unit_test(test_domains_do_not_share),
                cmocka_unit_test(test_churn_levels_off),
                cmocka_unit_test(test_segment_bound),
                cmocka_unit_test(test_vma_limit_of_the_kernel),
                cmocka_unit_test(test_allocation_failure),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
