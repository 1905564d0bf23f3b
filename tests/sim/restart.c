/* The daemon of the simulated machine dies and another takes over: segments that were kept, runs that agents report. */
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "tests/sim/world.h"

static bool is_used(const struct world *w, uint32_t domain) {
        for (uint32_t i = 0; i < w->n_processes; i++)
                if (w->processes[i].is_alive && w->processes[i].domain == domain)
                        return true;
        return false;
}

/* What the old core was waiting for is never answered; its ids mean nothing any more. */
static void new_core(struct world *w) {
        const struct tunables tunables = *core_tunables(w->core);

        w->n_ops = 0;
        w->core = core_free(w->core);
        if (core_new(NULL, w->seed, &w->core) < 0)
                abort();
        core_set_nodes(w->core, w->n_nodes > 1);
        for (unsigned i = 0; i < TUNABLE_MAX_; i++)
                if (core_tunable_set(w->core, (enum tunable_id) i, tunable_get(&tunables, (enum tunable_id) i), w->now_usec) < 0)
                        abort();
        for (uint32_t i = 0; i < w->n_domains; i++) {
                struct sim_domain *d = &w->domains[i];

                d->new_id = 0; /* one that nobody uses would never be freed */
                if (is_used(w, d->id) && core_domain(w->core, d->key, strlen(d->key), &d->new_id) < 0)
                        abort();
        }
}

/* 0: nobody uses it any more. */
static uint32_t new_domain(const struct world *w, uint32_t old) {
        for (uint32_t i = 0; i < w->n_domains; i++)
                if (w->domains[i].id == old)
                        return w->domains[i].new_id;
        return 0;
}

/* Ids of the old core become ones that the new one will not give. */
#define LOST_SEGMENT(i) (UINT32_MAX - (i))

static void rename_segment(struct world *w, uint32_t from, uint32_t to) {
        for (uint32_t i = 0; i < w->n_processes; i++)
                for (uint64_t k = 0; k < w->processes[i].n_pages; k++)
                        if (w->processes[i].pages[k].in_file && w->processes[i].pages[k].segment == from)
                                w->processes[i].pages[k].segment = to;
}

static void take_over(struct world *w, struct sim_segment *s) {
        uint32_t old = s->id;

        if (core_segment_adopt(w->core, s->domain, s->n_slots, s->node, &s->id) < 0)
                abort();
        rename_segment(w, old, s->id);
        for (uint32_t i = 0; i < s->n_slots; i++)
                if (s->is_written[i] && s->content[i] &&
                    core_slot_adopt(w->core, s->domain, s->id, i, world_hash(w, s->content[i])) < 0)
                        abort();
}

/* Runs as an agent reports them: what shows its slot, page by page of consecutive ones. */
static void report(struct world *w, struct sim_process *p) {
        for (uint64_t k = 0; k < p->n_pages; k++) {
                const struct sim_page *q = &p->pages[k];

                if (q->in_file && q->kind == KIND_FILE)
                        (void) core_run_adopt(w->core, p->client, p->base + k, 1, q->segment, q->slot);
                /* Of the mapping around a private page nobody tells. */
                p->is_inexact |= q->in_file && (q->kind != KIND_FILE || q->content == 0 || q->segment > LOST_SEGMENT(w->n_segments));
        }
}

void world_restart(struct world *w, unsigned lost_permille) {
        new_core(w);
        for (uint32_t i = 0; i < w->n_segments; i++) {
                struct sim_segment *s = &w->segments[i];

                rename_segment(w, s->id, LOST_SEGMENT(i)); /* new ids are given in between */
                s->id = LOST_SEGMENT(i);
                s->domain = new_domain(w, s->domain);
                s->is_open = s->is_open && world_random(w, 1000) >= lost_permille && s->domain;
        }
        for (uint32_t i = 0; i < w->n_segments; i++)
                if (w->segments[i].is_open)
                        take_over(w, &w->segments[i]);
        core_adopted(w->core, w->now_usec);
        for (uint32_t i = 0; i < w->n_processes; i++) {
                struct core_client_config config = { .max_map_count = w->max_map_count, .n_vmas = 50 };
                struct sim_process *p = &w->processes[i];

                p->domain = new_domain(w, p->domain);
                p->client = 0;
                if (!p->is_alive)
                        continue;
                if (core_client_add(w->core, p->domain, &config, &p->client) < 0 ||
                    world_register_all(w, p) < 0)
                        abort();
                report(w, p);
        }
        for (uint32_t i = 0; i < w->n_domains; i++)
                w->domains[i].id = w->domains[i].new_id;
}
