/* A core that takes over what an earlier one left: slots found again, runs that agents report, the grace, and lies; on the simulated
 * machine (tests/sim/world.h). The books are recomputed after each. */
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
#define PAGES 256

static void fill(struct world *w, uint32_t process, uint32_t first) {
        for (uint32_t k = 0; k < PAGES; k++)
                world_write(w, process, k, first + k);
}

/* n processes with the same memory, all of it merged, under the next daemon. */
static struct world *restarted(uint32_t n, unsigned lost_permille) {
        struct world *w = world_new(1, NULL);
        uint32_t d = world_domain(w, "a");

        for (uint32_t i = 0; i < n; i++)
                fill(w, world_process(w, d, 0, PAGES), 1);
        world_run(w, 10 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, (n - 1) * PAGES);
        w->n_reads = w->n_applies = 0;
        world_restart(w, lost_permille);
        assert_null(core_check(w->core));
        return w;
}

static void grace_ends(struct world *w) {
        assert_int_equal(core_tunable_set(w->core, TUNABLE_adopt_grace_millisecs, 0, w->now_usec), 0);
        world_pump(w);
        assert_null(core_check(w->core));
}

static void finish(struct world *w) {
        for (uint32_t i = 0; i < w->n_processes; i++)
                if (w->processes[i].is_alive)
                        world_exit(w, i);
        grace_ends(w);
        world_run(w, SECOND);
        assert_null(core_check(w->core));
        assert_int_equal(world_counters(w).tracked_pages, 0);
        assert_int_equal(world_counters(w).segments, 0);
        assert_int_equal(world_counters(w).domains, 0);
        world_free(w);
}

static void test_books_come_back(void **state) {
        struct world *w = restarted(3, 0);
        struct counters n = world_counters(w);

        assert_int_equal(n.pages_shared, PAGES);
        assert_int_equal(n.pages_sharing, 2 * PAGES);
        assert_int_equal(n.pages_adopted, 3 * PAGES);
        assert_int_equal(n.vmas_used, (int64_t) (world_vmas(w, 0) + world_vmas(w, 1) + world_vmas(w, 2)));
        /* Looked at, found to be so, and nothing done again. */
        world_run(w, 40 * SECOND);
        grace_ends(w);
        n = world_counters(w);
        assert_int_equal(n.pages_shared, PAGES);
        assert_int_equal(n.pages_sharing, 2 * PAGES);
        assert_int_equal(n.dead_bytes, 0);
        assert_int_equal(w->n_applies, 0);
        assert_int_equal(w->n_reads, 0);
        finish(w);
}

static void test_new_pages_share_old_slots(void **state) {
        struct world *w = restarted(2, 0);
        uint64_t stored = world_store_pages(w);

        fill(w, world_process(w, w->domains[0].id, 0, PAGES), 1);
        world_run(w, 10 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 2 * PAGES);
        assert_int_equal(world_store_pages(w), stored);
        finish(w);
}

/* A copy of a cap more than once, before and after: each slot on its own is found again. */
static void test_chains_come_back(void **state) {
        struct world *w = world_new(1, NULL);
        uint32_t d = world_domain(w, "a");
        struct counters before, after;

        assert_int_equal(core_tunable_set(w->core, TUNABLE_max_page_sharing, 4, w->now_usec), 0);
        for (uint32_t i = 0; i < 10; i++)
                world_write(w, world_process(w, d, 0, 64), 5, 77);
        world_run(w, 30 * SECOND);
        before = world_counters(w);
        assert_int_equal(before.stable_node_dups, 3);
        world_restart(w, 0);
        after = world_counters(w);
        assert_int_equal(after.stable_node_dups, 3);
        assert_int_equal(after.stable_node_chains, 1);
        assert_int_equal(after.pages_shared, before.pages_shared);
        assert_int_equal(after.pages_sharing, before.pages_sharing);
        /* A cap below what is there is no reason to refuse what is there; nothing more is merged into it. */
        assert_int_equal(core_tunable_set(w->core, TUNABLE_max_page_sharing, 2, w->now_usec), 0);
        world_restart(w, 0);
        assert_int_equal(world_counters(w).pages_sharing, before.pages_sharing);
        assert_null(core_check(w->core));
        finish(w);
}

static void test_grace(void **state) {
        struct world *w = restarted(2, 0);

        for (uint32_t i = 0; i < 2; i++)
                world_exit(w, i);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).segments, 1);
        /* Who comes in time finds them. */
        for (uint32_t i = 0; i < 2; i++)
                fill(w, world_process(w, w->domains[0].id, 0, PAGES), 1);
        world_run(w, 10 * SECOND);
        assert_int_equal(world_counters(w).segments, 1);
        assert_int_equal(world_counters(w).pages_sharing, PAGES);
        for (uint32_t i = 2; i < 4; i++)
                world_exit(w, i);
        world_run(w, 40 * SECOND); /* 70 s since */
        assert_int_equal(world_counters(w).segments, 0);
        finish(w);
}

static void test_lost_segments(void **state) {
        struct world *w = restarted(3, 1000);

        assert_int_equal(world_counters(w).segments_adopted, 0);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 0); /* they still share, nobody counts it */
        for (uint32_t i = 0; i < 3; i++)
                fill(w, i, 1000);
        world_run(w, 30 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 2 * PAGES);
        finish(w);
}

/* What the kernel does not show is forgotten with the next look; what cannot be true is not taken at all. */
static void test_lies(void **state) {
        struct world *w = restarted(2, 0);
        uint32_t liar = world_process(w, w->domains[0].id, 1000, 2 * PAGES);
        uint32_t client = w->processes[liar].client, stranger, segment = w->segments[0].id;

        fill(w, liar, 5000); /* private pages where it says that it shares */
        assert_int_equal(core_run_adopt(w->core, client, 1000, 64, segment, 0), 64);
        assert_int_equal(core_run_adopt(w->core, client, 1000 + PAGES, 64, segment, 64), 64); /* nothing is there */
        assert_int_equal(core_run_adopt(w->core, client, 1000, 64, segment, 0), 0);            /* known already */
        assert_int_equal(core_run_adopt(w->core, client, 900, 64, segment, 0), 0);             /* not registered */
        assert_int_equal(core_run_adopt(w->core, client, 1000, 64, segment + 1, 0), 0);
        assert_int_equal(core_run_adopt(w->core, client, 1000, 64, segment, 512 - 32), 0);     /* beyond its end */
        assert_int_equal(core_run_adopt(w->core, client, 1100, 64, segment, 400), 0);          /* never written */
        assert_int_equal(core_run_adopt(w->core, client, UINT64_MAX, 2, segment, 0), 0);
        assert_int_equal(core_run_adopt(w->core, client + 1, 1000, 1, segment, 0), 0);
        stranger = world_process(w, world_domain(w, "b"), 1000, PAGES);
        assert_int_equal(core_run_adopt(w->core, w->processes[stranger].client, 1000, 64, segment, 0), 0); /* I4 */
        assert_int_equal(world_counters(w).pages_sharing, PAGES + 128);
        assert_null(core_check(w->core));
        world_run(w, 10 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, PAGES);
        assert_int_equal(world_merged(w, liar), 0);
        finish(w);
}

static void test_wrong_arguments(void **state) {
        struct world *w = world_new(1, NULL);
        uint32_t d = world_domain(w, "a"), segment;

        assert_int_equal(core_segment_adopt(w->core, d + 1, 512, -1, &segment), -ENOENT);
        assert_int_equal(core_segment_adopt(w->core, d, 0, -1, &segment), -EINVAL);
        assert_int_equal(core_segment_adopt(w->core, d, 100, -1, &segment), -EINVAL);
        assert_int_equal(core_segment_adopt(w->core, d, 1024, -1, &segment), 0);
        assert_int_equal(core_slot_adopt(w->core, d, segment, 1024, 1), -EINVAL);
        assert_int_equal(core_slot_adopt(w->core, d, segment + 1, 0, 1), -EINVAL);
        assert_int_equal(core_slot_adopt(w->core, d + 1, segment, 0, 1), -EINVAL);
        assert_int_equal(core_slot_adopt(w->core, d, segment, 0, 1), 0);
        assert_int_equal(core_slot_adopt(w->core, d, segment, 0, 1), -EINVAL); /* once a slot */
        assert_int_equal(core_slot_adopt(w->core, d, segment, 1, 1), 0);       /* equal ones are dups */
        assert_int_equal(world_counters(w).stable_node_dups, 2);
        core_adopted(w->core, w->now_usec);
        finish(w);
}

/* A look that fails sees nothing, which is not to say that nothing is there. */
static void test_failed_look_judges_nobody(void **state) {
        struct world *w = restarted(2, 0);
        struct core_scan s;
        uint64_t next;
        unsigned n_failed = 0;

        for (unsigned t = 0; t < 100 && n_failed < 2; t++, w->now_usec += SECOND / 10)
                while (core_next_scan(w->core, w->now_usec, &s, &next)) {
                        n_failed += !s.rewrite_protect;
                        core_scan_done(w->core, s.op, w->now_usec, NULL, 0, s.rewrite_protect ? s.page + s.n_pages : s.page,
                                       s.rewrite_protect ? 0 : -ENOMEM);
                }
        assert_true(n_failed >= 2);
        world_pump(w);
        assert_int_equal(world_counters(w).pages_sharing, PAGES);
        world_run(w, 60 * SECOND);
        grace_ends(w);
        assert_int_equal(world_counters(w).pages_sharing, PAGES);
        assert_int_equal(world_counters(w).unshares, 0);
        assert_int_equal(w->n_applies, 0);
        finish(w);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_books_come_back),
                cmocka_unit_test(test_new_pages_share_old_slots),
                cmocka_unit_test(test_chains_come_back),
                cmocka_unit_test(test_grace),
                cmocka_unit_test(test_lost_segments),
                cmocka_unit_test(test_lies),
                cmocka_unit_test(test_failed_look_judges_nobody),
                cmocka_unit_test(test_wrong_arguments),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
