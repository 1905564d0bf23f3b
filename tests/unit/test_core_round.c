/* settled_scans: what programs written for kernel KSM may expect when it has gone up. */
#include "daemon/core/internal.h"
#include "tests/unit/machine.h"

static void set(struct world *w, enum tunable_id id, int64_t value) {
        assert_int_equal(core_tunable_set(w->core, id, value, w->now_usec), 0);
}

/* Whatever was there before settled_scans was n is merged when it is n + 2: at every phase of passes and rounds, for single pages, runs,
 * pairs and pages of zeros, of two processes that pass at different times. */
static void test_settled_scan_merges(void **state) {
        for (uint64_t phase = 0; phase < 40; phase++) {
                struct world *w = start(2, 640);
                int64_t before, limit;

                set(w, TUNABLE_settle_millisecs, phase % 2 ? 1000 : 3000);
                set(w, TUNABLE_pages_to_scan, phase % 3 ? 65536 : 64);
                world_run(w, SECOND + phase * SECOND / 7);
                fill(w, 0, 0, 100, 1);
                fill(w, 1, 300, 100, 1);
                for (uint64_t i = 0; i < 10; i++) /* far from each other */
                        fill(w, i % 2, 128 + 16 * i, 1, 5000 + (uint32_t) i / 2);
                before = world_counters(w).settled_scans;
                for (limit = 0; world_counters(w).settled_scans < before + 2; limit++) {
                        assert_in_range(limit, 0, 600);
                        world_run(w, SECOND / 10);
                }
                assert_in_range(limit, 30, 600);
                assert_int_equal(world_counters(w).pages_sharing, 105);
                finish(w);
        }
}

/* Somebody who always writes holds up nobody's round for ever; nothing to scan counts as well, when somebody looks. */
static void test_settled_scans_go_on(void **state) {
        struct world *w = start(2, 640);
        int64_t before = world_counters(w).settled_scans;

        for (unsigned t = 0; t < 1200; t++) {
                fill(w, 0, (t * 7) % 600, 40, 1 + t * 40);
                world_run(w, SECOND / 10);
        }
        assert_in_range(world_counters(w).settled_scans, before + 6, before + 60);
        assert_int_equal(core_range_remove(w->core, w->processes[0].client, 0, 640), 0);
        assert_int_equal(core_range_remove(w->core, w->processes[1].client, 0, 640), 0);
        world_run(w, 10 * SECOND);
        before = world_counters(w).settled_scans;
        for (unsigned t = 0; t < 100; t++) {
                core_look(w->core, w->now_usec);
                world_run(w, SECOND / 10);
        }
        assert_in_range(world_counters(w).settled_scans, before + 3, before + 4);
        set(w, TUNABLE_run, 0);
        before = world_counters(w).settled_scans;
        world_run(w, 100 * SECOND);
        core_look(w->core, w->now_usec);
        set(w, TUNABLE_run, 1);
        core_look(w->core, w->now_usec);
        assert_int_equal(world_counters(w).settled_scans, before);
        finish(w);
}

/* Nor does looking end a round while there is something to scan. */
static void test_looking_ends_no_round(void **state) {
        struct world *w = start(1, 64);

        set(w, TUNABLE_settle_millisecs, 60000);
        fill(w, 0, 0, 64, 1);
        for (unsigned t = 0; t < 300; t++) {
                core_look(w->core, w->now_usec);
                world_run(w, SECOND / 10);
        }
        assert_int_equal(world_counters(w).settled_scans, 0);
        world_run(w, 60 * SECOND);
        assert_int_equal(world_counters(w).settled_scans, 1);
        finish(w);
}

/* What is read and never published, for want of somebody who does it, ends no round and keeps none from ending. */
static void test_round_beside_what_waits(void **state) {
        const struct core_client_config config = { 0 };
        const struct core_run run = { .n_pages = 2, .categories = CORE_WRITTEN };
        struct core_read_result equal[CORE_READ_PAGES];
        uint32_t domain, client;
        struct core *core;
        struct core_scan scan;
        struct core_read read;
        struct counters counters;
        uint64_t next;
        bool is_first = true;

        for (unsigned i = 0; i < CORE_READ_PAGES; i++)
                equal[i] = (struct core_read_result){ .status = CORE_READ_OK, .hash = 77 };
        assert_int_equal(core_new(NULL, 1, &core), 0);
        assert_int_equal(core_domain(core, "a", 1, &domain), 0);
        assert_int_equal(core_client_add(core, domain, &config, &client), 0);
        assert_int_equal(core_range_add(core, client, 0, BLOCK_PAGES), 0);
        for (uint64_t now = SECOND; now < 100 * SECOND; now += SECOND / 10) {
                (void) core_tick(core, now);
                while (core_next_scan(core, now, &scan, &next)) {
                        core_scan_done(core, scan.op, now, &run, is_first, scan.page + scan.n_pages, 0);
                        is_first = false;
                }
                while (core_next_read(core, now, &read, &next))
                        core_read_done(core, read.op, now, equal);
        }
        core_counters(core, &counters);
        assert_int_equal(counters.pages_shared, 0);
        assert_in_range(counters.settled_scans, 5, 12); /* of a hundred scans */
        core_free(core);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_settled_scan_merges),
                cmocka_unit_test(test_settled_scans_go_on),
                cmocka_unit_test(test_looking_ends_no_round),
                cmocka_unit_test(test_round_beside_what_waits),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
