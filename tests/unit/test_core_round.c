/* settled_scans: what programs written for kernel KSM may expect when it has gone up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/core/internal.h"
#include "tests/sim/world.h"

#define SECOND UINT64_C(1000000)

static struct world *start(uint32_t n_processes, uint64_t n_pages) {
        struct world *w = world_new(1, NULL);
        uint32_t d = world_domain(w, "a");

        for (uint32_t i = 0; i < n_processes; i++)
                world_process(w, d, 0, n_pages);
        return w;
}

static void finish(struct world *w) {
        assert_null(core_check(w->core));
        world_free(w);
}

static void fill(struct world *w, uint32_t process, uint64_t i, uint64_t n, uint32_t first) {
        for (uint64_t k = 0; k < n; k++)
                world_write(w, process, i + k, first + (uint32_t) k);
}

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

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_settled_scan_merges),
                cmocka_unit_test(test_settled_scans_go_on),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
