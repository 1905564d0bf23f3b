/* How the core scales: a machine without memory of its own, whose pages follow from their addresses, so that a TiB of them costs only what
 * the core keeps. Half of each process is common to eight of them, in runs of 64 pages; half is unique.
 *   scale [GiB [clients a GiB]]      one row for each power of eight up to GiB: 1, 8, 64, 512, and GiB itself
 * Times are CPU time of this process, the machine's part (a few ns a page) included. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "daemon/core/core.h"

#define PAGES_PER_GIB 262144
#define BLOCK 64
#define SHARERS 8
#define SECOND UINT64_C(1000000)

#define REQUIRE(condition)                                                              \
        do {                                                                            \
                if (!(condition)) {                                                     \
                        fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
                        abort();                                                        \
                }                                                                       \
        } while (0)

struct process {
        uint32_t client;
        uint8_t *in_file; /* bit per page, in machine.in_file */
};
enum phase { FIRST, QUIET, REWRITE };
struct machine {
        struct core *core;
        struct process *processes; /* in the order of client ids' pool index */
        uint32_t n_processes, n_pages; /* of each */
        uint8_t *in_file;              /* all of them */
        uint32_t *by_index;            /* client id & mask -> process */
        uint64_t now_usec;
        enum phase phase;
        bool *has_written; /* per process: its pages of this phase have been reported */
        uint64_t n_rewritten;
};
#define INDEX_MASK ((1U << 18) - 1) /* ids: generation above, pool index below */

static uint64_t mix(uint64_t x) {
        x += UINT64_C(0x9e3779b97f4a7c15);
        x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
        x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
        return x ^ x >> 31;
}

static double seconds(void) {
        struct timespec t;

        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
        return (double) t.tv_sec + 1e-9 * (double) t.tv_nsec;
}

static struct process *process_of(struct machine *m, uint32_t client, uint32_t *ret_i) {
        *ret_i = m->by_index[client & INDEX_MASK];
        return &m->processes[*ret_i];
}

static bool in_file(const struct process *p, uint64_t page) {
        return p->in_file[page / 8] >> page % 8 & 1;
}

static bool is_rewritten(uint32_t process, uint64_t page) {
        return mix(page / BLOCK * 131 + process) % BLOCK == page % BLOCK; /* one in a block */
}

static uint64_t hash_of(const struct machine *m, uint32_t process, uint64_t page) {
        if (m->phase == REWRITE && is_rewritten(process, page))
                return mix(mix(page) + process) ^ 1;
        if (page / BLOCK % 2)
                return mix(mix(page) + (UINT64_C(1) << 40) + process / SHARERS);
        return mix(mix(page) + process);
}

static void scan(struct machine *m, const struct core_scan *s) {
        static struct core_run runs[4096];
        uint64_t end = s->page + s->n_pages, page;
        size_t n = 0;
        uint32_t i;
        struct process *p = process_of(m, s->client, &i);
        bool nothing = s->rewrite_protect && (m->phase == QUIET || m->has_written[i]);

        for (page = s->page; page < end && !nothing; page++) {
                uint32_t category = in_file(p, page) ? CORE_FILE : 0;

                if (s->rewrite_protect) {
                        if (m->phase == REWRITE && !is_rewritten(i, page))
                                continue;
                        m->n_rewritten += m->phase == REWRITE;
                        p->in_file[page / 8] &= (uint8_t) ~(1U << page % 8);
                        category = CORE_WRITTEN;
                }
                if (n > 0 && runs[n - 1].page + runs[n - 1].n_pages == page && runs[n - 1].categories == category) {
                        runs[n - 1].n_pages++;
                } else if (n == MIN(s->max_runs, (uint32_t) ARRAY_SIZE(runs))) {
                        break;
                } else {
                        runs[n++] = (struct core_run){ .page = page, .n_pages = 1, .categories = category };
                }
        }
        if (nothing)
                page = end;
        if (s->rewrite_protect && page == m->n_pages)
                m->has_written[i] = true;
        core_scan_done(m->core, s->op, m->now_usec, runs, n, page, 0);
}

static void hash(struct machine *m, uint32_t client, const uint64_t *pages, uint32_t n, struct core_read_result *results) {
        uint32_t i;

        (void) process_of(m, client, &i);
        for (uint32_t k = 0; k < n; k++)
                results[k] = (struct core_read_result){ .hash = hash_of(m, i, pages[k]) };
}

static void apply(struct machine *m, const struct core_apply *a) {
        uint8_t status[BLOCK] = { 0 };
        uint32_t i;
        struct process *p = process_of(m, a->client, &i);

        for (uint32_t k = 0; k < a->n_extents; k++)
                for (uint64_t page = a->extents[k].page; page < a->extents[k].page + a->extents[k].n_pages; page++) {
                        status[page % BLOCK] = CORE_OK;
                        if (a->kind == CORE_APPLY_MERGE)
                                p->in_file[page / 8] |= (uint8_t) (1U << page % 8);
                        else
                                p->in_file[page / 8] &= (uint8_t) ~(1U << page % 8);
                }
        REQUIRE(core_apply_done(m->core, a->op, m->now_usec, status, 0) == 0);
}

static bool turn(struct machine *m, uint64_t *next) {
        struct core_read_result results[CORE_READ_PAGES];
        struct core_segment_event event;
        struct core_publish u;
        struct core_apply a;
        struct core_scan s;
        struct core_read r;
        bool any = false;
        uint64_t t;

        *next = core_tick(m->core, m->now_usec);
        if (core_next_scan(m->core, m->now_usec, &s, &t)) {
                scan(m, &s);
                any = true;
        }
        *next = MIN(*next, t);
        for (unsigned k = 0; k < 8 && core_next_read(m->core, m->now_usec, &r, &t); k++) {
                hash(m, r.client, r.pages, r.n_pages, results);
                core_read_done(m->core, r.op, m->now_usec, results);
                any = true;
        }
        *next = MIN(*next, t);
        for (unsigned k = 0; k < 32 && core_next_publish(m->core, m->now_usec, &u); k++) {
                hash(m, u.client, u.pages, u.n_pages, results);
                core_publish_done(m->core, u.op, m->now_usec, results, 0);
                any = true;
        }
        for (unsigned k = 0; k < 32 && core_next_apply(m->core, m->now_usec, 4, &a, &t); k++) {
                apply(m, &a);
                any = true;
        }
        *next = MIN(*next, t);
        while (core_next_segment_event(m->core, &event))
                ;
        return any;
}

static void run(struct machine *m, uint64_t usec) {
        uint64_t end = m->now_usec + usec, next;

        while (m->now_usec < end) {
                if (turn(m, &next))
                        continue;
                next = MAX(next, m->now_usec + 1);
                m->now_usec = MIN(next, end);
        }
}

static struct counters counters(const struct machine *m) {
        struct counters n;

        core_counters(m->core, &n);
        return n;
}

/* The same seconds of the core's life, with and without anything written in them. */
static double measure(struct machine *m, enum phase phase, uint64_t usec) {
        double t = seconds();

        m->phase = phase;
        memset(m->has_written, 0, m->n_processes);
        run(m, usec);
        return seconds() - t;
}

static void populate(struct machine *m) {
        uint32_t domain;

        REQUIRE(core_new(NULL, 1, &m->core) == 0);
        REQUIRE(core_tunable_set(m->core, TUNABLE_pages_to_scan, 1 << 20, 0) == 0);
        REQUIRE(core_tunable_set(m->core, TUNABLE_sleep_millisecs, 1, 0) == 0);
        REQUIRE(core_domain(m->core, "a", 1, &domain) == 0);
        for (uint32_t i = 0; i < m->n_processes; i++) {
                struct core_client_config config = { .n_vmas = 50 };
                struct process *p = &m->processes[i];

                REQUIRE(core_client_add(m->core, domain, &config, &p->client) == 0);
                REQUIRE(core_range_add(m->core, p->client, 0, m->n_pages) == 0);
                p->in_file = m->in_file + (size_t) i * (m->n_pages / 8);
                REQUIRE((p->client & INDEX_MASK) <= m->n_processes);
                m->by_index[p->client & INDEX_MASK] = i;
        }
}

static void row(uint64_t gib, uint32_t clients_per_gib) {
        struct machine m = { .now_usec = SECOND, .n_processes = (uint32_t) gib * clients_per_gib };
        double first, quiet, rewrite, leave, pages, bytes;
        struct counters n;

        m.n_pages = PAGES_PER_GIB / clients_per_gib / BLOCK * BLOCK;
        m.processes = calloc(m.n_processes, sizeof(*m.processes));
        m.by_index = calloc(m.n_processes + 1, sizeof(*m.by_index));
        m.has_written = calloc(m.n_processes, sizeof(*m.has_written));
        m.in_file = calloc(m.n_processes, m.n_pages / 8); /* whole blocks */
        REQUIRE(m.processes && m.by_index && m.has_written && m.in_file);
        populate(&m);
        first = measure(&m, FIRST, 10 * SECOND);
        n = counters(&m);
        pages = (double) n.tracked_pages;
        bytes = ((double) n.metadata_bytes - 48.0 * (double) n.vmas_used) / pages;
        REQUIRE(n.pages_shared + n.pages_sharing >= n.tracked_pages * 49 / 100);
        quiet = measure(&m, QUIET, 16 * SECOND); /* a look among them */
        rewrite = measure(&m, REWRITE, 16 * SECOND) - quiet;
        leave = seconds();
        for (uint32_t i = 0; i < m.n_processes; i++)
                core_client_gone(m.core, m.processes[i].client);
        run(&m, SECOND);
        leave = seconds() - leave;
        n = counters(&m);
        REQUIRE(n.tracked_pages == 0 && n.segments == 0);
        printf("%6" PRIu64 " %8u %12.0f %10.1f %12.0f %12.2f %12.0f %12.1f\n", gib, m.n_processes, pages, bytes, first / pages * 1e9,
               quiet / 16 / pages * 1e9, rewrite / (double) m.n_rewritten * 1e9, leave / pages * 1e9);
        fflush(stdout);
        m.core = core_free(m.core);
        free(m.in_file);
        free(m.processes);
        free(m.by_index);
        free(m.has_written);
}

int main(int argc, char **argv) {
        uint64_t most = argc > 1 ? strtoull(argv[1], NULL, 0) : 8;
        uint32_t clients_per_gib = argc > 2 ? (uint32_t) strtoul(argv[2], NULL, 0) : 10;

        printf("%6s %8s %12s %10s %12s %12s %12s %12s\n", "GiB", "clients", "pages", "bytes/page", "ns/page", "ns/page", "ns/rewritten",
               "ns/page");
        printf("%6s %8s %12s %10s %12s %12s %12s %12s\n", "", "", "tracked", "less VMAs", "to merged", "a quiet pass", "page", "to exit");
        for (uint64_t gib = 1; gib < most; gib *= 8)
                row(gib, clients_per_gib);
        row(most, clients_per_gib);
        return 0;
}
