/* merge_across_nodes=0: pages of one NUMA node share with each other only, wherever the kernel migrates them; on the simulated
 * machine (tests/sim/world.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "daemon/core/internal.h"
#include "tests/sim/world.h"

#define SECOND 1000000
#define PAGES 128

static void set(struct world *w, enum tunable_id id, int64_t value) {
        assert_int_equal(core_tunable_set(w->core, id, value, w->now_usec), 0);
}

static void rest(struct world *w) {
        world_run(w, 40 * SECOND);
        assert_null(core_check(w->core));
}

static uint32_t process(struct world *w, unsigned node, uint32_t first) {
        uint32_t i = world_process(w, w->domains[0].id, 0, PAGES);

        w->processes[i].home = (uint8_t) node;
        for (uint32_t k = 0; k < PAGES; k++)
                world_write(w, i, k, first + k);
        return i;
}

/* n0 processes on node 0 and n1 on node 1, with equal memory, at rest. */
static struct world *start(bool across, unsigned n0, unsigned n1) {
        struct world *w = world_new(1, NULL);

        (void) world_domain(w, "a");
        w->n_nodes = 3;
        core_set_nodes(w->core, true);
        set(w, TUNABLE_merge_across_nodes, across);
        set(w, TUNABLE_segment_share_permille, 1000);
        for (unsigned i = 0; i < n0 + n1; i++)
                (void) process(w, i >= n0, 1);
        rest(w);
        return w;
}

static void finish(struct world *w) {
        for (uint32_t i = 0; i < w->n_processes; i++)
                if (w->processes[i].is_alive)
                        world_exit(w, i);
        world_run(w, SECOND);
        assert_null(core_check(w->core));
        assert_int_equal(world_counters(w).segments, 0);
        assert_int_equal(world_counters(w).slots_misplaced, 0);
        world_free(w);
}

static void assert_counts(const struct world *w, int64_t shared, int64_t sharing) {
        struct counters n = world_counters(w);

        assert_int_equal(n.pages_shared, shared);
        assert_int_equal(n.pages_sharing, sharing);
        assert_int_equal(n.slots_misplaced, 0);
}

/* The process's pages all map slots on that node, of segments bound to it. */
static void assert_merged_on(const struct world *w, uint32_t i, unsigned node) {
        for (uint32_t k = 0; k < PAGES; k++) {
                const struct sim_page *q = &w->processes[i].pages[k];

                assert_int_equal(q->kind, KIND_FILE);
                assert_int_equal(world_node(w, q), node);
        }
}

static void test_nodes_share_apart(void **state) {
        struct world *w = start(false, 2, 3);

        assert_counts(w, 2 * PAGES, 3 * PAGES);
        for (uint32_t i = 0; i < 5; i++)
                assert_merged_on(w, i, i >= 2);
        finish(w);
}

static void test_across_nodes(void **state) {
        struct world *w = start(true, 2, 3);

        assert_counts(w, PAGES, 4 * PAGES);
        finish(w);
}

/* A machine that has one node: the tunable changes nothing, and nothing is done for it. */
static void test_one_node(void **state) {
        struct world *w = start(true, 2, 2);
        uint64_t reads = w->n_reads, applies = w->n_applies;

        core_set_nodes(w->core, false);
        set(w, TUNABLE_merge_across_nodes, 0);
        rest(w);
        assert_false(core_wants_nodes(w->core));
        assert_int_equal(w->n_reads, reads);
        assert_int_equal(w->n_applies, applies);
        finish(w);
}

/* Zeros are of no node: the kernel's zero page is one for all. */
static void test_zeros(void **state) {
        struct world *w = start(false, 1, 1);

        for (uint32_t k = 0; k < PAGES; k++) {
                world_write(w, 0, k, 0);
                world_write(w, 1, k, 0);
        }
        rest(w);
        assert_counts(w, 0, 0);
        assert_int_equal(world_counters(w).ksm_zero_pages, 2 * PAGES);
        finish(w);
}

static void test_changed_live(void **state) {
        struct world *w = start(true, 2, 2);
        int64_t unshares;

        for (unsigned round = 0; round < 2; round++) {
                /* Each process has its own node's pages again, not those of the node on which the shared ones happened to be. */
                set(w, TUNABLE_merge_across_nodes, 0);
                rest(w);
                assert_counts(w, 2 * PAGES, 2 * PAGES);
                for (uint32_t i = 0; i < 4; i++)
                        assert_merged_on(w, i, i >= 2);
                /* Back: nothing is unshared for it. */
                unshares = world_counters(w).unshares;
                set(w, TUNABLE_merge_across_nodes, 1);
                rest(w);
                assert_counts(w, PAGES, 3 * PAGES);
                assert_int_equal(world_counters(w).unshares, unshares);
        }
        finish(w);
}

/* Not all at once: the tunable may be changed where memory is short. */
static void test_change_has_a_pace(void **state) {
        struct world *w = start(true, 40, 40);
        int64_t unshares = world_counters(w).unshares;

        set(w, TUNABLE_stable_node_chains_prune_millisecs, 10);
        set(w, TUNABLE_max_page_sharing, 2); /* many segments */
        rest(w);
        assert_true(world_counters(w).segments >= 8);
        set(w, TUNABLE_merge_across_nodes, 0);
        world_run(w, SECOND / 2);
        assert_in_range(world_counters(w).unshares - unshares, 1, 80 * PAGES / 2);
        rest(w);
        assert_counts(w, 40 * PAGES, 40 * PAGES);
        finish(w);
}

/* A page that nobody shared is filed under its new node, so those there find it, and those of its old one do not. */
static void test_unshared_page_migrates(void **state) {
        struct world *w = start(false, 1, 0);
        uint32_t i;

        world_migrate(w, 0, 0, PAGES, 1);
        rest(w);
        i = process(w, 0, 1);
        rest(w);
        assert_counts(w, 0, 0);
        (void) process(w, 1, 1);
        rest(w);
        assert_counts(w, PAGES, PAGES);
        assert_merged_on(w, 0, 1);
        assert_merged_on(w, 2, 1);
        assert_int_equal(world_merged(w, i), 0);
        finish(w);
}

/* Shared pages are migrated to where nobody has them. */
static void test_shared_pages_migrate(void **state) {
        struct world *w = start(false, 3, 0);
        int64_t unshares = world_counters(w).unshares;

        world_migrate(w, 1, 0, PAGES, 2);
        rest(w);
        assert_counts(w, PAGES, 2 * PAGES);
        assert_int_equal(world_counters(w).unshares, unshares);
        for (uint32_t i = 0; i < 3; i++)
                assert_merged_on(w, i, 2);
        (void) process(w, 2, 1);
        (void) process(w, 0, 1);
        rest(w);
        assert_counts(w, PAGES, 3 * PAGES);
        finish(w);
}

/* And to where there is a chain of the same content, from both sides at once in the end. */
static void test_collision(void **state) {
        struct world *w = start(false, 3, 3);

        world_migrate(w, 0, 0, PAGES, 1);
        rest(w);
        assert_counts(w, PAGES, 5 * PAGES);
        for (uint32_t i = 0; i < 6; i++)
                assert_merged_on(w, i, 1);
        finish(w);

        w = start(false, 3, 3);
        world_migrate(w, 0, 0, PAGES, 1);
        world_migrate(w, 3, 0, PAGES, 0);
        rest(w);
        assert_counts(w, 2 * PAGES, 4 * PAGES);
        for (uint32_t i = 0; i < 6; i++)
                assert_merged_on(w, i, i < 3);
        finish(w);
}

static void test_collision_at_the_cap(void **state) {
        struct world *w = start(false, 2, 2);

        set(w, TUNABLE_max_page_sharing, 2);
        world_migrate(w, 0, 0, PAGES, 1);
        rest(w);
        assert_counts(w, 2 * PAGES, 2 * PAGES);
        assert_int_equal(world_counters(w).stable_node_chains, PAGES);
        assert_int_equal(world_counters(w).stable_node_dups, 2 * PAGES);
        for (uint32_t i = 0; i < 4; i++)
                assert_merged_on(w, i, 1);
        finish(w);
}

/* One sharer of a shared page that was migrated has been looked at, the other has not: the page stays where it is filed, but takes no
 * more sharers. */
static void test_misplaced_takes_no_sharers(void **state) {
        struct world *w = start(false, 2, 0);
        uint32_t segment = w->processes[1].pages[0].segment;

        core_client_park(w->core, w->processes[1].client, true);
        w->processes[0].home = 1; /* where it has its own again, sharing with nobody */
        world_migrate(w, 0, 0, PAGES, 1);
        rest(w);
        assert_int_equal(world_counters(w).slots_misplaced, PAGES);
        (void) process(w, 0, 1);
        rest(w);
        assert_int_equal(world_merged(w, 2), 0);
        (void) process(w, 0, 1);
        rest(w);
        assert_merged_on(w, 2, 0);
        assert_merged_on(w, 3, 0);
        assert_true(w->processes[2].pages[0].slot != w->processes[1].pages[0].slot ||
                    w->processes[2].pages[0].segment != segment);
        /* Now the other is looked at. */
        core_client_park(w->core, w->processes[1].client, false);
        rest(w);
        assert_counts(w, 2 * PAGES, 2 * PAGES);
        assert_merged_on(w, 0, 1);
        assert_merged_on(w, 1, 1);
        finish(w);
}

static void test_migrated_back(void **state) {
        struct world *w = start(false, 2, 0);

        core_client_park(w->core, w->processes[1].client, true);
        w->processes[0].home = 1;
        world_migrate(w, 0, 0, PAGES, 1);
        rest(w);
        assert_int_equal(world_counters(w).slots_misplaced, PAGES);
        world_migrate(w, 1, 0, PAGES, 0);
        world_migrate(w, 0, 0, PAGES, 0);
        core_client_park(w->core, w->processes[1].client, false);
        rest(w);
        assert_counts(w, PAGES, PAGES);
        assert_merged_on(w, 0, 0);
        assert_merged_on(w, 1, 0);
        finish(w);
}

/* What a page beside continues on another node is not for this one: same bytes, another chain. */
static void test_runs_do_not_cross(void **state) {
        struct world *w = start(false, 2, 2);
        uint32_t i = process(w, 0, 1);

        for (uint32_t k = 1; k < PAGES; k += 2)
                world_migrate(w, i, k, 1, 1);
        set(w, TUNABLE_pass_millisecs, 100);
        rest(w);
        assert_counts(w, 2 * PAGES, 3 * PAGES);
        for (uint32_t k = 0; k < PAGES; k++) {
                assert_int_equal(w->processes[i].pages[k].kind, KIND_FILE);
                assert_int_equal(world_node(w, &w->processes[i].pages[k]), k % 2);
        }
        finish(w);
}

/* Three nodes in one block, none of which has a run: each is published in its turn. */
static void test_interleaved(void **state) {
        struct world *w = start(false, 0, 0);

        for (unsigned i = 0; i < 2; i++) {
                (void) process(w, 0, 1);
                for (uint32_t k = 0; k < PAGES; k++)
                        world_migrate(w, i, k, 1, k % 3);
        }
        rest(w);
        assert_counts(w, PAGES, PAGES);
        assert_true(world_counters(w).segments == 3);
        assert_int_equal(world_counters(w).dead_bytes, 0); /* nothing was copied to a node that it is not on */
        finish(w);
}

/* Who comes to share a page that was migrated, after a look of its own and before the first look of those who had it, is looked at once
 * more. */
static void test_shared_between_looks(void **state) {
        struct world *w = start(false, 2, 0);
        uint32_t i = process(w, 0, 1000);

        rest(w);
        for (uint32_t k = 0; k < 2; k++)
                core_client_park(w->core, w->processes[k].client, true);
        world_migrate(w, 0, 0, PAGES, 1);
        rest(w);
        for (uint32_t k = 0; k < PAGES; k++)
                world_write(w, i, k, 1 + k);
        rest(w);
        assert_int_equal(world_merged(w, i), PAGES); /* with what nobody knows to be elsewhere */
        assert_int_equal(world_counters(w).slots_misplaced, 0);
        for (uint32_t k = 0; k < 2; k++)
                core_client_park(w->core, w->processes[k].client, false);
        rest(w);
        assert_counts(w, PAGES, 2 * PAGES);
        for (uint32_t k = 0; k < 3; k++)
                assert_merged_on(w, k, 1);
        finish(w);
}

/* All processes are looked at, while one of them is being merged into what they have. */
static void migrate_and_look(struct world *w) {
        world_migrate(w, 0, 5, 1, 1);
        core_pages_migrated(w->core);
        w->has_migrated = false;
        for (unsigned k = 0; k < 40; k++) {
                world_scan(w);
                (void) core_tick(w->core, w->now_usec); /* what a look leads to */
        }
        assert_int_equal(world_counters(w).slots_misplaced, 1);
}

static void test_merged_after_the_look(void **state) {
        struct world *w = start(false, 2, 0);
        uint32_t i = world_process(w, w->domains[0].id, 0, PAGES);

        world_write(w, i, 5, 1 + 5);
        w->meanwhile = migrate_and_look;
        w->meanwhile_of = MEANWHILE_APPLIED;
        rest(w);
        assert_null(w->meanwhile);
        rest(w);
        assert_counts(w, PAGES, PAGES + 1);
        assert_int_equal(world_merged(w, i), 1);
        assert_int_equal(world_node(w, &w->processes[i].pages[5]), 1);
        finish(w);
}

/* A page is migrated while a look is under way that has seen it already: that one does not count as having looked for it. */
static void test_migrated_behind_the_look(void **state) {
        enum { MANY = 4096, RUNS = MANY / 2, STEPS = 1000000 }; /* more runs than a window has room for */
        struct world *w = start(false, 0, 1);
        uint32_t i = world_process(w, w->domains[0].id, 0, MANY);

        for (uint32_t k = 0; k < MANY; k += 2)
                world_write(w, i, k, k == 0 ? 1 : 1000 + k); /* the first is as one of the other process, on another node */
        rest(w);
        assert_counts(w, 0, 0);
        core_pages_migrated(w->core);
        w->n_placed_pages = 0;
        for (unsigned k = 0; k < STEPS && w->n_placed_pages < RUNS / 2; k++) {
                w->now_usec += SECOND / 1000;
                world_step(w);
        }
        assert_in_range(w->n_placed_pages, RUNS / 2, RUNS - 1);
        world_migrate(w, i, 0, 1, 1);
        core_pages_migrated(w->core);
        w->has_migrated = false;
        rest(w);
        assert_counts(w, 1, 1);
        finish(w);
}

/* A look whose scan failed has not looked. */
static void test_look_fails(void **state) {
        struct world *w = start(false, 2, 2);

        world_migrate(w, 0, 0, PAGES, 1);
        w->fail_permille = 4000;
        world_run(w, 10 * SECOND);
        w->fail_permille = 0;
        rest(w);
        assert_counts(w, PAGES, 3 * PAGES);
        finish(w);
}

/* Its node is full, so the kernel takes memory elsewhere: then it is not shared, and that is not tried for ever at full speed. */
static void test_full_node(void **state) {
        struct world *w = start(false, 0, 0);

        w->is_full = true;
        (void) process(w, 1, 1);
        (void) process(w, 1, 1);
        world_run(w, 20 * SECOND);
        assert_null(core_check(w->core));
        assert_int_equal(world_counters(w).pages_shared, 0);
        assert_in_range(w->n_segments, 1, 16);
        w->is_full = false;
        world_run(w, 200 * SECOND);
        assert_counts(w, PAGES, PAGES);
        finish(w);
}

/* Nobody knows where the pages are: they are not merged, and nothing else goes wrong. */
static void test_unknown_nodes(void **state) {
        struct world *w = start(false, 0, 0);

        w->hides_nodes = true;
        (void) process(w, 0, 1);
        (void) process(w, 0, 1);
        rest(w);
        assert_counts(w, 0, 0);
        w->hides_nodes = false;
        world_run(w, 200 * SECOND);
        assert_counts(w, PAGES, PAGES);
        world_migrate(w, 0, 0, PAGES, 2);
        w->hides_nodes = true;
        rest(w);
        assert_counts(w, PAGES, PAGES);
        finish(w);
}

/* However often the kernel migrates something, looks for its sake are as far apart as the pages are many. */
static void test_looks_have_a_pace(void **state) {
        enum { MANY = 1 << 16 };
        struct world *w = start(false, 0, 0);
        uint32_t i = world_process(w, w->domains[0].id, 0, MANY);

        set(w, TUNABLE_pass_millisecs, 50);
        for (uint32_t k = 0; k < MANY; k++)
                world_write(w, i, k, 1 + k);
        rest(w);
        w->n_placed_pages = 0;
        for (unsigned k = 0; k < 100; k++) {
                world_migrate(w, i, 0, 1, k % 2);
                world_run(w, SECOND / 10);
        }
        assert_in_range(w->n_placed_pages, 10 * MANY, 17 * MANY); /* 10 s at 0.66 s a look */
        finish(w);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_nodes_share_apart),
                cmocka_unit_test(test_across_nodes),
                cmocka_unit_test(test_one_node),
                cmocka_unit_test(test_zeros),
                cmocka_unit_test(test_changed_live),
                cmocka_unit_test(test_change_has_a_pace),
                cmocka_unit_test(test_unshared_page_migrates),
                cmocka_unit_test(test_shared_pages_migrate),
                cmocka_unit_test(test_collision),
                cmocka_unit_test(test_collision_at_the_cap),
                cmocka_unit_test(test_misplaced_takes_no_sharers),
                cmocka_unit_test(test_migrated_back),
                cmocka_unit_test(test_runs_do_not_cross),
                cmocka_unit_test(test_interleaved),
                cmocka_unit_test(test_shared_between_looks),
                cmocka_unit_test(test_merged_after_the_look),
                cmocka_unit_test(test_migrated_behind_the_look),
                cmocka_unit_test(test_look_fails),
                cmocka_unit_test(test_full_node),
                cmocka_unit_test(test_unknown_nodes),
                cmocka_unit_test(test_looks_have_a_pace),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
