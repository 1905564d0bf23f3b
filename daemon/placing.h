/* On which NUMA nodes the pages of a job are, for merge_across_nodes=0: the kernel is asked on the worker; where it does not answer us, the
 * process itself is, on the loop (daemon/nodes.h). What nobody says is -1, and is not merged. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "daemon/bounds.h"
#include "daemon/core/core.h"
#include "daemon/nodes.h"

/* Of one job: 2 to 4 ms of asking. A look at more is cut there, and goes on with the next job. */
#define PLACING_PAGES_MAX 16384U

struct placing {
        struct nodes_question question; /* first: a question's `done` finds the placing by it */
        void *owner;
        int error; /* of the worker's asking; 0: all nodes are there */
        size_t n_pages;
        uint64_t pages[PLACING_PAGES_MAX];
        int16_t nodes[PLACING_PAGES_MAX]; /* as numa_nodes has them */
        struct core_run whole[SCAN_RUNS_MAX];
};

/* Names the pages of the runs. Cuts what is too much off them: *end_page says where. */
void placing_name_runs(struct placing *p, struct core_run *runs, size_t *n_runs, uint64_t *end_page);
void placing_name_pages(struct placing *p, const uint64_t *pages, size_t n_pages);
/* Asks the kernel about process pid, 0: not visible from here. On a worker: numa_nodes says why. */
void placing_ask_kernel(struct placing *p, pid_t pid);
/* Splits the runs, whose pages were named, by node; `runs` has room for SCAN_RUNS_MAX, and what they do not hold is cut off. */
void placing_split_runs(struct placing *p, struct core_run *runs, size_t *n_runs, uint64_t *end_page);
