/* max_page_sharing changed live, defragmentation of chains, and tidy segments; on the simulated machine (tests/sim/world.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "daemon/core/internal.h"
#include "tests/sim/world.h"

#define SECOND 1000000

static void set_cap(struct world *w, int64_t cap) {
        assert_int_equal(core_tunable_set(w->core, TUNABLE_max_page_sharing, cap, w->now_usec), 0);
}

/* Processes with the contents first, first + step, ... in their pages. */
static struct world *start(uint32_t n_processes, uint32_t n_pages, int64_t cap) {
        struct world *w = world_new(1, NULL);
        uint32_t d = world_domain(w, "a");

        set_cap(w, cap);
        for (uint32_t i = 0; i < n_processes; i++)
                (void) world_process(w, d, 0, n_pages);
        return w;
}

static void fill(struct world *w, uint32_t process, uint32_t n_pages, uint32_t first, uint32_t step) {
        for (uint32_t k = 0; k < n_pages; k++)
                world_write(w, process, k, first + k * step);
}

static struct world *equal(uint32_t n_processes, uint32_t n_pages, int64_t cap) {
        struct world *w = start(n_processes, n_pages, cap);

        for (uint32_t i = 0; i < n_processes; i++)
                fill(w, i, n_pages, 1, 1);
        world_run(w, 40 * SECOND);
        return w;
}

static void finish(struct world *w) {
        assert_null(core_check(w->core));
        for (uint32_t i = 0; i < w->n_processes; i++)
                if (w->processes[i].is_alive)
                        world_exit(w, i);
        world_run(w, SECOND);
        assert_null(core_check(w->core));
        assert_int_equal(world_counters(w).segments, 0);
        world_free(w);
}

/* What N pages of each content come to with a cap of M (the formula, and KSM's). */
static void assert_counts(const struct world *w, unsigned contents, unsigned n, unsigned m) {
        struct counters c = world_counters(w);
        unsigned q = n / m, r = n % m, shared = r < 2 ? q : q + 1, sharing = r < 2 ? q * (m - 1) : n - shared;

        assert_int_equal(c.pages_sharing, contents * sharing);
        /* One page over is not shared; or the last sharer of a dup that had more once, which takes as much memory. */
        assert_int_equal(c.pages_shared + c.pages_unshared, contents * (n - sharing));
        if (r == 1 && c.pages_shared != contents * shared)
                return;
        assert_int_equal(c.pages_shared, contents * shared);
        assert_int_equal(c.stable_node_chains, shared > 1 ? contents : 0);
        assert_int_equal(c.stable_node_dups, shared > 1 ? contents * shared : 0);
}

/* Of any shared page, in the machine's memory and not by the books. */
static uint32_t most_sharers(const struct world *w) {
        uint32_t most = 0;

        for (uint32_t s = 0; s < w->n_segments; s++) {
                uint32_t *n = calloc(w->segments[s].n_slots, sizeof(*n));

                assert_non_null(n);
                for (uint32_t i = 0; i < w->n_processes; i++)
                        for (uint64_t j = 0; w->processes[i].is_alive && j < w->processes[i].n_pages; j++) {
                                const struct sim_page *q = &w->processes[i].pages[j];

                                if (q->kind == KIND_FILE && q->segment == w->segments[s].id && ++n[q->slot] > most)
                                        most = n[q->slot];
                        }
                free(n);
        }
        return most;
}

/* The kernel answers EBUSY to a change while pages are shared; here the books follow, to where they would be if the cap had
 * always been the new one. */
/* At most so many of the caps below end with something kept for a run's sake: what moved in two waves may lie apart. */
#define FOR_RUNS_MAX 4

static void test_cap_changed_live(void **state) {
        static const unsigned caps[] = { 256, 4, 2, 3, 7, 2, 5, 11, 12, 10, 100, 2, 6 };
        unsigned n_for_runs = 0;

        for (unsigned n = 2; n <= 13; n++) {
                struct world *w = equal(n, 8, 256);

                for (unsigned k = 0; k < sizeof(caps) / sizeof(caps[0]); k++) {
                        set_cap(w, caps[k]);
                        world_run(w, 200 * SECOND);
                        assert_null(core_check(w->core));
                        assert_in_range(most_sharers(w), 0, caps[k]);
                        if (world_counters(w).dups_for_runs == 0) {
                                assert_counts(w, 8, n, caps[k]);
                                continue;
                        }
                        assert_in_range(world_counters(w).pages_shared - world_counters(w).dups_for_runs, 8 * (n / caps[k]),
                                        8 * ((n + caps[k] - 1) / caps[k]));
                        n_for_runs++;
                }
                finish(w);
        }
        assert_in_range(n_for_runs, 0, FOR_RUNS_MAX);
}

/* A cap that is raised costs no look at any page, and leaves runs whole. */
static void test_raised_cap_moves_runs(void **state) {
        struct world *w = equal(8, 512, 2);
        uint64_t reads = w->n_reads;
        uint32_t segments = w->n_segments;

        assert_counts(w, 512, 8, 2);
        set_cap(w, 256);
        world_run(w, 60 * SECOND);
        assert_counts(w, 512, 8, 256);
        assert_int_equal(w->n_reads, reads);
        assert_int_equal(w->n_segments, segments);
        for (uint32_t i = 0; i < 8; i++)
                assert_in_range(world_vmas(w, i), 1, 512 / 64 + 2);
        finish(w);
}

static void test_lowered_cap_keeps_runs(void **state) {
        struct world *w = equal(8, 512, 256);

        set_cap(w, 4);
        world_run(w, 60 * SECOND);
        assert_counts(w, 512, 8, 4);
        assert_in_range(most_sharers(w), 4, 4);
        for (uint32_t i = 0; i < 8; i++)
                assert_in_range(world_vmas(w, i), 1, 2 * 512 / 64 + 2);
        finish(w);
}

/* Sharers exit, and what is left in many dups comes together in few. */
static void test_defragment_after_exits(void **state) {
        struct world *w = equal(24, 128, 4);
        struct counters n;

        assert_counts(w, 128, 24, 4);
        for (uint32_t i = 0; i < 24; i++)
                if (i % 4 != 1)
                        world_exit(w, i);
        world_run(w, 60 * SECOND);
        n = world_counters(w);
        assert_int_equal(n.pages_shared + n.pages_sharing, 6 * 128);
        assert_int_equal(n.pages_shared, 2 * 128);
        assert_in_range(most_sharers(w), 4, 4);
        assert_int_equal(n.dups_for_runs, 0);
        finish(w);
}

/* Two orders of the same contents: dropping either copy would take a run apart, page by page. So both stay, and are counted. */
static void test_dups_kept_for_runs(void **state) {
        enum { PAGES = 64 };
        struct world *w = start(4, PAGES, 2);
        struct counters n;

        for (uint32_t i = 0; i < 2; i++)
                fill(w, i, PAGES, 1, 1);
        world_run(w, 20 * SECOND);
        for (uint32_t i = 2; i < 4; i++)
                fill(w, i, PAGES, PAGES, UINT32_MAX);
        world_run(w, 20 * SECOND);
        assert_counts(w, PAGES, 4, 2);
        world_exit(w, 1);
        world_exit(w, 3);
        world_run(w, 20 * SECOND);
        n = world_counters(w);
        assert_int_equal(n.stable_node_dups, 2 * PAGES);
        assert_int_equal(n.dups_for_runs, PAGES);
        assert_int_equal(n.vmas_used, 4);
        /* With the run goes the reason. */
        world_exit(w, 2);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).dups_for_runs, 0);
        finish(w);
}

/* N neighbours of equal bytes in a process whose VMA budget is far below N. */
static struct world *memset_memory(uint32_t n_processes, uint32_t n_pages, uint32_t max_map_count, int64_t cap) {
        struct world *w = start(n_processes, n_pages, cap);

        for (uint32_t i = 0; i < n_processes; i++) {
                struct core_client_config config = { .max_map_count = max_map_count };

                core_client_gone(w->core, w->processes[i].client);
                assert_int_equal(core_client_add(w->core, w->domains[0].id, &config, &w->processes[i].client), 0);
                assert_int_equal(core_range_add(w->core, w->processes[i].client, 0, n_pages), 0);
                fill(w, i, n_pages, 7, 0);
        }
        assert_int_equal(core_tunable_set(w->core, TUNABLE_segment_share_permille, 1000, w->now_usec), 0);
        world_run(w, 120 * SECOND);
        return w;
}

/* All of it is shared, by at most one copy for 32 pages, in mappings of whole strips; be the cap small or large. */
/* Pages z a b w in five processes and a b alone in one, x a b v in six others, and so two dups of a and of b, side by side. What is kept
 * of them, by first page and number: z a in one, b w in four; x a in four, b v in one. So the run of a and b alone has a fuller dup of a
 * elsewhere (4 to 2), and from there the first dup of b is fuller (5 to 2, the run with it). Nothing else can move: what is beside it is
 * in one row only. */
static void test_rows_do_not_exchange_their_sharers(void **state) {
        enum { A = 1, B = 2, PAGES = 4, ROW = 6, PAIR = ROW - 1 };
        static const struct {
                uint8_t first, n;
        } kept[2 * ROW] = { { 0, 2 }, { B, 2 }, { B, 2 }, { B, 2 }, { B, 2 }, { A, 2 }, { 0, 2 }, { 0, 2 }, { 0, 2 }, { 0, 2 }, { B, 2 }, { 0, 0 } };
        struct world *w = start(2 * ROW, PAGES, ROW);
        uint64_t applies;

        assert_int_equal(core_tunable_set(w->core, TUNABLE_stable_node_chains_prune_millisecs, 1000000, w->now_usec), 0);
        for (uint32_t i = 0; i < 2 * ROW; i++) {
                for (uint32_t k = 0; k < PAGES; k++)
                        world_write(w, i, k, k == A || k == B ? k : 10 + k + (i == PAIR ? 200 : i / ROW * 100));
                if (i % ROW >= PAIR - 1)
                        world_run(w, 20 * SECOND); /* each row by itself, and the pair when its row is there */
        }
        assert_int_equal(world_counters(w).pages_shared, 2 * PAGES);
        assert_int_equal(world_counters(w).stable_node_dups, 4);
        for (uint32_t i = 0; i < 2 * ROW; i++)
                for (uint32_t k = 0; k < PAGES; k++)
                        if (i != PAIR && (k < kept[i].first || k >= (uint32_t) kept[i].first + kept[i].n))
                                world_write(w, i, k, 1000 + i * PAGES + k);
        world_run(w, 20 * SECOND);
        set_cap(w, 256);
        assert_int_equal(core_tunable_set(w->core, TUNABLE_stable_node_chains_prune_millisecs, 1000, w->now_usec), 0);
        world_run(w, 20 * SECOND);
        applies = w->n_applies;
        world_run(w, 100 * SECOND);
        assert_int_equal(w->n_applies, applies);
        assert_int_equal(world_counters(w).stable_node_dups, 4);
        finish(w);
}

static void test_strips(void **state) {
        static const int64_t caps[] = { 64, 256, 1000, 100000 };
        enum { PAGES = 16384, BUDGET = 1500 };

        for (unsigned k = 0; k < sizeof(caps) / sizeof(caps[0]); k++)
                for (uint32_t processes = 1; processes <= 2; processes++) {
                        struct world *w = memset_memory(processes, PAGES, 2 * BUDGET, caps[k]);
                        struct counters n = world_counters(w);

                        print_message("cap %ld, %u processes: shared %ld, VMAs %ld\n", (long) caps[k], processes, (long) n.pages_shared,
                                      (long) n.vmas_used);
                        assert_int_equal(n.pages_shared + n.pages_sharing, processes * PAGES);
                        assert_in_range(n.pages_shared, 1, processes * PAGES / 32);
                        assert_in_range(n.vmas_used, 1, processes * BUDGET * 4 / 5);
                        assert_in_range(most_sharers(w), 1, caps[k]);
                        finish(w);
                }
}

/* Few equal pages: few copies, although that takes more VMAs than many would. */
static void test_a_strip_has_sharers(void **state) {
        enum { PAGES = 640 };
        struct world *w = memset_memory(1, PAGES, 400, 256);
        struct counters n = world_counters(w);

        assert_int_equal(n.pages_shared + n.pages_sharing, PAGES);
        assert_in_range(n.pages_shared, 2, PAGES / 32);
        finish(w);
}

/* Where VMAs are plenty there are no more copies than the cap asks for. */
static void test_no_strips_without_need(void **state) {
        struct world *w = memset_memory(1, 1024, 65530, 256);

        assert_counts(w, 1, 1024, 256);
        finish(w);
}

/* At rest nothing is visited; one change of one dup has one segment visited. */
static void test_sweep_ends(void **state) {
        struct world *w = equal(9, 600, 2);
        const struct domain *d = domain_get(w->core, w->domains[0].id);
        uint32_t marked = 0;

        world_run(w, 10 * SECOND);
        assert_false(w->core->prune_due);
        world_write(w, 0, 5, 777777);
        world_scan(w);
        for (uint32_t u = 0; u < d->n_units; u++)
                marked += d->units[u] && d->units[u]->events & SEGMENT_PRUNE;
        assert_in_range(marked, 1, 2);
        world_run(w, 60 * SECOND);
        assert_false(w->core->prune_due);
        finish(w);
}

/* A fifth of what is shared is rewritten, here and there: not enough to make a segment half dead. */
static void test_a_tenth_is_dead_at_rest(void **state) {
        enum { PAGES = 4096 };
        struct world *w = equal(3, PAGES, 256);
        uint32_t next = 1000000;
        struct counters n;

        for (unsigned round = 0; round < 3; round++) {
                for (uint32_t k = 0; k < PAGES / 5; k++) {
                        uint64_t at = world_random(w, PAGES);

                        for (uint32_t i = 0; i < 3; i++)
                                world_write(w, i, at, next);
                        next++;
                }
                world_run(w, 200 * SECOND);
                n = world_counters(w);
                assert_int_equal(n.pages_sharing, 2 * PAGES);
                assert_in_range(n.dead_bytes, 0, n.segment_bytes / 10);
        }
        finish(w);
}

/* ... and no faster than the pace allows. */
static void test_tidying_has_a_pace(void **state) {
        enum { PAGES = 16384, REWRITTEN = PAGES / 5, SECONDS = 10 };
        struct world *w = equal(3, PAGES, 256);
        uint64_t relocated = w->n_relocated;

        assert_int_equal(core_tunable_set(w->core, TUNABLE_stable_node_chains_prune_millisecs, 20, w->now_usec), 0);
        for (uint32_t k = 0; k < REWRITTEN; k++)
                for (uint32_t i = 0; i < 3; i++)
                        world_write(w, i, k * 5, 1000000 + k);
        world_run(w, SECONDS * SECOND);
        /* What was rewritten is merged where it lies, too; and 2000 a second, a segment at a time. */
        relocated = w->n_relocated - relocated - 3 * REWRITTEN;
        assert_in_range(relocated, 1000, SECONDS * 2000 + 3 * SEGMENT_UNIT);
        world_run(w, 60 * SECOND);
        assert_in_range(world_counters(w).dead_bytes, 0, world_counters(w).segment_bytes / 10);
        finish(w);
}

/* Two blocks that are one run in one process, and two in those that have room: its extents move one by one. */
static void test_extents_of_a_run_move(void **state) {
        enum { PAGES = 128 };
        struct world *w = start(6, PAGES, 3);
        struct counters n;

        for (uint32_t i = 0; i < 3; i++)
                fill(w, i, PAGES, 1, 1);
        world_run(w, 20 * SECOND);
        for (uint32_t part = 2; part-- > 0;) {
                for (uint32_t i = 3; i < 6; i++)
                        for (uint32_t k = part * 64; k < part * 64 + 64; k++)
                                world_write(w, i, k, 1 + k);
                world_run(w, 20 * SECOND);
        }
        assert_counts(w, PAGES, 6, 3);
        world_exit(w, 1);
        world_exit(w, 2);
        world_exit(w, 5);
        world_run(w, 40 * SECOND);
        n = world_counters(w);
        assert_int_equal(n.pages_shared, PAGES);
        assert_int_equal(n.pages_sharing, 2 * PAGES);
        assert_in_range(n.vmas_used, 6, 9);
        finish(w);
}

/* Private pages inside a run: what is between them moves only with them, or the mapping falls apart. */
static void test_pieces_of_a_mapping_stay(void **state) {
        enum { PAGES = 64 };
        struct world *w = equal(4, PAGES, 2);
        struct counters n;

        world_write(w, 0, 16, 777777);
        world_write(w, 0, 48, 888888);
        world_run(w, 10 * SECOND);
        world_exit(w, 1);
        world_exit(w, 3);
        world_run(w, 40 * SECOND);
        n = world_counters(w);
        assert_int_equal(n.vmas_used, 4);
        assert_int_equal(n.stable_node_dups, 2 * (PAGES - 2));
        assert_int_equal(n.dups_for_runs, PAGES - 2);
        finish(w);
}

/* Of some pages of a run one is too many for the new cap, of others not. */
static void test_surplus_maps_no_more(void **state) {
        enum { PAGES = 64 };
        struct world *w = start(4, PAGES, 256);

        for (uint32_t i = 0; i < 4; i++)
                for (uint32_t k = 0; k < PAGES; k++)
                        world_write(w, i, k, i == 3 && k % 2 ? 777777 + k : 1 + k);
        world_run(w, 40 * SECOND);
        assert_int_equal(most_sharers(w), 4);
        set_cap(w, 2);
        world_run(w, 200 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 2 * PAGES / 2 + PAGES / 2);
        assert_int_equal(most_sharers(w), 2);
        finish(w);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_cap_changed_live),
                cmocka_unit_test(test_raised_cap_moves_runs),
                cmocka_unit_test(test_lowered_cap_keeps_runs),
                cmocka_unit_test(test_defragment_after_exits),
                cmocka_unit_test(test_dups_kept_for_runs),
                cmocka_unit_test(test_extents_of_a_run_move),
                cmocka_unit_test(test_pieces_of_a_mapping_stay),
                cmocka_unit_test(test_surplus_maps_no_more),
                cmocka_unit_test(test_rows_do_not_exchange_their_sharers),
                cmocka_unit_test(test_strips),
                cmocka_unit_test(test_a_strip_has_sharers),
                cmocka_unit_test(test_no_strips_without_need),
                cmocka_unit_test(test_sweep_ends),
                cmocka_unit_test(test_a_tenth_is_dead_at_rest),
                cmocka_unit_test(test_tidying_has_a_pace),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
