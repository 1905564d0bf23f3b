/* What tests of the core on a simulated machine begin and end with. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/sim/world.h"

#define SECOND UINT64_C(1000000)

/* Processes of one domain, each with one range of n_pages at address 0. */
static inline struct world *start(uint32_t n_processes, uint64_t n_pages) {
        struct world *w = world_new(1, NULL);
        uint32_t d = world_domain(w, "a");

        for (uint32_t i = 0; i < n_processes; i++)
                world_process(w, d, 0, n_pages);
        return w;
}

/* Contents from `first` on, all different. */
static inline void fill(struct world *w, uint32_t process, uint64_t i, uint64_t n, uint32_t first) {
        for (uint64_t k = 0; k < n; k++)
                world_write(w, process, i + k, first + (uint32_t) k);
}

/* Everybody goes, and nothing is left. */
static inline void finish(struct world *w) {
        assert_null(core_check(w->core));
        for (uint32_t i = 0; i < w->n_processes; i++)
                if (w->processes[i].is_alive)
                        world_exit(w, i);
        world_run(w, SECOND);
        assert_null(core_check(w->core));
        assert_int_equal(world_counters(w).tracked_pages, 0);
        assert_int_equal(world_counters(w).segments, 0);
        assert_int_equal(world_counters(w).domains, 0);
        world_free(w);
}
