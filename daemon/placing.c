#include "daemon/placing.h"

#include <errno.h>
#include <string.h>

#include "daemon/sys/numa.h"

void placing_name_pages(struct placing *p, const uint64_t *pages, size_t n_pages) {
        p->n_pages = MIN(n_pages, (size_t) PLACING_PAGES_MAX);
        memcpy(p->pages, pages, p->n_pages * sizeof(*pages));
        for (size_t i = 0; i < p->n_pages; i++)
                p->nodes[i] = -1;
}

void placing_name_runs(struct placing *p, struct core_run *runs, size_t *n_runs, uint64_t *end_page) {
        p->n_pages = 0;
        for (size_t i = 0; i < *n_runs; i++) {
                size_t room = PLACING_PAGES_MAX - p->n_pages;
                if (runs[i].n_pages > room) {
                        runs[i].n_pages = room;
                        *end_page = runs[i].page + room;
                        *n_runs = i + (room > 0);
                }
                for (uint64_t k = 0; k < runs[i].n_pages; k++, p->n_pages++) {
                        p->pages[p->n_pages] = runs[i].page + k;
                        p->nodes[p->n_pages] = -1;
                }
        }
}

void placing_ask_kernel(struct placing *p, pid_t pid) {
        p->error = pid > 0 ? numa_nodes(pid, p->pages, p->n_pages, p->nodes) : -ESRCH;
        for (size_t i = 0; p->error < 0 && i < p->n_pages; i++)
                p->nodes[i] = -1;
}

void placing_split_runs(struct placing *p, struct core_run *runs, size_t *n_runs, uint64_t *end_page) {
        size_t n_whole = *n_runs, n = 0, at = 0;
        memcpy(p->whole, runs, n_whole * sizeof(*runs));
        for (size_t i = 0; i < n_whole; i++)
                for (uint64_t k = 0; k < p->whole[i].n_pages; k++, at++) {
                        if (k > 0 && runs[n - 1].node == p->nodes[at]) {
                                runs[n - 1].n_pages++;
                                continue;
                        }
                        if (n == SCAN_RUNS_MAX) {
                                *end_page = p->whole[i].page + k;
                                *n_runs = n;
                                return;
                        }
                        runs[n++] = (struct core_run){ .page = p->whole[i].page + k,
                                                       .n_pages = 1,
                                                       .categories = p->whole[i].categories,
                                                       .node = p->nodes[at] };
                }
        *n_runs = n;
}
