/* Long life of a process in the core: pages inside merged runs that are private again, restores that are refused, cleaning of
 * segments; on the simulated machine (tests/sim/world.h). The books are recomputed after each. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/machine.h"

/* Processes of equal memory, merged. */
static struct world *merged(uint32_t n_processes, uint64_t n_pages) {
        struct world *w = world_new(1, NULL);
        uint32_t d = world_domain(w, "a");

        for (uint32_t i = 0; i < n_processes; i++)
                fill(w, world_process(w, d, 0, n_pages), 0, n_pages, 1);
        world_run(w, 10 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, (n_processes - 1) * n_pages);
        return w;
}

/* Of the process's pages inside mappings, how many are private memory. */
static uint64_t private_inside(const struct world *w, uint32_t process) {
        uint64_t n = 0;

        for (uint64_t i = 0; i < w->processes[process].n_pages; i++)
                n += w->processes[process].pages[i].in_file && w->processes[process].pages[i].kind == KIND_ANON;
        return n;
}

static uint64_t private_pages(const struct world *w) {
        uint64_t n = 0;

        for (uint32_t p = 0; p < w->n_processes; p++)
                for (uint64_t i = 0; i < w->processes[p].n_pages; i++)
                        n += w->processes[p].pages[i].kind == KIND_ANON;
        return n;
}

/* Written and put back: shares the slot it always lay at, and no VMA is spent. */
static void test_comes_back_to_its_slot(void **state) {
        struct world *w = merged(2, 256);
        int64_t vmas = world_counters(w).vmas_used;
        uint64_t stored = world_store_pages(w);

        fill(w, 1, 100, 40, 5000);
        world_run(w, 1200 * 1000); /* a pass sees it, nothing settles */
        assert_int_equal(world_merged(w, 1), 216);
        fill(w, 1, 100, 40, 101);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 256);
        assert_int_equal(world_counters(w).vmas_used, vmas);
        assert_int_equal(world_store_pages(w), stored);
        finish(w);
}

/* Rewritten to something common: new slots are mapped over the private pages, which are never restored. */
static void test_common_again(void **state) {
        struct world *w = merged(3, 256);

        for (uint32_t p = 0; p < 3; p++)
                fill(w, p, 64, 32, 7000);
        fill(w, 2, 200, 16, 1); /* equal to what others share already */
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 2 * 256); /* 16 more here, 16 less where they were */
        assert_int_equal(w->n_relocated, 3 * 32 + 16);
        assert_int_equal(private_pages(w), 0);
        for (uint32_t p = 0; p < 3; p++)
                assert_in_range(world_vmas(w, p), 3, 10);
        finish(w);
}

/* Unique pages stay where they are, and later ones find them there. What only one process maps any more gives its place within the
 * bound on published bytes to what two can share. */
static void test_unique_stays_and_is_found(void **state) {
        struct world *w = merged(2, 256);
        int64_t vmas = world_counters(w).vmas_used;

        fill(w, 1, 64, 16, 9000);
        world_run(w, 60 * SECOND);
        assert_int_equal(private_inside(w, 1), 16);
        assert_int_equal(world_counters(w).pages_unshared, 16);
        assert_int_equal(world_counters(w).vmas_used, vmas);
        fill(w, 0, 128, 16, 9000);
        world_run(w, 30 * SECOND);
        assert_int_equal(private_inside(w, 1), 0);
        assert_int_equal(world_counters(w).pages_unshared, 2 * 16); /* what either overwrote is alone now, in the other */
        assert_int_equal(world_counters(w).pages_sharing, 256 - 32 + 16);
        finish(w);
}

/* Slots that were to be filled from pages that cannot be read take memory all the same: they are dead, and within the domain's bound; and
 * it is tried again later each time. */
static void test_spoiled_slots_are_bounded(void **state) {
        enum { PAGES = 512, FEW = 8, BOUND = PAGES + PAGES / 2 }; /* half of what is registered, and half as much again for dead ones */
        struct world *w = start(2, PAGES);

        for (uint32_t i = 0; i < 2; i++)
                fill(w, i, 0, FEW, 1);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, FEW); /* their segment stays for a while */
        w->spoils = true;
        for (uint32_t i = 0; i < 2; i++)
                fill(w, i, FEW, PAGES - FEW, 100);
        for (unsigned k = 0; k < 200; k++) {
                world_run(w, SECOND);
                assert_in_range(world_store_pages(w), 0, BOUND);
                assert_int_equal(world_counters(w).segment_bytes, (int64_t) world_store_pages(w) * 4096);
        }
        assert_in_range(w->n_spoiled, PAGES - FEW, 20 * PAGES);
        w->spoils = false;
        world_run(w, 200 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, PAGES);
        finish(w);
}

static void test_zeros_inside(void **state) {
        struct world *w = merged(2, 256);

        for (unsigned i = 0; i < 64; i++)
                world_write(w, 1, 64 + i, 0);
        world_discard(w, 1, 200, 8); /* already the kernel's zero page */
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).ksm_zero_pages, 64);
        assert_int_equal(world_counters(w).pages_sharing, 256 - 64 - 8);
        fill(w, 1, 200, 8, 201); /* discarded and refilled */
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 256 - 64);
        finish(w);
}

/* Memory that is rewritten now and then stays worth merging: failures are forgiven at rest. */
static void test_rewritten_for_ever(void **state) {
        struct world *w = merged(2, 128);

        for (uint32_t round = 1; round <= 40; round++) {
                for (uint32_t p = 0; p < 2; p++)
                        fill(w, p, 0, 128, 1000 * round);
                world_run(w, 30 * SECOND);
                assert_int_equal(world_counters(w).pages_sharing, 128);
        }
        finish(w);
}

/* Pages for which the agent has no certificate now wait for it without a failure, hold up nothing else, and are asked for seldom; when
 * it has one, they all go at once. */
static void test_no_certificate_now(void **state) {
        struct world *w = merged(2, 2048);
        uint64_t applies;

        w->processes[1].has_no_witness = true;
        for (uint32_t p = 0; p < 2; p++) {
                fill(w, p, 0, 1024, 10000);
                for (uint32_t i = 1024; i < 1536; i += 64)
                        world_drop(w, p, i, 64);
                fill(w, p, 1024, 512, 20000);
        }
        world_run(w, 10 * SECOND);
        assert_int_equal(world_merged(w, 1), 1024); /* the plain ones */
        applies = w->n_applies;
        world_run(w, 60 * SECOND);
        assert_in_range(w->n_applies - applies, 10, 60 * 2);
        w->processes[1].has_no_witness = false;
        world_run(w, 3 * SECOND);
        assert_int_equal(world_merged(w, 1), 2048);
        assert_int_equal(world_counters(w).pages_sharing, 2048);
        /* Nor does an unmerge wait for it. */
        w->processes[1].has_no_witness = true;
        for (uint32_t p = 0; p < 2; p++)
                fill(w, p, 0, 256, 30000);
        world_run(w, 8 * SECOND);
        assert_int_equal(core_unmerge(w->core, w->processes[1].client, 0, 0, 7, w->now_usec), 0);
        world_run(w, SECOND / 100);
        assert_int_equal(w->last_event.cookie, 7);
        assert_int_equal(w->last_event.left, 256);
        assert_int_equal(world_merged(w, 1), 0);
        applies = w->n_applies;
        world_run(w, 100 * SECOND);
        assert_in_range(w->n_applies - applies, 50, 100 * 2);
        w->processes[1].has_no_witness = false;
        world_run(w, 3 * SECOND);
        assert_int_equal(private_inside(w, 1), 0);
        finish(w);
}

/* Nor are ragged runs refused, and put off for longer and longer: their segment would stay. */
static void test_ragged_without_certificate(void **state) {
        struct world *w = merged(2, 512);

        w->processes[0].has_no_witness = w->processes[1].has_no_witness = true;
        for (uint32_t p = 0; p < 2; p++)
                for (uint32_t i = 0; i < 512; i += 64)
                        fill(w, p, i, 60, 5000 + (p * 512 + i) * 64);
        world_run(w, 200 * SECOND);
        assert_int_equal(private_inside(w, 1), 8 * 60);
        w->processes[0].has_no_witness = w->processes[1].has_no_witness = false;
        world_run(w, 3 * SECOND);
        assert_int_equal(private_inside(w, 0) + private_inside(w, 1), 0);
        finish(w);
}

/* An unmerge takes everything out of the queue once, and nothing goes round in it meanwhile. */
static void test_unmerge_of_uncertified(void **state) {
        struct world *w = merged(2, 1024);
        uint64_t applies;

        w->processes[1].has_no_witness = true;
        for (uint32_t p = 0; p < 2; p++)
                fill(w, p, 0, 1024, 10000);
        world_run(w, 10 * SECOND);
        applies = w->n_applies;
        assert_int_equal(core_unmerge(w->core, w->processes[1].client, w->processes[1].base, 64, 7, w->now_usec), 0);
        world_run(w, SECOND / 100);
        assert_int_equal(w->last_event.cookie, 7);
        assert_int_equal(w->last_event.left, 64);
        assert_in_range(w->n_applies - applies, 1, 2 * 1024 / 64);
        finish(w);
}

/* What cannot be restored is tried again, ever more seldom, and goes in the end. */
static void test_refused_restore_is_retried(void **state) {
        struct world *w = merged(2, 128);
        uint64_t applies;

        fill(w, 1, 0, 128, 5000);
        for (unsigned i = 0; i < 128; i++)
                w->processes[1].pages[i].is_pinned = true;
        world_run(w, 2 * SECOND);
        assert_int_equal(core_unmerge(w->core, w->processes[1].client, 0, 0, 7, w->now_usec), 0);
        world_run(w, 1000);
        assert_int_equal(w->last_event.cookie, 7);
        assert_int_equal(w->last_event.left, 128);
        applies = w->n_applies;
        world_run(w, 300 * SECOND);
        assert_in_range(w->n_applies - applies, 2 * 6, 2 * 12);
        assert_int_equal(private_inside(w, 1), 128);
        for (unsigned i = 0; i < 128; i++)
                w->processes[1].pages[i].is_pinned = false;
        world_run(w, 70 * SECOND);
        assert_int_equal(private_inside(w, 1), 0);
        finish(w);
}

/* The same for a ragged run, of a process that goes on merging elsewhere. */
static void test_ragged_restore_is_retried(void **state) {
        struct world *w = merged(2, 128);

        fill(w, 1, 0, 60, 5000);
        for (unsigned i = 0; i < 64; i++)
                w->processes[1].pages[i].is_pinned = i < 60;
        world_run(w, 120 * SECOND);
        assert_int_equal(private_inside(w, 1), 60);
        for (unsigned i = 0; i < 60; i++)
                w->processes[1].pages[i].is_pinned = false;
        world_run(w, 80 * SECOND);
        assert_int_equal(private_inside(w, 1), 0);
        assert_int_equal(world_merged(w, 1), 68);
        finish(w);
}

/* Sparse segments are emptied and dropped; nothing is made private for it on the way. */
static void test_cleaning(void **state) {
        enum { PAGES = 4096 };
        struct world *w = merged(3, PAGES);
        uint64_t most = 0;

        /* Two of three runs of 16 die everywhere, by discards, so that nothing else has to be stored. */
        for (uint32_t i = 0; i < PAGES; i += 16)
                for (uint32_t p = 0; i % 48 && p < 3; p++)
                        world_discard(w, p, i, 16);
        for (unsigned t = 0; t < 450; t++) {
                world_run(w, SECOND / 10);
                most = most > private_pages(w) ? most : private_pages(w);
        }
        assert_true(w->n_dropped >= 6); /* one after the other, but none waits until the one before is gone */
        world_run(w, 60 * SECOND);
        assert_int_equal(most, 0);
        assert_true(world_counters(w).dead_bytes <= world_counters(w).segment_bytes / 2);
        assert_int_equal(world_store_pages(w) * 4096, world_counters(w).segment_bytes);
        assert_int_equal(world_counters(w).pages_shared, (PAGES / 48 + 1) * 16);
        assert_int_equal(world_counters(w).pages_sharing, 2 * (PAGES / 48 + 1) * 16);
        finish(w);
}

/* Slots with one sharer left save nothing: their pages are restored when their segment is cleaned. */
static void test_cleaning_frees_the_lonely(void **state) {
        enum { PAGES = 2048 };
        struct world *w = merged(2, PAGES);

        for (uint32_t i = 0; i < PAGES; i += 4) {
                fill(w, 0, i, 4, 10000 + i);
                if (i % 16)
                        fill(w, 1, i, 4, 20000 + i);
        }
        world_run(w, 200 * SECOND);
        assert_int_equal(world_counters(w).segments, 0);
        assert_int_equal(world_store_pages(w), 0);
        assert_int_equal(world_counters(w).pages_unshared, 2 * PAGES);
        finish(w);
}

/* The program unmaps a range and maps and registers it anew while a merge of the old one is on its way: the agent finds the new
 * memory equal and merges that. */
static void test_merge_crosses_a_new_mapping(void **state) {
        struct world *w = world_new(1, NULL);
        uint32_t d = world_domain(w, "a"), i = world_process(w, d, 0, 64), j = world_process(w, d, 0, 64);
        struct sim_process *p = &w->processes[j];
        struct core_apply a;
        uint8_t status[64] = {};
        uint64_t next;

        fill(w, i, 0, 64, 1);
        fill(w, j, 0, 64, 1);
        p->is_stuck = true;
        while (w->n_applies < 4) /* refused, and soon asked for again */
                world_run(w, SECOND / 1000);
        p->is_stuck = false;
        while (!core_next_apply(w->core, w->now_usec, 4, &a, &next))
                w->now_usec += 1000;
        assert_int_equal(a.client, p->client);
        world_drop(w, j, 0, 64);
        assert_int_equal(a.n_extents, 1);
        for (unsigned k = 0; k < 64; k++) {
                p->pages[k] = (struct sim_page){ .content = 1 + k, .segment = a.extents[0].segment,
                                                 .slot = a.extents[0].slot + k, .kind = KIND_FILE, .in_file = true };
                status[k] = CORE_OK;
        }
        core_apply_done(w->core, a.op, w->now_usec, status, 0);
        assert_int_equal(world_counters(w).pages_shared, 64);
        assert_null(core_check(w->core));
        world_run(w, 40 * SECOND);
        assert_int_equal(world_merged(w, j), 64);
        finish(w);
}

/* Out of merging and in again while hot: the block is read when it has come to rest. */
static void test_hot_block_of_a_range_that_returns(void **state) {
        struct world *w = merged(2, 128);

        for (unsigned t = 0; t < 100; t++) {
                fill(w, 1, 64, 64, 10000 + 100 * t);
                world_run(w, SECOND);
                if (t == 50)
                        assert_int_equal(core_unmerge(w->core, w->processes[1].client, 0, 0, 7, w->now_usec), 0);
                if (t == 60)
                        assert_int_equal(core_range_add(w->core, w->processes[1].client, 0, 128), 0);
        }
        assert_int_equal(core_unmerge(w->core, w->processes[1].client, 0, 0, 8, w->now_usec), 0);
        world_run(w, 3 * SECOND);
        assert_int_equal(core_range_add(w->core, w->processes[1].client, 0, 128), 0);
        fill(w, 1, 64, 64, 65);
        world_run(w, 200 * SECOND);
        assert_int_equal(world_counters(w).pages_sharing, 128);
        finish(w);
}

/* Equal pages of one block, in short runs only, and nowhere else. */
static void test_short_runs_within_a_block(void **state) {
        struct world *w = world_new(1, NULL);
        uint32_t i = world_process(w, world_domain(w, "a"), 0, 64);

        for (unsigned k = 0; k < 64; k++)
                world_write(w, i, k, k % 3 ? 100 + k : 5);
        fill(w, i, 20, 4, 6); /* 21 was a 5 */
        fill(w, i, 40, 4, 6);
        world_run(w, 20 * SECOND);
        assert_int_equal(world_counters(w).pages_shared, 1 + 4);
        assert_int_equal(world_counters(w).pages_sharing, 22 - 2 - 1 + 4);
        finish(w);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_comes_back_to_its_slot),
                cmocka_unit_test(test_common_again),
                cmocka_unit_test(test_unique_stays_and_is_found),
                cmocka_unit_test(test_spoiled_slots_are_bounded),
                cmocka_unit_test(test_zeros_inside),
                cmocka_unit_test(test_rewritten_for_ever),
                cmocka_unit_test(test_no_certificate_now),
                cmocka_unit_test(test_ragged_without_certificate),
                cmocka_unit_test(test_unmerge_of_uncertified),
                cmocka_unit_test(test_refused_restore_is_retried),
                cmocka_unit_test(test_ragged_restore_is_retried),
                cmocka_unit_test(test_cleaning),
                cmocka_unit_test(test_cleaning_frees_the_lonely),
                cmocka_unit_test(test_merge_crosses_a_new_mapping),
                cmocka_unit_test(test_hot_block_of_a_range_that_returns),
                cmocka_unit_test(test_short_runs_within_a_block),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
