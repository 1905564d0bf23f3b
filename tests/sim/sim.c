/* The core against a simulated machine. Small mode (the default): scenarios that must converge to the ideal, then random
 * histories with every answer in random order, the books recomputed after each step. The seed is printed.
 *   sim [seed [histories [steps]]]      sim table [clients pages]     figures: metadata bytes, time an operation */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/core/internal.h"
#include "tests/sim/world.h"

#define REQUIRE(condition)                                                                                           \
        do {                                                                                                         \
                if (!(condition)) {                                                                                  \
                        fprintf(stderr, "seed %" PRIu64 ", %s:%d: %s\n", w->seed, __func__, __LINE__, #condition);   \
                        abort();                                                                                     \
                }                                                                                                    \
        } while (0)

static void check(struct world *w) {
        const char *error = core_check(w->core);

        if (!error)
                return;
        fprintf(stderr, "seed %" PRIu64 ": %s\n", w->seed, error);
        abort();
}

/* -- convergence -------------------------------------------------------------------------------------------------------- */

static void identical_clients(uint64_t seed) {
        enum { CLIENTS = 8, PAGES = 4096 };
        struct world *w = world_new(seed, NULL);
        uint32_t d = world_domain(w, "a");
        struct counters n;
        uint64_t vmas = 0;

        for (uint32_t i = 0; i < CLIENTS; i++) {
                world_process(w, d, 1000 + i * 7, PAGES);
                for (uint32_t k = 0; k < PAGES; k++)
                        world_write(w, i, k, 1 + k);
        }
        world_run(w, 10 * 1000 * 1000);
        check(w);
        n = world_counters(w);
        for (uint32_t i = 0; i < CLIENTS; i++)
                vmas += world_vmas(w, i);
        printf("identical: shared %" PRId64 " sharing %" PRId64 " of %d, VMAs %" PRIu64 " (books %" PRId64 "), %.1f a client\n",
               n.pages_shared, n.pages_sharing, (CLIENTS - 1) * PAGES, vmas, n.vmas_used, (double) vmas / CLIENTS);
        REQUIRE(n.pages_shared == PAGES && n.pages_sharing == (CLIENTS - 1) * PAGES);
        REQUIRE((uint64_t) n.vmas_used == vmas);
        /* At most one VMA for each 64 pages, and the two of the whole. */
        REQUIRE(vmas <= CLIENTS * (PAGES / 64 * 2 + 2));
        for (uint32_t i = 0; i < CLIENTS; i++)
                world_exit(w, i);
        world_run(w, 1000 * 1000);
        n = world_counters(w);
        REQUIRE(n.tracked_pages == 0 && n.segments == 0 && n.domains == 0);
        check(w);
        world_free(w);
}

/* Duplicates without neighbours, more than the VMA budget holds: it is used up, not more. */
static void scattered(uint64_t seed) {
        enum { PAGES = 8192, BUDGET = 1000 };
        struct world *w = world_new(seed, NULL);
        uint32_t d = world_domain(w, "a");
        struct counters n;

        for (uint32_t i = 0; i < 2; i++) {
                struct core_client_config config = { .max_map_count = 2 * BUDGET, .n_vmas = 0 };

                world_process(w, d, 0, PAGES);
                core_client_gone(w->core, w->processes[i].client);
                core_client_add(w->core, d, &config, &w->processes[i].client);
                core_range_add(w->core, w->processes[i].client, 0, PAGES);
                for (uint32_t k = 0; k < PAGES; k++)
                        world_write(w, i, k, k % 2 ? 1 + k : 100000 + i * PAGES + k);
        }
        world_run(w, 20 * 1000 * 1000);
        check(w);
        n = world_counters(w);
        printf("scattered: sharing %" PRId64 ", VMAs %" PRId64 " of 2 x %d\n", n.pages_sharing, n.vmas_used, BUDGET);
        REQUIRE(n.vmas_used <= 2 * BUDGET && n.vmas_used >= 2 * BUDGET * 7 / 10);
        REQUIRE(n.pages_sharing >= BUDGET * 7 / 10 / 2);
        REQUIRE(n.failed_budget > 0);
        REQUIRE((uint64_t) n.segment_bytes <= (uint64_t) (n.pages_shared + 200) * 4096);
        world_free(w);
}

/* What is quiet is walked and nothing else; what is hot is left out of most passes. */
static void quiet_and_hot(uint64_t seed) {
        enum { PAGES = 8192, HOT = 256 };
        struct world *w = world_new(seed, NULL);
        uint32_t d = world_domain(w, "a");
        uint64_t reads, scanned;
        struct counters n;

        world_process(w, d, 0, PAGES);
        for (uint32_t k = 0; k < PAGES; k++)
                world_write(w, 0, k, 1 + k);
        world_run(w, 5 * 1000 * 1000);
        reads = w->n_reads;
        scanned = w->n_scanned_pages;
        world_run(w, 10 * 1000 * 1000);
        REQUIRE(w->n_reads == reads && w->n_scanned_pages <= scanned + PAGES); /* one plain look */
        for (unsigned t = 0; t < 300; t++) {
                for (uint32_t k = 0; k < HOT; k++)
                        world_write(w, 0, 1000 + k, 100000 + t * HOT + k);
                world_run(w, 500 * 1000);
        }
        n = world_counters(w);
        scanned = w->n_scanned_pages - scanned;
        printf("hot: %" PRIu64 " pages reported in 150 s of writing %d, reads %" PRIu64 ", volatile %" PRId64 "\n", scanned, HOT,
               w->n_reads - reads, n.pages_volatile);
        REQUIRE(n.pages_volatile >= HOT);
        REQUIRE(scanned < 11 * PAGES + 150 * HOT / 2);
        check(w);
        world_free(w);
}

/* -- random histories -------------------------------------------------------------------------------------------------- */

static void mutate(struct world *w) {
        uint32_t i = (uint32_t) world_random(w, w->n_processes);
        struct sim_process *p = &w->processes[i];
        uint64_t k = world_random(w, p->n_pages), n = 1 + world_random(w, 100);
        uint64_t what = world_random(w, 1000);
        /* Few contents make long chains. */
        uint32_t first = (uint32_t) world_random(w, 200), contents = w->seed % 4 == 1 ? 12 : 300;

        if (n > p->n_pages - k)
                n = p->n_pages - k;
        if (!p->is_alive) {
                if (what < 100)
                        world_process(w, w->domains[what % 2].id, world_random(w, 1000), 64 + world_random(w, 500));
                return;
        }
        if (what < 700) {
                for (uint64_t j = 0; j < n; j++)
                        world_write(w, i, k + j, what < 50 ? 0 : what < (w->seed % 8 == 5 ? 400 : 60) ? 7 : 1 + (first + (uint32_t) j) % contents);
        } else if (what < 735) {
                world_drop(w, i, k, n);
        } else if (what < 765) {
                world_discard(w, i, k, n);
        } else if (what < 770) {
                world_register_anew(w, i, k, n);
        } else if (what < 790) {
                p->pages[k].is_pinned = !p->pages[k].is_pinned;
        } else if (what < 800) {
                p->is_stuck = !p->is_stuck;
                p->has_no_witness = world_random(w, 2);
        } else if (what < 815) {
                (void) core_merge_now(w->core, p->client, p->base + k, n, what, w->now_usec);
        } else if (what < 822) {
                (void) core_unmerge(w->core, p->client, p->base + k, n, what, w->now_usec);
        } else if (what < 825) {
                world_exit(w, i);
        } else if (what < 828) {
                (void) core_tunable_set(w->core, TUNABLE_run, (int64_t) world_random(w, 3), w->now_usec);
        } else if (what < 850) {
                (void) core_tunable_set(w->core, TUNABLE_run, 1, w->now_usec);
        } else if (what < 855) {
                (void) core_tunable_set(w->core, TUNABLE_max_page_sharing, 2 + (int64_t) world_random(w, 6), w->now_usec);
        } else if (what < 858) {
                core_client_park(w->core, p->client, world_random(w, 2));
        } else if (what < 861) {
                core_client_park(w->core, p->client, false);
        } else if (what < 870) {
                world_restart(w, what < 864 ? 300 : 0);
        } else if (what < 874) {
                (void) core_memory_left(w->core, world_random(w, 2 * CORE_MEMORY_RESERVE_BYTES));
        } else if (what < 882) {
                (void) core_memory_left(w->core, UINT64_MAX);
        } else if (what < 885) {
                core_set_pace(w->core, (enum core_pace) world_random(w, 3), w->now_usec);
        } else if (what < 890) {
                core_set_pace(w->core, CORE_PACE_NORMAL, w->now_usec);
        } else if (w->n_nodes && what < 908) {
                world_migrate(w, i, k, n, (unsigned) world_random(w, w->n_nodes));
        } else if (w->n_nodes && what < 912) {
                p->home = (uint8_t) world_random(w, w->n_nodes);
        } else if (w->n_nodes && what < 915) {
                (void) core_tunable_set(w->core, TUNABLE_merge_across_nodes, (int64_t) world_random(w, 2), w->now_usec);
        } else if (what < 960) {
                w->now_usec += world_random(w, 100 * 1000);
        } else {
                world_run(w, world_random(w, 400 * 1000));
        }
}

/* Every page lies where the books say, and shares what they say. */
static void compare(struct world *w, const struct sim_process *p) {
        const struct client *cl = client_get(w->core, p->client);
        const struct domain *d = client_domain(w->core, cl);

        for (uint64_t k = 0; k < p->n_pages; k++) {
                const struct sim_page *q = &p->pages[k];
                uint32_t block = block_find(w->core, cl, (p->base + k) >> BLOCK_SHIFT), slot = NIL;
                unsigned i = (unsigned) (p->base + k) & (BLOCK_PAGES - 1);
                enum page_state s = PAGE_NONE;

                if (block != NIL) {
                        slot = page_file_slot(w->core, block_at(w->core, block), i);
                        s = record_state(block_at(w->core, block)->page[i]);
                }
                REQUIRE(q->in_file == (slot != NIL));
                if (!q->in_file)
                        continue;
                REQUIRE(segment_of(d, slot)->id == q->segment && slot - segment_of(d, slot)->base == q->slot);
                REQUIRE(q->kind == KIND_FILE || s != PAGE_MERGED);
                /* Surplus for a lowered cap stays where it is when there are no VMAs to cut it out, and while a chain of other content but
                 * the same hash is tried again and again, a minute apart in the end. */
                REQUIRE(q->kind != KIND_FILE || s == PAGE_MERGED || w->max_map_count <= 400 || w->collision_bits > 0);
        }
}

enum { NODES = 3 };

/* Where the page is, if that makes it another content. */
static unsigned place(const struct world *w, const struct sim_page *q) {
        return core_wants_nodes(w->core) ? world_node(w, q) : 0;
}

/* Of each content of a domain (on a node, if they matter) at most one page shares nothing (the cap may leave it over), and no zeros are left. */
static void require_ideal(struct world *w, uint32_t domain) {
        enum { CONTENTS = 512 };
        unsigned alone[CONTENTS][NODES] = {};

        for (uint32_t i = 0; i < w->n_processes; i++)
                for (uint64_t k = 0; k < w->processes[i].n_pages; k++) {
                        const struct sim_page *q = &w->processes[i].pages[k];

                        if (!w->processes[i].is_alive || w->processes[i].domain != domain || q->kind != KIND_ANON || q->is_pinned)
                                continue;
                        REQUIRE(q->content > 0 && q->content < CONTENTS);
                        REQUIRE(++alone[q->content][place(w, q)] <= 1);
                }
}

/* No shared page has more sharers than the cap, and no content more copies than it needs and one, but for those that runs keep. */
static void require_compact(struct world *w, uint32_t domain, int64_t *ret_excess) {
        enum { CONTENTS = 512 };
        uint32_t sharers[CONTENTS][NODES] = {}, copies[CONTENTS][NODES] = {};
        uint32_t cap = (uint32_t) core_tunables(w->core)->max_page_sharing;
        bool is_inexact = false;

        for (uint32_t i = 0; i < w->n_processes; i++)
                is_inexact |= w->processes[i].is_alive && w->processes[i].is_inexact;
        for (uint32_t s = 0; s < w->n_segments; s++) {
                const struct sim_segment *segment = &w->segments[s];
                uint32_t *n = calloc(segment->n_slots, sizeof(*n));

                REQUIRE(n);
                for (uint32_t i = 0; i < w->n_processes; i++)
                        for (uint64_t k = 0; k < w->processes[i].n_pages; k++) {
                                const struct sim_page *q = &w->processes[i].pages[k];

                                if (w->processes[i].is_alive && !w->processes[i].is_inexact && q->kind == KIND_FILE && q->segment == segment->id)
                                        n[q->slot]++;
                        }
                for (uint32_t k = 0; k < segment->n_slots && segment->domain == domain; k++) {
                        REQUIRE(n[k] <= cap || w->max_map_count <= 400);
                        REQUIRE(n[k] == 0 || segment->content[k] < CONTENTS);
                        if (n[k] > 0) {
                                unsigned node = core_wants_nodes(w->core) ? segment->nodes[k] : 0;

                                sharers[segment->content[k]][node] += n[k];
                                copies[segment->content[k]][node]++;
                                /* With collisions some lie where they do until their time comes. */
                                REQUIRE(!core_wants_nodes(w->core) || segment->node == (int32_t) node);
                                REQUIRE(core_wants_nodes(w->core) || segment->node < 0);
                        }
                }
                free(n);
        }
        for (uint32_t k = 0; k < CONTENTS * NODES && !is_inexact; k++) {
                uint32_t s = sharers[k / NODES][k % NODES], c = copies[k / NODES][k % NODES];
                int64_t more = (int64_t) c - (s + cap - 1) / cap - 1;

                *ret_excess += more > 0 ? more : 0;
        }
}

/* A long time passes in which nothing is written: books that say what the memory says, and all that is equal merged. */
static void rest(struct world *w) {
        struct counters n;
        uint64_t merged = 0;

        world_run(w, 300 * 1000 * 1000);
        check(w);
        for (uint32_t i = 0; i < w->n_processes; i++)
                if (w->processes[i].is_alive && !w->processes[i].is_inexact)
                        compare(w, &w->processes[i]);
        if (w->collision_bits == 0 && w->max_map_count > 400) {
                require_ideal(w, w->domains[0].id);
                require_ideal(w, w->domains[1].id);
        }
        n = world_counters(w);
        REQUIRE(n.slots_misplaced == 0);
        /* What is tried again and again, of equal hash only, has room promised to it again and again. */
        REQUIRE(!w->core->prune_due || w->max_map_count <= 400 || w->collision_bits > 0);
        if (w->collision_bits == 0 && w->max_map_count > 400) {
                int64_t excess = 0;

                require_compact(w, w->domains[0].id, &excess);
                require_compact(w, w->domains[1].id, &excess);
                REQUIRE(excess <= n.dups_for_runs);
        }
        for (uint32_t i = 0; i < w->n_processes; i++)
                if (w->processes[i].is_alive)
                        merged += world_merged(w, i);
        /* Nothing waits for an answer that will not come. */
        for (enum page_state s = PAGE_NONE; s < PAGE_STATES; s++)
                if (s == PAGE_READING || s == PAGE_PARTNER || s == PAGE_SOURCE || s == PAGE_MERGING || s == PAGE_ZEROING)
                        REQUIRE(w->core->states[s] == 0);
        /* Pages of ranges that were removed and added keep mappings that the books forgot. */
        REQUIRE((uint64_t) (n.pages_shared + n.pages_sharing) <= merged);
}

/* Processes move to other nodes, with what they have or without; and perhaps nodes begin to matter, or cease to. */
static void migrate_some(struct world *w) {
        for (unsigned k = 0; k < 10; k++) {
                uint32_t i = (uint32_t) world_random(w, w->n_processes);
                uint64_t at = world_random(w, w->processes[i].n_pages), n = world_random(w, w->processes[i].n_pages - at) + 1;
                unsigned node = (unsigned) world_random(w, w->n_nodes);

                if (!w->processes[i].is_alive)
                        continue;
                w->processes[i].home = (uint8_t) node;
                world_migrate(w, i, at, n, node);
        }
        if (world_random(w, 2))
                (void) core_tunable_set(w->core, TUNABLE_merge_across_nodes, (int64_t) world_random(w, 2), w->now_usec);
}

/* Left alone, every history comes to rest with books that say what the memory says, and with all that is equal merged. */
static void come_to_rest(struct world *w) {
        struct counters n;

        (void) core_tunable_set(w->core, TUNABLE_run, 1, w->now_usec);
        core_set_pace(w->core, CORE_PACE_NORMAL, w->now_usec);
        w->fail_permille = 0;
        if (world_random(w, 2))
                (void) core_tunable_set(w->core, TUNABLE_max_page_sharing, 2 + (int64_t) world_random(w, 20), w->now_usec);
        (void) core_memory_left(w->core, UINT64_MAX);
        /* Doubled for each failure of a page, up to 2^15 times: within the time below. */
        (void) core_tunable_set(w->core, TUNABLE_settle_millisecs, 5, w->now_usec);
        (void) core_tunable_set(w->core, TUNABLE_segment_share_permille, 1000, w->now_usec);
        for (uint32_t i = 0; i < w->n_processes; i++) {
                struct sim_process *p = &w->processes[i];

                p->is_stuck = p->has_no_witness = false;
                core_client_park(w->core, p->client, false);
                if (p->is_alive)
                        (void) world_register_all(w, p);
        }
        rest(w);
        for (unsigned k = 0; w->n_nodes && k < 3; k++) {
                migrate_some(w);
                rest(w);
        }
        for (uint32_t i = 0; i < w->n_processes; i++)
                if (w->processes[i].is_alive)
                        world_exit(w, i);
        world_run(w, 1000 * 1000);
        check(w);
        n = world_counters(w);
        REQUIRE(n.tracked_pages == 0 && n.runs == 0 && n.vmas_used == 0 && n.domains == 0 && n.segments == 0);
}

static uint64_t relocated, restarted, dropped;

static uint64_t history(uint64_t seed, unsigned steps) {
        struct world *w = world_new(seed, NULL);
        uint32_t d1 = world_domain(w, "one"), d2 = world_domain(w, "two");
        struct counters n;
        uint64_t merges;

        (void) core_tunable_set(w->core, TUNABLE_max_page_sharing, 2 + (int64_t) world_random(w, 5), w->now_usec);
        (void) core_tunable_set(w->core, TUNABLE_pass_millisecs, 50, w->now_usec);
        (void) core_tunable_set(w->core, TUNABLE_settle_millisecs, 50, w->now_usec);
        (void) core_tunable_set(w->core, TUNABLE_adopt_grace_millisecs, (int64_t) world_random(w, 2000), w->now_usec);
        (void) core_tunable_set(w->core, TUNABLE_stable_node_chains_prune_millisecs, 1 + (int64_t) world_random(w, 200), w->now_usec);
        w->collision_bits = seed % 3 == 0 ? 7 : 0;
        w->leaves_gaps = seed % 4 < 2;
        w->n_nodes = seed % 7 == 3 ? 2 : seed % 7 == 5 ? NODES : 0;
        core_set_nodes(w->core, w->n_nodes > 1);
        if (w->n_nodes)
                (void) core_tunable_set(w->core, TUNABLE_merge_across_nodes, seed % 2 == 0, w->now_usec);
        w->max_map_count = seed % 5 == 0 ? 400 : 65530; /* short of VMAs: strips, and pages that stay alone */
        w->fail_permille = seed % 2 ? 50 : 0;
        for (unsigned i = 0; i < 4; i++)
                world_process(w, i < 3 ? d1 : d2, world_random(w, 200), 64 + world_random(w, 400));
        for (unsigned s = 0; s < steps; s++) {
                if (world_random(w, 20) == 0)
                        mutate(w);
                else
                        world_step(w);
                check(w);
        }
        n = world_counters(w);
        merges = (uint64_t) n.merges;
        restarted += n.segments_adopted > 0;
        dropped += w->n_dropped;
        come_to_rest(w);
        relocated += w->n_relocated;
        world_free(w);
        return merges;
}

/* A chain above its cap in a segment that had been cleaned; equal neighbours that moved onto themselves; two dups that exchange sharers. */
static const uint64_t regressions[] = { 37, 189, 502 };

/* -- figures -------------------------------------------------------------------------------------------------------------- */

static double seconds(void) {
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double) t.tv_sec + 1e-9 * (double) t.tv_nsec;
}

/* Time includes the simulated machine's own work, so it is an upper bound. */
static void table(uint64_t seed, uint32_t clients, uint32_t pages) {
        static const char *const names[] = { "all unique", "all equal pairs of clients", "half merged" };

        printf("%-28s %10s %10s %10s %12s %12s\n", "content", "tracked", "merged", "VMAs", "bytes/page", "ns/page/all");
        for (unsigned mode = 0; mode < 3; mode++) {
                struct world *w = world_new(seed, NULL);
                uint32_t d = world_domain(w, "a");
                struct counters n;
                double t;

                (void) core_tunable_set(w->core, TUNABLE_segment_share_permille, 1000, w->now_usec);
                for (uint32_t i = 0; i < clients; i++) {
                        world_process(w, d, 0, pages);
                        for (uint32_t k = 0; k < pages; k++)
                                world_write(w, i, k, mode == 0 || (mode == 2 && k / 256 % 2) ? 1 + i * pages + k
                                                                                             : 1 + i / 2 * pages + k);
                }
                t = seconds();
                world_run(w, 12 * 1000 * 1000);
                t = seconds() - t;
                n = world_counters(w);
                printf("%-28s %10" PRId64 " %10" PRId64 " %10" PRId64 " %12.1f %12.0f\n", names[mode], n.tracked_pages,
                       n.pages_shared + n.pages_sharing, n.vmas_used,
                       ((double) n.metadata_bytes - 48.0 * (double) n.vmas_used) / (double) n.tracked_pages,
                       t * 1e9 / (double) n.tracked_pages);
                world_free(w);
        }
}

int main(int argc, char **argv) {
        uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
        unsigned histories = argc > 2 ? (unsigned) atoi(argv[2]) : 40, steps = argc > 3 ? (unsigned) atoi(argv[3]) : 2000;
        uint64_t merges = 0;

        if (argc > 1 && strcmp(argv[1], "table") == 0) {
                table(1, argc > 2 ? (uint32_t) atoi(argv[2]) : 8, argc > 3 ? (uint32_t) atoi(argv[3]) : 65536);
                return 0;
        }
        printf("seed %" PRIu64 "\n", seed);
        identical_clients(seed);
        scattered(seed);
        quiet_and_hot(seed);
        if (histories > 0) /* faults that few histories find */
                for (unsigned i = 0; i < sizeof(regressions) / sizeof(regressions[0]); i++)
                        (void) history(regressions[i], 2000);
        for (unsigned i = 0; i < histories; i++)
                merges += history(seed + i, steps);
        printf("%u histories of %u steps, %" PRIu64 " merges, %" PRIu64 " inside mappings, %" PRIu64 " segments dropped, %" PRIu64
               " ended after a restart\n", histories, steps, merges, relocated, dropped, restarted);
        table(seed, 4, 16384);
        return merges > 0 || histories == 0 ? 0 : 1;
}
