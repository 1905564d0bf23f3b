/* The core where memory is limited: it stops before the limit, lives on the reserve what must go on, and goes on when there is room.
 * On the simulated machine (tests/sim/world.h), which says what is left as the shell does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "tests/sim/world.h"

#define SECOND 1000000
#define MIB (UINT64_C(1) << 20)
#define LOOK_USEC (SECOND / 4)
#define NO_LIMIT UINT64_MAX
/* What lives on the reserve beside moves: ops, books of merges and of segments. */
#define SMALL_BYTES (MIB / 2)

static void fill(struct world *w, uint32_t process, uint64_t i, uint64_t n, uint32_t first) {
        for (uint64_t k = 0; k < n; k++)
                world_write(w, process, i + k, first + (uint32_t) k);
}

static uint64_t taken(const struct world *w) {
        return world_store_pages(w) * 4096 + (uint64_t) world_counters(w).metadata_bytes;
}

/* What the shell would say in a group that all that is simulated is charged to. Returns what is left. */
static uint64_t look(struct world *w, uint64_t limit) {
        uint64_t left = limit == NO_LIMIT ? NO_LIMIT : limit - MIN(limit, taken(w));

        bool is_short = core_memory_left(w->core, left);
        assert_int_equal(is_short, world_counters(w).memory_short);
        return left;
}

/* Time passes; the least that was ever left. */
static uint64_t run(struct world *w, uint64_t usec, uint64_t limit) {
        uint64_t least = look(w, limit);

        for (uint64_t t = 0; t < usec; t += LOOK_USEC) {
                world_run(w, LOOK_USEC);
                least = MIN(least, look(w, limit));
        }
        assert_null(core_check(w->core));
        return least;
}

static struct world *equal(uint32_t n_processes, uint64_t n_pages) {
        struct world *w = world_new(1, NULL);
        uint32_t d = world_domain(w, "a");

        for (uint32_t i = 0; i < n_processes; i++)
                fill(w, world_process(w, d, 0, n_pages), 0, n_pages, 1);
        return w;
}

static void finish(struct world *w) {
        assert_null(core_check(w->core));
        for (uint32_t i = 0; i < w->n_processes; i++)
                world_exit(w, i);
        world_run(w, SECOND);
        assert_int_equal(world_counters(w).segments, 0);
        world_free(w);
}

static void test_stops_before_the_limit(void **state) {
        enum { PAGES = 4096 };
        const uint64_t limit = CORE_MEMORY_RESERVE_BYTES + 6 * MIB;
        struct world *w = equal(2, PAGES);
        uint64_t least = run(w, 60 * SECOND, limit);

        assert_true(least + SMALL_BYTES >= CORE_MEMORY_RESERVE_BYTES);
        assert_true(least < CORE_MEMORY_RESERVE_BYTES + MIB);
        assert_int_equal(world_counters(w).memory_short, 1);
        assert_true(world_counters(w).failed_budget > 0);
        assert_in_range(world_counters(w).pages_sharing, 4 * MIB / 4096, 6 * MIB / 4096);
        /* Some more room, some more merged. */
        assert_true(run(w, 80 * SECOND, limit + 5 * MIB) + SMALL_BYTES >= CORE_MEMORY_RESERVE_BYTES);
        assert_in_range(world_counters(w).pages_sharing, 8 * MIB / 4096, 11 * MIB / 4096);
        (void) run(w, 80 * SECOND, NO_LIMIT);
        assert_int_equal(world_counters(w).memory_short, 0);
        assert_int_equal(world_counters(w).pages_sharing, PAGES);
        finish(w);
}

/* Between two looks the core counts what it hands out. */
static void test_counts_itself(void **state) {
        struct world *w = equal(2, 4096);

        (void) core_memory_left(w->core, CORE_MEMORY_RESERVE_BYTES + 3 * MIB);
        world_run(w, 60 * SECOND);
        assert_true(taken(w) <= 3 * MIB + SMALL_BYTES);
        assert_in_range(world_counters(w).pages_sharing, 2 * MIB / 4096, 3 * MIB / 4096);
        assert_int_equal(world_counters(w).memory_short, 1);
        finish(w);
}

/* Pages that are not known yet stay so; their process is not given up. */
static void test_knows_no_more(void **state) {
        struct world *w = equal(2, 512);
        uint64_t before;

        (void) core_memory_left(w->core, CORE_MEMORY_RESERVE_BYTES - MIB);
        before = (uint64_t) world_counters(w).metadata_bytes;
        world_run(w, 30 * SECOND);
        assert_int_equal(world_counters(w).tracked_pages, 0);
        assert_int_equal(world_counters(w).memory_short, 1);
        assert_in_range(world_counters(w).metadata_bytes, before, before + SMALL_BYTES / 8);
        (void) run(w, 30 * SECOND, NO_LIMIT);
        assert_int_equal(world_counters(w).pages_sharing, 512);
        finish(w);
}

/* On the reserve: zeros become holes, pages merge into what is shared, restores. On its second half merging ends too. */
static void test_lives_on_the_reserve(void **state) {
        struct world *w = equal(3, 512);
        uint64_t stored;

        (void) run(w, 10 * SECOND, NO_LIMIT);
        fill(w, 2, 0, 256, 5000);
        (void) run(w, 20 * SECOND, NO_LIMIT);
        assert_int_equal(world_counters(w).pages_sharing, 2 * 512 - 256);
        stored = world_store_pages(w);
        fill(w, 2, 0, 128, 1);
        for (unsigned i = 0; i < 64; i++)
                world_write(w, 2, 128 + i, 0);
        fill(w, 0, 300, 64, 7000);
        fill(w, 1, 300, 64, 7000);
        for (unsigned t = 0; t < 60; t++) {
                (void) core_memory_left(w->core, CORE_MEMORY_RESERVE_BYTES - MIB);
                world_run(w, SECOND / 2);
        }
        assert_int_equal(world_counters(w).ksm_zero_pages, 64);
        assert_int_equal(world_merged(w, 2), 256 + 128);
        assert_true(world_store_pages(w) <= stored);
        assert_int_equal(world_counters(w).memory_short, 1);
        fill(w, 2, 192, 64, 257); /* where it would take a new run */
        for (unsigned t = 0; t < 60; t++) {
                (void) core_memory_left(w->core, CORE_MEMORY_RESERVE_BYTES / 2 - MIB);
                world_run(w, SECOND / 2);
        }
        assert_int_equal(world_merged(w, 2), 256 + 128);
        (void) run(w, 130 * SECOND, NO_LIMIT);
        assert_int_equal(world_merged(w, 2), 256 + 128 + 64);
        assert_int_equal(world_counters(w).memory_short, 0);
        finish(w);
}

/* Sparse segments are emptied with the help of the reserve, which makes room; nothing is made private for it. */
static void test_cleans_on_the_reserve(void **state) {
        enum { PAGES = 4096 };
        struct world *w = equal(3, PAGES);
        uint64_t limit, private_most = 0;

        (void) run(w, 10 * SECOND, NO_LIMIT);
        assert_int_equal(world_counters(w).pages_sharing, 2 * PAGES);
        limit = taken(w) + CORE_MEMORY_RESERVE_BYTES - MIB;
        for (uint32_t i = 0; i < PAGES; i += 16)
                for (uint32_t p = 0; i % 48 && p < 3; p++)
                        world_discard(w, p, i, 16);
        for (unsigned t = 0; t < 400; t++) {
                uint64_t n = 0;

                (void) look(w, limit);
                world_run(w, SECOND / 4);
                for (uint32_t p = 0; p < 3; p++)
                        for (uint64_t i = 0; i < PAGES; i++)
                                n += w->processes[p].pages[i].kind == KIND_ANON;
                private_most = MAX(private_most, n);
        }
        assert_int_equal(private_most, 0);
        assert_int_equal(world_counters(w).pages_sharing, 2 * (PAGES / 48 + 1) * 16);
        assert_true(world_counters(w).dead_bytes <= world_counters(w).segment_bytes / 2);
        finish(w);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_stops_before_the_limit),
                cmocka_unit_test(test_counts_itself),
                cmocka_unit_test(test_knows_no_more),
                cmocka_unit_test(test_lives_on_the_reserve),
                cmocka_unit_test(test_cleans_on_the_reserve),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
