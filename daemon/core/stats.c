#include <errno.h>

#include "daemon/core/internal.h"

/* Pages that are there and whose state is kept; holes given back and other daemons' segments are not. */
uint64_t states_tracked(const uint32_t states[PAGE_STATES]) {
        uint64_t n = 0;

        for (unsigned s = PAGE_FRESH; s < PAGE_STATES; s++)
                if (s != PAGE_ZEROED && s != PAGE_FOREIGN)
                        n += states[s];
        return n;
}

void core_counters(const struct core *c, struct counters *ret) {
        struct counters n = c->counters;

        n.pages_shared = (int64_t) c->slots_shared;
        n.pages_sharing = (int64_t) (c->slots_sharers - c->slots_shared);
        n.pages_unshared = (int64_t) c->states[PAGE_UNSHARED] + c->states[PAGE_PARTNER];
        n.pages_volatile = (int64_t) c->states[PAGE_FRESH] + c->states[PAGE_READING];
        n.ksm_zero_pages = (int64_t) c->states[PAGE_ZEROED];
        n.stable_node_chains = (int64_t) c->chains;
        n.stable_node_dups = (int64_t) c->dups;
        n.dups_for_runs = (int64_t) c->dups_for_runs;
        n.slots_misplaced = (int64_t) c->slots_misplaced;
        n.metadata_bytes = (int64_t) c->memory.bytes;
        n.clients = (int64_t) c->n_live_clients;
        n.domains = c->domains.n_items;
        n.registered_pages = (int64_t) c->registered_pages;
        n.tracked_pages = (int64_t) states_tracked(c->states);
        n.runs = c->extents.n_items;
        n.vmas_used = c->vmas_used;
        n.vma_budget = 0;
        for (uint32_t i = pool_next(&c->clients, 0); i != NIL; i = pool_next(&c->clients, i + 1))
                if (!client_at(c, i)->is_gone)
                        n.vma_budget += client_vma_budget(c, client_at(c, i));
        n.segments = (int64_t) c->segments;
        n.segment_bytes = (int64_t) (c->segment_slots_written * KSM_PAGE_SIZE);
        n.dead_bytes = (int64_t) (c->slots_dead * KSM_PAGE_SIZE);
        n.memory_short = c->memory.is_short;
        /* Dead pages take memory until their segment goes: without us it would be free. */
        n.general_profit = (n.pages_sharing + n.ksm_zero_pages) * (int64_t) KSM_PAGE_SIZE;
        n.general_profit -= n.metadata_bytes + n.dead_bytes;
        *ret = n;
}

int core_client_counters(const struct core *c, uint32_t client, struct core_client_counters *ret) {
        const struct client *cl = client_get(c, client);
        uint64_t n_tracked;

        if (!cl)
                return -ENOENT;
        n_tracked = states_tracked(cl->states);
        *ret = (struct core_client_counters){
                .domain = client_domain(c, cl)->id,
                .n_ranges = cl->n_ranges,
                .registered_pages = cl->registered_pages,
                .tracked_pages = n_tracked,
                .merged_pages = cl->states[PAGE_MERGED],
                .zero_pages = cl->states[PAGE_ZEROED],
                .unshared_pages = cl->states[PAGE_UNSHARED] + cl->states[PAGE_PARTNER],
                .vmas_used = (uint32_t) MAX(cl->vmas_used, INT64_C(0)),
                .vma_budget = (uint32_t) MIN(client_vma_budget(c, cl), (int64_t) UINT32_MAX),
        };
        /* As ksm_process_profit: what the process maps shared, less the books kept about it. */
        ret->profit_bytes = (int64_t) (ret->merged_pages + ret->zero_pages) * (int64_t) KSM_PAGE_SIZE -
                            (int64_t) (cl->n_blocks * sizeof(struct block));
        return 0;
}
