/* What happens to pages, slots and processes while the core waits for an answer about them. */
#include <errno.h>
#include <string.h>

#include "tests/unit/machine.h"

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

static unsigned reads_until;

/* Nobody has seen it when the page is published. */
static void write_unseen(struct world *w) {
        if (--reads_until > 0) {
                w->meanwhile = write_unseen;
                return;
        }
        for (uint32_t i = 0; i < 2; i++)
                fill(w, i, 0, 64, 600 + 100 * i);
}

/* Written after it was read, and copied so: the slot does not hold what the chain would be known by. */
static void test_written_before_the_copy(void **state) {
        struct world *w = start(2, 64);

        for (uint32_t i = 0; i < 2; i++)
                fill(w, i, 0, 64, 1); /* a run: published at once */
        reads_until = 2;
        w->meanwhile = write_unseen;
        w->meanwhile_of = MEANWHILE_READ;
        world_run(w, 20 * SECOND);
        assert_null(w->meanwhile);
        assert_int_equal(w->n_segments, 1);
        assert_int_equal(world_counters(w).failed_changed, 0);
        assert_int_equal(world_counters(w).pages_unshared, 2 * 64);
        finish(w);
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

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_written_meanwhile),
                cmocka_unit_test(test_written_before_the_copy),
                cmocka_unit_test(test_dup_not_needed),
                cmocka_unit_test(test_not_sealed_while_written),
                cmocka_unit_test(test_unregistered_while_merging),
                cmocka_unit_test(test_one_transition_a_block),
                cmocka_unit_test(test_stopped_before_publish),
                cmocka_unit_test(test_unmerged_before_merge),
                cmocka_unit_test(test_unmerged_while_scanned),
                cmocka_unit_test(test_scanned_while_forgotten),
                cmocka_unit_test(test_answers_after_exit),
                cmocka_unit_test(test_ids_of_the_gone),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
