/* Sums by domain and by range, made when somebody asks: nobody pays for them but who does. */
#include <errno.h>
#include <string.h>

#include "daemon/core/internal.h"

/* -- domains --------------------------------------------------------------------------------------------------------- */

/* Place of the id among the n, or where it belongs. */
static unsigned domain_place(const struct core_domain_counters *sums, unsigned n, uint32_t id) {
        unsigned low = 0;

        while (low < n) {
                unsigned middle = low + (n - low) / 2;

                if (sums[middle].domain < id)
                        low = middle + 1;
                else
                        n = middle;
        }
        return low;
}

static unsigned smallest_domains(const struct core *c, uint32_t after, struct core_domain_counters *sums, unsigned max) {
        unsigned n = 0;

        for (uint32_t i = pool_next(&c->domains, 0); i != NIL; i = pool_next(&c->domains, i + 1)) {
                const struct domain *d = domain_at(c, i);
                unsigned at = domain_place(sums, n, d->id);

                if (d->id <= after || at == max)
                        continue;
                n = MIN(n + 1, max);
                memmove(&sums[at + 1], &sums[at], (n - 1 - at) * sizeof(*sums));
                sums[at] = (struct core_domain_counters){
                        .domain = d->id,
                        .n_segments = d->n_segments,
                        .key = d->key,
                        .key_size = d->key_size - 1,
                        .registered_pages = d->registered_pages,
                        .shared_pages = d->slots_shared,
                        .dead_pages = d->dead_slots,
                };
        }
        return n;
}

static void add_states(const uint32_t states[PAGE_STATES], struct core_domain_counters *sum) {
        sum->tracked_pages += states_tracked(states);
        sum->merged_pages += states[PAGE_MERGED];
        sum->zero_pages += states[PAGE_ZEROED];
        sum->unshared_pages += states[PAGE_UNSHARED] + states[PAGE_PARTNER];
        sum->volatile_pages += states[PAGE_FRESH] + states[PAGE_READING];
}

unsigned core_domain_counters(const struct core *c, uint32_t after, struct core_domain_counters *ret, unsigned max) {
        unsigned n = smallest_domains(c, after, ret, max);

        for (unsigned i = 0; i < n; i++) {
                const struct domain *d = domain_get(c, ret[i].domain);

                for (uint32_t u = 0; u < d->n_units; u++)
                        if (d->units[u] && d->units[u]->base == u * SEGMENT_UNIT)
                                ret[i].segment_pages += d->units[u]->n_live + d->units[u]->n_dead;
        }
        /* What is left of clients that are gone counts, as in the totals. */
        for (uint32_t i = pool_next(&c->clients, 0); i != NIL; i = pool_next(&c->clients, i + 1)) {
                const struct client *cl = client_at(c, i);
                uint32_t id = client_domain(c, cl)->id;
                unsigned at = domain_place(ret, n, id);

                if (at == n || ret[at].domain != id)
                        continue;
                ret[at].n_clients += !cl->is_gone;
                add_states(cl->states, &ret[at]);
        }
        return n;
}

/* -- ranges ---------------------------------------------------------------------------------------------------------- */

#define REPORT_BLOCKS 16384 /* visits of blocks a call: some 64 ns and more each */

struct summing {
        struct core *c;
        struct client *cl;
        unsigned budget;
};

static void add_block(const struct block *b, uint64_t start, uint64_t end, struct core_range_counters *sum) {
        uint64_t first = b->number << BLOCK_SHIFT;
        uint32_t states[PAGE_STATES] = { 0 };

        for (unsigned i = 0; i < BLOCK_PAGES; i++)
                if (first + i >= start && first + i < end)
                        states[record_state(b->page[i])]++;
        sum->tracked_pages += states_tracked(states);
        sum->merged_pages += states[PAGE_MERGED];
        sum->zero_pages += states[PAGE_ZEROED];
        sum->unshared_pages += states[PAGE_UNSHARED] + states[PAGE_PARTNER];
}

/* A walk visits block numbers, or all of the client's blocks when those are fewer. Too much for one call is too much only for a client
 * with more blocks than that: then the piece is so short that its numbers are visited. Returns its end. */
static uint64_t sum_piece(struct summing *s, uint64_t start, uint64_t end, struct core_range_counters *sum) {
        struct walk w;
        uint32_t block;

        if (s->cl->n_blocks > s->budget)
                end = MIN(end, ((start >> BLOCK_SHIFT) + s->budget) << BLOCK_SHIFT);
        walk_begin(s->cl, &w, start, end);
        s->budget++; /* a walk by numbers ends one visit after the last */
        while ((block = walk_next(s->c, s->cl, &w, &s->budget)) != NIL)
                add_block(block_at(s->c, block), start, end, sum);
        s->budget -= s->budget > 0;
        return end;
}

int core_range_counters(struct core *c, uint32_t client, uint64_t page, struct core_range_counters *ret, unsigned max, uint64_t *ret_next) {
        struct summing s = { .c = c, .cl = client_get(c, client), .budget = REPORT_BLOCKS };
        const struct range *r = s.cl ? range_find(s.cl, page) : NULL;
        unsigned n = 0;

        if (!s.cl)
                return -ENOENT;
        for (; r && n < max && s.budget > 0; n++) {
                uint64_t start = MAX(page, r->start), end;

                ret[n] = (struct core_range_counters){ .page = start, .is_unmerged = r->is_unmerged };
                end = sum_piece(&s, start, r->end, &ret[n]);
                ret[n].n_pages = end - start;
                ret[n].is_continued = end < r->end;
                page = end;
                r = range_find(s.cl, page);
        }
        *ret_next = r ? page : 0;
        return (int) n;
}
